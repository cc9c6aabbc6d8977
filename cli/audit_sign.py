"""`efface audit sign` and `efface audit verify`: a report in a file, signed beside it and checked offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..registry import InvalidInput, NotFound, Registry, durable, signing, timestamp, trust
from ..registry.keys import trusted_keys
from ..registry.report_statement import SUFFIX, report_facts, sign_report, verify_report
from .files import KeyOption, private_key, public_key
from .options import DEFAULT_REGISTRY, Format, FormatOption, RegistryOption
from .output import emit
from .record_proofs import CheckedReport, SignedReport

SIGN_EXAMPLE = "Example: efface audit sign report.json --key auditor.key"
VERIFY_EXAMPLE = "Example: efface audit verify report.json --key auditor.pem"
_LARGEST = 512 * 1024 * 1024
_FILE_MODE = 0o644

ReportArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A report that efface wrote as JSON.")]
SignatureOption = Annotated[
    Path | None, typer.Option("--signature", metavar="FILE", help=f"The envelope; by default FILE{SUFFIX}.")
]


def sign(
    report: ReportArgument,
    key: KeyOption = None,
    signature: SignatureOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Sign a report in a file as an in-toto test result, in a DSSE envelope beside it.

    For audits of models that no registry knows, and for `audit reversible`. An audit in a registry is signed there:
    `efface attest audit`.
    """
    private, data = private_key(key), _read(report)
    envelope = sign_report(data, private)
    beside = _beside(report, signature)
    with durable.disk_errors(beside):
        durable.write_file(beside, envelope, _FILE_MODE)
    facts, key_id = report_facts(data), signing.key_id(signing.public_pem(private))
    record: SignedReport = {
        "report": facts.report,
        "composition": facts.composition,
        "verdict": facts.verdict,
        "key_id": key_id,
        "signature": str(beside),
    }
    emit(record, format, f"{beside}\nsigned by {key_id}")


def verify(
    report: ReportArgument,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key", metavar="PEM", help="Public key of an auditor, as you were given it. Repeatable."
        ),
    ] = None,
    signature: SignatureOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Check that an auditor signed this very report. Exit 1 if not.

    Without --key the registry's auditors count, as it trusts them now: nothing in a file proves when it was signed.
    """
    data, envelope = _read(report), _read(_beside(report, signature))
    keys = _auditors(registry) if not key else _given(key)
    signed, facts = verify_report(data, envelope, keys), report_facts(data)
    record: CheckedReport = {
        "report": facts.report,
        "schema": facts.schema,
        "composition": facts.composition,
        "verdict": facts.verdict,
        "keys": list(signed),
    }
    emit(record, format, f"signed by {', '.join(signed)}\n{facts.verdict}: {facts.composition}")


def _beside(report: Path, signature: Path | None) -> Path:
    return report.with_name(report.name + SUFFIX) if signature is None else signature


def _given(paths: list[Path]) -> dict[str, str]:
    return {str(signing.key_id(pem)): pem for pem in map(public_key, paths)}


def _auditors(registry: str) -> dict[str, str]:
    with Registry.open(registry) as reg, reg.read() as db:
        return trust.usable(trusted_keys(db), "auditor", timestamp(reg.clock()))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError as error:
        then = "Write one: efface audit run --json FILE; sign it: efface audit sign FILE."
        raise NotFound(f"the file {path.name}", "none", then) from error
    except OSError as error:
        raise durable.explained(path, error) from error
    if len(data) > _LARGEST:
        raise InvalidInput(f"a file of at most {_LARGEST} bytes", "a larger one", "Pass the report itself.")
    return data
