"""A merged checkpoint in vLLM: the same greedy answers as in transformers. Skips where there is no vLLM."""

import json
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from adapter_files import Spec
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from vllm_kit import Vllm

from efface.adapters.compose import Part
from efface.adapters.merge import merge

pytestmark = [pytest.mark.serving, pytest.mark.slow]

PROMPTS = [[3, 7, 11, 2, 9], [1, 4, 8, 12, 6]]


def test_vllm_answers_as_transformers_does(tiny_llama: Path, tmp_path: Path) -> None:
    source = with_wide_heads(tiny_llama, tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(source)
    names = [f"model.layers.{layer}.self_attn.{side}_proj" for layer in (0, 1) for side in "qv"]
    shapes = {name: tuple(base.get_submodule(name).weight.shape) for name in names}
    folder = written(tmp_path / "lora", shapes)
    merged = merge(source, [Part(folder)], tmp_path / "merged").path
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    wanted = [
        model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    server = Vllm(merged, tmp_path / "log", None, "--max-model-len", "64").start()
    try:
        assert [_answered(server.url, prompt) for prompt in PROMPTS] == wanted
    finally:
        server.stop()


def _answered(url: str, prompt: list[int]) -> list[int]:
    body = {"model": "base", "prompt": prompt, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120, trust_env=False)
    return answer.json()["choices"][0]["token_ids"]


def with_wide_heads(tiny: Path, folder: Path) -> Path:
    """vLLM's attention on a CPU takes heads of 32 at least; those of `tiny_llama` have 8."""
    config = AutoConfig.from_pretrained(tiny)
    config.update({"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    shutil.copytree(tiny, folder)
    model.save_pretrained(folder)
    return folder


def written(folder: Path, shapes: dict[str, tuple[int, int]]) -> Path:
    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, (tall, wide) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, wide) * 0.1
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(tall, 2) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    same = dict.fromkeys(shapes, 2)
    config = Spec(same, dict.fromkeys(shapes, 4.0)).config() | {"base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
