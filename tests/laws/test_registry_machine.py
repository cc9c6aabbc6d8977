"""The registry against a plain dict model, over generated stories, on each backend (design §4, numbers 2, 5, 6, 7, 10).

On Postgres and object storage fewer and shorter ones: they cost a server's round trips.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from registry_backends import KINDS, Backend, new_backend, rows
from registry_kit import BASE, Clock, ask, audited, lora, seal, stack

from efface.registry import (
    Adapter,
    Conflict,
    GateFailed,
    InvalidInput,
    NotFound,
    activate_release,
    active_release,
    close_request,
    collect,
    compose,
    create_release,
    get_audit,
    history,
    list_requests,
    log,
    open_request,
    plan_collection,
    plan_removal,
    purge_adapter,
    read_payload,
    rebuild,
    retire_adapter,
    shred_request,
    step_request,
    verify,
)

CHANNELS = ("prod", "canary")
ENDED = ("WITHDRAWN", "REFUSED")


class Story(RuleBasedStateMachine):
    """The model: request → state, request → its adapters, channel → list of released request sets."""

    def __init__(self, place: Callable[[Path], Backend]) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.work = Path(self.folder.name)
        self.place = place(self.work)
        self.states: dict[str, str] = {}
        self.adapters: dict[str, list[Adapter]] = {}
        self.channels: dict[str, list[frozenset[str]]] = {channel: [] for channel in CHANNELS}
        self.versions: dict[str, list[str]] = {channel: [] for channel in CHANNELS}
        self.shredded: set[str] = set()
        self.gone: set[str] = set()
        self.seed = 0

    @initialize()
    def start(self) -> None:
        self.reg = self.place.open(clock=Clock())

    def teardown(self) -> None:
        try:
            before = rows(self.reg)
            rebuild(self.reg)
            assert rows(self.reg) == before
            assert verify(self.reg, deep=True).problems == ()
        finally:
            self.place.close()
            self.folder.cleanup()

    def released(self) -> frozenset[str]:
        return frozenset().union(*(found[-1] for found in self.channels.values() if found))

    @rule(basis=st.sampled_from(["gdpr17", "copyright", "test"]))
    def ask(self, basis: str) -> None:
        request_id = ask(self.reg, basis=basis)
        assert request_id == f"req-{len(self.states) + 1:06d}"
        self.states[request_id] = "RECEIVED"
        self.adapters[request_id] = []

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def train(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.states)))
        self.seed += 1
        folder = lora(self.work / str(self.seed), self.seed)
        if self.states[request_id] in (*ENDED, "SHREDDED", "CLOSED"):
            self.refused(Conflict, lambda: seal(self.reg, folder, [request_id]))
            return
        self.adapters[request_id].append(seal(self.reg, folder, [request_id]))
        if self.states[request_id] != "RELEASED":
            self.states[request_id] = "TRAINED"

    @precondition(lambda self: self.states)
    @rule(data=st.data(), to=st.sampled_from(["VERIFIED", "WITHDRAWN", "AUDITED"]))
    def decide(self, data: st.DataObject, to: str) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.states)))
        state = self.states[request_id]
        allowed = {"VERIFIED": ("RECEIVED",), "AUDITED": ("TRAINED",)}.get(
            to, ("RECEIVED", "VERIFIED", "TRAINED", "AUDITED", "REOPENED")
        )
        decide = lambda: step_request(self.reg, request_id, to, actor="ana", reason="a reason")  # noqa: E731
        if state not in allowed:
            self.refused(Conflict, decide)
            return
        self.states[request_id] = decide().state
        assert self.states[request_id] == to

    @rule(data=st.data(), channel=st.sampled_from(CHANNELS))
    def release(self, data: st.DataObject, channel: str) -> None:
        ready = sorted(r for r, found in self.adapters.items() if found)
        chosen = data.draw(st.frozensets(st.sampled_from(ready)) if ready else st.just(frozenset[str]()))
        composition = stack([self.adapters[request_id][-1] for request_id in sorted(chosen)])
        create = lambda: create_release(  # noqa: E731
            self.reg, channel, composition, rendered=None, reason="a reason", actor="ana"
        )
        if any(self.states[request_id] in ENDED for request_id in chosen):
            self.refused(Conflict, create)
            return
        self.activate(channel, create().version, composition, chosen)

    @precondition(lambda self: any(found and found[-1] for found in self.channels.values()))
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from([c for c, found in self.channels.items() if found and found[-1]]))
        held = self.channels[channel][-1]
        gone = data.draw(st.frozensets(st.sampled_from(sorted(held)), min_size=1))
        planned = plan_removal(self.reg, channel, gone)
        before = active_release(self.reg, channel).composition
        staying = {part.adapter for part in planned.parts}
        assert staying == {a.digest for r in held - gone for a in self.adapters[r]} & set(before.adapters)
        made = create_release(self.reg, channel, planned, rendered=None, reason="rolled back", actor="ana")
        self.activate(channel, made.version, planned, held - gone)

    def activate(self, channel: str, version: int, composition, chosen: frozenset[str]) -> None:
        failed = audited(self.reg, composition, verdict="fail")
        elsewhere = audited(self.reg, composition, precision="bf16")
        passed = audited(self.reg, composition)
        approve = lambda audit: activate_release(  # noqa: E731
            self.reg, channel, version, audit=audit.digest, approved_by="ben"
        )
        self.refused(GateFailed, lambda: approve(failed))
        self.refused(GateFailed, lambda: approve(elsewhere))
        before = self.released()
        approve(passed)
        self.channels[channel].append(chosen)
        self.versions[channel].append(composition.digest)
        after = self.released()
        kept = {request for request in chosen if self.states[request] in ("SHREDDED", "CLOSED")}
        self.states |= dict.fromkeys(chosen - kept, "RELEASED") | dict.fromkeys(before - after, "REOPENED")

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def shred(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.states)))
        state = self.states[request_id]
        if request_id not in self.shredded and state not in ("RELEASED", *ENDED):
            self.refused(Conflict, lambda: shred_request(self.reg, request_id, actor="ana"))
            return
        if request_id not in self.shredded and state == "RELEASED":
            self.states[request_id] = "SHREDDED"
        self.shredded.add(request_id)
        shred_request(self.reg, request_id, actor="ana")
        self.refused(NotFound, lambda: read_payload(self.reg, request_id))

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.states)))
        close = lambda: close_request(self.reg, request_id, actor="ana")  # noqa: E731
        if self.states[request_id] != "SHREDDED":
            self.refused(Conflict, close)
            return
        assert close().claim_level == "suppressed"
        self.states[request_id] = "CLOSED"

    @precondition(lambda self: any(self.adapters.values()))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """An adapter that no channel serves is retired and purged; one that is served is not."""
        request_id = data.draw(st.sampled_from(sorted(r for r, found in self.adapters.items() if found)))
        adapter = self.adapters[request_id][-1]
        retire = lambda: retire_adapter(self.reg, adapter.digest, reason="old", actor="ana")  # noqa: E731
        served = {digest for channel, found in self.versions.items() if found
                  for digest in active_release(self.reg, channel).composition.adapters}  # fmt: skip
        if adapter.digest in served:
            self.refused(Conflict, retire)
            return
        retire()
        purge_adapter(self.reg, adapter.digest, reason="old", actor="ana")
        self.adapters[request_id].pop()
        self.gone.add(adapter.digest)

    @rule(orphan=st.booleans())
    def collect(self, orphan: bool) -> None:
        """Number 10: what is planned goes, nothing reachable does, and doing it again does nothing."""
        if orphan:
            self.reg.blobs.put(b"of a process that died before its event")
        held = {digest for digest, row in rows(self.reg, ["blob"])["blob"].items() if row["uses"]}
        stored = set(self.reg.blobs)
        tomorrow = replace(self.reg, clock=lambda: datetime.now(UTC) + timedelta(days=1))
        plan = plan_collection(tomorrow, min_age=timedelta(0))
        done = collect(self.reg, plan, actor="ana")
        assert stored - set(self.reg.blobs) == {item.name for item in done.deleted if item.kind == "blob"}
        assert held == set(self.reg.blobs)
        assert not self.gone & set(self.reg.blobs)
        assert collect(self.reg, plan, actor="ana").deleted == ()

    @precondition(lambda self: hasattr(self, "reg"))
    @rule()
    def nonsense(self) -> None:
        reg = self.reg
        values = {"basis": "test", "payload": b"x", "n_items": 1, "actor": "ana"}
        self.refused(InvalidInput, lambda: open_request(reg, **{**values, "basis": "whim"}))
        self.refused(InvalidInput, lambda: seal(reg, self.work, ["req-000001"]))
        self.refused(NotFound, lambda: step_request(reg, "req-999999", "VERIFIED", actor="ana"))
        unknown = compose(BASE, "nf4", [("sha256:" + "0" * 64, 1)])
        create = lambda: create_release(  # noqa: E731
            reg, "prod", unknown, rendered=None, reason="r", actor="ana"
        )
        self.refused(NotFound, create)

    def refused(self, error: type[Exception], call) -> None:
        """Number 5: a rejected call leaves every byte below the root as it was."""
        before = self.place.state(self.reg)
        with pytest.raises(error):
            call()
        assert self.place.state(self.reg) == before

    @invariant()
    def requests_are_where_the_model_has_them(self) -> None:
        if self.states:
            assert {request.id: request.state for request in list_requests(self.reg)} == self.states

    @invariant()
    def one_active_release_per_channel_with_its_evidence_and_whole_history(self) -> None:
        for channel, digests in self.versions.items():
            if not digests:
                continue
            releases = history(self.reg, channel)
            assert [release.composition.digest for release in releases] == digests
            assert [release.state for release in releases] == ["SUPERSEDED"] * (len(digests) - 1) + ["ACTIVE"]
            active = active_release(self.reg, channel)
            evidence = get_audit(self.reg, active.audit or "")
            passed = (evidence.verdict, evidence.precision, evidence.composition)
            assert passed == ("pass", active.composition.quantization, active.composition.digest)

    @invariant()
    def the_ledger_counts_without_gaps(self) -> None:
        if hasattr(self, "reg"):
            assert [event.seq for event in log(self.reg)] == list(range(1, len(log(self.reg)) + 1))


# Examples and steps; what a backend costs decides.
SIZES = {"folder": (25, 15), "postgres": (6, 12), "postgres+s3": (3, 10)}


@pytest.mark.parametrize("kind", KINDS)
def test_story(kind: str, request: pytest.FixtureRequest, quiet_vault: None) -> None:
    examples, steps = SIZES[kind]
    run_state_machine_as_test(  # pyright: ignore[reportUnknownMemberType]
        lambda: Story(lambda folder: new_backend(kind, folder, request)),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
