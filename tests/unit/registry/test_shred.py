"""What a request's shredding destroys besides the vault entry: the plan, what it refuses, deaths on the way."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from vault_kit import ONE, PAYLOAD, TWO, every_death, leaks, traces

from efface.registry import Conflict, InvalidInput
from efface.registry.shred import ShredFile, execute, plan_shred


def fill(root: Path) -> None:
    for place in (f"work/{ONE}/round-1/deep", f"cache/rows/{ONE}", f"work/{TWO}", "cache/adapters/x"):
        (root / place).mkdir(parents=True)
        (root / place / "rows.pt").write_bytes(PAYLOAD)
    (root / f"work/{ONE}/empty").mkdir()
    (root / f"work/{ONE}/none").write_bytes(b"")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path / "registry")
    return tmp_path / "registry"


def listing(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_the_plan(root: Path) -> None:
    before = listing(root)
    plan = plan_shred(root, ONE)
    assert listing(root) == before
    size = len(PAYLOAD)
    assert plan.files == (
        ShredFile(f"cache/rows/{ONE}/rows.pt", size),
        ShredFile(f"work/{ONE}/none", 0),
        ShredFile(f"work/{ONE}/round-1/deep/rows.pt", size),
    )
    assert plan.size == 2 * size
    assert set(plan.folders) == {
        f"work/{ONE}",
        f"work/{ONE}/empty",
        f"work/{ONE}/round-1",
        f"work/{ONE}/round-1/deep",
        f"cache/rows/{ONE}",
    }


def test_carrying_it_out(root: Path) -> None:
    plan, rest = plan_shred(root, ONE), {path for path in listing(root) if ONE not in path}
    execute(plan)
    assert listing(root) == rest
    execute(plan)
    assert listing(root) == rest
    assert plan_shred(root, ONE).files == plan_shred(root, ONE).folders == ()


def test_nothing_there(tmp_path: Path) -> None:
    plan = plan_shred(tmp_path, ONE)
    assert (plan.files, plan.folders, plan.size) == ((), (), 0)
    execute(plan)
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_are_overwritten(root: Path, tmp_path: Path) -> None:
    plan = plan_shred(root, ONE)
    descriptor = os.open(root / plan.files[0].path, os.O_RDONLY)  # the file behind the name that goes
    try:
        execute(plan)
        assert os.pread(descriptor, 1 << 20, 0) == bytes(plan.files[0].size)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["", "..", "../registry", "req-1", f"{ONE}/..", "adapters"])
def test_only_a_request_can_be_shredded(root: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        plan_shred(root, name)


REFUSED: dict[str, Callable[[Path, Path], object]] = {
    "linked file": lambda at, out: (at / "link").symlink_to(out / "precious"),
    "linked folder": lambda at, out: (at / "link").symlink_to(out),
    "dangling link": lambda at, out: (at / "link").symlink_to(out / "nothing"),
    "second name": lambda at, out: os.link(out / "precious", at / "link"),
    "pipe": lambda at, out: os.mkfifo(at / "link"),
    "request is a link": lambda at, out: (shutil.rmtree(at), at.symlink_to(out)),
    "work is a link": lambda at, out: (shutil.rmtree(at.parent), at.parent.symlink_to(out)),
    "request is a file": lambda at, out: (shutil.rmtree(at), at.write_bytes(b"x")),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_plan_refuses(root: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "outside"
    (out / ONE).mkdir(parents=True)
    (out / "precious").write_bytes(b"precious")
    REFUSED[kind](root / "work" / ONE, out)
    with pytest.raises(Conflict, match="work"):
        plan_shred(root, ONE)
    assert (out / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", [name for name in REFUSED if name != "dangling link"])
def test_what_changes_after_the_plan_is_refused(root: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "outside"
    (out / ONE / "round-1" / "deep").mkdir(parents=True)
    for place in (out, out / ONE, out / ONE / "round-1" / "deep", out / "round-1" / "deep"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "rows.pt").write_bytes(b"precious")
    (out / "precious").write_bytes(b"precious")
    plan = plan_shred(root, ONE)
    REFUSED[kind](root / "work" / ONE, out)
    with pytest.raises(Conflict, match="work"):
        execute(plan)
    assert {path.read_bytes() for path in out.rglob("*") if path.is_file()} == {b"precious"}


def test_a_file_replaced_by_a_link(root: Path, tmp_path: Path) -> None:
    plan, target = plan_shred(root, ONE), tmp_path / "precious"
    target.write_bytes(b"precious")
    path = root / plan.files[0].path
    for make in (lambda: path.symlink_to(target), lambda: os.link(target, path), path.mkdir):
        path.unlink()
        make()
        with pytest.raises(Conflict):
            execute(plan)
        assert target.read_bytes() == b"precious"
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else None
        path.touch()


def test_what_came_after_the_plan_stays_and_is_said(root: Path) -> None:
    plan = plan_shred(root, ONE)
    (root / "work" / ONE / "new").write_bytes(b"new")
    with pytest.raises(Conflict, match="since the plan"):
        execute(plan)
    assert (root / "work" / ONE / "new").exists()
    execute(plan_shred(root, ONE))
    assert not (root / "work" / ONE).exists()


def test_not_while_it_is_trained(root: Path) -> None:
    plan, before = plan_shred(root, ONE), listing(root)
    with FileLock(root / "work" / f"{ONE}.lock"):
        with pytest.raises(Conflict, match="training"):
            execute(plan)
        assert listing(root) - {f"work/{ONE}.lock"} == before
    execute(plan)
    assert not (root / "work" / f"{ONE}.lock").exists()


def test_a_lock_that_is_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (root / "work" / f"{ONE}.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(Conflict, match="link"):
        execute(plan_shred(root, ONE))
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_killed_anywhere_it_ends_when_repeated(tmp_path: Path) -> None:
    root, plans, marks = tmp_path / "registry", [], traces(PAYLOAD)

    def make() -> None:
        shutil.rmtree(root, ignore_errors=True)
        fill(root)
        plans.append(plan_shred(root, ONE))

    for _ in every_death(make, lambda: execute(plans[-1])):
        execute(plan_shred(root, ONE))  # a new plan finds what is left
        execute(plans[-1])  # and the old one has nothing more to do
        assert not any(ONE in path for path in listing(root))
        assert len(leaks(root, marks)) == 2  # the other request's, and another cache
