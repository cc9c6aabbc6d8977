"""A pushed release pulled into another registry: what is checked, what it becomes, what is refused."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_kit import Ran, checked, efface
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from foreign_kit import CONFIG_NAME, WEIGHTS_NAME, HubStub, base_folder, files, hub_at
from registry_kit import Clock, accept, ask, audited, contents, lora, release, seal, stack

from efface.adapters.model import fingerprint
from efface.registry import (
    Registry,
    activate_release,
    adapter_for_request,
    channels,
    compose,
    create_release,
    get_adapter,
    history,
    list_adapters,
    model_signing,
    release_file,
    verify,
)
from efface.registry.canon import canonical, digest_bytes

REPO = "acme/stack"
installed = importlib.util.find_spec("model_signing") is not None
needs_package = pytest.mark.skipif(not installed, reason="model-signing is an extra")
ONE, TWO = "req-000001", "req-000002"
# huggingface_hub hands the bytes of an LFS upload to its HTTP client as `data`; nothing that we call.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with hub_at(monkeypatch) as stub:
        yield stub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "base")


@pytest.fixture
def publisher(tmp_path: Path, model: Path) -> Path:
    """prod@1, rendered from two requests and active, and a log key."""
    root, base = tmp_path / "publisher", fingerprint(model).digest
    with Registry.open(root, create=True, clock=Clock()) as reg:
        made = [seal(reg, lora(tmp_path / f"p-{n}", n), [ask(reg)], base=base) for n in (1, 2)]
        both = compose(base, "nf4", [(adapter.digest, 1) for adapter in made])
        facts = {"composition": both.digest}
        whole = seal(reg, lora(tmp_path / "whole", 9), [ONE, TWO], kind="rendered", facts=facts, base=base)
        version = create_release(reg, "prod", both, rendered=whole.digest, reason="due", actor="ana").version
        audit = audited(reg, both)
        activate_release(reg, "prod", version, audit=audit.digest, approved_by="ben")
    for name in ("log", "stranger"):
        assert (
            efface("key", "generate", "--out", tmp_path / name, "--public", tmp_path / f"{name}.pub").code
            == 0
        )
    checked(root, "key", "add", tmp_path / "log.pub", "--name", "log", "--role", "log")
    return root


@pytest.fixture
def bundle(publisher: Path, tmp_path: Path) -> Path:
    out = tmp_path / "prod.efface.zip"
    words = ("--out", out, "--key", tmp_path / "log", "--origin", "acme.example/efface")
    assert efface("bundle", "export", "prod", *words, "--registry", publisher).code == 0
    return out


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Another registry, with two requests that the stack answers: one of them legal and accepted."""
    root = tmp_path / "home"
    with Registry.open(root, create=True, clock=Clock()) as reg:
        ask(reg)
        accept(reg, ask(reg, b"two", basis="gdpr17"))
    return root


def pull(home: Path, source: object, model: Path, *more: object) -> Ran:
    asked = ("--request", ONE, "--request", TWO, "--model", model)
    return efface("release", "pull", source, *asked, *more, "--registry", home, "--format", "json")


