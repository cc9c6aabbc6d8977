"""The JSON Schema of every `--format json`, generated from the record types: `python -m efface.cli.schemas`.

It writes `docs/schemas/cli.json` and the table of `docs/cli-json.md`, and `docs/schemas/audit-report.json`; tests
hold those to the types, and the types to what verbs print.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import record_acts as acts
from . import record_proofs as proofs
from . import record_serve as serving
from . import records as things

DIALECT = "https://json-schema.org/draft/2020-12/schema"
HOME = "https://github.com/efface/efface/tree/main/docs/schemas/cli.json"

VERBS: dict[str, Any] = {
    "request open": things.OpenedRecord,
    "request list": list[things.RequestRecord],
    "request show": things.RequestDetails,
    "request lengths": acts.LengthsRecord,
    "request verify": things.RequestRecord,
    "request accept": things.RequestRecord,
    "request refuse": things.RequestRecord,
    "request withdraw": things.RequestRecord,
    "request extend": things.RequestRecord,
    "request shred": acts.ShredRecord,
    "request evidence": things.EvidenceRecord,
    "request close": things.RequestRecord,
    "adapter list": list[things.AdapterRecord],
    "adapter show": things.AdapterRecord,
    "adapter compact": acts.CompactRecord,
    "adapter export": acts.ExportRecord,
    "adapter import": things.AdapterRecord,
    "adapter overlap": list[things.OverlapRecord],
    "adapter reject": acts.AdapterEndRecord,
    "adapter retire": acts.AdapterEndRecord,
    "adapter purge": acts.AdapterEndRecord,
    "release create": things.MeasuredRelease,
    "release rollback": things.MeasuredRelease,
    "release compact": things.MeasuredRelease,
    "release render": things.MeasuredRelease,
    "release repair": acts.RepairRecord,
    "release balance": acts.BalanceRecord,
    "release show": things.ReleaseRecord,
    "release history": list[things.ReleaseRecord],
    "release approve": things.ReleaseRecord,
    "release activate": things.ReleaseRecord,
    "release withdraw": things.ReleaseRecord,
    "release protect": things.ChannelRecord,
    "release gate": things.ChannelRecord,
    "release diff": things.DiffRecord,
    "release push": acts.PushRecord,
    "release pull": acts.PullRecord,
    "audit run": acts.AuditRunRecord,
    "audit compare": acts.CompareRecord,
    "audit suites": acts.SuiteRecord | list[acts.SuiteRecord],
    "audit show": acts.AuditDocument | list[things.AuditRecord],
    "audit reversible": proofs.ReversibilityRecord,
    "audit sign": proofs.SignedReport,
    "audit verify": proofs.CheckedReport,
    "key generate": proofs.GeneratedKey,
    "key add": proofs.KeyRecord,
    "key revoke": proofs.KeyRecord,
    "key list": list[proofs.KeyRecord],
    "checkpoint create": proofs.CheckpointRecord,
    "checkpoint list": list[proofs.CheckpointRecord],
    "checkpoint prove": proofs.InclusionRecord | proofs.ConsistencyRecord,
    "attest adapter": proofs.AttestationRecord,
    "attest audit": proofs.AttestationRecord,
    "attest release": proofs.AttestationRecord,
    "attest list": list[proofs.AttestationRecord],
    "bundle export": proofs.BundleRecord,
    "bundle verify": proofs.BundleCheck,
    "vault show": acts.VaultRecord,
    "vault rotate": acts.RotateRecord,
    "vault drop-key-file": acts.DropRecord,
    "vault drop-orphans": acts.OrphansRecord,
    "vault bind": acts.BindRecord,
    "log": list[things.EventRecord],
    "verify": acts.VerifyRecord,
    "gc": acts.GcRecord,
    "doctor": acts.DoctorRecord,
    "unlearn": acts.UnlearnRecord,
    "merge": acts.MergeRecord,
    "demo": acts.DemoRecord,
    "serve vllm": serving.ServedRecord,
    "serve gateway": serving.GatewayRecord,
    "serve key": serving.ApiKeyRecord,
    "serve revoke": serving.RevokedApiKeyRecord,
    "model fetch": acts.ModelPath,
    "model show": acts.ModelRecord,
    "recipe list": list[dict[str, Any]],
    "recipe show": dict[str, Any],
    "recipe validate": list[acts.RecipeRecord],
}
"""What each verb prints. `audit show` prints a list without a digest; recipes are `efface.recipes.Recipe`."""


def schema_of(verb: str) -> dict[str, Any]:
    """The schema of one verb's output, whole, with its dialect. KeyError for an unknown verb."""
    named = document()["$defs"]
    return {"$schema": DIALECT, **named[verb], "$defs": named}


def document() -> dict[str, Any]:
    """One document: under `$defs` every record by its type's name, and every verb by its own."""
    from pydantic import TypeAdapter

    asked = [(verb, "serialization", TypeAdapter(kind)) for verb, kind in VERBS.items()]
    made, shared = TypeAdapter.json_schemas(asked)  # pyright: ignore[reportArgumentType] - a literal
    verbs = {verb: made[verb, "serialization"] for verb in VERBS}
    named: dict[str, Any] = {**shared.get("$defs", {}), **verbs}
    return {
        "$schema": DIALECT,
        "$id": HOME,
        "title": "What efface prints with --format json",
        "$defs": {name: _closed(schema) for name, schema in sorted(named.items())},
    }


def text() -> str:
    """The file as it is published."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def table() -> str:
    """The Markdown rows of `docs/cli-json.md`: each verb and what it prints."""
    made = document()["$defs"]
    return "\n".join(f"| `efface {verb}` | {_said(made[verb])} |" for verb in VERBS)


def _said(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "anyOf" in schema:
        return " or ".join(_said(one) for one in schema["anyOf"])
    return f"list of {_said(schema['items'])}" if schema["type"] == "array" else "object"


def _closed(schema: Any) -> Any:
    """Records have exactly their keys, and no titles made from names."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: _closed(value) for name, value in schema.items() if not _made_up(name, value)}
    return kept | {"additionalProperties": False} if "properties" in kept else kept


def _made_up(name: str, value: Any) -> bool:
    return name == "title" and isinstance(value, str)


def write(docs: Path) -> None:
    """Bring `cli-json.md` and the schemas below `docs` up to date."""
    from ..audits.schema import report_schema_text

    (docs / "schemas" / "audit-report.json").write_text(report_schema_text(), encoding="utf-8")
    (docs / "schemas" / "cli.json").write_text(text(), encoding="utf-8")
    page = docs / "cli-json.md"
    head, mark, _ = page.read_text(encoding="utf-8").partition("|---|---|\n")
    page.write_text(f"{head}{mark}{table()}\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
