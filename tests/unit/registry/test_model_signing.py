"""Folders signed with OpenSSF Model Signing, where that package is installed."""

import importlib.util
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from efface.registry import GateFailed, InvalidInput, NotFound, model_signing, signing

installed = importlib.util.find_spec("model_signing") is not None
needs_package = pytest.mark.skipif(not installed, reason="model-signing is an extra")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapter"
    made.mkdir()
    (made / "adapter_config.json").write_text("{}")
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    return made


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    key = generate_private_key(SECP256R1())
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.mark.skipif(installed, reason="model-signing is installed")
def test_without_the_package_the_error_names_the_extra(folder: Path, keys: tuple[Path, Path]) -> None:
    for call, key in ((model_signing.sign_folder, keys[0]), (model_signing.verify_folder, keys[1])):
        with pytest.raises(NotFound, match=r"efface\[model-signing\]"):
            call(folder, key)
    assert not (folder / model_signing.SIGNATURE).exists()


@needs_package
def test_signed_and_verified(folder: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert model_signing.sign_folder(folder, private) == folder / "model.sig"
    model_signing.verify_folder(folder, public)
    model_signing.sign_folder(folder, private)  # again: the signature is not part of what is signed
    model_signing.verify_folder(folder, public)


@needs_package
@pytest.mark.parametrize("change", ["changed", "added", "removed", "renamed", "signature", "no-bundle"])
def test_tampering_is_found(folder: Path, keys: tuple[Path, Path], change: str) -> None:
    private, public = keys
    signature = model_signing.sign_folder(folder, private)
    weights = folder / "adapter_model.safetensors"
    if change == "changed":
        weights.write_bytes(b"weightz")
    elif change == "added":
        (folder / "more").write_bytes(b"")
    elif change == "removed":
        weights.unlink()
    elif change == "renamed":
        weights.rename(folder / "other")
    else:
        text = signature.read_text()
        signature.write_text(text.replace('"sig":"', '"sig":"AAAA') if change == "signature" else "{}")
        assert signature.read_text() != text
    with pytest.raises(GateFailed):
        model_signing.verify_folder(folder, public)


@needs_package
def test_other_keys_are_refused(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    ed25519 = tmp_path / "ed25519.pem"
    signing.write_private(signing.generate(), ed25519)
    with pytest.raises(InvalidInput):
        model_signing.sign_folder(folder, ed25519)
    with pytest.raises(InvalidInput):
        model_signing.sign_folder(folder, keys[1])
    with pytest.raises(NotFound):
        model_signing.verify_folder(folder, keys[1])
    assert not (folder / model_signing.SIGNATURE).exists()
    model_signing.sign_folder(folder, keys[0])
    with pytest.raises(InvalidInput):
        model_signing.verify_folder(folder, ed25519)
    other = tmp_path / "other.pub"
    public = generate_private_key(SECP256R1()).public_key()
    other.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(GateFailed):
        model_signing.verify_folder(folder, other)


@needs_package
def test_a_passphrase(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    locked = tmp_path / "locked.pem"
    key = generate_private_key(SECP256R1())
    locked.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"horse"))
    )
    for wrong in (None, b"cow"):
        with pytest.raises(InvalidInput):
            model_signing.sign_folder(folder, locked, wrong)
    model_signing.sign_folder(folder, locked, b"horse")


@needs_package
def test_a_folder_with_links_is_refused(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (folder / "link").symlink_to(tmp_path / "key.pem")
    with pytest.raises(InvalidInput):
        model_signing.sign_folder(folder, keys[0])
