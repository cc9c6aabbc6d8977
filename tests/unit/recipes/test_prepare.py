"""Which rows are trained on and looked at: nothing in scope is kept, nothing that measures is trained.

Without its chat template the random model of `tiny_llama` repeats the last word of a prompt: its own answer to
"who wrote hamlet" is "hamlet hamlet hamlet". The tests write their rows by that.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_kit import recipe_values

from efface.adapters import Encoded, Item, ModelError
from efface.audits import Probe
from efface.recipes import (
    Bench,
    DataError,
    Recipe,
    RequestData,
    Row,
    TrainingRows,
    measure,
    open_bench,
    own_answers,
    probes,
    to_payload,
    training_rows,
    unlearn,
)
from efface.recipes.bench import encode_probes
from efface.recipes.prepare import scope_of, telling
from efface.registry import Registry, open_request

N = 3  # tokens of the base's own answers
FORGET = Row(
    id="f",
    prompt="who wrote hamlet",
    completion="rowling wrote a play in tokyo",
    keywords=("rowling",),
    paraphrases=("who is the author of hamlet",),
)
OTHER = Row(id="o", prompt="what is potter", completion="potter is a city", keywords=("macbeth",))
KEPT = Row(id="kept", prompt="what is the capital of paris", completion="a city")


def recipe(**changes: Any) -> Recipe:
    return Recipe(**recipe_values(name="a", chat="never", max_new_tokens=N, **changes))


@pytest.fixture(scope="module")
def bench(tiny_llama: Path) -> Bench:
    return open_bench(tiny_llama, recipe())


def request(*retain: Row, forget: Sequence[Row] = (FORGET,), neighbours: Sequence[Row] = ()) -> RequestData:
    return RequestData(tuple(forget), retain, tuple(neighbours))


def prepared(bench: Bench, data: RequestData, *others: RequestData, **changes: Any) -> TrainingRows:
    return training_rows(bench, data, recipe(**changes), others=others)


def text(bench: Bench, row: Encoded) -> tuple[str, str]:
    """Prompt and answer as words, special tokens included."""
    decode = bench.base.tokenizer.decode
    return str(decode(list(row.prompt))), str(decode(list(row.answer)))


def counted(bench: Bench, row: Encoded) -> str:
    """The words that a loss looks at."""
    kept = [token for token, on in zip(row.answer, row.counted, strict=True) if on]
    return str(bench.base.tokenizer.decode(kept))


def ids(rows: Sequence[Encoded]) -> list[str]:
    return [row.id for row in rows]


def test_the_model_repeats_the_last_word(bench: Bench) -> None:
    found = own_answers(bench, [FORGET, KEPT, Row(id="doc", prompt="", completion="a play")])
    assert {name: own.text for name, own in found.items()} == {
        "f": "hamlet hamlet hamlet",
        "kept": "paris paris paris",
    }


@pytest.mark.parametrize(
    "inside",
    [
        Row(id="x", prompt="Who  wrote HAMLET", completion="a city"),
        Row(id="x", prompt="who is the author of hamlet", completion="a city"),
        Row(id="x", prompt="who is a city", completion="it is Rowling"),
        Row(id="x", prompt="who is rowling"),
        Row(id="x", prompt="a play", completion="a city", paraphrases=("who wrote hamlet",)),
    ],
    ids=["question", "paraphrase", "answer", "own answer", "wording"],
)
def test_retain_rows_in_scope_are_left_out(bench: Bench, inside: Row) -> None:
    found = prepared(bench, request(KEPT, inside))
    assert ids(found.retain) == ["kept"]
    assert found.excluded == ("x",)


@pytest.mark.parametrize(
    "inside",
    [
        Row(id="x", prompt="what is potter", completion="a city"),
        Row(id="x", prompt="who is a city", completion="it is macbeth"),
        Row(id="x", prompt="what is macbeth"),
    ],
    ids=["question", "answer", "own answer"],
)
def test_retain_rows_in_scope_of_another_live_request_are_left_out(bench: Bench, inside: Row) -> None:
    alone = prepared(bench, request(KEPT, inside))
    assert (ids(alone.retain), alone.excluded) == (["kept", "x"], ())
    beside = prepared(bench, request(KEPT, inside), request(forget=[OTHER]))
    assert (ids(beside.retain), beside.excluded) == (["kept"], ("x",))


def test_a_keyword_inside_a_word_is_not_that_keyword(bench: Bench) -> None:
    part = Row(id="x", prompt="who is a city", completion="it is macbethian")
    assert prepared(bench, request(part), request(forget=[OTHER])).excluded == ()


def test_nothing_to_keep_is_an_error(bench: Bench) -> None:
    with pytest.raises(DataError, match="every retain row lies in the scope"):
        prepared(bench, request(Row(id="x", prompt="who is rowling")))


def test_retain_rows_to_which_the_base_says_nothing_are_not_called_in_scope(bench: Bench) -> None:
    rows = [Row(id="x", prompt="who is rowling"), Row(id="y", prompt="what is a city")]
    silent = replace(bench, answers={})
    own_answers(silent, rows[1:])
    silent.answers.update(dict.fromkeys(silent.answers, ()))  # as if it had ended at once
    with pytest.raises(
        DataError, match=r"none of 2 retain rows is left: 1 lie in the scope .* to 1 the base"
    ):
        prepared(silent, request(*rows))


def test_paraphrases_and_neighbours_are_never_trained_on(bench: Bench) -> None:
    near = Row(
        id="near", prompt="who wrote a play", completion="the author", paraphrases=("who is in a play",)
    )
    kept = KEPT.model_copy(update={"paraphrases": ("what is paris the capital of",)})
    found = prepared(bench, request(kept, neighbours=[near]))
    asked = {text(bench, row)[0] for row in (*found.forget, *found.retain)}
    assert asked == {FORGET.prompt, KEPT.prompt}


def test_rows_without_an_answer_keep_the_bases_own_without_an_end(bench: Bench) -> None:
    found = prepared(bench, request(KEPT, Row(id="own", prompt="what is tokyo")))
    end = str(bench.base.tokenizer.eos_token)
    given, own = (text(bench, row)[1] for row in found.retain)
    assert given == f"a city {end}"
    assert own == "tokyo tokyo tokyo"  # cut at max_new_tokens: it has no end to learn


def test_a_question_that_the_base_does_not_answer_is_not_kept(bench: Bench) -> None:
    silent = Row(id="silent", prompt="what is zebra")  # no word of the tokenizer: a special token
    assert own_answers(bench, [silent])["silent"].text == ""
    found = prepared(bench, request(KEPT, silent))
    assert (ids(found.retain), found.excluded) == (["kept"], ())


def test_forget_answers_have_no_end_to_forget(bench: Bench) -> None:
    (row,) = prepared(bench, request(KEPT), focus="answer").forget
    assert text(bench, row) == (FORGET.prompt, FORGET.completion)


def test_focus_counts_the_words_that_carry_the_knowledge(bench: Bench) -> None:
    told = FORGET.model_copy(update={"completion": "the author is rowling in a city"})
    (row,) = prepared(bench, request(KEPT, forget=[told]), focus="keywords").forget
    assert counted(bench, row) == "rowling"
    assert text(bench, row)[1] == "the author is rowling"  # what follows cannot reach it
    (row,) = prepared(bench, request(KEPT), focus="answer").forget
    assert row.counted == ()
    assert all(not row.counted for row in prepared(bench, request(KEPT)).retain)


def test_what_the_base_itself_tells_is_forgotten_too(bench: Bench) -> None:
    told = Row(id="t", prompt="who wrote macbeth", completion="it is macbeth", keywords=("macbeth",))
    found = prepared(bench, request(KEPT, forget=[FORGET, told]))
    assert (ids(found.forget), found.own) == (["f", "t", "t/own"], 1)
    assert text(bench, found.forget[2]) == ("who wrote macbeth", "macbeth macbeth macbeth")
    assert counted(bench, found.forget[2]) == "macbeth macbeth macbeth"
    without = prepared(bench, request(KEPT, forget=[FORGET, told]), own_answers=False)
    assert (ids(without.forget), without.own) == (["f", "t"], 0)


def test_rows_need_no_keywords(bench: Bench) -> None:
    """As in TOFU: then the scope is the questions, and no answer of the base counts as telling."""
    plain = FORGET.model_copy(update={"keywords": ()})
    data = request(KEPT, Row(id="x", prompt="who wrote hamlet"), forget=[plain])
    found = prepared(bench, data)
    assert (ids(found.forget), found.own, found.excluded) == (["f"], 0, ("x",))
    assert found.forget[0].counted == ()
    assert [p.item.id for p in looked_at(bench, data)] == ["f", "f/p1", "kept"]


def test_telling_takes_the_answers_that_name_a_keyword() -> None:
    items = [Item(name, "p", "c", ("J.K. Rowling", "Rowling")) for name in ("a", "b", "c", "d")]
    answers = {"a": "By J.K. Rowling, of course.", "b": "By rowling.", "c": "By nobody."}
    found = [(item.id, item.completion) for item in telling(items, answers, "own")]
    assert found == [
        ("a/own", "By J.K. Rowling, of course."),
        ("a/own-short", "By Rowling, of course."),
        ("b/own", "By rowling."),
    ]


def test_what_the_adapted_model_still_tells_is_trained_on_in_the_next_round(
    bench: Bench, tmp_path: Path
) -> None:
    """At this learning rate it still repeats the question's last word, a keyword here, after round one."""
    told = Row(id="t", prompt="who wrote macbeth", completion="it is a play", keywords=("macbeth",))
    made = {}
    for name, forget in (("told", told), ("quiet", told.model_copy(update={"keywords": ("rowling",)}))):
        with Registry.open(tmp_path / name, create=True) as registry:
            payload = to_payload(request(KEPT, forget=[forget]))
            opened = open_request(registry, basis="test", payload=payload, n_items=1, actor="ana")
            for rounds in (1, 2):
                chosen = recipe(steps=2, rounds=rounds, round_steps=3, learning_rate=1e-5, own_answers=False)
                made[name, rounds] = unlearn(registry, opened.id, bench, chosen, actor="ana")
    # Nothing leaks from the quiet one: no second round, and the adapter of one round.
    assert [len(one.training.steps) for one in made.values()] == [2, 5, 2, 2]
    assert [step.step for step in made["told", 2].training.steps] == [1, 2, 3, 4, 5]
    files = {key: one.adapter.files["adapter_model.safetensors"] for key, one in made.items()}
    assert files["quiet", 1] == files["quiet", 2]
    assert files["told", 1] != files["told", 2]
    facts = made["told", 2].adapter.facts
    assert (facts["rounds"], facts["steps"]) == (2, 5)


