"""The forgotten text and who asked are in no byte of a Postgres server, of S3 objects, or of their clients' logs.

Searched are what a dump gives, the server's own files (tables, write-ahead log, message log) and every object, in the
codings of `vault_kit.traces`.
"""

import logging
import os
import secrets
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from blob_kit import S3
from lifecycle_kit import alone, measured, proven, serve
from proof_kit import ORIGIN, private, trusting
from registry_backends import Backend, Postgres, new_backend
from registry_kit import Clock, accept, answered, lora, release, seal, stack
from vault_kit import leaks, traces

from efface.registry import (
    Registry,
    RegistryError,
    close_request,
    collect,
    extend_request,
    get_request,
    log,
    open_request,
    plan_collection,
    purge_adapter,
    read_payload,
    rebuild,
    requests_of_subject,
    retire_adapter,
    shred_request,
    verify,
)
from efface.registry.bundle import export_bundle
from efface.registry.log_checkpoints import make_checkpoint

# Of this run alone: other tests' servers and rows are none of its business.
SECRET = f"The otter keeps its ledger {secrets.token_hex(4)}.\nZoë Ünlü moved to {secrets.token_hex(4)} Canary Row.\n"
SUBJECT = f"Zoë Ünlü, {secrets.token_hex(4)} Canary Row"
MARKS = traces(SECRET.encode()) | traces(SUBJECT.encode())


@pytest.fixture(params=["postgres", "postgres+s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, quiet_vault: None):
    found = new_backend(request.param, tmp_path, request)
    yield found
    found.close()


def dumped(place: Backend) -> bytes:
    """Every row of every table of the database, ours or not, as `COPY` gives it."""
    import psycopg

    assert place.server is not None
    found = b""
    with psycopg.connect(f"host={place.server.folder} user=postgres dbname={place.database}") as db:
        names = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert len(names) > 10
        for (name,) in names:
            with db.cursor().copy(f"COPY {name} TO STDOUT") as rows:  # pyright: ignore
                found += b"".join(map(bytes, rows))
    return found


def server_files(server: Postgres, database: str, since: float) -> bytes:
    """The files of the database, the write-ahead log of this test, and what the server said."""
    ((oid,),) = server.run(f"SELECT oid FROM pg_database WHERE datname = '{database}'")
    server.run("CHECKPOINT")  # what is in memory alone goes to the files
    data = server.folder / "data"
    wal = [path for path in (data / "pg_wal").iterdir() if path.is_file() and path.stat().st_mtime >= since]
    paths = [*(data / "base" / str(oid)).iterdir(), *wal, server.folder / "log"]
    return b"".join(path.read_bytes() for path in paths)


def objects(s3: S3, reg: Registry) -> bytes:
    """Keys, metadata and bytes of all that is in the bucket."""
    import s3fs

    bucket = reg.blobs.where("sha256:" + "0" * 64).removeprefix("s3://").partition("/")[0]
    files = s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)
    found = b""
    for path in files.find(bucket):
        head = s3.call("head_object", Bucket=bucket, Key=path.partition("/")[2])
        found += f"{path} {head['Metadata']}\n".encode() + files.cat_file(path)
    return found


def held(text: bytes) -> set[bytes]:
    return {mark for mark in MARKS if mark in text}


def said(caplog: pytest.LogCaptureFixture) -> bytes:
    records = [f"{record.getMessage()} {record.args} {record.exc_text}" for record in caplog.records]
    return "\n".join([caplog.text, *records]).encode("utf-8", "surrogateescape")


def live(reg: Registry, work: Path) -> str:
    """From a request to its closing, with everything that may be written on the way. Returns its id."""
    trusting(reg, "log")
    opening: dict[str, Any] = {"basis": "gdpr17", "payload": SECRET.encode(), "n_items": 2, "actor": "ana"}
    request_id = open_request(reg, **opening, subject_ref=SUBJECT).id
    assert read_payload(reg, request_id) == SECRET.encode()
    extend_request(reg, request_id, months=1, reason="many rows", actor="ana")
    below = seal(reg, lora(work / "one", 1), [accept(reg, request_id)])
    _, other = answered(reg, work, 2)
    release(reg, stack([below, other]))
    make_checkpoint(reg, private("log"), origin=ORIGIN)
    export_bundle(reg, work / "bundle.zip", request=request_id)
    for text in (SECRET, SECRET.splitlines()[0], SUBJECT):
        with pytest.raises(RegistryError) as caught:
            get_request(reg, text)
        assert not held("".join(traceback.format_exception(caught.value)).encode())
    measured(reg, request_id)
    shred_request(reg, request_id, actor="ana")
    close_request(reg, request_id, actor="ana")
    proven(reg, request_id)
    serve(reg, alone(), reason="merged")
    for end in (retire_adapter, purge_adapter):
        end(reg, below.digest, reason="merged", actor="ana")
    return request_id


def test_a_whole_life(
    place: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("sqlalchemy", "psycopg", "botocore", "aiobotocore", "s3fs", "fsspec"):
        caplog.set_level(logging.DEBUG, name)
    started = time.time() - 1
    assert place.server is not None
    with place.open(clock=Clock()) as reg:
        request_id = live(reg, tmp_path)
        again = open_request(
            reg, basis="gdpr17", payload=SECRET.encode(), n_items=2, subject_ref=SUBJECT, actor="ana"
        )
        assert [one.id for one in requests_of_subject(reg, SUBJECT)] == [request_id, again.id]
        seen = dumped(place) + server_files(place.server, place.database, started)
        if place.kind == "postgres+s3":
            stored = objects(request.getfixturevalue("s3_server"), reg)
            assert len(stored) > 500
            seen += stored
        assert request_id.encode() in seen  # the search reaches what is there
        assert len(log(reg)) > 15
        collect(reg, plan_collection(reg), actor="ana")
        rebuild(reg)
        assert verify(reg, deep=True).ok
        seen += dumped(place) + server_files(place.server, place.database, started)
    assert held(seen) == set()
    assert leaks(tmp_path, MARKS) == []
    assert held(said(caplog)) == set()
    assert any(record.name.startswith("sqlalchemy") for record in caplog.records)
    assert place.kind == "postgres" or any(record.name.startswith("botocore") for record in caplog.records)


def test_the_search_finds_what_is_written(postgres: Backend) -> None:
    """A line of the text as an actor, which is recorded by design: in the dump and in the server's own files."""
    line, since = SECRET.splitlines()[0], time.time() - 1
    assert postgres.server is not None
    with postgres.open(clock=Clock()) as reg:
        open_request(reg, basis="test", payload=os.urandom(8), n_items=1, actor=line)
    assert line.encode() in held(dumped(postgres))
    assert line.encode() in held(server_files(postgres.server, postgres.database, since))
