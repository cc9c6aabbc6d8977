"""What the tests of adapters in and out of the registry share: files by hand, packages, and a stub of the Hub."""

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import close_session
from registry_kit import BASE, CONFIG, tensors, weights_file

from efface.registry.canon import canonical, digest_bytes
from efface.registry.package import Package, package

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"


def pair(module: str, rank: int = 2, wide: int = 3, tall: int = 4) -> dict[str, tuple[str, list[int], bytes]]:
    """A LoRA pair in float32 on a linear layer of `wide` inputs and `tall` outputs."""
    a, b = (struct.pack(f"<{n}f", *range(n)) for n in (rank * wide, tall * rank))
    name = f"base_model.model.{module}.lora_{{}}.weight".format
    return {name("A"): ("F32", [rank, wide], a), name("B"): ("F32", [tall, rank], b)}


def files(config: Mapping[str, Any] | None = None, weights: bytes | None = None) -> dict[str, bytes]:
    """The two files of an adapter."""
    return {
        CONFIG_NAME: json.dumps({**CONFIG, **(config or {})}).encode(),
        WEIGHTS_NAME: weights_file(tensors()) if weights is None else weights,
    }


def packed(requests: Sequence[str] = ("req-000001", "req-000002"), **changes: Any) -> Package:
    """A sealed adapter, by default a rendered stack of two requests."""
    adapter = files()
    manifest = {
        "v": 1,
        "kind": "rendered",
        "base": BASE,
        "quantization": "nf4",
        "files": {name: digest_bytes(data) for name, data in adapter.items()},
        "requests": list(requests),
        "trained_on": None,
        "facts": {"composition": "sha256:" + "c" * 64, "rank": 2},
        **changes,
    }
    return package(canonical(manifest), adapter)


def base_folder(folder: Path) -> Path:
    """A model folder with one 3 × 3 layer, which `registry_kit.tensors` fits."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    layers = {"layers.0.q_proj.weight": ("F32", [3, 3], bytes(36))}
    (folder / "model.safetensors").write_bytes(weights_file(layers, __metadata__={"format": "pt"}))
    return folder


def sha1_of(data: bytes) -> str:
    """git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = self.branches.get(revision, revision)
        return commit, self.commits[commit]

    def commit(self, branch: str, changes: Mapping[str, bytes]) -> str:
        parent = self.branches.get(branch)
        tree = {**(self.commits[parent] if parent else {}), **changes}
        made = hashlib.sha1(repr((parent, sorted(tree.items()))).encode()).hexdigest()
        self.commits[made] = tree
        self.branches[branch] = made
        return made


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class HubStub:
    """The part of the Hub's HTTP API that huggingface_hub uses, in memory. `faults` replace answers by path."""

    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    calls: list[tuple[str, str, str | None]] = field(default_factory=list)
    faults: dict[str, Callable[[Answer], Answer]] = field(default_factory=dict)
    url: str = ""
    storage: str = ""

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        path = unquote(urlsplit(target).path).strip("/")
        made = self._answer(method, path, body)
        return next((fault(made) for part, fault in self.faults.items() if part in path), made)

    def _answer(self, method: str, path: str, body: bytes) -> Answer:
        parts = path.split("/")
        if path == "api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if parts[0] == "storage":
            return self._storage(method, parts[1], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return _json(
                {"transfer": "basic", "objects": [self._upload(o) for o in json.loads(body)["objects"]]}
            )
        in_api = parts[:2] == ["api", "models"]
        repo_id = "/".join(parts[2:4] if in_api else parts[:2])
        if repo_id not in self.repos:
            return _error(404, "RepoNotFound")
        repo, rest = self.repos[repo_id], parts[4:] if in_api else parts[2:]
        return self._in_repo(repo, repo_id, rest, body)

    def _in_repo(self, repo: Repo, repo_id: str, rest: list[str], body: bytes) -> Answer:
        verb, revision = (rest[0] if rest else "revision"), (rest[1] if len(rest) > 1 else "main")
        if verb == "branch":
            if revision in repo.branches:
                return _error(409, "")
            repo.branches[revision] = repo.branches["main"]
            return _json({})
        if verb != "commit" and revision not in {*repo.branches, *repo.commits}:
            return _error(404, "RevisionNotFound")
        if verb == "revision":
            sha = repo.at(revision)[0]
            return _json({"id": repo_id, "sha": sha, "private": repo.private, "siblings": [], "tags": []})
        if verb == "preupload":
            named = [file["path"] for file in json.loads(body)["files"]]
            return _json({"files": [_mode(name) for name in named]})
        if verb == "paths-info":
            asked = parse_qs(body.decode())["paths"]
            tree = repo.at(revision)[1]
            return _json([_info(name, tree[name]) for name in asked if name in tree])
        if verb == "resolve":
            return self._resolve(repo.at(revision)[1], "/".join(rest[2:]))
        changes = dict(self._change(json.loads(line)) for line in body.splitlines()[1:])
        made = repo.commit(revision, changes)
        return _json({"success": True, "commitOid": made, "commitUrl": f"{self.url}/{repo_id}/commit/{made}"})

    def _create(self, wanted: Mapping[str, Any]) -> Answer:
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        where = {"url": f"{self.url}/{repo_id}"}
        if repo_id in self.repos:
            return 409, {}, json.dumps({**where, "error": "exists"}).encode()
        self.repos[repo_id] = Repo(wanted.get("visibility") == "private")
        self.repos[repo_id].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return _json(where)

    def _upload(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.storage}/storage/{wanted['oid']}"}}}

    def _storage(self, method: str, oid: str, body: bytes) -> Answer:
        if method == "PUT":
            assert hashlib.sha256(body).hexdigest() == oid
            self.objects[oid] = body
            return 200, {}, b""
        return 200, {}, self.objects[oid]

    def _change(self, line: Mapping[str, Any]) -> tuple[str, bytes]:
        value = line["value"]
        if line["key"] == "lfsFile":
            return value["path"], self.objects[value["oid"]]
        return value["path"], base64.b64decode(value["content"])

    def _resolve(self, tree: Mapping[str, bytes], name: str) -> Answer:
        if name.endswith(".safetensors"):
            oid = hashlib.sha256(tree[name]).hexdigest()
            self.objects[oid] = tree[name]
            return 302, {"Location": f"{self.storage}/storage/{oid}"}, b""
        return 200, {}, tree[name]


def _mode(name: str) -> dict[str, Any]:
    kind = "lfs" if name.endswith(".safetensors") else "regular"
    return {"path": name, "uploadMode": kind, "shouldIgnore": False}


def _info(name: str, data: bytes) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": sha1_of(data)}
    if name.endswith(".safetensors"):
        made["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return made


def _json(value: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status: int, code: str) -> Answer:
    return status, {"X-Error-Code": code, "Content-Type": "application/json"}, b'{"error": "no"}'


@contextmanager
def served(hub: HubStub) -> Iterator[str]:
    """Real HTTP on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            chunked = self.headers.get("Transfer-Encoding") == "chunked"
            body = (
                self._chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
            )
            hub.calls.append((self.command, self.path, self.headers.get("Authorization")))
            status, headers, data = hub.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = headers.get("Connection") == "close"

        def _chunks(self) -> bytes:
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        do_GET = do_POST = do_PUT = do_HEAD = _do

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    """A stub of the Hub that huggingface_hub talks to by HF_ENDPOINT."""
    stub = HubStub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with served(stub) as url, served(stub) as storage:
        stub.url, stub.storage = url, storage
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield stub
        close_session()
