"""The registry against a plain dict model: every verb, in any order (design §4, numbers 2, 5, 6, 7, 10).

`Model` says what should happen; `Story` does it and compares. A story on another database overrides `open`, `dump`
and `everything`.
"""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lifecycle_kit import MERGED
from registry_kit import BASE, CANARY, Clock, accept, ask, audited, contents, lora, seal

from efface.registry import (
    Adapter,
    Composition,
    Conflict,
    GateFailed,
    InvalidInput,
    NotFound,
    Registry,
    activate_release,
    active_release,
    approve_release,
    close_request,
    collect,
    compose,
    create_release,
    diff_releases,
    extend_request,
    get_adapter,
    get_audit,
    get_release,
    get_request,
    history,
    list_adapters,
    list_requests,
    log,
    open_request,
    overdue,
    plan_collection,
    plan_removal,
    purge_adapter,
    read_payload,
    rebuild,
    record_evidence,
    reject_adapter,
    requests_of_subject,
    retire_adapter,
    rule_channel,
    shred_request,
    step_request,
    supported_claim,
    timestamp,
    verify,
    withdraw_release,
    without,
)

CHANNELS = ("prod", "canary")
ENDED = ("REFUSED", "WITHDRAWN")
IN_FORCE = ("RELEASED", "SHREDDED", "CLOSED")
LEVELS = ("suppressed", "consolidated", "erased")
BY_HAND = {
    "VERIFIED": ("RECEIVED",),
    "ACCEPTED": ("VERIFIED",),
    "AUDITED": ("TRAINED",),
    "REFUSED": ("RECEIVED", "VERIFIED", "ACCEPTED", "REOPENED"),
    "WITHDRAWN": ("RECEIVED", "VERIFIED", "ACCEPTED", "TRAINED", "AUDITED", "REOPENED"),
}
"""Decision → the states that it may follow."""
TRAINABLE = ("RECEIVED", "VERIFIED", "ACCEPTED", "TRAINED", "AUDITED", "RELEASED", "REOPENED")
ENDS = {"REJECTED": ("SEALED",), "RETIRED": ("SEALED", "QUALIFIED", "REJECTED"), "PURGED": ("RETIRED",)}
VERBS = {"REJECTED": reject_adapter, "RETIRED": retire_adapter, "PURGED": purge_adapter}
METHODS = {"merge": "consolidated", "retrain": "erased"}


