"""The registry against a plain dict model, over generated stories (design §4, numbers 2, 5, 6, 7)."""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from registry_kit import BASE, Clock, ask, audited, contents, lora, seal, stack

from efface.registry import (
    Adapter,
    Conflict,
    GateFailed,
    InvalidInput,
    NotFound,
    Registry,
    activate_release,
    active_release,
    compose,
    create_release,
    get_audit,
    history,
    list_requests,
    log,
    open_request,
    plan_removal,
    rebuild,
    step_request,
    verify,
)

CHANNELS = ("prod", "canary")
ENDED = ("WITHDRAWN", "REFUSED")


class Story(RuleBasedStateMachine):
    """The model: request → state, request → its adapters, channel → list of released request sets."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.work = Path(self.folder.name)
        self.states: dict[str, str] = {}
        self.adapters: dict[str, list[Adapter]] = {}
        self.channels: dict[str, list[frozenset[str]]] = {channel: [] for channel in CHANNELS}
        self.versions: dict[str, list[str]] = {channel: [] for channel in CHANNELS}
        self.seed = 0

    @initialize()
    def start(self) -> None:
        self.reg = Registry.open(self.work / "registry", create=True, clock=Clock())

    def teardown(self) -> None:
        before = self.dump()
        rebuild(self.reg)
        assert self.dump() == before
        assert verify(self.reg, deep=True).ok
        self.folder.cleanup()

    def dump(self) -> list[str]:
        with closing(sqlite3.connect(self.reg.root / "registry.db")) as db:
            return list(db.iterdump())

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
        if self.states[request_id] in ENDED:
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
            to, ("RECEIVED", "VERIFIED", "TRAINED", "REOPENED")
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
        self.states |= dict.fromkeys(chosen, "RELEASED") | dict.fromkeys(before - after, "REOPENED")

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
        before = contents(self.reg.root)
        with pytest.raises(error):
            call()
        assert contents(self.reg.root) == before

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


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
