"""Laws of the vault: any payload comes back, any damage is named, any death leaves what opens and goes on."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vault_kit import ONE, PAYLOAD, TWO, every_death, header, leaks, local, make_version_1, text_of, traces

from efface.registry import BrokenRegistry, InvalidInput, NotFound
from efface.registry import vault_entries as entries
from efface.registry.vault import Vault
from efface.registry.vault_rotate import rotate
from efface.registry.vault_sources import LocalKey
from efface.registry.vault_targets import successor

names = st.integers(1, 10**12).map(lambda number: f"req-{number:06d}")
keys = st.binary(min_size=32, max_size=32)


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EFFACE_VAULT")]:
        monkeypatch.delenv(name)


@contextmanager
def new_vault() -> Iterator[Vault]:
    with tempfile.TemporaryDirectory() as folder:
        yield Vault(Path(folder) / "vault")


@given(names, keys, keys, st.binary(max_size=2000), keys)
def test_what_is_sealed_is_unsealed(
    name: str, key: bytes, master: bytes, payload: bytes, other: bytes
) -> None:
    provider = LocalKey("file", master)
    data = entries.seal(name, key, payload, provider)
    assert entries.unseal(name, data, [provider]) == (key, payload)
    assert entries.unseal(name, data, [LocalKey("file", bytes(32)), provider]) == (key, payload)
    assert entries.wrapper(name, data[: entries.HEADER_LIMIT]) == provider.describe()
    if other != master:
        with pytest.raises(entries.NotOurs):
            entries.unseal(name, data, [LocalKey("file", other)])


@given(st.binary(max_size=200), st.data())
def test_no_changed_entry_is_read(payload: bytes, draw: st.DataObject) -> None:
    """Any edit: a slice replaced by other bytes, which covers flips, cuts, insertions and swaps."""
    provider = local(1)
    data = entries.seal(ONE, bytes(32), payload, provider)
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, min(len(data), start + 40)))
    changed = data[:start] + draw.draw(st.binary(max_size=40)) + data[end:]
    if changed != data:
        with pytest.raises((BrokenRegistry, entries.NotOurs)):
            entries.unseal(ONE, changed, [provider])


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: b'{"v":2,' + text.encode() + b"}\n"))
def test_anything_for_an_entry(data: bytes) -> None:
    with pytest.raises(BrokenRegistry, match=ONE):
        entries.unseal(ONE, data, [local(1)])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=4), st.integers(0, 3))
def test_a_vault_keeps_what_it_was_given_through_rotations(payloads: list[bytes], rotations: int) -> None:
    with new_vault() as vault:
        made = {name: vault.put(name, payload) for name, payload in _named(payloads)}
        for _ in range(rotations):
            rotate(vault, vault.keys.provider(), successor(vault.folder, "file", store=True))
        assert {name: vault.read(name) for name in made} == {
            name: (payload, made[name]) for name, payload in _named(payloads)
        }
        for name, payload in _named(payloads):
            assert vault.confirm(name, payload) and not vault.confirm(name, payload + b"\0")
            vault.shred(name)
        assert vault.requests() == []


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.text(alphabet=" \t\n\u2003\u00a0", max_size=3))
def test_subjects_are_equal_up_to_white_space_at_the_ends(name: str, space: str) -> None:
    with new_vault() as vault:
        vault.keys.prepare()
        assert vault.subject(space + name + space) == vault.subject(name)


def _named(payloads: list[bytes]) -> list[tuple[str, bytes]]:
    return [(f"req-{number:06d}", payload) for number, payload in enumerate(payloads, 1)]


class Place:
    """A vault made anew for each death, and what was in it."""

    def __init__(self, folder: Path, fill: Callable[[Vault], object]) -> None:
        self.vault, self.fill = Vault(folder / "vault"), fill
        self.wrapped: set[bytes] = set()

    def make(self) -> None:
        shutil.rmtree(self.vault.folder, ignore_errors=True)
        self.fill(self.vault)

    def nothing_unfinished(self) -> None:
        assert not list(self.vault.folder.glob(".tmp-*"))


def _two(vault: Vault) -> None:
    vault.put(ONE, PAYLOAD)
    vault.put(TWO, b"two")


@pytest.mark.parametrize("first", [True, False])
def test_killed_in_put(tmp_path: Path, first: bool) -> None:
    place = Place(tmp_path, lambda vault: None if first else vault.put(TWO, b"two"))
    vault = place.vault
    for _ in every_death(place.make, lambda: vault.put(ONE, PAYLOAD)):
        if vault.has(ONE):
            assert vault.read(ONE)[0] == PAYLOAD
        assert first or vault.read(TWO)[0] == b"two"
        assert vault.put(ONE, PAYLOAD) == vault.read(ONE)[1]
        assert leaks(tmp_path, traces(PAYLOAD)) == []
        key = entries.decode(header(vault, ONE)["key"])
        vault.shred(ONE)
        place.nothing_unfinished()
        assert leaks(tmp_path, {key, text_of(key).encode()}) == []


@pytest.mark.parametrize("more", [0, 3 << 20])  # overwritten in one step, and in several
def test_killed_in_shred(tmp_path: Path, more: int) -> None:
    """At each death the rows are readable, or their key is gone; no tombstone comes before the zeros."""
    payload = PAYLOAD + bytes(more)
    place = Place(tmp_path, lambda vault: (vault.put(ONE, payload), vault.put(TWO, b"two")))
    vault, seen = place.vault, set[str]()
    for _ in every_death(place.make, lambda: vault.shred(ONE)):
        stone = vault.tombstone(ONE)
        if stone is None:
            seen.add(_state(vault, payload))
        else:
            seen.add("tombstone")
            assert not vault.has(ONE) or not vault.path(ONE).read_bytes().strip(b"\0")
            with pytest.raises(NotFound, match="shredded"):
                vault.read(ONE)
        assert vault.read(TWO)[0] == b"two"
        assert ONE not in vault.requests() or stone is None
        done = vault.shred(ONE)
        assert stone is None or done == stone
        place.nothing_unfinished()
        assert not vault.has(ONE) and vault.tombstone(ONE) == done
    assert seen == {"whole", "zeroed", "tombstone"}


def _state(vault: Vault, payload: bytes) -> str:
    if vault.path(ONE).read_bytes().startswith(b"{"):
        assert vault.read(ONE)[0] == payload
        return "whole"
    assert not vault.path(ONE).read_bytes()[: 1 << 10].strip(b"\0")
    with pytest.raises(BrokenRegistry, match="shred it again"):
        vault.read(ONE)
    return "zeroed"


def test_killed_in_a_rotation_beside_the_old_key(tmp_path: Path) -> None:
    """`master.key` to `master.key`: everything stays readable at each death, new requests too."""
    made: dict[str, str] = {}

    def fill(vault: Vault) -> None:
        made.clear()
        made.update(make_version_1(vault.folder, b"m" * 32, {ONE: PAYLOAD}, b"s" * 32))
        made[TWO] = vault.put(TWO, b"two")

    def turn() -> None:
        old = place.vault.keys.provider()
        rotate(place.vault, old, successor(place.vault.folder, "file", store=True))

    place = Place(tmp_path, fill)
    vault = place.vault
    for _ in every_death(place.make, turn):
        assert {name: vault.read(name)[1] for name in made} == made
        made["req-000003"] = vault.put("req-000003", b"in between")
        assert vault.keys.subject() == b"s" * 32
        turn()
        assert {name: vault.read(name)[1] for name in made} == made
        assert not (vault.folder / "master.next").exists()
        assert vault.keys.subject() == b"s" * 32
        place.nothing_unfinished()
        old = LocalKey("file", b"m" * 32)
        for name in made:
            with pytest.raises(entries.NotOurs):
                entries.unseal(name, vault.stored(name), [old])


def test_killed_in_a_rotation_to_a_key_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file opens under one of the keys, an error says which, and the same call ends it."""
    place, new = Place(tmp_path, _two), local(9)
    vault = place.vault
    olds: list[LocalKey] = []

    def make() -> None:
        monkeypatch.delenv("EFFACE_VAULT_KEY", raising=False)
        place.make()
        olds.append(LocalKey("file", _master(vault)))

    for _ in every_death(make, lambda: rotate(vault, olds[-1], new)):
        for name in (ONE, TWO):
            entries.unseal(name, vault.stored(name), [olds[-1], new])
        done = rotate(vault, olds[-1], new)
        assert set(done.todo) | set(done.done) == {ONE, TWO}
        with pytest.raises(InvalidInput, match=new.describe()):
            vault.read(ONE)
        monkeypatch.setenv("EFFACE_VAULT_KEY", text_of(new.key))
        assert (vault.read(ONE)[0], vault.read(TWO)[0]) == (PAYLOAD, b"two")
        vault.put("req-000003", b"three")


def _master(vault: Vault) -> bytes:
    return entries.decode((vault.folder / "master.key").read_text())
