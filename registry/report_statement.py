"""Signing a report that lies in a file, and checking it: audits of models that no registry knows, reversibility.

A signature is an in-toto test result (`statements`) in a DSSE envelope beside the file. Its subject is the composition
that was measured; the report is named by the SHA-256 of the file's bytes, so that another report of the same
composition is not covered. Which tests passed is read from the report, and has to agree with its verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from . import canon, checks, dsse, statements
from .canon import JSON, Digest
from .errors import GateFailed, InvalidInput

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

AUDIT, REVERSIBILITY = "efface.audit/1", "efface.reversibility/1"
"""The `schema` of the reports that can be signed."""
SUFFIX = ".dsse.json"
"""What the name of the envelope beside a report ends in."""
_FIX = "Pass the JSON report as efface wrote it: `efface audit run --json FILE`."


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What a report says of itself. `tests`: whether each gate or check that was measured held."""

    schema: str
    composition: Digest
    verdict: str
    tests: Mapping[str, bool]
    report: Digest


def report_facts(data: bytes) -> ReportFacts:
    """The facts of a report's bytes. Raises InvalidInput for anything else, and where verdict and tests disagree."""
    value = canon.parse(data)
    if not isinstance(value, Mapping) or value.get("schema") not in (AUDIT, REVERSIBILITY):
        raise InvalidInput(f"a report of schema {AUDIT} or {REVERSIBILITY}", "another document", _FIX)
    fields = cast(Mapping[str, Any], value)
    try:
        composition = _composition(fields)
        tests = _tests(fields["findings"], str(fields["schema"]))
        verdict = fields["verdict"]
    except (KeyError, TypeError, AttributeError):
        raise InvalidInput("a report with findings, verdict and composition", "one without", _FIX) from None
    if verdict != ("pass" if tests and all(tests.values()) else "fail"):
        then = "It was edited: measure again instead of signing it."
        raise InvalidInput("the verdict that the findings of the report give", "another one", then)
    return ReportFacts(str(fields["schema"]), composition, verdict, tests, canon.digest_bytes(data))


def sign_report(data: bytes, private: Ed25519PrivateKey) -> bytes:
    """The envelope for a report's bytes. Raises InvalidInput."""
    payload = canon.canonical(_statement(report_facts(data)))
    return dsse.sign(statements.PAYLOAD_TYPE, payload, [private]).to_json()


def verify_report(data: bytes, envelope: bytes, keys: Mapping[str, str]) -> tuple[str, ...]:
    """The ids of those of `keys` (PEM by id) that signed this very report.

    Raises GateFailed where none did, or another report was signed; InvalidInput for what is no report or envelope.
    """
    facts = report_facts(data)
    checked = dsse.verify(dsse.parse(envelope), keys, payload_type=statements.PAYLOAD_TYPE)
    if checked.payload != canon.canonical(_statement(facts)):
        came = "a statement about something else"
        raise GateFailed(
            f"a signed statement about report {facts.report}", came, "Ask for the report that was signed."
        )
    return checked.key_ids


def _statement(facts: ReportFacts) -> dict[str, JSON]:
    held, failed = (sorted(name for name, ok in facts.tests.items() if ok is want) for want in (True, False))
    predicate: dict[str, JSON] = {
        "result": "PASSED" if facts.verdict == "pass" else "FAILED",
        "configuration": [{**_named("report", facts.report), "mediaType": "application/json"}],
        "passedTests": list(held),
        "failedTests": list(failed),
    }
    return {
        "_type": statements.STATEMENT_TYPE,
        "subject": [_named("composition", facts.composition)],
        "predicateType": statements.TEST_RESULT_TYPE,
        "predicate": predicate,
    }


def _named(name: str, digest: str) -> dict[str, JSON]:
    return {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}


def _composition(fields: Mapping[str, Any]) -> Digest:
    """What was measured: of an audit, the evaluation that the report calls `after`."""
    if fields["schema"] == REVERSIBILITY:
        found = [fields["composition"]]
    else:
        found = [one["composition"] for one in fields["evaluations"] if one["label"] == fields["after"]]
    if len(found) != 1:
        raise InvalidInput("one composition that was measured", f"{len(found)}", _FIX)
    return checks.digest(found[0], "composition of the report")


def _tests(findings: list[Mapping[str, Any]], schema: str) -> dict[str, bool]:
    """By name; a name that occurs twice held where it held each time. What was not measured is no test."""
    tests: dict[str, bool] = {}
    for one in findings:
        if schema == AUDIT:
            name = f"{one['gate']} {one['group']} {one['request'] or 'all'}"
        else:
            name = f"{one['check']} {one['path']}"
        if one["outcome"] in ("passed", "failed"):
            tests[name] = tests.get(name, True) and one["outcome"] == "passed"
    return tests
