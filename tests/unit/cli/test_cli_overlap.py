"""`efface adapter overlap`: references, the order of pairs, and what is refused before anything is read."""

from pathlib import Path

import pytest
from adapter_files import Spec, plain
from cli_kit import checked, efface
from registry_kit import BASE, Clock, ask, audited, contents, seal
from safetensors.torch import load_file, save_file

from efface.adapters import Part
from efface.adapters.overlap import overlaps
from efface.registry import Registry, activate_release, compose, create_release

SPECS = {1: plain(seed=1), 2: plain(seed=2), 3: Spec({"lm_head": 2}, {"lm_head": 4}, seed=3)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three requests with adapters; the fourth is minus two times the first. prod serves the first, at weight 2."""
    root = tmp_path / "registry"
    with Registry.open(root, create=True, clock=Clock()) as reg:
        for seed, spec in SPECS.items():
            seal(reg, spec.write(tmp_path / f"lora{seed}"), [ask(reg)])
        against = plain(seed=1, alpha=8).write(tmp_path / "lora4")
        tensors = load_file(against / "adapter_model.safetensors")
        turned = {name: -value if "lora_B" in name else value for name, value in tensors.items()}
        save_file(turned, against / "adapter_model.safetensors", metadata={"format": "pt"})
        seal(reg, against, [ask(reg)])
        first = checked(root, "adapter", "list", "--request", "req-000001")[0]["digest"]
        served = compose(BASE, "nf4", [(first, "2")])
        create_release(reg, "prod", served, rendered=None, reason="r", actor="ana")
        activate_release(reg, "prod", 1, audit=audited(reg, served).digest, approved_by="ana")
    return root


def digest(root: Path, request: int) -> str:
    return checked(root, "adapter", "list", "--request", f"req-{request:06d}")[0]["digest"]


def test_pairs_come_worst_first_whatever_they_are_named_by(home: Path, tmp_path: Path) -> None:
    found = checked(
        home, "adapter", "overlap", "req-000001", digest(home, 2)[7:20], "req-000003", "req-000004"
    )
    assert len(found) == 6
    assert {found[0]["first"], found[0]["second"]} == {digest(home, 1), digest(home, 4)}
    assert found[0]["forecast"] == "undoes"
    assert min(found[0]["projection"], found[0]["projection_back"]) == pytest.approx(-2, abs=1e-5)
    assert found[0]["cosine"] == pytest.approx(-1, abs=1e-5)
    worst = [min(pair["projection"], pair["projection_back"], 0.0) for pair in found]
    assert worst == sorted(worst)
    apart = [pair for pair in found if digest(home, 3) in (pair["first"], pair["second"])]
    assert [(p["forecast"], p["cosine"], p["inputs"]) for p in apart] == [("apart", 0.0, 0.0)] * 3
    (pair,) = overlaps([Part(tmp_path / "lora1"), Part(tmp_path / "lora2")])
    (ours,) = [p for p in found if {p["first"], p["second"]} == {digest(home, 1), digest(home, 2)}]
    assert ours["cosine"] == pytest.approx(pair.cosine)
    assert sorted([ours["projection"], ours["projection_back"]]) == pytest.approx(
        sorted([pair.projection, pair.projection_back])
    )


def test_a_channel_stands_for_what_it_serves_with_its_weights(home: Path) -> None:
    (pair,) = checked(home, "adapter", "overlap", "prod", "req-000004", "req-000001")
    assert sorted([pair["projection"], pair["projection_back"]]) == pytest.approx([-1, -1], abs=1e-5)
    text = efface("adapter", "overlap", "prod", "req-000004", "--registry", home).out
    assert text.split()[:3] == ["forecast", "requests", "cosine"]
    assert "undoes" in text
    assert "-1.000" in text


def test_what_cannot_be_compared_is_refused_and_nothing_changes(home: Path, tmp_path: Path) -> None:
    with Registry.open(home) as reg:
        other = seal(reg, plain(seed=7).write(tmp_path / "other"), [ask(reg)], quantization="int8")
    before = contents(home)
    for references, said in (
        (["req-000001"], "at least two different adapters"),
        (["req-000001", "prod"], "at least two different adapters"),
        (["req-000001", "req-000009"], "the id of a request"),
        (["req-000001", "nosuch"], "the digest of an adapter"),
        (["req-000001", other.digest], f"{other.digest} on {BASE} at int8"),
    ):
        ran = efface("adapter", "overlap", *references, "--registry", home)
        assert (ran.code, ran.out) == (2, "")
        assert said in " ".join(ran.err.split())
    assert contents(home) == before
