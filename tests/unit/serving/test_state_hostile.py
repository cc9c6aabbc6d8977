"""State files that somebody else wrote: nothing of them gets past, and a channel whose file is odd is not served."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from efface.serving import Route, Routes, ServingError
from efface.serving.state import ChannelState, Follower, read_state, write_state

ROUTE = Route("prod", 7, "prod@7", "sha256:" + "c" * 64, "sha256:" + "d" * 64, "2026-03-01T12:00:00Z")
GOOD = ChannelState("prod", ROUTE, ROUTE)


@pytest.fixture
def followed(tmp_path: Path) -> tuple[Follower, Routes]:
    """A follower that has seen a good file."""
    routes = Routes()
    write_state(tmp_path, GOOD)
    follower = Follower(tmp_path, ("prod",), routes)
    follower.poll()
    assert routes.current("prod") == ROUTE
    return follower, routes


def test_a_pipe_is_not_waited_for(followed: tuple[Follower, Routes], tmp_path: Path) -> None:
    """Opening one waits for a writer: the follower would never see another change, and answer by what it knows."""
    (tmp_path / "prod.json").unlink()
    os.mkfifo(tmp_path / "prod.json")
    followed[0].poll()
    assert "prod" in followed[1].snapshot().down


@pytest.mark.parametrize("mode", [0o646, 0o666, 0o664])
def test_a_file_that_others_may_write_withdraws_its_channel(
    followed: tuple[Follower, Routes], tmp_path: Path, mode: int
) -> None:
    (tmp_path / "prod.json").chmod(mode)
    followed[0].poll()
    assert "chmod" in followed[1].snapshot().down["prod"]


def test_a_folder_and_a_link_to_another_channel_withdraw_it(
    followed: tuple[Follower, Routes], tmp_path: Path
) -> None:
    write_state(tmp_path, ChannelState("next", replace(ROUTE, channel="next", name="next@7")))
    path = tmp_path / "prod.json"
    path.unlink()
    path.symlink_to(tmp_path / "next.json")
    followed[0].poll()
    assert "prod" in followed[1].snapshot().down
    path.unlink()
    path.mkdir()
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        followed[0].poll()
    assert "prod" in followed[1].snapshot().down
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


LIES: dict[str, dict[str, Any]] = {
    "a header in a digest": {"adapter": "sha256:x\r\nx-efface-admin: y"},
    "a digest that is no header": {"adapter": "sha256:\u4e00"},
    "a digest without end": {"release": "s" * 5000},
    "a time that is a text": {"probed_at": "now\x1b[2J"},
    "the base": {"name": "base"},
    "a path": {"name": "../prod@7"},
    "another channel's": {"name": "next@7"},
    "another version": {"version": 8},
    "a version that is true": {"version": True, "name": "prod@1"},
    "one field more": {"model": "base"},
}


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("where", ["route", "last"])
def test_a_route_that_is_none_withdraws_its_channel(
    followed: tuple[Follower, Routes], tmp_path: Path, what: str, where: str
) -> None:
    value = {"v": 1, **asdict(GOOD)}
    (tmp_path / "prod.json").write_text(json.dumps({**value, where: {**value[where], **LIES[what]}}))
    followed[0].poll()
    assert "prod" in followed[1].snapshot().down
    with pytest.raises(ServingError, match="expected a state file"):
        read_state(tmp_path, "prod")
