import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from efface.serving import ServingError
from efface.serving.keys import ApiKey, KeyFile, changing, new_key, read_keys, who, write_keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_keys(tmp_path / "keys.json", [new_key("team-a", ["prod"])[1]])
    return tmp_path / "keys.json"


def test_the_file_has_no_key_in_it_and_is_private(tmp_path: Path) -> None:
    text, record = new_key("team-a", ["prod", "next", "prod"], metrics=True)
    write_keys(tmp_path / "keys.json", [record])
    assert text.encode() not in (tmp_path / "keys.json").read_bytes()
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    (found,) = read_keys(tmp_path / "keys.json")
    assert found == record == ApiKey("team-a", record.sha256, ("next", "prod"), True)
    assert who([found], f"Bearer {text}".encode()) == found


@pytest.mark.parametrize(
    "header",
    [None, b"", b"Bearer", b"Bearer ", b"KEY", b"Basic KEY", b"Bearer KEYx", b"Bearer  KEY", b"Bearer KEY\n"],
)
def test_what_is_no_key(header: bytes | None) -> None:
    text, record = new_key("team-a", ["prod"])
    assert who([record], header and header.replace(b"KEY", text.encode())) is None
    assert who([], f"Bearer {text}".encode()) is None


def test_keys_are_never_twice_the_same() -> None:
    assert len({new_key("a", ["prod"])[0] for _ in range(100)}) == 100


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_read_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ServingError, match=rf"mode {mode:04o} .* chmod 600"):
        read_keys(file)


def test_a_file_of_another_user_is_refused(file: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    os.chown(file, 4242, -1)
    with pytest.raises(ServingError, match="user 4242"):
        read_keys(file)


def test_a_pipe_and_a_folder_are_not_waited_for(tmp_path: Path) -> None:
    """The gateway reads the file between two requests: it would answer nobody any more."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("pipe", "folder") * 3:
        with pytest.raises(ServingError, match="expected a key file"):
            read_keys(tmp_path / name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


GOOD = {"id": "a", "sha256": "0" * 64, "channels": ["prod"], "metrics": False}
BAD = {
    "no JSON": "{",
    "a list": [],
    "another version": {"v": 2, "keys": []},
    "no list": {"v": 1, "keys": {}},
    "more": {"v": 1, "keys": [], "x": 1},
    "a key with more": {"v": 1, "keys": [{**GOOD, "admin": True}]},
    "a key with less": {"v": 1, "keys": [{"id": "a"}]},
    "the key itself": {"v": 1, "keys": [{**GOOD, "sha256": "efk_" + "A" * 43}]},
    "a channel that is none": {"v": 1, "keys": [{**GOOD, "channels": ["*"]}]},
    "an id that is none": {"v": 1, "keys": [{**GOOD, "id": "a\nb"}]},
    "a flag that is none": {"v": 1, "keys": [{**GOOD, "metrics": 1}]},
    "an id twice": {"v": 1, "keys": [GOOD, {**GOOD, "sha256": "1" * 64}]},
    "a hash twice": {"v": 1, "keys": [GOOD, {**GOOD, "id": "b"}]},
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_key_file(file: Path, what: str) -> None:
    value = BAD[what]
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(ServingError, match="expected a key file of efface"):
        read_keys(file)


def test_a_change_of_the_file_is_seen_and_a_broken_one_lets_nobody_in(file: Path) -> None:
    keys = KeyFile(file)
    assert [key.id for key in keys()] == ["team-a"]
    write_keys(file, [new_key("team-b", ["prod"])[1]])
    assert [key.id for key in keys()] == ["team-b"]
    file.chmod(0o644)
    for _ in range(2):
        with pytest.raises(ServingError):
            keys()
    file.unlink()
    with pytest.raises(ServingError, match="efface serve key"):
        keys()
    write_keys(file, [])
    assert keys() == ()


def test_a_key_that_is_made_meanwhile_does_not_bring_a_revoked_one_back(file: Path) -> None:
    """Whoever changes the file reads it only when nobody else is between reading and writing."""
    command = [
        sys.executable,
        "-m",
        "efface.cli",
        "serve",
        "key",
        "team-b",
        "--keys",
        str(file),
        "--channel",
        "prod",
    ]
    with changing(file):
        making = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            making.wait(3)
        write_keys(file, [])  # team-a is revoked
    assert making.wait(60) == 0
    assert [key.id for key in read_keys(file)] == ["team-b"]


@pytest.mark.parametrize(
    ("id", "channels"), [("", ["prod"]), ("a b", ["prod"]), ("a", ["*"]), ("a", ["../x"])]
)
def test_bad_names_are_said_before_a_key_is_made(id: str, channels: list[str]) -> None:
    with pytest.raises(ServingError, match="letters, digits"):
        new_key(id, channels)
