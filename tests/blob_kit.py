"""What the blob tests share: each kind of store with a back door to damage and age what it holds.

The S3 server is moto's, a real HTTP server that the test run starts; import the fixture `s3` to use it.
"""

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from efface.registry.blob_store import BlobStore
from efface.registry.blobs import Blobs, open_blobs, relative

KINDS = ("folder", "memory", "s3")
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}


@dataclass(frozen=True)
class Lab:
    """A new, empty store and its back door."""

    store: BlobStore
    write: Callable[[str, bytes], None]
    """Put bytes at a name below the store's root, past all checks."""
    age: Callable[[str, timedelta], None]
    """Make a blob look as if it was written that long ago."""


@dataclass(frozen=True)
class S3:
    """A running server."""

    endpoint: str

    def call(self, method: str, **arguments: Any) -> Any:
        import s3fs

        return s3fs.S3FileSystem(endpoint_url=self.endpoint).call_s3(method, **arguments)

    def bucket(self, *, versioned: bool = False) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        self.call("create_bucket", Bucket=name)
        if versioned:
            self.call(
                "put_bucket_versioning", Bucket=name, VersioningConfiguration={"Status": "Enabled"}
            )  # fmt: skip
        return name

    def store(self, bucket: str, prefix: str = "a/prefix", **options: Any) -> BlobStore:
        return open_blobs(f"s3://{bucket}/{prefix}", options={"endpoint_url": self.endpoint, **options})

    def versions(self, bucket: str) -> dict[str, int]:
        """How many versions each key has; a delete marker counts."""
        found = self.call("list_object_versions", Bucket=bucket)
        keys = [entry["Key"] for kind in ("Versions", "DeleteMarkers") for entry in found.get(kind, [])]
        return {key: keys.count(key) for key in keys}


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 API server for the test run."""
    pytest.importorskip("s3fs", reason="S3 tests need s3fs: pip install 'efface[s3]'")
    server_module = pytest.importorskip(
        "moto.server", reason="S3 tests need moto: pip install 'moto[server]'"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        server._server.app = one_at_a_time(server._server.app)
        host, port = server.get_host_and_port()
        yield S3(f"http://{host}:{port}")
        server.stop()


def one_at_a_time(app: Callable[..., Any]) -> Callable[..., Any]:
    """S3 decides a conditional write atomically. moto looks and then writes, in threads: let none between."""
    lock = threading.Lock()

    def serial(environ: Any, start_response: Any) -> Any:
        with lock:
            return app(environ, start_response)

    return serial


@pytest.fixture
def lab_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Lab]:
    """Makes a new lab of a kind; the S3 server is started for the first that asks."""
    return lambda kind: new_lab(kind, tmp_path, lambda: request.getfixturevalue("s3"))


def new_lab(kind: str, folder: Path, server: Callable[[], S3]) -> Lab:
    name = secrets.token_hex(6)
    if kind == "folder":
        return folder_lab(folder / name)
    return memory_lab(name) if kind == "memory" else s3_lab(server())


def folder_lab(folder: Path) -> Lab:
    def write(name: str, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def age(digest: str, by: timedelta) -> None:
        then = time.time() - by.total_seconds()
        os.utime(folder / relative(digest), (then, then))

    return Lab(Blobs(folder), write, age)


def memory_lab(name: str) -> Lab:
    import fsspec

    files = fsspec.filesystem("memory", use_listings_cache=False)

    def age(digest: str, by: timedelta) -> None:
        files.store[f"/{name}/{relative(digest)}"].created = datetime.now(UTC) - by

    return Lab(
        open_blobs(f"memory://{name}"), lambda path, data: files.pipe_file(f"/{name}/{path}", data), age
    )


def s3_lab(server: S3) -> Lab:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    bucket = server.bucket()

    def age(digest: str, by: timedelta) -> None:
        key = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_object(bucket, f"a/prefix/{relative(digest)}")
        key.last_modified = datetime.now(UTC).replace(tzinfo=None) - by

    def write(name: str, data: bytes) -> None:
        server.call("put_object", Bucket=bucket, Key=f"a/prefix/{name}", Body=data)

    return Lab(server.store(bucket), write, age)


def together(*scripts: str) -> list[str]:
    """Run the scripts at the same time in processes of their own; each prints its result."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for script in scripts
    ]  # fmt: skip
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), results
    return [output.strip() for output, _ in results]
