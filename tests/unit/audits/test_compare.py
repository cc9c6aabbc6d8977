"""Two reports side by side: pairs where the rows are the same, and the sign of what is better."""

import json
from dataclasses import replace

import pytest
from audit_kit import evaluation, forgotten, known, report, row
from hypothesis import given
from hypothesis import strategies as st

from efface.audits import AuditError, IncomparableError, RowHash, SuiteRun, hash_row, key_name
from efface.audits.compare import compare, read_side

KEY = b"k" * 32


def side(rows, name: str = "a", key: bytes | None = KEY, precision: str = "nf4"):
    after = evaluation("+", *rows, active=("q1",), precision=precision)
    hashes = (
        ()
        if key is None
        else tuple(
            RowHash(r.request, r.group, r.id, hash_row(key, r.request, r.group, r.id), key_name(key))
            for r in rows
        )
    )
    run = SuiteRun("quick", 1, "sha256:ab", 0, precision, rows=hashes)
    before = evaluation("base", *rows, precision=precision)
    made = replace(report(), evaluations=(before, after), after="+", suite=run)
    return read_side(json.dumps(made.to_json()), name)


def of(found, group: str, figure: str):
    return next(one for one in found if (one.group, one.figure) == (group, figure))


def test_less_is_better_on_what_is_forgotten_and_more_on_what_is_kept() -> None:
    found = compare(side(known()), side(forgotten()))
    assert of(found, "forget", "probability").better == "B"
    assert of(found, "retain", "probability").better == "neither"
    worse = [replace(r, probability=0.2) if r.group == "retain" else r for r in known()]
    assert of(compare(side(known()), side(worse)), "retain", "probability").better == "A"
    assert all(one.paired for one in found)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_pairs_have_the_mean_of_differences_and_swapping_turns_the_sign(
    values: list[tuple[float, float]],
) -> None:
    sides = [side([row(f"f{i}", probability=pair[k]) for i, pair in enumerate(values)]) for k in (0, 1)]
    one, other = (of(compare(*pair), "forget", "probability") for pair in (sides, sides[::-1]))
    expected = sum(b - a for a, b in values) / len(values)
    assert one.difference == pytest.approx(expected, abs=1e-12) == pytest.approx(-other.difference, abs=1e-12)
    assert one.low - 1e-12 <= one.difference <= one.high + 1e-12
    assert {one.better, other.better} in ({"neither"}, {"A", "B"})


def test_a_shift_of_every_row_is_sharp_in_pairs_and_blurred_without() -> None:
    left = [row(f"f{i}", probability=i / 20) for i in range(20)]
    right = [replace(r, probability=r.probability + 0.02) for r in left]
    pairs = of(compare(side(left), side(right)), "forget", "probability")
    assert (pairs.better, pairs.paired) == ("A", True)
    loose = of(compare(side(left), side(right, key=b"x" * 32)), "forget", "probability")
    assert (loose.better, loose.paired) == ("neither", False)
    older = of(compare(side(left, key=None), side(right, key=None)), "forget", "probability")
    assert not older.paired


def test_only_shared_rows_are_pairs() -> None:
    left = [row(f"f{i}") for i in range(5)]
    found = of(compare(side(left), side([*left[2:], row("new", probability=0.0)])), "forget", "probability")
    assert (found.n_a, found.n_b, found.difference) == (3, 3, 0.0)


def test_rows_without_keywords_have_no_mention_rate() -> None:
    silent = [row("f0", mentioned=None)]
    assert not [one for one in compare(side(silent), side(silent)) if one.figure == "mentioned"]


def test_what_cannot_be_compared() -> None:
    with pytest.raises(IncomparableError, match="one precision"):
        compare(side(known()), side(known(), precision="bf16"))
    with pytest.raises(IncomparableError, match="group that both measured"):
        compare(side([row("f", "forget")]), side([row("r", "retain")]))


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"schema": "efface.audit/9"}',
        '{"schema": "efface.audit/1"}',
        "[" * 10**5,
        b"\xff",
    ],
    ids=range(8),
)
def test_what_is_no_report(document: str | bytes) -> None:
    with pytest.raises(AuditError, match="expected a"):
        read_side(document, "x.json")


def test_figures_that_are_none() -> None:
    made = json.loads(json.dumps(report().to_json()))
    made["evaluations"][-1]["rows"][0]["probability"] = float("nan")
    bad = read_side(json.dumps(made), "x")
    with pytest.raises(AuditError, match="finite"):
        compare(bad, bad)
