"""Export as a PEFT folder: the sealed bytes, a card of checked facts, and the publishing rule."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from foreign_kit import CONFIG_NAME, WEIGHTS_NAME, files, packed
from registry_kit import BASE, contents

from efface.registry import peft_folder
from efface.registry.canon import Digest, canonical, digest_bytes
from efface.registry.card import CardFacts, model_card
from efface.registry.compositions import compose
from efface.registry.errors import Conflict, InvalidInput, RegistryError
from efface.registry.exports import export_folder
from efface.registry.package import package
from efface.registry.types import Audit

PARTS = [("sha256:" + "1" * 64, "1"), ("sha256:" + "2" * 64, "0.5")]
COMPOSITION = compose(BASE, "nf4", PARTS)


def audit(**changes: Any) -> Audit:
    values: dict[str, Any] = {
        "digest": Digest("sha256:" + "a" * 64),
        "composition": COMPOSITION.digest,
        "precision": "nf4",
        "suite": "quick@1",
        "seed": 0,
        "verdict": "pass",
        "report": Digest("sha256:" + "d" * 64),
        "environment": {"torch": "2.13.0"},
        "requests": None,
        "at": "2026-03-01T12:00:00.000000Z",
        **changes,
    }
    return Audit(**values)


FACTS = CardFacts(
    base_name="acme/base-135M",
    repo_id="acme/forgetting",
    license="apache-2.0",
    composition=COMPOSITION,
    audit=audit(),
    figures={"forget.rouge_l": 0.0312345678, "retain.probability": 0.91},
)


def card(facts: CardFacts = FACTS, **changes: Any) -> str:
    return model_card(packed(**changes), facts).decode()


def front_matter(text: str) -> Any:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_folder_has_the_sealed_bytes_and_a_card(tmp_path: Path) -> None:
    folder = export_folder(packed(), tmp_path / "new" / "out", FACTS)
    assert {path.name for path in folder.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME, "README.md"}
    assert peft_folder.read(folder) == files()
    assert list((tmp_path / "new").iterdir()) == [folder]


def test_an_empty_folder_is_filled_and_one_in_use_left_alone(tmp_path: Path) -> None:
    export_folder(packed(), tmp_path / "out", FACTS)
    (tmp_path / "empty").mkdir()
    export_folder(packed(), tmp_path / "empty", FACTS)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("empty")
    before = contents(tmp_path)
    for name in ("out", "file", "link"):
        with pytest.raises(InvalidInput, match="empty folder"):
            export_folder(packed(), tmp_path / name, FACTS)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["write", "rename", "mkdir"])
def test_what_the_disk_refuses_is_said_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refused)
        with pytest.raises(RegistryError, match=errno.errorcode[code]) as caught:
            export_folder(packed(), tmp_path / "new" / "out", FACTS)
    assert not isinstance(caught.value, InvalidInput)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    export_folder(packed(), tmp_path / "new" / "out", FACTS)


def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(card()) == {
        "base_model": "acme/base-135M",
        "library_name": "peft",
        "license": "apache-2.0",
        "tags": ["unlearning", "lora", "efface"],
    }
    assert front_matter(card(CardFacts())) == {
        "library_name": "peft",
        "tags": ["unlearning", "lora", "efface"],
    }


def test_the_card_says_what_was_measured_and_what_it_holds_for() -> None:
    text = card()
    for fact in (
        BASE,
        "nf4",
        COMPOSITION.digest,
        "quick@1",
        "pass",
        "0.0312346",
        packed().digest,
        *dict(PARTS),
    ):
        assert f"`{fact}`" in text or f"`weight {fact}`" in text or fact in text
    for digest in packed().record["files"].values():
        assert digest in text
    assert 'PeftModel.from_pretrained(base, "acme/forgetting")' in text
    assert "vllm serve acme/base-135M --enable-lora" in text
    assert "disable or remove the adapter" in text


def test_without_an_audit_the_card_says_so() -> None:
    assert "No audit" in card(CardFacts())


@pytest.mark.parametrize(("kind", "word"), [("trained", "suppresses"), ("rendered", "suppresses")])
def test_a_removable_adapter_suppresses(kind: str, word: str) -> None:
    text = card(kind=kind)
    assert f"that {word} unlearned content" in text
    assert "erases" not in text


def test_nothing_of_the_facts_or_the_requests_is_in_the_card() -> None:
    canary = "The heron keeps its ledger under the ninth stair."
    made = packed(["req-000041", "req-000042"], facts={"note": canary, canary: 1})
    text = model_card(made, FACTS).decode()
    assert "heron" not in text
    assert "req-" not in text


BAD_FACTS: dict[str, CardFacts] = {
    "a base that is a path": CardFacts(base_name="/home/ana/base"),
    "a base that is markup": CardFacts(base_name="a/b\n---"),
    "a license of two lines": CardFacts(license="mit\nbase_model: x"),
    "a figure that is text": CardFacts(figures={"forget": "the heron"}),  # type: ignore[dict-item]
    "a figure that is no number": CardFacts(figures={"forget": float("nan")}),
    "a figure that is true": CardFacts(figures={"forget": True}),
    "a figure named in prose": CardFacts(figures={"a | b": 1.0}),
    "a figure on two lines": CardFacts(figures={"a\nb": 1.0}),
    "an audit of something else": CardFacts(
        composition=COMPOSITION, audit=audit(composition="sha256:" + "0" * 64)
    ),
    "an audit without its composition": CardFacts(audit=audit()),
    "a composition on another base": CardFacts(composition=compose(BASE, "int8", PARTS)),
}


@pytest.mark.parametrize("fault", BAD_FACTS)
def test_facts_unfit_for_a_card_are_refused_and_nothing_written(tmp_path: Path, fault: str) -> None:
    with pytest.raises(InvalidInput):
        export_folder(packed(), tmp_path / "out", BAD_FACTS[fault])
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("kind", ["trained", "rendered"])
def test_an_adapter_of_one_request_goes_out_only_when_asked(tmp_path: Path, kind: str) -> None:
    alone = packed(["req-000001"], kind=kind)
    with pytest.raises(Conflict, match="difference from the base"):
        export_folder(alone, tmp_path / "out", CardFacts())
    assert contents(tmp_path) == {}
    export_folder(alone, tmp_path / "out", CardFacts(), single_request=True)


def _manifest(**changes: Any) -> bytes:
    return canonical({**packed().record, **changes})


BAD_MANIFESTS: dict[str, Callable[[], bytes]] = {
    "no JSON": lambda: b"{",
    "no text": lambda: b"\xff\xfe",
    "a list": lambda: b"[]",
    "another form of the same": lambda: json.dumps(packed().record).encode(),
    "a blank more": lambda: packed().manifest + b" ",
    "another version": lambda: _manifest(v=2),
    "no requests": lambda: _manifest(requests=[]),
    "requests as text": lambda: _manifest(requests="req-000001"),
    "a request that is markup": lambda: _manifest(requests=["<b>"]),
    "a request that is a number": lambda: _manifest(requests=[1]),
    "a kind in prose": lambda: _manifest(kind="very good"),
    "a base that is markup": lambda: _manifest(base="x | y"),
    "another trained_on": lambda: _manifest(trained_on="yes"),
    "one field more": lambda: _manifest(extra=1),
    "other files": lambda: _manifest(files={CONFIG_NAME: digest_bytes(b"")}),
    "no files": lambda: _manifest(files={}),
    "too much": lambda: _manifest(facts={"x": "y" * 2**20}),
}


@pytest.mark.parametrize("fault", BAD_MANIFESTS)
def test_a_manifest_of_something_else_is_refused(fault: str) -> None:
    with pytest.raises(InvalidInput):
        package(BAD_MANIFESTS[fault](), files())
