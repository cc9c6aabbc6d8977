"""in-toto statements (in-toto.io/Statement/v1): what is claimed of an artefact, for any verifier to read.

    provenance     SLSA provenance v1: how an adapter came about; its subjects are the adapter's files
    audit_result   in-toto test-result v0.1: what an audit found; its subject is the composition

Both are plain JSON objects made from records of the registry: digests, names and settings, never rows. They
are signed as the payload of a DSSE envelope (`PAYLOAD_TYPE`). Reading follows in-toto's parsing rules: what
is unknown is ignored, what is required is checked.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from . import canon, checks, compactions, trust
from .canon import JSON
from .errors import InvalidInput

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
BUILD_TYPE = "https://github.com/efface/efface/blob/main/docs/build-types.md#{kind}-v1"
"""What `buildType` says of an adapter of this kind."""

MANIFEST = "manifest.json"
"""The name of the subject whose digest is the adapter's id."""
_MOST_SUBJECTS = 10_000
_URI = re.compile(r"[a-z][a-z0-9+.-]*:[^\s\x00-\x1f]+")
_FIX = "Pass an in-toto Statement v1 as it was signed."
_EXTERNAL = {"objective": "objective", "recipe": "recipe", "recipe_digest": "recipeDigest"}
"""Facts of a manifest by the name that they have among the external parameters."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An artefact that a statement is about: it is matched by digest, its name only tells it apart."""

    name: str | None
    digest: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that was read; who signed it is the envelope's to say."""

    subjects: tuple[Subject, ...]
    predicate_type: str
    predicate: Mapping[str, JSON]

    def covers(self, digest: str) -> bool:
        """Whether the artefact `sha256:<hex>` is among the subjects."""
        algorithm, _, value = digest.partition(":")
        return any(subject.digest.get(algorithm) == value for subject in self.subjects)


def provenance(
    manifest: Mapping[str, Any],
    digest: str,
    *,
    builder: str,
    builder_version: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    invocation: str | None = None,
    started_on: str | None = None,
    finished_on: str | None = None,
) -> dict[str, JSON]:
    """The SLSA provenance of the adapter with this manifest and digest.

    `builder` is the URI of the platform that trained it, `environment` its versions and machine facts,
    `invocation` an id of the run. Raises InvalidInput when the digest is not that of the manifest.
    """
    if canon.digest_json(manifest) != digest:
        raise InvalidInput("the digest of this manifest", "another digest", "Take both from one adapter.")
    files: list[JSON] = [_resource(name, of) for name, of in sorted(manifest["files"].items())]
    metadata = {"invocationId": invocation, "startedOn": started_on, "finishedOn": finished_on}
    for name in ("startedOn", "finishedOn"):
        if (moment := metadata[name]) is not None:
            trust.time(moment, name)
    predicate: dict[str, JSON] = {
        "buildDefinition": _build_definition(manifest, environment or {}),
        "runDetails": {
            "builder": _present({"id": _uri(builder, "builder"), "version": builder_version}),
            **_present({"metadata": _present(metadata)}),
        },
    }
    return _statement([*files, _resource(MANIFEST, digest)], PROVENANCE_TYPE, predicate)


def audit_result(
    record: Mapping[str, Any],
    digest: str,
    *,
    tests: Mapping[str, bool] | None = None,
    url: str | None = None,
) -> dict[str, JSON]:
    """The test result in the audit with this record and digest.

    `tests` says which gates held; without it the suite is the only test. Raises InvalidInput when the digest
    is not that of the record, or the gates and the verdict contradict each other.
    """
    if canon.digest_json(record) != digest:
        raise InvalidInput("the digest of this audit record", "another digest", "Take both from one audit.")
    passed = record["verdict"] == "pass"
    held = {record["suite"]: passed} if tests is None else dict(tests)
    if not held or all(held.values()) != passed:
        expected = "a verdict of pass exactly when every test passed"
        raise InvalidInput(expected, "a contradiction", "Pass the gates of this very audit.")
    predicate: dict[str, JSON] = {
        "result": "PASSED" if passed else "FAILED",
        "configuration": _configuration(record, digest),
        **_present({"url": None if url is None else _uri(url, "url")}),
        "passedTests": sorted(name for name, ok in held.items() if ok),
        "failedTests": sorted(name for name, ok in held.items() if not ok),
    }
    subject = _resource("composition", record["composition"])
    return _statement([subject], TEST_RESULT_TYPE, predicate)


def parse_statement(payload: bytes) -> Statement:
    """The statement in the payload of a verified envelope. Raises InvalidInput, also for a predicate of the
    two kinds above that lacks what its specification requires.
    """
    value = _mapping(canon.parse(payload), "statement")
    if value.get("_type") != STATEMENT_TYPE:
        raise InvalidInput(f"_type {STATEMENT_TYPE}", "another type", _FIX)
    subjects = tuple(_subject(item) for item in _list(value.get("subject"), "subject"))
    if not 1 <= len(subjects) <= _MOST_SUBJECTS:
        raise InvalidInput(f"1 to {_MOST_SUBJECTS} subjects", f"{len(subjects)}", _FIX)
    kind = _uri(value.get("predicateType"), "predicateType")
    predicate = _mapping(value.get("predicate") or {}, "predicate")
    if kind == PROVENANCE_TYPE:
        _check_provenance(predicate)
    if kind == TEST_RESULT_TYPE:
        _check_test_result(predicate)
    return Statement(subjects, kind, predicate)


