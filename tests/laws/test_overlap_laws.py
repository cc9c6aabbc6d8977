"""Overlap from factors against deltas that are written out, and against SciPy's principal angles."""

from decimal import Decimal
from itertools import combinations

import numpy as np
import pytest
import torch
from adapter_files import Spec, plain
from hypothesis import given, settings
from scipy.linalg import subspace_angles
from test_compose_laws import stacks, written

from efface.adapters.compose import Part, plan
from efface.adapters.overlap import overlaps

law = settings(max_examples=40, deadline=None)


def flat(spec: Spec, weight: Decimal, names: list[str]) -> torch.Tensor:
    return torch.cat([(float(weight) * spec.delta(name)).flatten() for name in names])


@law
@given(stacks(2))
def test_cosine_and_projection_are_those_of_the_deltas(stack: list[tuple[Spec, Decimal]]) -> None:
    with written(stack) as (_, parts):
        order = {plan([part]).parts[0].adapter.digest: i for i, part in enumerate(parts)}
        names = sorted({name for spec, _ in stack for name in spec.ranks})
        found = overlaps(parts)
        assert len(found) == len(list(combinations(parts, 2)))
        for pair in found:
            one, two = (flat(*stack[order[digest]], names) for digest in (pair.first, pair.second))
            inner = float(one @ two)
            scale = float(one.norm() * two.norm())
            assert pair.cosine * scale == pytest.approx(inner, abs=1e-6 * scale)
            assert pair.projection * float(one @ one) == pytest.approx(inner, abs=1e-6 * scale)
            assert pair.projection_back * float(two @ two) == pytest.approx(inner, abs=1e-6 * scale)


@law
@given(stacks(2))
def test_inputs_and_outputs_are_the_principal_angles(stack: list[tuple[Spec, Decimal]]) -> None:
    with written(stack) as (_, parts):
        order = {plan([part]).parts[0].adapter.digest: i for i, part in enumerate(parts)}
        for pair in overlaps(parts):
            one, two = (stack[order[digest]][0] for digest in (pair.first, pair.second))
            shared = sorted(set(one.ranks) & set(two.ranks))
            for side, value in (("A", pair.inputs), ("B", pair.outputs)):
                total, most = 0.0, 0
                for name in shared:
                    mine, theirs = (
                        spec.tensors()[f"base_model.model.{name}.lora_{side}.weight"].double().numpy()
                        for spec in (one, two)
                    )
                    angles = subspace_angles(*(m.T if side == "A" else m for m in (mine, theirs)))
                    total += float(np.square(np.cos(angles)).sum())
                    most += min(one.ranks[name], two.ranks[name])
                assert value == pytest.approx(total / most if most else 0.0, abs=1e-5)
                assert -1e-9 <= value <= 1 + 1e-9


@pytest.mark.parametrize(("weight", "said"), [("1", "strengthens"), ("-1", "undoes")])
def test_the_same_change_again_strengthens_and_its_opposite_undoes(tmp_path, weight: str, said: str) -> None:
    one, same = plain(rank=2, seed=1), plain(rank=2, seed=1, alpha=2)
    parts = [Part(one.write(tmp_path / "one")), Part(same.write(tmp_path / "same"), weight)]
    (pair,) = overlaps(parts)
    assert pair.forecast == said
    assert abs(pair.cosine) == pytest.approx(1.0)
    assert pair.inputs == pytest.approx(1.0)
    assert sorted([abs(pair.projection), abs(pair.projection_back)]) == pytest.approx([0.5, 2.0])


def test_adapters_of_different_modules_are_apart(tmp_path) -> None:
    one = Spec({"lm_head": 2}, {"lm_head": 4.0}, seed=1)
    two = Spec({"model.layers.0.self_attn.v_proj": 2}, {"model.layers.0.self_attn.v_proj": 4.0}, seed=2)
    (pair,) = overlaps([Part(one.write(tmp_path / "one")), Part(two.write(tmp_path / "two"))])
    assert (pair.cosine, pair.projection, pair.inputs, pair.outputs, pair.forecast) == (0, 0, 0, 0, "apart")
    assert overlaps([Part(tmp_path / "one")]) == []