def scratch() -> str | None:
    """A folder in memory where there is one: every commit waits for the disk, and a story has thousands."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass
class Wish:
    """A request as the model has it."""

    subject: str | None
    legal: bool = False
    state: str = "RECEIVED"
    shredded: bool = False
    extended: bool = False
    claim: str | None = None

    @property
    def undecided(self) -> bool:
        """Nothing moves it on before people have verified and accepted it."""
        return self.legal and self.state in ("RECEIVED", "VERIFIED")


@dataclass
class Made:
    """An adapter: the requests it answers, and the adapters it was trained on top of."""

    record: Adapter
    folder: Path
    requests: frozenset[str]
    below: frozenset[str]
    state: str = "SEALED"

    @property
    def blobs(self) -> set[str]:
        return {self.record.digest, *self.record.files.values()}


@dataclass
class Version:
    composition: Composition
    state: str = "CANDIDATE"
    audit: str | None = None
    approver: str | None = None

    @property
    def held(self) -> frozenset[str]:
        return frozenset(self.composition.adapters)


@dataclass
class Model:
    wishes: dict[str, Wish] = field(default_factory=dict[str, Wish])
    adapters: dict[str, Made] = field(default_factory=dict[str, Made])
    channels: dict[str, list[Version]] = field(default_factory=lambda: {name: [] for name in CHANNELS})
    evidence: set[tuple[str, str, str]] = field(default_factory=lambda: set[tuple[str, str, str]]())
    """Request, method, level."""
    measured: set[str] = field(default_factory=set[str])
    """Requests that an audit of the merged base measured."""
    ruled: set[str] = field(default_factory=set[str])
    """Channels on which nobody lets through what they created."""
    passed: set[str] = field(default_factory=set[str])
    """Compositions with a passing audit at the precision they are served."""
    reports: set[str] = field(default_factory=set[str])

    def versions(self, *states: str) -> list[Version]:
        return [one for found in self.channels.values() for one in found if one.state in states]

    def active(self, channel: str) -> Version | None:
        return next((one for one in self.channels[channel] if one.state == "ACTIVE"), None)

    def answered(self, version: Version) -> set[str]:
        """By its adapters, or by its base."""
        held = {request for digest in version.held for request in self.adapters[digest].requests}
        made = (
            {request for request, *_ in self.evidence} if version.composition.base == MERGED else set[str]()
        )
        return held | made

    def undecided(self, version: Version) -> bool:
        return any(self.wishes[name].undecided for name in self.answered(version))

    def in_force(self) -> set[str]:
        return set(chain.from_iterable(map(self.answered, self.versions("ACTIVE"))))

    def supported(self, request_id: str) -> str | None:
        active = self.versions("ACTIVE")
        mine = {digest for digest, made in self.adapters.items() if request_id in made.requests}
        before = any(one.composition.base == BASE for one in active)
        levels = {level for request, _, level in self.evidence if request == request_id and not before}
        levels |= {"suppressed"} if any(mine & one.held for one in active) else set()
        return max(levels, key=LEVELS.index, default=None)

    def rank(self, level: str | None) -> int:
        return -1 if level is None else LEVELS.index(level)

    def activate(self, channel: str, version: Version) -> None:
        before = self.in_force()
        if (previous := self.active(channel)) is not None:
            previous.state = "SUPERSEDED"
        version.state = "ACTIVE"
        for digest in version.held:
            if self.adapters[digest].state == "SEALED":
                self.adapters[digest].state = "QUALIFIED"
        gone = before - self.in_force()
        for name, wish in self.wishes.items():
            too_much = wish.state == "CLOSED" and self.rank(wish.claim) > self.rank(self.supported(name))
            if (name in gone or too_much) and wish.state in IN_FORCE:
                wish.state, wish.claim = "REOPENED", None
        for name in self.answered(version):
            if self.wishes[name].state not in (*IN_FORCE, *ENDED):
                self.wishes[name].state = "RELEASED"

    def ended(self, held: Iterable[str]) -> bool:
        return any(
            self.wishes[one].state in ENDED for digest in held for one in self.adapters[digest].requests
        )

    def usable(self, digest: str) -> bool:
        return self.adapters[digest].state in ("SEALED", "QUALIFIED")

    def turn(self, channel: str, number: int, state: str) -> type[Exception] | None:
        """Why a version may not be approved or activated from `state` now."""
        version, active = self.channels[channel][number - 1], self.active(channel)
        overtaken = active is not None and self.channels[channel].index(active) > number - 1
        return Conflict if version.state != state or overtaken or self.ended(version.held) else None

    def needed(self) -> set[str]:
        kept = [made.blobs for made in self.adapters.values() if made.state != "PURGED"]
        return self.reports.union(*kept)


class Story(RuleBasedStateMachine):
    """Each rule asks the model what should happen, does it, and lets the invariants compare."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=scratch())
        self.work = Path(self.folder.name)
        self.model = Model()
        self.clock = Clock()
        self.seed = 0

    def open(self) -> Registry:
        """The registry of the story. Override it for another database."""
        return Registry.open(self.work / "registry", create=True, clock=self.clock)

    def dump(self) -> list[str]:
        """Every row of the database, as text."""
        with closing(sqlite3.connect(self.reg.root / "registry.db")) as db:
            return list(db.iterdump())

    def everything(self) -> Any:
        """Everything that is stored, to compare before and after a call that is refused."""
        return contents(self.reg.root)

    @initialize()
    def start(self) -> None:
        # Years ahead, so that files are older than the clock says.
        self.clock.now += timedelta(days=3650)
        self.reg = self.open()
        for name in ("gdpr17", "test"):
            self.ask(name, None)
            if name != "test":
                accept(self.reg, f"req-{len(self.model.wishes):06d}")
                self.model.wishes[f"req-{len(self.model.wishes):06d}"].state = "ACCEPTED"
            self.learn([f"req-{len(self.model.wishes):06d}"], None)

    def teardown(self) -> None:
        if hasattr(self, "reg"):
            before = self.dump()
            rebuild(self.reg)
            assert self.dump() == before
            result = verify(self.reg, deep=True)
            assert result.ok, result.problems
            self.reg.close()
        self.folder.cleanup()

    def expect(self, error: type[Exception] | None, call: Callable[[], Any]) -> Any:
        """The call's result, or None where it is refused; then it leaves every byte as it was (number 5)."""
        if error is None:
            return call()
        before = self.everything()
        with pytest.raises(error):
            call()
        assert self.everything() == before
        return None

    def unchanged(self, call: Callable[[], Any]) -> Any:
        before = self.everything()
        found = call()
        assert self.everything() == before
        return found

    def some_request(self, data: st.DataObject, *likely: str) -> str:
        """Any request; more often one in a `likely` state, so that stories get somewhere."""
        names = sorted(self.model.wishes)
        fit = [name for name in names if self.model.wishes[name].state in likely]
        return data.draw(st.sampled_from(names + fit * len(names)), label="request")

    def some_adapter(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model.adapters)), label="adapter")

    def some_version(self, data: st.DataObject) -> tuple[str, int]:
        known = [(name, n + 1) for name, found in self.model.channels.items() for n in range(len(found))]
        return data.draw(st.sampled_from(known), label="version")

    def audit(self, composition: Composition, **changes: Any) -> str:
        evidence = audited(self.reg, composition, precision="nf4") if not changes else None
        evidence = evidence or audited(self.reg, composition, **changes)
        self.model.reports.add(evidence.report)
        if not changes:
            self.model.passed.add(composition.digest)
        return evidence.digest

    # Requests

    @rule(
        basis=st.sampled_from(["gdpr17", "copyright", "test"]), subject=st.sampled_from([None, "Zoë", "Ana"])
    )
    def ask(self, basis: str, subject: str | None) -> None:
        request_id = ask(self.reg, basis=basis, subject_ref=subject)
        assert request_id == f"req-{len(self.model.wishes) + 1:06d}"
        self.model.wishes[request_id] = Wish(subject, legal=basis != "test")

    @precondition(lambda self: self.model.wishes)
    @rule(data=st.data(), to=st.sampled_from(sorted(BY_HAND)))
    def decide(self, data: st.DataObject, to: str) -> None:
        request_id = self.some_request(data)
        wish = self.model.wishes[request_id]
        allowed = wish.state in BY_HAND[to]
        done = self.expect(
            None if allowed else Conflict,
            lambda: step_request(self.reg, request_id, to, actor="ana", reason="a reason"),
        )
        if done is not None:
            wish.state = to

    @precondition(lambda self: self.model.wishes)
    @rule(data=st.data(), months=st.sampled_from([1, 2, 3]))
    def extend(self, data: st.DataObject, months: int) -> None:
        request_id = self.some_request(data)
        wish, found = self.model.wishes[request_id], get_request(self.reg, request_id)
        answered = wish.state in (*IN_FORCE, *ENDED)
        late = found.due_at is None or timestamp(self.clock.now + timedelta(seconds=1)) > found.due_at
        error = InvalidInput if months > 2 else Conflict if answered or late or wish.extended else None
        extend = lambda: extend_request(self.reg, request_id, months=months, reason="many", actor="ana")  # noqa: E731
        if self.expect(error, extend) is not None:
            wish.extended = True

    @rule(days=st.integers(1, 40))
    def wait(self, days: int) -> None:
        self.clock.now += timedelta(days=days)

    @precondition(lambda self: self.model.wishes)
    @rule(data=st.data())
    def shred(self, data: st.DataObject) -> None:
        request_id = self.some_request(data, "RELEASED")
        wish = self.model.wishes[request_id]
        shred = lambda: shred_request(self.reg, request_id, actor="ana")  # noqa: E731
        if wish.shredded:
            self.unchanged(shred)
        elif self.expect(None if wish.state in ("RELEASED", *ENDED) else Conflict, shred) is not None:
            wish.shredded = True
            wish.state = "SHREDDED" if wish.state == "RELEASED" else wish.state

    @precondition(lambda self: self.model.wishes)
    @rule(data=st.data(), claim=st.sampled_from([None, *LEVELS]))
    def close(self, data: st.DataObject, claim: str | None) -> None:
        request_id = self.some_request(data, "SHREDDED")
        wish, shown = self.model.wishes[request_id], self.model.supported(request_id)
        level = claim or shown
        ready = wish.state == "CLOSED" or (wish.shredded and wish.state in ("RELEASED", "SHREDDED"))
        enough = level is not None and self.model.rank(level) <= self.model.rank(shown)
        raised = wish.state != "CLOSED" or self.model.rank(level) > self.model.rank(wish.claim)
        error = Conflict if not ready else GateFailed if not enough else None if raised else Conflict
        closed = self.expect(error, lambda: close_request(self.reg, request_id, claim=claim, actor="ana"))
        if closed is not None:
            wish.state, wish.claim = "CLOSED", level

    @precondition(lambda self: self.model.wishes)
    @rule(data=st.data(), method=st.sampled_from(sorted(METHODS)))
    def prove(self, data: st.DataObject, method: str) -> None:
        """On an audit that names the request, as long as its rows are there; after that on one that cannot."""
        request_id = self.some_request(data, "RELEASED", "SHREDDED", "CLOSED")
        wish = self.model.wishes[request_id]
        values: dict[str, Any] = {
            "artefact": MERGED,
            "replaces": BASE,
            "base_withdrawn": True,
            "statement": "s",
            "actor": "ana",
        }
        bare = compose(MERGED, "nf4", [])
        names = data.draw(st.sampled_from([None, [], [request_id]]), label="audit names")
        known = request_id in self.model.measured
        if names and wish.shredded and not known:
            self.expect(Conflict, lambda: self.audit(bare, precision="nf4", requests=names))
            names = []
        values["audit"] = self.audit(bare, precision="nf4", requests=names)
        self.model.passed.add(bare.digest)
        self.model.measured |= set(names or ())
        level = METHODS[method] if names else "suppressed"
        shows = bool(names) or (names is not None and wish.shredded)
        error = Conflict if wish.state in ENDED else None if shows else GateFailed
        record = lambda: record_evidence(self.reg, request_id, method=method, **values)  # noqa: E731
        if error is None and (request_id, method, level) in self.model.evidence:
            self.unchanged(record)
            return
        served = any(one.composition.base == MERGED for one in self.model.versions("ACTIVE"))
        error = error or (Conflict if wish.undecided and served else None)
        if (made := self.expect(error, record)) is not None:
            assert made.level == level
            self.model.evidence.add((request_id, method, level))
            if wish.state not in IN_FORCE and request_id in self.model.in_force():
                wish.state = "RELEASED"

    # Adapters

    @precondition(lambda self: self.model.wishes)
    @rule(data=st.data(), stacked=st.booleans(), two=st.booleans())
    def train(self, data: st.DataObject, stacked: bool, two: bool) -> None:
        chosen = {self.some_request(data)} | ({self.some_request(data)} if two else set())
        below = [one.composition for one in self.model.versions("ACTIVE") if one.composition.base == BASE]
        on = data.draw(st.sampled_from(below), label="on") if stacked and below else None
        self.learn(chosen, on)

    def learn(self, chosen: Iterable[str], on: Composition | None) -> None:
        self.seed += 1
        folder = lora(self.work / str(self.seed), self.seed)
        wishes = [self.model.wishes[name] for name in chosen]
        refused = any(wish.state not in TRAINABLE or wish.undecided for wish in wishes)
        made = self.expect(
            Conflict if refused else None,
            lambda: seal(self.reg, folder, sorted(chosen), trained_on=on.digest if on else None),
        )
        if made is None:
            return
        held = frozenset(on.adapters if on else ())
        self.model.adapters[made.digest] = Made(made, folder, frozenset(chosen), held)
        for name in chosen:
            if self.model.wishes[name].state != "RELEASED":
                self.model.wishes[name].state = "TRAINED"

    @precondition(lambda self: self.model.adapters)
    @rule(data=st.data())
    def train_the_same_again(self, data: st.DataObject) -> None:
        made = self.model.adapters[self.some_adapter(data)]
        again = lambda: seal(  # noqa: E731
            self.reg, made.folder, sorted(made.requests), trained_on=made.record.trained_on
        )
        if made.state == "PURGED":
            self.expect(Conflict, again)
        else:
            assert again().digest == made.record.digest

    @precondition(lambda self: self.model.adapters)
    @rule(data=st.data(), to=st.sampled_from(sorted(ENDS)))
    def end(self, data: st.DataObject, to: str) -> None:
        digest = self.some_adapter(data)
        made = self.model.adapters[digest]
        served = any(digest in one.held for one in self.model.versions("CANDIDATE", "APPROVED", "ACTIVE"))
        under = any(
            digest in other.below and self.model.usable(name) for name, other in self.model.adapters.items()
        )
        error = Conflict if made.state not in ENDS[to] or served or under else None
        if (
            self.expect(error, lambda: VERBS[to](self.reg, digest, reason="a reason", actor="ana"))
            is not None
        ):
            made.state = to

    @rule(orphan=st.booleans())
    def collect(self, orphan: bool) -> None:
        """Number 10: what was planned, nothing that is needed, and twice is once."""
        before = set(self.reg.blobs)
        stray = {self.reg.blobs.put(f"orphan {self.seed}".encode())} if orphan else set[str]()
        plan = plan_collection(self.reg, min_age=timedelta(0))
        planned = {item.name for item in plan.items if item.kind == "blob"}
        assert planned == (before | stray) - self.model.needed()
        self.unchanged(lambda: plan_collection(self.reg, min_age=timedelta(0)))
        assert collect(self.reg, plan, actor="ana").deleted == plan.items
        assert set(self.reg.blobs) == self.model.needed()
        assert self.unchanged(lambda: collect(self.reg, plan, actor="ana")).deleted == ()
        assert plan_collection(self.reg, min_age=timedelta(0)).items == ()

    # Releases

    @rule(
        data=st.data(),
        channel=st.sampled_from(CHANNELS),
        at_once=st.booleans(),
        base=st.sampled_from([BASE, BASE, BASE, MERGED]),
    )
    def release(self, data: st.DataObject, channel: str, at_once: bool, base: str) -> None:
        known = sorted(self.model.adapters) if base == BASE else []
        names = st.lists(st.sampled_from(known), unique=True, max_size=3) if known else st.just([])
        parts = [
            (digest, data.draw(st.sampled_from([1, "0.5"]))) for digest in data.draw(names, label="parts")
        ]
        composition = compose(base, "nf4", parts)
        number = self.create(channel, composition)
        if number is not None and at_once:
            self.activate(channel, number, self.audit(composition))

    @precondition(lambda self: any(map(self.model.usable, self.model.adapters)))
    @rule(data=st.data(), channel=st.sampled_from(CHANNELS))
    def add(self, data: st.DataObject, channel: str) -> None:
        """The usual way: one more adapter on what is served."""
        known = [digest for digest in sorted(self.model.adapters) if self.model.usable(digest)]
        active = self.model.active(channel)
        parts = active.composition.parts if active and active.composition.base == BASE else ()
        weights = {part.adapter: part.weight for part in parts} | {data.draw(st.sampled_from(known)): "1"}
        composition = compose(BASE, "nf4", weights.items())
        if (number := self.create(channel, composition)) is not None:
            self.activate(channel, number, self.audit(composition))

    def create(self, channel: str, composition: Composition) -> int | None:
        spent = any(not self.model.usable(digest) for digest in composition.adapters)
        ended = Conflict if self.model.ended(composition.adapters) else None
        made = self.expect(
            InvalidInput if spent else ended,
            lambda: create_release(
                self.reg, channel, composition, rendered=None, reason="a reason", actor="ana"
            ),
        )
        if made is None:
            return None
        self.model.channels[channel].append(Version(composition))
        assert made.version == len(self.model.channels[channel])
        return made.version

    def activate(self, channel: str, number: int, audit: str | None, by: str = "ben") -> None:
        version = self.model.channels[channel][number - 1]
        activate = lambda: activate_release(  # noqa: E731
            self.reg, channel, number, audit=audit, approved_by=by
        )
        if version.state == "ACTIVE" and (audit is None or (audit, by) == (version.audit, version.approver)):
            self.unchanged(activate)
            return
        unaudited = audit is None and version.audit is None
        error = (
            GateFailed
            if unaudited
            else self.model.turn(channel, number, "CANDIDATE" if audit else "APPROVED")
            or (Conflict if self.model.undecided(version) else None)
        )
        own = channel in self.model.ruled and (by if audit else version.approver) == "ana"
        if self.expect(error or (GateFailed if own else None), activate) is not None:
            version.approver = by if audit else version.approver
            version.audit = audit or version.audit
            self.model.activate(channel, version)

    @rule(channel=st.sampled_from(CHANNELS), two_person=st.booleans())
    def rule_channel(self, channel: str, two_person: bool) -> None:
        """All releases here are created by ana; ben is somebody else."""
        rule = lambda: rule_channel(  # noqa: E731
            self.reg, channel, two_person=two_person, reason="a reason", actor="cleo"
        )
        held = channel in self.model.ruled
        found = self.unchanged(rule) if held == two_person else rule()
        (self.model.ruled.add if two_person else self.model.ruled.discard)(channel)
        assert found.two_person == two_person

    @precondition(lambda self: any(self.model.channels.values()))
    @rule(data=st.data(), by=st.sampled_from(["ana", "ben", "ben"]))
    def approve(self, data: st.DataObject, by: str) -> None:
        channel, number = self.some_version(data)
        version = self.model.channels[channel][number - 1]
        bad = [
            self.audit(version.composition, verdict="fail"),
            self.audit(version.composition, precision="bf16"),
        ]
        passed = self.audit(version.composition)
        approve = lambda audit: approve_release(  # noqa: E731
            self.reg, channel, number, audit=audit, approved_by=by
        )
        for audit in bad:
            self.expect(GateFailed, lambda audit=audit: approve(audit))
        own = GateFailed if channel in self.model.ruled and by == "ana" else None
        error = self.model.turn(channel, number, "CANDIDATE") or own
        if self.expect(error, lambda: approve(passed)) is not None:
            version.state, version.audit, version.approver = "APPROVED", passed, by

    @precondition(lambda self: any(self.model.channels.values()))
    @rule(data=st.data(), audit=st.booleans(), by=st.sampled_from(["ana", "ben"]))
    def activate_one(self, data: st.DataObject, audit: bool, by: str) -> None:
        channel, number = self.some_version(data)
        composition = self.model.channels[channel][number - 1].composition
        self.activate(channel, number, self.audit(composition) if audit else None, by)

    @precondition(lambda self: any(self.model.channels.values()))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        channel, number = self.some_version(data)
        version = self.model.channels[channel][number - 1]
        done = self.expect(
            None if version.state in ("CANDIDATE", "APPROVED") else Conflict,
            lambda: withdraw_release(self.reg, channel, number, reason="a reason", actor="ana"),
        )
        if done is not None:
            version.state = "WITHDRAWN"

    @precondition(lambda self: any(self.model.channels.values()))
    @rule(data=st.data())
    def roll_back_to(self, data: st.DataObject) -> None:
        """Number 7: the composition is the old one's, in a new version."""
        channel, number = self.some_version(data)
        old = get_release(self.reg, channel, number)
        again = self.create(channel, old.composition)
        if again is None:
            return
        self.activate(channel, again, self.audit(old.composition))
        diff = diff_releases(self.reg, channel, number, again)
        assert (diff.adapters_added, diff.adapters_removed, diff.reweighted) == ((), (), ())
        assert get_release(self.reg, channel, again).composition.digest == old.composition.digest

    @precondition(lambda self: any(one.held for one in self.model.versions("ACTIVE")))
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        """Number 7: what is left is what would have been without; refused where others stand on what goes."""
        channel = data.draw(
            st.sampled_from([name for name in CHANNELS if (one := self.model.active(name)) and one.held])
        )
        version = self.model.active(channel)
        assert version is not None
        made = {digest: self.model.adapters[digest] for digest in version.held}
        held = sorted(set(chain.from_iterable(one.requests for one in made.values())))
        gone = data.draw(st.frozensets(st.sampled_from(held), min_size=1), label="gone")
        leaving = {digest for digest, one in made.items() if one.requests & gone}
        left = without(version.composition, leaving)
        shared = any(made[digest].requests - gone for digest in leaving)
        stands = any(made[digest].below & leaving for digest in made.keys() - leaving)
        plan = lambda: plan_removal(self.reg, channel, gone)  # noqa: E731
        if shared:
            self.expect(InvalidInput, plan)
            return
        if stands and left.digest not in self.model.passed:
            self.expect(Conflict, plan)
            if not data.draw(st.booleans(), label="audit"):
                return
            self.audit(left)
        planned = self.unchanged(plan)
        weights = {part.adapter: part.weight for part in version.composition.parts}
        never = compose(BASE, "nf4", [(key, value) for key, value in weights.items() if key not in leaving])
        assert planned == left == never
        assert planned.digest == never.digest
        if (number := self.create(channel, planned)) is not None:
            self.activate(channel, number, self.audit(planned))

    @precondition(lambda self: self.clock.now.day % 7 == 0)
    @rule()
    def nonsense(self) -> None:
        reg = self.reg
        values = {"basis": "test", "payload": b"x", "n_items": 1, "actor": "ana"}
        unknown = compose(BASE, "nf4", [("sha256:" + "0" * 64, 1)])
        for error, call in (
            (InvalidInput, lambda: open_request(reg, **{**values, "basis": "whim"})),
            (InvalidInput, lambda: seal(reg, self.work, ["req-000001"])),
            (NotFound, lambda: step_request(reg, "req-999999", "VERIFIED", actor="ana")),
            (NotFound, lambda: shred_request(reg, "req-999999", actor="ana")),
            (NotFound, lambda: retire_adapter(reg, "0" * 64, reason="r", actor="ana")),
            (NotFound, lambda: plan_removal(reg, "none", ["req-000001"])),
            (
                NotFound,
                lambda: create_release(reg, "prod", unknown, rendered=None, reason="r", actor="ana"),
            ),
        ):
            self.expect(error, call)

    # What must always hold

    @precondition(lambda self: hasattr(self, "reg"))
    @invariant()
    def requests_are_where_the_model_has_them(self) -> None:
        found = list_requests(self.reg)
        assert {one.id: (one.state, one.claim_level, one.shredded_at is not None) for one in found} == {
            name: (wish.state, wish.claim, wish.shredded) for name, wish in self.model.wishes.items()
        }
        now = timestamp(self.clock.now + timedelta(seconds=1))
        assert list_requests(self.reg, overdue=True) == [one for one in found if overdue(one, now)]
        for one in found:
            assert supported_claim(self.reg, one.id) == self.model.supported(one.id)

    @precondition(lambda self: hasattr(self, "reg"))
    @invariant()
    def who_asked_again_is_found(self) -> None:
        for subject in ("Zoë", "Ana"):
            found = [one.id for one in requests_of_subject(self.reg, subject)]
            assert found == [name for name, wish in self.model.wishes.items() if wish.subject == subject]

    @precondition(lambda self: hasattr(self, "reg") and self.model.wishes)
    @rule(data=st.data())
    def read_rows(self, data: st.DataObject) -> None:
        request_id = self.some_request(data)
        if self.model.wishes[request_id].shredded:
            self.expect(NotFound, lambda: read_payload(self.reg, request_id))
        else:
            assert self.unchanged(lambda: read_payload(self.reg, request_id)) == CANARY.encode()

    @precondition(lambda self: hasattr(self, "reg"))
    @invariant()
    def adapters_are_where_the_model_has_them(self) -> None:
        found = {one.digest: one.state for one in list_adapters(self.reg)}
        assert found == {digest: made.state for digest, made in self.model.adapters.items()}
        for digest, made in self.model.adapters.items():
            assert get_adapter(self.reg, digest).trained_on == made.record.trained_on

    @precondition(lambda self: hasattr(self, "reg"))
    @invariant()
    def one_active_release_per_channel_with_its_evidence_and_whole_history(self) -> None:
        for channel, versions in self.model.channels.items():
            if not versions:
                continue
            found = [(one.composition, one.state, one.audit) for one in history(self.reg, channel)]
            assert found == [(one.composition, one.state, one.audit) for one in versions]
            if self.model.active(channel) is None:
                continue
            active = active_release(self.reg, channel)
            evidence = get_audit(self.reg, active.audit or "")
            passed = (evidence.verdict, evidence.precision, evidence.composition)
            assert passed == ("pass", active.composition.quantization, active.composition.digest)

    @precondition(lambda self: hasattr(self, "reg"))
    @invariant()
    def the_ledger_counts_without_gaps(self) -> None:
        assert [event.seq for event in log(self.reg)] == list(range(1, len(log(self.reg)) + 1))
