"""A base on the bench: how it is asked, and what it answered, so that no question is put to it twice."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from ..adapters import (
    Base,
    BaseMismatch,
    Encoded,
    ReferenceCache,
    detach,
    encode_all,
    load,
    load_base,
    read_adapter,
)
from ..audits import Evaluation, Method, Probe, RowScore, answer_rows, evaluate, question_ids
from ..registry import Composition, compose
from .data import Row
from .plan import Plan
from .progress import Progress, Silent
from .recipe import Recipe
from .row_cache import RowMemory, method_digest

Ids = tuple[int, ...]
Key = tuple[str, Encoded, tuple[str, ...]]
"""What a score is of: a composition, a row, and the keywords that are looked for."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A loaded base and how rows are measured on it, with what it has measured so far.

    ``answers`` (greedy, by composition and prompt) and ``scores`` (by composition and row) are reused only for
    the same composition digest, which covers base, precision, adapters and weights. ``references``: what training
    asked of its reference policy, by the same digest. ``memory``: figures of rows from runs before this one, on disk.
    ``plan``: the suite that audits here run; quick by default.
    """

    base: Base
    method: Method
    answers: dict[tuple[str, Ids], Ids] = field(default_factory=dict)
    scores: dict[Key, RowScore] = field(default_factory=dict)
    references: dict[str, ReferenceCache] = field(default_factory=dict)
    memory: RowMemory | None = None
    plan: Plan | None = None

    @property
    def bare(self) -> Composition:
        """The composition that is the base alone."""
        return compose(self.base.fingerprint.digest, self.base.quantization, ())

    def reference(self, policy: str) -> ReferenceCache:
        """What the policy of this digest was asked so far."""
        return self.references.setdefault(policy, ReferenceCache(policy))


def open_bench(
    model: str | Path, recipe: Recipe, *, memory: RowMemory | None = None, plan: Plan | None = None
) -> Bench:
    """Load ``model`` at the recipe's precision. Raises `ModelError`."""
    base = load_base(model, recipe.quantization)
    method = recipe.method(has_chat_template=bool(base.tokenizer.chat_template))
    return Bench(base, method, memory=memory, plan=plan)


@contextmanager
def wearing(bench: Bench, folder: Path | None) -> Generator[PreTrainedModel | PeftModel]:
    """The base with the adapter in ``folder`` on (None: bare), and bare again afterwards.

    Raises `BaseMismatch` when the adapter was made for another base, before anything is loaded.
    """
    if folder is None:
        yield bench.base.model
        return
    made_for = read_adapter(folder).config.base_model_name_or_path
    # Adapters that efface did not make name their base by id; `load` then checks that every layer fits.
    if made_for is not None and made_for.startswith("sha256:") and made_for != bench.base.fingerprint.digest:
        raise BaseMismatch(
            f"the adapter was made for base {made_for}, but {bench.base.path} is {bench.base.fingerprint.digest}: "
            "give the base that it was trained on"
        )
    model = load(bench.base.model, folder)
    try:
        yield model
    finally:
        detach(model)