def test_a_release_goes_over_the_hub_with_its_evidence(
    publisher: Path, home: Path, bundle: Path, model: Path, hub: HubStub, tmp_path: Path
) -> None:
    pushed = checked(publisher, "release", "push", "prod", f"hub://{REPO}", "--evidence", bundle)
    (commit,) = set(hub.repos[REPO].branches.values())
    assert pushed["address"].endswith(commit)
    kept = tmp_path / "kept"
    done = checked(
        home, "release", "pull", f"hub://{REPO}", "--request", ONE, "--request", TWO, "--model", model,
        "--key", tmp_path / "log.pub", "--out", kept,
    )  # fmt: skip
    assert done["release"] == {"channel": "prod", "version": 1}
    assert (done["evidence"], len(done["signed_by"])) == ("trusted-key", 1)
    adapter = done["adapter"]
    assert (adapter["kind"], adapter["state"], adapter["requests"]) == ("trained", "SEALED", [ONE, TWO])
    published = adapter["facts"]["published"]
    assert adapter["facts"]["imported_from"] == f"hub://{REPO}@{commit}"
    assert (published["release"], published["adapter"]) == ("prod@1", pushed["adapter"])
    assert (published["audit"], published["composition"]) == (pushed["audit"], done["composition"])
    assert published["signed_by"] == done["signed_by"]
    with Registry.open(home) as reg, Registry.open(publisher) as other:
        assert adapter["files"] == dict(get_adapter(other, pushed["adapter"]).files)
        assert verify(reg, deep=True).ok
        assert channels(reg) == []  # nothing is served by itself
        assert adapter_for_request(reg, TWO).digest == adapter["digest"]
    names = {path.name for path in kept.iterdir()}
    assert names == {CONFIG_NAME, WEIGHTS_NAME, "README.md", "efface-release.json", "evidence.efface.zip"}
    assert efface("bundle", "verify", kept / "evidence.efface.zip", "--key", tmp_path / "log.pub").code == 0


def test_what_was_pulled_is_served_after_an_audit_here(
    publisher: Path, home: Path, model: Path, tmp_path: Path
) -> None:
    checked(publisher, "release", "push", "prod", tmp_path / "out")
    ran = pull(home, tmp_path / "out", model)
    assert (ran.code, ran.json["evidence"], ran.json["signed_by"]) == (0, "none", [])
    assert "efface release create CHANNEL --add req-000001 --add req-000002" in ran.err
    with Registry.open(home, clock=Clock()) as reg:
        adapter = adapter_for_request(reg, ONE)
        done = release(reg, compose(adapter.base, "nf4", [(adapter.digest, 1)]))
        assert [one.state for one in history(reg, "prod")] == [done.state] == ["ACTIVE"]
        assert verify(reg, deep=True).ok


def test_pulling_again_is_the_same_adapter(publisher: Path, home: Path, model: Path, tmp_path: Path) -> None:
    checked(publisher, "release", "push", "prod", tmp_path / "out")
    first = pull(home, tmp_path / "out", model)
    before = contents(home)
    assert pull(home, tmp_path / "out", model).json == first.json
    assert contents(home) == before


def test_evidence_that_nobody_here_knows_is_said_to_be_that(
    publisher: Path, home: Path, bundle: Path, model: Path, tmp_path: Path
) -> None:
    checked(publisher, "release", "push", "prod", tmp_path / "out", "--evidence", bundle)
    assert pull(home, tmp_path / "out", model).json["evidence"] == "unknown-key"
    unsigned = tmp_path / "unsigned.efface.zip"
    with Registry.open(publisher) as reg:
        ask(reg)
        release(reg, stack([]), "other")
    assert efface("bundle", "export", "prod", "--out", unsigned, "--registry", publisher).code == 0
    shutil.copy(unsigned, tmp_path / "out/evidence.efface.zip")
    assert pull(home, tmp_path / "out", model).json["evidence"] in ("unknown-key", "unsigned")


Change = Callable[[Path, Path], object]


def _json(change: Callable[[dict], object]) -> Change:
    def edit(out: Path, _: Path) -> None:
        record = json.loads((out / "efface-release.json").read_text())
        change(record)
        (out / "efface-release.json").write_bytes(canonical(record))

    return edit


def _weights(out: Path, _: Path) -> None:
    data = (out / WEIGHTS_NAME).read_bytes()
    (out / WEIGHTS_NAME).write_bytes(data[:-4] + b"\x00\x00\x00\x40")


def _other_adapter(out: Path, _: Path) -> None:
    """Consistent in itself, and not what the evidence shows."""
    for name, data in files().items():
        (out / name).write_bytes(data)
    record = json.loads((out / "efface-release.json").read_text())
    record["files"] = {name: digest_bytes(data) for name, data in files().items()}
    (out / "efface-release.json").write_bytes(canonical(record))


