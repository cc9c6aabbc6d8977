"""The vault: entries of both versions, shredding, rotation, limits, hostile files, and nothing in the clear."""

import base64
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from keyring.backend import KeyringBackend
from vault_kit import (
    ONE,
    PAYLOAD,
    SECRET,
    THREE,
    TWO,
    MemoryKeyring,
    header,
    install_kms,
    keyring_of,
    leaks,
    local,
    make_version_1,
    text_of,
    traces,
)

from efface.registry import BrokenRegistry, Conflict, InvalidInput, NotFound, RegistryError
from efface.registry import vault_entries as entries
from efface.registry.vault import Vault
from efface.registry.vault_rotate import drop_master_file, plan_rotation, rotate
from efface.registry.vault_show import summary
from efface.registry.vault_targets import successor
from efface.registry.vault_tombs import Tombstone

WHEN = datetime(2026, 3, 1, 12, tzinfo=UTC)
STAMP = "2026-03-01T12:00:00.000000Z"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EFFACE_VAULT")]:
        monkeypatch.delenv(name)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


def filled(vault: Vault) -> dict[str, str]:
    return {name: vault.put(name, name.encode() + PAYLOAD) for name in (ONE, TWO, THREE)}


def commitments(vault: Vault) -> dict[str, str]:
    return {name: vault.read(name)[1] for name in vault.requests()}


def test_an_entry(vault: Vault) -> None:
    commitment = vault.put(ONE, PAYLOAD)
    assert vault.read(ONE) == (PAYLOAD, commitment)
    assert vault.confirm(ONE, PAYLOAD)
    assert not vault.confirm(ONE, PAYLOAD + b" ")
    assert sorted(header(vault, ONE)) == ["key", "name", "nonce", "v", "wrapped_by"]
    assert header(vault, ONE)["wrapped_by"] == vault.keys.provider().describe()
    size = len(vault.path(ONE).read_bytes().partition(b"\n")[2])
    assert size == len(PAYLOAD) + 16  # the ciphertext, raw, and the tag


def test_entries_of_version_1_are_read(vault: Vault) -> None:
    made = make_version_1(vault.folder, b"m" * 32, {ONE: PAYLOAD, TWO: b"two"}, b"s" * 32)
    assert commitments(vault) == made
    assert vault.keys.subject() == b"s" * 32
    made[THREE] = vault.put(THREE, PAYLOAD)
    assert commitments(vault) == made
    assert summary(vault).wrapped_by == ((vault.keys.provider().describe(), 1), ("not said (version 1)", 2))


def test_a_wrong_key_for_version_1(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    make_version_1(vault.folder, b"m" * 32, {ONE: PAYLOAD}, b"s" * 32)
    monkeypatch.setenv("EFFACE_VAULT_KEY", text_of(b"x" * 32))
    with pytest.raises(InvalidInput, match="master key"):
        vault.read(ONE)


def test_version_1_with_a_damaged_field(vault: Vault) -> None:
    make_version_1(vault.folder, b"m" * 32, {ONE: PAYLOAD}, b"s" * 32)
    whole = vault.path(ONE).read_bytes()
    for position in range(len(whole)):
        flipped = bytes([whole[position] ^ 1])
        vault.path(ONE).write_bytes(whole[:position] + flipped + whole[position + 1 :])
        with pytest.raises(BrokenRegistry, match=ONE):
            vault.read(ONE)
    entry = json.loads(whole)
    for change in ({"v": True}, {"v": 1.0}, {"v": 2}, {"more": 1}, {"request": TWO}, {"data": ""}):
        vault.path(ONE).write_text(json.dumps({**entry, **change}))
        with pytest.raises(BrokenRegistry, match=ONE):
            vault.read(ONE)


def test_every_byte_of_an_entry_counts(vault: Vault) -> None:
    vault.put(ONE, b"short")
    whole = vault.path(ONE).read_bytes()
    for position in range(len(whole)):
        for bit in (1, 128):
            changed = bytes([whole[position] ^ bit])
            vault.path(ONE).write_bytes(whole[:position] + changed + whole[position + 1 :])
            with pytest.raises(BrokenRegistry, match=ONE):
                vault.read(ONE)
    for cut in range(len(whole)):
        vault.path(ONE).write_bytes(whole[:cut])
        with pytest.raises(BrokenRegistry, match=ONE):
            vault.read(ONE)
    vault.path(ONE).write_bytes(whole + b"\n")
    with pytest.raises(BrokenRegistry, match=ONE):
        vault.read(ONE)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 1},
        {"v": 3},
        {"name": TWO},
        {"wrapped_by": "file:0000000000000000"},
        {"wrapped_by": ""},
        {"wrapped_by": "a b"},
        {"wrapped_by": 1},
        {"key": text_of(b"k" * 40)},
        {"key": None},
        {"nonce": text_of(b"n" * 12)},
        {"nonce": text_of(b"n" * 16)},
        {"more": 1},
    ],
)
def test_every_field_of_an_entry_counts(vault: Vault, change: dict[str, object]) -> None:
    vault.put(ONE, PAYLOAD)
    line, _, body = vault.path(ONE).read_bytes().partition(b"\n")
    changed = json.dumps({**json.loads(line), **change}, sort_keys=True, separators=(",", ":"))
    vault.path(ONE).write_bytes(changed.encode() + b"\n" + body)
    with pytest.raises(BrokenRegistry, match=ONE):
        vault.read(ONE)


