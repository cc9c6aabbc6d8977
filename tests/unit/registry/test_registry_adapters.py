"""Sealing: identity, idempotence, what it does to requests; and folders put back together from blobs."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from registry_kit import BASE, answered, ask, contents, lora, release, seal, stack

from efface.registry import (
    BrokenRegistry,
    Conflict,
    InvalidInput,
    NotFound,
    Registry,
    adapter_folder,
    adapter_for_request,
    digest_bytes,
    get_adapter,
    get_request,
    list_adapters,
    log,
    step_request,
    verify,
)


def test_sealing_records_what_was_sealed(reg: Registry, tmp_path: Path) -> None:
    request_id = ask(reg)
    folder = lora(tmp_path / "lora")
    adapter = seal(reg, folder, [request_id])
    assert (adapter.kind, adapter.base, adapter.quantization, adapter.state) == (
        "trained",
        BASE,
        "nf4",
        "SEALED",
    )
    assert adapter.requests == (request_id,)
    assert adapter.facts == {"objective": "simnpo", "rank": 2, "lr": 5e-4}
    assert adapter.files == {path.name: digest_bytes(path.read_bytes()) for path in folder.iterdir()}
    assert get_adapter(reg, adapter.digest) == adapter
    assert list_adapters(reg) == list_adapters(reg, request_id) == [adapter]
    assert [event.kind.split(".")[1] for event in log(reg)] == [
        "received", "sealed", "verified", "accepted", "trained",
    ]  # fmt: skip


def test_the_id_is_the_digest_of_the_manifest_written_by_hand(reg: Registry, tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora")
    adapter = seal(reg, folder, [ask(reg)], facts={})
    files = {
        path.name: "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
    }
    manifest = {
        "v": 1, "kind": "trained", "base": BASE, "quantization": "nf4", "files": files,
        "requests": ["req-000001"], "trained_on": None, "facts": {},
    }  # fmt: skip
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    assert adapter.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert reg.blobs.read(adapter.digest) == data


def test_sealing_twice_is_sealing_once(reg: Registry, tmp_path: Path) -> None:
    request_id, adapter = answered(reg, tmp_path, 1)
    before = contents(reg.root)
    assert seal(reg, lora(tmp_path / "copy", 1), [request_id], actor="someone else") == adapter
    assert contents(reg.root) == before


def test_sealing_again_puts_back_a_lost_blob(reg: Registry, tmp_path: Path) -> None:
    request_id, adapter = answered(reg, tmp_path, 1)
    reg.blobs.local_path(adapter.files["adapter_model.safetensors"]).unlink()
    assert [p.kind for p in verify(reg).problems] == ["blob-missing"]
    seal(reg, tmp_path / "lora-1", [request_id])
    assert verify(reg, deep=True).ok


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "merged"},
        {"base": ""},
        {"base": "a b"},
        {"quantization": "4 bit"},
        {"request_ids": []},
        {"request_ids": "req-000001"},
        {"facts": {"loss": math.nan}},
        {"facts": {"rows": "x" * 70_000}},
        {"facts": {"path": Path("x")}},
        {"trained_on": "sha256:12"},
        {"kind": "rendered", "trained_on": "sha256:" + "0" * 64},
        {"actor": " "},
    ],
)
def test_bad_arguments_write_nothing(reg: Registry, tmp_path: Path, change: dict[str, Any]) -> None:
    arguments = {"request_ids": [ask(reg)], **change}
    before = contents(reg.root)
    with pytest.raises(InvalidInput):
        seal(reg, lora(tmp_path / "lora"), **arguments)
    assert contents(reg.root) == before


def test_an_unknown_request_or_composition_writes_nothing(reg: Registry, tmp_path: Path) -> None:
    request_id = ask(reg)
    before = contents(reg.root)
    folder = lora(tmp_path / "lora")
    with pytest.raises(NotFound):
        seal(reg, folder, [request_id, "req-000009"])
    with pytest.raises(NotFound, match="composition"):
        seal(reg, folder, [request_id], trained_on="sha256:" + "0" * 64)
    assert contents(reg.root) == before


@pytest.mark.parametrize("end", ["WITHDRAWN", "REFUSED"])
def test_nothing_is_sealed_for_a_request_that_ended(reg: Registry, tmp_path: Path, end: str) -> None:
    request_id = ask(reg)
    step_request(reg, request_id, end, actor="ana", reason="a mistake")
    before = contents(reg.root)
    with pytest.raises(Conflict, match=end):
        seal(reg, lora(tmp_path / "lora"), [request_id])
    assert contents(reg.root) == before


def test_a_rendered_adapter_leaves_the_request_where_it_is(reg: Registry, tmp_path: Path) -> None:
    request_id = ask(reg)
    seal(reg, lora(tmp_path / "lora"), [request_id], kind="rendered")
    assert get_request(reg, request_id).state == "RECEIVED"
    with pytest.raises(NotFound, match=f"efface unlearn {request_id}"):
        adapter_for_request(reg, request_id)


def test_the_newest_trained_adapter_answers_a_request(reg: Registry, tmp_path: Path) -> None:
    request_id, first = answered(reg, tmp_path, 1)
    assert adapter_for_request(reg, request_id) == first
    step_request(reg, request_id, "AUDITED", actor="ana")
    second = seal(reg, lora(tmp_path / "better", 2), [request_id])
    assert adapter_for_request(reg, request_id) == second
    assert get_request(reg, request_id).state == "TRAINED"
    with pytest.raises(NotFound):
        adapter_for_request(reg, "req-000009")


def test_a_retrained_adapter_does_not_unrelease_its_request(reg: Registry, tmp_path: Path) -> None:
    request_id, first = answered(reg, tmp_path, 1)
    composition = release(reg, stack([first])).composition
    second = seal(reg, lora(tmp_path / "more", 2), [request_id], trained_on=composition.digest)
    assert get_request(reg, request_id).state == "RELEASED"
    assert second.trained_on == composition.digest


@pytest.mark.parametrize(
    "on", [{"quantization": "int8"}, {"base": "sha256:" + "c" * 64}], ids=["quantization", "base"]
)
def test_it_stands_on_what_is_on_its_own_base_at_its_own_quantization(
    reg: Registry, tmp_path: Path, on: dict[str, str]
) -> None:
    request_id, first = answered(reg, tmp_path, 1)
    below = release(reg, stack([first])).composition
    folder, before = lora(tmp_path / "on-top", 2), contents(reg.root)
    with pytest.raises(InvalidInput) as refused:
        seal(reg, folder, [request_id], trained_on=below.digest, **on)
    mine = {"base": BASE, "quantization": "nf4", **on}
    assert f"on base {mine['base']} at {mine['quantization']}" in refused.value.expected
    assert f"{below.digest} on base {BASE} at nf4" in refused.value.came
    assert contents(reg.root) == before


def test_abbreviated_digests(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    name = adapter.digest.removeprefix("sha256:")
    for ref in (name, name[:6], f"sha256:{name[:10]}"):
        assert get_adapter(reg, ref) == adapter
    for bad in (name[:5], "", "sha256:", name.upper(), "zzzzzz", name + "0", "*" * 6, "[a-f]*"):
        with pytest.raises(InvalidInput):
            get_adapter(reg, bad)
    with pytest.raises(NotFound):
        get_adapter(reg, "0" * 64)


def test_an_ambiguous_digest_lists_the_matches(reg: Registry) -> None:
    """Two digests with six hex digits in common cost 2^12 tries, so the rows are written by hand."""
    digests = [f"sha256:abcdef{n}" + "0" * 57 for n in (1, 2)]
    with reg.write("ana") as tx:
        tx.db.insert("base", digest="b", quantization="nf4")
        row = {"kind": "trained", "base": "b", "quantization": "nf4", "manifest": "{}", "state": "SEALED"}
        for seq, digest in enumerate(digests):
            tx.db.insert("adapter", digest=digest, seq=seq, sealed_at="now", **row)
    with pytest.raises(InvalidInput, match=", ".join(digests)):
        get_adapter(reg, "abcdef")


def test_the_folder_holds_the_sealed_bytes(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    folder = adapter_folder(reg, adapter.digest[:20])
    assert folder.parent.parent == reg.root / "cache"
    assert contents_of(folder) == contents_of(tmp_path / "lora-1")
    before = folder.stat().st_ino
    assert adapter_folder(reg, adapter.digest).stat().st_ino == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _tampered(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _linked(folder: Path) -> None:
    inside, outside = folder / "adapter_config.json", folder.parent / "elsewhere"
    outside.write_bytes(inside.read_bytes())
    inside.unlink()
    inside.symlink_to(outside)


CHANGES = {
    "a changed file": _tampered,
    "a lost file": lambda folder: (folder / "adapter_config.json").unlink(),
    "one file more": lambda folder: (folder / "adapter_model.bin").write_bytes(b"\x80\x04."),
    "a link": _linked,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_made_again(reg: Registry, tmp_path: Path, change: str) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    CHANGES[change](adapter_folder(reg, adapter.digest))
    folder = adapter_folder(reg, adapter.digest)
    assert contents_of(folder) == contents_of(tmp_path / "lora-1")
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_a_changed_blob_is_not_served(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    path = reg.blobs.local_path(adapter.files["adapter_config.json"])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"4", b"5"))
    with pytest.raises(BrokenRegistry, match="blob"):
        adapter_folder(reg, adapter.digest)
    assert not (reg.root / "cache" / "adapters").exists() or not any((reg.root / "cache/adapters").iterdir())
