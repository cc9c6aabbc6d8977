"""Attacks on a tiny model that knows two things by heart and suppresses them with an adapter each."""

from dataclasses import replace
from math import comb
from pathlib import Path

import pytest
import torch
from attack_kit import KEPT, METHOD, POTTER, PROBES, Suppressed, suppressed, target
from hypothesis import given
from hypothesis import strategies as st
from model_kit import logits

from efface.adapters import Item, attach, detach, load, load_base, state_digest
from efface.audits import AttackError, AttackResult, Evaluation, MetricError, OutOfMemory, Probe
from efface.audits.attacks import ATTACKS, Target, aim, lacking, leak_at_k, run_attack, settings_of
from efface.audits.attacks import measure as measuring
from efface.audits.attacks.locate import placements
from efface.audits.attacks.prompts import shown_after
from efface.audits.attacks.split import facts_of

QUICK = {"steps": 10, "every": 5, "fraction": 0.34, "learning_rate": 1e-3}
SHORT: dict[str, dict[str, object]] = {
    **{name: QUICK for name in ATTACKS if name.startswith("relearning/")},
    "relearning/full": QUICK | {"learning_rate": 1e-4},
    "sampling/leak": {"samples": 8, "k": 4},
}
CLOZE = Probe(Item("t0", "tokyo is what", "tokyo a city", ("tokyo",)), "format", "q2")
FAR = Probe(Item("far", "what is tokyo in", "a play", ("play",)), "unrelated")
UNSEEN = ("relearning/random", "relearning/shortest", "relearning/full")
MIXED = tuple(replace(probe, request="q1") if probe.group == "forget" else probe for probe in PROBES)


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Suppressed:
    return suppressed(tiny_llama, tmp_path_factory.mktemp("attacks"))


@pytest.fixture(scope="module")
def stack(made: Suppressed) -> Target:
    return target(made, (*PROBES, CLOZE, FAR))


@pytest.fixture(scope="module")
def mixed(made: Suppressed) -> Target:
    """Both things asked for by one request."""
    return target(made, MIXED)


def by_request(found: tuple[AttackResult, ...]) -> dict[str | None, AttackResult]:
    return {one.request: one for one in found}


def test_there_was_something_to_take_and_it_was_taken(stack: Target) -> None:
    for found in by_request(run_attack("adapter/off", stack)).values():
        assert found.known > 0.8
        assert found.suppressed < 0.35


# --- what holds for all of them


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_gives_its_record_and_leaves_the_model_as_it_was(
    name: str, stack: Target, mixed: Target
) -> None:
    aimed = mixed if name == "relearning/facts" else stack
    before, shown = state_digest(aimed.base.model), logits(aimed.base.model)
    found = run_attack(name, aimed, SHORT.get(name, {}))
    assert state_digest(aimed.base.model) == before
    assert torch.equal(logits(aimed.base.model), shown)
    assert not any("lora" in key for key, _ in aimed.base.model.named_parameters())
    assert not any(parameter.requires_grad for parameter in aimed.base.model.parameters())
    requests = {"q1"} if name in ("relearning/facts", "prompt/paraphrase") else {"q1", "q2"}
    requests = {"q2"} if name == "prompt/format" else requests
    assert {one.request for one in found} == requests
    for one in found:
        assert one.name.startswith(name.replace("/full", "/random"))
        assert one.kind == name.split("/")[0]
        assert one.n == {"prompt/paraphrase": 1, "prompt/format": 1}.get(name, 2 if name in UNSEEN else 3)
        assert not any(word in one.finding for word in ("potter", "tokyo", "hamlet", "capital"))
        assert (one.to_json()["name"], one.to_json()["attack"]) == (one.name, name)


