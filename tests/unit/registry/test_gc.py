"""gc: what a plan names and why, that it is a value, and that its execution trusts only part of it."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from registry_kit import contents

from efface.registry import Blobs, Digest, InvalidInput, digest_bytes
from efface.registry.blob_store import Stored
from efface.registry.gc import GcItem, execute, plan, plan_from_json

LATER = datetime.now(UTC) + timedelta(hours=3)


@pytest.fixture
def store(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "adapters"
    folder.mkdir(parents=True)
    return folder


def cached(cache: Path, digest: str) -> Path:
    folder = cache / digest.removeprefix("sha256:")
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def named(items: tuple[GcItem, ...]) -> list[tuple[str, str, str]]:
    return sorted((item.kind, item.name, item.reason) for item in items)


def test_each_thing_has_its_reason(store: Blobs, cache: Path) -> None:
    kept, purged, orphan = (store.put(data) for data in (b"kept", b"purged", b"orphan"))
    (store.folder / "sha256" / ".tmp-0011").write_bytes(b"half")
    folders = [cached(cache, digest) for digest in (kept, purged, orphan)]
    (cache / ".tmp-work_1").mkdir()
    (cache / "notes").mkdir()
    planned = plan(store, {kept}, {purged}, caches=[cache, cache / "none"], now=LATER)
    assert named(planned.items) == sorted(
        [
            ("blob", purged, "purged"),
            ("blob", orphan, "unreferenced"),
            ("leftover", "sha256/.tmp-0011", "unfinished"),
            ("cache", str(folders[1]), "purged"),
            ("cache", str(folders[2]), "unreferenced"),
            ("cache", str(cache / ".tmp-work_1"), "unfinished"),
        ]
    )
    assert planned.size == len(b"purged" + b"orphan" + b"half") + 2 * len(b"weights")
    done = execute(store, planned, {kept}, caches=[cache])
    assert (done.deleted, done.left, done.size) == (planned.items, (), planned.size)
    assert list(store) == [kept]
    assert sorted(path.name for path in cache.iterdir()) == sorted([folders[0].name, "notes"])
    assert store.leftovers() == []


def test_the_young_are_left_but_for_the_purged(store: Blobs, cache: Path) -> None:
    young, purged = store.put(b"young"), store.put(b"purged")
    (store.folder / ".tmp-0011").touch()
    cached(cache, young)
    folder = cached(cache, purged)
    planned = plan(store, set(), {purged, digest_bytes(b"absent")}, caches=[cache])
    assert named(planned.items) == [("blob", purged, "purged"), ("cache", str(folder), "purged")]


def test_what_is_both_reachable_and_purgeable_stays(store: Blobs) -> None:
    """Two adapters share their config file; one is purged."""
    shared = store.put(b"{}")
    assert plan(store, {shared}, {shared}, now=LATER).items == ()


def test_what_became_reachable_or_was_written_again_is_left(store: Blobs, cache: Path) -> None:
    reached, again, gone, orphan = (store.put(data) for data in (b"reached", b"again", b"gone", b"orphan"))
    folder = cached(cache, reached)
    (store.folder / ".tmp-0011").touch()
    for digest in (reached, again, gone, orphan):
        os.utime(store.path(digest), (1e9, 1e9))
    planned = plan(store, set(), set(), caches=[cache], now=LATER)
    store.put(b"again")
    store.delete(gone)
    os.utime(store.folder / ".tmp-0011", (2e9, 2e9))
    done = execute(store, planned, {reached}, caches=[cache])
    assert [item.name for item in done.deleted] == [orphan]
    assert {item.name for item in done.left} == {reached, again, gone, str(folder), ".tmp-0011"}
    assert list(store) == sorted([reached, again])
    assert folder.is_dir()


def test_a_plan_can_be_written_down_and_read_back(store: Blobs) -> None:
    digest = store.put(b"orphan")
    planned = plan(store, set(), set(), now=LATER)
    shown = json.loads(json.dumps(planned.as_json()))
    assert shown["items"][0]["name"] == digest
    assert (shown["size"], shown["min_age_seconds"]) == (6, 3600)
    assert plan_from_json(shown) == planned


@pytest.mark.parametrize(
    "change",
    [
        {"items": []},
        {"min_age_seconds": 1},
        {"digest": digest_bytes(b"")},
        {"items": [{"kind": "blob", "name": "sha256:" + "0" * 64, "reason": "purged", "size": 6, "written_at": None}]},
    ],
)  # fmt: skip
def test_an_altered_plan_is_refused(store: Blobs, tmp_path: Path, change: dict[str, object]) -> None:
    store.put(b"orphan")
    planned = plan(store, set(), set(), now=LATER)
    before = contents(tmp_path)
    altered = plan_from_json({**planned.as_json(), **change})  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="changed"):
        execute(store, altered, set())
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "value", [{}, {"items": 1}, {"items": [{}]}, {"items": [], "min_age_seconds": "x", "digest": 1}]
)
def test_what_is_no_plan_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        plan_from_json(value)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("blob", "../../etc/passwd"),
        ("leftover", "../../registry.db"),
        ("cache", "/"),
        ("cache", "{cache}/../" + "a" * 64),
        ("cache", "{cache}/notes"),
        ("cache", "{cache}/" + "a" * 64 + "/.."),
        ("file", "x"),
    ],
)
def test_a_plan_cannot_name_what_lies_elsewhere(store: Blobs, cache: Path, kind: str, name: str) -> None:
    """Someone who writes plans can also compute their digests."""
    from efface.registry.gc import _sealed  # pyright: ignore[reportPrivateUsage]

    (cache.parent / ("a" * 64)).mkdir()
    (cache / "notes").mkdir()
    (cache / ("a" * 64)).mkdir()
    item = GcItem(kind, name.replace("{cache}", str(cache)), "purged", 0, None)
    before = contents(cache.parent)
    if kind == "leftover":
        assert execute(store, _sealed((item,), 0), set(), caches=[cache]).deleted == ()
    else:
        with pytest.raises(InvalidInput):
            execute(store, _sealed((item,), 0), set(), caches=[cache])
    assert contents(cache.parent) == before


def test_links_are_removed_and_not_followed(store: Blobs, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (cache / ("a" * 64)).symlink_to(tmp_path / "elsewhere")
    planned = plan(store, set(), set(), caches=[cache], now=LATER)
    assert planned.size < 1000
    assert execute(store, planned, set(), caches=[cache]).deleted == planned.items
    assert list(cache.iterdir()) == []
    assert (tmp_path / "elsewhere" / "file").exists()


def test_an_execution_killed_amid_a_folder_is_finished_by_the_next(store: Blobs, cache: Path) -> None:
    folder = cached(cache, "sha256:" + "a" * 64)
    planned = plan(store, set(), set(), caches=[cache], now=LATER)
    folder.rename(cache / f".tmp-gc-{folder.name}")
    assert execute(store, planned, set(), caches=[cache]).left == planned.items
    assert list(cache.iterdir()) == []


def test_a_store_that_tells_no_times_keeps_what_was_not_purged(store: Blobs) -> None:
    purged, orphan = Digest(store.put(b"purged")), store.put(b"orphan")

    class Timeless:
        leftovers, delete = store.leftovers, store.delete

        def stored(self) -> list[Stored]:
            return [replace(found, written_at=None) for found in store.stored()]

        def stat(self, digest: str) -> Stored | None:
            found = store.stat(digest)
            return found and replace(found, written_at=None)

    timeless: Any = Timeless()
    planned = plan(timeless, set(), {purged}, now=LATER)
    assert execute(timeless, planned, set()).deleted == planned.items
    assert list(store) == [orphan]


def test_a_negative_age_is_refused(store: Blobs) -> None:
    with pytest.raises(InvalidInput):
        plan(store, set(), set(), min_age=timedelta(seconds=-1))
