"""lm-evaluation-harness on a task whose data is local, on a tiny model: really run where it is installed."""

import json
import sys
from pathlib import Path

import pytest

from efface.adapters import load_base
from efface.audits.harness import HarnessError, lm_eval_figures

TASK = """\
task: tiny_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = [
    {"question": "who wrote hamlet", "choices": ["potter", "tokyo"], "label": 0},
    {"question": "what is the capital", "choices": ["rowling", "paris"], "label": 1},
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(one) for one in QUESTIONS))
    path = tmp_path / "tiny.yaml"
    path.write_text(TASK.format(rows=rows))
    return path


@pytest.mark.filterwarnings("ignore")  # the harness's own, at import and when run
def test_a_task_of_ones_own(tiny_llama: Path, task: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval", exc_type=ImportError)
    base = load_base(tiny_llama, "fp32")
    found = lm_eval_figures(base.model, base.tokenizer, [str(task)])
    assert found.keys() == {"tiny_local/acc"}
    assert found["tiny_local/acc"] in (0.0, 0.5, 1.0)
    assert lm_eval_figures(base.model, base.tokenizer, [str(task)]) == found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1", "YAML mapping"),
        ("output_type: x", "`task:` name"),
        ("task: t\noutput_type: none\n", "did not run|no task"),
    ],
)
def test_what_is_no_task_is_named(tiny_llama: Path, tmp_path: Path, text: str, expected: str) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval", exc_type=ImportError)
    base = load_base(tiny_llama, "fp32")
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(HarnessError, match=expected):
        lm_eval_figures(base.model, base.tokenizer, [str(tmp_path / "t.yaml")])


def test_without_the_harness_it_says_what_to_install(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    base = load_base(tiny_llama, "fp32")
    with pytest.raises(HarnessError, match=r"pip install 'efface\[lm-eval\]'"):
        lm_eval_figures(base.model, base.tokenizer, ["hellaswag"])
