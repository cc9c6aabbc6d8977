"""Ed25519 against RFC 8032's vectors; keys in files and in the environment."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as elliptic
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from efface.registry import Conflict, InvalidInput, NotFound, digest_bytes, signing

VECTORS = {  # RFC 8032 §7.1: secret key, public key, message, signature
    "TEST 1": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "TEST 2": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "TEST 3": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "TEST SHA(abc)": (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}
# RFC 8410 §10.1 and §10.3, an Ed25519 key pair in PEM.
RFC_8410_PUBLIC = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""
RFC_8410_PRIVATE = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
"""


def key(name: str = "TEST 1") -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS[name][0]))


@pytest.mark.parametrize("name", VECTORS)
def test_rfc_8032(name: str) -> None:
    _, public, message, signature = (bytes.fromhex(text) for text in VECTORS[name])
    pem = signing.public_pem(key(name))
    assert signing.raw_public(pem) == public
    assert signing.sign(key(name), message) == signature
    assert signing.verify(pem, signature, message)


def test_rfc_8410_keys_in_pem() -> None:
    private = signing.load_private(RFC_8410_PRIVATE)
    assert signing.public_pem(private) == RFC_8410_PUBLIC
    assert signing.private_pem(private) == RFC_8410_PRIVATE


def test_any_changed_byte_is_no_signature() -> None:
    pem, data = signing.public_pem(key()), b"data"
    signature = signing.sign(key(), data)
    for at in range(len(signature)):
        wrong = signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
        assert not signing.verify(pem, wrong, data)
    for wrong in (b"", signature[:-1], signature + b"\0", signature[::-1]):
        assert not signing.verify(pem, wrong, data)
    assert not signing.verify(pem, signature, b"date")
    assert not signing.verify(signing.public_pem(key("TEST 2")), signature, data)


def test_key_id_is_the_digest_of_the_spki() -> None:
    der = key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert signing.public_pem(key()) == pem
    assert signing.key_id(pem) == digest_bytes(der)


@pytest.mark.parametrize("change", ["crlf", "no-newline", "blank-line"])
def test_a_public_key_may_have_other_line_ends(change: str) -> None:
    pem = RFC_8410_PUBLIC
    other = {"crlf": pem.replace("\n", "\r\n"), "no-newline": pem[:-1], "blank-line": pem + "\n\n"}[change]
    assert signing.key_id(other) == signing.key_id(pem)


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "-----BEGIN PUBLIC KEY-----\n\n-----END PUBLIC KEY-----\n",
        RFC_8410_PRIVATE.decode(),
        RFC_8410_PUBLIC + RFC_8410_PUBLIC,
        "text\n" + RFC_8410_PUBLIC,
        RFC_8410_PUBLIC.replace("MCow", "MCox"),
        RFC_8410_PUBLIC.replace("ZuE=", "ZuF="),  # the same bytes, spelled with other padding bits
        RFC_8410_PUBLIC.replace("AGb9", "AGé9"),
        RFC_8410_PUBLIC.replace("PUBLIC", "SECRET"),
        elliptic(SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode(),
        "\n" * 100_000,
    ],
)
def test_what_is_no_ed25519_public_key_is_refused(pem: str) -> None:
    with pytest.raises(InvalidInput):
        signing.key_id(pem)


def test_a_key_file_is_its_owners_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    private = signing.generate()
    before = os.umask(0)
    try:
        signing.write_private(private, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing.public_pem(signing.read_private(path)) == signing.public_pem(private)
    written = path.read_bytes()
    with pytest.raises(Conflict):
        signing.write_private(signing.generate(), path)
    assert path.read_bytes() == written


def test_a_link_is_not_followed_to_write_a_key(tmp_path: Path) -> None:
    (tmp_path / "key.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict):
        signing.write_private(key(), tmp_path / "key.pem")
    assert not (tmp_path / "elsewhere").exists()


def test_a_passphrase_locks_the_key(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    signing.write_private(key(), path, b"correct horse")
    assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
    assert signing.public_pem(signing.read_private(path, b"correct horse")) == signing.public_pem(key())
    for wrong in (None, b"", b"wrong"):
        with pytest.raises(InvalidInput) as refused:
            signing.read_private(path, wrong)
        assert refused.value.__cause__ is None
        assert "wrong" not in str(refused.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        RFC_8410_PUBLIC.encode(),
        RFC_8410_PRIVATE[:-40],
        elliptic(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 100_000,
    ],
)
def test_what_is_no_ed25519_private_key_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        signing.load_private(data)


def test_a_passphrase_for_an_open_key_is_refused() -> None:
    with pytest.raises(InvalidInput):
        signing.load_private(RFC_8410_PRIVATE, b"passphrase")


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TEST 1", "TEST 2"):
        signing.write_private(key(name), tmp_path / name)
    by_text = {signing.VARIABLE: signing.private_pem(key("TEST 3")).decode()}
    by_file = {signing.FILE_VARIABLE: str(tmp_path / "TEST 1")}

    def found(*args: Path, environment: dict[str, str]) -> str:
        return signing.public_pem(signing.signing_key(*args, environment=environment))

    assert found(tmp_path / "TEST 2", environment=by_text) == signing.public_pem(key("TEST 2"))
    assert found(environment=by_text) == signing.public_pem(key("TEST 3"))
    assert found(environment=by_file) == signing.public_pem(key("TEST 1"))
    with pytest.raises(InvalidInput):
        found(environment=by_text | by_file)
    with pytest.raises(NotFound):
        found(environment={})
    with pytest.raises(NotFound):
        found(environment={signing.FILE_VARIABLE: str(tmp_path / "none")})
    monkeypatch.setenv(*next(iter(by_text.items())))
    monkeypatch.delenv(signing.FILE_VARIABLE, raising=False)
    assert signing.public_pem(signing.signing_key()) == signing.public_pem(key("TEST 3"))


def test_key_ids_need_no_cryptography_package() -> None:
    code = (
        "import sys; from efface.registry import checkpoints, dsse, merkle, notes, signing, statements, trust;"
        f"signing.key_id({RFC_8410_PUBLIC!r}); print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
