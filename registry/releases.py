"""Releases: numbered versions of a channel, each one a composition, at most one of them active.

Activation is the gate: it needs an audit that passed, of the same composition, at the precision it is served.
Rolling back makes and activates a new version with fewer adapters (`plan_removal`); nothing is subtracted
from weights and no history is lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import (
    adapters,
    audits,
    checks,
    claims,
    compactions,
    compositions,
    ledger,
    release_checks,
    release_rows,
    removals,
    requests,
    states,
    support,
)
from .canon import JSON
from .errors import Conflict, GateFailed, InvalidInput, NotFound
from .registry import Registry, Writer
from .types import Audit, Composition, Release, ReleaseDiff


def create_release(
    reg: Registry, channel: str, composition: Composition, *, rendered: str | None, reason: str, actor: str
) -> Release:
    """Put a composition on a channel as its next version, a CANDIDATE.

    `rendered` is the digest of the sealed adapter that serves it. Raises InvalidInput unless all its adapters
    are trained ones on the same base at the same quantization, NotFound for one that is not sealed here,
    Conflict for one whose request was refused or withdrawn; nothing is written then.
    """
    checks.channel(channel)
    checks.reason(reason)
    if rendered is not None:
        checks.digest(rendered, "rendered")
    composition = compositions.compose(
        composition.base, composition.quantization, composition.parts, composition.render
    )
    release_checks.how_served(composition, rendered)
    with reg.write(actor) as tx:
        release_checks.parts(tx.db, composition)
        if rendered is not None:
            release_checks.rendered(tx.db, composition, rendered)
        known = tx.db.get("channel", channel)
        version = 1 if known is None else known["versions"] + 1
        body: dict[str, JSON] = {
            "channel": channel,
            "version": version,
            "composition": composition.record(),
            "digest": composition.digest,
            "rendered": rendered,
            "reason": reason,
        }
        ledger.append(tx, "release.candidate", f"{channel}@{version}", body)
        return release_rows.load(tx.db, channel, version)


def approve_release(reg: Registry, channel: str, version: int, *, audit: str, approved_by: str) -> Release:
    """Approve a candidate on the strength of an audit; it is not served before `activate_release`.

    Raises GateFailed for evidence that does not carry it, or where the channel's rule asks for somebody else than who
    created it (`rule_channel`), Conflict for a release past CANDIDATE or older than the active one; nothing is written
    then.
    """
    with reg.write(approved_by) as tx:
        release = release_rows.load(tx.db, channel, version)
        evidence = audits.load(tx.db, adapters.resolve(tx.db, "audit", audit))
        release_checks.gate(tx.db, release, evidence)
        release_checks.turn(tx.db, release, release_rows.active(tx.db, channel), "CANDIDATE")
        release_checks.two_people(tx.db, release, approved_by)
        _move(tx, release, "approved", {"audit": evidence.digest})
        return release_rows.load(tx.db, channel, version)


def activate_release(
    reg: Registry, channel: str, version: int, *, audit: str | None = None, approved_by: str
) -> Release:
    """Make a release the channel's active one: an approved one, or a candidate together with its `audit`.

    The active one before it is superseded; requests that it forgets become RELEASED, by an adapter in it or by
    evidence about its base, and those that no active release forgets any more, or of which a claim does not
    hold any more, REOPENED. Doing it again changes nothing. `approved_by` is who acts.
    Raises GateFailed for evidence that does not carry it or for an approval that the channel's rule does not accept,
    Conflict for a release in another state or older than the active one; nothing is written then.
    """
    with reg.write(approved_by) as tx:
        release = release_rows.load(tx.db, channel, version)
        given = None if audit is None else adapters.resolve(tx.db, "audit", audit)
        if release.state == "ACTIVE" and (
            given is None or (given, approved_by) == (release.audit, release.approved_by)
        ):
            return release
        previous = release_rows.active(tx.db, channel)
        evidence = audits.load(tx.db, _evidence(release, given))
        release_checks.gate(tx.db, release, evidence)
        release_checks.turn(tx.db, release, previous, "CANDIDATE" if given else "APPROVED")
        release_checks.two_people(tx.db, release, approved_by if given else release.approved_by)
        if given is not None:
            _move(tx, release, "approved", {"audit": given})
        _activate(tx, release, previous, evidence)
        return release_rows.load(tx.db, channel, version)


def withdraw_release(reg: Registry, channel: str, version: int, *, reason: str, actor: str) -> Release:
    """Give up a candidate or an approved release. An active one is rolled back instead: Conflict."""
    checks.reason(reason)
    with reg.write(actor) as tx:
        release = release_rows.load(tx.db, channel, version)
        if release.state == "ACTIVE":
            came = f"{channel}@{version}, which is active"
            then = f"Roll it back: efface release rollback {channel} --remove REQUEST --reason TEXT"
            raise Conflict("a release that is not served", came, then)
        states.step("release", release.state, "WITHDRAWN")
        _move(tx, release, "withdrawn", {"reason": reason})
        return release_rows.load(tx.db, channel, version)


def get_release(reg: Registry, channel: str, version: int) -> Release:
    """One version of a channel. Raises NotFound."""
    with reg.read() as db:
        return release_rows.load(db, channel, version)


def active_release(reg: Registry, channel: str) -> Release:
    """The channel's active release. Raises NotFound when there is none."""
    with reg.read() as db:
        return release_rows.need_active(db, channel)


