"""Suites are data: every shipped one loads, and a bad one is named whole, with what was meant."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.audits.suites import GIVEN, NEEDS, PARTS, InvalidSuite, Suite, load_suite, shipped_suites


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_there_are_the_suites_that_the_documentation_names() -> None:
    assert list(shipped_suites())[:1] == ["quick"]


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_loads_under_its_own_name(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert suite.parts[0] == "rows"
    assert Suite.model_validate(suite.model_dump(mode="json")) == suite
    assert not set(suite.needs) & set(suite.takes)


def test_quick_is_what_releases_were_audited_with_before_there_were_others() -> None:
    quick = load_suite("quick")
    assert (quick.title, quick.parts, quick.attacks, quick.seed) == ("quick/1", ("rows",), (), 0)


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    suite = load_suite(
        write(tmp_path, "version: 3\ndescription: ours\nparts: [rows, drift]\nattacks: [adapter/off]\n")
    )
    assert (suite.title, suite.parts) == ("mine/3", ("rows", "drift"))


def test_every_problem_at_once_with_what_was_meant(tmp_path: Path) -> None:
    text = "version: 0\nparts: [drifts]\nattacks: [adapter/of, UPPER]\nseeds: 3\n"
    with pytest.raises(InvalidSuite) as caught:
        load_suite(write(tmp_path, text))
    said = str(caught.value)
    for part in (
        "`version`",
        "`description`",
        "did you mean 'drift'",
        "did you mean 'adapter/off'",
        "did you mean 'seed'",
    ):
        assert part in said
    assert len(said.splitlines()) >= 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 1\nversion: 2\n", "version stands twice"),
        ("- 1\n", "found list"),
        ("version: [", "expected a YAML mapping"),
        ("version: 1\ndescription: x\nparts: [drift]\n", "expected `rows` as the first part"),
        ("version: 1\ndescription: x\nparts: [rows, rows]\n", "'rows' stands twice"),
        ("version: 1\ndescription: x\nparts: [rows]\nsettings: {a: {b: 1}}\n", "none of the suite's attacks"),
    ],
)
def test_what_is_no_suite(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InvalidSuite, match=expected):
        load_suite(write(tmp_path, text))


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InvalidSuite, match="did you mean 'quick'"):
        load_suite("quikc")


@given(st.text(max_size=40))
def test_any_other_name_is_refused_not_read(name: str) -> None:
    if name in shipped_suites() or (name and "\0" not in name and Path(name).is_file()):
        return
    with pytest.raises(InvalidSuite, match="expected a YAML file or one of"):
        load_suite(name)


def test_what_it_needs_and_does_not_use_is_said_with_how_to_get_it() -> None:
    suite = Suite(
        name="mine", version=1, description="x", parts=("rows", "tofu", "lm-eval"), takes=("world-facts",)
    )
    assert suite.needs == ("reference", "tasks")
    with pytest.raises(InvalidSuite) as caught:
        suite.require({"taks": "x", "world-facts": "y"})
    said = str(caught.value)
    assert "needs --give reference=…" in said
    assert GIVEN["tasks"] in said
    assert "does not use 'taks'" in said and "did you mean 'tasks'" in said
    suite.require({"reference": "r", "tasks": "t"})


@given(st.integers(1, 9), st.integers(0, 9), st.sampled_from(sorted(set(PARTS) - {"rows"})))
def test_the_digest_is_of_the_values(version: int, seed: int, part: str) -> None:
    def made(**changes: object) -> Suite:
        values = {"name": "m", "version": version, "description": "x", "parts": ["rows"], "seed": seed}
        return Suite.model_validate(values | changes)

    assert made().digest == made().digest
    assert len({made().digest, made(seed=seed + 1).digest, made(parts=["rows", part]).digest}) == 3


def test_every_need_says_how_to_get_it() -> None:
    assert {given for needs in NEEDS.values() for given in needs} <= set(GIVEN)
