"""The end of adapters: rejected, retired, purged and collected; rows and events stay, and what others need too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lifecycle_kit import rejected, released
from registry_kit import BASE, answered, ask, audited, lora, release, seal, stack

from efface.registry import (
    Adapter,
    BrokenRegistry,
    Conflict,
    InvalidInput,
    NotFound,
    Registry,
    adapter_folder,
    adapter_for_request,
    approve_release,
    collect,
    compose,
    create_release,
    get_adapter,
    get_request,
    list_adapters,
    log,
    plan_collection,
    purge_adapter,
    rebuild,
    reject_adapter,
    retire_adapter,
    verify,
    withdraw_release,
)

Verb = Callable[..., Adapter]
END: dict[str, Verb] = {"REJECTED": reject_adapter, "RETIRED": retire_adapter, "PURGED": purge_adapter}
ALLOWED = {
    "SEALED": {"REJECTED", "RETIRED"},
    "QUALIFIED": {"RETIRED"},
    "REJECTED": {"RETIRED"},
    "RETIRED": {"PURGED"},
    "PURGED": set[str](),
}


def end(reg: Registry, adapter: Adapter, to: str, reason: str = "a reason") -> Adapter:
    return END[to](reg, adapter.digest, reason=reason, actor="ben")


def retired(reg: Registry, adapter: Adapter) -> Adapter:
    return end(reg, adapter, "RETIRED")


def purged(reg: Registry, adapter: Adapter) -> Adapter:
    retired(reg, adapter)
    return end(reg, adapter, "PURGED")


def emptied(reg: Registry, adapter: Adapter) -> Adapter:
    """Qualified by a release that is superseded by now."""
    release(reg, stack([adapter]))
    release(reg, compose(BASE, "nf4", []))
    return get_adapter(reg, adapter.digest)


REACH: dict[str, Callable[[Registry, Adapter], Adapter]] = {
    "SEALED": lambda reg, adapter: adapter,
    "QUALIFIED": emptied,
    "REJECTED": lambda reg, adapter: end(reg, adapter, "REJECTED"),
    "RETIRED": retired,
    "PURGED": purged,
}


@pytest.mark.parametrize("to", END)
@pytest.mark.parametrize("come", REACH)
def test_every_step(reg: Registry, tmp_path: Path, come: str, to: str) -> None:
    request_id, adapter = answered(reg, tmp_path, 1)
    adapter = REACH[come](reg, adapter)
    assert adapter.state == come
    if to not in ALLOWED[come]:
        rejected(reg, Conflict, lambda: end(reg, adapter, to), come)
        return
    ended = end(reg, adapter, to, "too weak")
    assert (ended.state, ended.digest) == (to, adapter.digest)
    last = log(reg)[-1]
    assert (last.kind, last.actor, last.body) == (f"adapter.{to.lower()}", "ben", {"reason": "too weak"})
    assert last.subject_id == adapter.digest
    assert list_adapters(reg, request_id, state=to) == [ended]
    rebuild(reg)
    assert get_adapter(reg, adapter.digest) == ended
    assert verify(reg, deep=True).ok


@pytest.mark.parametrize("to", END)
@pytest.mark.parametrize(("ref", "error"), [("0" * 64, NotFound), ("none", InvalidInput), ("", InvalidInput)])
def test_an_unknown_one(reg: Registry, to: str, ref: str, error: type[Exception]) -> None:
    rejected(reg, error, lambda: END[to](reg, ref, reason="r", actor="a"))


@pytest.mark.parametrize("to", END)
@pytest.mark.parametrize(
    "change", [{"reason": ""}, {"reason": "a\nb"}, {"reason": "x" * 501}, {"actor": " "}]
)
def test_reasons_and_actors_are_checked(
    reg: Registry, tmp_path: Path, to: str, change: dict[str, Any]
) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    if to == "PURGED":
        retired(reg, adapter)
    rejected(
        reg, InvalidInput, lambda: END[to](reg, adapter.digest, **{"reason": "r", "actor": "a", **change})
    )


@pytest.mark.parametrize("to", ["REJECTED", "RETIRED"])
def test_what_may_be_released_stays(reg: Registry, tmp_path: Path, to: str) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    made = create_release(reg, "prod", stack([adapter]), rendered=None, reason="r", actor="a")
    rejected(reg, Conflict, lambda: end(reg, adapter, to), "prod@1")
    approve_release(reg, "prod", 1, audit=audited(reg, made.composition).digest, approved_by="ben")
    rejected(reg, Conflict, lambda: end(reg, adapter, to), "prod@1")
    withdraw_release(reg, "prod", 1, reason="r", actor="a")
    assert end(reg, adapter, to).state == to


def test_what_is_served_stays(reg: Registry, tmp_path: Path) -> None:
    _, adapter = released(reg, tmp_path)
    release(reg, stack([adapter]), "canary")
    rejected(reg, Conflict, lambda: retired(reg, adapter), "canary@1, prod@1")
    release(reg, compose(BASE, "nf4", []), "canary")
    rejected(reg, Conflict, lambda: retired(reg, adapter), "prod@1")
    release(reg, compose(BASE, "nf4", []), "prod")
    assert retired(reg, adapter).state == "RETIRED"


def rendering(reg: Registry, work: Path, adapter: Adapter) -> Adapter:
    facts = {"composition": stack([adapter]).digest}
    return seal(reg, lora(work / "rendered", 9), list(adapter.requests), kind="rendered", facts=facts)


def test_the_rendered_adapter_that_serves_stays(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    rendered = rendering(reg, tmp_path, adapter)
    create_release(reg, "prod", stack([adapter]), rendered=rendered.digest, reason="r", actor="a")
    for to in ("REJECTED", "RETIRED"):
        rejected(reg, Conflict, lambda to=to: end(reg, rendered, to), "prod@1")


@pytest.mark.parametrize("to", ["REJECTED", "RETIRED", "PURGED"])
def test_a_rendered_adapter_that_ended_serves_nothing(reg: Registry, tmp_path: Path, to: str) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    rendered = REACH[to](reg, rendering(reg, tmp_path, adapter))
    create = lambda: create_release(  # noqa: E731
        reg, "prod", stack([adapter]), rendered=rendered.digest, reason="r", actor="a"
    )
    rejected(reg, InvalidInput, create, to)


@pytest.mark.parametrize("to", ["REJECTED", "RETIRED", "PURGED"])
def test_an_adapter_that_ended_is_not_released(reg: Registry, tmp_path: Path, to: str) -> None:
    request_id, adapter = answered(reg, tmp_path, 1)
    adapter = REACH[to](reg, adapter)
    create = lambda: create_release(  # noqa: E731
        reg, "prod", stack([adapter]), rendered=None, reason="r", actor="a"
    )
    rejected(reg, InvalidInput, create, to)
    rejected(reg, NotFound, lambda: adapter_for_request(reg, request_id), "efface unlearn")
    assert get_request(reg, request_id).state == "TRAINED"
    again = seal(reg, lora(tmp_path / "again", 2), [request_id])
    assert adapter_for_request(reg, request_id) == again


def stacked(reg: Registry, work: Path) -> tuple[Adapter, Adapter]:
    """One adapter, and another that was trained on top of it; neither is served."""
    _, below = answered(reg, work, 1)
    release(reg, stack([below]))
    above = seal(reg, lora(work / "above", 2), [ask(reg)], trained_on=stack([below]).digest)
    release(reg, compose(BASE, "nf4", []))
    return below, above


def test_what_others_are_trained_on_stays(reg: Registry, tmp_path: Path) -> None:
    below, above = stacked(reg, tmp_path)
    rejected(reg, Conflict, lambda: retired(reg, below), above.digest)
    retired(reg, above)
    assert retired(reg, below).state == "RETIRED"


def test_trained_on_is_a_composition_on_the_same_base(reg: Registry, tmp_path: Path) -> None:
    _, below = released(reg, tmp_path)
    folder, other = lora(tmp_path / "above", 2), ask(reg)
    on = {"trained_on": stack([below]).digest}
    elsewhere = "sha256:" + "c" * 64
    rejected(reg, InvalidInput, lambda: seal(reg, folder, [other], base=elsewhere, **on), "base")
    rejected(reg, NotFound, lambda: seal(reg, folder, [other], trained_on="sha256:" + "1" * 64))
    rejected(reg, InvalidInput, lambda: seal(reg, folder, [other], kind="rendered", **on), "trained")
    assert seal(reg, folder, [other], **on).trained_on == stack([below]).digest


def test_a_purge_takes_the_bytes_and_leaves_the_row(reg: Registry, tmp_path: Path) -> None:
    """Two adapters share their config; it stays for the other one."""
    _, one = answered(reg, tmp_path, 1)
    _, two = answered(reg, tmp_path, 2)
    assert one.files["adapter_config.json"] == two.files["adapter_config.json"]
    adapter_folder(reg, one.digest)
    purged(reg, one)
    assert verify(reg, deep=True).ok
    planned = plan_collection(reg)
    mine = {one.digest, one.files["adapter_model.safetensors"]}
    assert {item.name for item in planned.items if item.kind == "blob"} == mine
    assert {item.reason for item in planned.items} == {"purged"}
    done = collect(reg, planned, actor="ana")
    assert done.deleted == planned.items
    assert set(reg.blobs) == {two.digest, *two.files.values()}
    assert not (reg.root / "cache" / "adapters" / one.digest.removeprefix("sha256:")).exists()
    assert get_adapter(reg, one.digest).state == "PURGED"
    assert get_adapter(reg, one.digest).files == one.files
    with pytest.raises(BrokenRegistry):
        adapter_folder(reg, one.digest)
    assert adapter_folder(reg, two.digest).is_dir()
    rebuild(reg)
    assert verify(reg, deep=True).ok
    purged(reg, two)
    collect(reg, plan_collection(reg), actor="ana")
    assert list(reg.blobs) == []
    assert verify(reg, deep=True).ok


def test_a_purged_one_is_not_sealed_again(reg: Registry, tmp_path: Path) -> None:
    request_id, adapter = answered(reg, tmp_path, 1)
    purged(reg, adapter)
    folder = tmp_path / "lora-1"
    rejected(reg, Conflict, lambda: seal(reg, folder, [request_id]), "purged")
    collect(reg, plan_collection(reg), actor="ana")
    rejected(reg, Conflict, lambda: seal(reg, folder, [request_id]), "purged")


def test_files_of_a_purged_one_come_back_with_another_adapter(reg: Registry, tmp_path: Path) -> None:
    """The same weights, sealed for another request, are another adapter, which needs them."""
    _, adapter = answered(reg, tmp_path, 1)
    purged(reg, adapter)
    planned = plan_collection(reg)
    again = seal(reg, tmp_path / "lora-1", [ask(reg)])
    assert again.files == adapter.files
    left = {item.name for item in collect(reg, planned, actor="ana").left}
    assert set(adapter.files.values()) <= left
    assert verify(reg, deep=True).ok
    collect(reg, plan_collection(reg), actor="ana")
    third = seal(reg, tmp_path / "lora-1", [ask(reg)])
    assert adapter_folder(reg, third.digest).is_dir()
    assert verify(reg, deep=True).ok


def test_a_purge_gives_up_exactly_what_sealing_took(reg: Registry, tmp_path: Path) -> None:
    adapters = [answered(reg, tmp_path, seed)[1] for seed in (1, 2, 3)]
    config = adapters[0].files["adapter_config.json"]
    uses = lambda: _uses(reg)[config]  # noqa: E731
    assert uses() == 3
    for left, adapter in enumerate(adapters):
        purged(reg, adapter)
        assert uses() == 2 - left
    assert set(_uses(reg).values()) == {0}


def _uses(reg: Registry) -> dict[str, int]:
    with reg.read() as db:
        return {row["digest"]: row["uses"] for row in db.find("blob")}


def test_versions_with_a_purged_adapter_cannot_be_returned_to(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    before = release(reg, stack([adapter])).composition
    release(reg, compose(BASE, "nf4", []))
    purged(reg, adapter)
    create = lambda: create_release(  # noqa: E731
        reg, "prod", before, rendered=None, reason="back", actor="a"
    )
    rejected(reg, InvalidInput, create, "PURGED")
    assert verify(reg, deep=True).ok
