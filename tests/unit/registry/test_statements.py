"""in-toto statements: SLSA provenance of adapters, test results of audits, strict reading."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from efface.registry import (
    InvalidInput,
    RegistryError,
    approvals,
    canonical,
    digest_bytes,
    digest_json,
    dsse,
    signing,
)
from efface.registry import statements as st_
from efface.registry.statements import audit_result, parse_statement, provenance

BASE, STACK = digest_bytes(b"base"), digest_bytes(b"stack")
FILES = {"adapter_model.safetensors": digest_bytes(b"w"), "adapter_config.json": digest_bytes(b"c")}
MANIFEST = {
    "v": 1,
    "kind": "trained",
    "base": BASE,
    "quantization": "nf4",
    "files": FILES,
    "requests": ["req-1"],
    "trained_on": STACK,
    "facts": {
        "objective": "simnpo",
        "recipe": "quick",
        "recipe_digest": digest_bytes(b"recipe"),
        "settings": {"lr": 5e-4, "rank": 8},
        "steps": 40,
    },
}
ADAPTER = digest_json(MANIFEST)
RECORD = {
    "v": 1,
    "composition": STACK,
    "precision": "nf4",
    "suite": "quick@1",
    "seed": 0,
    "verdict": "pass",
    "report": digest_bytes(b"report"),
    "environment": {"torch": "2.13.0"},
}
AUDIT = digest_json(RECORD)
BUILDER = "https://example.com/builders/gpu-1"


def hexed(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}


def test_provenance_has_the_published_names() -> None:
    """Every field as slsa.dev/spec/v1.0/provenance and in-toto's Statement v1 name it."""
    statement = provenance(
        MANIFEST,
        ADAPTER,
        builder=BUILDER,
        builder_version={"efface": "0.1.0"},
        environment={"torch": "2.13.0"},
        invocation="run-7",
        started_on="2026-03-01T12:00:00.000000Z",
        finished_on="2026-03-01T13:00:00.000000Z",
    )
    assert json.loads(canonical(statement)) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": "adapter_config.json", "digest": hexed(FILES["adapter_config.json"])},
            {"name": "adapter_model.safetensors", "digest": hexed(FILES["adapter_model.safetensors"])},
            {"name": "manifest.json", "digest": hexed(ADAPTER)},
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": st_.BUILD_TYPE.format(kind="trained"),
                "externalParameters": {
                    "objective": "simnpo",
                    "recipe": "quick",
                    "recipeDigest": digest_bytes(b"recipe"),
                    "settingsDigest": digest_json({"lr": 5e-4, "rank": 8}),
                    "quantization": "nf4",
                    "requests": ["req-1"],
                },
                "internalParameters": {"torch": "2.13.0"},
                "resolvedDependencies": [
                    {"name": "base", "digest": hexed(BASE)},
                    {"name": "trained_on", "digest": hexed(STACK)},
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"efface": "0.1.0"}},
                "metadata": {
                    "invocationId": "run-7",
                    "startedOn": "2026-03-01T12:00:00.000000Z",
                    "finishedOn": "2026-03-01T13:00:00.000000Z",
                },
            },
        },
    }


def test_what_is_not_known_is_left_out() -> None:
    manifest = {**MANIFEST, "kind": "rendered", "trained_on": None, "facts": {"composition": STACK}}
    predicate = provenance(manifest, digest_json(manifest), builder=BUILDER)["predicate"]
    assert predicate["runDetails"] == {"builder": {"id": BUILDER}}
    definition = predicate["buildDefinition"]
    assert definition["buildType"].endswith("#rendered-v1")
    assert set(definition) == {"buildType", "externalParameters", "resolvedDependencies"}
    assert [item["name"] for item in definition["resolvedDependencies"]] == ["base", "composition"]


