"""The published schema of a report: what we write conforms, and what no report may hold does not."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from audit_kit import evaluation, full_report, known, report, row
from jsonschema import Draft202012Validator

from efface.audits import schema
from efface.audits.document import AuditReport

PUBLISHED = Path(__file__).parents[3] / "docs" / "schemas" / "audit-report.json"
SCHEMA = json.loads(PUBLISHED.read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
TYPES = {name: kind for name, kind in vars(schema).items() if name.endswith("Document")}


def plain(made: AuditReport, *, reveal: bool = False) -> Any:
    """As a reader gets it."""
    return json.loads(json.dumps(made.to_json(reveal=reveal), allow_nan=False))


def test_the_published_schema_is_that_of_the_types() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert schema.report_schema_text() == PUBLISHED.read_text(encoding="utf-8"), (
        "run python -m efface.cli.schemas"
    )


@pytest.mark.parametrize("reveal", [False, True])
@pytest.mark.parametrize(
    "made",
    [
        report(),
        full_report(),
        report(claim="erased", claim_evidence=("Retrained.",)),
        report(
            evaluations=(
                evaluation("base", row(mentioned=None, perplexity=None, answer="")),
                evaluation("+ q1", row(mentioned=None, perplexity=None, answer=""), active=None),
            )
        ),
    ],
    ids=["small", "full", "erased", "nothing said"],
)
def test_what_is_written_conforms(made: AuditReport, reveal: bool) -> None:
    VALIDATOR.validate(plain(made, reveal=reveal))


def keys(value: Any, path: str = "") -> set[str]:
    """Every key by its path, list positions left out."""
    if isinstance(value, list):
        return {key for item in value for key in keys(item, path)}
    if not isinstance(value, dict):
        return set()
    return {key for name, item in value.items() for key in {f"{path}.{name}", *keys(item, f"{path}.{name}")}}


def described(node: Any, path: str = "") -> set[str]:
    """Every key that the schema knows, by the same paths."""
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rpartition("/")[2]]
    found = {path} if path else set()
    for inner in (*node.get("anyOf", ()), *([node["items"]] if isinstance(node.get("items"), dict) else [])):
        found |= described(inner, path)
    for name, inner in node.get("properties", {}).items():
        found |= described(inner, f"{path}.{name}")
    return found


OPEN = (".thresholds", ".digests", ".environment", ".attacks.settings", ".suite.versions", ".suite.seconds")
OPEN += (".suite.skipped", ".suite.figures", ".canary")


def test_no_field_is_written_that_the_schema_does_not_know() -> None:
    """It allows more fields, for those to come: so this compares the two."""
    written = {
        key
        for key in keys(plain(full_report(), reveal=True))
        if not key.startswith(tuple(f"{o}." for o in OPEN))
    }
    assert written == described(SCHEMA)


@pytest.mark.parametrize("name", ["prompt", "reference", "answer"])
def test_a_masked_report_with_a_text_is_refused(name: str) -> None:
    document = plain(report())
    document["evaluations"][1]["rows"][3][name] = "x"
    assert not VALIDATOR.is_valid(document)
    document["masked"] = False
    assert VALIDATOR.is_valid(document)


def test_a_report_of_before_attacks_and_suites_conforms() -> None:
    document = plain(report())
    for name in ("attacks", "suite", "claim_evidence"):
        del document[name]
    for one in document["evaluations"]:
        for scored in one["rows"]:
            del scored["membership"]
    VALIDATOR.validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "efface.audit/2"),
        (("claim",), "forgotten"),
        (("verdict",), "passed"),
        (("attacks", 0, "kind"), "magic"),
        (("attacks", 0, "known"), "all"),
        (("suite", "rows", 0, "hash"), None),
        (("findings", 0, "outcome"), "maybe"),
        (("evaluations", 0, "rows", 0, "group"), "secret"),
        (("evaluations", 0, "aggregates", 0, "probability_ci"), [0.1]),
    ],
)
def test_what_no_report_says_is_refused(path: tuple[str | int, ...], value: object) -> None:
    document = deepcopy(plain(full_report()))
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    assert VALIDATOR.is_valid(document)
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(document)


def test_rows_of_every_group_conform() -> None:
    from efface.audits.types import GROUPS

    rows = [*known(), *(row(f"other-{group}", group) for group in GROUPS)]
    VALIDATOR.validate(plain(report(evaluations=(evaluation("base", *rows), evaluation("+ q1", *rows)))))
