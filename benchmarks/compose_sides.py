"""One side of `compose.py`, in a process of its own: SIDE ROOT OPTIONS → one JSON line of what it took."""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from efface.adapters.compose import Part, compose
from efface.adapters.compress import compress
from efface.adapters.merge import merge
from efface.adapters.tensors import safetensors_bytes

LAYERS, WIDE, INSIDE, KEYS = 30, 576, 1536, 192
LINEAR = {  # in, out
    "self_attn.q_proj": (WIDE, WIDE),
    "self_attn.k_proj": (WIDE, KEYS),
    "self_attn.v_proj": (WIDE, KEYS),
    "self_attn.o_proj": (WIDE, WIDE),
    "mlp.gate_proj": (WIDE, INSIDE),
    "mlp.up_proj": (WIDE, INSIDE),
    "mlp.down_proj": (INSIDE, WIDE),
}
SHARD = "64MB"
Taken = dict[str, Any]


def adapters(root: Path, count: int) -> Taken:
    for i in range(count):
        folder = folder_of(root, i)
        folder.mkdir(parents=True)
        made = torch.Generator().manual_seed(i)
        tensors: dict[str, torch.Tensor] = {}
        for layer in range(LAYERS):
            for name, (wide, tall) in LINEAR.items():
                key = f"base_model.model.model.layers.{layer}.{name}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(8, wide, generator=made) * 0.02
                tensors[f"{key}.lora_B.weight"] = torch.randn(tall, 8, generator=made) * 0.02
        (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
        (folder / "adapter_config.json").write_text(json.dumps(config()))
    return {}


def config() -> Taken:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "synthetic-135m",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": [name.rpartition(".")[2] for name in LINEAR],
        "bias": "none",
    }


def folder_of(root: Path, i: int) -> Path:
    return root / "adapters" / f"a{i:02d}"


def parts(root: Path, count: int) -> list[Part]:
    return [Part(folder_of(root, i)) for i in range(count)]


def model_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=WIDE,
        intermediate_size=INSIDE,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )


def checkpoint(root: Path) -> Taken:
    """Random weights of the real shapes in shards, with the least that makes it a model folder."""
    folder = root / "checkpoint"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_config(), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=SHARD)
    (folder / "tokenizer.json").write_text("{}")
    return {"path": str(folder)}


def stack(root: Path, count: int) -> Taken:
    chosen = parts(root, count)
    return measured(root, lambda out: compose(chosen, out))


def peft(root: Path, count: int) -> Taken:
    """The base's weights are left out of it: PEFT needs a model, but not what is in it."""
    from peft import PeftModel

    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(model_config(), dtype=torch.bfloat16)
    shell = shell.to_empty(device="cpu")
    names = [f"n{i:02d}x" for i in range(count)]
    cat: list[float] = []

    def all_of_it(out: Path) -> None:
        model = PeftModel.from_pretrained(shell, str(folder_of(root, 0)), adapter_name=names[0])
        for i, name in enumerate(names[1:], 1):
            model.load_adapter(str(folder_of(root, i)), adapter_name=name)
        started = time.perf_counter()
        model.base_model.add_weighted_adapter(names, [1.0] * count, "sum", combination_type="cat")
        cat.append(time.perf_counter() - started)
        model.save_pretrained(str(out), selected_adapters=["sum"], save_embedding_layers=False)

    return {**measured(root, all_of_it), "cat_s": cat[0]}


def shrink(root: Path, count: int, rank: int) -> Taken:
    chosen = parts(root, count)
    return measured(root, lambda out: compress(chosen, out, rank=rank))


def copy(root: Path, model: str) -> Taken:
    files = [file for file in Path(model).iterdir() if file.is_file()]

    def plain(out: Path) -> None:
        out.mkdir()
        for file in files:
            shutil.copyfile(file, out / file.name)

    def synced(out: Path) -> None:
        plain(out)
        for file in out.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())

    for file in files:
        file.read_bytes()  # warm, for either
    taken = measured(root, plain)
    return {**taken, "synced_s": measured(root, synced)["wall_s"]}


def merged(root: Path, model: str, count: int, requantize: str | None = None) -> Taken:
    chosen = parts(root, count)
    for file in Path(model).glob("*.safetensors"):
        file.read_bytes()
    return measured(root, lambda out: merge(Path(model), chosen, out, requantize=requantize))


def measured(root: Path, act: Callable[[Path], object]) -> Taken:
    """Wall and CPU seconds of ``act``, and by how much it raised the peak of resident memory that is not file cache."""
    out = root / f"out-{os.getpid()}"
    before = peak()
    cpu, wall = time.process_time(), time.perf_counter()
    act(out)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    grown = max(0.0, peak() - before)
    shutil.rmtree(out)
    return {"wall_s": wall, "cpu_s": cpu, "grown_mib": grown}


def peak() -> float:
    """MiB. Mapped adapter files count while they are mapped: they are cache, but Linux gives one figure."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


SIDES: dict[str, Callable[..., Taken]] = {
    "adapters": adapters,
    "checkpoint": checkpoint,
    "stack": stack,
    "peft": peft,
    "compress": shrink,
    "copy": copy,
    "merge": merged,
}

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(json.dumps(SIDES[sys.argv[1]](Path(sys.argv[2]), **json.loads(sys.argv[3]))))