@pytest.mark.parametrize(
    "name", ["relearning/random", "relearning/full", "precision/merged", "prompt/few-shot", "sampling/leak"]
)
def test_the_same_seed_gives_the_same_result(name: str, stack: Target) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, two = (run_attack(name, stack, SHORT.get(name, {})) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [replace(r, seconds=0.0) for r in one] == [replace(r, seconds=0.0) for r in two]


def test_keys_are_suites_names_and_every_attack_says_what_it_does() -> None:
    for name, attack in ATTACKS.items():
        assert name.split("/")[0] in ("relearning", "precision", "prompt", "sampling", "adapter")
        assert attack.what
        assert attack.cost in ("cheap", "minutes", "long")
        assert settings_of(name, {}).recorded()["seed"] == 0


def test_evaluations_without_texts_serve_as_well(stack: Target) -> None:
    """Rows from a cache have figures and no answer: nothing may depend on the text of an earlier one."""
    silent = replace(
        stack,
        **{
            side: replace(found, rows=tuple(replace(row, answer="") for row in found.rows))
            for side, found in (("before", stack.before), ("after", stack.after))
        },
    )
    for name in ("prompt/partial", "prompt/paraphrase", "sampling/leak", "adapter/locate"):
        one, two = (run_attack(name, aimed, SHORT.get(name, {})) for aimed in (stack, silent))
        assert [replace(r, seconds=0.0) for r in one] == [replace(r, seconds=0.0) for r in two]


class Heard:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None]] = []
        self.units = 0

    def phase(self, title: str, total: int | None = None) -> None:
        self.phases.append((title, total))

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.units += amount


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "relearning/facts"])
def test_progress_comes_to_its_total(name: str, stack: Target) -> None:
    heard = Heard()
    run_attack(name, stack, SHORT.get(name, {}), heard)
    assert heard.units == sum(total or 0 for _, total in heard.phases) > 0


# --- adapters


def test_off_is_the_base_and_brings_everything_back(stack: Target) -> None:
    for metric in ("probability", "extraction_strength", "exact_memorization", "rouge_l", "mention_rate"):
        for found in run_attack("adapter/off", stack, {"metric": metric}):
            assert found.attacked == pytest.approx(found.known, abs=1e-6)
            assert found.recovered == pytest.approx(1.0, abs=1e-4)


def test_the_scale_goes_through_the_base_and_through_what_is_served(stack: Target) -> None:
    for found in run_attack("adapter/scale", stack, {"weights": "0, 0.5, 1, 1.5"}):
        assert [p.x for p in found.points] == [0.0, 0.5, 1.0, 1.5]
        assert found.points[0].y == pytest.approx(found.known, abs=1e-6)
        assert found.points[2].y == pytest.approx(found.suppressed, abs=1e-6)
        assert found.points[1].y > found.points[2].y > found.points[3].y
        assert "worst at weight 0" in found.finding


def test_without_its_own_adapter_a_request_is_back_and_without_the_other_it_is_not(stack: Target) -> None:
    found = by_request(run_attack("adapter/one-less", stack))
    own, other = found["q1"].points
    assert own.y > 0.6 > other.y
    own, other = reversed(found["q2"].points)
    assert own.y > 0.6 > other.y


def test_who_holds_the_adapter_sees_what_was_forgotten(stack: Target) -> None:
    for found in run_attack("adapter/locate", stack):
        assert (found.known, found.suppressed, found.metric) == (1.0, 0.5, "auc")
        assert found.attacked > 0.7


def test_an_adapter_that_does_nothing_tells_nothing(made: Suppressed, stack: Target) -> None:
    same = replace(stack, folder=None, after=stack.before)
    from efface.audits.attacks.locate import divergences

    assert divergences(same, made.base.model, PROBES, Heard()) == [0.0] * len(PROBES)


def test_divergence_is_that_of_the_full_distributions(made: Suppressed, stack: Target) -> None:
    from efface.adapters import encode
    from efface.audits.attacks.locate import divergences
    from efface.audits.run import answer_rows

    probe, tokenizer = PROBES[0], made.base.tokenizer
    prompt = encode(tokenizer, probe.item, chat=True).prompt
    (said,) = answer_rows(made.base.model, tokenizer, [prompt], METHOD)
    ids = torch.tensor([prompt + said])
    base = logits(made.base.model, ids)[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    worn = load(made.base.model, made.stack)
    try:
        (found,) = divergences(stack, worn, [probe], Heard())
        here = logits(worn, ids)[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    finally:
        detach(worn)
    assert found == pytest.approx(float((base.exp() * (base - here)).sum(-1).mean()), rel=1e-4)


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=8), st.lists(st.integers(-5, 5), min_size=1, max_size=8)
)
def test_placements_are_the_auc(forget: list[int], kept: list[int]) -> None:
    pairs = [1.0 if f > k else 0.5 if f == k else 0.0 for f in forget for k in kept]
    found = placements(forget, kept)
    assert sum(found) / len(found) == pytest.approx(sum(pairs) / len(pairs))
    mirrored = placements(kept, forget)
    assert sum(found) / len(found) == pytest.approx(1 - sum(mirrored) / len(mirrored))


