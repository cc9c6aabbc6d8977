"""Every shipped recipe trains as it stands in its file: one that is only parsed may ask for what no loss takes."""

from pathlib import Path

import pytest
from model_kit import FORGET, PAD, RETAIN, encoded

from efface.adapters import Encoded, Item
from efface.adapters.lora import attach
from efface.adapters.model import load_base
from efface.adapters.settings import FORGET_OBJECTIVES
from efface.adapters.trainer import train
from efface.recipes import load_recipe, shipped_recipes

# What a model of two layers and three rows a side cannot give: a deep layer, fifteen steps between probes, a budget
# that noise would break.
SMALL = ("layer=1", "steps=2", "round_steps=2", "warmup_steps=1", "stop=null", "quantization=fp32")


def test_every_objective_has_a_recipe() -> None:
    assert {load_recipe(name).objective for name in shipped_recipes()} == set(FORGET_OBJECTIVES)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_trains(tiny_llama: Path, name: str) -> None:
    forget, retain = encoded(tiny_llama, FORGET), encoded(tiny_llama, RETAIN)
    recipe = load_recipe(name, SMALL)
    others: dict[Encoded, tuple[Encoded, ...]] = {
        row: encoded(tiny_llama, tuple(Item(f"{item.id}/{k}", item.prompt, "a city") for k in range(2)))
        for row, item in zip(forget, FORGET, strict=True)
    }
    model = attach(
        load_base(tiny_llama, recipe.quantization).model, rank=recipe.rank, alpha=recipe.lora_alpha
    )
    for number in range(recipe.rounds):
        result = train(model, forget, retain, recipe.train_settings(number), pad_id=PAD, alternates=others)
        assert len(result.steps) == 2
    moved = [name for name, p in model.named_parameters() if "lora_B" in name and bool(p.any())]
    assert moved
