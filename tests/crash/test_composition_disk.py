"""A disk that fills up while adapters are stacked, compressed, rendered or merged: a clear error, nothing left."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adapter_files import Spec, contents
from test_registry_disk import fill, mounted

from efface.adapters.approximate import approximate
from efface.adapters.compose import Part, compose
from efface.adapters.compress import compress
from efface.adapters.errors import CompositionError
from efface.adapters.staging import new_folder
from efface.serving.render import render

VERBS: dict[str, Callable[[list[Part], Path], object]] = {
    "compose": compose,
    "compress": lambda parts, out: compress(parts, out, rank=60),
    "approximate": lambda parts, out: approximate(parts, out, "knots", density=0.5, rank=60),
    "render": render,
}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A real disk of half a megabyte."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", f"size={512 * 1024}", "tmpfs") as folder:
        yield folder


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    """Adapters of rank 250: more than fits on what is left of the disk."""
    specs = [Spec({"lm_head": 250}, {"lm_head": 250}, seed=seed) for seed in range(2)]
    return [Part(spec.write(tmp_path / "in" / str(i))) for i, spec in enumerate(specs)]


@pytest.mark.parametrize("leave", [0, 4096, 8192])
@pytest.mark.parametrize("verb", ["compose", "render"])
def test_a_full_disk_is_said_and_nothing_is_left(
    small: Path, parts: list[Part], verb: str, leave: int
) -> None:
    ballast = fill(small, leave)
    before = contents(small)
    with pytest.raises(CompositionError, match=r"expected room for out .* got a full disk; free some"):
        VERBS[verb](parts, small / "out")
    assert contents(small) == before
    assert sorted(path.name for path in small.iterdir()) == ["ballast"]
    ballast.unlink()
    VERBS[verb](parts, small / "out")


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_the_same_wherever_the_disk_says_so(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, code: int
) -> None:
    def full(_handle: int) -> None:
        raise OSError(code, os.strerror(code))

    before = contents(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CompositionError, match="got a full disk"):
        VERBS[verb](parts, tmp_path / "out")
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_another_trouble_of_the_disk_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output") as caught, new_folder(tmp_path / "out"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []
