"""What is measured of a stack: every request of it, what must stay, its rank and cost, and whether it comes apart."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tofu_protocol import machine
from tofu_protocol.data import Row
from tofu_protocol.evaluate import METHOD, Answered, kept, score
from transformers import PreTrainedModel

from efface.adapters import Part, compose, detach, encode, load
from efface.adapters.compress import compress
from efface.audits import (
    answer_probability,
    exact_memorization,
    extraction_strength,
    ngram_entropy,
    rouge_l_recall,
)
from efface.audits.run import Scored, teacher_forced
from efface.audits.truth import model_utility

from .data import People
from .make import Bench, members
from .method import COMPRESSED, Series
from .said import said

Model = PreTrainedModel | PeftModel
Record = Mapping[str, Any]
SIDES = ("kept", "neighbours", "world")


def stack(bench: Bench, series: Series, count: int) -> Record:
    """The first ``count`` requests of ``series`` as one stack; measured once, then read back."""
    file = bench.folder(series) / f"stack-{count:02d}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    folders = members(bench, series, count)
    with tempfile.TemporaryDirectory(prefix="efface-stack-") as scratch:
        started = time.perf_counter()
        parts, out = [Part(folder) for folder in folders], Path(scratch) / "stack"
        smaller = series.method.kind == "compressed"
        composed = compress(parts, out, rank=COMPRESSED) if smaller else compose(parts, out)
        seconds = time.perf_counter() - started
        figures = measured(bench, composed.path, series.order[:count], sides=True)
        independent = series.apart.method.kind == "independent" and count > 1 and not smaller
        # A balance goes with whatever goes: what is left is what it would be without the request.
        exact = comes_apart(bench, folders[:count], Path(scratch), series.seed) if independent else None
    return _keep(
        file, series, {**figures, "rank": composed.rank, "compose_seconds": seconds, "rollback": exact}
    )


def alone(bench: Bench, series: Series, author: int) -> Record:
    """The adapter of one request by itself, on its own rows."""
    file = bench.folder(series) / f"alone-{author:02d}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    members(bench, series, series.order.index(author) + 1)
    folder = bench.folder(series) / f"author-{author:02d}"
    return _keep(file, series, measured(bench, folder, (author,), sides=False))


def bare(bench: Bench) -> Record:
    """The model as it is, on everything: N = 0, or the retain-only model where that is the bench's base."""
    name = bench.base.fingerprint.digest.removeprefix("sha256:")[:12]
    file = bench.cache / "stack" / f"bare-{bench.people.digest}-{name}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    return _keep(file, None, measured(bench, None, range(len(bench.people.authors)), sides=True))


def measured(bench: Bench, folder: Path | None, authors: Sequence[int], *, sides: bool) -> dict[str, Any]:
    """Each author of ``authors`` under the base with ``folder`` on; with ``sides`` also what must stay."""
    started = time.monotonic()
    with _wearing(bench, folder) as model:
        found: dict[str, Any] = {
            "requests": [
                {"author": author, **figures}
                for author, figures in zip(authors, _forgotten(bench, model, authors), strict=True)
            ]
        }
        if sides:
            found |= {name: _stays(bench, model, _rows(bench.people, name)) for name in SIDES}
            nine = [found[n][k] for n in SIDES for k in ("probability", "rouge_l", "truth_ratio")]
            found["utility"] = model_utility(nine)
    return {**found, "seconds": time.monotonic() - started}


def comes_apart(bench: Bench, folders: Sequence[Path], scratch: Path, seed: int) -> dict[str, bool]:
    """Take a request out of the middle again: the rest has the digest, and the model the logits bit by bit, of never
    having had it; and the bare base those from before anything was put on."""
    gone = random.Random(seed).randrange(len(folders))
    rest = [Part(folder) for i, folder in enumerate(folders) if i != gone]
    never = compose(rest, scratch / "never")
    rows = [encode(bench.base.tokenizer, row.item(), chat=True) for row in bench.people.kept[:4]]
    prompts = [torch.tensor([row.prompt + row.answer]) for row in rows]

    def logits(folder: Path | None) -> list[torch.Tensor]:
        with _wearing(bench, folder) as model, torch.no_grad():
            return [model(input_ids=ids.to(model.device)).logits.cpu() for ids in prompts]

    base, expected = logits(None), logits(never.path)
    logits(scratch / "stack")
    after = compose(random.Random(seed).sample(rest, len(rest)), scratch / "after")
    return {
        "digest": after.digest == never.digest,
        "logits": all(torch.equal(a, b) for a, b in zip(logits(after.path), expected, strict=True)),
        "base": all(torch.equal(a, b) for a, b in zip(logits(None), base, strict=True)),
    }


def _forgotten(bench: Bench, model: Model, authors: Sequence[int]) -> list[dict[str, float]]:
    rows = [row for author in authors for row in bench.people.authors[author]]
    tokenizer = bench.base.tokenizer
    scored = teacher_forced(
        model, tokenizer, [encode(tokenizer, r.item(), chat=True, end=True) for r in rows], METHOD
    )
    each = list(zip(rows, scored, said(bench.base, model, rows, bench.people.longest), strict=True))
    size = len(each) // len(authors)
    return [_request(each[start : start + size]) for start in range(0, len(each), size)]


def _request(found: Sequence[tuple[Row, Scored, str]]) -> dict[str, float]:
    return {
        "probability": _mean([answer_probability(s.logps) for _, s, _ in found]),
        "extraction_strength": _mean([extraction_strength(s.hits) for _, s, _ in found]),
        "exact_memorization": _mean([exact_memorization(s.hits) for _, s, _ in found]),
        "rouge_l": _mean([rouge_l_recall(row.answer, said) for row, _, said in found]),
        "fluency": _mean([ngram_entropy(said) for _, _, said in found]),
    }


def _stays(bench: Bench, model: Model, rows: Sequence[Row]) -> dict[str, Any]:
    answers = said(bench.base, model, rows, bench.people.longest)
    found = [
        Answered(row, *score(model, bench.base.tokenizer, row), text)
        for row, text in zip(rows, answers, strict=True)
    ]
    return kept(found, choice=rows is bench.people.world)


def _rows(people: People, side: str) -> tuple[Row, ...]:
    return {"kept": people.kept, "neighbours": people.neighbours, "world": people.world}[side]


@contextmanager
def _wearing(bench: Bench, folder: Path | None) -> Generator[Model]:
    if folder is None:
        yield bench.base.model
        return
    model = load(bench.base.model, folder)
    try:
        yield model
    finally:
        detach(model)


def _keep(file: Path, series: Series | None, figures: Mapping[str, Any]) -> Record:
    about = {"method": series.method.name, "seed": series.seed} if series else {}
    when = {"date": time.strftime("%Y-%m-%d"), "machine": machine.describe(), "versions": machine.versions()}
    record = {**about, **when, **figures}
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    scratch.replace(file)
    return record


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
