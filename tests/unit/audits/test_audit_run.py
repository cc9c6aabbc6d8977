"""`evaluate` against every figure worked out by hand from full logits, one row at a time."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import pytest
import torch
from model_kit import FORGET, PAD, RETAIN, fill_lora, full_logps, logits, taught, wide
from transformers import PreTrainedModel

from efface.adapters.encode import Encoded, Item, Message, collate, encode
from efface.adapters.errors import ModelError
from efface.adapters.lora import attach
from efface.adapters.model import Base, load_base
from efface.audits.errors import AuditError, OutOfMemory
from efface.audits.forced import paired, teacher_forced
from efface.audits.metrics import ngram_entropy
from efface.audits.run import Method, Model, Probe, answer_rows, evaluate, question_ids
from efface.audits.types import Evaluation, RowScore

EOS = 2
METHOD = Method(max_new_tokens=4, score_batch=3, generate_batch=2)
PROBES = (
    *(Probe(item, "forget", "q1") for item in FORGET),
    Probe(Item("d", "", "the city of tokyo and the author of macbeth"), "paraphrase", "q1"),
    *(Probe(item, "retain") for item in RETAIN),
    Probe(
        Item("c", (Message(role="user", content="who wrote hamlet"),), "rowling", ("rowling",)), "neighbour"
    ),
)


@dataclass(frozen=True)
class Bench:
    """A base, the same base with an adapter that half spoils it, and rows for both."""

    base: Base
    worn: Model
    rows: tuple[Encoded, ...]


@pytest.fixture(scope="module")
def bench(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = taught(tiny_llama, tmp_path_factory.mktemp("audit") / "taught")
    base = load_base(folder, "fp32")
    worn = attach(load_base(folder, "fp32").model, rank=4)
    fill_lora(worn, seed=3, size=0.18)
    return Bench(base, worn, tuple(encode(base.tokenizer, probe.item, chat=True) for probe in PROBES))


def measure(bench: Bench, model: Model, probes: Sequence[Probe] = PROBES, **options: object) -> Evaluation:
    fixed = {"label": "here", "composition": "sha256:" + "ab" * 32, "precision": "fp32", "method": METHOD}
    return evaluate(model, bench.base.tokenizer, probes, **(fixed | options))  # type: ignore[arg-type]


# --- by hand


def answer_by_hand(model: Model, asked: tuple[int, ...], limit: int) -> tuple[int, ...]:
    ids = list(asked)
    while len(ids) < len(asked) + limit:
        ids.append(int(logits(model, torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == EOS:
            return tuple(ids[len(asked) : -1])
    return tuple(ids[len(asked) :])


def hits_by_hand(model: Model, row: Encoded) -> list[bool]:
    best = logits(model, torch.tensor([row.prompt + row.answer]))[0].argmax(-1).tolist()
    return [best[len(row.prompt) + i - 1] == token for i, token in enumerate(row.answer)]


def logps_by_hand(model: Model, row: Encoded) -> list[float]:
    return full_logps(model, collate([row], PAD))[0, len(row.prompt) :].tolist()


def min_k_plus_plus_by_hand(model: Model, row: Encoded, k: float = 0.4) -> float:
    """From all logits in float64, token by token."""
    whole = logits(model, torch.tensor([row.prompt + row.answer]))[0].double()
    scores = []
    for i, token in enumerate(row.answer, start=len(row.prompt)):
        p = torch.softmax(whole[i - 1], -1)
        mean = float((p * p.log()).sum())
        variance = float((p * p.log() ** 2).sum()) - mean**2
        scores.append((math.log(p[token]) - mean) / math.sqrt(variance))
    lowest = sorted(scores)[: max(1, int(len(scores) * k))]
    return -sum(lowest) / len(lowest)


def common_words(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence."""
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + common_words(one[1:], other[1:])
    return max(common_words(one[1:], other), common_words(one, other[1:]))


