"""A suite: which parts and attacks an audit runs, as data with a name and a version."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import AuditError
from ..strict_yaml import read_mapping

Part = Literal["rows", "scope", "membership", "drift", "patching", "tofu", "muse", "lm-eval"]
Given = Literal["reference", "holdout", "real-authors", "world-facts", "tasks"]
Scalar = str | int | float | bool
Setting = Scalar | tuple[Scalar, ...]
AttackName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/%+-]{0,63}$")]

PARTS: Mapping[Part, str] = MappingProxyType(
    {
        "rows": "every row of every group once: probability, extraction strength, ROUGE-L, keywords, fluency",
        "scope": "whether the forgetting went too far, either side of zero, and which kinds of rows nobody gave",
        "membership": "whether the forget rows look like members: loss, zlib, Min-K, Min-K++, reference",
        "drift": "how far kept rows moved: log-probability and KL per token",
        "patching": "whether the hidden states still hold what the answers do not say",
        "tofu": "truth ratio, forget quality against a retain-only model, model utility",
        "muse": "verbatim memorization, knowledge memorization, PrivLeak, utility",
        "lm-eval": "tasks of lm-evaluation-harness, before and after",
    }
)
GIVEN: Mapping[Given, str] = MappingProxyType(
    {
        "reference": "a model that never saw the forget rows: fine-tune the base on the retain rows alone "
        "(`benchmarks/tofu.py prepare` does it for TOFU) and give its folder",
        "holdout": "a row file like the forget rows, of the same kind, that no model was trained on",
        "real-authors": "a row file of questions about real authors with `perturbed` answers (TOFU's real_authors)",
        "world-facts": "a row file of questions about the world with `perturbed` answers (TOFU's world_facts)",
        "tasks": "a task of lm-evaluation-harness: its YAML file, or the name of one whose data is on this machine",
    }
)
NEEDS: Mapping[Part, tuple[Given, ...]] = MappingProxyType(
    {"tofu": ("reference",), "muse": ("reference", "holdout"), "lm-eval": ("tasks",)}
)
"""What a part cannot do without. What it would only gain from, a suite lists under `takes`."""


class InvalidSuite(AuditError, ValueError):
    """A suite that is unknown, malformed, contradicts itself, or is not given what it needs."""


class Suite(BaseModel):
    """One suite. Unknown keys are errors; `digest` changes with any value, so an edited suite is another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    version: Annotated[int, Field(ge=1, le=10**6)]
    description: Annotated[str, Field(min_length=1, max_length=500)]
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]
    attacks: tuple[AttackName, ...] = ()
    settings: dict[AttackName, dict[str, Setting]] = Field(
        default_factory=dict, description="by attack: what it is told instead of its own defaults"
    )
    takes: tuple[Given, ...] = Field((), description="what it uses where it is given")
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0

    @model_validator(mode="after")
    def _goes_together(self) -> Suite:
        problems = [
            f"{what} {name!r} stands twice"
            for what, names in (("part", self.parts), ("attack", self.attacks), ("source", self.takes))
            for name in sorted({name for name in names if list(names).count(name) > 1})
        ]
        if self.parts[0] != "rows":
            problems.append("expected `rows` as the first part: every other one is compared with it")
        problems += [
            f"settings for {name!r}, which is none of the suite's attacks"
            for name in self.settings
            if name not in self.attacks
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def title(self) -> str:
        """``name/version``, as the registry records it."""
        return f"{self.name}/{self.version}"

    @property
    def needs(self) -> tuple[Given, ...]:
        """What it cannot run without, in the order of `GIVEN`."""
        asked = {given for part in self.parts for given in NEEDS.get(part, ())}
        return tuple(given for given in GIVEN if given in asked)

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of its values, whatever file they came from."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def require(self, given: Mapping[str, object]) -> None:
        """Raise `InvalidSuite` that says how to get each thing which the suite needs and is not given."""
        problems = [
            f"suite {self.title} needs --give {name}=…: {GIVEN[name]}"
            for name in self.needs
            if name not in given
        ]
        problems += [
            f"suite {self.title} does not use {name!r}: it takes {', '.join(self._usable()) or 'nothing'}"
            + _nearest(name, self._usable())
            for name in given
            if name not in self._usable()
        ]
        if problems:
            raise InvalidSuite("\n".join(problems))

    def _usable(self) -> tuple[str, ...]:
        return tuple(given for given in GIVEN if given in (*self.needs, *self.takes))


def shipped_suites() -> dict[str, Path]:
    """Name → path of the suites that ship with efface, from the quickest on."""
    folder = Path(str(files("efface.audits.suites")))
    found = {path.stem: path for path in folder.glob("*.yaml")}
    return {name: found[name] for name in sorted(found, key=_order)}


def _order(name: str) -> tuple[int, str]:
    first = ("quick", "standard", "full")
    return (first.index(name) if name in first else len(first), name)


def load_suite(source: str) -> Suite:
    """A shipped suite by name, or a YAML file by path.

    Raises `InvalidSuite` that lists every problem at once, unknown names with their nearest match.
    """
    path = _find(source)
    try:
        values = {"name": path.stem, **read_mapping(path, "suite keys")}
    except ValueError as error:
        raise InvalidSuite(str(error)) from None
    problems: list[str] = []
    suite = None
    try:
        suite = Suite.model_validate(values)
        attacks = suite.attacks
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors(include_url=False)]
        listed: Any = values.get("attacks")
        attacks = tuple(one for one in listed if isinstance(one, str)) if isinstance(listed, list) else ()
    problems += _unknown_attacks(attacks)
    problems += _bad_settings(suite) if suite and not problems else []
    if suite is None or problems:
        raise InvalidSuite("\n".join(f"suite {source}: {problem}" for problem in problems))
    return suite


def _unknown_attacks(names: Sequence[str]) -> list[str]:
    from ..attacks import ATTACKS  # what makes an attack imports what trains

    known = tuple(ATTACKS)
    said = f"expected one of {', '.join(known)}"
    return [f"no attack {name!r}: {said}{_nearest(name, known)}" for name in names if name not in known]


def _bad_settings(suite: Suite) -> list[str]:
    from ..attacks import settings_of

    problems: list[str] = []
    for name, values in suite.settings.items():
        try:
            settings_of(name, values)
        except AuditError as error:
            problems.append(str(error))
    return problems


def _find(source: str) -> Path:
    known = shipped_suites()
    if source in known:
        return known[source]
    path = Path(source)
    if path.is_file():
        return path
    raise InvalidSuite(
        f"no suite {source!r}: expected a YAML file or one of {', '.join(known)}{_nearest(source, tuple(known))}"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _problem(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        fields = tuple(Suite.model_fields)
        return f"`{place}` is not a key" + (_nearest(place, fields) or f"; known keys: {', '.join(fields)}")
    known = {"parts": get_args(Part), "takes": get_args(Given)}.get(
        str(detail["loc"][0]) if detail["loc"] else ""
    )
    near = _nearest(str(detail.get("input")), known) if known else ""
    return f"`{place or 'suite'}`: {detail['msg']}, got {str(detail.get('input'))[:60]!r}{near}"
