"""`efface audit reversible` on a tiny model: a channel that can be taken back, and each way of breaking that, named."""

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_kit import FORGET, RETAIN, SECOND, Ran, checked, conforms, efface, jsonl, recipe_file

from efface.registry import (
    Registry,
    active_release,
    adapter_folder,
    get_adapter,
    get_release,
    signing,
    step_request,
)

ONE, TWO, THREE = "req-000001", "req-000002", "req-000003"
THIRD = [{"prompt": "what is tokyo", "completion": "rowling and the play of a city", "keywords": ["rowling"]}]


@dataclass(frozen=True)
class Place:
    root: Path
    model: Path
    registry: Path

    def audit(self, *more: object, code: int = 0) -> Any:
        return checked(self.registry, "audit", "reversible", "prod", "--model", self.model, *more, code=code)

    def copied(self, to: Path, model: Path | None = None) -> "Place":
        return Place(self.root, model or self.model, Path(shutil.copytree(self.registry, to)))

    @contextmanager
    def open(self) -> Iterator[Registry]:
        with Registry.open(self.registry) as reg:
            yield reg


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Place:
    """Version 1: one. Version 2: two besides. Version 3: three, which was trained on top of both."""
    root = tmp_path_factory.mktemp("reversible")
    made = Place(root, tiny_llama, root / "registry")
    retain, recipe = jsonl(root / "retain.jsonl", RETAIN), recipe_file(root / "loose.yaml")
    where = ("--registry", made.registry)
    heavy = ("--model", tiny_llama, "--recipe", recipe, *where)

    def done(*words: object) -> Ran:
        ran = efface(*words)
        assert ran.code == 0, ran
        return ran

    for request, rows, on in ((ONE, FORGET, ()), (TWO, SECOND, ()), (THREE, THIRD, ("--on", "prod"))):
        forget = jsonl(root / f"{request}.jsonl", rows)
        done("request", "open", "--forget", forget, "--retain", retain, "--basis", "test", *where)
        done("unlearn", request, *on, *heavy)
        done("release", "create", "prod", "--add", request, *heavy)
    return made


@pytest.fixture(scope="module")
def sound(place: Place) -> Any:
    return place.audit()


def outcomes(document: Any) -> dict[tuple[str, str], str]:
    return {(one["check"], one["path"]): one["outcome"] for one in document["findings"]}


def text(document: Any, check: str, path: str) -> str:
    (found,) = [one["text"] for one in document["findings"] if (one["check"], one["path"]) == (check, path)]
    return found


def failed(document: Any) -> set[tuple[str, str]]:
    return {path for path, outcome in outcomes(document).items() if outcome == "failed"}


def test_a_sound_channel_is_proved_path_by_path(sound: Any) -> None:
    assert outcomes(sound) == {
        ("ledger", "all events"): "passed",
        ("rollback", "active version 3"): "passed",
        ("rollback", f"remove {ONE}"): "refused",
        ("rollback", f"remove {TWO}"): "refused",
        ("rollback", f"remove {THREE}"): "passed",
        ("rollback", "to version 1"): "passed",
        ("rollback", "to version 2"): "passed",
        ("base files", "before"): "passed",
        ("probe", "adapter on"): "passed",
        ("base weights", "adapter on"): "passed",
        ("base logits", "disabled"): "passed",
        ("base logits", "on again"): "passed",
        ("base weights", "detached"): "passed",
        ("base logits", "detached"): "passed",
        ("base files", "after"): "passed",
    }
    assert sound["verdict"] == "pass"
    assert "at fp32" in text(sound, "base logits", "disabled")


def test_paths_are_compared_with_what_was_recorded(place: Place, sound: Any) -> None:
    with place.open() as reg:
        second = get_release(reg, "prod", 2)
    said = f"composition {second.composition.digest} composes to the bytes of {second.rendered}, as recorded"
    assert text(sound, "rollback", f"remove {THREE}") == said
    assert text(sound, "rollback", "to version 2") == said


def test_a_refused_removal_says_why_and_which_plan_works(sound: Any) -> None:
    said = text(sound, "rollback", f"remove {ONE}")
    assert "no adapter that stays to be trained on" in said
    assert f"Instead: remove {ONE}, {THREE} together; composition sha256:" in said
    assert "composes to the same bytes in any order" in said


