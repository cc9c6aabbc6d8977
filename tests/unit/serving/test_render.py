import os
from pathlib import Path

import pytest
from adapter_files import SIZES, contents, plain
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from efface.adapters.compose import Part, compose, plan, write
from efface.adapters.errors import BaseMismatch, CompositionError, InvalidAdapter
from efface.adapters.folder import read_adapter
from efface.adapters.tensors import digest_file
from efface.serving.render import RenderError, render, slot_rank


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    return [
        Part(plain(rank, seed=rank).write(tmp_path / "in" / f"r{rank}"), weight)
        for rank, weight in ((4, "1"), (6, "0.5"))
    ]


def test_a_release_is_one_checked_folder(parts: list[Part], tmp_path: Path) -> None:
    rendered = render(parts, tmp_path / "payments@v2")
    assert (rendered.name, rendered.rank, rendered.slot_rank) == ("payments@v2", 10, 16)
    assert {name: digest_file(rendered.path / name) for name in rendered.files} == dict(rendered.files)
    assert set(contents(rendered.path)) == {"adapter_config.json", "adapter_model.safetensors"}
    assert read_adapter(rendered.path).digest == rendered.digest == compose(parts, tmp_path / "same").digest
    config = LoraConfig.from_pretrained(str(rendered.path))
    assert (config.r, config.lora_alpha, config.use_rslora, config.rank_pattern) == (10, 10, False, {})


