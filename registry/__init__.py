"""The registry: forget requests, sealed adapters, audits and releases, on a ledger that can be checked.

Embedded and without torch: it opens in milliseconds on a serving or an auditor's host. Read `types` first,
then `states`, `ledger` and `projections`; `registry` says what is where on disk.

    with Registry.open(".efface", create=True) as reg:
        request = open_request(reg, basis="test", payload=rows, n_items=3, actor="ana")
        adapter = seal_adapter(reg, folder, kind="trained", base=base, quantization="nf4",
                               request_ids=[request.id], facts={}, actor="ana")
        composition = compose(base, "nf4", [(adapter.digest, 1)])
        release = create_release(reg, "prod", composition, rendered=None, reason="first", actor="ana")
        audit = record_audit(reg, composition=composition.digest, precision="nf4", ..., actor="ana")
        activate_release(reg, "prod", release.version, audit=audit.digest, approved_by="ben")
"""

from .adapter_life import purge_adapter, reject_adapter, retire_adapter
from .adapters import adapter_folder, adapter_for_request, get_adapter, list_adapters, seal_adapter
from .audits import find_audit, get_audit, list_audits, record_audit
from .blob_store import BlobStore
from .blobs import Blobs, open_blobs
from .canon import JSON, Digest, canonical, digest_bytes, digest_json, timestamp
from .channel_rules import get_channel, rule_channel
from .claims import close_request, evidence_of, record_evidence, supported_claim
from .collect import collect, plan_collection
from .compositions import compose, rendered_as, without
from .deadlines import effective, overdue
from .errors import BrokenRegistry, Conflict, GateFailed, InvalidInput, NotFound, RegistryError
from .gates import channel_gates, gate_channel
from .ledger import log, rebuild
from .registry import Registry
from .releases import (
    activate_release,
    active_release,
    approve_release,
    channels,
    create_release,
    diff_releases,
    get_release,
    history,
    plan_compaction,
    plan_removal,
    plan_whole,
    plan_without,
    withdraw_release,
)
from .renders import Render, parse_render
from .requests import (
    BASES,
    extend_request,
    get_request,
    list_requests,
    open_request,
    read_payload,
    requests_of_subject,
    row_key,
    step_request,
)
from .shredding import plan_shredding, shred_request
from .types import (
    Adapter,
    Audit,
    Channel,
    ClaimLevel,
    Composition,
    Event,
    Evidence,
    ForgetRequest,
    Part,
    Problem,
    Release,
    ReleaseDiff,
    Verification,
)
from .vault import Vault
from .verify import verify

__all__ = [
    "BASES",
    "JSON",
    "Adapter",
    "Audit",
    "BlobStore",
    "Blobs",
    "BrokenRegistry",
    "Channel",
    "ClaimLevel",
    "Composition",
    "Conflict",
    "Digest",
    "Event",
    "Evidence",
    "ForgetRequest",
    "GateFailed",
    "InvalidInput",
    "NotFound",
    "Part",
    "Problem",
    "Registry",
    "RegistryError",
    "Release",
    "ReleaseDiff",
    "Render",
    "Vault",
    "Verification",
    "activate_release",
    "active_release",
    "adapter_folder",
    "adapter_for_request",
    "approve_release",
    "canonical",
    "channel_gates",
    "channels",
    "close_request",
    "collect",
    "compose",
    "create_release",
    "diff_releases",
    "digest_bytes",
    "digest_json",
    "effective",
    "evidence_of",
    "extend_request",
    "find_audit",
    "gate_channel",
    "get_adapter",
    "get_audit",
    "get_channel",
    "get_release",
    "get_request",
    "history",
    "list_adapters",
    "list_audits",
    "list_requests",
    "log",
    "open_blobs",
    "open_request",
    "overdue",
    "parse_render",
    "plan_collection",
    "plan_compaction",
    "plan_removal",
    "plan_shredding",
    "plan_whole",
    "plan_without",
    "purge_adapter",
    "read_payload",
    "rebuild",
    "record_audit",
    "record_evidence",
    "reject_adapter",
    "rendered_as",
    "requests_of_subject",
    "retire_adapter",
    "row_key",
    "rule_channel",
    "seal_adapter",
    "shred_request",
    "step_request",
    "supported_claim",
    "timestamp",
    "verify",
    "withdraw_release",
    "without",
]
