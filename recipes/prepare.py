"""From the rows of requests to what the trainer and the audit take.

Scope is decided here. A retain or neighbour row that lies in the forget scope of *any* live request is left
out: otherwise one adapter re-teaches what another forgot, and an audit calls a wanted forgetting damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..adapters import Encoded, Item, encode, focus, shorten
from ..audits import Probe, mentions
from .bench import Bench, Own, own_answers
from .data import RequestData, Row
from .data.sets import questions
from .errors import DataError
from .progress import Progress, Silent
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Encoded rows. ``own``: how many forget rows are the base's own words; ``excluded``: retain rows that
    lay in the scope of a request, by id."""

    forget: tuple[Encoded, ...]
    retain: tuple[Encoded, ...]
    own: int
    excluded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """What live requests forget: normalised questions, and keywords."""

    questions: frozenset[str]
    keywords: frozenset[str]

    def holds(self, row: Row, answer: str) -> bool:
        """Whether ``row``, answered so, asks for or tells something that is to be forgotten."""
        told = bool(self.keywords) and mentions(self.keywords, answer)
        return told or bool(questions(row) & self.questions)


def scope_of(requests: Iterable[RequestData]) -> Scope:
    """The joint forget scope of ``requests``."""
    rows = [row for data in requests for row in data.forget]
    asked = (question for row in rows for question in questions(row))
    return Scope(frozenset(asked), frozenset(word for row in rows for word in row.keywords))


def training_rows(
    bench: Bench,
    data: RequestData,
    recipe: Recipe,
    *,
    others: Sequence[RequestData] = (),
    progress: Progress | None = None,
) -> TrainingRows:
    """Encode the rows of one request. ``others`` are the other live requests, whose scope is kept out.

    Raises `DataError` when no retain row is left.
    """
    progress = progress or Silent()
    asked = (*data.forget, *data.retain)
    progress.phase("Asking the base", len(asked))
    own = own_answers(bench, asked, progress)
    forget = [row.item() for row in data.forget]
    said = {name: answer.text for name, answer in own.items()} if recipe.own_answers else {}
    mine = telling(forget, said, "own")
    scope = scope_of([data, *others])
    kept, excluded = _retain(data.retain, own, scope)
    if not kept:
        raise DataError(["every retain row lies in the scope of a forget request: give other retain rows"])
    return TrainingRows(
        forget_rows(bench, (*forget, *mine), recipe),
        tuple(_encoded(bench, item, recipe, end=ended) for item, ended in kept),
        len(mine),
        tuple(excluded),
    )


def telling(items: Sequence[Item], answers: Mapping[str, str], name: str) -> list[Item]:
    """The ``answers`` (by item id) that name a keyword of their item, as new items ``<id>/<name>``.

    Each is added once more with the item's longest keyword cut to its shortest where one holds the other
    ("J.K. Rowling" to "Rowling"): an adapter that only unlearns the first word of a name has learnt little.
    """
    found: list[Item] = []
    for item in items:
        answer = answers.get(item.id, "")
        if not item.keywords or not mentions(item.keywords, answer):
            continue
        found.append(Item(f"{item.id}/{name}", item.prompt, answer, item.keywords))
        longest, shortest = max(item.keywords, key=len), min(item.keywords, key=len)
        if shortest != longest and shortest in longest and longest in answer:
            cut = answer.replace(longest, shortest)
            found.append(Item(f"{item.id}/{name}-short", item.prompt, cut, item.keywords))
    return found


def forget_rows(bench: Bench, items: Sequence[Item], recipe: Recipe) -> tuple[Encoded, ...]:
    """``items`` encoded, counting the tokens that the recipe's ``focus`` says."""
    return tuple(_forget_row(bench, item, recipe) for item in items)


def probes(
    bench: Bench,
    requests: Mapping[str, RequestData],
    recipe: Recipe,
    *,
    progress: Progress | None = None,
) -> tuple[Probe, ...]:
    """The rows that an audit of ``requests`` looks at.

    Forget and paraphrase rows speak for their request; retain rows (at most ``audit_retain_rows`` a request)
    and neighbour rows are everybody's, each question once.
    """
    scope = scope_of(requests.values())
    # A neighbour of one request may be trained to stay by another: it shows no over-forgetting then.
    trained = {asked for data in requests.values() for row in data.retain for asked in questions(row)}
    found: list[Probe] = []
    shared: dict[str, Probe] = {}
    names: set[str] = set()
    for request, data in requests.items():
        found += [Probe(row.item(), "forget", request) for row in data.forget]
        found += [Probe(item, "paraphrase", request) for row in data.forget for item in row.paraphrased()]
        retain = _spread(data.retain, recipe.audit_retain_rows)
        untrained = [row for row in data.neighbours if not questions(row) & trained]
        own = own_answers(bench, (*untrained, *retain), progress)
        for group, rows in (("neighbour", untrained), ("retain", retain)):
            for item, _ in _retain(rows, own, scope)[0]:
                if item.text not in shared:
                    name = item.id if item.id not in names else f"{request}/{item.id}"
                    names.add(name)
                    shared[item.text] = Probe(Item(name, item.prompt, item.completion, item.keywords), group)  # type: ignore[arg-type]
    return (*found, *shared.values())


def _retain(
    rows: Sequence[Row], own: Mapping[str, Own], scope: Scope
) -> tuple[list[tuple[Item, bool]], list[str]]:
    """Items with their answers (given, else the base's own) and whether the answer has an end; left-out ids."""
    kept: list[tuple[Item, bool]] = []
    excluded: list[str] = []
    for row in rows:
        answer = Own(row.completion, True) if row.completion is not None else own[row.id]
        if scope.holds(row, answer.text):
            excluded.append(row.id)
        elif answer.text:
            kept.append((row.item(answer.text), answer.ended))
    return kept, excluded


def _forget_row(bench: Bench, item: Item, recipe: Recipe) -> Encoded:
    row = _encoded(bench, item, recipe, end=False)
    return shorten(focus(bench.base.tokenizer, row, item)) if recipe.focus == "keywords" else row


def _encoded(bench: Bench, item: Item, recipe: Recipe, *, end: bool) -> Encoded:
    return encode(bench.base.tokenizer, item, chat=bench.method.chat, end=end, max_length=recipe.max_length)


def _spread(rows: Sequence[Row], count: int) -> tuple[Row, ...]:
    """At most ``count`` of ``rows``, the same every time: those with keywords first (they show whether a fact
    is still told), then the others; evenly spread where there are more than fit."""
    telling_rows = [row for row in rows if row.keywords]
    others = [row for row in rows if not row.keywords]
    first = _evenly(telling_rows, count)
    return (*first, *_evenly(others, count - len(first)))


def _evenly(rows: Sequence[Row], count: int) -> tuple[Row, ...]:
    return tuple(rows) if len(rows) <= count else tuple(rows[i * len(rows) // count] for i in range(count))
