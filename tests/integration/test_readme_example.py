"""README's Python example, run as it stands: one request forgotten, released and taken back on the real model."""

import re
from pathlib import Path

import pytest

from efface.registry import Registry, active_release, list_requests, verify

pytestmark = pytest.mark.slow  # trains a real adapter: about two minutes on two cores

README = Path(__file__).parents[2] / "README.md"


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
