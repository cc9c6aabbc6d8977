"""What must hold before a release is created, activated, or loses an adapter. Each raises or does nothing."""

from __future__ import annotations

import sqlite3

from . import adapters, release_rows, requests
from .errors import Conflict, GateFailed, InvalidInput
from .types import Audit, Composition, Release

_ENDED = ("REFUSED", "WITHDRAWN")


def parts(db: sqlite3.Connection, composition: Composition) -> None:
    """Its adapters are sealed, trained, on its base, and their requests in force."""
    loaded = [adapters.load(db, digest) for digest in composition.adapters]
    for adapter in loaded:
        if adapter.kind != "trained" or adapter.state not in ("SEALED", "QUALIFIED"):
            came = f"{adapter.digest}, {adapter.kind} and {adapter.state}"
            raise InvalidInput("trained adapters that are sealed", came, "Leave it out.")
        _check_base(composition, adapter.base, adapter.quantization, adapter.digest)
    _check_not_ended(db, composition)


def rendered(db: sqlite3.Connection, composition: Composition, digest: str) -> None:
    """`digest` is a rendered adapter on the composition's base, and of no other composition."""
    adapter = adapters.load(db, digest)
    if adapter.kind != "rendered":
        raise InvalidInput("a rendered adapter", f"{digest}, {adapter.kind}", "Render the composition first.")
    _check_base(composition, adapter.base, adapter.quantization, adapter.digest)
    stated = adapter.facts.get("composition", composition.digest)
    if stated != composition.digest:
        raise InvalidInput(f"a rendering of {composition.digest}", f"one of {stated}", "Render it again.")


def _check_base(composition: Composition, base: str, quantization: str, adapter: str) -> None:
    if (base, quantization) != (composition.base, composition.quantization):
        expected = f"adapters on base {composition.base} at {composition.quantization}"
        came = f"{adapter} on base {base} at {quantization}"
        raise InvalidInput(
            expected, came, "An adapter works on its own base only: train it again on this one."
        )


def _check_not_ended(db: sqlite3.Connection, composition: Composition) -> None:
    for request_id in sorted(release_rows.requests_of(db, composition)):
        if (state := requests.load(db, request_id).state) in _ENDED:
            raise Conflict(f"{request_id} in force", state, "Leave its adapter out of the release.")


def gate(release: Release, evidence: Audit) -> None:
    """The audit passed, is of this composition, at the precision that is served. Raises GateFailed."""
    digest, precision = release.composition.digest, release.composition.quantization
    then = f"Run `efface audit run --release {release.channel}` and activate with an audit that passes."
    if evidence.composition != digest:
        raise GateFailed(f"an audit of composition {digest}", f"one of {evidence.composition}", then)
    if evidence.precision != precision:
        raise GateFailed(f"an audit at {precision}", f"one at {evidence.precision}", then)
    if evidence.verdict != "pass":
        raise GateFailed("an audit that passed", f"{evidence.digest}, which failed", then)


def turn(db: sqlite3.Connection, release: Release, previous: Release | None) -> None:
    """The release is a candidate, newer than the active one, and its requests are in force."""
    name = f"{release.channel}@{release.version}"
    if release.state != "CANDIDATE":
        raise Conflict(f"{name} as a CANDIDATE", release.state, "Create a new release of the composition.")
    if previous is not None and previous.version > release.version:
        came = f"{name}, while {previous.version} is active"
        raise Conflict(
            "a version newer than the active one", came, "Create a new release of the composition."
        )
    _check_not_ended(db, release.composition)


def shared(members: dict[str, set[str]], leaving: set[str], removing: set[str]) -> None:
    """No adapter that goes also serves a request that stays."""
    for adapter in sorted(leaving):
        if others := members[adapter] - removing:
            came = f"adapter {adapter}, which also forgets {', '.join(sorted(others))}"
            raise InvalidInput("every request of the adapters that go", came, "Name those requests too.")


def trained_on(db: sqlite3.Connection, composition: Composition, leaving: set[str]) -> None:
    """No adapter that stays was trained on top of one that goes."""
    query = "SELECT adapter FROM composition_part WHERE composition = ?"
    for digest in set(composition.adapters) - leaving:
        below = {row["adapter"] for row in db.execute(query, (adapters.load(db, digest).trained_on,))}
        if gone := below & leaving:
            then = "Remove the later request too, or train it again without the one that goes."
            raise Conflict(f"no adapter that stays to be trained on {min(gone)}", f"{digest}, which is", then)
