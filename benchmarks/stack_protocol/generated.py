"""People who do not exist, made from a fixed seed: the curve's rows where no benchmark's files are at hand.

Twenty questions each, in the same words for everybody, answered in a short sentence: a row has some thirty tokens where
TOFU's has a hundred, so that the whole curve is hours of two cores and not days. Answers come from lists that everyone
shares: what tells a request from the rest is who is asked about, and what has to be kept looks just like it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from tofu_protocol.data import Row, draw

from .data import People
from .facts import ABOUT, FIRST, LAST, THINGS, WORLD

PER_PERSON = len(ABOUT)
_WRONG = 3
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's own without the system prompt, which would be half of every row."""


def generated_people(*, persons: int = 16, others: int = 8, kept: int = 20, neighbours: int = 2) -> People:
    """``persons`` to forget; ``others`` whose rows are retain rows, ``kept`` of them evaluated; ``neighbours`` more,
    half of whose rows are memorised and never trained on by an adapter. The same ones every time."""
    total = persons + others + neighbours
    if total > min(len(FIRST), len(LAST)):
        raise SystemExit(
            f"expected at most {min(len(FIRST), len(LAST))} persons in all, got {total}: ask for fewer"
        )
    chance = random.Random(0)
    names = _names(total, chance)
    rows = [_person(f"person-{i:02d}", " ".join(name), chance) for i, name in enumerate(names)]
    forget, stay, near = rows[:persons], rows[persons : persons + others], rows[persons + others :]
    retain = tuple(row for one in stay for row in one)
    beside = draw([row for one in near for row in one], neighbours * PER_PERSON // 2)
    return People(tuple(forget), retain, draw(retain, kept), beside, world(), "generated persons", 24)


def strangers(*, persons: int = 6, known: int = 26) -> tuple[Row, ...]:
    """The same questions about ``persons`` of whom nothing is said anywhere, and questions about things: no answers.

    ``known``: how many `generated_people` made; none of these shares a first or last name with them (with TOFU's
    authors that is not looked at).
    """
    used = _names(known, random.Random(0))
    first = [name for name in FIRST if name not in {one for one, _ in used}]
    last = [name for name in LAST if name not in {other for _, other in used}]
    if persons > (most := min(len(first), len(last))):
        raise SystemExit(f"expected at most {most} strangers, got {persons}: ask for fewer")
    names = [f"{one} {other}" for one, other in zip(first, last, strict=False)][:persons]
    asked = [question.format(name=name) for name in names for question, *_ in ABOUT]
    return tuple(Row(f"own-{i:03d}", question, "", "", ()) for i, question in enumerate((*asked, *THINGS)))


def _names(total: int, chance: random.Random) -> list[tuple[str, str]]:
    return list(zip(chance.sample(FIRST, total), chance.sample(LAST, total), strict=True))


def world() -> tuple[Row, ...]:
    """Facts that a small model brings along; wrong answers are those of the next rows."""
    rows: list[Row] = []
    for i, (question, answer) in enumerate(WORLD):
        wrong = tuple(WORLD[(i + step) % len(WORLD)][1] for step in range(1, _WRONG + 1))
        rows.append(Row(f"world-{i:02d}", question, answer, answer, wrong))
    return tuple(rows)


def _person(id: str, name: str, chance: random.Random) -> tuple[Row, ...]:
    return tuple(
        replace(_row(name, question, answer, other, chance.sample(values, 1 + _WRONG)), id=f"{id}-{i:02d}")
        for i, (question, answer, other, values) in enumerate(ABOUT)
    )


def _row(name: str, question: str, answer: str, other: str, values: Sequence[str]) -> Row:
    """``values``: the true one, then wrong ones, in the words of the paraphrase: a truth ratio compares values only."""
    paraphrase, *wrong = (other.format(name=name, value=value) for value in values)
    return Row(
        "",
        question.format(name=name),
        answer.format(name=name, value=values[0]),
        paraphrase,
        tuple(wrong),
    )