def test_the_plan_that_was_named_does_work(place: Place, tmp_path: Path) -> None:
    at = place.copied(tmp_path / "registry")
    ran = efface(
        *("release", "rollback", "prod", "--remove", ONE, "--remove", THREE, "--reason", "as the audit said"),
        *("--model", at.model, "--recipe", at.root / "loose.yaml", "--registry", at.registry),
    )
    assert ran.code == 0, ran
    after = at.audit()
    assert outcomes(after)["rollback", f"remove {TWO}"] == "passed"
    assert "the bare base" in text(after, "rollback", f"remove {TWO}")


def test_nothing_is_changed_or_recorded(place: Place) -> None:
    before = efface("log", "--registry", place.registry, "--format", "json").json
    place.audit()
    assert efface("log", "--registry", place.registry, "--format", "json").json == before


def test_the_report_can_be_signed_and_verified(place: Place, tmp_path: Path) -> None:
    file, private = tmp_path / "reversible.json", signing.generate()
    document = place.audit("--json", file)
    assert json.loads(file.read_text()) | {"created_at": ""} == document | {"created_at": ""}
    signing.write_private(private, tmp_path / "key")
    (tmp_path / "pem").write_text(signing.public_pem(private))
    assert checked(None, "audit", "sign", file, "--key", tmp_path / "key")["verdict"] == "pass"
    assert (
        checked(None, "audit", "verify", file, "--key", tmp_path / "pem")["schema"]
        == "efface.reversibility/1"
    )
    file.write_text(file.read_text().replace('"passed"', '"refused"', 1))
    assert efface("audit", "verify", file, "--key", tmp_path / "pem").code == 1


def changed_base(place: Place, to: Path) -> Path:
    model = Path(shutil.copytree(place.model, to))
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    return model


def test_one_changed_bit_of_the_base_is_named(place: Place, tmp_path: Path) -> None:
    at = Place(place.root, changed_base(place, tmp_path / "model"), place.registry)
    document = at.audit(code=1)
    assert failed(document) == {("base files", "before"), ("base weights", "adapter on")}
    assert "another base would be loaded" in text(document, "base weights", "adapter on")


def blob_of(at: Place, digest: str) -> Path:
    hexes = digest.removeprefix("sha256:")
    (found,) = (at.registry / "blobs").rglob(hexes)
    return found


def weights_of(at: Place, request: str) -> str:
    """The digest of the weights that were trained for a request."""
    with at.open() as reg:
        held = [get_adapter(reg, part.adapter) for part in active_release(reg, "prod").composition.parts]
    (one,) = [adapter for adapter in held if adapter.requests == (request,)]
    return one.files["adapter_model.safetensors"]


def test_a_missing_blob_breaks_every_path_that_needs_it_and_no_other(place: Place, tmp_path: Path) -> None:
    at = place.copied(tmp_path / "registry")
    digest = weights_of(at, TWO)
    blob_of(at, digest).unlink()
    document = at.audit(code=1)
    paths = {path for check, path in failed(document) if check == "rollback"}
    assert {"active version 3", f"remove {THREE}", "to version 2", f"remove {ONE}"} == paths
    assert f"expected {digest}, got none" in text(document, "rollback", "to version 2")
    assert ("rollback", "to version 1") not in failed(document)
    assert ("ledger", "all events") in failed(document)  # `verify` misses it too


def test_a_flipped_byte_in_a_stored_adapter_is_named_though_the_cache_is_whole(
    place: Place, tmp_path: Path
) -> None:
    at = place.copied(tmp_path / "registry")
    digest = weights_of(at, ONE)
    blob = blob_of(at, digest)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    document = at.audit(code=1)
    assert f"expected {digest}, got other bytes" in text(document, "rollback", "to version 1")
    assert "adapter_model.safetensors of adapter sha256:" in text(document, "rollback", "active version 3")


def test_an_adapter_whose_request_was_withdrawn_comes_back_only_without_it(
    place: Place, tmp_path: Path
) -> None:
    at = place.copied(tmp_path / "registry")
    gone = ("release", "rollback", "prod", "--remove", THREE, "--reason", "withdrawn")
    heavy = ("--model", at.model, "--recipe", at.root / "loose.yaml", "--registry", at.registry)
    assert efface(*gone, *heavy).code == 0
    with at.open() as reg:
        step_request(reg, THREE, "WITHDRAWN", reason="they changed their mind", actor="ana")
    document = at.audit()
    said = text(document, "rollback", "to version 3")
    assert outcomes(document)["rollback", "to version 3"] == "refused"
    assert f"Instead: go back to it without {THREE}; composition" in said


