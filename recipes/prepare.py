"""From the rows of requests to what the trainer and the audit take.

Scope is decided here. A retain or neighbour row that lies in the forget scope of *any* live request is left
out: otherwise one adapter re-teaches what another forgot, and an audit calls a wanted forgetting damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..adapters import Encoded, Item, Truncation, encode_all, focus, require_context, shorten
from ..audits import Group, Probe, mentions
from .alternates import Alternates, alternate_items, inherit, require_alternates
from .bench import Bench, Own, own_answers
from .data import RequestData, Row
from .data.sets import questions
from .errors import DataError
from .progress import Progress, Silent
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Encoded rows. ``own``: how many forget rows are the base's own words.

    Retain rows that are not there, by id: ``excluded`` lay in the scope of a request, ``unanswered`` have no
    answer and got none from the base. ``alternates``: other answers to each forget row's prompt, ended by EOS and
    counted whole, for every forget row or (where they were not asked for) none.
    """

    forget: tuple[Encoded, ...]
    retain: tuple[Encoded, ...]
    own: int
    excluded: tuple[str, ...]
    unanswered: tuple[str, ...] = ()
    alternates: Alternates = field(default_factory=dict)


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
    """The joint forget scope of ``requests``: also what is only measured of it must not be taught by another.

    Of entailed rows their questions alone: a keyword there may be any word of the world ("England").
    """
    every = list(requests)
    asked = (
        question for data in every for row in (*data.forget, *data.beyond) for question in questions(row)
    )
    telling_rows = (row for data in every for row in (*data.forget, *data.heldout, *data.formats))
    return Scope(frozenset(asked), frozenset(word for row in telling_rows for word in row.keywords))


def training_rows(
    bench: Bench,
    data: RequestData,
    recipe: Recipe,
    *,
    others: Sequence[RequestData] = (),
    progress: Progress | None = None,
    alternates: bool = False,
    truncation: Truncation = "error",
) -> TrainingRows:
    """Encode the rows of one request. ``others`` are the other live requests, whose scope is kept out.

    ``alternates`` for objectives that need them; ``truncation`` says what becomes of rows that are too long.
    Before the base is asked anything, raises `DataError` for forget rows without alternates and `ModelError`
    naming every row that cannot be trained on or measured; then `DataError` when no retain row is left.
    """
    progress = progress or Silent()
    require_context(bench.base.model.config, recipe.max_length)
    if alternates:
        require_alternates(data.forget, recipe.objective)
    check_rows(bench, data, recipe, alternates=alternates, truncation=truncation)
    asked = (
        *(data.forget if recipe.own_answers else ()),
        *(row for row in data.retain if row.completion is None),
    )
    progress.phase("Asking the base", len(asked))
    own = own_answers(bench, asked, progress)
    items = [row.item() for row in data.forget]
    said = {row.id: own[row.id].text for row in data.forget if recipe.own_answers and row.id in own}
    mine = telling(items, said, "own")
    kept, excluded = kept_rows(data.retain, own, scope_of([data, *others]))
    if not kept:
        raise DataError([_none_left(len(data.retain), len(excluded))])
    forget = forget_rows(bench, (*items, *mine), recipe, truncation)
    known = _alternates(bench, data.forget, recipe, truncation) if alternates else {}
    return TrainingRows(
        forget,
        _encoded(bench, [item for item, _ in kept], recipe, [ended for _, ended in kept], truncation),
        len(mine),
        tuple(excluded),
        tuple(row.id for row in data.retain if row.completion is None and not own[row.id].text),
        inherit(known, forget) if alternates else {},
    )


def _none_left(rows: int, excluded: int) -> str:
    if excluded == rows:
        return "every retain row lies in the scope of a forget request: give other retain rows"
    return (
        f"none of {rows} retain rows is left: {excluded} lie in the scope of a forget request, and to "
        f"{rows - excluded} the base says nothing: give other retain rows, or their completions"
    )


def check_rows(
    bench: Bench,
    data: RequestData,
    recipe: Recipe,
    *,
    alternates: bool = False,
    truncation: Truncation = "error",
) -> None:
    """Raise one `ModelError` that names every row of ``data`` that cannot be trained on or measured.

    A row without an answer is checked with one of a single token: the base has not been asked yet.
    """
    looked_at = (*data.forget, *data.neighbours, *data.beyond, *data.unrelated)
    rows = [(row.item(row.completion or "?"), False) for row in looked_at]
    rows += [(item, False) for row in (*data.forget, *data.beyond) for item in row.paraphrased()]
    rows += [(row.item(row.completion or "?"), row.completion is not None) for row in data.retain]
    if alternates:
        rows += [(item, True) for row in data.forget for item in alternate_items(row)]
    _encoded(bench, [item for item, _ in rows], recipe, [ended for _, ended in rows], truncation)


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


