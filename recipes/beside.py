"""Which registered adapters a new one is trained beside: those that a stack may hold together with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..registry import JSON, Adapter, Composition, Registry, adapter_folder, list_adapters, list_requests
from .bench import Bench
from .errors import RequestError
from .recipe import Recipe

MOST = 256
"""Adapters that one training looks at. All of them are read, and the manifest names each."""
_OVER = ("REFUSED", "WITHDRAWN")


@dataclass(frozen=True, slots=True)
class Beside:
    """Registered adapters as folders by digest, sorted; empty where the recipe asks for nothing.

    ``apart_from``: those it is kept apart from; ``company``: those that are on now and then while it is trained.
    """

    apart_from: Mapping[str, Path] = field(default_factory=dict[str, Path])
    company: Mapping[str, Path] = field(default_factory=dict[str, Path])

    @property
    def digests(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of both."""
        return tuple(self.apart_from), tuple(self.company)


def registered(
    registry: Registry, request_id: str, bench: Bench, recipe: Recipe, on: Composition | None
) -> Beside:
    """The adapters that training ``request_id`` with ``recipe`` looks at.

    They are the newest trained one (sealed or qualified) of each other request that is not refused or withdrawn, for
    this base and quantization. Company leaves out what is in ``on``, which is on all the time, and adapters that
    were themselves trained on others: without those they were never meant. Raises `RequestError` for too many.
    """
    if not (recipe.keeps_apart or recipe.stacking.company):
        return Beside()
    found = {adapter.digest: adapter for adapter in _current(registry, request_id, bench)}
    if len(found) > MOST:
        raise RequestError(
            f"expected at most {MOST} registered adapters to train beside, got {len(found)}: retire those that "
            "nothing serves (`efface adapter retire`), or train without stacking (--set stacking={} "
            "--set initialisation=default)"
        )
    below = on.adapters if on is not None else ()
    apart = sorted(found) if recipe.keeps_apart else ()
    company = [
        digest
        for digest in sorted(found)
        if recipe.stacking.company and digest not in below and found[digest].trained_on is None
    ]
    return Beside(
        {digest: adapter_folder(registry, digest) for digest in apart},
        {digest: adapter_folder(registry, digest) for digest in company},
    )


def facts(beside: Beside, recipe: Recipe) -> dict[str, JSON]:
    """What the manifest says of them: by digest, where the recipe asks for them. They decide its bytes."""
    found: dict[str, JSON] = {}
    if recipe.keeps_apart:
        found["apart_from"] = list(beside.apart_from)
    if recipe.stacking.company:
        found["company"] = list(beside.company)
    return found


def _current(registry: Registry, request_id: str, bench: Bench) -> list[Adapter]:
    asked = {r.id for r in list_requests(registry) if r.id != request_id and r.state not in _OVER}
    newest: dict[str, Adapter] = {}
    for adapter in list_adapters(registry):
        if (
            adapter.kind == "trained"
            and adapter.state in ("SEALED", "QUALIFIED")
            and "repairs" not in adapter.facts
        ):
            newest.update(dict.fromkeys(adapter.requests, adapter))
    here = (bench.base.fingerprint.digest, bench.base.quantization)
    return [
        adapter
        for adapter in {newest[request].digest: newest[request] for request in newest.keys() & asked}.values()
        if (adapter.base, adapter.quantization) == here and request_id not in adapter.requests
    ]
