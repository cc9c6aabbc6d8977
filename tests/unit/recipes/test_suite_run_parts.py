"""Suites on tiny models: what they find, what they note as not applying, and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_kit import FORGET, RETAIN, fill_lora, taught

from efface.adapters import attach, load_base, read_adapter, save
from efface.audits import AuditError, AuditReport, Method
from efface.audits.gates import Thresholds
from efface.audits.suites import InvalidSuite, Suite, load_suite, shipped_suites
from efface.recipes.audit import audit_composition
from efface.recipes.bench import Bench
from efface.recipes.checkpoint import audit_checkpoint
from efface.recipes.data import RequestData, Row
from efface.recipes.parts import finite
from efface.recipes.plan import Plan
from efface.recipes.recipe import Recipe
from efface.recipes.row_cache import RowMemory, open_cache
from efface.recipes.sources import Sources, read_sources
from efface.registry import compose

RECIPE = Recipe(name="t", quantization="fp32", max_new_tokens=4)
METHOD = Method(max_new_tokens=4)
WRONG = ("rowling and tokyo", "the city of paris")


def rows(items, **more: object) -> tuple[Row, ...]:
    return tuple(
        Row(id=i.id, prompt=str(i.prompt), completion=i.completion, keywords=i.keywords, **more)
        for i in items
    )  # type: ignore[arg-type]


DATA = RequestData(
    rows(FORGET, paraphrases=("hamlet who wrote",), perturbed=WRONG), rows(RETAIN, perturbed=WRONG)
)
HOLDOUT = rows(
    [replace(item, id=f"h{i}", prompt=f"tokyo {item.prompt}") for i, item in enumerate(FORGET)],
    perturbed=WRONG,
)


@pytest.fixture(scope="module")
def known(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tiny_llama, tmp_path_factory.mktemp("taught") / "model")


@pytest.fixture(scope="module")
def adapter(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = load_base(known, "fp32")
    model = attach(base.model, rank=4)
    fill_lora(model, 1, 0.3)
    folder = tmp_path_factory.mktemp("adapter") / "a"
    save(model, folder, base=base.fingerprint.digest)
    return folder


def audited(
    known: Path,
    adapter: Path | None,
    suite: Suite,
    sources: Sources | None = None,
    *,
    recipe: Recipe = RECIPE,
    **more: object,
) -> AuditReport:
    bench = Bench(load_base(known, "fp32"), METHOD, plan=Plan(suite, sources or Sources()), **more)  # type: ignore[arg-type]
    parts = [(read_adapter(adapter).digest, "1")] if adapter else []
    composition = compose(bench.base.fingerprint.digest, "fp32", parts)
    return audit_composition(
        bench, composition, adapter, {"q1": DATA}, active=["q1"], recipe=recipe, label="a"
    )


def test_standard_with_all_that_it_takes(known: Path, adapter: Path, tiny_llama: Path) -> None:
    suite = load_suite("standard")
    report = audited(known, adapter, suite, Sources(reference=str(tiny_llama), holdout=HOLDOUT))
    run = report.suite
    assert run is not None
    assert (run.title, run.precision, run.digest) == ("standard/1", "fp32", suite.digest)
    assert set(run.skipped) == {
        "adapter/one-less",
        "prompt/few-shot",
    }  # three kept questions, and it shows four
    assert {a.name for a in report.attacks} == set(suite.attacks) - set(run.skipped)
    assert {a.request for a in report.attacks} == {"q1"}
    assert {"rows", "membership", "drift", *suite.attacks} - set(run.skipped) <= set(run.seconds)
    # The base knows the forget rows by heart, and its adapter is random.
    assert run.figures["membership/loss/auc/before"] == 1.0
    assert run.figures["membership/loss/auc/after"] < 1.0
    assert {"membership/min_k/privleak", "membership/min_k/s_mia", "membership/reference/auc/after"} <= set(
        run.figures
    )
    assert run.figures["drift/retain/kl"] > 0 > run.figures["drift/retain/probability"]
    assert len(run.rows) == len(report.evaluation("a").rows) == len({row.hash for row in run.rows})
    json.dumps(report.to_json(), allow_nan=False)


def scope_of(report: AuditReport) -> dict[str, str]:
    gates = ("min_ignorance_ratio", "max_ignorance_ratio", "max_gibberish_share")
    return {f.gate: f.outcome for f in report.findings if f.gate in gates}


def test_standard_notes_how_far_it_went_and_decides_nothing_by_it(
    known: Path, adapter: Path, tiny_llama: Path
) -> None:
    quick, alone = (audited(known, adapter, load_suite(name)) for name in ("quick", "standard"))
    assert scope_of(quick) == {}
    assert scope_of(alone) == {"min_ignorance_ratio": "noted", "max_gibberish_share": "noted"}
    assert any("by chance" in f.text for f in alone.findings if f.gate == "min_ignorance_ratio")
    assert quick.verdict == alone.verdict
    beyond = [f.group for f in alone.findings if f.gate == "scope"]
    assert beyond == ["heldout", "entailed", "format"]
    told = audited(known, adapter, load_suite("standard"), Sources(reference=str(tiny_llama)))
    assert scope_of(told)["max_ignorance_ratio"] == "noted"
    (low,) = (f for f in told.findings if f.gate == "min_ignorance_ratio")
    assert "a model that never saw these rows" in low.text


def test_a_bound_on_it_decides_under_any_suite(known: Path, adapter: Path, tiny_llama: Path) -> None:
    strict = RECIPE.model_copy(
        update={
            "gates": Thresholds(
                few_rows=0, min_ignorance_ratio=1e9, max_ignorance_ratio=1e9, max_gibberish_share=1.0
            )
        }
    )
    quick = audited(known, adapter, load_suite("quick"), recipe=strict)
    assert scope_of(quick) == {
        "min_ignorance_ratio": "failed",
        "max_ignorance_ratio": "failed",  # nobody gave a reference
        "max_gibberish_share": "passed",
    }
    (lacking,) = (f for f in quick.findings if f.gate == "max_ignorance_ratio")
    assert lacking.value is None and "--give reference=FOLDER" in lacking.text
    given = Sources(reference=str(tiny_llama))
    told = audited(known, adapter, load_suite("standard"), given, recipe=strict)
    assert scope_of(told)["max_ignorance_ratio"] == "passed"


def test_holdout_rows_that_somebody_trained_on_are_refused(known: Path, adapter: Path) -> None:
    """They would make membership look like a guess, whatever the model remembers."""
    ours = (*HOLDOUT, DATA.forget[0].model_copy(update={"id": "h9", "prompt": "Who  wrote HAMLET"}))
    with pytest.raises(AuditError, match="1 that a request has among its own, such as 'h9'"):
        audited(known, adapter, load_suite("standard"), Sources(holdout=ours))


def test_what_a_part_could_not_measure_is_in_the_report(known: Path, adapter: Path, tiny_llama: Path) -> None:
    run = audited(known, adapter, load_suite("tofu"), Sources(reference=str(tiny_llama))).suite
    assert run is not None and not any("utility" in name for name in run.figures)
    assert "no real-authors and no world-facts rows" in run.skipped["tofu/model_utility"]
    given = Sources(reference=str(tiny_llama), holdout=HOLDOUT)
    run = audited(known, adapter, load_suite("muse"), given).suite
    assert run is not None and "documents" in run.skipped["muse/verbatim"]


def test_depth_of_what_the_base_does_not_know_is_skipped_with_the_reason(
    tiny_llama: Path, known: Path
) -> None:
    """Source and target are one model: no layer has a gap, and there is nothing to be forgotten."""
    suite = Suite(name="mine", version=1, description="d", parts=("rows", "patching"), takes=("reference",))
    base = load_base(tiny_llama, "fp32")
    folder = known.parent / "flat"
    save(attach(base.model, rank=4), folder, base=base.fingerprint.digest)
    run = audited(tiny_llama, folder, suite, Sources(reference=str(tiny_llama))).suite
    assert run is not None and "knows these answers no better" in run.skipped["patching"]


def test_a_figure_that_is_no_number_is_named() -> None:
    notes: dict[str, str] = {}
    assert finite({"a": 1.0, "b": float("nan"), "c": float("inf")}, notes) == {"a": 1.0}
    assert notes == {"b": "it came out as nan", "c": "it came out as inf"}


def test_two_requests_that_ask_the_same_each_have_their_row(known: Path, adapter: Path) -> None:
    """Under names of their own, though the row is measured once: attacks and reports go by the name."""
    both = {"q1": DATA, "q2": RequestData(rows([replace(FORGET[0], id="x")]), DATA.retain)}
    bench = Bench(load_base(known, "fp32"), METHOD)
    parts = [(read_adapter(adapter).digest, "1")]
    composition = compose(bench.base.fingerprint.digest, "fp32", parts)
    bench = replace(bench, plan=Plan(load_suite("standard"), Sources()))
    report = audit_composition(
        bench, composition, adapter, both, active=["q1", "q2"], recipe=RECIPE, label="a"
    )
    named = {(row.request, row.id) for row in report.evaluation("a").rows if row.group == "forget"}
    assert named == {("q1", "f0"), ("q1", "f1"), ("q1", "f2"), ("q2", "x")}
    assert {one.request for one in report.attacks if one.name == "prompt/prefix"} == {"q1", "q2"}


def test_without_holdout_rows_it_says_so(known: Path, adapter: Path) -> None:
    run = audited(known, adapter, load_suite("standard")).suite
    assert run is not None and "--give holdout=FILE" in run.skipped["membership"]


def test_an_adapter_that_changes_nothing_moves_nothing(known: Path, tmp_path: Path) -> None:
    base = load_base(known, "fp32")
    save(attach(base.model, rank=4), tmp_path / "a", base=base.fingerprint.digest)  # B is 0
    suite = Suite(name="mine", version=1, description="d", parts=("rows", "drift", "patching"))
    run = audited(known, tmp_path / "a", suite).suite
    assert run is not None
    assert run.figures["drift/retain/kl"] == pytest.approx(0, abs=1e-6)
    assert run.figures["drift/retain/probability"] == pytest.approx(0, abs=1e-6)
    assert run.figures["patching/score"] == pytest.approx(0, abs=1e-6)


def test_tofu_has_its_figures_and_the_reference_forgets_as_itself(
    known: Path, adapter: Path, tiny_llama: Path
) -> None:
    given = Sources(
        reference=str(tiny_llama), real_authors=HOLDOUT, world_facts=rows(RETAIN, perturbed=WRONG)
    )
    run = audited(known, adapter, load_suite("tofu"), given).suite
    assert run is not None
    for side in ("before", "after"):
        assert 0 <= run.figures[f"tofu/model_utility/{side}"] <= 1
        assert 0 <= run.figures[f"tofu/forget_quality_p/{side}"] <= 1
    same = audited(tiny_llama, None, load_suite("tofu"), Sources(reference=str(tiny_llama))).suite
    assert same is not None
    assert same.figures["tofu/forget_quality_p/after"] == 1.0
    assert same.figures["tofu/forget_quality_ks/after"] == 0.0


def test_tofu_without_wrong_answers_says_which_rows_lack_them(
    known: Path, adapter: Path, tiny_llama: Path
) -> None:
    bare = RequestData(rows(FORGET), DATA.retain)
    bench = Bench(
        load_base(known, "fp32"), METHOD, plan=Plan(load_suite("tofu"), Sources(reference=str(tiny_llama)))
    )
    composition = compose(bench.base.fingerprint.digest, "fp32", ())
    with pytest.raises(InvalidSuite, match=r"3 of 3 have none, such as 'f0'.*perturbed"):
        audit_composition(bench, composition, None, {"q1": bare}, active=["q1"], recipe=RECIPE, label="a")


def test_muse_on_rows_of_ones_own(known: Path, adapter: Path, tiny_llama: Path) -> None:
    run = audited(
        known, adapter, load_suite("muse"), Sources(reference=str(tiny_llama), holdout=HOLDOUT)
    ).suite
    assert run is not None
    assert run.figures["muse/knowledge/before"] > run.figures["muse/knowledge/after"]
    assert {"muse/auc/after", "muse/privleak", "muse/utility/after"} <= set(run.figures)


def test_a_reference_with_another_tokenizer_is_refused(known: Path, adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in known.iterdir():
        data = path.read_bytes()
        (other / path.name).write_bytes(
            data.replace(b"tokyo", b"kyoto") if path.name == "tokenizer.json" else data
        )
    with pytest.raises(AuditError, match="another vocabulary"):
        audited(known, adapter, load_suite("muse"), Sources(reference=str(other), holdout=HOLDOUT))
    benches = (Bench(load_base(path, "fp32"), METHOD) for path in (known, other))
    with pytest.raises(AuditError, match="another vocabulary"):
        audit_checkpoint(*benches, {"q1": DATA}, recipe=RECIPE, label="x")


def test_a_checkpoint_against_the_one_before(known: Path, tiny_llama: Path) -> None:
    plan = Plan(load_suite("standard"), Sources(holdout=HOLDOUT))
    old, new = (Bench(load_base(path, "fp32"), METHOD, plan=plan) for path in (known, tiny_llama))
    report = audit_checkpoint(old, new, {"q1": DATA}, recipe=RECIPE, label="unlearned")
    assert report.suite is not None
    assert (report.before, report.after) == ("before", "unlearned")
    assert "it needs adapter" in report.suite.skipped["adapter/off"]
    assert report.suite.figures["drift/retain/kl"] > 0
    assert {a.kind for a in report.attacks} == {"prompt"}
    forget = [r for r in report.evaluation("unlearned").rows if r.group == "forget"]
    assert max(r.probability for r in forget) < 0.5


def test_the_second_time_the_rows_are_there(known: Path, adapter: Path, tmp_path: Path) -> None:
    def once() -> AuditReport:
        memory = RowMemory(lambda _: b"k" * 32, open_cache(tmp_path))
        return audited(known, adapter, load_suite("quick"), memory=memory)

    first, second = once(), once()
    assert first.suite is not None and second.suite is not None
    assert (first.suite.cached, second.suite.cached) == (0, 2 * len(first.suite.rows))
    assert first.suite.rows == second.suite.rows
    assert first.findings == second.findings
    for one, other in zip(first.evaluations, second.evaluations, strict=True):
        assert [r.to_json() for r in one.rows] == [r.to_json() for r in other.rows]


def test_nan_fails_the_audit_and_names_the_row(known: Path, adapter: Path) -> None:
    bench = Bench(load_base(known, "fp32"), METHOD)
    with torch.no_grad():
        bench.base.model.get_input_embeddings().weight[7] = float("nan")  # type: ignore[operator,union-attr]
    composition = compose(bench.base.fingerprint.digest, "fp32", ())
    with pytest.raises(AuditError, match=r"row '[frh]\d.*not finite"):
        audit_composition(bench, composition, None, {"q1": DATA}, active=["q1"], recipe=RECIPE, label="a")


@pytest.mark.parametrize(
    ("suite", "given", "expected"),
    [
        ("muse", ["reference=x"], "needs --give holdout=…"),
        ("quick", ["reference=x"], "does not use 'reference'"),
        ("tofu", ["reference"], "expected NAME=PATH"),
        ("tofu", ["reference=a", "reference=b"], "expected it once"),
        ("tofu", ["refrence=a"], "did you mean 'reference'"),
    ],
)
def test_what_is_given_is_checked_first(suite: str, given: list[str], expected: str) -> None:
    with pytest.raises(InvalidSuite, match=expected):
        read_sources(load_suite(suite), given)


def test_every_shipped_suite_can_run_all_that_it_names() -> None:
    from efface.recipes.suite import FIGURES

    named = {part for name in shipped_suites() for part in load_suite(name).parts}
    assert named == {"rows", "scope", *FIGURES}