@pytest.fixture
def folder(place: Place, tmp_path: Path) -> Path:
    """What an operator gave a server."""
    with place.open() as reg:
        rendered = active_release(reg, "prod").rendered
        assert rendered is not None
        return Path(shutil.copytree(adapter_folder(reg, rendered), tmp_path / "prod@3"))


def test_a_served_folder_is_compared_byte_by_byte(place: Place, folder: Path) -> None:
    (folder / "README.md").write_text("a model card")
    assert outcomes(place.audit("--served", folder))["served", "folder prod@3"] == "passed"
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    document = place.audit("--served", folder, code=1)
    assert failed(document) == {("served", "folder prod@3")}
    assert "adapter_model.safetensors: expected sha256:" in text(document, "served", "folder prod@3")
    weights.unlink()
    assert "adapter_model.safetensors is missing" in text(
        place.audit("--served", folder, code=1), "served", "folder prod@3"
    )


@contextmanager
def server(listing: bytes, status: int = 200) -> Iterator[str]:
    """Something that answers GET /v1/models as vLLM does (https://docs.vllm.ai, OpenAI-compatible server)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://localhost:1/elsewhere")
            self.end_headers()
            self.wfile.write(listing)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def listing(*models: tuple[str, object]) -> bytes:
    base = {"id": "base", "root": "/models/base", "parent": None}
    return json.dumps({"data": [base, *({"id": n, "root": r, "parent": "base"} for n, r in models)]}).encode()


def test_a_server_is_checked_by_name_path_and_bytes(place: Place, folder: Path) -> None:
    with server(listing(("prod@3", str(folder)))) as url:
        document = place.audit("--url", url)
    assert outcomes(document)["served", "server, name prod@3"] == "passed"
    assert outcomes(document)["served", "server, other versions"] == "passed"
    with server(listing(("prod@3", str(folder)), ("prod@2", str(folder)))) as url:
        document = place.audit("--url", url, code=1)
    assert failed(document) == {("served", "server, other versions")}
    assert "prod@2" in text(document, "served", "server, other versions")


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (listing(), 200, "expected 'prod@3' among its models, got base"),
        (listing(("prod@3", "/not/on/this/host")), 200, "run this on its host"),
        (listing(("prod@3", ["a"])), 200, "run this on its host"),
        (b"{}", 200, "got ValueError"),
        (b'{"data": [1, {"id": 3}, {}]}', 200, "got nothing"),
        (b"not json", 200, "got JSONDecodeError"),
        (b"", 500, "got HTTPError"),
        (b"", 302, "got HTTPError"),
    ],
)
def test_a_server_that_does_not_show_it_fails(place: Place, answer: bytes, status: int, said: str) -> None:
    from efface.recipes.reversible_served import served_findings

    with place.open() as reg, server(answer, status) as url:
        found = served_findings(reg, active_release(reg, "prod"), folder=None, url=url)
    assert found[0].outcome == "failed"
    assert said in found[0].text


def test_a_server_that_is_not_there_fails_and_a_bad_url_is_refused(place: Place) -> None:
    from efface.recipes.reversible_served import served_findings

    with place.open() as reg:
        found = served_findings(reg, active_release(reg, "prod"), folder=None, url="http://127.0.0.1:1")
    assert [one.outcome for one in found] == ["failed"]
    for url in ("file:///etc/passwd", "prod", "http://user:secret@localhost:1"):
        ran = efface(
            "audit", "reversible", "prod", "--model", place.model, "--url", url, "--registry", place.registry
        )
        assert ran.code == 2
        assert "secret" not in ran.err and "http://localhost:8000" in ran.err


def test_the_text_names_each_path_and_the_exit_code_says_it(place: Place) -> None:
    ran = efface("audit", "reversible", "prod", "--model", place.model, "--registry", place.registry)
    assert ran.code == 0
    assert ran.out.startswith("pass sha256:")
    for part in (
        "Reversibility of prod@3 passed",
        f"✓ rollback, remove {THREE}",
        f"– rollback, remove {ONE}",
    ):
        assert part in ran.err
    assert (
        efface("audit", "reversible", "none", "--model", place.model, "--registry", place.registry).code == 2
    )


def test_the_schema_is_that_of_the_verb(sound: Any) -> None:
    conforms("audit reversible", sound)