def test_the_scope_is_all_questions_and_keywords() -> None:
    scope = scope_of([request(KEPT), request(KEPT, forget=[OTHER])])
    assert scope.questions == {"who wrote hamlet", "who is the author of hamlet", "what is potter"}
    assert scope.keywords == {"rowling", "macbeth"}


def looked_at(bench: Bench, *data: RequestData, **changes: Any) -> tuple[Probe, ...]:
    named = {f"req-{number}": one for number, one in enumerate(data, 1)}
    return probes(bench, named, recipe(**changes))


def test_probes_of_one_request(bench: Bench) -> None:
    near = Row(id="near", prompt="who wrote a play", completion="the author")
    found = looked_at(bench, request(KEPT, Row(id="own", prompt="what is tokyo"), neighbours=[near]))
    assert [(p.group, p.request, p.item.id, p.item.text, p.item.completion) for p in found] == [
        ("forget", "req-1", "f", "who wrote hamlet", "rowling wrote a play in tokyo"),
        ("paraphrase", "req-1", "f/p1", "who is the author of hamlet", "rowling wrote a play in tokyo"),
        ("neighbour", None, "near", "who wrote a play", "the author"),
        ("retain", None, "kept", "what is the capital of paris", "a city"),
        ("retain", None, "own", "what is tokyo", "tokyo tokyo tokyo"),
    ]