def measure(
    bench: Bench,
    model: PreTrainedModel | PeftModel,
    composition: Composition,
    probes: Sequence[Probe],
    *,
    label: str,
    active: Sequence[str],
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate ``probes``, running only those that this composition was not measured on before.

    What was measured is kept as it comes, some rows at a time: an audit that was interrupted goes on from there.
    """
    progress = progress or Silent()
    progress.phase(f"Measuring {label}", len(probes))
    started = time.monotonic()
    digest, precision = composition.digest, bench.base.quantization
    encoded = encode_probes(bench, probes)
    keys: list[Key] = [(digest, row, probe.item.keywords) for row, probe in zip(encoded, probes, strict=True)]
    wanted: dict[Key, Probe] = {
        key: probe for key, probe in zip(keys, probes, strict=True) if key not in bench.scores
    }
    names = _remembered(bench, digest, wanted)
    new = sorted((key for key in wanted if key not in bench.scores), key=lambda key: len(key[1].prompt))
    progress.advance(len(probes) - len(new))
    for start in range(0, len(new), bench.method.generate_batch):
        some = new[start : start + bench.method.generate_batch]
        answers = ask(bench, model, composition, [question_ids(row) for _, row, _ in some], progress)
        found = evaluate(
            model,
            bench.base.tokenizer,
            [wanted[key] for key in some],
            label=label,
            composition=digest,
            precision=precision,
            method=bench.method,
            answers=answers,
        )
        bench.scores.update(zip(some, found.rows, strict=True))
        if bench.memory is not None:
            bench.memory.put({names[key]: bench.scores[key] for key in some})
    rows = tuple(
        replace(bench.scores[key], id=probe.item.id, request=probe.request, group=probe.group)
        for key, probe in zip(keys, probes, strict=True)
    )
    return Evaluation(label, digest, precision, 0, rows, time.monotonic() - started, tuple(active))


def _remembered(bench: Bench, digest: str, wanted: Mapping[Key, Probe]) -> dict[Key, str]:
    """Take what the memory has of ``wanted`` onto the bench; the names of all of them there, none without a memory."""
    memory = bench.memory
    if memory is None or not wanted:
        return {}
    method = method_digest(bench.method, str(bench.base.model.device))
    names = {key: memory.name(digest, method, probe, key[1]) for key, probe in wanted.items()}
    found = memory.find({names[key]: probe for key, probe in wanted.items()}, digest)
    for key, name in names.items():
        if name in found:
            bench.scores[key] = found[name]
    return names


def encode_probes(bench: Bench, probes: Sequence[Probe]) -> list[Encoded]:
    """``probes`` as this bench measures them. Raises one `ModelError` that names every
    row that it cannot measure.

    Call it before anything is written: an audit that stops half way leaves its adapter without a verdict.
    """
    method, items = bench.method, [probe.item for probe in probes]
    return list(
        encode_all(
            bench.base.tokenizer,
            items,
            chat=method.chat,
            max_length=method.max_length,
            truncation=method.truncation,
        )
    )


def ask(
    bench: Bench,
    model: PreTrainedModel | PeftModel,
    composition: Composition,
    prompts: Sequence[Ids],
    progress: Progress | None = None,
) -> list[Ids]:
    """Greedy answers of ``model`` (which must be ``composition``) to token-id prompts."""
    progress = progress or Silent()
    known, digest = bench.answers, composition.digest
    new = list(dict.fromkeys(prompt for prompt in prompts if (digest, prompt) not in known))
    progress.advance(sum((digest, prompt) in known for prompt in prompts))
    found = answer_rows(model, bench.base.tokenizer, new, bench.method, progress.advance)
    known.update({(digest, prompt): answer for prompt, answer in zip(new, found, strict=True)})
    return [known[digest, prompt] for prompt in prompts]


@dataclass(frozen=True, slots=True)
class Own:
    """An answer of the base itself; ``ended`` is False where it was cut at ``max_new_tokens``."""

    text: str
    ended: bool


def own_answers(bench: Bench, rows: Sequence[Row], progress: Progress | None = None) -> Mapping[str, Own]:
    """What the bare base answers to each row's question, by row id (documents have no question)."""
    tokenizer, method = bench.base.tokenizer, bench.method
    asked = [row for row in rows if row.prompt]
    # Cut as a row is that is trained or measured: what the base says is trained behind the prompt that it saw.
    encoded = encode_all(
        tokenizer,
        [row.item("?") for row in asked],
        chat=method.chat,
        max_length=method.max_length,
        truncation=method.truncation,
    )
    prompts = [row.prompt for row in encoded]
    answers = ask(bench, bench.base.model, bench.bare, prompts, progress)
    return {
        row.id: Own(
            str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip(),
            len(ids) < method.max_new_tokens,
        )
        for row, ids in zip(asked, answers, strict=True)
    }
