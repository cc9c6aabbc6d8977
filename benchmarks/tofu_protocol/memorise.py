"""The two models that TOFU compares: memorised with the forget rows, and without them. Trained once, cached.

Full fine-tuning by TRL's `SFTTrainer`, loss on the answer alone, through the model's chat template.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from efface.adapters.arithmetic import compute_dtype
from efface.adapters.model import fingerprint

from .data import Row, short_digest


@dataclass(frozen=True, slots=True)
class Memorising:
    """How a model is made to know rows by heart; float32 weights, bf16 autocast, AdamW without decay.

    ``template``: the chat template that it has from then on; the base's own where that is empty.
    """

    learning_rate: float = 2e-4
    epochs: int = 8
    batch: int = 8
    warmup_steps: int = 10
    seed: int = 0
    template: str = ""


def memorised(cache: Path, base: Path, rows: Sequence[Row], how: Memorising, *, name: str) -> Path:
    """The folder ``<name>-<digest>`` of ``base`` fine-tuned on ``rows``; trained now if it is not there yet."""
    key = short_digest([fingerprint(base).digest, [(r.question, r.answer) for r in rows], asdict(how)])
    folder = cache / f"{name}-{key}"
    if not (folder / "memorised.json").is_file():
        _train(base, rows, how, folder)
    return folder


def _train(base: Path, rows: Sequence[Row], how: Memorising, folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.chat_template = how.template or tokenizer.chat_template
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    started, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="efface-memorise-") as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_arguments(how, scratch),
            train_dataset=_conversations(rows),
            processing_class=tokenizer,
        )
        with contextlib.redirect_stdout(sys.stderr):  # where transformers prints its losses
            trainer.train()
    log = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # In the precision that it is loaded with: the file is what the benchmark's base is.
    trainer.model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {
        "base": fingerprint(base).digest,
        "rows": len(rows),
        "settings": asdict(how),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "loss_by_epoch": log,
    }
    # Last: a folder without it was interrupted and is trained again.
    (folder / "memorised.json").write_text(json.dumps(record, indent=1) + "\n")


def _conversations(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row.question}],
                "completion": [{"role": "assistant", "content": row.answer}],
            }
            for row in rows
        ]
    )


def _arguments(how: Memorising, scratch: str) -> SFTConfig:
    return SFTConfig(
        output_dir=scratch,
        num_train_epochs=how.epochs,
        per_device_train_batch_size=how.batch,
        learning_rate=how.learning_rate,
        warmup_steps=how.warmup_steps,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        optim="adamw_torch_fused",
        bf16=compute_dtype("cuda" if torch.cuda.is_available() else "cpu") == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        completion_only_loss=True,
        max_length=512,
        seed=how.seed,
        save_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        dataloader_pin_memory=False,
    )
