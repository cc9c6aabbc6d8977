"""Claims: each level, the evidence under it, and that no more is claimed than it shows, whatever happens later."""

from pathlib import Path
from typing import Any

import pytest
from lifecycle_kit import MERGED, alone, measured, proven, rejected, released, serve, shredded, state
from registry_kit import BASE, accept, ask, audited, lora, release, seal, stack

from efface.registry import (
    Conflict,
    GateFailed,
    InvalidInput,
    NotFound,
    Registry,
    close_request,
    compose,
    evidence_of,
    get_request,
    log,
    rebuild,
    shred_request,
    step_request,
    supported_claim,
    verify,
)
from efface.registry import bundle_facts as facts

MADE = {"merge": "consolidated", "retrain": "erased", "shard": "erased"}


def close(reg: Registry, request_id: str, claim: str | None = None):
    return close_request(reg, request_id, claim=claim, actor="ben")


def test_a_served_adapter_suppresses(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    assert supported_claim(reg, request_id) == "suppressed"
    shred_request(reg, request_id, actor="ana")
    for more in ("consolidated", "erased"):
        rejected(reg, GateFailed, lambda claim=more: close(reg, request_id, claim), "suppressed")
    closed = close(reg, request_id)
    assert (closed.state, closed.claim_level) == ("CLOSED", "suppressed")
    assert (log(reg)[-1].kind, log(reg)[-1].body) == ("request.closed", {"claim": "suppressed"})
    rejected(reg, Conflict, lambda: close(reg, request_id), "CLOSED")


@pytest.mark.parametrize("method", MADE)
def test_a_base_made_for_it_is_more(reg: Registry, tmp_path: Path, method: str) -> None:
    request_id, _ = shredded(reg, tmp_path, merged=True)
    evidence = proven(reg, request_id, method=method)
    assert (evidence.level, evidence.method, evidence.artefact) == (MADE[method], method, MERGED)
    assert evidence_of(reg, request_id) == [evidence]
    assert supported_claim(reg, request_id) == "suppressed"  # the base before is still served
    serve(reg, alone())
    assert state(reg, request_id) == "SHREDDED"  # forgotten by its base now, without an adapter
    assert supported_claim(reg, request_id) == MADE[method]
    if method == "merge":
        rejected(reg, GateFailed, lambda: close(reg, request_id, "erased"), "consolidated")
    assert close(reg, request_id).claim_level == MADE[method]
    assert verify(reg, deep=True).ok


def test_less_may_be_claimed(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = shredded(reg, tmp_path, merged=True)
    proven(reg, request_id, method="retrain")
    serve(reg, alone())
    assert close(reg, request_id, "consolidated").claim_level == "consolidated"


def test_erasing_needs_no_adapter(reg: Registry) -> None:
    """A model retrained without the rows answers a request that nothing was ever trained for."""
    request_id = ask(reg, basis="gdpr17")
    assert supported_claim(reg, request_id) is None
    proven(reg, request_id, method="shard")
    assert state(reg, request_id) == "RECEIVED"
    rejected(reg, Conflict, lambda: close(reg, request_id), "shredded")
    with pytest.raises(Conflict, match="accepted by a person"):
        serve(reg, alone())
    accept(reg, request_id)
    serve(reg, alone())
    assert state(reg, request_id) == "RELEASED"
    shred_request(reg, request_id, actor="ana")
    assert close(reg, request_id).claim_level == "erased"


def test_evidence_may_come_after_the_base_is_served(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = shredded(reg, tmp_path, merged=True)
    serve(reg, alone(), reason="merged")
    assert state(reg, request_id) == "REOPENED"
    proven(reg, request_id)
    assert state(reg, request_id) == "RELEASED"
    assert close(reg, request_id).claim_level == "consolidated"
    last = [(event.kind, event.body) for event in log(reg)][-3:]
    assert [kind for kind, _ in last] == ["request.audited", "request.released", "request.closed"]


def test_a_claim_ends_when_the_base_before_is_served_again(reg: Registry, tmp_path: Path) -> None:
    request_id, adapter = shredded(reg, tmp_path, merged=True)
    proven(reg, request_id)
    serve(reg, alone())
    close(reg, request_id)
    release(reg, stack([adapter]), "canary", reason="to compare")
    again = get_request(reg, request_id)
    assert (again.state, again.claim_level) == ("RELEASED", None)
    assert supported_claim(reg, request_id) == "suppressed"
    reopened = [event for event in log(reg) if event.kind == "request.reopened"]
    assert reopened[-1].body == {"release": "canary@1", "reason": "to compare"}
    assert close(reg, request_id).claim_level == "suppressed"


def test_evidence_counts_until_the_base_before_is_released_again(reg: Registry, tmp_path: Path) -> None:
    request_id, adapter = shredded(reg, tmp_path, merged=True)
    proven(reg, request_id)
    release(reg, stack([adapter]))
    assert supported_claim(reg, request_id) == "suppressed"
    rejected(reg, GateFailed, lambda: close(reg, request_id, "consolidated"), "suppressed")
    serve(reg, alone())
    assert supported_claim(reg, request_id) == "consolidated"


def test_the_base_before_may_not_be_served_bare_either(reg: Registry, tmp_path: Path) -> None:
    request_id = ask(reg)
    proven(reg, request_id, method="retrain")
    assert supported_claim(reg, request_id) == "erased"
    release(reg, compose(BASE, "nf4", []), "canary")
    assert supported_claim(reg, request_id) is None


def test_the_base_before_is_named_or_that_of_its_adapters(reg: Registry, tmp_path: Path) -> None:
    bare = ask(reg)
    digest = measured(reg, bare).digest
    values: dict[str, Any] = {"audit": digest, "replaces": None}
    rejected(reg, InvalidInput, lambda: proven(reg, bare, **values), "no adapter")
    rejected(reg, InvalidInput, lambda: proven(reg, bare, audit=digest, replaces=MERGED), "another base")
    rejected(reg, InvalidInput, lambda: proven(reg, bare, audit=digest, replaces="a b"))
    request_id, _ = shredded(reg, tmp_path, merged=True)
    assert log(reg)[-1].kind == "request.shredded"
    proven(reg, request_id, replaces=None)
    record: Any = log(reg, kind="evidence.recorded")[-1].body["record"]
    assert record["replaces"] == BASE


def test_leaving_the_base_made_for_it_reopens(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = shredded(reg, tmp_path, merged=True)
    proven(reg, request_id)
    serve(reg, alone())
    serve(reg, alone("sha256:" + "e" * 64))
    assert state(reg, request_id) == "REOPENED"


def test_a_base_made_for_one_does_not_forget_another(reg: Registry, tmp_path: Path) -> None:
    one, first = released(reg, tmp_path, 1)
    two = ask(reg)
    second = seal(reg, lora(tmp_path / "second", 2), [two])
    release(reg, stack([first, second]))
    proven(reg, one)
    serve(reg, alone())
    assert (state(reg, one), state(reg, two)) == ("RELEASED", "REOPENED")
    assert supported_claim(reg, two) is None


def test_a_withdrawn_request_does_not_hold_up_its_base(reg: Registry) -> None:
    request_id = ask(reg)
    proven(reg, request_id)
    step_request(reg, request_id, "WITHDRAWN", actor="ana", reason="settled")
    serve(reg, alone())
    assert state(reg, request_id) == "WITHDRAWN"
    rejected(reg, Conflict, lambda: proven(reg, request_id, statement="again"), "WITHDRAWN")


def test_reopening_clears_the_claim(reg: Registry, tmp_path: Path) -> None:
    request_id, adapter = shredded(reg, tmp_path, merged=True)
    close(reg, request_id)
    release(reg, compose(BASE, "nf4", []), reason="a court order")
    again = get_request(reg, request_id)
    assert (again.state, again.claim_level) == ("REOPENED", None)
    assert supported_claim(reg, request_id) is None
    release(reg, stack([adapter]))
    assert state(reg, request_id) == "RELEASED"
    assert close(reg, request_id).claim_level == "suppressed"  # its rows were shredded before
    assert rebuild(reg) == len(log(reg))
    assert verify(reg, deep=True).ok


def test_rows_that_are_there_are_shredded_first(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    for claim in (None, "suppressed", "erased"):
        rejected(reg, Conflict, lambda claim=claim: close(reg, request_id, claim), "shred")
    rejected(reg, NotFound, lambda: close(reg, "req-000009"))
    rejected(reg, InvalidInput, lambda: close(reg, request_id, "forgotten"), "claim")


def test_what_ended_is_not_closed(reg: Registry) -> None:
    request_id = ask(reg)
    step_request(reg, request_id, "REFUSED", actor="ana", reason="no identity")
    shred_request(reg, request_id, actor="ana")
    rejected(reg, Conflict, lambda: close(reg, request_id), "REFUSED")


def wrong_audits(reg: Registry) -> dict[str, Any]:
    adapter = seal(reg, lora(reg.root.parent / "other", 9), [ask(reg)], base=MERGED, quantization="bf16")
    stacked = compose(MERGED, "bf16", [(adapter.digest, 1)])
    return {
        "failed": audited(reg, alone(), precision="bf16", verdict="fail").digest,
        "at another precision": audited(reg, alone(), precision="nf4").digest,
        "of another base": audited(reg, alone(BASE), precision="bf16").digest,
        "with an adapter": audited(reg, stacked, precision="bf16").digest,
    }


@pytest.mark.parametrize("kind", ["failed", "at another precision", "of another base", "with an adapter"])
def test_evidence_needs_a_passing_audit_of_that_base_alone(reg: Registry, kind: str) -> None:
    request_id = ask(reg)
    digest = wrong_audits(reg)[kind]
    rejected(reg, GateFailed, lambda: proven(reg, request_id, audit=digest), "Audit that model")
    assert evidence_of(reg, request_id) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"base_withdrawn": False}, InvalidInput),
        ({"method": "prayer"}, InvalidInput),
        ({"artefact": "a b"}, InvalidInput),
        ({"artefact": ""}, InvalidInput),
        ({"statement": ""}, InvalidInput),
        ({"statement": "x" * 2001}, InvalidInput),
        ({"statement": "a\nb"}, InvalidInput),
        ({"audit": "0" * 64}, NotFound),
        ({"audit": "none"}, InvalidInput),
        ({"actor": ""}, InvalidInput),
    ],
)
def test_bad_evidence_writes_nothing(reg: Registry, change: dict[str, Any], error: type[Exception]) -> None:
    request_id = ask(reg)
    digest = measured(reg, request_id).digest
    rejected(reg, error, lambda: proven(reg, request_id, **{"audit": digest, **change}))
    rejected(reg, NotFound, lambda: proven(reg, "req-000009", audit=digest))
    rejected(reg, NotFound, lambda: evidence_of(reg, "req-000009"))


def test_evidence_needs_an_audit_that_measured_this_request(reg: Registry) -> None:
    request_id, other = ask(reg), ask(reg)
    silent = audited(reg, alone(), precision="bf16")
    assert silent.requests is None
    for audit, came in (
        (silent, "does not say what it measured"),
        (measured(reg, other), "one of others"),
        (measured(reg), "one of others"),
    ):
        rejected(reg, GateFailed, lambda audit=audit: proven(reg, request_id, audit=audit.digest), came)
    both = measured(reg, other, request_id, other)
    assert both.requests == (request_id, other)
    assert proven(reg, request_id, audit=both.digest).level == "consolidated"
    record: Any = log(reg, kind="audit.recorded")[-1].body["record"]
    assert record["requests"] == [request_id, other]
    assert verify(reg, deep=True).ok


@pytest.mark.parametrize("method", MADE)
def test_what_nobody_can_measure_any_more_is_suppressed_at_most(
    reg: Registry, tmp_path: Path, method: str
) -> None:
    """Shredded before the merge was audited: the request stays answered, and no more than that is claimed."""
    request_id, _ = shredded(reg, tmp_path)
    silent = audited(reg, alone(), precision="bf16").digest
    rejected(reg, GateFailed, lambda: proven(reg, request_id, audit=silent), "does not say")
    evidence = proven(reg, request_id, method=method, audit=measured(reg).digest)
    assert (evidence.level, evidence.method) == ("suppressed", method)
    serve(reg, alone())
    assert (state(reg, request_id), supported_claim(reg, request_id)) == ("SHREDDED", "suppressed")
    rejected(reg, GateFailed, lambda: close(reg, request_id, MADE[method]), "suppressed")
    assert close(reg, request_id).claim_level == "suppressed"
    assert rebuild(reg) == len(log(reg))
    assert verify(reg, deep=True).ok
    (row,) = facts.facts(log(reg), {})["requests"]
    assert (row["claim"], row["supported"]) == ("suppressed", "suppressed")


def test_no_audit_measured_rows_that_were_shredded_before(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = shredded(reg, tmp_path, merged=True)
    before = len(log(reg))
    assert measured(reg, request_id).requests == (request_id,)  # it is there already
    assert len(log(reg)) == before
    rejected(reg, Conflict, lambda: measured(reg, request_id, precision="nf4"), "shredded")
    rejected(reg, NotFound, lambda: measured(reg, "req-000009"), "unknown")


def test_a_claim_is_raised_when_evidence_shows_more(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = shredded(reg, tmp_path, merged=True)
    close(reg, request_id)
    proven(reg, request_id)
    rejected(reg, Conflict, lambda: close(reg, request_id), "CLOSED as suppressed")
    rejected(reg, GateFailed, lambda: close(reg, request_id, "consolidated"), "suppressed")
    serve(reg, alone())
    assert get_request(reg, request_id).claim_level == "suppressed"  # nobody raises it but somebody
    raised = close(reg, request_id)
    assert (raised.state, raised.claim_level) == ("CLOSED", "consolidated")
    last = log(reg)[-1]
    assert (last.kind, last.actor, last.body) == ("request.claimed", "ben", {"claim": "consolidated"})
    proven(reg, request_id, method="retrain")
    assert close(reg, request_id, "erased").claim_level == "erased"
    for lower in ("suppressed", "consolidated", "erased", None):
        rejected(reg, Conflict, lambda lower=lower: close(reg, request_id, lower), "CLOSED as erased")
    assert rebuild(reg) == len(log(reg))
    assert verify(reg, deep=True).ok
    assert facts.facts(log(reg), {})["requests"][0]["claim"] == "erased"
    release(reg, compose(BASE, "nf4", []), "canary")
    assert (state(reg, request_id), get_request(reg, request_id).claim_level) == ("REOPENED", None)


def test_a_claim_ends_with_its_adapter_though_a_base_is_served_elsewhere(
    reg: Registry, tmp_path: Path
) -> None:
    """The evidence does not count, as the base before stays, and nothing suppresses on it any more."""
    request_id, _ = shredded(reg, tmp_path, merged=True)
    proven(reg, request_id)
    serve(reg, alone(), "canary")
    assert close(reg, request_id).claim_level == "suppressed"
    release(reg, compose(BASE, "nf4", []), reason="a mistake")
    assert supported_claim(reg, request_id) is None
    assert get_request(reg, request_id).claim_level is None
    assert [event.kind for event in log(reg)].count("request.reopened") == 1


def test_recording_it_twice_is_recording_it_once(reg: Registry) -> None:
    request_id = ask(reg)
    first = proven(reg, request_id)
    before = len(log(reg))
    assert proven(reg, request_id, actor="someone else") == first
    assert len(log(reg)) == before
    other = proven(reg, request_id, statement="and checked")
    assert evidence_of(reg, request_id) == [first, other]