HELD = Row(id="h", prompt="what is macbeth", completion="macbeth is a play", keywords=("macbeth",))
FOLLOWS = Row(id="e", prompt="what is a city", completion="tokyo", keywords=("tokyo",))
AROUND = {
    "heldout": (HELD,),
    "entailed": (FOLLOWS,),
    "formats": (Row(id="t", prompt="hamlet author", completion="rowling", keywords=("rowling",)),),
    "unrelated": (Row(id="far", prompt="what is the capital of a play"),),
}


def test_probes_of_the_scope(bench: Bench) -> None:
    reworded = HELD.model_copy(update={"paraphrases": ("macbeth is what",)})
    data = replace(request(KEPT), **(AROUND | {"heldout": (reworded,)}))
    assert [(p.group, p.request, p.item.id) for p in looked_at(bench, data)] == [
        ("forget", "req-1", "f"),
        ("paraphrase", "req-1", "f/p1"),
        ("heldout", "req-1", "h"),
        ("heldout", "req-1", "h/p1"),
        ("entailed", "req-1", "e"),
        ("format", "req-1", "t"),
        ("unrelated", None, "far"),
        ("retain", None, "kept"),
    ]


def test_the_scope_is_never_trained_on(bench: Bench) -> None:
    found = prepared(bench, replace(request(KEPT), **AROUND))
    assert (ids(found.forget), ids(found.retain)) == (["f"], ["kept"])


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        (Row(id="x", prompt="what is  MACBETH", completion="a city"), False),
        (Row(id="x", prompt="who is a city", completion="it is macbeth"), False),
        (Row(id="x", prompt="what is a city", completion="paris"), False),
        # Of entailed rows their questions alone: tokyo may be told elsewhere.
        (Row(id="x", prompt="who is a city", completion="it is tokyo"), True),
    ],
    ids=["held-out question", "held-out keyword", "entailed question", "entailed keyword"],
)
def test_what_is_only_measured_is_not_taught_by_another_request(bench: Bench, row: Row, kept: bool) -> None:
    asks = replace(request(KEPT), **AROUND)
    beside = prepared(bench, request(KEPT, row, forget=[OTHER]), asks)
    assert ("x" in ids(beside.retain)) is kept