def perplexity_by_hand(
    base: PreTrainedModel, asked: tuple[int, ...], answer: tuple[int, ...], limit: int
) -> float:
    said = answer + ((EOS,) if len(answer) < limit else ())
    found = logps_by_hand(base, Encoded("answer", asked, said))
    return math.exp(-sum(found) / len(found))


def check(
    bench: Bench, model: Model, row: Encoded, probe: Probe, found: RowScore, answer: tuple[int, ...]
) -> None:
    logps, hits = logps_by_hand(model, row), hits_by_hand(model, row)
    n = len(row.answer)
    wrong_until = next(k for k in range(n + 1) if all(hits[k:]))
    said = bench.base.tokenizer.decode(list(answer))
    words, reference = said.split(), probe.item.completion.split()
    asked = row.prompt if probe.item.prompt else row.prompt + row.answer[: n // 2]
    close = {"abs": 1e-5}
    assert (found.id, found.request, found.group, found.n_tokens) == (
        probe.item.id,
        probe.request,
        probe.group,
        n,
    )
    assert found.probability == pytest.approx(math.exp(sum(logps) / n), **close)
    assert found.extraction_strength == pytest.approx(1 - wrong_until / n)
    assert found.exact_memorization == pytest.approx(sum(hits) / n)
    assert found.rouge_l == pytest.approx(common_words(reference, words) / len(reference))
    assert found.mentioned == (any(k in words for k in probe.item.keywords) if probe.item.keywords else None)
    assert found.fluency == ngram_entropy(said)
    expected = perplexity_by_hand(bench.base.model, asked, answer, METHOD.max_new_tokens)
    assert found.perplexity == pytest.approx(expected, rel=1e-4)
    assert found.membership is not None
    text = bench.base.tokenizer.decode(list(row.answer), skip_special_tokens=True)
    lowest = sorted(logps)[: max(1, int(0.4 * n))]
    assert found.membership.loss == pytest.approx(-sum(logps) / n, **close)
    assert found.membership.zlib == pytest.approx(
        -sum(logps) / n / len(zlib.compress(text.encode())), **close
    )
    assert found.membership.min_k == pytest.approx(-sum(lowest) / len(lowest), **close)
    assert found.membership.min_k_plus_plus == pytest.approx(min_k_plus_plus_by_hand(model, row), rel=1e-3)
    assert (found.prompt, found.reference, found.answer) == (probe.item.text, probe.item.completion, said)


@pytest.mark.parametrize("adapted", [False, True])
def test_every_figure_is_what_full_logits_give_by_hand(bench: Bench, adapted: bool) -> None:
    model = bench.worn if adapted else bench.base.model
    found = measure(bench, model)
    for row, probe, score in zip(bench.rows, PROBES, found.rows, strict=True):
        asked = row.prompt if probe.item.prompt else row.prompt + row.answer[: len(row.answer) // 2]
        check(bench, model, row, probe, score, answer_by_hand(model, asked, METHOD.max_new_tokens))


def test_the_bench_is_worth_measuring(bench: Bench) -> None:
    """The rows above differ in every figure, so that equality says something."""
    rows = (*measure(bench, bench.base.model).rows, *measure(bench, bench.worn).rows)
    for name in (
        "probability",
        "extraction_strength",
        "exact_memorization",
        "rouge_l",
        "fluency",
        "perplexity",
    ):
        assert len({round(getattr(row, name), 3) for row in rows}) >= 4, name
    assert {row.mentioned for row in rows} == {True, False, None}


# --- what is passed through


def test_the_record_says_what_was_measured(bench: Bench) -> None:
    found = measure(bench, bench.base.model, active=["q2", "q1"])
    assert (found.label, found.composition, found.precision) == ("here", "sha256:" + "ab" * 32, "fp32")
    assert found.active == ("q2", "q1")
    assert found.seconds > 0
    assert measure(bench, bench.base.model).active is None
    assert measure(bench, bench.base.model, active=()).active == ()


def test_measuring_twice_is_the_same_and_leaves_the_adapter_on(bench: Bench) -> None:
    before = logits(bench.worn)
    first, second = measure(bench, bench.worn), measure(bench, bench.worn)
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)
    assert torch.equal(logits(bench.worn), before)


@pytest.mark.parametrize(("score", "generate"), [(1, 1), (2, 3), (64, 64)])
def test_batch_sizes_do_not_matter(bench: Bench, score: int, generate: int) -> None:
    found = measure(bench, bench.worn, method=replace(METHOD, score_batch=score, generate_batch=generate))
    for row, other in zip(found.rows, measure(bench, bench.worn).rows, strict=True):
        rounded = {"probability": 0.5, "perplexity": 1.0, "membership": None}
        assert replace(row, **rounded) == replace(other, **rounded)  # type: ignore[arg-type]
        assert astuple(row.membership) == pytest.approx(astuple(other.membership), rel=1e-4)  # type: ignore[arg-type]
        assert row.probability == pytest.approx(other.probability, abs=1e-5)
        assert row.perplexity == pytest.approx(other.perplexity, rel=1e-5)


def test_rows_keep_their_order_and_their_figures_in_any_order(bench: Bench) -> None:
    backwards = measure(bench, bench.worn, PROBES[::-1]).rows[::-1]
    for row, other in zip(backwards, measure(bench, bench.worn).rows, strict=True):
        assert row.key == other.key
        assert row.probability == pytest.approx(other.probability, abs=1e-5)


# --- answers


def test_answers_are_counted_as_they_come(bench: Bench) -> None:
    seen: list[int] = []
    measure(bench, bench.base.model, on_rows=seen.append)
    assert seen == [2, 2, 2, 2]


def test_given_answers_are_used_and_nothing_is_generated(bench: Bench) -> None:
    seen: list[int] = []
    answers = [(), (14, 20), (23,), (5, 6, 7, 8), (20,), (22, 11, 20), (12,), (22,)]
    found = measure(bench, bench.worn, answers=answers, on_rows=seen.append)
    assert seen == []
    for row, probe, score, answer in zip(bench.rows, PROBES, found.rows, answers, strict=True):
        check(bench, bench.worn, row, probe, score, answer)
    silent = found.rows[0]
    assert (silent.answer, silent.rouge_l, silent.mentioned, silent.fluency) == ("", 0.0, False, 0.0)


def test_the_models_own_answers_given_back_change_nothing(bench: Bench) -> None:
    asked = [question_ids(row) for row in bench.rows]
    answers = answer_rows(bench.worn, bench.base.tokenizer, asked, METHOD)
    given = measure(bench, bench.worn, answers=answers)
    assert replace(given, seconds=0.0) == replace(measure(bench, bench.worn), seconds=0.0)


def test_scores_of_a_shared_pass_are_used_and_no_row_is_run_again(bench: Bench) -> None:
    found = paired(bench.worn, bench.base.tokenizer, bench.rows, METHOD)
    given = measure(bench, bench.worn, scores=[pair.after for pair in found])
    assert replace(given, seconds=0.0) == replace(measure(bench, bench.worn), seconds=0.0)


def test_scores_of_other_rows_are_refused(bench: Bench) -> None:
    scores = teacher_forced(bench.worn, bench.base.tokenizer, bench.rows, METHOD)
    for other in (scores[:-1], scores[::-1]):
        with pytest.raises(AuditError, match="expected scores of these rows in this order"):
            measure(bench, bench.worn, scores=other)


def test_answers_for_other_rows_are_refused(bench: Bench) -> None:
    with pytest.raises(AuditError, match="expected one answer per row, got 1 answers for 8 rows"):
        measure(bench, bench.base.model, answers=[(5,)])


def test_a_document_is_asked_to_go_on_from_its_first_half(bench: Bench) -> None:
    question, document = bench.rows[0], bench.rows[3]
    assert question_ids(question) == question.prompt
    text = bench.base.tokenizer.decode(list(question_ids(document)), skip_special_tokens=True)
    assert text == "the city of tokyo"
    score = measure(bench, bench.base.model).rows[3]
    assert (score.prompt, score.n_tokens) == ("", 9)


def test_a_question_of_one_token_is_still_a_question(bench: Bench) -> None:
    row = encode(bench.base.tokenizer, Item("hm", "paris", "the city of tokyo"), chat=False)
    assert len(row.prompt) == 1
    assert question_ids(row) == row.prompt


def test_without_chat_prompts_are_asked_as_they_are(bench: Bench) -> None:
    plain = [probe for probe in PROBES if probe.item.id != "c"]  # a conversation needs the template
    found = measure(bench, bench.base.model, plain, method=replace(METHOD, chat=False))
    row = encode(bench.base.tokenizer, FORGET[0], chat=False)
    logps = logps_by_hand(bench.base.model, row)
    assert found.rows[0].probability == pytest.approx(math.exp(sum(logps) / len(logps)), abs=1e-5)


# --- what is refused


def test_no_probes_is_an_error(bench: Bench) -> None:
    with pytest.raises(AuditError, match="nothing to measure: expected at least one row"):
        measure(bench, bench.base.model, [])


def test_an_answer_without_any_text_is_named(bench: Bench) -> None:
    special = str(bench.base.tokenizer.pad_token)
    with pytest.raises(AuditError, match=r"row 'odd' cannot be scored: zlib_score"):
        measure(bench, bench.base.model, [Probe(Item("odd", "who wrote hamlet", special), "forget", "q1")])


def test_a_row_given_twice_is_named_before_anything_is_measured(bench: Bench) -> None:
    seen: list[int] = []
    with pytest.raises(AuditError, match=r"1 more than once, \('q1', 'forget', 'f0'\) first: drop them"):
        measure(bench, bench.base.model, (*PROBES, PROBES[0]), on_rows=seen.append)
    assert seen == []
    measure(bench, bench.base.model, (PROBES[0], replace(PROBES[0], request="q2")))  # another request's row


def test_rows_that_are_all_too_long_are_all_named(bench: Bench) -> None:
    with pytest.raises(ModelError) as caught:
        measure(bench, bench.base.model, method=replace(METHOD, max_length=2))
    assert all(f"row {probe.item.id!r}" in str(caught.value) for probe in PROBES)


def test_a_row_that_is_too_long_is_named(bench: Bench) -> None:
    with pytest.raises(ModelError, match="row 'f2' has 16 tokens, more than max_length=15"):
        measure(bench, bench.base.model, method=replace(METHOD, max_length=15))


def test_figures_that_are_not_finite_name_the_row_and_quote_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    """One token's embedding is NaN: only the rows that hold it are broken."""
    base = load_base(wide(tiny_llama, tmp_path / "untied", tied=False), "fp32")
    token = base.tokenizer.convert_tokens_to_ids("rowling")
    base.model.get_input_embeddings().weight.data[token] = math.nan  # type: ignore[index]
    bench = Bench(base, base.model, ())
    with pytest.raises(AuditError, match=r"^row 'r1' has log-probabilities that are not finite") as caught:
        measure(bench, base.model, answers=[(5,)] * len(PROBES))
    assert "rowling" not in str(caught.value)
    clean = [probe for probe in PROBES if "rowling" not in probe.item.completion]
    assert len(measure(bench, base.model, clean, answers=[(5,)] * len(clean)).rows) == 6


@pytest.mark.parametrize("answers", [None, [(5,)] * len(PROBES)], ids=["answering", "scoring"])
def test_too_little_memory_says_what_to_lower(
    tiny_llama: Path, answers: Sequence[tuple[int, ...]] | None
) -> None:
    base = load_base(tiny_llama, "fp32")
    base.model.get_input_embeddings().register_forward_pre_hook(lambda *_: torch.empty(1 << 60))
    setting = "generate_batch" if answers is None else "score_batch"
    with pytest.raises(OutOfMemory, match=rf"out of memory .* lower max_length .* smaller {setting}"):
        measure(Bench(base, base.model, ()), base.model, answers=answers)
