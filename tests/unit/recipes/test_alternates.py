"""Every forget row that is trained on has its alternates, or none is trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_kit import recipe_values

from efface.adapters import Encoded, ModelError
from efface.recipes import Bench, DataError, Recipe, RequestData, Row, TrainingRows, open_bench, training_rows
from efface.recipes.alternates import by_id, inherit
from efface.recipes.data.rows import Turn
from efface.recipes.prepare import check_rows, forget_rows, telling

FORGET = Row(
    id="f",
    prompt="who wrote hamlet",
    completion="rowling wrote a play in tokyo",
    keywords=("rowling", "hamlet"),
    chosen=("potter wrote a play", "a city"),
)
OTHER = Row(id="set/o", prompt="what is potter", completion="potter is a city", chosen=("what",))
KEPT = Row(id="kept", prompt="what is the capital of paris", completion="a city")


def recipe(**changes: Any) -> Recipe:
    return Recipe(**recipe_values(name="a", chat="never", max_new_tokens=3, **changes))


@pytest.fixture(scope="module")
def bench(tiny_llama: Path) -> Bench:
    return open_bench(tiny_llama, recipe())


def prepared(bench: Bench, *forget: Row, retain: Sequence[Row] = (KEPT,), **options: Any) -> TrainingRows:
    changes = options.pop("changes", {})
    return training_rows(bench, RequestData(forget, tuple(retain)), recipe(**changes), **options)


def words(bench: Bench, rows: Sequence[Encoded]) -> list[tuple[str, str, str]]:
    decode = bench.base.tokenizer.decode
    return [(row.id, str(decode(list(row.prompt))), str(decode(list(row.answer)))) for row in rows]


def test_every_forget_row_has_the_alternates_of_its_row(bench: Bench) -> None:
    found = prepared(bench, FORGET, OTHER, alternates=True)
    assert [row.id for row in found.forget] == [
        "f",
        "set/o",
        "f/own",
    ]  # the base answers "hamlet hamlet hamlet"
    assert set(found.alternates) == set(found.forget)
    first, second, own = (found.alternates[row] for row in found.forget)
    assert words(bench, first) == [
        ("f/chosen-1", "who wrote hamlet", "potter wrote a play <|im_end|>"),
        ("f/chosen-2", "who wrote hamlet", "a city <|im_end|>"),
    ]
    assert words(bench, second) == [("set/o/chosen-1", "what is potter", "what <|im_end|>")]
    assert own == first
    assert all(row.counted == () for row in (*first, *second))  # the whole answer, whatever the focus


def test_alternates_are_encoded_only_where_they_are_asked_for(bench: Bench) -> None:
    assert prepared(bench, FORGET, OTHER).alternates == {}


def test_what_is_told_in_later_rounds_has_the_alternates_of_its_row(bench: Bench) -> None:
    rows = prepared(bench, FORGET, OTHER, alternates=True)
    told = telling([FORGET.item()], {"f": "it is hamlet or rowling"}, "round-1")
    leaks = forget_rows(bench, told, recipe())
    assert [row.id for row in leaks] == ["f/round-1"]
    assert inherit(by_id(rows.alternates), leaks) == {leaks[0]: rows.alternates[rows.forget[0]]}


def test_rows_without_alternates_are_all_named_before_the_base_is_asked(bench: Bench) -> None:
    fresh = Bench(bench.base, bench.method)
    bare = [row.model_copy(update={"chosen": ()}) for row in (FORGET, OTHER)]
    third = Row(id="third", prompt="what is tokyo", completion="a city", chosen=("paris",))
    with pytest.raises(DataError) as caught:
        prepared(fresh, *bare, third, alternates=True)
    (said,) = caught.value.problems
    assert "2 forget rows have none: give `chosen`" in said
    assert said.endswith("to 'f', 'set/o'")
    assert recipe().objective in said
    assert fresh.answers == {}
    assert prepared(bench, *bare).alternates == {}


def test_an_alternate_that_is_too_long_is_named_with_every_other_row(bench: Bench) -> None:
    fresh = Bench(bench.base, bench.method)
    long = "a city " * 30
    forget = FORGET.model_copy(update={"chosen": (long,), "paraphrases": (long,)})
    near = Row(id="near", prompt=long)
    data = RequestData((forget, OTHER), (KEPT, Row(id="r", prompt="who", completion=long)), (near,))
    with pytest.raises(ModelError) as caught:
        training_rows(fresh, data, recipe(max_length=32), alternates=True)
    named = [line.split("'")[1] for line in str(caught.value).splitlines()]
    assert named == ["near", "f/p1", "r", "f/chosen-1"]
    assert fresh.answers == {}
    check_rows(bench, RequestData((FORGET,), (KEPT,)), recipe(max_length=32), alternates=True)


def test_truncation_reaches_every_row(bench: Bench) -> None:
    long = "a city " * 30
    forget = FORGET.model_copy(update={"chosen": (long,), "completion": f"rowling {long}"})
    kept = Row(id="r", prompt="who", completion=long)
    found = prepared(
        bench, forget, retain=[kept], changes={"max_length": 16}, alternates=True, truncation="answer"
    )
    rows = (*found.forget, *found.retain, *(row for some in found.alternates.values() for row in some))
    assert max(len(row.prompt) + len(row.answer) for row in rows) == 16
    eos = bench.base.tokenizer.eos_token_id
    assert found.retain[0].answer[-1] != eos  # it was cut: there is no end to learn


def test_a_cut_prompt_is_the_same_for_both_answers_or_refused(bench: Bench) -> None:
    long = "a city " * 6
    options: dict[str, Any] = {"changes": {"max_length": 14, "own_answers": False}, "truncation": "prompt"}
    uneven = FORGET.model_copy(update={"prompt": f"{long} who wrote hamlet", "chosen": ("a city",)})
    with pytest.raises(DataError, match="row 'f' and its alternates do not fit behind one prompt"):
        prepared(bench, uneven, alternates=True, **options)
    assert len(prepared(bench, uneven, **options).forget[0].prompt) < 15
    even = uneven.model_copy(update={"chosen": ("potter wrote a play in",), "keywords": ()})
    (row,) = (found := prepared(bench, even, alternates=True, **options)).forget
    assert found.alternates[row][0].prompt == row.prompt
    assert len(row.prompt) + len(row.answer) == 14


def test_conversations_without_a_chat_template_are_all_named_before_the_base_is_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.base.tokenizer, "chat_template", None)
    turn = (Turn(role="user", content="who is it"),)
    rows = Row(id="a", prompt=turn, completion="potter"), Row(id="b", prompt=turn)
    with pytest.raises(ModelError) as caught:
        prepared(bench, rows[0], retain=[KEPT, rows[1]])
    named = [
        line.split(" is a conversation, but the model has no chat template")[0]
        for line in str(caught.value).splitlines()
    ]
    assert named == ["row 'a'", "row 'b'"]


def test_max_length_beyond_the_models_context(bench: Bench) -> None:
    with pytest.raises(ModelError, match="max_length=129 exceeds the model's context of 128 tokens"):
        prepared(bench, FORGET, changes={"max_length": 129})
