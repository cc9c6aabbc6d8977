"""The Python examples of README and guide, run as they stand on the real model."""

import re
from pathlib import Path
from typing import Any

import pytest

from efface.adapters import read_adapter
from efface.adapters.company import draw
from efface.registry import Registry, active_release, list_requests, verify

pytestmark = pytest.mark.slow  # trains a real adapter: about two minutes on two cores

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


@pytest.mark.usefixtures("smollm")
def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {"__name__": "example"})

    trained, released = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"sha256:[0-9a-f]{64} pass", trained)
    assert re.fullmatch(r"ACTIVE sha256:[0-9a-f]{64}", released)
    with Registry.open(tmp_path / ".efface") as registry:
        assert verify(registry, deep=True).ok
        assert len(list_requests(registry)) == 1
        now = active_release(registry, "prod")
        assert (now.version, now.composition.parts) == (2, ())


@pytest.mark.usefixtures("smollm")
def test_the_guides_training_without_a_registry_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    code, stacked = [
        part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "TrainSettings" in part
    ]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "guide.md", "exec"), names)
    before, *_ = names["result"].probes
    (kept,) = [probe for probe in names["result"].probes if probe.step == names["result"].kept]
    assert kept.forget_probability < 0.5 * before.forget_probability
    assert read_adapter(tmp_path / "adapter").rank == 16
    exec(compile(stacked, "guide.md", "exec"), names)
    first, second, *_ = names["beside"].steps
    # The example's seed draws company for the first step, when the new adapter does nothing yet, and none for the next.
    assert [draw(0, step, 1, share=0.5) for step in (0, 1)] == [(0,), ()]
    assert first.forget_probability == pytest.approx(kept.forget_probability, abs=0.02)
    assert second.forget_probability > first.forget_probability
