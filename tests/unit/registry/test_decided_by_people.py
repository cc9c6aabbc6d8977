"""A request on a legal basis is trained for and released only when people have verified and accepted it."""

from pathlib import Path
from typing import get_args

import pytest
from registry_kit import accept, answered, ask, contents, lora, release, seal, stack

from efface.registry import Conflict, Registry, get_request, ledger, log, step_request, verify
from efface.registry.requests import LEGAL_BASES, advance, check_accepted
from efface.registry.types import Basis

OWN = sorted(set(get_args(Basis)) - set(LEGAL_BASES))


def kinds(reg: Registry, request_id: str) -> list[str]:
    return [event.kind for event in log(reg) if event.subject_id == request_id]


def test_every_basis_is_one_or_the_other() -> None:
    assert (sorted(LEGAL_BASES), OWN) == (["ccpa", "copyright", "gdpr17", "uk_gdpr"], ["safety", "test"])


@pytest.mark.parametrize("basis", LEGAL_BASES)
@pytest.mark.parametrize("kind", ["trained", "consolidated"])
def test_sealing_waits_for_people(reg: Registry, tmp_path: Path, basis: str, kind: str) -> None:
    folder = lora(tmp_path / "lora")
    request_id = ask(reg, basis=basis)
    for state, named in (("VERIFIED", "verify req-000001 && efface request accept"), ("ACCEPTED", "accept")):
        before = contents(reg.root)
        with pytest.raises(Conflict, match=f"efface request {named} req-000001"):
            seal(reg, folder, [request_id], kind=kind)
        assert contents(reg.root) == before
        step_request(reg, request_id, state, actor="dora")
    made = seal(reg, folder, [request_id], kind=kind)
    assert made.state == "SEALED"
    expected = ["request.received", "request.verified", "request.accepted"]
    assert kinds(reg, request_id) == expected + (["request.trained"] if kind == "trained" else [])
    assert verify(reg).ok


def test_one_undecided_request_of_several_is_enough(reg: Registry, tmp_path: Path) -> None:
    ids = [ask(reg), ask(reg, b"two", basis="ccpa")]
    with pytest.raises(Conflict, match=r"req-000002 \(ccpa\)"):
        seal(reg, lora(tmp_path / "lora"), ids)
    assert get_request(reg, ids[0]).state == "RECEIVED"
    accept(reg, ids[1])
    seal(reg, lora(tmp_path / "again", 1), ids)
    assert {get_request(reg, one).state for one in ids} == {"TRAINED"}


@pytest.mark.parametrize("basis", OWN)
def test_the_operator_s_own_requests_walk_by_themselves(reg: Registry, tmp_path: Path, basis: str) -> None:
    request_id = ask(reg, basis=basis)
    seal(reg, lora(tmp_path / "lora"), [request_id])
    assert kinds(reg, request_id)[1:] == ["request.verified", "request.accepted", "request.trained"]


def test_a_request_that_came_back_was_decided_before(reg: Registry, tmp_path: Path) -> None:
    request_id = accept(reg, ask(reg, basis="gdpr17"))
    adapter = seal(reg, lora(tmp_path / "lora"), [request_id])
    release(reg, stack([adapter]))
    release(reg, stack([]))
    assert get_request(reg, request_id).state == "REOPENED"
    check_accepted(get_request(reg, request_id))
    seal(reg, lora(tmp_path / "again", 1), [request_id])
    assert get_request(reg, request_id).state == "TRAINED"


def test_no_other_way_walks_it_either(reg: Registry, tmp_path: Path) -> None:
    """Releasing evidence or a consolidated adapter moves requests too: by the same `advance`."""
    request_id = ask(reg, basis="copyright")
    before = log(reg)
    with pytest.raises(Conflict, match="verified and accepted by a person"), reg.write("ana") as tx:
        advance(tx, request_id, "RELEASED", {})
    assert log(reg) == before
    mine, adapter = answered(reg, tmp_path, 1)
    release(reg, stack([adapter]))
    assert get_request(reg, mine).state == "RELEASED"


def test_ledgers_of_before_still_verify(reg: Registry, tmp_path: Path) -> None:
    """Until now sealing wrote these events by itself, in the name of whoever sealed: the fold takes them."""
    request_id = ask(reg, basis="gdpr17")
    with reg.write("trainer") as tx:
        for state in ("verified", "accepted", "trained"):
            ledger.append(tx, f"request.{state}", request_id, {"adapter": "sha256:" + "a" * 64})
    assert ledger.rebuild(reg) == len(log(reg))
    assert verify(reg).ok
