"""The model card of a published adapter: what it is, what was measured, and what it does not do.

Only names that are checked, digests and numbers go in. Nothing of a request, of its rows or of an audit's texts
is taken, and no free text: a card is public.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from . import checks
from .errors import InvalidInput
from .hub_names import check_repo_id
from .package import Package
from .types import Audit, Composition

CLAIMS = {"trained": "suppresses", "rendered": "suppresses", "consolidated": "consolidates"}
"""What an adapter of each kind does to what was forgotten. None erases: only retraining the base does."""

_MEANING = {
    "suppresses": "It can be taken off again, and then the base answers as before: what was forgotten is "
    "suppressed, not gone.",
    "consolidates": "It is meant to be merged into the base and the base withdrawn: what was forgotten is "
    "harder to reach then, but no proof of its absence exists.",
}
_FIGURE = re.compile(r"[A-Za-z][A-Za-z0-9 _.@/()-]{0,79}", re.ASCII)
_SERVED = "the base, the quantization and the precision named here"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says beyond the adapter's manifest.

    `base_name` is the base's id on the Hub, `repo_id` where the adapter will be. `figures` are an audit's numbers
    by name, such as `forget.rouge_l`. `license` is left to the user: none is written unless given.
    """

    base_name: str | None = None
    repo_id: str | None = None
    license: str | None = None
    composition: Composition | None = None
    audit: Audit | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


def model_card(made: Package, facts: CardFacts) -> bytes:
    """README.md for the Hub (YAML front matter, then Markdown). Raises InvalidInput for facts unfit for one."""
    _check(made, facts)
    claim = CLAIMS[made.record["kind"]]
    parts = [
        _front_matter(facts),
        f"# A LoRA adapter that {claim} unlearned content\n",
        f"Made by [efface](https://github.com/efface/efface). {_MEANING[claim]}\n",
        _identity(made, facts),
        _measured(facts),
        _loading(facts),
        _limits(),
        _files(made),
    ]
    return "\n".join(part for part in parts if part).encode("utf-8")


def _check(made: Package, facts: CardFacts) -> None:
    checks.choice(made.record["kind"], "kind", tuple(CLAIMS))
    for name in (facts.base_name, facts.repo_id):
        if name is not None:
            check_repo_id(name)
    if facts.license is not None:
        checks.token(facts.license, "license")
    for name, value in facts.figures.items():
        if not _FIGURE.fullmatch(name) or type(value) not in (int, float) or not math.isfinite(value):
            raise InvalidInput("figures with plain names and finite numbers", "others", "Leave texts out.")
    if facts.audit and (not facts.composition or facts.audit.composition != facts.composition.digest):
        raise InvalidInput("the audit of this composition", "another", "Pass the composition it is about.")
    record = made.record
    if facts.composition and (facts.composition.base, facts.composition.quantization) != (
        record["base"],
        record["quantization"],
    ):
        raise InvalidInput("a composition on the adapter's base", "another", "Pass the one it serves.")


def _front_matter(facts: CardFacts) -> str:
    """JSON scalars are YAML scalars, and need no quoting rules of their own."""
    fields: dict[str, object] = {
        "base_model": facts.base_name,
        "library_name": "peft",
        "license": facts.license,
        "tags": ["unlearning", "lora", "efface"],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value is not None]
    return "\n".join(["---", *lines, "---", ""])


def _identity(made: Package, facts: CardFacts) -> str:
    record = made.record
    rows = [
        ("adapter", made.digest),
        ("kind", record["kind"]),
        ("requests answered", str(len(record["requests"]))),
        ("base", record["base"]),
        ("quantization of the base", record["quantization"]),
    ]
    if record["trained_on"]:
        rows.append(("trained on top of composition", record["trained_on"]))
    if facts.composition:
        rows += [("composition", facts.composition.digest), ("render", facts.composition.render)]
        rows += [(f"part {part.adapter}", f"weight {part.weight}") for part in facts.composition.parts]
    return "## What it is\n\n" + _table(("field", "value"), ((name, f"`{value}`") for name, value in rows))


def _measured(facts: CardFacts) -> str:
    if facts.audit is None:
        return "## What was measured\n\nNo audit of it is published here: take nothing for granted.\n"
    rows = [
        ("verdict", facts.audit.verdict),
        ("precision", facts.audit.precision),
        ("suite", facts.audit.suite),
        ("seed", str(facts.audit.seed)),
        ("audit", facts.audit.digest),
        *((name, f"{value:.6g}") for name, value in sorted(facts.figures.items())),
    ]
    table = _table(("figure", "value"), ((name, f"`{value}`") for name, value in rows))
    return f"## What was measured\n\nIt holds for {_SERVED} only.\n\n{table}"


def _loading(facts: CardFacts) -> str:
    base, repo = facts.base_name or "BASE", facts.repo_id or "path/to/this/folder"
    return (
        "## How to use it\n\nWith PEFT, unmerged:\n\n```python\n"
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        f'model = PeftModel.from_pretrained(base, "{repo}")\n```\n\n'
        f"With vLLM, where clients then ask for the model `efface`:\n\n```sh\nvllm serve {base} --enable-lora "
        f"--lora-modules efface={repo}\n```\n"
    )


def _limits() -> str:
    return (
        "## Limits\n\n"
        "- Whoever can disable or remove the adapter, or load the base without it, has the base as it was.\n"
        "- Comparing the base with the adapted model shows where the two differ, and so hints at what was "
        "forgotten.\n"
        "- Paraphrase, other languages, further fine-tuning and sampling at scale can bring content back; only "
        "what the audit lists was tried.\n"
        "- Another base, composition, quantization or precision is not what was audited: quantization alone can "
        "bring content back (arXiv 2410.16454).\n"
    )


def _files(made: Package) -> str:
    rows = ((f"`{name}`", f"`{digest}`") for name, digest in sorted(made.record["files"].items()))
    return "## Files\n\n" + _table(("file", "digest"), rows)


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {name} | {value} |" for name, value in lines) + "\n"