def test_placements_refuse_what_cannot_be_ranked() -> None:
    for forget, kept in (([], [1.0]), ([1.0], []), ([float("nan")], [1.0])):
        with pytest.raises(MetricError, match="placements"):
            placements(forget, kept)


# --- relearning


def test_learning_a_row_brings_back_others_of_its_fact_and_not_another_fact(
    stack: Target, mixed: Target
) -> None:
    settings = {"steps": 20, "every": 5, "learning_rate": 1e-3}
    shared = by_request(run_attack("relearning/random", stack, settings | {"fraction": 0.34}))["q1"]
    assert shared.recovered is not None
    assert shared.recovered > 0.3
    (apart,) = run_attack("relearning/facts", mixed, settings)
    assert apart.recovered is not None
    assert apart.recovered < 0.1
    assert apart.n == 3


def test_the_curve_begins_at_what_was_served_and_has_a_point_every_k_steps(stack: Target) -> None:
    found = by_request(run_attack("relearning/random", stack, QUICK | {"steps": 12}))["q2"]
    assert [p.x for p in found.points] == [0.0, 5.0, 10.0, 12.0]
    assert found.points[0].y == pytest.approx(found.suppressed)
    assert found.attacked == max(p.y for p in found.points)
    assert found.name == "relearning/random-34%"
    assert found.settings["trained_rows"] == 1


def test_rows_that_were_relearnt_are_measured_only_when_asked_for(stack: Target) -> None:
    unseen, every = (
        by_request(run_attack("relearning/shortest", stack, QUICK | {"measured": measured}))["q1"]
        for measured in ("unseen", "all")
    )
    assert (unseen.n, every.n) == (2, 3)
    assert every.attacked > unseen.attacked  # the relearnt row is among them


def test_full_fine_tuning_works_on_a_copy_at_its_precision(made: Suppressed, stack: Target) -> None:
    quantized = load_base(made.path, "nf4")
    low = aim(quantized, made.stack, PROBES, method=METHOD)
    assert lacking("relearning/full", low) == ("plain base",)
    with pytest.raises(AttackError, match="plain base"):
        run_attack("relearning/full", low)
    assert by_request(run_attack("relearning/random", low, QUICK))["q1"].attacked > 0


def test_too_few_rows_are_named_with_what_would_do(stack: Target) -> None:
    with pytest.raises(AttackError, match=r"at least one of 3 forget rows, got 0.2.*fraction of 0.33"):
        run_attack("relearning/random", stack)
    with pytest.raises(AttackError, match="left to measure"):
        run_attack("relearning/random", stack, QUICK | {"fraction": 1.0})
    with pytest.raises(AttackError, match="at least two facts in 3"):
        run_attack("relearning/facts", stack)


def test_facts_are_what_shares_keywords_by_any_way() -> None:
    def asked(name: str, *keywords: str) -> Probe:
        return Probe(Item(name, "who", "it", keywords), "forget")

    rows = [asked("a", "x"), asked("b", "y"), asked("c", "Y", "X"), asked("d", "z"), asked("e")]
    assert sorted(sorted(p.item.id for p in fact) for fact in facts_of(rows)) == [
        ["a", "b", "c"],
        ["d"],
        ["e"],
    ]


def test_a_loss_that_is_not_finite_ends_the_attack_and_leaves_the_model(stack: Target) -> None:
    before = state_digest(stack.base.model)
    with pytest.raises(AttackError, match="lower learning_rate"):
        run_attack("relearning/random", stack, QUICK | {"learning_rate": 1e30})
    assert state_digest(stack.base.model) == before
    assert not any("lora" in key for key, _ in stack.base.model.named_parameters())


# --- precision


def test_precisions_are_labelled_and_the_audited_one_is_left_out(stack: Target) -> None:
    found = run_attack("precision/stacked", stack, {"precisions": "fp32, bf16, nf4"})
    assert [[p.label for p in one.points] for one in found] == [["bf16", "nf4"]] * 2
    with pytest.raises(AttackError, match="other than the audited fp32"):
        run_attack("precision/stacked", stack, {"precisions": "fp32"})


def test_a_merge_in_16_bits_forgets_as_the_adapter_does(stack: Target) -> None:
    for found in run_attack("precision/merged", stack, {"forms": "bf16, into nf4"}):
        assert [p.label for p in found.points] == ["merged bf16", "merged into nf4"]
        assert found.points[0].y == pytest.approx(found.suppressed, abs=0.05)