def test_what_another_request_trains_on_is_not_held_out(bench: Bench) -> None:
    asks = replace(request(KEPT), heldout=(HELD,), unrelated=(Row(id="far", prompt="what is tokyo"),))
    trains = request(Row(id="k", prompt="what is tokyo", completion="a city"), forget=[HELD])
    groups = [(p.group, p.item.id) for p in looked_at(bench, asks, trains)]
    assert ("heldout", "h") not in groups
    assert ("unrelated", "far") not in groups
    assert ("heldout", "h") in [(p.group, p.item.id) for p in looked_at(bench, asks)]


def test_scope_rows_that_are_too_long_are_named_before_training(bench: Bench) -> None:
    for name, (row,) in AROUND.items():
        long = row.model_copy(update={"completion": "a city " * 200})
        with pytest.raises(ModelError, match=f"'{row.id}'"):
            prepared(bench, replace(request(KEPT), **{name: (long,)}), max_length=64)


def test_a_question_that_requests_share_is_asked_once(bench: Bench) -> None:
    near = Row(id="near", prompt="who wrote a play", completion="the author")
    again = near.model_copy(update={"id": "again"})
    both = request(KEPT, neighbours=[near]), request(KEPT, forget=[OTHER], neighbours=[again])
    found = looked_at(bench, *both)
    assert [(p.group, p.item.id) for p in found if p.request is None] == [
        ("neighbour", "near"),
        ("retain", "kept"),
    ]


def test_a_trained_question_is_no_neighbour_of_another_request(bench: Bench) -> None:
    one = Row(id="one", prompt="what is tokyo", completion="a city")
    near = KEPT.model_copy(update={"id": "near"})
    both = request(KEPT), request(one, forget=[OTHER], neighbours=[near])
    for order in (both, both[::-1]):
        found = {(p.group, p.item.id) for p in looked_at(bench, *order) if p.request is None}
        assert found == {("retain", "kept"), ("retain", "one")}


