"""`efface unlearn` on the real demo model in NF4, killed at three moments: it verifies, and it runs again."""

import shutil
import signal
from pathlib import Path

import pytest
from cli_kit import LOOSE, efface, recipe_file, stopped

from efface.recipes.data import shipped

pytestmark = pytest.mark.slow

REQUEST = "req-000001"
# With which phase's begin it is killed, how many seconds later, and which phase must not have begun.
MOMENTS = {
    "asking": ("Asking the base", 1.0, "Sealing"),
    "training": ("Training", 2.0, "Sealing"),
    "sealing": ("Sealing", 0.0, "Done"),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one request of a few of the rows that ship."""
    root = tmp_path_factory.mktemp("real")
    for name in ("shakespeare.forget", "general.retain", "shakespeare.neighbours"):
        lines = shipped(f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (root / f"{name}.jsonl").write_text("".join(lines[:8]), encoding="utf-8")
    ran = efface(
        *("request", "open", "--forget", root / "shakespeare.forget.jsonl"),
        *("--retain", root / "general.retain.jsonl", "--neighbours", root / "shakespeare.neighbours.jsonl"),
        *("--basis", "test", "--registry", root / "registry"),
    )
    assert ran.code == 0, ran.err
    return root / "registry"


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill(tmp_path: Path, opened: Path, smollm: Path, moment: str) -> None:
    phase, after, later = MOMENTS[moment]
    registry = shutil.copytree(opened, tmp_path / "registry")
    settings = {"steps": 8, "forget_batch": 4, "retain_batch": 4, "rank": 8, "max_new_tokens": 8}
    recipe = recipe_file(
        tmp_path / "short.yaml",
        quantization="nf4",
        max_length=256,
        learning_rate=5e-4,
        gates=LOOSE,
        **settings,
    )
    command = ["unlearn", REQUEST, "--model", smollm, "--recipe", recipe, "--registry", registry]
    code, lines = stopped(signal.SIGKILL, phase, after, *command, scratch=tmp_path)
    assert code == -signal.SIGKILL, lines
    assert not any(line.startswith(later) for line in lines)
    assert efface("verify", "--deep", "--registry", registry).code == 0
    again = efface(*command)
    assert again.code == 0, again.err
    verified = efface("verify", "--deep", "--registry", registry, "--format", "json")
    assert (verified.code, verified.json["problems"]) == (0, [])
