"""The demo as a stranger runs it: the real model, the real CLI, and what it leaves on disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_kit import conforms

pytestmark = pytest.mark.slow
# 4 minutes on two cores with bf16 instructions; 33 on one without, beside other work. No bound of what it tells.
HANGS = 3600


def test_demo_tells_its_story(smollm: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "efface.cli",
        "demo",
        "--workdir",
        str(tmp_path / "demo"),
        "--format",
        "json",
    ]
    done = subprocess.run([*command, "--model", str(smollm)], capture_output=True, text=True, timeout=HANGS)
    assert done.stdout, done.stderr[-4000:]
    story = json.loads(done.stdout)
    conforms("demo", story)

    assert (done.returncode, story["problems"]) == (0, [])
    assert len(story["claims"]) == 4
    assert all(story["claims"].values())
    assert [release["verdict"] for release in story["releases"]] == ["pass"] * 3
    assert len({release["composition"] for release in story["releases"]}) == 3

    assert [f["composition"] for f in story["figures"]][:1] == ["base"]
    assert {f["composition"] for f in story["figures"]} == {"base", "+1", "+1+2", "rolled back"}

    by_kind = {}
    for line in story["answers"]:
        by_kind.setdefault(line["kind"], []).append(line["names_it"])
    # base, +1, +1+2, rolled back
    assert all(names[0] for rows in by_kind.values() for names in rows)
    for kind in ("1 in scope", "2 in scope", "1 paraphrased", "2 paraphrased"):
        assert sum(names[2] for names in by_kind[kind]) <= 1
    assert any(names[3] for names in by_kind["1 in scope"])
    assert sum(all(names) for names in by_kind["out of scope"]) >= 2

    html = Path(story["report"]).read_text(encoding="utf-8")
    assert "suppressed" in html.lower() and "<script" not in html and 'src="http' not in html
    report = json.loads((Path(story["report"]).parent / "report.json").read_text(encoding="utf-8"))
    assert [evaluation["label"] for evaluation in report["evaluations"]] == [
        "base",
        "+1",
        "+1+2",
        "rolled back",
    ]
    registry = str(Path(story["report"]).parent / "registry")
    asked = [*command[:3], "audit", "reversible", "demo", "--model", str(smollm), "--registry", registry]
    proved = subprocess.run([*asked, "--format", "json"], capture_output=True, text=True, timeout=HANGS)
    assert proved.returncode == 0, proved.stdout[-4000:] + proved.stderr[-4000:]


def test_demo_registry_verifies_and_holds_no_forgotten_text(smollm: Path, tmp_path: Path) -> None:
    """A registry with the shipped rows opened in it: no byte of it is a forget row, in any encoding."""
    from efface.recipes.data import load_request_data, shipped, to_payload
    from efface.registry import Registry, open_request, verify

    data = load_request_data(shipped("shakespeare.forget.jsonl"), [shipped("general.retain.jsonl")])
    with Registry.open(tmp_path / "registry", create=True) as registry:
        open_request(registry, basis="test", payload=to_payload(data), n_items=len(data.forget), actor="test")
        assert verify(registry, deep=True).ok
    written = b"".join(path.read_bytes() for path in (tmp_path / "registry").rglob("*") if path.is_file())
    for row in data.forget:
        for text in (row.question, row.completion or ""):
            assert text.encode() not in written and text.encode("utf-16-le") not in written
