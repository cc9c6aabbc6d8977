"""Blobs on a real S3 API server: conditional writes, uploads in parts, versions, races, and what errors say."""

import socket
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest
from blob_kit import S3, s3, together  # noqa: F401 - fixture

from efface.registry import BrokenRegistry, InvalidInput, NotFound, RegistryError, blobs_s3, digest_bytes
from efface.registry.blobs import relative
from efface.registry.blobs_fsspec import FsspecBlobs
from efface.registry.gc import execute, plan

SMALL_PART = 5 * 2**20
"""The least that S3 takes; the tests upload in such parts, but for the one that measures memory."""
LARGE = bytes(range(256)) * (2 * SMALL_PART // 256) + b"and a third part"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_s3, "PART", SMALL_PART)


@pytest.fixture
def bucket(s3: S3) -> str:  # noqa: F811
    return s3.bucket()


def test_keys_and_listing(s3: S3, bucket: str) -> None:  # noqa: F811
    store = s3.store(bucket)
    digest = store.put(b"bytes")
    assert s3.versions(bucket) == {f"a/prefix/{relative(digest)}": 1}
    assert store.where(digest) == f"s3://{bucket}/a/prefix/{relative(digest)}"
    assert store.local_path(digest) is None
    assert list(s3.store(bucket, "")) == []
    assert list(s3.store(bucket, "a")) == []


def test_a_listing_of_more_than_a_page(s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    store = s3.store(bucket)
    put = sorted(store.put(bytes([number])) for number in range(8))
    assert list(store) == put


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["one request", "in parts"])
def test_a_write_that_lost_the_race_changes_nothing(s3: S3, bucket: str, data: bytes) -> None:  # noqa: F811
    """The window between looking and writing, held open: the second conditional write finds the first."""
    store = s3.store(bucket)
    assert isinstance(store, FsspecBlobs)
    digest = digest_bytes(data)
    s3.call("put_object", Bucket=bucket, Key=f"a/prefix/{relative(digest)}", Body=b"was here first")
    assert not store._write(digest, data, "create")  # pyright: ignore[reportPrivateUsage]
    assert store.size(digest) == len(b"was here first")
    assert store.leftovers() == []


def test_a_damaged_copy_is_an_error_unless_asked_to_repair(s3: S3, bucket: str) -> None:  # noqa: F811
    store = s3.store(bucket)
    digest = store.put(LARGE)
    assert store.read(digest) == LARGE
    assert store.intact(digest)
    s3.call("put_object", Bucket=bucket, Key=f"a/prefix/{relative(digest)}", Body=LARGE[:-1] + b"!")
    with pytest.raises(BrokenRegistry, match=digest):
        store.read(digest)
    with pytest.raises(BrokenRegistry, match=digest):
        store.put(LARGE)
    assert not store.intact(digest)
    store.put(LARGE, repair=True)
    assert store.intact(digest)


def test_delete_leaves_no_version_behind(s3: S3) -> None:  # noqa: F811
    bucket = s3.bucket(versioned=True)
    store = s3.store(bucket)
    digest, other = store.put(b"bytes"), store.put(b"other")
    s3.call("put_object", Bucket=bucket, Key=f"a/prefix/{relative(digest)}", Body=b"damaged")
    store.put(b"bytes", repair=True)
    assert s3.versions(bucket)[f"a/prefix/{relative(digest)}"] == 3
    store.delete(digest)
    store.delete(digest)
    assert s3.versions(bucket) == {f"a/prefix/{relative(other)}": 1}


def test_an_upload_that_was_begun_is_a_leftover_and_no_blob(s3: S3, bucket: str) -> None:  # noqa: F811
    store, beside = s3.store(bucket), s3.store(bucket, "a/pre")
    key = f"a/prefix/{relative(digest_bytes(b'never finished'))}"
    upload = s3.call("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    part = {"Bucket": bucket, "Key": key, "UploadId": upload, "PartNumber": 1}
    s3.call("upload_part", Body=b"never finished", **part)
    assert (list(store), beside.leftovers()) == ([], [])
    (leftover,) = store.leftovers()
    assert leftover.name.startswith("sha256/")
    planned = plan(store, set(), set())  # moto says that every upload began in 2010
    assert [(item.kind, item.reason) for item in planned.items] == [("leftover", "unfinished")]
    assert execute(store, planned, set()).deleted == planned.items
    assert store.leftovers() == []
    store.discard(leftover.name)
    for other in ("", "sha256/ab", "../other?uploadId=1"):
        with pytest.raises(InvalidInput):
            store.discard(other)


RACE = """
import random
from blob_kit import S3
from efface.registry import blobs_s3
blobs_s3.PART = {part}
store = S3({endpoint!r}).store({bucket!r})
blobs = [bytes([n]) * 10 for n in range(6)] + [bytes(2 * {part} + 1)]
random.Random({seed}).shuffle(blobs)
print(*sorted(store.put(blob) for blob in blobs), store.intact(store.put(bytes(2 * {part} + 1))))
"""


def test_processes_that_put_the_same_blobs_write_each_once(s3: S3) -> None:  # noqa: F811
    """The bucket keeps versions: one version per key is one write, however many tried."""
    bucket = s3.bucket(versioned=True)
    scripts = [
        RACE.format(endpoint=s3.endpoint, bucket=bucket, seed=seed, part=SMALL_PART) for seed in range(3)
    ]
    outputs = together(*scripts)
    assert len(set(outputs)) == 1
    assert outputs[0].endswith("True")
    assert list(s3.versions(bucket).values()) == [1] * 7
    assert s3.store(bucket).leftovers() == []


KILLED = """
import os, signal, sys
import s3fs
from blob_kit import S3
from efface.registry import blobs_s3, digest_bytes
blobs_s3.PART = {part}
store, data = S3({endpoint!r}).store({bucket!r}), bytes(2 * {part} + 1)
calls, last, call = 0, 0, s3fs.S3FileSystem._call_s3

async def counted(self, method, *arguments, **named):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return await call(self, method, *arguments, **named)

def forked(act):
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    return os.waitpid(child, 0)[1]

def look():
    s3fs.S3FileSystem._call_s3 = call
    os._exit(store.size(digest_bytes(data)) is not None)

s3fs.S3FileSystem._call_s3 = counted
while True:
    last += 1
    if forked(lambda: store.put(data)) == 0:
        break
    assert forked(look) == 0
print(last - 1)
"""


def test_killed_at_every_request_of_an_upload_the_blob_is_absent_and_can_be_put_again(s3: S3) -> None:  # noqa: F811
    bucket = s3.bucket()
    store, digest = s3.store(bucket), digest_bytes(bytes(2 * SMALL_PART + 1))
    (kills,) = together(KILLED.format(endpoint=s3.endpoint, bucket=bucket, part=SMALL_PART))
    assert int(kills) >= 6  # look, begin, three parts, complete
    assert store.intact(digest)
    assert store.leftovers()
    execute(store, plan(store, {digest}, set()), {digest})
    assert (store.leftovers(), list(store)) == ([], [digest])


PEAK = """
import resource
from blob_kit import S3
store = S3({endpoint!r}).store({bucket!r})
store.read(store.put(b"warm"))
data = bytes(96 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
digest = store.put(data)
put = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
del data
assert store.intact(digest) and len(store.read(digest)) == 96 * 2**20
print(put - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_near_two_copies(s3: S3, bucket: str) -> None:  # noqa: F811
    """KiB above the caller's own copy; parts in flight are at most ten of 16 MiB."""
    (output,) = together(PEAK.format(endpoint=s3.endpoint, bucket=bucket))
    put, read = map(int, output.split())
    assert put < 1.6 * 96 * 1024
    assert read < 1.6 * 96 * 1024


def test_it_may_cross_a_fork(s3: S3, bucket: str) -> None:  # noqa: F811
    script = f"""
import os
from blob_kit import S3
store = S3({s3.endpoint!r}).store({bucket!r})
digest = store.put(b"before the fork")
child = os.fork()
if child == 0:
    os._exit(0 if store.read(digest) == b"before the fork" and store.put(b"in the child") else 1)
print(os.waitpid(child, 0)[1], store.read(digest))
"""
    assert together(script) == ["0 b'before the fork'"]
    assert len(list(s3.store(bucket))) == 2


CALLS = {
    "put": lambda store: store.put(b"bytes"),
    "read": lambda store: store.read(digest_bytes(b"bytes")),
    "size": lambda store: store.size(digest_bytes(b"bytes")),
    "list": list,
    "delete": lambda store: store.delete(digest_bytes(b"bytes")),
    "leftovers": lambda store: store.leftovers(),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_bucket(s3: S3, call: str) -> None:  # noqa: F811
    with pytest.raises(NotFound, match="Create the bucket"):
        CALLS[call](s3.store("no-such-bucket"))


@pytest.mark.parametrize("call", ["put", "list"])  # each takes s3fs two seconds of trying again
def test_nothing_listens_there(s3: S3, call: str) -> None:  # noqa: F811
    store = S3("http://someone:secretword@127.0.0.1:9").store("bucket")
    with pytest.raises(RegistryError, match="Check the network") as raised:
        CALLS[call](store)
    assert "secretword" not in str(raised.value) + repr(raised.value) + repr(store)
    assert raised.value.__suppress_context__


def test_no_credentials(s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    store = s3.store(bucket, skip_instance_cache=True)
    with pytest.raises(RegistryError, match="Set AWS_PROFILE"):
        store.put(b"bytes")


def test_no_permission(s3: S3, bucket: str) -> None:  # noqa: F811
    check_permissions(s3, after="0")
    try:
        for name, call in CALLS.items():
            with pytest.raises(RegistryError, match="s3:GetObject") as raised:
                call(s3.store(bucket))
            assert "no permission" in str(raised.value), name
            assert "testing" not in str(raised.value)
    finally:
        check_permissions(s3, after="Infinity")


def check_permissions(s3: S3, *, after: str) -> None:  # noqa: F811
    """moto's switch: from the n-th request on, the identity needs a policy, and ours has none."""
    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{s3.endpoint}/moto-api/reset-auth", after.encode(), headers)
    urllib.request.urlopen(request).close()


def test_a_server_that_does_not_answer(s3: S3) -> None:  # noqa: F811
    """In a process of its own: the HTTP library closes the connection that it gave up on late."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        script = f"""
from blob_kit import S3
from efface.registry import RegistryError
endpoint = "http://127.0.0.1:{silent.getsockname()[1]}"
try:
    S3(endpoint).store("bucket", config_kwargs={{"read_timeout": 0.1}}).size("sha256:" + "0" * 64)
except RegistryError as error:
    print(error)
"""
        (said,) = together(script)
    assert "an answer from s3://bucket/a/prefix" in said
    assert "Check the network" in said


def test_gc_of_an_old_blob(s3: S3, bucket: str) -> None:  # noqa: F811
    store = s3.store(bucket)
    kept, purged = store.put(b"kept"), store.put(b"purged")
    planned = plan(store, {kept}, {purged}, min_age=timedelta(days=1))
    assert execute(store, planned, {kept}).deleted == planned.items
    assert list(store) == [kept]