def forget_rows(
    bench: Bench, items: Sequence[Item], recipe: Recipe, truncation: Truncation = "error"
) -> tuple[Encoded, ...]:
    """``items`` encoded, counting the tokens that the recipe's ``focus`` says."""
    rows = _encoded(bench, items, recipe, False, truncation)
    if recipe.focus != "keywords":
        return rows
    tokenizer = bench.base.tokenizer
    return tuple(shorten(focus(tokenizer, row, item)) for row, item in zip(rows, items, strict=True))


def probes(
    bench: Bench,
    requests: Mapping[str, RequestData],
    recipe: Recipe,
    *,
    progress: Progress | None = None,
) -> tuple[Probe, ...]:
    """The rows that an audit of ``requests`` looks at.

    Rows to be forgotten (trained on, reworded, held out, entailed, in other formats) speak for their request; retain
    rows (at most ``audit_retain_rows`` a request), neighbours and unrelated rows are everybody's, each question once.
    What any of ``requests`` trains on is left out of the groups that are never trained on.
    """
    scope = scope_of(requests.values())
    # A neighbour of one request may be trained to stay by another: it shows no over-forgetting then.
    trained = {asked for data in requests.values() for row in data.retain for asked in questions(row)}
    unlearnt = {asked for data in requests.values() for row in data.forget for asked in questions(row)}
    found: list[Probe] = []
    shared: dict[str, Probe] = {}
    names: set[str] = set()
    for request, data in requests.items():
        found += _to_be_forgotten(request, data, unlearnt)
        retain = _spread(data.retain, recipe.audit_retain_rows)
        untrained = [row for row in data.neighbours if not questions(row) & trained]
        far = [row for row in data.unrelated if not questions(row) & trained]
        asked = [row for row in (*untrained, *far, *retain) if row.completion is None]
        own = own_answers(bench, asked, progress)
        for group, rows in (("neighbour", untrained), ("unrelated", far), ("retain", retain)):
            for item, _ in kept_rows(rows, own, scope)[0]:
                if item.text not in shared:
                    name = item.id if item.id not in names else f"{request}/{item.id}"
                    names.add(name)
                    shared[item.text] = Probe(Item(name, item.prompt, item.completion, item.keywords), group)  # type: ignore[arg-type]
    return (*found, *shared.values())


def _to_be_forgotten(request: str, data: RequestData, unlearnt: set[str]) -> list[Probe]:
    """The rows of ``request`` that must be gone; ``unlearnt`` questions are trained on, by this or another request."""
    found = [Probe(row.item(), "forget", request) for row in data.forget]
    found += [Probe(item, "paraphrase", request) for row in data.forget for item in row.paraphrased()]
    beyond: tuple[tuple[Group, tuple[Row, ...]], ...] = (
        ("heldout", data.heldout),
        ("entailed", data.entailed),
        ("format", data.formats),
    )
    for group, rows in beyond:
        unseen = [row for row in rows if not questions(row) & unlearnt]
        found += [Probe(item, group, request) for row in unseen for item in (row.item(), *row.paraphrased())]
    return found


def kept_rows(
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


def _alternates(
    bench: Bench, rows: Sequence[Row], recipe: Recipe, truncation: Truncation
) -> dict[str, tuple[Encoded, ...]]:
    """The encoded alternates of each forget row, by its id."""
    items = {row.id: alternate_items(row) for row in rows}
    every = iter(
        _encoded(bench, [item for some in items.values() for item in some], recipe, True, truncation)
    )
    return {name: tuple(next(every) for _ in some) for name, some in items.items()}


def _encoded(
    bench: Bench,
    items: Sequence[Item],
    recipe: Recipe,
    end: bool | Sequence[bool],
    truncation: Truncation,
) -> tuple[Encoded, ...]:
    return encode_all(
        bench.base.tokenizer,
        items,
        chat=bench.method.chat,
        end=end,
        max_length=recipe.max_length,
        truncation=truncation,
    )


def _spread(rows: Sequence[Row], count: int) -> tuple[Row, ...]:
    """At most ``count`` of ``rows``, the same every time: those with keywords first (they show whether a fact
    is still told), then the others; evenly spread where there are more than fit."""
    telling_rows = [row for row in rows if row.keywords]
    others = [row for row in rows if not row.keywords]
    first = _evenly(telling_rows, count)
    return (*first, *_evenly(others, count - len(first)))


def _evenly(rows: Sequence[Row], count: int) -> tuple[Row, ...]:
    return tuple(rows) if len(rows) <= count else tuple(rows[i * len(rows) // count] for i in range(count))