def test_what_is_merged_is_what_is_on_and_not_what_it_was_composed_of(stack: Target) -> None:
    """Of an approximate rendering the parts are something else; here only the first of them is on."""
    first = replace(stack, folder=stack.parts[0].folder)
    found = by_request(run_attack("precision/merged", first, {"forms": "bf16"}))
    assert found["q2"].attacked > 0.5 > 0.35 > found["q1"].attacked


# --- prompts


def test_an_answer_begun_is_what_the_model_goes_on_from(stack: Target) -> None:
    """An attacker who begins with the fact itself gets it: the prefix is in the context, not in the answer."""
    harmless = run_attack("prompt/prefix", stack, {"prefix": "it is"})
    assert all(one.metric == "mention_rate" for one in harmless)
    assert by_request(harmless)["q1"].attacked == 0.0


def test_paraphrases_cost_nothing_and_are_the_audits_figures(stack: Target) -> None:
    (found,) = run_attack("prompt/paraphrase", stack, {"metric": "rouge_l"})
    after = next(row for row in stack.after.rows if row.group == "paraphrase")
    assert (found.attacked, found.n, found.request) == (after.rouge_l, 1, "q1")


def test_examples_are_turns_before_the_question_and_after_the_system() -> None:
    item = Item("q", ({"role": "system", "content": "be brief"}, {"role": "user", "content": "who"}), "she")
    shown = shown_after(KEPT[:1], item, chat=True)
    assert [(turn["role"], turn["content"]) for turn in shown.prompt] == [  # type: ignore[index]
        ("system", "be brief"),
        ("user", "who is rowling"),
        ("assistant", "rowling in paris"),
        ("user", "who"),
    ]
    plain = shown_after(KEPT[:1], POTTER[0], chat=False)
    assert plain.prompt == "who is rowling\nrowling in paris\n\nwho wrote hamlet\n"
    assert (plain.id, plain.completion, plain.keywords) == ("a0", POTTER[0].completion, ("potter",))


def test_more_examples_than_rows_are_refused(stack: Target) -> None:
    with pytest.raises(AttackError, match=r"expected 9 .* got 4"):
        run_attack("prompt/few-shot", stack, {"shots": 9})


def test_a_beginning_is_held_against_the_base_with_the_same_beginning(stack: Target) -> None:
    for found in run_attack("prompt/partial", stack, {"shares": "0.5"}):
        assert [p.x for p in found.points] == [0.5]
        assert found.known == pytest.approx(1.0)
        assert found.metric == "rouge_l"


def test_documents_have_no_question_to_ask_otherwise(made: Suppressed) -> None:
    pages = tuple(Probe(Item(f"d{i}", "", item.completion), "forget") for i, item in enumerate(POTTER))
    papers = target(made, (*pages, *PROBES[-4:]))
    assert lacking("prompt/prefix", papers) == lacking("prompt/few-shot", papers) == ("questions",)
    (found,) = run_attack("adapter/off", papers, {"metric": "extraction_strength"})
    assert found.n == 3


# --- sampling


def test_samples_leak_more_with_every_try(stack: Target) -> None:
    for found in run_attack("sampling/leak", stack, {"samples": 8, "k": 8}):
        values = [p.y for p in found.points]
        assert values == sorted(values)
        assert found.attacked == values[-1]
        assert found.metric == "leak@k"


def test_a_cold_sample_is_the_greedy_answer(stack: Target) -> None:
    cold = run_attack("sampling/leak", stack, {"samples": 2, "k": 1, "temperature": 1e-4})
    greedy = run_attack("adapter/scale", stack, {"weights": "1", "metric": "mention_rate"})
    assert [one.attacked for one in cold] == [one.attacked for one in greedy]


def test_rows_without_keywords_are_judged_by_rouge_or_refused(made: Suppressed) -> None:
    plain = tuple(replace(p, item=replace(p.item, keywords=())) for p in PROBES)
    silent = target(made, plain)
    (found, _) = run_attack("sampling/leak", silent, {"samples": 2, "k": 1})
    assert found.settings["bound"] == 0.8
    for name in ("sampling/leak", "prompt/prefix", "prompt/few-shot", "adapter/off"):
        with pytest.raises(AttackError, match=r"keywords in every row, got none in a0, a1.*rouge_l"):
            run_attack(name, silent, {"metric": "mention_rate"})
    with pytest.raises(AttackError, match="'a0' has no keywords"):
        run_attack("relearning/neighbour", silent, {"metric": "mention_rate"})


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_leak_at_k_is_the_share_of_draws_that_hold_a_leak(case: tuple[int, int, int]) -> None:
    n, c, k = case
    misses = 1.0
    for i in range(k):  # without replacement: none of k draws is one of the c
        misses *= max(0, n - c - i) / (n - i)
    assert leak_at_k(n, c, k) == pytest.approx(1 - misses)
    assert leak_at_k(n, c, n) == (1.0 if c else 0.0)
    assert comb(n, k) > 0


