"""The guide's example on folders alone runs as it stands."""

import re
from pathlib import Path

import pytest
from adapter_files import plain

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def test_the_guides_stack_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [part for part in found if "overlaps" in part]
    plain(rank=2, seed=1).write(tmp_path / "adapter-a")
    plain(rank=3, seed=2).write(tmp_path / "adapter-b")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(GUIDE), "exec"), {"__name__": "example"})
    forecast, cosine, exact, small, error = capsys.readouterr().out.split()
    assert forecast in ("undoes", "strengthens", "shares", "apart")
    assert (exact, small) == ("5", "4")
    assert abs(float(cosine)) < 1
    assert 0 < float(error) < 1
