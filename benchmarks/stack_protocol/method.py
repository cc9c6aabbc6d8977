"""The ways to come by a stack of N requests that the curve compares."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from tofu_protocol.data import short_digest

from efface.recipes import Recipe, load_recipe

from .generated import strangers

Kind = Literal["independent", "sequential", "together", "balanced", "compressed"]

# Tuned on one author: half the rows of forget01 want fewer steps, and smaller, faster ones forget as much here.
SETTINGS = ("steps=24", "retain_batch=4", "learning_rate=1e-3", "stop.every=8", "stop.patience=3")

COMPRESSED = 64
"""What four requests take: from there on serving N of them costs no more."""


@dataclass(frozen=True, slots=True)
class Method:
    """``independent``: an adapter a request, trained on the bare base, then summed. ``sequential``: each trained on
    the stack so far (its ``trained_on``). ``together``: one adapter for all N at once, for every N anew. ``balanced``:
    the adapters of the independent method ``of``, and from N = 2 on a balance (`efface.recipes.balance`), for every N
    anew. ``compressed``: those adapters as one of rank `COMPRESSED` (`efface.adapters.compress`), which trains nothing.

    ``own``: its balance also keeps what the bare base itself says of strangers and of things, rows for which nobody has
    to know an answer (`generated.strangers`). ``excluded``: the rows of all requests stay out of every retain set (what
    efface does); else the retain rows of a request also hold rows of the other authors, as many as there are, which its
    adapter then holds on to.
    ``overrides``: recipe settings of this method alone; where they look at registered adapters, those are the ones
    before it in the order. ``recipe``: the shipped one that it begins with.
    """

    name: str
    kind: Kind
    excluded: bool = True
    overrides: tuple[str, ...] = ()
    about: str = ""
    of: str = ""
    own: bool = False
    recipe: str = "simnpo-answers"

    @property
    def holds_a(self) -> bool:
        """Whether the adapters of its requests keep to the directions that A starts on."""
        return (METHODS[self.of] if self.of else self).recipe == "simnpo-stack"


METHODS = {
    method.name: method
    for method in (
        Method("sum", "independent", about="trained apart, summed"),
        Method(
            "leaky", "independent", excluded=False, about="the same, the others' rows among the retain rows"
        ),
        Method(
            "penalty",
            "independent",
            overrides=("stacking.orthogonal=0.1", "stacking.orthogonal_outputs=0.1"),
            about="sum, kept apart from those before by a penalty on A and B (O-LoRA)",
        ),
        Method(
            "null-space",
            "independent",
            overrides=("initialisation=null_space", "stacking.freeze_a=true"),
            about="sum, A frozen in the null space of those before",
        ),
        Method(
            "company",
            "independent",
            overrides=("stacking.company=0.5",),
            about="sum, a random draw of those before on in half of the steps",
        ),
        Method(
            "contrast",
            "independent",
            recipe="simnpo-stack",
            about="sum, A frozen on what tells the forget rows from the retain rows; retain weighs 20, not 2",
        ),
        Method(
            "contrast-balanced", "balanced", about="contrast, and a balance of the whole stack", of="contrast"
        ),
        Method(
            "contrast-balanced-own",
            "balanced",
            about="contrast, and a balance that also keeps the model's own words about strangers and things",
            of="contrast",
            own=True,
        ),
        Method(
            "contrast-compressed",
            "compressed",
            about=f"contrast, the stack as one adapter of rank {COMPRESSED}",
            of="contrast",
        ),
        Method("balanced", "balanced", about="sum, and a balance of the whole stack", of="sum"),
        Method("sequential", "sequential", about="each on top of those before"),
        Method("together", "together", about="one adapter for all N, trained anew for every N"),
    )
}


@dataclass(frozen=True, slots=True)
class Series:
    """One method with one seed: the seed draws the order of the requests and everything in training."""

    method: Method
    seed: int
    recipe: Recipe
    order: tuple[int, ...]
    of: Series | None = None

    @property
    def apart(self) -> Series:
        """The series whose adapters are each for one request: itself, or what it balances or compresses."""
        return self.of or self

    @property
    def key(self) -> str:
        """What decides its adapters, short."""
        about = {
            key: value for key, value in asdict(self.method).items() if value or key not in ("of", "own")
        }
        if self.method.own:
            about["own"] = [row.question for row in strangers()]
        return short_digest([about, self.recipe.digest, self.order, *([self.of.key] if self.of else [])])

    @property
    def folder(self) -> str:
        """The name of where its adapters and figures are kept."""
        return f"{self.method.name}-s{self.seed}-{self.key}"


def series(name: str, seed: int, authors: int, overrides: Sequence[str] = ()) -> Series:
    """The series of a method with ``seed``. Raises `InvalidRecipe` for overrides that cannot be meant."""
    method = METHODS[name]
    of = series(method.of, seed, authors, overrides) if method.of else None
    recipe = load_recipe(method.recipe, [*SETTINGS, *method.overrides, *overrides, f"seed={seed}"])
    order = list(range(authors))
    random.Random(seed).shuffle(order)
    return Series(method, seed, recipe, tuple(order), of)