def history(reg: Registry, channel: str) -> list[Release]:
    """Every version of a channel, oldest first. Raises NotFound for a channel without one."""
    with reg.read() as db:
        rows = db.find("release", order="version", channel=checks.channel(channel))
        found = [release_rows.release(db, row) for row in rows]
    if not found:
        raise NotFound(f"a release on {channel}", "none", f"Create one: efface release create {channel}")
    return found


def channels(reg: Registry) -> list[str]:
    """The names of all channels, sorted."""
    with reg.read() as db:
        return [row["channel"] for row in db.find("channel")]


def diff_releases(reg: Registry, channel: str, old: int, new: int) -> ReleaseDiff:
    """What changed from one version of a channel to another. Raises NotFound."""
    with reg.read() as db:
        before, after = (release_rows.load(db, channel, version) for version in (old, new))
        asked, answered = (release_rows.requests_of(db, one.composition) for one in (before, after))
    weights = [{part.adapter: part.weight for part in one.composition.parts} for one in (before, after)]
    was, now = weights
    return ReleaseDiff(
        before=before,
        after=after,
        requests_added=tuple(sorted(answered - asked)),
        requests_removed=tuple(sorted(asked - answered)),
        adapters_added=tuple(sorted(now.keys() - was.keys())),
        adapters_removed=tuple(sorted(was.keys() - now.keys())),
        reweighted=tuple(
            (key, was[key], now[key]) for key in sorted(was.keys() & now.keys()) if was[key] != now[key]
        ),
        base_changed=(before.composition.base, before.composition.quantization)
        != (after.composition.base, after.composition.quantization),
    )


def plan_removal(
    reg: Registry,
    channel: str,
    request_ids: Iterable[str],
    *,
    drop_repairs: bool = False,
    render: str | None = None,
) -> Composition:
    """The active composition less the adapters of these requests: what a rollback would release.

    A compaction of theirs and of others is replaced by the originals of the others. `drop_repairs` also takes off
    repairs that were trained on what goes. `render`: that of the active release by default. Raises InvalidInput for a
    request that is not in it (naming those that are) or that shares an adapter with one not named, Conflict when an
    adapter that stays was trained on top of one that goes: its text has the command of the least removal that works.
    """
    removing = set(request_ids)
    with reg.read() as db:
        active = compositions.rendered_as(release_rows.need_active(db, channel).composition, render)
        found = removals.removal(db, active, removing, drop_repairs=drop_repairs)
        release_checks.trained_on(db, channel, active, removing, found, render)
    return found.composition