def test_a_compaction_names_what_it_was_made_from() -> None:
    made_from = {digest_bytes(b"two"): "0.5", digest_bytes(b"one"): "1"}
    manifest = {**MANIFEST, "kind": "consolidated", "trained_on": None, "facts": {"made_from": made_from}}
    statement = provenance(manifest, digest_json(manifest), builder=BUILDER)
    _, *originals = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert originals == [
        {"name": "made_from", "digest": hexed(one), "annotations": {"weight": made_from[one]}}
        for one in sorted(made_from)
    ]
    parse_statement(canonical(statement))
    approvals.check("adapter", manifest, canonical(statement))
    del originals[0]["annotations"]
    with pytest.raises(RegistryError):
        approvals.check("adapter", manifest, canonical(statement))


def test_an_audit_as_a_test_result_has_the_published_names() -> None:
    statement = audit_result(RECORD, AUDIT, tests={"retain": True, "forget": True})
    setting = canonical({"precision": "nf4", "seed": 0, "suite": "quick@1"})
    assert json.loads(canonical(statement)) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "composition", "digest": hexed(STACK)}],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": "PASSED",
            "configuration": [
                {
                    "name": "quick@1",
                    "digest": hexed(digest_bytes(setting)),
                    "mediaType": "application/json",
                    "content": base64.b64encode(setting).decode(),
                    "annotations": {"environmentDigest": digest_json({"torch": "2.13.0"})},
                },
                {"name": "report", "digest": hexed(RECORD["report"]), "mediaType": "application/json"},
                {"name": "audit", "digest": hexed(AUDIT), "mediaType": "application/vnd.efface.audit+json"},
            ],
            "passedTests": ["forget", "retain"],
            "failedTests": [],
        },
    }


def test_a_failed_audit() -> None:
    record = {**RECORD, "verdict": "fail"}
    result = audit_result(record, digest_json(record), tests={"retain": True, "forget": False})["predicate"]
    assert (result["result"], result["passedTests"], result["failedTests"]) == (
        "FAILED",
        ["retain"],
        ["forget"],
    )
    alone = audit_result(record, digest_json(record), url="https://example.com/runs/1")["predicate"]
    assert (alone["failedTests"], alone["url"]) == (["quick@1"], "https://example.com/runs/1")


@pytest.mark.parametrize(
    ("verdict", "tests"), [("pass", {"a": False}), ("fail", {"a": True}), ("pass", {}), ("fail", {})]
)
def test_gates_and_verdict_must_agree(verdict: str, tests: dict[str, bool]) -> None:
    record = {**RECORD, "verdict": verdict}
    with pytest.raises(InvalidInput):
        audit_result(record, digest_json(record), tests=tests)


def test_a_statement_is_about_what_its_digest_says() -> None:
    with pytest.raises(InvalidInput):
        provenance(MANIFEST, AUDIT, builder=BUILDER)
    with pytest.raises(InvalidInput):
        audit_result(RECORD, ADAPTER)


@pytest.mark.parametrize(
    "changes",
    [
        {"builder": "me"},
        {"builder": "HTTPS://example.com"},
        {"builder": "https://exa mple.com"},
        {"builder": ""},
        {"started_on": "today"},
        {"finished_on": "2026-03-01T13:00:00Z"},
    ],
)
def test_provenance_is_checked_before_it_is_signed(changes) -> None:
    with pytest.raises(InvalidInput):
        provenance(MANIFEST, ADAPTER, **{"builder": BUILDER, **changes})


def test_a_base_without_a_digest_is_refused() -> None:
    manifest = {**MANIFEST, "base": "some/model"}
    with pytest.raises(InvalidInput):
        provenance(manifest, digest_json(manifest), builder=BUILDER)


def test_signed_and_read_back() -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"7" * 32)
    pem = signing.public_pem(key)
    for made, about in (
        (provenance(MANIFEST, ADAPTER, builder=BUILDER), ADAPTER),
        (audit_result(RECORD, AUDIT), STACK),
    ):
        envelope = dsse.parse(dsse.sign(st_.PAYLOAD_TYPE, canonical(made), [key]).to_json())
        verified = dsse.verify(envelope, {signing.key_id(pem): pem}, payload_type=st_.PAYLOAD_TYPE)
        read = parse_statement(verified.payload)
        assert read.covers(about)
        assert not read.covers(BASE)
        assert read.predicate == made["predicate"]


