"""A recipe: every choice that decides an adapter and its audit, typed and frozen, in one small YAML file."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..adapters.errors import TrainingError
from ..adapters.lora import Initialisation
from ..adapters.model import Quantization
from ..adapters.objectives import OBJECTIVES
from ..adapters.settings import (
    FORGET_OBJECTIVES,
    Constraint,
    Optimizer,
    RetainTerm,
    Schedule,
    Stacking,
    StopRules,
    TrainSettings,
    check_settings,
    unknown,
)
from ..adapters.truncate import Truncation
from ..audits.gates import Thresholds
from ..audits.run import Method
from ..audits.strict_yaml import NOT_YAML, read_mapping
from .errors import InvalidRecipe

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]


_FIRST_GATES = (
    *("max_mention_rate_forget", "max_mention_rate_paraphrase", "max_probability_ratio_forget"),
    *("max_extraction_strength_forget", "max_rouge_ratio_forget", "min_probability_ratio_retain"),
    *("min_probability_ratio_neighbour", "min_mention_ratio_retain", "min_mention_ratio_neighbour"),
    *("min_fluency_ratio", "max_perplexity_ratio"),
)
"""Those that every recipe digest covers, set or not."""


class Bound(BaseModel):
    """`efface.adapters.Constraint`, checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slack: Positive = 1.1
    weight: Weight = 50.0
    step: Positive = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class Stop(BaseModel):
    """`efface.adapters.StopRules`, checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: Count = 5
    rows: Count = 32
    forget_probability: Share | None = None
    extraction_strength: Share | None = None
    retain_drop: Share | None = 0.1
    distinct: Share | None = 0.5
    patience: Count = 2


class Stacks(BaseModel):
    """`efface.adapters.Stacking`, checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    orthogonal: Weight = 0.0
    orthogonal_outputs: Weight = 0.0
    freeze_a: bool = False
    company: Share = 0.0
    company_every: Count = 1


