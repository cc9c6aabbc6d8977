"""Recipes: every shipped one loads, every problem is named at once, and the digest follows the values."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_kit import recipe_file, recipe_values
from hypothesis import given
from hypothesis import strategies as st

import efface.recipes.recipe as home
from efface.adapters.settings import FORGET_OBJECTIVES, Constraint, Stacking, StopRules, TrainSettings
from efface.audits import Thresholds
from efface.recipes import InvalidRecipe, Recipe, load_recipe, shipped_recipes

FILES = sorted(Path(home.__file__).parent.glob("*.yaml"))
OTHER: dict[str, Any] = {  # a valid value of each key that is not its default
    "name": "other",
    "objective": "npo",
    "retain_term": "kl",
    "parameters": {"beta": 0.2},
    "constraint": {"slack": 1.5},
    "alternates": 2,
    "skip_first": 1,
    "layer": 3,
    "control_scale": 4.0,
    "schedule": "cosine",
    "optimizer": "adamw_8bit",
    "weight_decay": 0.1,
    "stop": {"forget_probability": 0.1},
    "stacking": {"orthogonal": 0.5, "company": 0.25},
    "accumulation": 2,
    "length_buckets": False,
    "gradient_checkpointing": True,
    "rslora": True,
    "initialisation": "fila",
    "gamma": 0.5,
    "alpha": 5.0,
    "learning_rate": 1e-4,
    "warmup_steps": 2,
    "steps": 30,
    "rounds": 2,
    "round_steps": 7,
    "round_learning_rate": 1e-4,
    "forget_batch": 4,
    "retain_batch": 4,
    "max_grad_norm": 0.5,
    "rank": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
    "quantization": "bf16",
    "focus": "answer",
    "own_answers": False,
    "chat": "never",
    "max_length": 64,
    "truncation": "answer",
    "max_new_tokens": 8,
    "audit_retain_rows": 8,
    "seed": 1,
    "gates": {"max_mention_rate_forget": 0.0},
}


def problems(source: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(InvalidRecipe) as caught:
        load_recipe(str(source), overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads_by_name_and_by_path(path: Path) -> None:
    by_name = load_recipe(path.stem)
    assert by_name == load_recipe(str(path))
    assert by_name.name == path.stem
    stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    dumped = by_name.model_dump(mode="json")
    for part in {"gates", "stop", "constraint", "stacking"} & stated.keys():
        stated[part] = {**dumped[part], **stated[part]}
    assert {key: dumped[key] for key in stated} == stated


def test_shipped_recipes_are_the_files_beside_the_loader() -> None:
    assert len(FILES) >= 2
    assert shipped_recipes() == {path.stem: path for path in FILES}


def test_a_recipe_can_say_all_that_the_trainer_takes() -> None:
    stated = {**OTHER, "retain_term": "nll", "objective": "altpo"}  # a constraint is of the NLL
    settings = Recipe(**stated).train_settings()
    names = TrainSettings.__dataclass_fields__
    expected = {name: stated[name] for name in names}
    expected |= {"constraint": Constraint(slack=1.5), "stop": StopRules(forget_probability=0.1)}
    expected["stacking"] = Stacking(orthogonal=0.5, company=0.25)
    assert {name: getattr(settings, name) for name in names} == expected


@pytest.mark.parametrize("objective", FORGET_OBJECTIVES)
def test_every_objective_can_be_asked_for(objective: str) -> None:
    assert Recipe(name="a", objective=objective).train_settings().objective == objective


def test_later_rounds_have_their_own_steps_rate_and_seed() -> None:
    recipe = Recipe(name="a", steps=20, rounds=3, round_steps=5, round_learning_rate=1e-4, seed=7)
    assert recipe.total_steps == 30
    later = [recipe.train_settings(number) for number in (1, 2)]
    assert [(s.steps, s.learning_rate, s.seed) for s in later] == [(5, 1e-4, 8), (5, 1e-4, 9)]
    assert recipe.train_settings().learning_rate == recipe.learning_rate


@pytest.mark.parametrize(
    ("key", "near"),
    [("learning_rat", "learning_rate"), ("lr_rank", "rank"), ("stpes", "steps"), ("beta", "parameters.beta")],
)
def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path, key: str, near: str) -> None:
    (found,) = problems(recipe_file(tmp_path / "mine.yaml", **{key: 1}))
    assert found.endswith(f"`{key}` is not a key; did you mean `{near}`?")


def test_an_unknown_gate_is_named_with_the_nearest_gate(tmp_path: Path) -> None:
    (found,) = problems(recipe_file(tmp_path / "a.yaml", gates={"max_mention_rate_forgot": 0.1}))
    assert found.endswith(
        "`gates.max_mention_rate_forgot` is not a key; did you mean `max_mention_rate_forget`?"
    )


def test_a_key_like_no_other_gets_the_list(tmp_path: Path) -> None:
    (found,) = problems(recipe_file(tmp_path / "mine.yaml", zzzzzzzz=1))
    assert all(key in found for key in Recipe.model_fields)


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    values = {
        "stpes": 3,
        "gamma": -1,
        "objective": "dppo",
        "rank": 1000,
        "quantization": "int2",
        "gates": {"max_mention_rate_forget": 3, "min_fluency": 1},
    }
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    found = problems(path, ["steps=0", "warmup_steps=-1", "chat=perhaps"])
    assert all(problem.startswith(f"recipe {path}: `") for problem in found)
    named = {re.findall(r"`([\w.]+)`", problem)[0] for problem in found}
    keys = {"stpes", "gamma", "objective", "rank", "quantization", "steps", "warmup_steps", "chat"}
    assert named == keys | {"gates.max_mention_rate_forget", "gates.min_fluency"}


def test_an_unknown_recipe_is_named_with_the_nearest() -> None:
    (found,) = problems("simpno")
    assert "did you mean 'simnpo'?" in found
    (found,) = problems("zzzzzz")
    assert "npo, pdu, rmu, satimp, simnpo" in found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- steps",
        "just words",
        "steps: [1",
        "a: b: c",
        "\tsteps: 3",
        "&a [*a]",
        "!!python/object/apply:os.system [echo]",
        "steps: 2026-99-99",
        "? [a]\n: 1",
        "steps: 1\x00",
        "[" * 5000,
        "a: &a [x, x]\nb: &b [*a, *a]\n",
        "1: 2",
        "gates: 3",
        "gates: [1]",
    ],
)
def test_what_is_no_recipe_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    if text == "":
        assert "found NoneType" in problems(path)[0]
    else:
        assert str(path) in problems(path)[0]


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "expected a YAML mapping" in problems(path)[0]
    assert "expected a YAML file or one of" in problems(tmp_path)[0]
    assert "expected a YAML file or one of" in problems(tmp_path / "absent.yaml")[0]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("steps=20", "steps", 20),
        ("learning_rate=5e-4", "learning_rate", 5e-4),
        ("learning_rate=.5e-3", "learning_rate", 5e-4),
        ("learning_rate=5E-4", "learning_rate", 5e-4),
        ("own_answers=false", "own_answers", False),
        ("objective=npo", "objective", "npo"),
        ("target_modules=[q_proj, v_proj]", "target_modules", ("q_proj", "v_proj")),
        ("target_modules=q_proj", "target_modules", "q_proj"),
        ("name=mine", "name", "mine"),
    ],
)
def test_overrides(override: str, key: str, value: object) -> None:
    changed = load_recipe("npo", [override])
    assert getattr(changed, key) == value
    untouched = load_recipe("npo").model_dump()
    assert {k: v for k, v in changed.model_dump().items() if k != key} == {
        k: v for k, v in untouched.items() if k != key
    }


def test_overrides_of_a_gate_keep_the_others(tmp_path: Path) -> None:
    path = recipe_file(tmp_path / "a.yaml", gates={"max_mention_rate_forget": 0.05})
    overrides = ["gates.min_fluency_ratio=5e-1", "gates.max_probability_ratio_forget=null"]
    gates = load_recipe(str(path), overrides).gates
    assert gates.max_mention_rate_forget == 0.05
    assert gates.min_fluency_ratio == 0.5
    assert gates.max_probability_ratio_forget is None
    assert gates.min_probability_ratio_retain == Thresholds().min_probability_ratio_retain


def test_the_last_override_wins() -> None:
    assert load_recipe("npo", ["steps=20", "steps=25"]).steps == 25


@given(st.floats(min_value=1e-9, max_value=1.0))
def test_a_number_is_a_number_however_it_is_written(rate: float) -> None:
    for text in (repr(rate), f"{rate:e}", f"{rate:.17g}"):
        assert math.isclose(load_recipe("npo", [f"learning_rate={text}"]).learning_rate, rate, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("", "expected key=value"),
        ("steps=[1", "not valid YAML"),
        ("steps=2026-99-99", "not valid YAML"),
        ("steps=" + "[" * 5000, "not valid YAML"),
        ("objective=simnop", "did you mean 'simnpo'"),
        ("parameters.betta=1", "unknown parameter of npo 'betta': beta exist; did you mean 'beta'?"),
        ("stop.everry=1", "did you mean `every`"),
        ("stacking.compny=1", "did you mean `company`"),
        ("stacking.company=2", "`stacking.company`"),
        ("stacking={freeze_a: true, orthogonal: 1}", "a frozen A cannot follow stacking.orthogonal"),
        ("constraint.slak=1", "did you mean `slack`"),
        ("steps=many", "`steps`"),
        ("steps=", "`steps`"),
        ("learning_rate=nan", "`learning_rate`"),
        ("learning_rate=inf", "`learning_rate`"),
        ("learning_rat=1", "did you mean `learning_rate`"),
        ("gates.max_mention_rate=1", "did you mean `max_mention_rate_"),
        ("gates.=1", "is not a key"),
        (".=1", "is not a key"),
        ("steps.more=1", "`steps`"),
        ("gates=none", "`gates`"),
        ("warmup_steps=100", "warmup_steps=100 must be below"),
    ],
)
def test_bad_overrides_are_refused(override: str, said: str) -> None:
    assert said in problems("npo", [override])[0]


def test_what_does_not_go_together_comes_with_what_is_wrong_alone() -> None:
    found = problems("npo", ["stpes=3", "rank=0", "warmup_steps=500", "constraint={}", "retain_term=kl"])
    said = " ".join(found)
    for part in ("`stpes`", "`rank`", "warmup_steps=500 must be below", "expected retain_term nll, got kl"):
        assert said.count(part) == 1


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("steps: 3\nstop: {every: 2, every: 3}\n", encoding="utf-8")
    assert "every stands twice" in problems(path)[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("parameters.beta=-1", "parameters of npo: expected a positive, finite beta, got -1"),
        ("alternates=2", "only altpo takes several"),
        ("seed=5000000000", "expected a seed from 0 to"),
        ("stop.retain_drop=2", "less than or equal to 1"),
    ],
)
def test_what_training_would_refuse_is_refused_at_once(override: str, said: str) -> None:
    assert said in problems("npo", [override])[0]


def test_what_does_not_go_together_is_refused() -> None:
    (found,) = problems("npo", ["constraint={}", "retain_term=kl"])
    assert "expected retain_term nll, got kl" in found


def test_malformed_overrides_and_invalid_keys_come_at_once() -> None:
    found = problems("npo", ["steps", "beta=[1", "stpes=3", "rank=0", "=1"])
    assert [problem.split(": ")[0] for problem in found] == [
        "--set 'steps'",
        "--set 'beta=[1'",
        "--set '=1'",
        "recipe npo",
        "recipe npo",
    ]
    assert problems("npo", ["steps"]) == ["--set 'steps': expected key=value, for example --set steps=20"]


def test_gates_that_show_no_forgetting_are_refused(tmp_path: Path) -> None:
    gates = {name: None for name in Thresholds.model_fields if name.endswith("_forget")}
    assert "shows no forgetting" in problems(recipe_file(tmp_path / "a.yaml", gates=gates))[0]


def test_the_digest_is_of_the_values_not_of_the_file(tmp_path: Path) -> None:
    plain = load_recipe(str(recipe_file(tmp_path / "a.yaml", name="x", steps=9)))
    values = recipe_values(name="x", learning_rate=0.5)
    reordered = tmp_path / "b.yaml"
    reordered.write_text(yaml.safe_dump(dict(reversed(values.items())), sort_keys=False), encoding="utf-8")
    other = load_recipe(str(reordered), ["steps=9", "learning_rate=5e-3"])
    assert plain == other
    assert plain.digest == other.digest
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", plain.digest)


@pytest.mark.parametrize("key", Recipe.model_fields)
def test_the_digest_changes_with_any_value(key: str) -> None:
    default = Recipe(name="a", objective="altpo")
    changed = Recipe(**{"name": "a", "objective": "altpo", key: OTHER[key]})
    assert getattr(changed, key) != getattr(default, key)
    assert changed.digest != default.digest


def test_a_recipe_without_stacking_keeps_the_digest_that_it_had_before_there_was_any() -> None:
    """Adapters name it in their manifests."""
    assert load_recipe("npo").digest.startswith("sha256:599425dea35b")
    then = ["alpha=4", "learning_rate=3e-4", "round_learning_rate=3e-4", "initialisation=default"]
    assert load_recipe("simnpo", [*then, "stacking={}"]).digest.startswith("sha256:7e1b113239a8")
    stated = load_recipe("npo", ["stacking.company=0", "stacking.freeze_a=false"])
    assert stated.digest == load_recipe("npo").digest
    assert "stacking" not in stated.values()


@pytest.mark.parametrize("key", home.Stacks.model_fields)
def test_the_digest_changes_with_any_part_of_stacking(key: str) -> None:
    value = {"freeze_a": "true", "company_every": "2"}.get(key, "1")
    changed = load_recipe("npo", [f"stacking.{key}={value}"])
    assert changed.digest != load_recipe("npo").digest
    assert changed.values()["stacking"][key] == getattr(changed.train_settings().stacking, key)


@pytest.mark.parametrize("gate", Thresholds.model_fields)
def test_the_digest_changes_with_any_gate(gate: str) -> None:
    value = {"max_recovered": {"prompt": 0.5}, "confidence": 0.9, "few_rows": 8}.get(gate, 0.123)
    changed = Recipe(name="a", gates=Thresholds(**{gate: value}))  # type: ignore[arg-type]
    assert changed.digest != Recipe(name="a").digest


def test_chat_is_the_tokenizers_unless_said_otherwise() -> None:
    for chat, expected in (("auto", [True, False]), ("always", [True, True]), ("never", [False, False])):
        recipe = Recipe(name="a", chat=chat)  # type: ignore[arg-type]
        assert [recipe.method(has_chat_template=there).chat for there in (True, False)] == expected
