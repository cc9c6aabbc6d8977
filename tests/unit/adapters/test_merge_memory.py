"""Peak memory of stacking and merging on files: bounded by the output and by two shards."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from efface.adapters.tensors import safetensors_bytes

WIDE, LAYERS, SHARDS = 1024, 16, 2
SCRIPT = """if True:
    import re, sys
    from pathlib import Path
    from efface.adapters.compose import Part, compose
    from efface.adapters.merge import merge
    root = Path(sys.argv[1])
    status = Path("/proc/self/status")  # getrusage counts what the parent had before exec, too
    peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
    parts = [Part(root / "a0"), Part(root / "a1")]
    merge(root / "small", parts, root / "warm"), compose(parts, root / "warm-stack")
    if sys.argv[2:]:
        merge(root / "small", parts, root / "warm-nf4", requantize="nf4")
        start = peak()
        merge(root / "large", parts, root / "quantized", requantize="nf4")
        shard = max(file.stat().st_size for file in (root / "large").glob("*.safetensors"))
        print((peak() - start) / shard)
        sys.exit()
    start = peak()
    stacked = compose([Part(root / f"a{i}") for i in range(8)], root / "stack")
    stack = peak()
    made = merge(root / "large", parts, root / "merged")
    size = lambda folder: max(file.stat().st_size for file in folder.glob("*.safetensors"))
    print((stack - start) / size(stacked.path), (peak() - start) / size(made.path))
"""


def adapter(folder: Path, seed: int, rank: int = 16) -> None:
    folder.mkdir()
    made = torch.Generator().manual_seed(seed)
    keys = [f"base_model.model.model.layers.{i}.mlp.up_proj" for i in range(LAYERS)]
    tensors = {f"{key}.lora_A.weight": torch.randn(rank, WIDE, generator=made) for key in keys}
    tensors |= {f"{key}.lora_B.weight": torch.randn(WIDE, rank, generator=made) for key in keys}
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": rank}
    more = {"lora_alpha": rank, "target_modules": ["up_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | more))


def checkpoint(folder: Path, copies: int) -> None:
    """``copies`` untouched matrices beside each that the adapters change, in two shards."""
    folder.mkdir()
    listed: dict[str, str] = {}
    for shard in range(SHARDS):
        file = f"model-0000{shard + 1}-of-0000{SHARDS}.safetensors"
        tensors = {}
        for i in range(shard, LAYERS, SHARDS):
            tensors[f"model.layers.{i}.mlp.up_proj.weight"] = torch.ones(WIDE, WIDE, dtype=torch.bfloat16)
            tensors[f"model.layers.{i}.rest"] = torch.ones(copies * WIDE, WIDE, dtype=torch.bfloat16)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        listed |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc"
)


def measured(root: Path, *words: str) -> list[float]:
    command = [sys.executable, "-c", SCRIPT, str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in re.findall(r"[\d.]+", done.stdout.splitlines()[-1])]


def test_memory_is_bounded_by_the_output_and_by_a_shard(tmp_path: Path) -> None:
    """Eight adapters stacked, two merged into two shards of 80 MiB; the parts' mapped files count, as cache does."""
    for i in range(8):
        adapter(tmp_path / f"a{i}", i)
    checkpoint(tmp_path / "small", 0)
    checkpoint(tmp_path / "large", 4)
    stack, merged = measured(tmp_path)
    assert stack < 2.5
    assert merged < 1.0


def test_memory_of_a_merge_that_is_quantized_is_bounded_by_two_shards(tmp_path: Path) -> None:
    """Most is held where nothing is quantized, so that half of the matrices is left as they are."""
    for i in range(2):
        adapter(tmp_path / f"a{i}", i)
    checkpoint(tmp_path / "small", 0)
    checkpoint(tmp_path / "large", 4)
    (grown,) = measured(tmp_path, "nf4")
    assert 0.0 < grown < 2.0