def _statement(
    subjects: Sequence[JSON], predicate_type: str, predicate: Mapping[str, JSON]
) -> dict[str, JSON]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": list(subjects),
        "predicateType": predicate_type,
        "predicate": predicate,
    }


def _build_definition(manifest: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, JSON]:
    """What went in: settings are untrusted and therefore external, SLSA says; all data is named by digest."""
    facts: Mapping[str, JSON] = manifest["facts"]
    external: dict[str, JSON] = {name: facts[fact] for fact, name in _EXTERNAL.items() if fact in facts}
    external |= {"quantization": manifest["quantization"], "requests": list(manifest["requests"])}
    if "settings" in facts:
        external["settingsDigest"] = canon.digest_json(facts["settings"])
    inputs = {"base": manifest["base"], "trained_on": manifest["trained_on"], "composition": None}
    inputs["composition"] = facts.get("composition")
    return {
        "buildType": BUILD_TYPE.format(kind=manifest["kind"]),
        "externalParameters": external,
        **_present({"internalParameters": dict(environment)}),
        "resolvedDependencies": [
            *(_resource(name, of) for name, of in inputs.items() if of is not None),
            *_originals(manifest),
        ],
    }


def _originals(manifest: Mapping[str, Any]) -> list[JSON]:
    """What a compaction was made from, each with the weight that it went in with."""
    return [
        {**_resource(compactions.MADE_FROM, part.adapter), "annotations": {"weight": part.weight}}
        for part in compactions.originals(manifest)
    ]


def _configuration(record: Mapping[str, Any], digest: str) -> list[JSON]:
    """The suite as it was set, the report with the figures, and the registry's record of both."""
    setting = canon.canonical({name: record[name] for name in ("precision", "seed", "suite")})
    suite: dict[str, JSON] = {
        **_resource(record["suite"], canon.digest_bytes(setting), "application/json"),
        "content": base64.b64encode(setting).decode(),
        "annotations": {"environmentDigest": canon.digest_json(record["environment"])},
    }
    report = _resource("report", record["report"], "application/json")
    return [suite, report, _resource("audit", digest, "application/vnd.efface.audit+json")]


def _resource(name: str, digest: Any, media_type: str | None = None) -> dict[str, JSON]:
    """A ResourceDescriptor of something with a digest `sha256:<hex>`."""
    value = checks.digest(digest, f"digest of {name}").removeprefix("sha256:")
    return {"name": name, "digest": {"sha256": value}, **_present({"mediaType": media_type})}


def _present(fields: Mapping[str, Any]) -> dict[str, JSON]:
    """The fields that are set: unset, null and empty mean the same, in-toto says."""
    return {name: value for name, value in fields.items() if value}


def _uri(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > 2048 or not _URI.fullmatch(value):
        raise InvalidInput(f"{name} as a URI with its scheme in lower case", "another value", _FIX)
    return value


def _subject(item: Any) -> Subject:
    fields = _mapping(item, "subject")
    digest = _mapping(fields.get("digest"), "digest")
    name = fields.get("name")
    if not digest or not all(isinstance(text, str) and text for text in digest.values()):
        raise InvalidInput("a subject with a digest", "one without", _FIX)
    if not isinstance(name, str | None):
        raise InvalidInput("the name of a subject as text", "another JSON value", _FIX)
    return Subject(name or None, cast(Mapping[str, str], digest))


def _check_provenance(predicate: Mapping[str, Any]) -> None:
    definition = _mapping(predicate.get("buildDefinition"), "buildDefinition")
    _uri(definition.get("buildType"), "buildType")
    _mapping(definition.get("externalParameters"), "externalParameters")
    for item in _list(definition.get("resolvedDependencies") or [], "resolvedDependencies"):
        _check_resource(item)
    run = _mapping(predicate.get("runDetails"), "runDetails")
    _uri(_mapping(run.get("builder"), "builder").get("id"), "id of the builder")


def _check_test_result(predicate: Mapping[str, Any]) -> None:
    if predicate.get("result") not in ("PASSED", "WARNED", "FAILED"):
        raise InvalidInput("a result of PASSED, WARNED or FAILED", "another value", _FIX)
    for item in _list(predicate.get("configuration"), "configuration"):
        _check_resource(item)
    for field in ("passedTests", "warnedTests", "failedTests"):
        if not all(isinstance(name, str) for name in _list(predicate.get(field) or [], field)):
            raise InvalidInput(f"names of tests in {field}", "another JSON value", _FIX)
    if predicate["result"] == "PASSED" and predicate.get("failedTests"):
        raise InvalidInput("no failed tests where the result is PASSED", "some", _FIX)


def _check_resource(item: Any) -> None:
    fields = _mapping(item, "resource descriptor")
    if not any(fields.get(name) for name in ("uri", "digest", "content")):
        raise InvalidInput("a resource with uri, digest or content", "one without", _FIX)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name} as a JSON object", "another value", _FIX)
    return cast(Mapping[str, Any], value)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput(f"{name} as a JSON list", "another value", _FIX)
    return cast(list[Any], value)
