"""A release that takes a request's forgetting away without saying so: nothing is broken, and `verify` names it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lifecycle_kit import MERGED, alone, proven, released, serve, shredded, state
from registry_kit import BASE, Clock, answered, ask, audited, release, stack
from tamper_kit import everything_happened, forge

from efface.registry import (
    Composition,
    Registry,
    close_request,
    compose,
    create_release,
    log,
    verify,
    withdraw_release,
)

Forged = tuple[str, str, Mapping[str, Any]]
BARE = compose(BASE, "nf4", [])


def turned(
    reg: Registry, composition: Composition, old: int, new: int, channel: str = "prod"
) -> list[Forged]:
    """The events by which version `new` replaces `old`, and nothing else."""
    create_release(reg, channel, composition, rendered=None, reason="r", actor="eve")
    audit = audited(reg, composition, precision=composition.quantization).digest

    def moved(to: str, version: int, **body: Any) -> Forged:
        return f"release.{to}", f"{channel}@{version}", {"channel": channel, "version": version, **body}

    return [
        moved("approved", new, audit=audit),
        moved("superseded", old, by=new),
        moved("active", new, audit=audit),
    ]


def reopened(request_id: str) -> Forged:
    return "request.reopened", request_id, {"release": "prod@2", "reason": "r"}


def named(reg: Registry, seq: int, request_id: str) -> None:
    (problem,) = verify(reg).problems
    assert (problem.kind, problem.where) == ("replay", f"event {seq}")
    assert f"left nothing that forgets {request_id}" in problem.found


def test_at_the_end_of_the_ledger(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    forge(reg, *turned(reg, BARE, 1, 2))
    named(reg, len(log(reg)), request_id)


def test_before_the_next_event_of_another_kind(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    other = ask(reg)
    forge(reg, *turned(reg, BARE, 1, 2), ("request.verified", other, {}), reopened(request_id))
    named(reg, len(log(reg)) - 1, request_id)


def test_of_two_requests_only_one_said_so(reg: Registry, tmp_path: Path) -> None:
    made = [answered(reg, tmp_path, seed) for seed in (1, 2)]
    release(reg, stack([adapter for _, adapter in made]))
    forge(reg, *turned(reg, BARE, 1, 2), reopened(made[0][0]))
    named(reg, len(log(reg)), made[1][0])


@pytest.mark.parametrize("closed", [False, True])
def test_however_far_it_had_come(reg: Registry, tmp_path: Path, closed: bool) -> None:
    request_id, _ = shredded(reg, tmp_path)
    if closed:
        close_request(reg, request_id, actor="ben")
    forge(reg, *turned(reg, BARE, 1, 2))
    named(reg, len(log(reg)), request_id)


def test_a_base_that_was_made_for_it_is_left(reg: Registry) -> None:
    request_id = ask(reg)
    proven(reg, request_id)
    serve(reg, alone())
    forge(reg, *turned(reg, alone("sha256:" + "e" * 64), 1, 2))
    named(reg, len(log(reg)), request_id)


def test_a_release_that_is_withdrawn_while_it_is_served(reg: Registry, tmp_path: Path) -> None:
    """No verb does that; an event could."""
    request_id, _ = released(reg, tmp_path)
    forge(reg, ("release.withdrawn", "prod@1", {"channel": "prod", "version": 1, "reason": "r"}))
    named(reg, len(log(reg)), request_id)


def test_what_said_so_is_whole(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    forge(reg, *turned(reg, BARE, 1, 2), reopened(request_id))
    assert verify(reg).problems[0].kind == "projection"  # nothing was projected; the replay went through
    assert [one for one in verify(reg).problems if one.kind == "replay"] == []


def test_nothing_is_due_where_something_still_forgets_it(reg: Registry, tmp_path: Path) -> None:
    request_id, adapter = released(reg, tmp_path)
    release(reg, stack([adapter]), "canary")
    release(reg, BARE)  # canary holds it
    assert (state(reg, request_id), verify(reg).problems) == ("RELEASED", ())
    proven(reg, request_id)
    serve(reg, compose(MERGED, "bf16", []))
    release(reg, BARE, "canary")  # prod's base was made for it
    assert (state(reg, request_id), verify(reg).problems) == ("RELEASED", ())
    create_release(reg, "canary", stack([adapter]), rendered=None, reason="r", actor="ana")
    withdraw_release(reg, "canary", 3, reason="r", actor="ana")
    serve(reg, BARE)
    assert (state(reg, request_id), verify(reg).problems) == ("REOPENED", ())


def test_a_registry_in_which_everything_happened(tmp_path: Path) -> None:
    with Registry.open(everything_happened(tmp_path), clock=Clock()) as reg:
        assert verify(reg).ok
