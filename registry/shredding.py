"""Shredding a request: its rows, their key and what training left of them are destroyed, and the ledger says so.

Two events, because destroying is not undone by a crash: `request.shredding` before the first byte goes,
`request.shredded` after the last. Whatever happens between them, doing it again finishes it.
"""

from __future__ import annotations

from . import ledger, requests, shred, states, vault_files
from .canon import parse_timestamp
from .errors import Conflict, NotFound
from .registry import Registry
from .shred import ShredPlan
from .types import ForgetRequest


def plan_shredding(reg: Registry, request_id: str) -> ShredPlan:
    """What `shred_request` would destroy beside the vault's entry. Raises NotFound, Conflict."""
    _check(requests.get_request(reg, request_id))
    return shred.plan_shred(reg.root, request_id)


def shred_request(reg: Registry, request_id: str, *, actor: str) -> ForgetRequest:
    """Destroy a request's rows for good; the ledger still verifies, and a repeat request is still recognised.

    For a request that is released, refused or withdrawn: before that its rows are needed. A released one becomes
    SHREDDED. Doing it again is not an error, and finishes one that was cut off, whatever became of the request
    since; where a backup brought rows back, it destroys them again. Raises NotFound, also for rows that the vault
    does not have, and Conflict (its state, or it is being trained); nothing is written then.
    """
    with reg.write(actor) as tx:
        request = requests.load(tx.db, request_id)
        if request.shredded_at is not None:
            _destroy_again(reg, request, tx.at)
            return request
        _check(request)
        if request.shredding_at is None:
            _check_vault(reg, request_id)
            with shred.untrained(shred.plan_shred(reg.root, request_id)):
                ledger.append(tx, "request.shredding", request_id, {})
    with reg.write(actor) as tx:
        request = requests.load(tx.db, request_id)
        if request.shredded_at is not None:  # another process finished it meanwhile
            return request
        shred.execute(shred.plan_shred(reg.root, request_id))
        reg.vault.shred(request_id, at=parse_timestamp(tx.at))
        ledger.append(tx, "request.shredded", request_id, {})
        return requests.load(tx.db, request_id)


def _destroy_again(reg: Registry, request: ForgetRequest, at: str) -> None:
    """What a backup or a copy brought back since; the ledger has said that it is gone, and says it once."""
    plan = shred.plan_shred(reg.root, request.id)
    if plan.files or plan.folders:
        shred.execute(plan)
    if vault_files.exists(reg.vault.path(request.id)):
        reg.vault.shred(request.id, at=parse_timestamp(at))
    elif reg.vault.folder.is_dir() and request.shredded_at is not None:
        reg.vault.mark(request.id, at=parse_timestamp(request.shredded_at))


def _check(request: ForgetRequest) -> None:
    if request.shredding_at is None and request.state not in states.SHREDDABLE:
        then = "Release, refuse or withdraw it first: until then its rows are needed."
        raise Conflict(f"{request.id} as {' or '.join(states.SHREDDABLE)}", request.state, then)


def _check_vault(reg: Registry, request_id: str) -> None:
    """Whether there is something to destroy: else a shredding would begin that cannot end."""
    if not reg.vault.has(request_id) and reg.vault.tombstone(request_id) is None:
        then = "Restore the vault folder: what it held cannot be destroyed while it is elsewhere."
        raise NotFound(f"a vault entry for {request_id}", "none", then)