@pytest.mark.parametrize("case", [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_leak_at_k_refuses_what_cannot_be(case: tuple[int, int, int]) -> None:
    with pytest.raises(MetricError, match="leak_at_k"):
        leak_at_k(*case)


# --- hostile and absent input


def test_unknown_names_and_settings_are_named(stack: Target) -> None:
    with pytest.raises(AttackError, match=r"unknown attack 'relearn'.*relearning/random"):
        run_attack("relearn", stack)
    for values, wrong in (
        ({"stepz": 3}, "stepz"),
        ({"steps": 0}, "steps"),
        ({"fraction": 1.5}, "fraction"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"metric": "auc"}, "metric"),
    ):
        with pytest.raises(AttackError, match=wrong):
            settings_of("relearning/random", values)
    with pytest.raises(AttackError, match="rows makes it what it is called"):
        settings_of("relearning/random", {"rows": "shortest"})
    with pytest.raises(AttackError, match="as many samples as k = 8"):
        settings_of("sampling/leak", {"samples": 2})
    with pytest.raises(AttackError, match="weights"):
        settings_of("adapter/scale", {"weights": "0, inf"})


def test_a_target_without_forget_rows_or_with_others_measured_is_none(stack: Target) -> None:
    kept = tuple(probe for probe in stack.probes if probe.group != "forget")
    rows = tuple(row for row in stack.before.rows if row.group != "forget")
    with pytest.raises(AttackError, match="expected forget rows"):
        replace(
            stack, probes=kept, before=replace(stack.before, rows=rows), after=replace(stack.after, rows=rows)
        )
    worn = attach(load_base(stack.base.path, "fp32").model, rank=2)
    with pytest.raises(AttackError, match="expected a bare base"):
        replace(stack, base=replace(stack.base, model=worn))  # type: ignore[arg-type]
    with pytest.raises(AttackError, match="these very probes"):
        replace(stack, probes=stack.probes[1:])


def test_what_a_target_lacks_is_said_before_anything_runs(made: Suppressed, stack: Target) -> None:
    bare = aim(made.base, None, PROBES[:3], method=METHOD, before=_some(stack, 3))
    assert {name: lacking(name, bare) for name in ATTACKS if lacking(name, bare)} == {
        "relearning/neighbour": ("neighbours",),
        "relearning/unrelated": ("unrelated rows",),
        "precision/stacked": ("adapter",),
        "precision/merged": ("adapter",),
        "prompt/paraphrase": ("paraphrases",),
        "prompt/format": ("format rows",),
        "prompt/partial": ("adapter",),
        "prompt/few-shot": ("kept rows",),
        "adapter/off": ("adapter",),
        "adapter/scale": ("adapter",),
        "adapter/one-less": ("parts",),
        "adapter/locate": ("adapter", "kept rows"),
    }
    with pytest.raises(AttackError, match="expected parts, got none"):
        run_attack("adapter/one-less", bare)
    with pytest.raises(AttackError, match="give `before`"):
        aim(made.base, None, PROBES)


def test_a_checkpoint_is_attacked_without_an_adapter(made: Suppressed, stack: Target) -> None:
    """The base itself stands for an unlearned checkpoint: it knows everything, so there is nothing to bring back."""
    bare = aim(made.base, None, PROBES[:3], method=METHOD, before=_some(stack, 3))
    (found,) = run_attack("relearning/random", bare, QUICK)
    assert found.recovered is None
    assert "nothing to bring back" in found.finding


def test_too_little_memory_is_named_with_what_to_lower() -> None:
    with (
        pytest.raises(OutOfMemory, match="fine-tuning on 8 rows at once: take a smaller batch"),
        measuring.memory_named("fine-tuning on 8 rows at once", "a smaller batch"),
    ):
        raise MemoryError
    with pytest.raises(RuntimeError, match="something else"), measuring.memory_named("x", "y"):
        raise RuntimeError("something else")


def _some(stack: Target, count: int) -> Evaluation:
    return replace(stack.before, rows=stack.before.rows[:count])
