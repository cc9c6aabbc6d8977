"""The pages say what the command line does: schema, verbs, states, and every command of docs/registry.md run."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from audit_kit import report
from cli_kit import FORGET, RETAIN, Ran, checked, conforms, efface, jsonl, verb_of
from foreign_kit import base_folder
from jsonschema import Draft202012Validator, ValidationError
from registry_kit import ask, audited, lora, release, seal, stack

from efface.cli import app, schemas
from efface.registry import Registry, compose, create_release, list_adapters, list_audits, signing, states
from efface.registry.locations import locate

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "registry.md").read_text(encoding="utf-8")
AUDITS_PAGE = (DOCS / "audits.md").read_text(encoding="utf-8")
JSON_PAGE = (DOCS / "cli-json.md").read_text(encoding="utf-8")
WITH_A_MODEL = {
    "unlearn",
    "merge",
    "demo",
    "release create",
    "release rollback",
    "adapter compact",
    "release compact",
    "release render",
    "release repair",
    "release balance",
    "release pull",
    "audit run",
    "audit reversible",
    "request lengths",
    "model fetch",
    "serve vllm",
    "serve gateway",
    "serve key",
    "serve revoke",
}
"""Their output is held to the schema where they run: tests/integration/test_cli*.py."""
ON_FILES = {"audit sign", "audit verify"}
"""The same in test_audit_sign.py."""
DESCRIBED_ELSEWHERE: set[str] = set()
"""Nouns with a page and a schema of their own."""


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    if not hasattr(command, "commands"):
        yield " ".join(path)
    for name, inner in getattr(command, "commands", {}).items():
        if (*path, name)[0] not in DESCRIBED_ELSEWHERE:
            yield from verbs(inner, (*path, name))


def test_the_published_files_are_what_the_types_say(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "cli-json.md").write_text(JSON_PAGE, encoding="utf-8")
    schemas.write(tmp_path)
    for name in ("cli-json.md", "schemas/cli.json", "schemas/audit-report.json"):
        assert (tmp_path / name).read_text() == (DOCS / name).read_text(), "run python -m efface.cli.schemas"


def test_it_is_a_schema_and_knows_every_verb() -> None:
    document = schemas.document()
    Draft202012Validator.check_schema(document)  # with every verb's under `$defs`
    Draft202012Validator.check_schema(schemas.schema_of("verify"))
    assert document["$defs"].keys() >= set(schemas.VERBS)
    assert set(verbs(typer.main.get_command(app))) == set(schemas.VERBS)


def test_a_key_more_or_less_or_of_another_type_is_refused() -> None:
    good = {"done": False, "path": "x"}
    conforms("vault drop-key-file", good)
    for bad in ({"done": False}, {**good, "more": 1}, {**good, "done": "no"}, []):
        with pytest.raises(ValidationError):
            conforms("vault drop-key-file", bad)


def test_the_python_of_the_json_page_is_python() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", JSON_PAGE, re.DOTALL)
    ast.parse(code)


@pytest.mark.parametrize(("kind", "table"), list(states.TABLES.items()))
def test_the_diagrams_are_the_tables(kind: str, table: states.Table) -> None:
    (diagram,) = re.findall(rf"<!-- {kind} -->\n```mermaid\nstateDiagram-v2\n(.*?)```", PAGE, re.DOTALL)
    drawn = {tuple(line.split(" --> ")) for line in diagram.replace("    ", "").splitlines()}
    steps = {(state, to) for state, following in table.items() for to in following or ("[*]",)}
    assert drawn == steps | {("[*]", next(iter(table)))}


@pytest.mark.parametrize("url", re.findall(r"^\| `([^`]+)` \| (?:SQLite|Postgres)", PAGE, re.MULTILINE))
def test_urls_of_the_page_are_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EFFACE_BLOBS", "EFFACE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    place = locate(url)
    assert place.root == Path(".efface" if url == ".efface" else "/var/lib/efface")
    assert place.blobs == (".efface/blobs" if url == ".efface" else "s3://bucket/prefix")
    assert (place.server is not None) == url.startswith("postgresql")


def test_links_are_there() -> None:
    for page in (PAGE, JSON_PAGE, AUDITS_PAGE):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page):
            assert (DOCS / link).exists(), link


def blocks(page: str = PAGE) -> list[tuple[str, list[list[str]]]]:
    """Each shell block of the page: its kind, and its commands as words."""
    found = re.findall(r"```sh( model)?\n(.*?)```", page, re.DOTALL)
    return [
        (kind.strip(), [shlex.split(line, comments=True) for line in text.splitlines()])
        for kind, text in found
    ]


@pytest.mark.parametrize(
    "words",
    [words for page in (PAGE, AUDITS_PAGE) for _, block in blocks(page) for words in block],
    ids=" ".join,
)
def test_every_command_parses(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context(words[0], rest)


def test_the_page_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, in order, each command in both formats where that changes nothing; what needs a model is done
    through the library."""
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "forget.jsonl", FORGET)
    jsonl(tmp_path / "retain.jsonl", RETAIN)
    ran: dict[str, Ran] = {}
    for kind, block in blocks():
        for words in block:
            if kind == "model":
                stand_in(verb_of(words[1:]), tmp_path)
                continue
            done = efface(
                *(named(word) for word in words[1:]), *([] if "--format" in words else ["--format", "json"])
            )
            refused = words[1:3] == ["adapter", "retire"]  # its adapter is served, as the page says
            assert done.code == (2 if refused else 0), (words, done)
            conforms(verb_of(words[1:]), done.json)
            ran[" ".join(words[1:])] = done
    assert ran["request close req-000001 --claim suppressed"].json["claim_level"] == "suppressed"
    assert ran["request shred req-000001"].json["done"] is False
    assert (tmp_path / "served" / "README.md").is_file() and (tmp_path / "image" / "oci-layout").is_file()
    assert efface("request", "show", "req-000002").out.count("REFUSED") == 1
    covered = {verb_of(line.split()) for line in ran}
    assert {"request extend", "release approve", "gc", "vault rotate", "adapter retire"} <= covered