class Recipe(BaseModel):
    """How one request is trained and audited. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    objective: str = Field("simnpo", description="a forget objective of docs/objectives.md")
    parameters: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=dict, description="the objective's own, such as beta; its defaults where left out"
    )
    retain_term: RetainTerm = "nll"
    gamma: Positive = 1.0
    alpha: Weight = 1.0
    constraint: Bound | None = Field(None, description="PDU's: minimise forget while retain NLL is bounded")
    alternates: Count = Field(1, description="other answers that a forget row meets at once")
    skip_first: Annotated[int, Field(ge=0)] = 0
    layer: Annotated[int, Field(ge=0)] = 7
    control_scale: Positive = 2.0
    learning_rate: Positive = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Schedule = "linear"
    optimizer: Optimizer = "adamw_torch"
    weight_decay: Weight = 0.0
    steps: Count = 40
    stop: Stop | None = Field(None, description="when to end a round early, and which step to keep")
    stacking: Stacks = Field(
        default_factory=Stacks, description="training beside the registered adapters; off by default"
    )
    rounds: Count = Field(
        1,
        le=8,
        description="after each round but the last, answers that still name a keyword are forgotten too; "
        "no further round when there are none",
    )
    round_steps: Count = Field(10, description="steps of each round after the first")
    round_learning_rate: Positive = 3e-4
    forget_batch: Count = 8
    retain_batch: Count = 8
    accumulation: Count = Field(1, description="forwards of a step")
    length_buckets: bool = Field(True, description="rows of like length in one forward")
    gradient_checkpointing: bool = False
    max_grad_norm: Positive = 1.0
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    lora_alpha: Count = 32
    rslora: bool = Field(False, description="scale by alpha/sqrt(rank) (arXiv 2312.03732)")
    initialisation: Initialisation = "default"
    target_modules: str | tuple[str, ...] = "all-linear"
    quantization: Quantization = "nf4"
    focus: Literal["answer", "keywords"] = Field(
        "keywords", description="forget the whole answer, or only its tokens that spell a keyword of the row"
    )
    own_answers: bool = Field(
        True, description="also forget what the base itself answers, where that names a keyword"
    )
    chat: Literal["auto", "always", "never"] = Field(
        "auto", description="apply the chat template: auto = where the tokenizer has one"
    )
    max_length: Count = Field(512, description="tokens of prompt and answer together")
    truncation: Truncation = Field(
        "error", description="what is cut from a row that is longer; by default nothing"
    )
    max_new_tokens: Count = 24
    audit_retain_rows: Count = Field(24, description="retain rows that an audit looks at, evenly spread")
    seed: Annotated[int, Field(ge=0)] = 0
    gates: Thresholds = Field(default_factory=Thresholds.model_validate({}).model_copy)

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str) -> str:
        if value not in FORGET_OBJECTIVES:
            raise ValueError(unknown("objective", value, FORGET_OBJECTIVES))
        return value

    @field_validator("parameters")
    @classmethod
    def _known_parameters(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        objective = info.data.get("objective")  # absent where it was refused already
        names = tuple(OBJECTIVES[objective].defaults) if objective else tuple(value)
        wrong = [unknown(f"parameter of {objective}", key, names) for key in value if key not in names]
        if wrong:
            raise ValueError("; ".join(wrong))
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Recipe:
        problems: list[str] = []
        try:
            check_settings(self.train_settings())
        except TrainingError as error:
            problems += str(error).splitlines()
        shortest = min(self.steps, self.round_steps) if self.rounds > 1 else self.steps
        if self.warmup_steps >= shortest:
            problems.append(f"warmup_steps={self.warmup_steps} must be below the {shortest} steps of a round")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the effective values, whatever file or ``--set`` they came from."""
        text = json.dumps(self.values(), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def values(self) -> dict[str, Any]:
        """The effective values as JSON. ``stacking`` and later gates only where they ask for something: recipes from
        before keep their digest."""
        values = self.model_dump(mode="json", exclude=set() if self.stacking != Stacks() else {"stacking"})
        usual = Thresholds.model_validate({}).model_dump(mode="json")
        gates = values["gates"].items()
        values["gates"] = {name: v for name, v in gates if name in _FIRST_GATES or v != usual[name]}
        return values

    @property
    def penalised(self) -> bool:
        """Whether training pays for using what registered adapters use."""
        return self.stacking.orthogonal > 0 or self.stacking.orthogonal_outputs > 0

    @property
    def keeps_apart(self) -> bool:
        """Whether training looks at the subspaces of registered adapters at all."""
        return self.penalised or self.initialisation == "null_space"

    @property
    def total_steps(self) -> int:
        """Optimisation steps of all rounds together."""
        return self.steps + (self.rounds - 1) * self.round_steps

    def train_settings(self, round_index: int = 0) -> TrainSettings:
        """What the trainer takes for one round (0 is the first)."""
        values = {name: getattr(self, name) for name in TrainSettings.__dataclass_fields__}
        values["constraint"] = Constraint(**self.constraint.model_dump()) if self.constraint else None
        values["stop"] = StopRules(**self.stop.model_dump()) if self.stop else None
        values["stacking"] = Stacking(**self.stacking.model_dump())
        first = TrainSettings(**values)
        if round_index == 0:
            return first
        rate, seed = self.round_learning_rate, self.seed + round_index
        return replace(first, steps=self.round_steps, learning_rate=rate, seed=seed)

    def method(self, *, has_chat_template: bool) -> Method:
        """How audits under this recipe measure rows."""
        chat = has_chat_template if self.chat == "auto" else self.chat == "always"
        return Method(
            chat=chat,
            max_new_tokens=self.max_new_tokens,
            max_length=self.max_length,
            truncation=self.truncation,
        )


def shipped_recipes() -> dict[str, Path]:
    """Name → path of the YAML files that ship with efface."""
    folder = Path(str(files("efface.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name or a YAML file by path, then apply ``key=value`` overrides.

    Raises :class:`InvalidRecipe` listing every problem at once, unknown keys with their nearest match.
    """
    path = _find(source)
    try:
        values = read_mapping(path, "recipe keys")
    except ValueError as error:
        raise InvalidRecipe(str(error)) from None
    merged: dict[str, Any] = {"name": path.stem, **values}
    problems = [problem for override in overrides for problem in _apply(merged, override)]
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        problems += [f"recipe {source}: {problem}" for problem in _all_problems(merged, error)]
        raise InvalidRecipe("\n".join(problems)) from None
    if problems:
        raise InvalidRecipe("\n".join(problems))
    return recipe


def _find(source: str) -> Path:
    known = shipped_recipes()
    if source in known:
        return known[source]
    path = Path(source)
    if path.is_file():
        return path
    near = difflib.get_close_matches(source, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InvalidRecipe(f"no recipe {source!r}: expected a YAML file or one of {', '.join(known)}{hint}")


def _apply(values: dict[str, Any], override: str) -> list[str]:
    """Put ``override`` into ``values``, or say what is wrong with it."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        return [f"--set {override!r}: expected key=value, for example --set steps=20"]
    try:
        value = yaml.safe_load(text)
    except NOT_YAML:
        return [f"--set {override!r}: the value is not valid YAML"]
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        inner: Any = place.get(parent) or {}
        place[parent] = inner = dict(inner) if isinstance(inner, dict) else {}
        place = inner
    # YAML 1.1 reads 5e-4 as text; a number is meant.
    place[last] = _number(value)
    return []


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _all_problems(values: dict[str, Any], error: ValidationError) -> list[str]:
    """Every problem of ``values``: pydantic looks at what does not go together only once each key is right."""
    details = error.errors(include_url=False)
    wrong = {str(detail["loc"][0]) for detail in details if detail["loc"]}
    found = [_problem(detail) for detail in details]
    rest = {key: value for key, value in values.items() if key not in wrong}
    if not wrong or len(rest) == len(values):
        return found
    try:
        Recipe.model_validate(rest)
    except ValidationError as more:
        found += _all_problems(rest, more)
    return found


def _problem(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] != "extra_forbidden":
        return f"`{place or 'recipe'}`: {detail['msg']}, got {detail.get('input')!r}"
    key, models = (
        str(detail["loc"][-1]),
        {
            "gates": Thresholds,
            "stop": Stop,
            "constraint": Bound,
            "stacking": Stacks,
        },
    )
    model = models.get(detail["loc"][0], Recipe) if len(detail["loc"]) > 1 else Recipe
    if model is Recipe and any(key in OBJECTIVES[name].defaults for name in FORGET_OBJECTIVES):
        return f"`{place}` is not a key; did you mean `parameters.{key}`?"
    near = difflib.get_close_matches(key, model.model_fields, 1, 0.4)
    hint = f"; did you mean `{near[0]}`?" if near else f"; known keys: {', '.join(model.model_fields)}"
    return f"`{place}` is not a key{hint}"
