"""What may be claimed of a request, and closing it: never more than the evidence shows.

    suppressed     an adapter that is served, on an audit that passed; whoever can switch it off has the rest back
    consolidated   the forgetting is in the weights: a merged base that passed its audit, the one before withdrawn
    erased         a model that never saw the rows, or no longer: retrained without them, or their shard dropped

The first is read off the active releases. The other two are made elsewhere, so someone records them as `Evidence`,
with the digest of the base that came of it and an audit of that base that passed. From then on a release on that base
forgets the request without any adapter. The evidence names the base before too. That this one was withdrawn is
somebody's word, and it does not count while a channel serves that base, bare or not. The audit has to have measured
this very request. One that was shredded before cannot be measured by anybody: evidence shows it *suppressed* at most.

A claim may be raised when new evidence shows more (`close_request` again). It is never lowered: it ends when a release
takes its ground away, which reopens the request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import adapters, audits, checks, compositions, ledger, release_rows, requests, states, support
from .canon import JSON, digest_json, parse
from .errors import Conflict, GateFailed, InvalidInput
from .registry import Registry, Writer
from .tables import Row, Tables, chunks
from .types import Audit, ClaimLevel, Evidence, ForgetRequest

LEVELS = support.LEVELS
METHODS = support.METHODS


def record_evidence(
    reg: Registry,
    request_id: str,
    *,
    method: str,
    artefact: str,
    audit: str,
    base_withdrawn: bool,
    statement: str,
    actor: str,
    replaces: str | None = None,
) -> Evidence:
    """Record that the base `artefact` was made by `method` for a request, and passed `audit`.

    `statement` says in words what was done (no personal data). `base_withdrawn`: the model before is no longer served
    or handed out by anyone; a merge without that consolidates nothing. `replaces` is the base before: by default the
    one that the request's adapters are on. Recording it twice is recording it once.
    The level is what the method shows; `suppressed` for a request that was shredded before the audit, which therefore
    did not measure it. Raises InvalidInput, NotFound, Conflict for a request that ended, GateFailed unless the audit
    passed, is of that base alone, and measured the request where its rows were there; nothing is written then.
    """
    checks.choice(method, "method", tuple(METHODS))
    checks.token(artefact, "artefact", 200)
    if replaces is not None:
        checks.token(replaces, "replaces", 200)
    if not base_withdrawn:
        then = "Withdraw it first; until then the request is suppressed at most."
        raise InvalidInput("the base before withdrawn", "one that is still available", then)
    with reg.write(actor) as tx:
        if (request := requests.load(tx.db, request_id)).state in states.ENDED:
            raise Conflict(f"{request_id} in force", request.state, "Open a new request.")
        replaced = _before(tx.db, request_id, artefact) if replaces is None else replaces
        if replaced == artefact:
            raise InvalidInput(
                "another base than the one before", artefact, "Name the one that was replaced."
            )
        proof = audits.load(tx.db, adapters.resolve(tx.db, "audit", audit))
        alone = compositions.compose(artefact, proof.precision, [])
        if proof.verdict != "pass" or proof.composition != alone.digest:
            came = f"{proof.digest}, {proof.verdict}, of {proof.composition}"
            raise GateFailed(f"a passing audit of {artefact} without adapters", came, "Audit that model.")
        level = _level(request, method, proof)
        record: dict[str, JSON] = {
            "v": 1,
            "request": request_id,
            "level": level,
            "method": method,
            "artefact": artefact,
            "replaces": replaced,
            "audit": proof.digest,
            "statement": checks.text(statement, "statement", 2000),
        }
        digest = digest_json(record)
        if tx.db.get("evidence", digest) is None:
            ledger.append(tx, "evidence.recorded", digest, {"record": record})
            _mark_released(tx, request_id, digest)
        return _evidence(tx.db.find("evidence", digest=digest)[0])


def evidence_of(reg: Registry, request_id: str) -> list[Evidence]:
    """What was recorded for a request, oldest first."""
    with reg.read() as db:
        requests.load(db, request_id)
        return [_evidence(row) for row in db.find("evidence", order="seq", request=request_id)]


def supported_claim(reg: Registry, request_id: str) -> ClaimLevel | None:
    """The most that can be claimed of a request now; None when nothing can: the caller's normal case."""
    with reg.read() as db:
        requests.load(db, request_id)
        return support.supported(db, request_id)


