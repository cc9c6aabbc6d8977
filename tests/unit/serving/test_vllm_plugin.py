"""The parts of the plugin that need no vLLM. What they repair in the real one: tests/integration/test_serving_*.py."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_server_kit import release

from efface.registry import Registry
from efface.serving.inside import Inside
from efface.serving.source import Source
from efface.serving.vllm_plugin import (
    _require_finite,
    _require_python_frontend,
    _without_base_rows,
    register,
    resolve,
)


def shrink(inputs, weights, output, indices, scaling=1.0):
    """As vLLM 0.32 does it on a CPU, index -1 and all."""
    output[:] = scaling * torch.einsum("bi,boi->bo", inputs, weights[indices])


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=8))
def test_base_rows_come_out_as_zero_and_others_as_before(indices: list[int]) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, weights = torch.randn(len(indices), 5, generator=draw), torch.randn(4, 2, 5, generator=draw)
    wanted, came, chosen = torch.zeros(len(indices), 2), torch.zeros(len(indices), 2), torch.tensor(indices)
    shrink(inputs, weights, wanted, chosen, 0.5)
    repaired = _without_base_rows(shrink)
    repaired(inputs, weights, came, chosen, 0.5)
    base = chosen < 0
    assert torch.equal(came[~base], wanted[~base])
    assert came[base].abs().sum() == 0
    assert (wanted[base].abs().sum() > 0) == bool(base.any())  # the fault that is repaired
    assert _without_base_rows(repaired) is repaired


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    good, poisoned = torch.ones(2, 2), torch.ones(2, 2)
    poisoned[1, 1] = bad
    _require_finite("q_proj", SimpleNamespace(lora_a=good, lora_b=[good, None]))
    for one in (
        SimpleNamespace(lora_a=poisoned, lora_b=good),
        SimpleNamespace(lora_a=good, lora_b=[None, poisoned]),
    ):
        with pytest.raises(ValueError, match="NaN or infinity in q_proj"):
            _require_finite("q_proj", one)


def test_only_the_active_release_of_a_listed_channel_is_resolved(tmp_path: Path) -> None:
    place = tmp_path / "registry"
    with Registry.open(place, create=True) as reg:
        release(reg, tmp_path, 1)
        old = Source(reg, "prod").active()
        release(reg, tmp_path, 2)
        new = Source(reg, "prod").active()
    assert old is not None
    assert new is not None
    inside = Inside(frozenset({"prod"}), registry=str(place))
    folder = resolve(inside, str(place), new.name)
    assert folder is not None
    assert folder.parent == place / "serving" / "@resolver" / "prod"
    for name in (
        old.name,
        "prod@2",
        "prod",
        f"{new.name}/../{new.name}",
        f"../{new.name}",
        "other@1",
        "prod@99",
        "",
    ):
        assert resolve(inside, str(place), name) is None, name
    assert resolve(Inside(frozenset({"other"}), registry=str(place)), str(place), new.name) is None
    assert [entry.name for entry in folder.parent.iterdir()] == [new.name]


def test_a_resolved_folder_that_was_tampered_with_is_not_loaded(tmp_path: Path) -> None:
    place = tmp_path / "registry"
    with Registry.open(place, create=True) as reg:
        release(reg, tmp_path, 1)
        target = Source(reg, "prod").active()
    assert target is not None
    inside = Inside(frozenset({"prod"}), registry=str(place))
    folder = resolve(inside, str(place), target.name)
    assert folder is not None
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    assert resolve(inside, str(place), target.name) is None


@pytest.mark.parametrize("value", ["1", " 1", "2", "true"])
def test_a_front_end_without_middleware_is_not_started_where_the_base_is_to_be_kept(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("EFFACE_CHANNELS", "prod")
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", value)
    with pytest.raises(RuntimeError, match="expected vLLM's Python front end"):
        register()
    monkeypatch.delenv("EFFACE_CHANNELS")
    register()


@pytest.mark.parametrize("value", ["0", "", None])
def test_the_python_front_end_is_fine(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.setenv("EFFACE_CHANNELS", "prod")
    monkeypatch.delenv("EFFACE_REGISTRY", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", value)
    _require_python_frontend(os.environ)