def test_the_example_of_the_test_result_specification() -> None:
    """in-toto/attestation, spec/predicates/test-result.md, shortened to one test."""
    read = parse_statement(
        json.dumps(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "subject": [{"digest": {"gitCommit": "d20ace7968ba43c0219f62d71334c1095bab1602"}}],
                "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
                "predicate": {
                    "result": "PASSED",
                    "configuration": [
                        {
                            "name": ".github/workflows/ci.yml",
                            "downloadLocation": "https://github.com/in-toto/in-toto/blob/d20ace7/ci.yml",
                            "digest": {"gitBlob": "ebe4add40f63c3c98bc9b32ff1e736f04120b023"},
                        }
                    ],
                    "url": "https://github.com/in-toto/in-toto/actions/runs/4425592351",
                    "passedTests": ["build (3.7, ubuntu-latest, py)"],
                    "warnedTests": [],
                    "failedTests": [],
                },
            }
        ).encode()
    )
    assert read.subjects[0].name is None
    assert read.covers("gitCommit:d20ace7968ba43c0219f62d71334c1095bab1602")


def changed(statement, path: str, value) -> bytes:
    copy = json.loads(canonical(statement))
    holder = copy
    *parents, last = path.split(".")
    for name in parents:
        holder = holder[int(name) if name.isdigit() else name]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return json.dumps(copy).encode()


def test_unknown_fields_are_ignored() -> None:
    for path in ("later", "predicate.later", "subject.0.later"):
        assert parse_statement(changed(audit_result(RECORD, AUDIT), path, {"x": 1})).covers(STACK)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("_type", "https://in-toto.io/Statement/v0.1"),
        ("_type", ...),
        ("subject", []),
        ("subject", {}),
        ("subject", ...),
        ("subject.0.digest", {}),
        ("subject.0.digest", ...),
        ("subject.0.digest", {"sha256": 1}),
        ("subject.0.digest", {"sha256": ""}),
        ("subject.0.name", 7),
        ("predicateType", "test-result"),
        ("predicateType", ...),
        ("predicate", []),
        ("predicate", "x"),
        ("predicate", ...),
        ("predicate.result", "passed"),
        ("predicate.result", ...),
        ("predicate.configuration", ...),
        ("predicate.configuration", [{}]),
        ("predicate.configuration", [{"name": "only"}]),
        ("predicate.passedTests", "all"),
        ("predicate.passedTests", [1]),
        ("predicate.failedTests", ["one"]),  # yet the result is PASSED
    ],
)
def test_malformed_test_results_are_refused(path: str, value) -> None:
    with pytest.raises(InvalidInput):
        parse_statement(changed(audit_result(RECORD, AUDIT), path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("predicate.buildDefinition", ...),
        ("predicate.buildDefinition.buildType", "trained"),
        ("predicate.buildDefinition.externalParameters", ...),
        ("predicate.buildDefinition.resolvedDependencies", [{"name": "only"}]),
        ("predicate.buildDefinition.resolvedDependencies", {"x": 1}),
        ("predicate.runDetails", ...),
        ("predicate.runDetails.builder", {}),
        ("predicate.runDetails.builder.id", ""),
    ],
)
def test_malformed_provenance_is_refused(path: str, value) -> None:
    with pytest.raises(InvalidInput):
        parse_statement(changed(provenance(MANIFEST, ADAPTER, builder=BUILDER), path, value))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
PATHS = ["_type", "subject", "predicateType", "predicate", "predicate.result", "predicate.configuration"]
PATHS += ["predicate.passedTests", "subject.0.digest", "subject.0.name", "predicate.url"]


@given(st.sampled_from(PATHS), values)
def test_parse_raises_nothing_else(path: str, value) -> None:
    try:
        read = parse_statement(changed(audit_result(RECORD, AUDIT), path, value))
    except RegistryError:
        return
    assert read.subjects


@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_other_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(RegistryError):
        parse_statement(payload)
