import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from efface.adapters.errors import InvalidAdapter
from efface.adapters.tensors import (
    TensorSpec,
    digest_bytes,
    digest_chunks,
    digest_file,
    require_finite,
    require_spec,
    safetensors_bytes,
    safetensors_chunks,
    write_atomic,
)

NAMES = st.text("abz.019_ABZ", min_size=1, max_size=12)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
MANY = st.dictionaries(NAMES, st.tuples(SHAPES, DTYPES), min_size=1, max_size=6)


def made(shapes: dict[str, tuple[list[int], torch.dtype]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, (shape, dtype) in shapes.items()
    }


@settings(deadline=None)
@given(MANY)
def test_canonical_bytes_are_what_the_safetensors_library_writes(shapes) -> None:
    tensors = made(shapes)
    assert safetensors_bytes(tensors) == save(tensors, metadata={"format": "pt"})


@settings(deadline=None)
@given(MANY)
def test_values_survive_bit_for_bit_and_order_does_not_matter(shapes) -> None:
    tensors = made(shapes)
    data = safetensors_bytes(tensors)
    assert safetensors_bytes(dict(reversed(tensors.items()))) == data
    back = load(data)
    assert back.keys() == tensors.keys()
    assert all(back[name].dtype == t.dtype and torch.equal(back[name], t) for name, t in tensors.items())


def test_not_contiguous_tensors_are_stored_by_value() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(load(safetensors_bytes({"a": tensor}))["a"], tensor)


PROBE = """
import torch
from efface.adapters.tensors import digest_bytes, safetensors_bytes
tensors = {f"n{i}": torch.arange(i + 1, dtype=torch.float32) for i in range(20)}
print(digest_bytes(safetensors_bytes(tensors)), end="")
"""


def test_digest_is_the_same_in_every_process() -> None:
    seen = set()
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, check=True)
        seen.add(done.stdout.decode())
    tensors = {f"n{i}": torch.arange(i + 1, dtype=torch.float32) for i in range(20)}
    assert seen == {digest_bytes(safetensors_bytes(tensors))}


def test_digests_name_their_algorithm(tmp_path: Path) -> None:
    file = tmp_path / "abc"
    file.write_bytes(b"abc")
    known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_bytes(b"abc") == digest_file(file) == known


def test_digest_file_reads_beyond_one_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "big").write_bytes(data)
    assert digest_file(tmp_path / "big") == digest_bytes(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_named_and_counted(value: float) -> None:
    tensor = torch.ones(3, 2, dtype=torch.bfloat16)
    tensor[2, 1] = value
    with pytest.raises(InvalidAdapter, match=r"lora_A: expected finite values, got 1 .* of 6"):
        require_finite("lora_A", tensor)
    with pytest.raises(InvalidAdapter, match="finite"):
        safetensors_bytes({"lora_A": tensor})


def test_shape_and_dtype_are_held_to_the_spec() -> None:
    spec = TensorSpec("F32", (2, 3))
    require_spec("a", torch.zeros(2, 3), spec)
    for wrong in (torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float16)):
        with pytest.raises(InvalidAdapter, match=r"a: expected F32 \[2, 3\], got"):
            list(safetensors_chunks({"a": spec}, lambda name, wrong=wrong: wrong))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(InvalidAdapter, match=r"torch\.float64; cast it"):
        safetensors_bytes({"a": torch.zeros(1, dtype=torch.float64)})


def test_write_atomic_writes_all_and_returns_the_digest(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert write_atomic(file, [b"ab", b"", b"c"]) == digest_bytes(b"abc")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"abc"}


def test_write_atomic_leaves_the_old_file_when_the_source_fails(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("source")

    (tmp_path / "file").write_bytes(b"old")
    for name in ("file", "new"):
        with pytest.raises(ValueError, match="source"):
            write_atomic(tmp_path / name, chunks())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_small_and_large_pieces_are_written_in_their_order(tmp_path: Path) -> None:
    """Large ones are written by another thread while the next are made."""
    sizes = [1, 200_000, 3, 100_000, 70_000, 5, 0, 20 << 20, 1]
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    assert write_atomic(tmp_path / "file", pieces) == digest_bytes(b"".join(pieces))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("size", [1, 200_000], ids=["at once", "by the thread"])
def test_what_writing_raises_is_raised(size: int) -> None:
    def full(_chunk: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        digest_chunks([bytes(size)], full)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_anywhere(dtype: torch.dtype, value: float) -> None:
    for place in (0, 40_000, 69_999):
        tensor = torch.ones(70_000, dtype=dtype)
        require_finite("w", tensor)
        tensor[place] = value
        with pytest.raises(InvalidAdapter, match="got 1 NaN or infinite of 70000"):
            require_finite("w", tensor)
    require_finite("none", torch.ones(0, dtype=dtype))
    require_finite("strided", torch.ones(6, 4, dtype=dtype).T[1:])