def test_max_rank_of_the_server_is_kept(parts: list[Part], tmp_path: Path) -> None:
    assert render(parts, tmp_path / "fits", max_rank=10).rank == 10
    with pytest.raises(RenderError, match="expected a rank from 1 to 8, got 10"):
        render(parts, tmp_path / "not", max_rank=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fits", "in"]


@pytest.mark.parametrize(
    ("rank", "slot"), [(1, 1), (2, 8), (8, 8), (9, 16), (129, 256), (300, 320), (512, 512)]
)
def test_slot_is_the_smallest_that_holds_the_rank(rank: int, slot: int) -> None:
    assert slot_rank(rank) == slot


def test_no_slot_holds_more_than_512(parts: list[Part], tmp_path: Path) -> None:
    big = Part(plain(rank=510, seed=7).write(tmp_path / "in" / "r510"))
    with pytest.raises(RenderError, match="from 1 to 512, got 520"):
        render([*parts, big], tmp_path / "out")
    with pytest.raises(RenderError, match="from 1 to 512, got 513"):
        slot_rank(513, max_rank=1024)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_what_no_server_loads_has_no_slot_to_fit(parts: list[Part], tmp_path: Path) -> None:
    big = [*parts, Part(plain(rank=510, seed=7).write(tmp_path / "in" / "r510"))]
    live = render(big, tmp_path / "live", how="live")
    measured = render(big, tmp_path / "measured", for_server=False)
    assert (live.rank, live.slot_rank, measured.rank, measured.slot_rank) == (520, None, 520, None)
    assert live.digest == measured.digest
    said = "render it as svd:512, which fits \\(--render svd:512: approximate, and audited as such\\)$"
    with pytest.raises(RenderError, match=said):
        render(big, tmp_path / "cat")
    with pytest.raises(RenderError, match=r"--render svd:8: .*, or raise --max-lora-rank"):
        render(parts, tmp_path / "small", max_rank=8)


@pytest.mark.parametrize("name", ["a b", "a:b", "é", "...", "x" * 129, "a\n", "..", "a\\b"])
def test_unsafe_names_are_refused(parts: list[Part], tmp_path: Path, name: str) -> None:
    with pytest.raises(RenderError, match="expected a folder name"):
        render(parts, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_version_is_never_rewritten(parts: list[Part], tmp_path: Path) -> None:
    rendered = render(parts, tmp_path / "v1")
    before = contents(tmp_path)
    with pytest.raises(CompositionError, match="exists"):
        render(parts[:1], rendered.path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CompositionError, match="exists"):
        render(parts, tmp_path / "dangling")
    with pytest.raises(CompositionError, match="create it first"):
        render(parts, tmp_path / "no" / "such")
    assert contents(tmp_path) == before


def test_adapters_of_two_bases_are_both_named(parts: list[Part], tmp_path: Path) -> None:
    extra = {"base_model_name_or_path": "another/base", "revision": "abc"}
    other = Part(plain(extra=extra).write(tmp_path / "in" / "other"))
    with pytest.raises(BaseMismatch, match=r"'tests/tiny-base'.*'another/base' at revision abc"):
        render([*parts, other], tmp_path / "out")


def test_adapters_of_other_layer_sizes_are_named(parts: list[Part], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(SIZES, "model.layers.0.self_attn.v_proj", (5, 4))
    other = Part(plain(seed=5).write(tmp_path / "in" / "other"))
    with pytest.raises(BaseMismatch, match=r"v_proj to be \(3, 5\) .* got \(4, 5\)"):
        render([*parts, other], tmp_path / "out")


@pytest.mark.parametrize("zeros", [(), ("0",), ("0", "0.0")])
def test_nothing_to_render_is_an_error(parts: list[Part], tmp_path: Path, zeros: tuple[str, ...]) -> None:
    chosen = [Part(part.folder, zero) for part, zero in zip(parts, zeros, strict=False)]
    with pytest.raises(CompositionError, match="serve it without an adapter"):
        render(chosen, tmp_path / "out")


def test_the_same_adapter_twice_is_an_error_even_as_a_copy(parts: list[Part], tmp_path: Path) -> None:
    copy = Part(plain(4, seed=4).write(tmp_path / "in" / "copy"), "0.25")
    with pytest.raises(CompositionError, match="each adapter once"):
        render([*parts, copy], tmp_path / "out")


@pytest.mark.parametrize("weight", ["", "one", "nan", "-Infinity", "1e9", "1e-9", 0.1, 1, True, None, b"1"])
def test_a_weight_is_decimal_text(parts: list[Part], tmp_path: Path, weight) -> None:
    with pytest.raises(CompositionError, match="expected a weight as decimal text"):
        render([parts[0], Part(parts[1].folder, weight)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_that_overflow_when_scaled_leave_nothing_behind(tmp_path: Path) -> None:
    alphas = {"r": 2, "lora_alpha": 1e9}
    parts = [Part(plain(seed=i, extra=alphas).write(tmp_path / "in" / str(i)), "1000000") for i in range(2)]
    for part in parts:
        weights = part.folder / "adapter_model.safetensors"
        save_file({key: value * 1e30 for key, value in load_file(weights).items()}, weights)
    with pytest.raises(InvalidAdapter, match="finite"):
        render(parts, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("count", [1, 2])
def test_an_adapter_rewritten_meanwhile_is_noticed(parts: list[Part], tmp_path: Path, count: int) -> None:
    """Between the check and the write another process swaps the weights for others of the same shape."""
    new = plain(4, seed=77).write(tmp_path / "in" / "new")
    stack = plan(parts[:count])
    (new / "adapter_model.safetensors").replace(parts[0].folder / "adapter_model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidAdapter, match="rewritten while it was composed"):
        write(stack, tmp_path / "out")


def test_a_disk_that_returns_other_bytes_is_noticed(parts: list[Part], tmp_path: Path, monkeypatch) -> None:
    """The first file synced (the weights) gets another last byte: finite, right in shape, but not ours."""
    synced: list[int] = []

    def faulty(handle: int) -> None:
        if not synced:
            os.pwrite(handle, b"\x3a", os.fstat(handle).st_size - 1)
        synced.append(handle)

    monkeypatch.setattr(os, "fsync", faulty)
    with pytest.raises(RenderError, match="the disk is faulty"):
        render(parts, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
