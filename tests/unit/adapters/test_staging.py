"""Folders that appear whole or not at all, beside what other processes left or are still writing."""

import subprocess
import sys
from pathlib import Path

import pytest
from adapter_files import contents

from efface.adapters.errors import CompositionError
from efface.adapters.staging import new_folder

DIES = """
import os, signal, sys
from pathlib import Path
from efface.adapters.staging import new_folder
with new_folder(Path(sys.argv[1])) as staging:
    (staging / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left_by_a_kill(out: Path) -> Path:
    before = set(out.parent.iterdir())
    died = subprocess.run([sys.executable, "-c", DIES, str(out)], check=False)
    assert died.returncode == -9
    (left,) = set(out.parent.iterdir()) - before
    assert [file.name for file in left.iterdir()] == ["half"]
    return left


def test_what_a_killed_process_left_is_removed_by_the_next_to_the_same_place(tmp_path: Path) -> None:
    left = [left_by_a_kill(tmp_path / "out") for _ in range(2)]
    with new_folder(tmp_path / "out") as staging:
        assert not any(folder.exists() for folder in left)
        (staging / "whole").write_text("x")
    assert set(contents(tmp_path)) == {"out/whole"}


def test_what_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as first:
        (first / "whole").write_text("first")
        with pytest.raises(KeyError), new_folder(tmp_path / "out"):
            raise KeyError
        assert list(tmp_path.iterdir()) == [first]
    assert (tmp_path / "out" / "whole").read_text() == "first"


def test_only_one_of_two_becomes_the_folder(tmp_path: Path) -> None:
    refused = pytest.raises(CompositionError, match="not rewritten")
    with refused, new_folder(tmp_path / "out"), new_folder(tmp_path / "out") as second:
        (second / "whole").write_text("second")
    assert set(contents(tmp_path)) == {"out/whole"}


def test_other_folders_are_not_swept(tmp_path: Path) -> None:
    other = left_by_a_kill(tmp_path / "out.2")
    names = (
        ".out.tmp",
        f".out.{'0' * 15}.tmp",
        f".out.{'g' * 16}.tmp",
        f".out.{'0' * 16}.tmp.kept",
        "out.tmp",
    )
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / f".out.{'1' * 16}.tmp").write_text("a file")
    (tmp_path / f".out.{'2' * 16}.tmp").symlink_to(other)
    before = {entry.name for entry in tmp_path.iterdir()}
    with new_folder(tmp_path / "out"):
        pass
    assert {entry.name for entry in tmp_path.iterdir()} == before | {"out"}
    assert (other / "half").exists()
