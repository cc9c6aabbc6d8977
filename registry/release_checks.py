"""What must hold before a release is created, activated, or loses an adapter. Each raises or does nothing."""

from __future__ import annotations

from collections.abc import Sequence, Set

from . import adapters, audits, compactions, gates, release_rows, removals, requests, states, support
from .errors import Conflict, GateFailed, InvalidInput
from .renders import parse_render
from .tables import Tables
from .types import Adapter, Audit, Composition, Release

STACKABLE = ("trained", "consolidated")
IN_USE = ("SEALED", "QUALIFIED")


def parts(db: Tables, composition: Composition) -> None:
    """Its adapters are sealed, trained, on its base, and their requests in force."""
    loaded = adapters.load_many(db, composition.adapters)
    for adapter in loaded:
        if adapter.kind not in STACKABLE or adapter.state not in IN_USE:
            came = f"{adapter.digest}, {adapter.kind} and {adapter.state}"
            raise InvalidInput("trained adapters that are sealed", came, "Leave it out.")
        _check_base(composition, adapter.base, adapter.quantization, adapter.digest)
    _check_once(db, composition)
    for part in composition.parts:
        compactions.check_apart(db, part)
    _check_not_ended(db, composition)


def how_served(composition: Composition, digest: str | None) -> None:
    """A live composition is served without a rendered adapter, an approximate one never is."""
    render = parse_render(composition.render)
    if digest is None and not render.exact:
        came, then = (
            f"none for {composition.render}",
            "Render and seal it first: it is served as it was audited.",
        )
        raise InvalidInput("the digest of its rendered adapter", came, then)
    if digest is not None and render.method == "live":
        raise InvalidInput("no rendered adapter for a live composition", digest, "Leave it out.")


def rendered(db: Tables, composition: Composition, digest: str) -> None:
    """`digest` is a rendered adapter on the composition's base, and says that it is of this very composition."""
    adapter = adapters.load(db, digest)
    if adapter.kind != "rendered" or adapter.state not in IN_USE:
        came = f"{digest}, {adapter.kind} and {adapter.state}"
        raise InvalidInput("a rendered adapter that is sealed", came, "Render the composition first.")
    _check_base(composition, adapter.base, adapter.quantization, adapter.digest)
    if adapter.facts.get("composition") != composition.digest:
        raise InvalidInput(f"a rendering of {composition.digest}", "one of another", "Render it again.")
    if parse_render(composition.render).exact != (adapter.error_bound is None):
        expected = "an adapter with the bound of its error if the render is approximate, and only then"
        came = f"{digest} for render {composition.render}"
        raise InvalidInput(expected, came, "Render it again.")


def _check_base(composition: Composition, base: str, quantization: str, adapter: str) -> None:
    if (base, quantization) != (composition.base, composition.quantization):
        expected = f"adapters on base {composition.base} at {composition.quantization}"
        came = f"{adapter} on base {base} at {quantization}"
        raise InvalidInput(
            expected, came, "An adapter works on its own base only: train it again on this one."
        )


def _check_not_ended(db: Tables, composition: Composition) -> None:
    held = release_rows.members(db, composition).values()
    for request_id in sorted({request for found in held for request in found}):
        if (state := requests.load(db, request_id).state) in states.ENDED:
            raise Conflict(f"{request_id} in force", state, "Leave its adapter out of the release.")


def gate(db: Tables, release: Release, evidence: Audit) -> None:
    """The audit passed, is of this composition, at the precision that is served, and of its requests.

    An audit that names requests names every one of the composition's adapters whose rows are there. Raises GateFailed.
    """
    digest, precision = release.composition.digest, release.composition.quantization
    then = f"Run `efface audit run --release {release.channel}` and activate with an audit that passes."
    if evidence.composition != digest:
        raise GateFailed(f"an audit of composition {digest}", f"one of {evidence.composition}", then)
    if evidence.precision != precision:
        raise GateFailed(f"an audit at {precision}", f"one at {evidence.precision}", then)
    if evidence.verdict != "pass":
        raise GateFailed("an audit that passed", f"{evidence.digest}, which failed", then)
    if lacking := support.passed_over(db, release.composition.adapters, evidence.requests):
        came = f"{evidence.digest}, which passed over {', '.join(lacking)}"
        raise GateFailed("an audit of every request that has its rows", came, then)
    if release.composition.parts and (
        short := gates.unmet(gates.of_channel(db, release.channel), evidence.gates)
    ):
        came = f"{evidence.digest}, which was not judged by {', '.join(short)}"
        raise GateFailed(f"an audit judged under every gate of {release.channel}", came, then)