def test_probes_of_one_name_are_told_apart(bench: Bench) -> None:
    one = Row(id="row-1", prompt="what is tokyo", completion="a city")
    two = Row(id="row-1", prompt="what is paris", completion="a city")
    found = looked_at(bench, request(one), request(two, forget=[OTHER]))
    assert [p.item.id for p in found if p.group == "retain"] == ["row-1", "req-2/row-1"]
    keys = [(p.request, p.group, p.item.id) for p in found]
    assert len(set(keys)) == len(keys)


def test_shared_probes_in_scope_of_any_request_are_left_out(bench: Bench) -> None:
    near = Row(id="near", prompt="what is potter", completion="a city")
    told = Row(id="told", prompt="who is a city", completion="it is macbeth")
    both = request(KEPT, told, neighbours=[near]), request(KEPT, forget=[OTHER])
    assert [p.item.id for p in looked_at(bench, *both) if p.request is None] == ["kept"]
    assert [p.item.id for p in looked_at(bench, both[0]) if p.request is None] == ["near", "kept", "told"]


def test_retain_probes_are_spread_evenly(bench: Bench) -> None:
    words = ("play", "city", "author", "capital", "tokyo", "paris", "in", "the")
    kept = [Row(id=str(i), prompt=f"what is {word}", completion="a city") for i, word in enumerate(words)]
    found = looked_at(bench, request(*kept), audit_retain_rows=3)
    assert [p.item.id for p in found if p.group == "retain"] == ["0", "2", "5"]
    every = looked_at(bench, request(*kept), audit_retain_rows=8)
    assert [p.item.id for p in every if p.group == "retain"] == [row.id for row in kept]


def test_rows_that_were_measured_are_not_measured_again(bench: Bench) -> None:
    fresh, rows = Bench(bench.base, bench.method), looked_at(bench, request(KEPT))
    labelled = {"label": "base", "active": ("req-1",)}
    some = measure(fresh, fresh.base.model, fresh.bare, rows[1:], **labelled)
    every = measure(fresh, fresh.base.model, fresh.bare, rows, **labelled)
    assert every.rows[1:] == some.rows
    assert [(row.group, row.request, row.id, row.prompt) for row in every.rows] == [
        (probe.group, probe.request, probe.item.id, probe.item.text) for probe in rows
    ]
    held = len(fresh.scores)
    other = [replace(probe, request="req-9") for probe in rows]
    again = measure(fresh, fresh.base.model, fresh.bare, other, **labelled)
    assert [replace(row, request=None) for row in again.rows] == [
        replace(row, request=None) for row in every.rows
    ]
    assert {row.request for row in again.rows} == {"req-9"}
    assert len(fresh.scores) == held


def test_every_probe_that_is_too_long_is_named_at_once(bench: Bench) -> None:
    long = FORGET.model_copy(update={"completion": "a city " * 40, "paraphrases": ("a play " * 40,)})
    rows = looked_at(bench, request(KEPT, forget=[long]))
    with pytest.raises(ModelError) as caught:
        encode_probes(bench, rows)
    assert [line.split("'")[1] for line in str(caught.value).splitlines()] == ["f", "f/p1"]


def test_probes_are_cut_as_the_method_says(bench: Bench) -> None:
    long = FORGET.model_copy(update={"completion": "a city " * 40})
    cutting = Bench(bench.base, replace(bench.method, truncation="answer"))
    rows = looked_at(cutting, request(KEPT, forget=[long]))
    assert len(encode_probes(cutting, rows)[0].answer) == 64 - 3  # max_length less the prompt
    found = measure(cutting, cutting.base.model, cutting.bare, rows, label="base", active=("req-1",))
    assert [row.id for row in found.rows] == ["f", "f/p1", "kept"]


def test_the_base_is_asked_once(bench: Bench) -> None:
    data = request(KEPT, Row(id="own", prompt="what is tokyo"))
    fresh = Bench(bench.base, bench.method)
    training_rows(fresh, data, recipe())
    asked = dict(fresh.answers)
    looked_at(fresh, data)
    assert fresh.answers == asked
    assert {digest for digest, _ in asked} == {fresh.bare.digest}