def overstated(db: Tables, base: str) -> list[str]:
    """Closed requests of which more is claimed than is shown, now that a channel serves `base` and none did before.

    Only evidence that another base replaced this one can have stopped to count.
    """
    rows = [row for row in db.find("evidence") if _record(row)["artefact"] != base]
    replaced = {row["request"] for row in rows if _record(row).get("replaces") == base}
    others = sorted({row["request"] for row in rows} - replaced)
    pairs = [pair for some in chunks(others) for pair in db.find("adapter_request", request=some)]
    on = {
        one.digest
        for one in adapters.load_many(db, sorted({pair["adapter"] for pair in pairs}))
        if one.base == base
    }
    replaced |= {pair["request"] for pair in pairs if pair["adapter"] in on}
    return overstated_among(db, replaced)


def overstated_among(db: Tables, request_ids: Iterable[str]) -> list[str]:
    """Those of these requests of which more is claimed than is shown now, sorted."""
    now = support.served(db)
    return [request_id for request_id in sorted(request_ids) if _too_much(db, request_id, now)]


def _too_much(db: Tables, request_id: str, now: support.Served) -> bool:
    claim = requests.load(db, request_id).claim_level
    return claim is not None and support.rank(claim) > support.rank(support.supported(db, request_id, now))


def close_request(reg: Registry, request_id: str, *, claim: str | None = None, actor: str) -> ForgetRequest:
    """Close a shredded request with what is claimed of it, by default the most that its evidence shows.

    Of a closed one the claim is raised, where its evidence shows more by now. Raises GateFailed for a claim beyond
    what is shown, Conflict for a request whose rows are not shredded yet, and for a closed one of which as much is
    claimed already: a claim is not lowered.
    """
    if claim is not None:
        checks.choice(claim, "claim", LEVELS)
    with reg.write(actor) as tx:
        request = requests.load(tx.db, request_id)
        closed = request.state == "CLOSED"
        if not closed and (request.shredded_at is None or request.state not in ("RELEASED", "SHREDDED")):
            then = f"Shred its rows first: efface request shred {request_id}"
            raise Conflict(f"{request_id} released and shredded", request.state, then)
        level = _shown(tx.db, request_id, claim)
        if closed and support.rank(level) <= support.rank(request.claim_level):
            came = f"{level}, of a request that is CLOSED as {request.claim_level}"
            then = "A claim is only ever raised: record the merge or retraining that shows more."
            raise Conflict(f"a claim beyond {request.claim_level}", came, then)
        ledger.append(tx, "request.claimed" if closed else "request.closed", request_id, {"claim": level})
        return requests.load(tx.db, request_id)


def _shown(db: Tables, request_id: str, claim: str | None) -> str:
    """The claim, or by default the most that is shown. Raises GateFailed for more than that."""
    shown = support.supported(db, request_id)
    level = claim or shown
    if level is None or support.rank(level) > support.rank(shown):
        came = f"{claim or 'no claim'}, where the evidence shows {shown or 'nothing'}"
        then = "Claim less, or record the merge or retraining: efface request evidence."
        raise GateFailed("a claim that the evidence shows", came, then)
    return level


def _level(request: ForgetRequest, method: str, proof: Audit) -> ClaimLevel:
    """What the evidence shows. Raises GateFailed for an audit that passed over rows that are there."""
    shredded = request.shredded_at is not None
    level = support.level_of(method, request.id, proof.requests, shredded=shredded)
    if proof.requests is None or level is None:
        came = "one that does not say what it measured" if proof.requests is None else "one of others"
        raise GateFailed(f"an audit that measured {request.id}", came, "Audit that model with its rows.")
    return level


def _before(db: Tables, request_id: str, artefact: str) -> str:
    """The base that the request's adapters are on. Raises InvalidInput unless it is one."""
    pairs = db.find("adapter_request", order="adapter", request=request_id)
    trained = adapters.load_many(db, [pair["adapter"] for pair in pairs])
    found = sorted({adapter.base for adapter in trained} - {artefact})
    if len(found) != 1:
        came = "no adapter that says so" if not found else f"adapters on {', '.join(found)}"
        raise InvalidInput("the base before", came, "Name the base that was replaced: --replaces DIGEST.")
    return found[0]


def _mark_released(tx: Writer, request_id: str, evidence: str) -> None:
    """A channel may serve the base already: the evidence says what it forgets."""
    waiting = requests.load(tx.db, request_id).state not in states.IN_FORCE
    if waiting and request_id in release_rows.released(tx.db):
        requests.advance(tx, request_id, "RELEASED", {"evidence": evidence})


def _evidence(row: Row) -> Evidence:
    record = _record(row)
    names = ("request", "level", "method", "artefact", "audit", "statement")
    return Evidence(digest=row["digest"], at=row["at"], **{name: record[name] for name in names})


def _record(row: Row) -> Any:
    return parse(row["record"])
