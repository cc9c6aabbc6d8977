"""The story of efface on a real small model: forget one thing, then a second, take the first back bit for bit.

Everything it reports is measured in the run that reports it; `Story.problems` says what fell short.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ..adapters import Base, collate, encode, load_base, state_digest
from ..adapters.encode import pad_id
from ..adapters.logprobs import answer_hidden
from ..audits import AuditReport, Evaluation, Probe
from ..registry import (
    Composition,
    Registry,
    Verification,
    active_release,
    adapter_folder,
    adapter_for_request,
    compose,
    open_request,
    step_request,
    verify,
)
from ..registry.requests import LEGAL_BASES
from .audit import report_of, request_data
from .bench import Bench, measure, open_bench, wearing
from .data import shipped_request, to_payload
from .errors import GateNotMet
from .prepare import probes
from .progress import Progress, Silent
from .recipe import Recipe
from .release import Released, add_requests, remove_requests, render_composition
from .run import Unlearned, unlearn

CHANNEL = "demo"
COLUMNS = ("base", "+1", "+1+2", "rolled back")
# Which rows the table shows: what it is to the reader, how many, and candidates by id. Shown are the first that
# the base knows: its greedy answers depend on the machine in the last bits. Paraphrases, neighbours and the
# rows out of scope are never trained on.
SHOWN = (
    ("1 in scope", 2, ("shakespeare-02", "shakespeare-03", "shakespeare-01", "shakespeare-12")),
    (
        "1 paraphrased",
        2,
        ("shakespeare-12/p2", "shakespeare-03/p2", "shakespeare-11/p2", "shakespeare-04/p1"),
    ),
    ("2 in scope", 2, ("potter-05", "potter-25", "potter-04", "potter-01", "potter-06", "potter-24")),
    ("2 paraphrased", 2, ("potter-02/p2", "potter-26/p1", "potter-01/p2", "potter-25/p1")),
    ("neighbour", 2, ("near-shakespeare-01", "near-shakespeare-04", "near-shakespeare-03")),
    ("out of scope", 4, tuple(f"apart-{number:02d}" for number in range(1, 9))),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One question of the table and its answer under each composition, with whether a keyword is in it."""

    kind: str
    question: str
    answers: tuple[str, ...]
    names_it: tuple[bool | None, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """All that the demo found."""

    requests: tuple[str, str]
    trained: tuple[Unlearned, Unlearned]
    releases: tuple[Released, Released, Released]
    lines: tuple[Line, ...]
    report: AuditReport
    facts: Mapping[str, bool]
    """Claims that are proofs rather than audits, each with whether it held in this run."""
    ledger: Verification
    problems: tuple[str, ...]
    seconds: float


def tell(
    model: Path, recipe: Recipe, workdir: Path, *, actor: str, progress: Progress | None = None
) -> Story:
    """Run the whole story in ``workdir``, made if it is missing (a new registry in ``workdir/registry``).

    Raises `GateNotMet` when an audit keeps a release from being activated: there is no story to tell then.
    """
    progress, started = progress or Silent(), time.monotonic()
    progress.phase("Loading the base")
    bench = open_bench(model, recipe)
    workdir.mkdir(parents=True, exist_ok=True)
    untouched = state_digest(bench.base.model)
    with Registry.open(workdir / "registry", create=True) as registry:
        first = _open(registry, "shakespeare", "test", actor)
        one = unlearn(registry, first, bench, recipe, actor=actor, progress=progress)
        alone = _add(registry, first, bench, recipe, actor, progress)
        second = _open(registry, "harry_potter", "copyright", actor)
        two = unlearn(registry, second, bench, recipe, actor=actor, progress=progress)
        both = _add(registry, second, bench, recipe, actor, progress)
        back = remove_requests(
            registry,
            CHANNEL,
            [first],
            bench,
            recipe,
            reason="the demo takes it back",
            actor=actor,
            progress=progress,
        )
        compositions = [bench.bare, *(r.release.composition for r in (alone, both, back))]
        active = [[], [first], [first, second], [second]]
        rows = probes(bench, request_data(registry, [first, second]), recipe, progress=progress)
        seen = _matrix(registry, bench, compositions, active, rows, workdir, progress)
        never = compose(two.adapter.base, two.adapter.quantization, [(two.adapter.digest, "1")])
        title = "efface demo: two requests stacked, the first rolled back"
        report = report_of(bench, seen[0], seen[3], recipe, title=title, active=[second], between=seen[1:3])
        progress.phase("Comparing logits on a freshly loaded base")
        fresh = Bench(load_base(model, recipe.quantization), bench.method)
        as_never = _same_logits(registry, fresh, rows, second, workdir)
        intact = state_digest(bench.base.model) == untouched == state_digest(fresh.base.model)
        base_same = torch.equal(_logits(bench.base, bench, rows), _logits(fresh.base, fresh, rows))
        ledger = verify(registry, deep=True)
    lines, releases = _lines(seen), (alone, both, back)
    facts = {
        "the rolled-back composition has the digest of never having had request 1": (
            back.release.composition.digest == never.digest
        ),
        "its logits are bit-equal to never having had request 1 (fresh base)": as_never,
        "the base is bit-equal to a freshly loaded one, weights and logits": intact and base_same,
        "the ledger verifies, every blob re-hashed": not ledger.problems,
    }
    problems = _problems(releases, (one, two), lines, facts)
    seconds = time.monotonic() - started
    return Story((first, second), (one, two), releases, lines, report, facts, ledger, problems, seconds)


def _open(registry: Registry, name: str, basis: str, actor: str) -> str:
    """Open a request from the rows that ship with efface; its id."""
    data = shipped_request(name)
    opened = open_request(
        registry, basis=basis, payload=to_payload(data), n_items=len(data.forget), actor=actor
    )
    if basis in LEGAL_BASES:  # what a person decides; here the demo stands in for one
        for step in ("VERIFIED", "ACCEPTED"):
            step_request(registry, opened.id, step, actor=actor, reason="decided by the demo")
    return opened.id


def _add(
    registry: Registry, request: str, bench: Bench, recipe: Recipe, actor: str, progress: Progress
) -> Released:
    reason = f"{request} is due"
    done = add_requests(
        registry, CHANNEL, [request], bench, recipe, reason=reason, actor=actor, progress=progress
    )
    if done.release.state != "ACTIVE":
        found = done.report.findings if done.report else ()
        failed = "; ".join(f"{f.group}: {f.text}" for f in found if f.outcome == "failed")
        raise GateNotMet(f"{CHANNEL}@{done.release.version} was not activated, its audit failed: {failed}")
    return done


def _matrix(
    registry: Registry,
    bench: Bench,
    compositions: Sequence[Composition],
    active: Sequence[Sequence[str]],
    rows: Sequence[Probe],
    workdir: Path,
    progress: Progress,
) -> list[Evaluation]:
    """Every row under every composition: what each request and the rest look like at each step."""
    found: list[Evaluation] = []
    for label, composition, suppressed in zip(COLUMNS, compositions, active, strict=True):
        with _worn(registry, bench, composition, workdir) as model:
            found.append(
                measure(bench, model, composition, rows, label=label, active=suppressed, progress=progress)
            )
    return found


@contextmanager
def _worn(
    registry: Registry, bench: Bench, composition: Composition, workdir: Path
) -> Generator[PreTrainedModel | PeftModel]:
    with tempfile.TemporaryDirectory(prefix="rendered-", dir=workdir) as scratch:
        parts = composition.parts
        folder = render_composition(registry, composition, Path(scratch) / "stack") if parts else None
        with wearing(bench, folder) as model:
            yield model


def _same_logits(
    registry: Registry, fresh: Bench, rows: Sequence[Probe], request: str, workdir: Path
) -> bool:
    """Bitwise: the rolled-back release as rendered, against the remaining request's own adapter alone.

    Both on a base just loaded from its files, which never saw the request that was taken back.
    """
    release = active_release(registry, CHANNEL)
    with _worn(registry, fresh, release.composition, workdir) as model:
        rolled_back = _logits(fresh.base, fresh, rows, model)
    with wearing(fresh, adapter_folder(registry, adapter_for_request(registry, request).digest)) as model:
        return torch.equal(rolled_back, _logits(fresh.base, fresh, rows, model))


@torch.no_grad()
def _logits(
    base: Base, bench: Bench, rows: Sequence[Probe], model: PreTrainedModel | PeftModel | None = None
) -> torch.Tensor:
    """Logits [N, V] at the answer positions of a handful of rows from every group."""
    picked = [row.item for row in rows[:: max(1, len(rows) // 24)]]
    encoded = [encode(base.tokenizer, item, chat=bench.method.chat) for item in picked]
    batch = collate(encoded, pad_id(base.tokenizer)).to(base.model.device)
    hidden, _, head = answer_hidden(model or base.model, batch)
    return head(hidden)


def _lines(seen: Sequence[Evaluation]) -> tuple[Line, ...]:
    scores = [{row.id: row for row in evaluation.rows} for evaluation in seen]
    known = [
        (kind, name)
        for kind, count, names in SHOWN
        for name in [name for name in names if scores[0][name].mentioned][:count]
    ]
    return tuple(
        Line(
            kind,
            scores[0][name].prompt,
            tuple(column[name].answer for column in scores),
            tuple(column[name].mentioned for column in scores),
        )
        for kind, name in known
    )


def _problems(
    story_releases: Sequence[Released],
    trained: Sequence[Unlearned],
    lines: Sequence[Line],
    facts: dict[str, bool],
) -> tuple[str, ...]:
    """What fell short, in words; empty when every claim held."""
    found = [f"the audit of {done.report.title} failed" for done in trained if done.report.verdict == "fail"]
    found += [
        f"{r.release.channel}@{r.release.version} was not activated: its audit failed"
        for r in story_releases
        if r.release.state == "CANDIDATE"
    ]
    found += [f"not so: {claim}" for claim, held in facts.items() if not held]
    found += [
        f"the base knows fewer than {count} of the rows {kind}: there is nothing to show"
        for kind, count, _ in SHOWN
        if sum(line.kind == kind for line in lines) < count
    ]
    return tuple(found)
