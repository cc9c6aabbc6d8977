"""The cheap attacks and a short relearning on the real 135M model: figures that a reader would expect."""

from pathlib import Path

import pytest
import torch

from efface.adapters import (
    Item,
    TrainSettings,
    attach,
    detach,
    encode_all,
    load_base,
    save,
    state_digest,
    train,
)
from efface.adapters.encode import eos_id, pad_id
from efface.audits import Method, Probe
from efface.audits.attacks import aim, run_attack
from efface.recipes.data import shipped_request

KEPT = (
    Item("k0", "What is the capital of France?", "The capital of France is Paris."),
    Item("k1", "What is the chemical symbol of water?", "The chemical symbol of water is H2O."),
    Item("k2", "How many days does a week have?", "A week has seven days."),
    Item("k3", "Which planet is closest to the sun?", "Mercury is the planet closest to the sun."),
)
pytestmark = pytest.mark.slow


def test_a_suppressed_fact_comes_back_with_the_adapter_off(smollm: Path, tmp_path: Path) -> None:
    base = load_base(smollm, "bf16")
    digest = state_digest(base.model)
    data = shipped_request("shakespeare")
    forget = [row.item() for row in data.forget[:8]]
    rows = [Probe(item, "forget", "q1") for item in forget] + [Probe(item, "neighbour") for item in KEPT]
    method = Method(max_new_tokens=16, generate_batch=16, score_batch=16)
    model = attach(base.model, rank=8)
    settings = TrainSettings(
        "npo", {"beta": 0.1}, steps=12, learning_rate=5e-4, forget_batch=4, retain_batch=2
    )
    train(
        model,
        encode_all(base.tokenizer, forget, chat=True),
        encode_all(base.tokenizer, KEPT, chat=True, end=True),
        settings,
        pad_id=pad_id(base.tokenizer),
        eos_id=eos_id(base.tokenizer),
    )
    save(model, tmp_path / "adapter", base=base.fingerprint.digest)
    detach(model)
    target = aim(base, tmp_path / "adapter", rows, method=method)
    (off,) = run_attack("adapter/off", target)
    assert off.suppressed < 0.5 * off.known
    assert off.recovered == pytest.approx(1.0, abs=1e-2)
    (scale,) = run_attack("adapter/scale", target, {"weights": "0.5, 1"})
    assert scale.points[0].y > scale.points[1].y
    (locate,) = run_attack("adapter/locate", target)
    assert locate.attacked > 0.5
    settings_ = {"steps": 4, "every": 2, "fraction": 0.5, "batch": 4}
    (relearnt,) = run_attack("relearning/random", target, settings_)
    assert [p.x for p in relearnt.points] == [0.0, 2.0, 4.0]
    (leak,) = run_attack("sampling/leak", target, {"samples": 2, "k": 2})
    assert leak.n == 8
    assert state_digest(base.model) == digest
    assert torch.isfinite(torch.tensor([relearnt.attacked, leak.attacked])).all()
