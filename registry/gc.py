"""Garbage collection in two steps: a plan that can be shown, and its execution, which trusts only part of it.

    plan     what no event needs: purged adapters, blobs whose event never came, unfinished writes, old caches
    execute  deletes what was planned and is *still* unreachable and unchanged; twice is once

A writer stores its blobs before it appends the event that names them, so a young blob without an event is not
garbage yet: `min_age`. Storing a blob that is there gives it a new age (see `blobs.FRESH`), and `execute`
leaves whatever is younger than the plan saw. Nothing here reads the ledger: the caller says what is reachable.
"""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from . import checks, durable
from .blob_store import BlobStore
from .canon import JSON, Digest, digest_json, timestamp
from .errors import InvalidInput

MIN_AGE = timedelta(hours=1)
KINDS = ("blob", "cache", "leftover")
REASONS = ("purged", "unreferenced", "unfinished")
_CACHED = re.compile(r"[0-9a-f]{64}|\.tmp-[0-9A-Za-z_-]+")
_MAKE_ANOTHER = "Make a new plan and execute that."


@dataclass(frozen=True, slots=True)
class GcItem:
    """One thing to delete, as it was when it was planned."""

    kind: str
    """`blob`, `cache` (an adapter folder put together from blobs) or `leftover` (an unfinished write)."""
    name: str
    """A digest, a folder's path, or the store's name of a leftover."""
    reason: str
    """`purged` (its adapter was), `unreferenced` (no event names it), or `unfinished`."""
    size: int
    """Bytes."""
    written_at: str | None
    """RFC 3339."""


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What would be deleted, in this order. `digest` covers all of it."""

    items: tuple[GcItem, ...]
    min_age_seconds: int
    digest: Digest

    @property
    def size(self) -> int:
        """Bytes that executing it would free."""
        return sum(item.size for item in self.items)

    def as_json(self) -> dict[str, JSON]:
        """For people and programs; `plan_from_json` reads it back."""
        return {**_content(self.items, self.min_age_seconds), "size": self.size, "digest": self.digest}


@dataclass(frozen=True, slots=True)
class GcDone:
    """What was deleted, and what was planned but left: it is reachable, newer or gone by now."""

    deleted: tuple[GcItem, ...]
    left: tuple[GcItem, ...]

    @property
    def size(self) -> int:
        """Bytes freed."""
        return sum(item.size for item in self.deleted)


def plan(
    store: BlobStore,
    reachable: AbstractSet[Digest],
    purgeable: AbstractSet[Digest],
    *,
    caches: Sequence[Path] = (),
    min_age: timedelta = MIN_AGE,
    now: datetime | None = None,
) -> GcPlan:
    """What could be deleted; deletes nothing.

    `reachable` is every blob that something alive names and always stays; `purgeable` are the blobs of purged
    adapters, which go whatever their age. All other blobs, leftovers and cached folders (subfolders of
    `caches` named by an adapter's digest) go when they are older than `min_age`. Raises InvalidInput,
    RegistryError.
    """
    if min_age < timedelta(0):
        raise InvalidInput("a min_age of zero or more", "a negative one", "Use the default of one hour.")
    before = (now or datetime.now(UTC)) - min_age
    items = (
        *_cached(caches, reachable, purgeable, before),
        *_blobs(store, reachable, purgeable, before),
        *(
            GcItem("leftover", left.name, "unfinished", left.size, _said(left.written_at))
            for left in store.leftovers()
            if _older(left.written_at, before)
        ),
    )
    return _sealed(items, int(min_age.total_seconds()))


def execute(
    store: BlobStore, plan: GcPlan, reachable_now: AbstractSet[Digest], *, caches: Sequence[Path] = ()
) -> GcDone:
    """Delete what is in `plan`, not in `reachable_now`, and as it was. Repeat it after a crash at any point.

    Run it under the registry's write lock, with what is reachable by then. Raises InvalidInput for a plan
    that was changed or that names something outside `store` and `caches`; nothing is deleted then.
    """
    if _sealed(plan.items, plan.min_age_seconds).digest != plan.digest:
        raise InvalidInput("a plan as it was made", "one that was changed", _MAKE_ANOTHER)
    for item in plan.items:
        _check(item, caches)
    deleted: list[GcItem] = []
    left: list[GcItem] = []
    for item in plan.items:
        (deleted if _delete(store, item, reachable_now) else left).append(item)
    return GcDone(tuple(deleted), tuple(left))


def plan_from_json(value: Mapping[str, JSON]) -> GcPlan:
    """The plan that `as_json` wrote. Raises InvalidInput; whether it was changed, `execute` finds."""
    try:
        fields = cast(Any, value)
        items = tuple(GcItem(**item) for item in fields["items"])
        if not all(_typed(item) for item in items):
            raise TypeError("a field of another type")
        return GcPlan(items, int(fields["min_age_seconds"]), checks.digest(fields["digest"], "digest"))
    except (KeyError, TypeError, ValueError) as error:  # whose texts quote what is in it
        raise InvalidInput("a plan of `efface gc`", type(error).__name__, _MAKE_ANOTHER) from None


def _blobs(
    store: BlobStore, reachable: AbstractSet[Digest], purgeable: AbstractSet[Digest], before: datetime
) -> Iterator[GcItem]:
    for found in store.stored():
        purged = found.digest in purgeable
        if found.digest not in reachable and (purged or _older(found.written_at, before)):
            reason = "purged" if purged else "unreferenced"
            yield GcItem("blob", found.digest, reason, found.size, _said(found.written_at))


def _cached(
    caches: Sequence[Path], reachable: AbstractSet[Digest], purgeable: AbstractSet[Digest], before: datetime
) -> Iterator[GcItem]:
    for folder in sorted(path for cache in caches if cache.is_dir() for path in cache.iterdir()):
        if not _CACHED.fullmatch(folder.name) or (age := _age(folder)) is None:
            continue
        digest = Digest(f"sha256:{folder.name}")
        temporary = folder.name.startswith(durable.TEMPORARY)
        if digest not in reachable and (digest in purgeable or age <= before):
            unreferenced = "purged" if digest in purgeable else "unreferenced"
            reason = "unfinished" if temporary else unreferenced
            yield GcItem("cache", str(folder.absolute()), reason, _weight(folder), timestamp(age))


def _delete(store: BlobStore, item: GcItem, reachable_now: AbstractSet[Digest]) -> bool:
    if item.kind == "cache":
        return _delete_folder(Path(item.name), item, reachable_now)
    if item.kind == "leftover":
        present = {left.name: left.written_at for left in store.leftovers()}
        if item.name not in present or not _unchanged(present[item.name], item):
            return False
        store.discard(item.name)
        return True
    found = None if item.name in reachable_now else store.stat(item.name)
    if found is None or found.size != item.size or not _unchanged(found.written_at, item):
        return False
    store.delete(item.name)
    return True


def _delete_folder(folder: Path, item: GcItem, reachable_now: AbstractSet[Digest]) -> bool:
    """By a rename first: a process that looks for the folder finds all of it or none."""
    with durable.disk_errors(folder.parent):
        doomed = folder.with_name(f"{durable.TEMPORARY}gc-{folder.name}")
        _remove(doomed)  # of an execution that was killed here
        age = _age(folder)
        if f"sha256:{folder.name}" in reachable_now or age is None or not _unchanged(age, item):
            return False
        _remove(folder if folder.name.startswith(durable.TEMPORARY) else folder.rename(doomed))
        durable.sync_folder(folder.parent)
    return True


def _remove(path: Path) -> None:
    """A folder with all in it, or a file; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check(item: GcItem, caches: Sequence[Path]) -> None:
    """A plan may have come from a file: its names must lead nowhere else."""
    checks.choice(item.kind, "kind", KINDS)
    checks.choice(item.reason, "reason", REASONS)
    if item.kind == "blob":
        checks.digest(item.name, "blob")
    path = Path(item.name)
    allowed = {cache.absolute() for cache in caches}
    if item.kind == "cache" and (path.parent not in allowed or not _CACHED.fullmatch(path.name)):
        raise InvalidInput("a plan for this registry's caches", "a folder elsewhere", _MAKE_ANOTHER)


def _sealed(items: tuple[GcItem, ...], min_age_seconds: int) -> GcPlan:
    return GcPlan(items, min_age_seconds, digest_json(_content(items, min_age_seconds)))


def _content(items: tuple[GcItem, ...], min_age_seconds: int) -> dict[str, JSON]:
    return {"v": 1, "min_age_seconds": min_age_seconds, "items": [asdict(item) for item in items]}


def _typed(item: GcItem) -> bool:
    texts: tuple[Any, ...] = (item.kind, item.name, item.reason, item.written_at or "")
    return all(isinstance(text, str) for text in texts) and isinstance(cast(Any, item.size), int)


def _older(written_at: datetime | None, before: datetime) -> bool:
    """A store that does not say when is taken to say now."""
    return written_at is not None and written_at <= before


def _unchanged(written_at: datetime | None, item: GcItem) -> bool:
    """To the second: some stores list finer times than they answer for one object."""
    return (_said(written_at) or "")[:19] == (item.written_at or "")[:19]


def _said(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _age(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    except FileNotFoundError:
        return None


def _weight(folder: Path) -> int:
    """Bytes of the files in it; a figure for people, so a file that goes meanwhile does not count."""
    total = 0
    for path in (folder, *(() if folder.is_symlink() else folder.rglob("*"))):
        with suppress(OSError):
            status = path.lstat()
            total += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return total
