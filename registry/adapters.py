"""Sealed adapters: a PEFT folder becomes blobs, a manifest whose digest is its id, and one event.

The manifest is canonical JSON {v, kind, base, quantization, files, requests, trained_on, facts}. It also
stands in the event, so the ledger alone says what was sealed: `facts` are settings (objective, recipe digest,
rank, seed, steps), never rows or text that is to be forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from . import cache, checks, compactions, ledger, peft_folder, requests, states
from .canon import JSON, Digest, canonical, digest_bytes, parse, weight
from .errors import Conflict, InvalidInput, NotFound
from .registry import Registry, Writer
from .tables import Row, Tables, chunks
from .types import Adapter

KINDS = ("trained", "rendered", "consolidated")
_FACTS_LIMIT = 64 * 1024
_REFERENCE = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")
_MEDIA_TYPES = {peft_folder.CONFIG: "application/json", peft_folder.WEIGHTS: "application/x-safetensors"}
_RETRAINABLE = ("RECEIVED", "VERIFIED", "ACCEPTED", "AUDITED", "REOPENED")
"""States from which sealing a trained adapter moves a request to TRAINED; TRAINED and RELEASED stay."""


def seal_adapter(
    reg: Registry,
    folder: Path,
    *,
    kind: str,
    base: str,
    quantization: str,
    request_ids: Sequence[str],
    facts: Mapping[str, JSON],
    trained_on: str | None = None,
    error_bound: str | None = None,
    actor: str,
) -> Adapter:
    """Store the PEFT LoRA in `folder` and record it; the same adapter sealed twice is one adapter.

    `kind` is `trained` (moves its requests to TRAINED), `rendered` (a composition made into one LoRA; put its
    digest in `facts["composition"]` and releases check it) or `consolidated` (several adapters made into one: their
    digests and weights in `facts["made_from"]`, see `compactions`).
    An adapter that names no request is the balance of the stack that it was trained on: `trained_on` again in
    `facts["balances"]`. `trained_on` is the digest of the composition it was trained on top of, `error_bound` a
    decimal bound on what compressing lost. Raises InvalidInput, NotFound or Conflict (also for a request on a legal
    basis that was not verified and accepted: `requests.check_accepted`); nothing is written then.
    """
    checks.actor(actor)
    files = peft_folder.read(Path(folder))
    manifest = _manifest(kind, base, quantization, request_ids, facts, trained_on, error_bound, files)
    data = canonical(manifest)
    digest = digest_bytes(data)
    with reg.read() as db:
        _check_sealable(db, digest, manifest)
    blobs = [
        _described(reg.blobs.put(files[name]), files[name], _MEDIA_TYPES[name]) for name in sorted(files)
    ]
    blobs.append(_described(reg.blobs.put(data), data, "application/vnd.efface.adapter+json"))
    with reg.write(actor) as tx:
        if _check_sealable(tx.db, digest, manifest):
            _still_there(reg, [*files.values(), data])
            ledger.append(tx, "adapter.sealed", digest, {"manifest": manifest, "blobs": blobs})
            _mark_trained(tx, digest, manifest)
        return load(tx.db, digest)


def get_adapter(reg: Registry, ref: str) -> Adapter:
    """The adapter with this digest or unique prefix (6 hex digits or more). Raises NotFound, InvalidInput."""
    with reg.read() as db:
        return load(db, resolve(db, "adapter", ref))


def list_adapters(
    reg: Registry,
    request_id: str | None = None,
    *,
    state: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> list[Adapter]:
    """Adapters in the order they were sealed: all or a page (`after` a digest), of one request, in one state.

    Raises NotFound, InvalidInput.
    """
    where: dict[str, Any] = {}
    if state is not None:
        where["state"] = checks.choice(state, "state", tuple(states.ADAPTER))
    count = None if limit is None else checks.count(limit, "limit", 1)
    with reg.read() as db:
        start = None if after is None else load_row(db, resolve(db, "adapter", after))["seq"]
        if request_id is not None:
            requests.load(db, request_id)
            pairs = db.find("adapter_request", order="adapter", request=request_id)
            where["digest"] = tuple(pair["adapter"] for pair in pairs)
        rows = db.find("adapter", order="seq", after=start, limit=count, **where)
        return [adapter_of(row) for row in rows]


def adapter_for_request(reg: Registry, request_id: str) -> Adapter:
    """The newest trained adapter of a request that is sealed or qualified, and no repair. Raises NotFound."""
    found = [
        adapter
        for adapter in list_adapters(reg, request_id)
        if adapter.kind == "trained"
        and adapter.state in ("SEALED", "QUALIFIED")
        and not adapter.facts.get(compactions.REPAIRS)
    ]
    if not found:
        raise NotFound(f"an adapter for {request_id}", "none", f"Train it: efface unlearn {request_id}")
    return found[-1]


def adapter_folder(reg: Registry, ref: str) -> Path:
    """A PEFT folder with the adapter's files, under the cache; checked against the digests on each call.

    Files that differ are put back from the blobs. Raises BrokenRegistry when a blob itself is damaged.
    """
    adapter = get_adapter(reg, ref)
    folder = reg.root / "cache" / "adapters" / adapter.digest.removeprefix("sha256:")
    if not cache.holds(folder, adapter.files):
        cache.materialise(reg.blobs, adapter, folder)
    return folder


def load(db: Tables, digest: str) -> Adapter:
    """The adapter with this full digest, inside a transaction. Raises NotFound."""
    return adapter_of(load_row(db, digest))


def load_many(db: Tables, digests: Sequence[str]) -> list[Adapter]:
    """The adapters with these digests, in the order given. Raises NotFound."""
    rows = {row["digest"]: row for some in chunks(list(digests)) for row in db.find("adapter", digest=some)}
    return [adapter_of(rows[digest]) if digest in rows else load(db, digest) for digest in digests]


def load_row(db: Tables, digest: str) -> Row:
    """The row of an adapter. Raises NotFound."""
    row = db.get("adapter", digest)
    if row is None:
        raise NotFound(f"adapter {digest}", "an unknown digest", "Look for it in `efface adapter list`.")
    return row


def resolve(db: Tables, table: str, ref: str) -> Digest:
    """The full digest of the one adapter or audit that `ref` abbreviates. Raises InvalidInput, NotFound."""
    match = _REFERENCE.fullmatch(ref)
    if match is None:
        raise InvalidInput(f"the digest of an {table}", "other text", "Pass at least 6 of its hex digits.")
    found = [row["digest"] for row in db.starting(table, f"sha256:{match[1]}", 10)]
    if not found:
        raise NotFound(f"an {table} {match[0]}", "an unknown digest", "Look for it in `efface log`.")
    if len(found) > 1:
        raise InvalidInput(f"a digest of one {table}", f"a prefix of {', '.join(found)}", "Add digits.")
    return Digest(found[0])


def _manifest(
    kind: str,
    base: str,
    quantization: str,
    request_ids: Sequence[str],
    facts: Mapping[str, JSON],
    trained_on: str | None,
    error_bound: str | None,
    files: Mapping[str, bytes],
) -> dict[str, JSON]:
    balances = kind == "trained" and trained_on is not None and facts.get(compactions.BALANCES) == trained_on
    if isinstance(request_ids, str) or bool(request_ids) == balances:
        came, then = ("none", "Name what the adapter forgets.")
        if balances:
            came, then = "some, of the balance of a stack", "Name none: it forgets nothing of its own."
        raise InvalidInput("a list of at least one request id", came, then)
    if trained_on is not None and kind != "trained":
        then = 'Put a rendered composition\'s digest in facts["composition"].'
        raise InvalidInput("trained_on with a trained adapter only", f"a {kind} one", then)
    if len(canonical(facts)) > _FACTS_LIMIT:
        raise InvalidInput(f"facts of at most {_FACTS_LIMIT} bytes", "more", "Store data elsewhere.")
    manifest: dict[str, JSON] = {
        "v": 1,
        "kind": checks.choice(kind, "kind", KINDS),
        "base": checks.token(base, "base", 200),
        "quantization": checks.token(quantization, "quantization"),
        "files": {name: digest_bytes(files[name]) for name in files},
        "requests": sorted(set(request_ids)),
        "trained_on": None if trained_on is None else checks.digest(trained_on, "trained_on"),
        "facts": facts,
    }
    # Left out where it says nothing, so that adapters sealed before there was one keep their digest.
    return manifest if error_bound is None else manifest | {"error_bound": weight(error_bound)}


def _check_sealable(db: Tables, digest: str, manifest: Mapping[str, JSON]) -> bool:
    """False when it is sealed already; raises unless everything that the manifest names allows it."""
    if (row := db.get("adapter", digest)) is not None:
        if row["state"] == "PURGED":
            then = "Its bytes were purged for good: train it again with another seed."
            raise Conflict(f"adapter {digest} with its bytes", "PURGED", then)
        return False
    for request_id in cast(Sequence[str], manifest["requests"]):
        request = requests.load(db, request_id)
        requests.check_accepted(request)
        state = request.state
        if manifest["kind"] == "trained" and state not in (*_RETRAINABLE, "TRAINED", "RELEASED"):
            raise Conflict(f"a request that may be trained for, {request_id}", state, "Open a new request.")
    if manifest["trained_on"] is not None:
        on = (cast(str, manifest["base"]), cast(str, manifest["quantization"]))
        _check_below(db, cast(str, manifest["trained_on"]), on)
    compactions.check(db, manifest)
    return True


def _check_below(db: Tables, trained_on: str, on: tuple[str, str]) -> None:
    """What it was trained on top of is on its own base, at its own quantization."""
    below = db.get("composition", trained_on)
    if below is None:
        then = "Create a release of it first, or train on the bare base."
        raise NotFound(f"composition {trained_on} in a release", "an unknown digest", then)
    if (below["base"], below["quantization"]) != on:
        expected = f"trained_on as a composition on base {on[0]} at {on[1]}"
        came = f"{trained_on} on base {below['base']} at {below['quantization']}"
        raise InvalidInput(expected, came, "Train it on the base and quantization of what it stands on.")


def _mark_trained(tx: Writer, digest: str, manifest: Mapping[str, JSON]) -> None:
    if manifest["kind"] != "trained":
        return
    for request_id in cast(Sequence[str], manifest["requests"]):
        if requests.load(tx.db, request_id).state in _RETRAINABLE:
            requests.advance(tx, request_id, "TRAINED", {"adapter": digest})


def _still_there(reg: Registry, contents: Sequence[bytes]) -> None:
    """`gc` holds the same lock: what it took between our put and now is put again."""
    for data in contents:
        if reg.blobs.size(digest_bytes(data)) is None:
            reg.blobs.put(data)


def _described(digest: Digest, data: bytes, media_type: str) -> dict[str, JSON]:
    return {"digest": digest, "size": len(data), "media_type": media_type}


def adapter_of(row: Row) -> Adapter:
    """The adapter in a row."""
    manifest = cast(Mapping[str, Any], parse(row["manifest"]))
    return Adapter(
        digest=Digest(row["digest"]),
        kind=manifest["kind"],
        base=manifest["base"],
        quantization=manifest["quantization"],
        requests=tuple(manifest["requests"]),
        trained_on=manifest["trained_on"],
        files=manifest["files"],
        facts=manifest["facts"],
        error_bound=row["error_bound"],
        state=row["state"],
        sealed_at=row["sealed_at"],
    )