def _cut_bundle(out: Path, _: Path) -> None:
    data = bytearray((out / "evidence.efface.zip").read_bytes())
    data[len(data) // 2] ^= 1
    (out / "evidence.efface.zip").write_bytes(data)


def _of_a_request(out: Path, publisher: Path) -> None:
    (out / "evidence.efface.zip").unlink()
    assert (
        efface("bundle", "export", ONE, "--out", out / "evidence.efface.zip", "--registry", publisher).code
        == 0
    )


BAD: dict[str, tuple[Change, str]] = {
    "no release file": (lambda out, _: (out / "efface-release.json").unlink(), "efface adapter import"),
    "other weights": (_weights, "the files that the release names"),
    "another composition": (
        _json(lambda r: r["composition"]["parts"].pop()), "efface-release.json"
    ),
    "a failed audit": (_json(lambda r: r["audit"].update(verdict="fail")), "efface-release.json"),
    "another version": (_json(lambda r: r.update(version=2)), "evidence of prod@2"),
    "another channel": (_json(lambda r: r.update(channel="beta")), "evidence about the channel beta"),
    "another adapter": (_json(lambda r: r.update(adapter="sha256:" + "0" * 64)), "evidence of prod@1"),
    "a version in words": (_json(lambda r: r.update(version="1")), "efface-release.json"),
    "one field more": (_json(lambda r: r.update(more=1)), "efface-release.json"),
    "nested": (lambda out, _: (out / "efface-release.json").write_text("[" * 9000), "efface-release.json"),
    "other files under its name": (_other_adapter, "evidence of the adapter"),
    "a flipped byte in the evidence": (_cut_bundle, "expected"),
    "evidence that is none": (lambda out, _: (out / "evidence.efface.zip").write_bytes(b"PK"), "bundle"),
    "evidence about a request": (_of_a_request, "evidence about the channel prod"),
    "a link": (
        lambda out, _: ((out / "README.md").unlink(), (out / "README.md").symlink_to("/etc/passwd")), "a link"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(BAD))
def test_what_does_not_agree_is_refused(
    publisher: Path, home: Path, bundle: Path, model: Path, tmp_path: Path, fault: str
) -> None:
    checked(publisher, "release", "push", "prod", tmp_path / "out", "--evidence", bundle)
    change, said = BAD[fault]
    change(tmp_path / "out", publisher)
    before = contents(home)
    ran = pull(home, tmp_path / "out", model, "--out", tmp_path / "kept")
    assert ran.code in (1, 2), ran.out
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert contents(home) == before
    assert not (tmp_path / "kept").exists()


def test_a_key_asks_for_evidence_that_it_signed(
    publisher: Path, home: Path, bundle: Path, model: Path, tmp_path: Path
) -> None:
    checked(publisher, "release", "push", "prod", tmp_path / "bare")
    checked(publisher, "release", "push", "prod", tmp_path / "out", "--evidence", bundle)
    before = contents(home)
    ran = pull(home, tmp_path / "bare", model, "--key", tmp_path / "log.pub")
    assert (ran.code, "evidence.efface.zip" in ran.err) == (2, True)
    ran = pull(home, tmp_path / "out", model, "--key", tmp_path / "stranger.pub")
    assert (ran.code, "a key that you trust" in ran.err) == (1, True)
    assert contents(home) == before
    assert (
        pull(home, tmp_path / "out", model, "--key", tmp_path / "log.pub").json["evidence"] == "trusted-key"
    )


def test_another_base_undecided_requests_and_images_are_refused(
    publisher: Path, home: Path, model: Path, tmp_path: Path
) -> None:
    checked(publisher, "release", "push", "prod", tmp_path / "out")
    checked(publisher, "release", "push", "prod", f"oci:{tmp_path / 'image'}")
    with Registry.open(home) as reg:
        ask(reg, b"three", basis="ccpa")
    other = base_folder(tmp_path / "other")
    (other / "config.json").write_text('{"a": 1}')
    before = contents(home)
    assert "which it names" in pull(home, tmp_path / "out", other).err
    assert (
        "efface request verify req-000003"
        in pull(home, tmp_path / "out", model, "--request", "req-000003").err
    )
    assert "efface adapter import oci:" in pull(home, f"oci:{tmp_path / 'image'}", model).err
    assert contents(home) == before


def test_a_bundle_is_checked_before_it_is_pushed(publisher: Path, bundle: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "request.efface.zip"
    assert efface("bundle", "export", ONE, "--out", wrong, "--registry", publisher).code == 0
    refused = efface(
        "release", "push", "prod", tmp_path / "out", "--evidence", wrong, "--registry", publisher
    )
    assert (refused.code, (tmp_path / "out").exists()) == (1, False)
    refused = efface(
        "release", "push", "prod", f"oci:{tmp_path / 'out'}", "--evidence", bundle, "--registry", publisher
    )
    assert (refused.code, (tmp_path / "out").exists()) == (2, False)


def test_nothing_of_a_request_is_in_a_release_file(publisher: Path, tmp_path: Path) -> None:
    checked(publisher, "release", "push", "prod", tmp_path / "out")
    data = (tmp_path / "out/efface-release.json").read_bytes()
    assert b"req-" not in data
    with Registry.open(publisher) as reg:
        stated = release_file.read(data)
        assert stated.adapter in {adapter.digest for adapter in list_adapters(reg)}


def ec_key(folder: Path) -> tuple[Path, Path]:
    key = generate_private_key(SECP256R1())
    private, public = folder / "ec.pem", folder / "ec.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.mark.skipif(installed, reason="model-signing is installed")
def test_signing_without_the_extra_says_so_and_nothing_leaves(
    publisher: Path, tmp_path: Path, hub: HubStub
) -> None:
    private, _ = ec_key(tmp_path)
    for words in (("release", "push", "prod"), ("adapter", "export", adapter_of(publisher))):
        for target in (tmp_path / "out", f"hub://{REPO}"):
            ran = efface(*words, target, "--model-signing-key", private, "--registry", publisher)
            assert (ran.code, "pip install 'efface[model-signing]'" in ran.err) == (2, True)
            assert not (tmp_path / "out").exists()
    assert hub.repos == {}


def test_an_image_is_not_signed_that_way(publisher: Path, tmp_path: Path) -> None:
    private, _ = ec_key(tmp_path)
    words = ("release", "push", "prod", f"oci:{tmp_path / 'out'}", "--model-signing-key", private)
    ran = efface(*words, "--registry", publisher)
    assert (ran.code, "a folder or the Hub to sign" in ran.err) == (2, True)
    assert not (tmp_path / "out").exists()


@needs_package
def test_a_signed_folder_verifies_with_model_signing_s_own_tool(
    publisher: Path, bundle: Path, home: Path, model: Path, tmp_path: Path, hub: HubStub
) -> None:
    """As documented in docs/registry.md; everything that is pushed is covered, what was pulled too."""
    private, public = ec_key(tmp_path)
    signed = ("--evidence", bundle, "--model-signing-key", private)
    checked(publisher, "release", "push", "prod", tmp_path / "out", *signed)
    checked(publisher, "release", "push", "prod", f"hub://{REPO}", *signed)
    kept = tmp_path / "kept"
    assert pull(home, f"hub://{REPO}", model, "--out", kept).code == 0
    for folder in (tmp_path / "out", kept):
        model_signing.verify_folder(folder, public)
        tool = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
        tool += ["--signature", str(folder / "model.sig"), "--public_key", str(public)]
        assert subprocess.run(tool, check=False, capture_output=True).returncode == 0
        (folder / "README.md").write_text("changed")
        assert subprocess.run(tool, check=False, capture_output=True).returncode != 0


def adapter_of(root: Path) -> str:
    with Registry.open(root) as reg:
        return next(adapter.digest for adapter in list_adapters(reg) if adapter.kind == "rendered")
