"""Laws of composition (design §4: 5, 7, 8), on small random adapters of every shape efface takes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import permutations
from pathlib import Path

import pytest
import torch
from adapter_files import SIZES, Spec, contents
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from efface.adapters.compose import Part, compose
from efface.adapters.errors import AdapterError
from efface.adapters.folder import delta, read_adapter

WEIGHTS = st.just(Decimal(1)) | st.decimals("-3", "3", places=2).filter(lambda weight: weight != 0)
law = settings(max_examples=40, deadline=None)


@st.composite
def specs(draw: st.DrawFn, seed: int = 0) -> Spec:
    names = draw(st.lists(st.sampled_from(sorted(SIZES)), min_size=1, unique=True))
    alphas = st.one_of(st.integers(1, 32), st.sampled_from([0.5, 2.75, 1.0]))
    return Spec(
        ranks={name: draw(st.integers(1, 4)) for name in names},
        alphas={name: draw(alphas) for name in names},
        seed=seed,
        use_rslora=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
    )


def stacks(smallest: int = 1) -> st.SearchStrategy[list[tuple[Spec, Decimal]]]:
    counts = st.integers(smallest, 3)
    return counts.flatmap(
        lambda n: st.tuples(*(st.tuples(specs(seed), WEIGHTS) for seed in range(n))).map(list)
    )


@contextmanager
def written(stack: list[tuple[Spec, Decimal]]) -> Iterator[tuple[Path, list[Part]]]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        parts = [Part(spec.write(root / f"part{i}"), weight) for i, (spec, weight) in enumerate(stack)]
        yield root, parts


@law
@given(stacks())
def test_rendered_delta_is_the_weighted_sum(stack: list[tuple[Spec, Decimal]]) -> None:
    with written(stack) as (root, parts):
        composed = read_adapter(compose(parts, root / "out").path)
        assert set(composed.modules) == {name for spec, _ in stack for name in spec.ranks}
        for name in composed.modules:
            terms = [float(weight) * spec.delta(name) for spec, weight in stack]
            size = max(1.0, float(sum(term.abs() for term in terms).max()))
            torch.testing.assert_close(delta(composed, name).double(), sum(terms), rtol=0, atol=1e-6 * size)


@law
@given(stacks(smallest=2))
def test_order_never_matters(stack: list[tuple[Spec, Decimal]]) -> None:
    with written(stack) as (root, parts):
        results = [compose(order, root / f"out{i}") for i, order in enumerate(permutations(parts))]
        assert len({result.digest for result in results}) == 1
        assert all(contents(result.path) == contents(results[0].path) for result in results)


@law
@given(specs(), st.sampled_from(["1", "1.000", "1E0"]))
def test_weight_one_alone_is_identity(spec: Spec, one: str) -> None:
    with written([(spec, Decimal(1))]) as (root, parts):
        folder = parts[0].folder
        composed = compose([Part(folder, one)], root / "out")
        again = compose([Part(composed.path)], root / "again")
        assert composed.digest == read_adapter(folder).digest == again.digest
        assert contents(composed.path) == contents(again.path)
        stored = load_file(composed.path / "adapter_model.safetensors")
        assert stored.keys() == spec.tensors().keys()
        for name, tensor in spec.tensors().items():
            assert stored[name].dtype == tensor.dtype
            assert torch.equal(stored[name], tensor)
        for name in spec.ranks:
            assert read_adapter(composed.path).modules[name].scaling == spec.scaling(name)


@law
@given(stacks(smallest=2), st.sampled_from(["0", "-0", "0.00", "0E+3"]))
def test_weight_zero_is_removal(stack: list[tuple[Spec, Decimal]], zero: str) -> None:
    with written(stack) as (root, parts):
        zeroed = compose([Part(parts[0].folder, zero), *parts[1:]], root / "zeroed")
        removed = compose(parts[1:], root / "removed")
        assert zeroed.digest == removed.digest
        assert contents(zeroed.path) == contents(removed.path)


@law
@given(stacks(smallest=2))
def test_removing_one_request_leaves_what_was_before_it(stack: list[tuple[Spec, Decimal]]) -> None:
    """compose(S without r) is the same before r came and after it went: rollback restores the digest."""
    with written(stack) as (root, parts):
        before = compose(parts[:-1], root / "v1")
        compose(parts, root / "v2")
        after = compose([part for part in reversed(parts) if part is not parts[-1]], root / "v3")
        assert after.digest == before.digest
        assert contents(after.path) == contents(before.path)


@law
@given(stacks(), st.sampled_from(["nan", "config", "missing", "twice", "weight", "base", "exists"]))
def test_rejected_input_leaves_every_file_as_it_was(stack: list[tuple[Spec, Decimal]], fault: str) -> None:
    with written(stack) as (root, parts):
        bad = _with_fault(root, parts, fault)
        before = contents(root)
        folders = sorted(path for path in root.rglob("*") if path.is_dir())
        with pytest.raises(AdapterError):
            compose(bad, root / "out")
        assert contents(root) == before
        assert sorted(path for path in root.rglob("*") if path.is_dir()) == folders


def _with_fault(root: Path, parts: list[Part], fault: str) -> list[Part]:
    other = Spec({"lm_head": 2}, {"lm_head": 2}, seed=9, extra={"base_model_name_or_path": "another/base"})
    match fault:
        case "nan":
            weights = parts[-1].folder / "adapter_model.safetensors"
            data = bytearray(weights.read_bytes())
            data[-4:] = b"\xff\xff\xff\xff"  # a NaN in each of the three dtypes
            weights.write_bytes(data)
        case "config":
            (parts[-1].folder / "adapter_config.json").write_text("{")
        case "missing":
            return [*parts, Part(root / "nowhere")]
        case "twice":
            return [*parts, parts[0]]
        case "weight":
            return [*parts[:-1], Part(parts[-1].folder, "NaN")]
        case "base":
            return [*parts, Part(other.write(root / "other"))]
        case _:
            (root / "out").mkdir()
    return parts