def test_entries_are_not_exchangeable(vault: Vault, tmp_path: Path) -> None:
    vault.put(ONE, b"first")
    vault.put(TWO, b"second")
    first, second = (vault.path(name).read_bytes() for name in (ONE, TWO))
    vault.path(ONE).write_bytes(second)
    with pytest.raises(BrokenRegistry, match=ONE):
        vault.read(ONE)
    vault.path(ONE).write_bytes(first.partition(b"\n")[0] + b"\n" + second.partition(b"\n")[2])
    with pytest.raises(BrokenRegistry, match=ONE):
        vault.read(ONE)
    other = Vault(tmp_path / "other")
    other.put(ONE, b"of another vault")
    vault.path(ONE).write_bytes(other.path(ONE).read_bytes())
    with pytest.raises(InvalidInput, match="wrapped"):
        vault.read(ONE)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "req-1",
        "req-00001",
        "../req-000001",
        "req-000001/../x",
        "req-٠٠٠٠٠١",
        "req-000001\n",
        "REQ-000001",
        "subject",
        "req-" + "1" * 19,
        "req-000001.json",
    ],
)
def test_only_ids_of_requests_name_files(vault: Vault, name: str) -> None:
    vault.put(ONE, PAYLOAD)
    calls: tuple[Callable[[], object], ...] = (
        lambda: vault.put(name, PAYLOAD),
        lambda: vault.read(name),
        lambda: vault.confirm(name, PAYLOAD),
        lambda: vault.shred(name),
        lambda: vault.discard(name),
        lambda: vault.tombstone(name),
        lambda: vault.path(name),
    )
    for call in calls:
        with pytest.raises(InvalidInput, match="request"):
            call()
    assert not vault.has(name)
    assert vault.requests() == [ONE]


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_an_entry_that_is_no_file(vault: Vault, tmp_path: Path, kind: str) -> None:
    vault.put(ONE, PAYLOAD)
    path, target = vault.path(ONE), tmp_path / "target"
    path.rename(target)
    before = target.read_bytes()
    make: dict[str, Callable[[], object]] = {
        "link": lambda: path.symlink_to(target),
        "dangling": lambda: path.symlink_to(tmp_path / "nothing"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }
    make[kind]()
    with pytest.raises(BrokenRegistry, match=ONE):
        vault.read(ONE)
    with pytest.raises(BrokenRegistry, match=ONE):
        vault.shred(ONE)
    assert target.read_bytes() == before
    assert vault.tombstone(ONE) is None


def test_the_size_of_a_payload(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault", limit=1000)
    assert vault.put(ONE, b"x" * 1000) == vault.read(ONE)[1]
    with pytest.raises(InvalidInput, match="at most 1000 bytes"):
        vault.put(TWO, b"x" * 1001)
    assert not vault.has(TWO)
    with vault.path(ONE).open("ab") as file:
        file.truncate(1 << 40)  # sparse: reading it would end the process
    with pytest.raises(BrokenRegistry, match=ONE):
        vault.read(ONE)
    assert Vault(tmp_path).limit == 2**30


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")
def test_memory_stays_below_four_payloads(tmp_path: Path) -> None:
    """Peak resident growth of writing and reading 64 MiB, in a process of its own."""
    script = """if True:
        import re, sys
        from pathlib import Path
        from efface.registry.vault import Vault
        vault = Vault(Path(sys.argv[1]))
        vault.put("req-000001", b"warm"), vault.read("req-000001")
        status = Path("/proc/self/status")  # getrusage counts what the parent had before exec, too
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
        before, size = peak(), 64 << 20
        payload = bytes(size)
        vault.put("req-000001", payload)
        wrote = peak()
        del payload
        vault.read("req-000001")
        print((wrote - before) / size, (peak() - before) / size)
    """
    command = [sys.executable, "-c", script, str(tmp_path / "vault")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(0.9 < float(share) <= 4.0 for share in done.stdout.split()), done.stdout


def test_subjects(vault: Vault) -> None:
    vault.keys.prepare()
    assert vault.subject("Zoë ") == vault.subject("\u2003Zoe\u0308")
    assert vault.subject("Ana@x.org") != vault.subject("ana@x.org")
    assert vault.subject("ﬁ") != vault.subject("fi")  # compatibility forms are other names
    name = "canary \ud800"
    with pytest.raises(InvalidInput) as caught:
        vault.subject(name)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_shredding(vault: Vault) -> None:
    filled(vault)
    wrapped = entries.decode(header(vault, ONE)["key"])
    stone = vault.shred(ONE, at=WHEN)
    assert stone == Tombstone(ONE, STAMP) == vault.tombstone(ONE)
    assert not vault.has(ONE)
    assert vault.requests() == [TWO, THREE]
    assert (vault.folder / f"{ONE}.shredded").read_bytes() == (
        b'{"request":"req-000001","shredded_at":"2026-03-01T12:00:00.000000Z","v":1}'
    )
    assert (vault.folder / f"{ONE}.shredded").stat().st_mode & 0o777 == 0o600
    for call in (lambda: vault.read(ONE), lambda: vault.confirm(ONE, PAYLOAD)):
        with pytest.raises(NotFound, match=f"shredded at {STAMP}"):
            call()
    with pytest.raises(Conflict, match="shredded"):
        vault.put(ONE, PAYLOAD)
    assert vault.shred(ONE) == stone  # the first moment counts
    assert leaks(vault.folder, {wrapped, text_of(wrapped).encode()}) == []
    assert commitments(vault).keys() == {TWO, THREE}
    assert summary(vault).shredded == 1


def test_shredding_overwrites_every_name_of_the_file(vault: Vault, tmp_path: Path) -> None:
    vault.put(ONE, PAYLOAD)
    os.link(vault.path(ONE), tmp_path / "copy")
    size = (tmp_path / "copy").stat().st_size
    vault.shred(ONE)
    assert (tmp_path / "copy").read_bytes() == bytes(size)


def test_shredding_needs_no_key(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(vault)
    (vault.folder / "master.key").unlink()
    monkeypatch.setenv("EFFACE_VAULT_KEY_SOURCE", "kms:gone")
    assert vault.shred(ONE, at=WHEN).at == STAMP


def test_shredding_takes_unfinished_copies_along(vault: Vault) -> None:
    filled(vault)
    (vault.folder / ".tmp-0123").write_bytes(vault.path(ONE).read_bytes())
    vault.shred(ONE)
    assert not list(vault.folder.glob(".tmp-*"))


def test_nothing_to_shred(vault: Vault) -> None:
    with pytest.raises(NotFound, match=ONE):
        vault.shred(ONE)
    filled(vault)
    with pytest.raises(NotFound, match="req-000009"):
        vault.shred("req-000009")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"request":"req-000002","shredded_at":"2026","v":1}', "x" * 2000]
)
def test_a_tombstone_that_is_not_ours(vault: Vault, text: str) -> None:
    filled(vault)
    (vault.folder / f"{ONE}.shredded").write_text(text)
    for call in (lambda: vault.read(ONE), lambda: vault.tombstone(ONE), lambda: vault.put(ONE, PAYLOAD)):
        with pytest.raises(BrokenRegistry, match=ONE):
            call()
    assert vault.shred(ONE, at=WHEN).at == STAMP
    (vault.folder / f"{ONE}.shredded").write_text(text)
    with pytest.raises(BrokenRegistry, match=ONE):
        vault.shred(ONE)


def test_discarding_leaves_nothing(vault: Vault) -> None:
    vault.put(ONE, PAYLOAD)
    vault.discard(ONE)
    vault.discard(ONE)
    assert sorted(path.name for path in vault.folder.iterdir()) == ["master.key", "subject.key", "vault.id"]


def test_a_rotation_changes_the_key_and_nothing_else(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_version_1(vault.folder, b"m" * 32, {ONE: PAYLOAD}, b"s" * 32)
    made[TWO] = vault.put(TWO, PAYLOAD)
    before, subject = {name: vault.stored(name) for name in made}, vault.subject("ana")
    old, new = vault.keys.provider(), local(9)
    plan = plan_rotation(vault, old, new)
    assert (plan.todo, plan.done, plan.subject) == ((ONE, TWO), (), True)
    assert (plan.old, plan.new) == (old.describe(), new.describe())
    assert {name: vault.stored(name) for name in made} == before  # a plan writes nothing
    assert rotate(vault, old, new) == plan
    with pytest.raises(InvalidInput, match="efface vault rotate"):
        vault.read(ONE)
    monkeypatch.setenv("EFFACE_VAULT_KEY", text_of(new.key))
    assert (commitments(vault), vault.subject("ana")) == (made, subject)
    again = rotate(vault, old, new)
    assert (again.todo, again.done, again.subject) == ((), (ONE, TWO), False)
    keys = {entries.decode(json.loads(data.partition(b"\n")[0])["key"]) for data in before.values()}
    assert leaks(vault.folder, {form for key in keys for form in (key, text_of(key).encode())}) == []
    assert summary(vault).wrapped_by == ((new.describe(), 2),)
    assert drop_master_file(vault)
    assert not drop_master_file(vault)
    assert commitments(vault) == made


def test_a_rotation_stops_before_it_changes_anything(vault: Vault) -> None:
    filled(vault)
    old, new = vault.keys.provider(), local(9)
    before = {name: vault.stored(name) for name in vault.requests()}
    with pytest.raises(InvalidInput):
        rotate(vault, local(8), new)
    whole = vault.path(THREE).read_bytes()
    vault.path(THREE).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BrokenRegistry, match=THREE):
        rotate(vault, old, new)
    vault.path(THREE).write_bytes(entries.seal(THREE, b"k" * 32, b"x", local(5)))
    with pytest.raises(InvalidInput, match=THREE):
        rotate(vault, old, new)
    vault.path(THREE).write_bytes(whole)
    assert {name: vault.stored(name) for name in vault.requests()} == before
    with pytest.raises(Conflict):
        drop_master_file(vault)


def test_a_rotation_to_a_file_leaves_nothing_of_the_old_key(vault: Vault, tmp_path: Path) -> None:
    """Not even in the bytes that `master.key` stood for, which another name still shows."""
    made = filled(vault)
    (tmp_path / "old").hardlink_to(vault.folder / "master.key")
    rotate(vault, vault.keys.provider(), successor(vault.folder, "file", store=True))
    assert (tmp_path / "old").read_bytes().strip(b"\0") == b""
    assert commitments(vault) == made


@pytest.mark.parametrize("named", [False, True])
def test_a_rotation_to_a_file_that_is_cut_off_after_the_old_key_went(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    made, master = filled(vault), vault.folder / "master.key"
    if named:
        monkeypatch.setenv("EFFACE_VAULT_KEY_FILE", str(master))
    monkeypatch.setattr("pathlib.Path.replace", _only_unfinished(Path.replace))
    with pytest.raises(KeyboardInterrupt):
        rotate(vault, vault.keys.provider(), successor(vault.folder, "file", store=True))
    monkeypatch.undo()
    for name in [name for name in os.environ if name.startswith("EFFACE_VAULT")]:
        monkeypatch.delenv(name)
    if named:
        monkeypatch.setenv("EFFACE_VAULT_KEY_FILE", str(master))
    assert master.read_bytes().strip(b"\0") == b""
    assert commitments(vault) == made
    again = rotate(vault, vault.keys.provider(), successor(vault.folder, "file", store=True))
    assert (again.todo, again.subject) == ((), False)
    assert (commitments(vault), (vault.folder / "master.next").exists()) == (made, False)


def _only_unfinished(real: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """Renames of temporary files happen; the last step of a rotation does not."""

    def replace(path: Path, target: Path) -> Path:
        if path.name == "master.next":
            raise KeyboardInterrupt
        return real(path, target)

    return replace


def test_a_rotation_leaves_a_shredding_that_was_cut_off_to_itself(vault: Vault) -> None:
    made = filled(vault)
    zeros = bytes(vault.path(TWO).stat().st_size)
    vault.path(TWO).write_bytes(zeros)
    done = rotate(vault, vault.keys.provider(), successor(vault.folder, "file", store=True))
    assert (done.todo, done.empty) == ((ONE, THREE), (TWO,))
    assert vault.path(TWO).read_bytes() == zeros
    vault.shred(TWO)
    assert commitments(vault) == {name: made[name] for name in (ONE, THREE)}
    assert rotate(vault, vault.keys.provider(), successor(vault.folder, "file", store=True)).empty == ()


def test_a_rotation_takes_entries_that_were_set_aside_along(vault: Vault) -> None:
    vault.put(ONE, PAYLOAD)
    assert vault.leftover(ONE, b"another") is None
    (vault.folder / f"{ONE}.orphan-2.json").write_text("rows in the clear")
    rotate(vault, vault.keys.provider(), successor(vault.folder, "file", store=True))
    data = (vault.folder / f"{ONE}.orphan-1.json").read_bytes()
    assert entries.unseal(ONE, data, [vault.keys.provider()])[1] == PAYLOAD


def test_a_key_file_whose_end_was_cut_off_is_dropped(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(vault)
    rotate(vault, vault.keys.provider(), local(9))
    monkeypatch.setenv("EFFACE_VAULT_KEY", text_of(local(9).key))
    (vault.folder / "master.key").write_bytes(bytes(44))
    assert drop_master_file(vault)
    assert not (vault.folder / "master.key").exists()


def test_a_key_still_in_use_is_not_dropped(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(vault)
    monkeypatch.setenv("EFFACE_VAULT_KEY", text_of(local(9).key))
    with pytest.raises(Conflict, match="rotate"):
        drop_master_file(vault)
    assert (vault.folder / "master.key").exists()


def test_rotating_from_place_to_place(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_kms(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    made, subject = filled(vault), vault.subject("ana")
    (tmp_path / "named.key").write_text(text_of(b"n" * 32))
    (tmp_path / "named.key").chmod(0o600)
    monkeypatch.setenv("EFFACE_VAULT_NEW_KEY", text_of(b"e" * 32))
    steps = [
        ("file", {}),
        (f"file:{tmp_path}/named.key", {"EFFACE_VAULT_KEY_FILE": f"{tmp_path}/named.key"}),
        ("keyring", {"EFFACE_VAULT_KEY_SOURCE": "keyring"}),
        ("keyring", {"EFFACE_VAULT_KEY_SOURCE": "keyring"}),
        ("kms:kms", {"EFFACE_VAULT_KEY_SOURCE": "kms:kms"}),
        ("kms:ready", {"EFFACE_VAULT_KEY_SOURCE": "kms:ready"}),
        ("environment", {"EFFACE_VAULT_KEY_SOURCE": "environment", "EFFACE_VAULT_KEY": text_of(b"e" * 32)}),
        ("file", {"EFFACE_VAULT_KEY_SOURCE": "file", "EFFACE_VAULT_KEY_FILE": f"{vault.folder}/master.key"}),
    ]
    with keyring_of(MemoryKeyring()) as backend:
        for target, settings in steps:
            old = vault.keys.provider()
            before = {path.name: path.read_bytes() for path in vault.folder.iterdir()}
            plan_rotation(vault, old, successor(vault.folder, target, store=False))
            assert {path.name: path.read_bytes() for path in vault.folder.iterdir()} == before
            done = rotate(vault, old, successor(vault.folder, target, store=True))
            assert (done.todo, done.subject) == ((ONE, TWO, THREE), True)
            for name, value in settings.items():
                monkeypatch.setenv(name, value)
            assert (commitments(vault), vault.subject("ana")) == (made, subject)
            assert vault.keys.provider().describe() == done.new != done.old
        assert isinstance(backend, KeyringBackend) and not (vault.folder / "master.next").exists()


@pytest.mark.parametrize(
    ("target", "error"),
    [("", InvalidInput), ("vault", InvalidInput), ("environment", NotFound), ("file:/none/x", NotFound)],
)
def test_nowhere_to_rotate_to(vault: Vault, target: str, error: type[RegistryError]) -> None:
    vault.keys.prepare()
    with pytest.raises(error):
        successor(vault.folder, target, store=True)


def test_nothing_in_the_clear(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files after every operation, and the whole text of every error, tracebacks and causes included."""
    marks, said = traces(PAYLOAD), ""

    def look() -> None:
        assert leaks(tmp_path, marks) == []

    def failing(call: Callable[[], object]) -> None:
        nonlocal said
        with pytest.raises(RegistryError) as caught:
            call()
        said += str(caught.value) + repr(caught.value) + "".join(traceback.format_exception(caught.value))
        look()

    vault.put(ONE, PAYLOAD)
    look()
    vault.put(TWO, PAYLOAD)
    vault.subject(SECRET)
    failing(lambda: Vault(vault.folder, limit=9).put(THREE, PAYLOAD))
    failing(lambda: vault.put(SECRET, PAYLOAD))
    failing(lambda: vault.read(SECRET))
    assert not vault.confirm(ONE, PAYLOAD[1:])
    old, new = vault.keys.provider(), local(9)
    rotate(vault, old, new)
    look()
    failing(lambda: vault.read(ONE))
    failing(lambda: vault.confirm(ONE, PAYLOAD))
    monkeypatch.setenv("EFFACE_VAULT_KEY", text_of(new.key))
    whole = vault.path(TWO).read_bytes()
    vault.path(TWO).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    failing(lambda: vault.read(TWO))
    failing(lambda: rotate(vault, new, old))
    vault.shred(ONE)
    look()
    failing(lambda: vault.read(ONE))
    failing(lambda: vault.put(ONE, PAYLOAD))
    marks |= {text_of(new.key).encode(), base64.b64encode(vault.keys.subject())}
    assert not [mark for mark in marks if mark in said.encode()]
    assert leaks(tmp_path, marks) == []


def test_the_search_finds_what_it_should(tmp_path: Path) -> None:
    """The canary's own test: each form, planted, is found."""
    marks = traces(PAYLOAD)
    line = SECRET.splitlines()[1]
    forms = [
        PAYLOAD,
        line.encode(),
        line.encode("utf-16-le"),
        line.encode("utf-16-be"),
        line.encode().hex().encode(),
    ]
    forms += [base64.b64encode(b"?" * pad + PAYLOAD + b"?") for pad in range(3)]
    for form in forms:
        (tmp_path / "planted").write_bytes(b"..." + form + b"...")
        assert leaks(tmp_path, marks) == ["planted"]
    (tmp_path / "planted").write_bytes(b"nothing")
    assert leaks(tmp_path, marks) == []
