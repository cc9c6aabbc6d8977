"""Where the master key comes from: environment, file, keyring, KMS; and what is refused."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
from keyring.backends import fail, null
from vault_kit import ONE, PAYLOAD, MemoryKeyring, install_kms, keyring_of, local, text_of

from efface.registry import BrokenRegistry, InvalidInput, NotFound, RegistryError
from efface.registry import vault_entries as entries
from efface.registry.vault import Vault
from efface.registry.vault_kms import load
from efface.registry.vault_sources import KeyProvider, LocalKey, same_key

SOURCE = "EFFACE_VAULT_KEY_SOURCE"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EFFACE_VAULT")]:
        monkeypatch.delenv(name)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


@pytest.fixture
def kms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_kms(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def key_file(path: Path, seed: int, mode: int = 0o600) -> Path:
    path.write_text(text_of(local(seed).key) + "\n")
    path.chmod(mode)
    return path


def test_key_wrap_is_rfc_3394() -> None:
    """RFC 3394, 4.6: 256 bits of key data with a 256-bit key-encryption key."""
    key = LocalKey("file", bytes.fromhex("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"))
    data = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"
    assert key.wrap(data).hex().upper() == wrapped
    assert key.unwrap(bytes.fromhex(wrapped)) == data


def test_a_key_is_named_and_not_shown() -> None:
    key = local(7)
    assert same_key(key.describe(), LocalKey("file", key.key).describe())
    assert not same_key(key.describe(), local(8).describe())
    for text in (repr(key), key.describe()):
        assert text_of(key.key) not in text and key.key.hex() not in text and repr(key.key) not in text


def test_a_file_that_is_named(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path / "elsewhere.key", 3)
    monkeypatch.setenv("EFFACE_VAULT_KEY_FILE", str(path))
    vault.put(ONE, PAYLOAD)
    assert sorted(p.name for p in vault.folder.iterdir()) == ["req-000001.json", "subject.key", "vault.id"]
    link = tmp_path / "link.key"  # as container platforms mount secrets
    link.symlink_to(path)
    monkeypatch.setenv("EFFACE_VAULT_KEY_FILE", str(link))
    assert vault.read(ONE)[0] == PAYLOAD
    monkeypatch.delenv("EFFACE_VAULT_KEY_FILE")
    monkeypatch.setenv("EFFACE_VAULT_KEY", text_of(local(3).key))  # the same key from another source
    assert vault.read(ONE)[0] == PAYLOAD


def test_a_named_file_that_is_not_there_is_not_made(vault: Vault, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("EFFACE_VAULT_KEY_FILE", str(tmp_path / "none.key"))
    assert not vault.keys.at_hand()
    with pytest.raises(NotFound, match="EFFACE_VAULT_KEY_FILE"):
        vault.put(ONE, PAYLOAD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o611])
def test_a_key_file_that_others_may_use_is_refused(vault: Vault, mode: int) -> None:
    vault.put(ONE, PAYLOAD)
    (vault.folder / "master.key").chmod(mode)
    with pytest.raises(InvalidInput, match=r"chmod 600 .*master\.key"):
        vault.read(ONE)
    (vault.folder / "master.key").chmod(0o400)
    assert vault.read(ONE)[0] == PAYLOAD


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_master_key_that_is_no_file_is_refused(vault: Vault, tmp_path: Path, kind: str) -> None:
    vault.put(ONE, PAYLOAD)
    path = vault.folder / "master.key"
    path.rename(tmp_path / "moved")
    make = {
        "link": lambda: path.symlink_to(tmp_path / "moved"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path, 0o600),
    }
    make[kind]()
    with pytest.raises(InvalidInput, match=r"a key file at"):
        vault.read(ONE)


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_vault_that_others_may_enter_is_refused(vault: Vault, mode: int) -> None:
    vault.put(ONE, PAYLOAD)
    vault.folder.chmod(mode)
    calls = (
        lambda: vault.read(ONE),
        lambda: vault.put(ONE, PAYLOAD),
        lambda: vault.shred(ONE),
        lambda: vault.confirm(ONE, PAYLOAD),
    )
    for call in calls:
        with pytest.raises(InvalidInput, match="chmod 700"):
            call()
    vault.folder.chmod(0o700)
    assert vault.read(ONE)[0] == PAYLOAD


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_the_vault_or_key_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        vault, other = Vault(Path(folder) / "vault"), Vault(Path(folder) / "other")
        vault.put(ONE, PAYLOAD)
        os.chown(key_file(Path(folder) / "key", 3), 0, 0)
        other.folder.mkdir(mode=0o700)
        os.chown(other.folder, 65534, 65534)
        monkeypatch.setenv("EFFACE_VAULT_KEY_FILE", f"{folder}/key")
        os.seteuid(65534)
        try:
            for one in (vault, other):
                with pytest.raises(InvalidInput, match="Run as the user who made the vault"):
                    one.put(ONE, PAYLOAD)
            with pytest.raises(InvalidInput, match="Run as the user who made the vault"):
                vault.read(ONE)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("source", ["", "vault", "kms:", "Keyring", "file:/x"])
def test_an_unknown_source(vault: Vault, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setenv(SOURCE, source)
    with pytest.raises(InvalidInput, match=SOURCE):
        vault.put(ONE, PAYLOAD)
    assert not vault.folder.exists()


def test_the_environment_and_nothing_else(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE, "environment")
    with pytest.raises(NotFound, match="EFFACE_VAULT_KEY"):
        vault.put(ONE, PAYLOAD)
    assert not vault.folder.exists()


def test_the_keyring(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE, "keyring")
    backend = MemoryKeyring()
    with keyring_of(backend):
        vault.put(ONE, PAYLOAD)
        assert vault.read(ONE)[0] == PAYLOAD
        ((service, user),) = backend.kept
        assert (service, user) == ("efface", (vault.folder / "vault.id").read_text())
        assert not (vault.folder / "master.key").exists()
        second = Vault(tmp_path / "second")
        second.put(ONE, PAYLOAD)
        assert len(backend.kept) == 2
        backend.kept.clear()
        assert not vault.keys.at_hand()
        with pytest.raises(NotFound, match="keyring"):
            vault.read(ONE)
        with pytest.raises(NotFound, match="keyring"):
            vault.keys.prepare()
        assert backend.kept == {}  # no new key is made for a vault that has keys
        (vault.folder / "vault.id").write_text("../x")
        with pytest.raises(BrokenRegistry, match=r"vault\.id"):
            vault.read(ONE)
    assert stat.S_IMODE((vault.folder / "vault.id").stat().st_mode) == 0o600


def test_no_keyring_here(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE, "keyring")
    with keyring_of(fail.Keyring()), pytest.raises(NotFound, match=SOURCE):
        vault.put(ONE, PAYLOAD)
    assert not vault.folder.exists()
    with keyring_of(null.Keyring()), pytest.raises(RegistryError, match="keeps what it is given"):
        vault.put(ONE, PAYLOAD)
    assert not vault.keys.complete()


@pytest.mark.usefixtures("kms")
@pytest.mark.parametrize(("name", "key"), [("kms", "one"), ("ready", "two")])
def test_a_kms(vault: Vault, monkeypatch: pytest.MonkeyPatch, name: str, key: str) -> None:
    monkeypatch.setenv(SOURCE, f"kms:{name}")
    vault.put(ONE, PAYLOAD)
    assert vault.read(ONE)[0] == PAYLOAD
    assert isinstance(vault.keys.provider(), KeyProvider)
    start = vault.path(ONE).read_bytes()
    assert entries.wrapper(ONE, start) == f"kms:{name}:projects/p/keys/{key}"
    monkeypatch.setenv(SOURCE, f"kms:{'other' if name == 'kms' else 'kms'}")
    with pytest.raises(InvalidInput, match=f"keys/{key}"):
        vault.read(ONE)


@pytest.mark.usefixtures("kms")
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nobody", NotFound),
        ("no/path", InvalidInput),
        ("half", InvalidInput),
        ("absent", RegistryError),
        ("unborn", RegistryError),
        ("down", RegistryError),
        ("leaky", RegistryError),
        ("lossy", RegistryError),
        ("texty", RegistryError),
        ("talky", RegistryError),
    ],
)
def test_a_kms_that_does_not_do(vault: Vault, monkeypatch, name: str, error: type[Exception]) -> None:
    monkeypatch.setenv(SOURCE, f"kms:{name}")
    with pytest.raises(error):
        vault.put(ONE, PAYLOAD)
    assert not vault.keys.complete()
    assert not vault.has(ONE)


@pytest.mark.usefixtures("kms")
def test_a_kms_that_is_away_is_not_damage(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE, "kms:kms")
    vault.put(ONE, PAYLOAD)
    monkeypatch.setenv(SOURCE, "kms:down")
    with pytest.raises(RegistryError, match="got ConnectionError") as caught:
        vault.read(ONE)
    assert type(caught.value) is RegistryError
    with pytest.raises(ValueError, match="not wrapped"):
        load("kms").unwrap(b"kms" + b"x" * 40)


def test_a_damaged_subject_key_is_told_from_a_wrong_one(vault: Vault, monkeypatch) -> None:
    monkeypatch.setenv("EFFACE_VAULT_KEY", text_of(local(1).key))
    vault.keys.prepare()
    path = vault.folder / "subject.key"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(BrokenRegistry, match=r"subject\.key"):
            vault.keys.subject()
    path.write_bytes(whole)
    monkeypatch.setenv("EFFACE_VAULT_KEY", text_of(local(2).key))
    with pytest.raises(InvalidInput, match="environment:"):
        vault.keys.subject()
