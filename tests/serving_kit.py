"""Releases of random adapters on a real base, registered as `efface release create` does, and what they answer.

No training: random weights of some size change every answer, which is all that a swap needs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from registry_kit import accept, ask
from safetensors.torch import save_file
from transformers import PreTrainedModel

from efface.adapters import Part as FolderPart
from efface.recipes.bench import Bench, open_bench, wearing
from efface.recipes.canary import canary
from efface.recipes.recipe import load_recipe
from efface.registry import (
    Composition,
    Part,
    Registry,
    Release,
    activate_release,
    adapter_folder,
    compose,
    create_release,
    get_adapter,
    record_audit,
    seal_adapter,
)
from efface.serving.render import render

LINEAR = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")


@dataclass
class Shop:
    """A registry on a real base in fp32. ``adapters``: digests of the trained ones by seed."""

    reg: Registry
    bench: Bench
    work: Path
    adapters: dict[int, str] = field(default_factory=dict)
    reports: dict[tuple[int, ...], dict[str, Any]] = field(default_factory=dict)

    def adapter(self, seed: int, rank: int = 8) -> str:
        """A sealed random adapter."""
        if seed not in self.adapters:
            base = self.bench.base
            folder = random_lora(base.model, self.work / f"lora-{seed}", seed, rank, base.fingerprint.digest)
            self.adapters[seed] = seal_adapter(
                self.reg,
                folder,
                kind="trained",
                base=base.fingerprint.digest,
                quantization=base.quantization,
                request_ids=[accept(self.reg, ask(self.reg))],
                facts={"seed": seed},
                actor="ana",
            ).digest
        return self.adapters[seed]

    def composition(self, *seeds: int) -> Composition:
        base = self.bench.base
        parts = [Part(self.adapter(seed), "1") for seed in seeds]
        return compose(base.fingerprint.digest, base.quantization, parts)

    def release(self, channel: str, *seeds: int, report: Mapping[str, Any] | None = None) -> Release:
        """Render, seal, audit (with canary prompts, unless ``report`` says otherwise) and activate."""
        composition = self.composition(*seeds)
        sealed = self.sealed(composition, self.rendered(*seeds))
        made = create_release(self.reg, channel, composition, rendered=sealed, reason="why", actor="ana")
        evidence = self.audit(composition, report or self.report(*seeds))
        return activate_release(self.reg, channel, made.version, audit=evidence, approved_by="ben")

    def report(self, *seeds: int) -> dict[str, Any]:
        """The canary prompts of a stack, measured once."""
        if seeds not in self.reports:
            with self.wearing(*seeds) as model:
                found = canary(self.bench, model, self.composition(*seeds))
            self.reports[seeds] = {"canary": found.to_json()}
        return self.reports[seeds]

    def sealed(self, composition: Composition, folder: Path) -> str:
        return seal_adapter(
            self.reg,
            folder,
            kind="rendered",
            base=composition.base,
            quantization=composition.quantization,
            request_ids=[get_adapter(self.reg, composition.adapters[0]).requests[0]],
            facts={"composition": composition.digest},
            actor="ana",
        ).digest

    def audit(self, composition: Composition, report: Mapping[str, Any]) -> str:
        return record_audit(
            self.reg,
            composition=composition.digest,
            precision=composition.quantization,
            suite="quick/1",
            seed=0,
            verdict="pass",
            report=json.dumps(report).encode(),
            environment={"torch": torch.__version__},
            actor="ana",
        ).digest

    def rendered(self, *seeds: int) -> Path:
        out = self.work / ("stack-" + "-".join(map(str, seeds)))
        if not out.exists():
            render([FolderPart(adapter_folder(self.reg, self.adapter(seed))) for seed in seeds], out)
        return out

    @contextmanager
    def wearing(self, *seeds: int) -> Iterator[PreTrainedModel | PeftModel]:
        """transformers and PEFT with these adapters; the bare base without any."""
        with wearing(self.bench, self.rendered(*seeds) if seeds else None) as model:
            yield model

    def answers(self, prompts: Sequence[Sequence[int]], tokens: int, *seeds: int) -> list[str]:
        """Greedy texts of transformers + PEFT, one prompt at a time."""
        with self.wearing(*seeds) as model:
            return [self._greedy(model, prompt, tokens) for prompt in prompts]

    def _greedy(self, model: Any, prompt: Sequence[int], tokens: int) -> str:
        ids, end = torch.tensor([list(prompt)]), self.bench.base.tokenizer.eos_token_id
        ones = torch.ones_like(ids)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=ones, max_new_tokens=tokens, do_sample=False, eos_token_id=end
            )
        return str(self.bench.base.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))

    def ids(self, text: str) -> list[int]:
        return list(self.bench.base.tokenizer(text)["input_ids"])


def open_shop(work: Path, model: Path) -> Shop:
    bench = open_bench(model, load_recipe("simnpo", ["quantization=fp32"]))
    return Shop(Registry.open(work / "registry", create=True), bench, work)


def random_lora(model: Any, folder: Path, seed: int, rank: int, base: str, *, nan: bool = False) -> Path:
    """A PEFT folder with random weights on some layers; with ``nan``, one value is none."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.startswith("model.layers.") and name.endswith(LINEAR) and hasattr(module, "weight"):
            tall, wide = module.weight.shape
            key = f"base_model.model.{name}.lora_{{}}.weight"
            tensors[key.format("A")] = torch.randn(rank, wide, generator=draw) / wide**0.5
            tensors[key.format("B")] = torch.randn(tall, rank, generator=draw) * 0.15
    if nan:
        next(iter(tensors.values()))[0, 0] = float("nan")
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": sorted({name.rpartition(".")[2] for name in LINEAR}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
