"""What stands beside merged weights: what was merged into what and what an audit said, for machines and for people."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .compose import Stack
from .model import Fingerprint
from .tensors import write_atomic

RECORD = "efface_merge.json"


@dataclass(frozen=True, slots=True)
class Served:
    """What the parts of a merge are in the registry: the digest of a composition, and how that is rendered.

    ``exact`` is False where the one part is an approximation of the composition.
    """

    composition: str
    render: str
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit (by its digest) said of a merge at ``precision``; gates by name, without text of any row."""

    audit: str
    precision: str
    verdict: str
    passed: tuple[str, ...]
    failed: tuple[str, ...]


def describe(
    folder: Path, base: Fingerprint, stack: Stack, onto: str, requantized: str | None, served: Served | None
) -> None:
    """Write `RECORD` and the model card of a merge that nobody audited yet into ``folder``."""
    parts = [{"adapter": part.adapter.digest, "weight": format(part.weight, "f")} for part in stack.parts]
    record: dict[str, Any] = {"v": 1, "base": base.digest, "onto": onto, "parts": parts, "audit": None}
    if requantized is not None:
        record["requantized"] = requantized
    if served is not None:
        record |= {"composition": served.composition, "render": served.render, "exact": served.exact}
    _write(folder, record)


def judged(folder: Path, verdict: Verdict) -> None:
    """Put ``verdict`` into the record and the card of the merge in ``folder``; neither is in its fingerprint."""
    record = cast("dict[str, Any]", json.loads((folder / RECORD).read_bytes()))
    record["audit"] = {
        "digest": verdict.audit,
        "precision": verdict.precision,
        "verdict": verdict.verdict,
        "passed": list(verdict.passed),
        "failed": list(verdict.failed),
    }
    _write(folder, record)


def _write(folder: Path, record: dict[str, Any]) -> None:
    write_atomic(folder / RECORD, [json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"])
    write_atomic(folder / "README.md", [_card(record).encode()])


def _card(record: dict[str, Any]) -> str:
    listed = "\n".join(f"- {part['weight']} × `{part['adapter']}`" for part in record["parts"])
    stored = f", then quantized to {form} (bitsandbytes)" if (form := record.get("requantized")) else ""
    composition = ""
    if "composition" in record:
        near = "" if record["exact"] else ", an approximation"
        composition = f"\nComposition `{record['composition']}`, rendered as `{record['render']}`{near}.\n"
    return f"""---
library_name: transformers
tags: [unlearning, efface, merged]
---

# Merged by efface

Adapters that forget, merged into base `{record["base"]}` ({record["onto"]} weights){stored}:

{listed}
{composition}
{_verdict(record["audit"])}

The forgetting is in the weights. It is *consolidated* once the base is withdrawn, not before: whoever has both can
subtract them. It is not *erased*: the rows were in the training of the base. Serve it at a precision at which it was
audited.
"""


def _verdict(audit: dict[str, Any] | None) -> str:
    if audit is None:
        return "**Not audited: do not serve it.** No audit is recorded here."
    asked = f"the audit `{audit['digest']}` at {audit['precision']}"
    if audit["verdict"] == "pass":
        return f"Passed {asked}: {_listed(audit['passed'])}."
    failed, passed = _listed(audit["failed"]), _listed(audit["passed"])
    return f"**Do not serve it: it failed {asked}.** Failed: {failed}. Passed: {passed}."


def _listed(gates: list[str]) -> str:
    return ", ".join(gates) or "no gate"
