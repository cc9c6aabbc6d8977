"""Locating what was forgotten: where base and unlearned model part is where something was taken out.

The attacker asks his candidate questions of the base and compares what both models would say, token by token. He needs
no reference answer. A forgetting that leaves everything else as it was marks its own place, so this is a price of
locality: the figure says how plainly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...adapters.encode import Batch, Encoded, collate, eos_id, pad_id
from ...adapters.logprobs import answer_hidden
from ...adapters.lora import disabled
from ..attack import AttackResult
from ..errors import MetricError
from ..run import Model, Probe, answer_rows, question_ids
from ..types import KEEP_SIDE
from .measure import Made, Watcher, encoded, memory_named, point
from .settings import Settings
from .target import Target, items, wearing


class Locate(Settings):
    """``seed``: of the interval."""


def locate(target: Target, settings: Locate, watcher: Watcher) -> tuple[AttackResult, ...]:
    """Rank candidate questions by KL(base ‖ unlearned): the AUC of forget rows against rows that are kept.

    0.5 is what guessing gives and 1 tells all forget rows apart; `AttackResult.suppressed` and ``known`` are these two.
    """
    kept = [probe for group in KEEP_SIDE for probe in target.of(group)]
    candidates = [*target.of("forget"), *kept]
    watcher.phase("adapter/locate", len(candidates))
    with wearing(target.base, target.folder) as model:
        moved = divergences(target, model, candidates, watcher)
    of = dict(zip(candidates, moved, strict=True))
    did = f"Ranking questions by how far base and unlearned model part, against {len(kept)} kept ones"
    made = Made("adapter/locate", "adapter", "auc", did, settings.recorded())
    found: list[AttackResult] = []
    for request, probes in target.requests.items():
        places = placements([of[probe] for probe in probes], [of[probe] for probe in kept])
        spread = point(0, places, seed=settings.seed)
        words = f"AUC {spread.y:.2g} for telling forgotten from kept, where guessing gives 0.5"
        found.append(made.against(1.0, 0.5, request, len(probes), [spread], words))
    return tuple(found)


def placements(forget: npt.ArrayLike, kept: npt.ArrayLike) -> list[float]:
    """Of each of ``forget`` the share of ``kept`` that it exceeds, ties counting half; their mean is the AUC
    (Mann–Whitney). Raises `MetricError` for an empty or not finite side."""
    above, below = np.asarray(forget, np.float64), np.asarray(kept, np.float64)
    for name, side in (("forget", above), ("kept", below)):
        if side.ndim != 1 or side.size == 0 or not np.isfinite(side).all():
            raise MetricError(
                f"placements: expected finite values of {name} rows, shape (N,), got {side.shape}"
            )
    exceeds = (above[:, None] > below).mean(1) + 0.5 * (above[:, None] == below).mean(1)
    return [float(share) for share in exceeds]


def divergences(target: Target, model: Model, probes: Sequence[Probe], watcher: Watcher) -> list[float]:
    """Mean over the tokens of the base's own greedy answer of KL(base ‖ ``model``), in nats, of each probe."""
    tokenizer, method = target.base.tokenizer, target.method
    asked = [question_ids(row) for row in encoded(tokenizer, items(probes), method)]
    with disabled(model):
        said = answer_rows(model, tokenizer, asked, method)
    # A base that says nothing says its end, or whatever token comes first: there is always one to compare at.
    ended = eos_id(tokenizer)
    last = (pad_id(tokenizer) if ended is None else ended,)
    rows = [
        Encoded(probe.item.id, prompt, answer or last)
        for probe, prompt, answer in zip(probes, asked, said, strict=True)
    ]
    found: list[float] = []
    for start in range(0, len(rows), method.score_batch):
        found += _divergences(model, rows[start : start + method.score_batch], pad_id(tokenizer))
        watcher.advance(len(rows[start : start + method.score_batch]))
    return found


@torch.no_grad()
def _divergences(model: Model, rows: Sequence[Encoded], pad: int) -> list[float]:
    batch = collate(rows, pad).to(model.device)
    with memory_named(f"comparing {len(rows)} rows", "a Method with a smaller score_batch"):
        with disabled(model):
            base = _log_softmax(model, batch)
        here = _log_softmax(model, batch)
        each = (base.exp() * (base - here)).sum(-1).clamp_min(0.0)
    return [float(part.mean()) for part in each.split([len(row.answer) for row in rows])]


def _log_softmax(model: Model, batch: Batch) -> Tensor:
    hidden, _, head = answer_hidden(model, batch)
    return head(hidden).float().log_softmax(-1)
