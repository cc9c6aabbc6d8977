"""What the tests of the registry's verbs share: calls that must change nothing, and requests that came far."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from registry_kit import BASE, Clock, answered, audited, contents, release, stack

from efface.registry import (
    Adapter,
    Audit,
    Composition,
    Evidence,
    Registry,
    RegistryError,
    activate_release,
    compose,
    create_release,
    get_request,
    record_evidence,
    shred_request,
)

MERGED = "sha256:" + "d" * 64
"""Another base: what a merge or a retraining made."""


def rejected(
    reg: Registry, error: type[Exception], call: Callable[[], object], match: str | None = None
) -> RegistryError:
    """Number 5 of the invariants: a rejected call leaves every byte below the root as it was."""
    before = contents(reg.root)
    with pytest.raises(error, match=match) as caught:
        call()
    assert contents(reg.root) == before
    assert isinstance(caught.value, RegistryError)
    return caught.value


def state(reg: Registry, request_id: str) -> str:
    return get_request(reg, request_id).state


def released(reg: Registry, work: Path, seed: int = 1) -> tuple[str, Adapter]:
    """A request with a trained adapter that `prod` serves."""
    request_id, adapter = answered(reg, work, seed)
    release(reg, stack([adapter]))
    return request_id, adapter


def shredded(reg: Registry, work: Path, seed: int = 1, *, merged: bool = False) -> tuple[str, Adapter]:
    """As `released`, with its rows destroyed; `merged`: after an audit of the merged base measured them."""
    request_id, adapter = released(reg, work, seed)
    if merged:
        measured(reg, request_id)
    shred_request(reg, request_id, actor="ana")
    return request_id, adapter


def alone(base: str = MERGED, precision: str = "bf16") -> Composition:
    """A base without adapters."""
    return compose(base, precision, [])


def measured(reg: Registry, *request_ids: str, base: str = MERGED, precision: str = "bf16") -> Audit:
    """A passing audit of a base alone that measured these requests."""
    return audited(reg, alone(base, precision), precision=precision, requests=request_ids)


def proven(reg: Registry, request_id: str, **changes: Any) -> Evidence:
    """Evidence that a merged base forgets the request, with an audit of that base that measured it."""
    values: dict[str, Any] = {
        "method": "merge",
        "artefact": MERGED,
        "replaces": BASE,
        "base_withdrawn": True,
        "statement": "merged at bf16",
        "actor": "ana",
        **changes,
    }
    if "audit" not in values:
        values["audit"] = measured(reg, request_id, base=values["artefact"]).digest
    return record_evidence(reg, request_id, **values)


def serve(reg: Registry, composition: Composition, channel: str = "prod", reason: str = "why") -> None:
    """Create, audit at the composition's own precision, and activate."""
    made = create_release(reg, channel, composition, rendered=None, reason=reason, actor="ana")
    passed = audited(reg, composition, precision=composition.quantization)
    activate_release(reg, channel, made.version, audit=passed.digest, approved_by="ben")


def wait(reg: Registry, **time: float) -> None:
    """Let time pass on the registry's clock."""
    assert isinstance(reg.clock, Clock)
    reg.clock.now += timedelta(**time)