def plan_without(
    reg: Registry, composition: Composition, request_ids: Iterable[str], *, drop_repairs: bool = False
) -> removals.Removal:
    """What `composition` is without these requests, whether or not it may be released yet. Raises InvalidInput."""
    with reg.read() as db:
        return removals.removal(db, composition, set(request_ids), drop_repairs=drop_repairs)


def plan_whole(reg: Registry, composition: Composition, request_ids: Iterable[str]) -> removals.WholeRemoval:
    """The least removal of these requests after which nothing that stays was trained on what is gone.

    Raises InvalidInput for a request that is not in `composition`.
    """
    with reg.read() as db:
        return removals.whole_removal(db, composition, set(request_ids))


def plan_compaction(reg: Registry, channel: str, ref: str) -> Composition:
    """The active composition with a compaction in place of what it was made from.

    Raises InvalidInput for an adapter that is no compaction, or whose originals are not in it at the weights that
    they were compacted with.
    """
    with reg.read() as db:
        active = release_rows.need_active(db, channel).composition
        digest = adapters.resolve(db, "adapter", ref)
        made_from = compactions.originals(compactions.manifest_of(db, digest))
    if not made_from:
        came = "an adapter that was not made from others"
        raise InvalidInput("a compaction", came, "Make one: efface adapter compact --channel CHANNEL.")
    if absent := sorted(
        {part.adapter for part in made_from} - {p.adapter for p in active.parts if p in made_from}
    ):
        came = f"{', '.join(absent)} in another weight or not at all"
        then = "Compact what the channel serves now: efface adapter compact --channel CHANNEL."
        raise InvalidInput(f"all that it was made from in what {channel} serves", came, then)
    kept = [part for part in active.parts if part not in made_from]
    return compositions.compose(active.base, active.quantization, [*kept, (digest, "1")], active.render)


def _evidence(release: Release, given: str | None) -> str:
    if given is None and release.audit is None:
        came = f"{release.channel}@{release.version}, {release.state} and without one"
        then = f"Approve it first: efface release approve {release.channel} {release.version} --audit DIGEST"
        raise GateFailed("a release that was approved on an audit", came, then)
    return given or release.audit or ""


def _activate(tx: Writer, release: Release, previous: Release | None, evidence: Audit) -> None:
    """The order matters: one channel never has two active releases, not even inside the transaction."""
    before, bases = release_rows.released(tx.db), support.served(tx.db).bases
    if previous is not None:
        _move(tx, previous, "superseded", {"by": release.version})
    _move(tx, release, "active", {"audit": evidence.digest})
    served = sorted({*release.composition.adapters, *filter(None, [release.rendered])})
    for adapter in adapters.load_many(tx.db, served):
        if adapter.state == "SEALED":
            ledger.append(tx, "adapter.qualified", adapter.digest, {"audit": evidence.digest})
    base = release.composition.base
    too_much = set() if base in bases else set(claims.overstated(tx.db, base))
    if (
        previous is not None
    ):  # what suppressed may be gone while a base made for the request is served elsewhere
        left = release_rows.requests_of(tx.db, previous.composition)
        too_much |= set(claims.overstated_among(tx.db, left))
    _move_requests(tx, release, before, too_much)


def _move_requests(tx: Writer, release: Release, before: set[str], overstated: set[str]) -> None:
    note: dict[str, JSON] = {"release": f"{release.channel}@{release.version}"}
    after = release_rows.released(tx.db)
    for request_id in sorted((before - after) | overstated):
        if requests.load(tx.db, request_id).state in states.IN_FORCE:
            requests.advance(tx, request_id, "REOPENED", {**note, "reason": release.reason})
    for request_id in sorted(release_rows.requests_of(tx.db, release.composition)):
        if requests.load(tx.db, request_id).state not in (*states.IN_FORCE, *states.ENDED):
            requests.advance(tx, request_id, "RELEASED", note)


def _move(tx: Writer, release: Release, state: str, body: dict[str, JSON]) -> None:
    key: dict[str, JSON] = {"channel": release.channel, "version": release.version}
    ledger.append(tx, f"release.{state}", f"{release.channel}@{release.version}", {**key, **body})