def stand_in(verb: str, work: Path) -> None:
    """What a command of the page would have left, without a model."""
    if verb not in ("unlearn", "release create"):
        return
    with Registry.open(work / ".efface") as reg:
        if verb == "unlearn":
            seal(reg, lora(work / "lora"), ["req-000001"])
            return
        (trained,) = list_adapters(reg)
        composition = stack([trained])
        made = seal(
            reg,
            lora(work / "stack", 2),
            ["req-000001"],
            kind="rendered",
            facts={"composition": composition.digest},
        )
        create_release(reg, "prod", composition, rendered=made.digest, reason="why", actor="ana")
        audited(reg, composition)


def named(word: str) -> str:
    """AUDIT and ADAPTER stand for digests that an earlier command printed."""
    if word not in ("AUDIT", "ADAPTER"):
        return word
    with Registry.open(".efface") as reg:
        return list_audits(reg)[-1].digest if word == "AUDIT" else list_adapters(reg)[0].digest


def test_the_verbs_that_the_page_leaves_out_print_what_the_schema_says(tmp_path: Path) -> None:
    root, base, new = tmp_path / "registry", base_folder(tmp_path / "model"), "sha256:" + "c" * 64
    with Registry.open(root, create=True) as reg:
        adapters = [seal(reg, lora(tmp_path / f"lora-{seed}", seed), [ask(reg)]) for seed in range(3)]
        release(reg, stack(adapters[:1]))
        create_release(reg, "prod", stack(adapters[:2]), rendered=None, reason="why", actor="ana")
        proof = audited(reg, compose(new, "nf4", []), requests=["req-000001"]).digest
    one, _, last = (adapter.digest for adapter in adapters)
    out, why = tmp_path / "out", ("--reason", "why")
    compared = tmp_path / "report.json"
    compared.write_text(json.dumps(report().to_json()))
    private, public = signing.generate(), tmp_path / "key.pub"
    signing.write_private(private, tmp_path / "key")
    public.write_text(signing.public_pem(private))
    retrained = ("--method", "retrain", "--artefact", new, "--statement", "retrained without them")
    commands: list[tuple[object, ...]] = [
        ("adapter", "overlap", one, last),
        ("adapter", "export", one, out, "--single-request"),
        ("adapter", "import", out, "--request", "req-000002", "--model", base),
        ("adapter", "reject", last, *why, "--yes"),
        ("adapter", "retire", last, *why, "--yes"),
        ("adapter", "purge", last, *why, "--yes"),
        ("release", "diff", "prod", 1, 2),
        ("release", "withdraw", "prod", 2, *why),
        ("request", "evidence", "req-000001", *retrained, "--audit", proof, "--base-withdrawn"),
        ("audit", "show", proof),
        ("audit", "suites"),
        ("audit", "suites", "full"),
        ("audit", "compare", compared, compared),
        ("release", "gate", "prod", "--set", "max_rebound=0.1", *why),
        ("vault", "drop-key-file"),
        ("vault", "drop-orphans"),
        ("vault", "bind", *why),
        ("key", "add", public, "--name", "x", "--role", "operator", "--role", "approver"),
        ("attest", "adapter", one, "--builder", "https://example.com/gpu-1", "--key", tmp_path / "key"),
        ("attest", "release", "prod", 1, "--key", tmp_path / "key"),
        ("checkpoint", "list"),
        ("checkpoint", "prove", "--from", 1),
        ("key", "list"),
        ("key", "revoke", signing.key_id(public.read_text()), "--reason", "retired"),
        ("model", "show", base),
        ("recipe", "list"),
        ("recipe", "show", "npo"),
        ("recipe", "validate", "npo"),
    ]
    for words in commands:
        checked(None if words[0] in ("model", "recipe") or words[1] == "suites" else root, *words)
    on_page = {verb_of(words[1:]) for kind, block in blocks() if kind != "model" for words in block}
    assert on_page | {verb_of(words) for words in commands} == set(schemas.VERBS) - WITH_A_MODEL - ON_FILES
