"""Shredding a request: when it may be, what is left of its rows, deaths on the way, and repeat requests after."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from lifecycle_kit import rejected, released, shredded, state
from registry_kit import BASE, CANARY, Clock, answered, ask, audited, contents, lora, release, seal, stack
from vault_kit import every_death, leaks, traces

from efface.registry import (
    Conflict,
    NotFound,
    Registry,
    close_request,
    compose,
    create_release,
    get_request,
    list_adapters,
    log,
    plan_shredding,
    read_payload,
    rebuild,
    requests_of_subject,
    shred_request,
    step_request,
    verify,
)

MARKS = traces(CANARY.encode())


def shred(reg: Registry, request_id: str):
    return shred_request(reg, request_id, actor="ana")


def unfinished(root: Path, request_id: str) -> None:
    """What a training that was interrupted leaves."""
    for place in (f"work/{request_id}/round-1", f"cache/rows/{request_id}"):
        (root / place).mkdir(parents=True)
        (root / place / "rows.json").write_text(CANARY)


def to_accepted(reg: Registry, request_id: str) -> None:
    step_request(reg, request_id, "VERIFIED", actor="ana")
    step_request(reg, request_id, "ACCEPTED", actor="ana")


def to_trained(reg: Registry, request_id: str) -> None:
    seal(reg, lora(reg.root.parent / request_id, 5), [request_id])


def to_audited(reg: Registry, request_id: str) -> None:
    to_trained(reg, request_id)
    step_request(reg, request_id, "AUDITED", actor="ana")


def to_reopened(reg: Registry, request_id: str) -> None:
    to_trained(reg, request_id)
    release(reg, stack([seal(reg, lora(reg.root.parent / "one", 6), [request_id])]))
    release(reg, compose(BASE, "nf4", []))


NOT_YET: dict[str, Callable[[Registry, str], object]] = {
    "RECEIVED": lambda reg, request_id: None,
    "VERIFIED": lambda reg, request_id: step_request(reg, request_id, "VERIFIED", actor="ana"),
    "ACCEPTED": to_accepted,
    "TRAINED": to_trained,
    "AUDITED": to_audited,
    "REOPENED": to_reopened,
}


@pytest.mark.parametrize("name", NOT_YET)
def test_its_rows_are_still_needed(reg: Registry, name: str) -> None:
    request_id = ask(reg)
    NOT_YET[name](reg, request_id)
    assert state(reg, request_id) == name
    rejected(reg, Conflict, lambda: shred(reg, request_id), name)
    rejected(reg, Conflict, lambda: plan_shredding(reg, request_id), name)
    assert read_payload(reg, request_id) == CANARY.encode()


@pytest.mark.parametrize("name", ["REFUSED", "WITHDRAWN"])
def test_what_ended_is_shredded_and_stays_ended(reg: Registry, name: str) -> None:
    request_id = ask(reg)
    step_request(reg, request_id, name, actor="ana", reason="no identity")
    done = shred(reg, request_id)
    assert (done.state, done.shredded_at) == (name, log(reg)[-1].at)
    assert verify(reg, deep=True).ok


def test_nothing_of_the_rows_is_left(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    unfinished(reg.root, request_id)
    assert leaks(reg.root, MARKS) != []
    plan = plan_shredding(reg, request_id)
    assert {Path(file.path).name for file in plan.files} == {"rows.json"}
    done = shred(reg, request_id)
    assert (done.state, done.shredding_at is not None) == ("SHREDDED", True)
    assert [event.kind for event in log(reg)][-2:] == ["request.shredding", "request.shredded"]
    assert leaks(reg.root, MARKS) == []
    with pytest.raises(NotFound, match="shredded at"):
        read_payload(reg, request_id)
    rebuild(reg)
    assert get_request(reg, request_id) == done
    assert verify(reg, deep=True).ok


def test_again_is_not_an_error(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = shredded(reg, tmp_path)
    done = get_request(reg, request_id)
    before = contents(reg.root)
    assert shred(reg, request_id) == done
    assert contents(reg.root) == before
    assert plan_shredding(reg, request_id).files == ()


@pytest.mark.parametrize("backup", ["of the entry", "from before the request", "with a damaged mark"])
def test_a_vault_restored_from_a_backup_is_shredded_again(reg: Registry, tmp_path: Path, backup: str) -> None:
    request_id, _ = released(reg, tmp_path)
    shutil.copytree(reg.vault.folder, tmp_path / "backup")
    done = shred(reg, request_id)
    events = log(reg)
    shutil.rmtree(reg.vault.folder)
    (tmp_path / "backup").rename(reg.vault.folder)
    mark = reg.vault.folder / f"{request_id}.shredded"
    if backup != "of the entry":
        reg.vault.path(request_id).unlink()
    if backup == "with a damaged mark":
        mark.write_bytes(b"?")
    unfinished(reg.root, request_id)
    assert [problem.kind for problem in verify(reg).problems] == ["vault-damaged"]
    assert shred(reg, request_id) == done
    assert log(reg) == events
    assert leaks(reg.root, MARKS) == []
    assert (reg.vault.has(request_id), mark.exists()) == (False, True)
    assert verify(reg, deep=True).ok


def test_shredded_again_without_a_vault_makes_none(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = shredded(reg, tmp_path)
    shutil.rmtree(reg.vault.folder)
    assert shred(reg, request_id).shredded_at
    assert not reg.vault.folder.exists()


def test_other_requests_keep_their_rows(reg: Registry, tmp_path: Path) -> None:
    other = ask(reg, b"other rows", subject_ref="Zoë")
    unfinished(reg.root, other)
    shredded(reg, tmp_path)
    assert read_payload(reg, other) == b"other rows"
    assert (reg.root / "work" / other).exists()


def test_a_repeat_request_is_still_recognised(reg: Registry, tmp_path: Path) -> None:
    request_id = ask(reg, subject_ref="Zoë Canary")
    release(reg, stack([seal(reg, lora(tmp_path / "lora"), [request_id])]))
    shred(reg, request_id)
    (known,) = requests_of_subject(reg, "Zoë Canary")
    assert (known.id, known.state) == (request_id, "SHREDDED")
    again = ask(reg, subject_ref="Zoë Canary")
    assert [found.id for found in requests_of_subject(reg, "Zoë Canary")] == [request_id, again]


def test_the_commitment_cannot_be_tested_any_more(reg: Registry, tmp_path: Path) -> None:
    """The key under it is gone: the same rows asked for again are committed to otherwise."""
    request_id, _ = shredded(reg, tmp_path)
    assert get_request(reg, ask(reg)).commitment != get_request(reg, request_id).commitment


def test_a_training_that_runs_is_not_disturbed(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    unfinished(reg.root, request_id)
    with FileLock(reg.root / "work" / f"{request_id}.lock"):
        rejected(reg, Conflict, lambda: shred(reg, request_id), "training")
    assert get_request(reg, request_id).shredding_at is None
    assert shred(reg, request_id).state == "SHREDDED"


def test_links_are_refused_before_anything_is_said(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    unfinished(reg.root, request_id)
    (reg.root / "work" / request_id / "link").symlink_to(tmp_path)
    rejected(reg, Conflict, lambda: shred(reg, request_id), "link")
    assert get_request(reg, request_id).shredding_at is None


def test_rows_that_are_elsewhere_cannot_be_shredded(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    reg.vault.folder.rename(tmp_path / "elsewhere")
    rejected(reg, NotFound, lambda: shred(reg, request_id), "vault")
    (tmp_path / "elsewhere").rename(reg.vault.folder)
    assert shred(reg, request_id).state == "SHREDDED"


def test_an_unknown_request(reg: Registry) -> None:
    rejected(reg, NotFound, lambda: shred(reg, "req-000009"))
    rejected(reg, NotFound, lambda: shred(reg, "../master"))


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, str]:
    """A registry, closed, with a released request, unfinished work, and a release without it at hand."""
    with Registry.open(tmp_path / "prepared", create=True, clock=Clock()) as reg:
        request_id, _ = released(reg, tmp_path)
        unfinished(reg.root, request_id)
        create_release(reg, "prod", compose(BASE, "nf4", []), rendered=None, reason="back", actor="ana")
        audited(reg, compose(BASE, "nf4", []))
    return tmp_path / "prepared", request_id


@pytest.mark.parametrize(
    "meanwhile", ["nothing", "rolled back", "trained again", "released again", "withdrawn"]
)
def test_killed_anywhere_it_ends_when_repeated(
    prepared: tuple[Path, str], tmp_path: Path, meanwhile: str
) -> None:
    """Whatever becomes of the request between."""
    source, request_id = prepared
    root, begun = tmp_path / "copy", 0

    def make() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(source, root)

    for _ in every_death(make, lambda: shred(Registry.open(root), request_id)):
        reg = Registry.open(root, clock=Clock())
        assert verify(reg, deep=True).ok
        if get_request(reg, request_id).shredding_at is None:
            continue
        begun += 1
        wanted = MEANWHILE[meanwhile](reg, request_id)
        assert verify(reg, deep=True).ok
        done = shred(reg, request_id)
        assert (done.state, done.shredded_at is not None) == (wanted, True)
        assert leaks(root, MARKS) == []
        assert verify(reg, deep=True).ok
        if wanted in ("RELEASED", "SHREDDED"):
            assert close_request(reg, request_id, actor="ana").claim_level == "suppressed"
        rebuild(reg)
        assert verify(reg, deep=True).ok
    assert begun > 10


def roll_back(reg: Registry, request_id: str) -> str:
    release(reg, compose(BASE, "nf4", []))
    return "REOPENED"


def train_again(reg: Registry, request_id: str) -> str:
    roll_back(reg, request_id)
    seal(reg, lora(reg.root / "cache" / "again", 4), [request_id])
    shutil.rmtree(reg.root / "cache" / "again")
    return "TRAINED"


def release_again(reg: Registry, request_id: str) -> str:
    train_again(reg, request_id)
    release(reg, stack([list_adapters(reg, request_id)[-1]]))
    return "SHREDDED"


def withdraw(reg: Registry, request_id: str) -> str:
    roll_back(reg, request_id)
    step_request(reg, request_id, "WITHDRAWN", actor="ana", reason="settled")
    return "WITHDRAWN"


MEANWHILE: dict[str, Callable[[Registry, str], str]] = {
    "nothing": lambda reg, request_id: "SHREDDED",
    "rolled back": roll_back,
    "trained again": train_again,
    "released again": release_again,
    "withdrawn": withdraw,
}


def test_released_again_after_its_rows_are_gone(reg: Registry, tmp_path: Path) -> None:
    request_id, adapter = shredded(reg, tmp_path)
    release(reg, compose(BASE, "nf4", []))
    assert state(reg, request_id) == "REOPENED"
    release(reg, stack([adapter]))
    done = shred(reg, request_id)
    assert done.state == "RELEASED"
    assert close_request(reg, request_id, actor="ana").state == "CLOSED"


def test_a_ledger_older_than_the_vault_catches_up(reg: Registry, tmp_path: Path) -> None:
    """The vault was shredded, then an older ledger restored: shredding again says so in this one too."""
    request_id, _ = released(reg, tmp_path)
    reg.vault.shred(request_id)
    assert [problem.kind for problem in verify(reg).problems] == ["vault-missing"]
    shred(reg, request_id)
    assert verify(reg, deep=True).ok


def test_two_requests_of_one_adapter(reg: Registry, tmp_path: Path) -> None:
    one, two = ask(reg), ask(reg)
    release(reg, stack([seal(reg, lora(tmp_path / "both"), [one, two])]))
    shred(reg, one)
    assert (state(reg, one), state(reg, two)) == ("SHREDDED", "RELEASED")
    assert read_payload(reg, two) == CANARY.encode()
    assert answered(reg, tmp_path, 8)[0] == "req-000003"