def two_people(db: Tables, release: Release, approver: str | None) -> None:
    """Under the channel's rule, `approver` is not who created the release. Raises GateFailed."""
    row = db.get("channel", release.channel)
    if row is None or not row["two_person"] or approver is None:
        return
    if support.same_actor(release.created_by, approver):
        name = f"{release.channel} {release.version}"
        then = f"Have somebody else do it: efface release approve {name} --audit DIGEST"
        if release.state == "APPROVED":
            then = f"It was approved before the rule: efface release withdraw {name}, and create it again."
        expected = "an approval by somebody else than who created the release, as the channel's rule asks"
        raise GateFailed(expected, "its creator's own", then)


def turn(db: Tables, release: Release, previous: Release | None, state: str) -> None:
    """The release is in `state`, newer than the active one, and its requests are in force."""
    name = f"{release.channel}@{release.version}"
    if release.state != state:
        then = "Create a new release of the composition."
        raise Conflict(f"{name} as {state}", release.state, then)
    if previous is not None and previous.version > release.version:
        came = f"{name}, while {previous.version} is active"
        raise Conflict(
            "a version newer than the active one", came, "Create a new release of the composition."
        )
    _check_not_ended(db, release.composition)


def trained_on(
    db: Tables,
    channel: str,
    before: Composition,
    removing: Set[str],
    found: removals.Removal,
    render: str | None = None,
) -> None:
    """No adapter that stays was trained on top of one that is gone, unless what is left has passed an audit.

    An adapter knows only the policy it was trained on: without what lay below it, nothing but an audit says what it
    still suppresses. The refusal names, as one command, the least removal of `before` that is not refused; `render` is
    what the caller asked for besides.
    """
    left, gone = found.composition, set(found.gone)
    stand = [
        f"{one.digest} ({_forgets(one)}) on {min(below)}"
        for one in adapters.load_many(db, left.adapters)
        if (below := compactions.beneath(db, one.digest) & gone)
    ]
    if not stand or audits.passed(db, left):
        return
    whole = removals.whole_removal(db, before, removing)
    too = sorted(set(whole.requests) - removing)
    ways = [f"remove {', '.join(too)} too"] if too else []
    ways += ["take off the repairs or balances that stand on what goes"] * whole.drop_repairs
    rollback = _command(f"rollback {channel}", "--remove", whole.requests, whole.drop_repairs, render)
    audit = _command(f"run --release {channel}", "--without", sorted(removing), bool(found.repairs), render)
    raise Conflict(
        "no adapter that stays to be trained on one that goes",
        _listed(stand),
        f"Either {' and '.join(ways)}: efface release {rollback} --reason TEXT; or audit what would be left, "
        f"which stays if that passes: efface audit {audit}.",
    )


def _command(verb: str, flag: str, going: Sequence[str], drop_repairs: bool, render: str | None) -> str:
    words = [verb, *(f"{flag} {one}" for one in going), *["--drop-repairs"] * drop_repairs]
    return " ".join([*words, *([f"--render {render}"] if render else [])])


def _forgets(adapter: Adapter) -> str:
    return f"forgets {_listed(adapter.requests)}" if adapter.requests else "forgets nothing of its own"


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _check_once(db: Tables, composition: Composition) -> None:
    """No adapter stands beside a compaction that it is in: it would count twice."""
    seen: dict[str, str] = {}
    for adapter in composition.adapters:
        for one in compactions.everything(db, [adapter]):
            if seen.setdefault(one, adapter) != adapter:
                came = f"{one} in {seen[one]} and in {adapter}"
                raise InvalidInput("each adapter once, compactions included", came, "Leave one of them out.")
