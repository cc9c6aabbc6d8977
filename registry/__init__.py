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

from .adapters import adapter_folder, adapter_for_request, get_adapter, list_adapters, seal_adapter
from .audits import find_audit, get_audit, list_audits, record_audit
from .blobs import Blobs
from .canon import JSON, Digest, canonical, digest_bytes, digest_json, timestamp
from .compositions import compose, without
from .errors import BrokenRegistry, Conflict, GateFailed, InvalidInput, NotFound, RegistryError
from .ledger import log, rebuild
from .registry import Registry
from .releases import (
    activate_release,
    active_release,
    channels,
    create_release,
    get_release,
    history,
    plan_removal,
)
from .requests import (
    BASES,
    get_request,
    list_requests,
    open_request,
    read_payload,
    requests_of_subject,
    step_request,
)
from .types import (
    Adapter,
    Audit,
    Composition,
    Event,
    ForgetRequest,
    Part,
    Problem,
    Release,
    Verification,
)
from .vault import Vault
from .verify import verify

__all__ = [  # noqa: RUF022 - plain order, as in every package
    "Adapter",
    "Audit",
    "BASES",
    "Blobs",
    "BrokenRegistry",
    "Composition",
    "Conflict",
    "Digest",
    "Event",
    "ForgetRequest",
    "GateFailed",
    "InvalidInput",
    "JSON",
    "NotFound",
    "Part",
    "Problem",
    "Registry",
    "RegistryError",
    "Release",
    "Vault",
    "Verification",
    "activate_release",
    "active_release",
    "adapter_folder",
    "adapter_for_request",
    "canonical",
    "channels",
    "compose",
    "create_release",
    "digest_bytes",
    "digest_json",
    "find_audit",
    "get_adapter",
    "get_audit",
    "get_release",
    "get_request",
    "history",
    "list_adapters",
    "list_audits",
    "list_requests",
    "log",
    "open_request",
    "plan_removal",
    "read_payload",
    "rebuild",
    "record_audit",
    "requests_of_subject",
    "seal_adapter",
    "step_request",
    "timestamp",
    "verify",
    "without",
]
