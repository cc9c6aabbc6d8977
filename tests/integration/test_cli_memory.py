"""`efface unlearn` in a process that may not take more memory: what to lower, exit 1, nothing registered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_kit import FORGET, RETAIN, efface, jsonl, recipe_file
from registry_kit import contents

MORE = 128 << 20  # bytes, beyond what the libraries take
# The libraries first, so that the limit is met by tensors.
LIMITED = f"""
import resource, sys
import bitsandbytes, datasets, peft, torch, transformers
import efface.recipes.run
from efface.cli.main import run
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {MORE}, used + {MORE}))
sys.argv[0] = "efface"
run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and sets RLIMIT_AS")
def test_too_little_memory_says_what_to_lower_and_registers_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    rows = (
        "--forget",
        jsonl(tmp_path / "forget.jsonl", FORGET),
        "--retain",
        jsonl(tmp_path / "r.jsonl", RETAIN),
    )
    registry = ("--registry", tmp_path / "registry")
    assert efface("request", "open", *rows, "--basis", "test", *registry).code == 0
    before = contents(tmp_path / "registry")
    recipe = recipe_file(tmp_path / "large.yaml", forget_batch=20_000, steps=1)
    arguments = ["unlearn", "req-000001", "--model", tiny_llama, "--recipe", recipe, *registry]
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (1, ""), ran
    assert "out of memory with 20000 forget and 2 retain rows a forward: lower forget_batch" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert contents(tmp_path / "registry") == before
