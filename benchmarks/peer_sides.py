"""One side of `benchmarks/peer.py` in a process of its own: `python peer_sides.py JOB.json` prints one JSON line.

Each step sees the same rows, in whatever order the side's own trainer shuffles them: padding is the same at each.
"""

import contextlib
import importlib
import json
import resource
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Marks = list[tuple[float, float]]
"""Wall and CPU seconds at the same point of consecutive steps."""

# Imports that the peer's packages make and its NPO path never uses; left alone where they are installed.
STUBS = {"omegaconf": ("DictConfig",), "deepspeed": ()}


def import_peer(root: str) -> list[str]:
    """Put the peer's packages on the path; returns which absent imports were stubbed."""
    stubbed = [name for name in STUBS if not _installed(name)]
    for name in stubbed:
        module = types.ModuleType(name)
        # With a spec and without a distribution, "is it available?" is answered with no.
        module.__spec__ = ModuleSpec(name, None)
        for attribute in STUBS[name]:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module
    # After ours: its `evals`, `data`, `model` and `trainer` are top-level names.
    sys.path.append(str(Path(root) / "src"))
    return stubbed


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def prepare(job: Job) -> Job:
    """Token ids and labels of TOFU rows as the peer's own dataset makes them: each round's, and all of forget01."""
    import_peer(job["peer"])
    from data.qa import QADataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(job["model"])
    template = tokenizer.apply_chat_template
    # transformers 5 answers tokenize=True with a mapping; the peer is written for the list of 4.45.
    tokenizer.apply_chat_template = lambda *a, **k: template(*a, **{"return_dict": False, **k})

    def rows(split: str, indices: list[int] | None = None) -> list[Job]:
        source = {
            "path": "json",
            "data_files": str(Path(job["data"]) / f"{split}.json"),
            "split": "train",
            "cache_dir": job["scratch"],
        }
        found = QADataset(source, {"apply_chat_template": True}, tokenizer)
        chosen = range(len(found)) if indices is None else indices
        return [{key: found[i][key].tolist() for key in ("input_ids", "labels")} for i in chosen]

    batch, rounds = job["batch"], job["rounds"]
    # A prime stride: rows of several authors and lengths in one batch.
    hands = [[(37 * (r * batch + i)) % 400 for i in range(batch)] for r in range(rounds)]
    flat = [i for hand in hands for i in hand]
    forget, retain = rows("forget10", flat), rows("retain90", flat)
    cut = [slice(r * batch, (r + 1) * batch) for r in range(rounds)]
    return {
        "rounds": [{"forget": forget[c], "retain": retain[c]} for c in cut],
        "reference": rows("forget01"),
        "pad_id": tokenizer.pad_token_id,
    }


def peer(job: Job) -> Job:
    """open-unlearning's NPO: its trainer, loss, collator and settings; full fine-tuning, deep-copied reference."""
    stubbed = import_peer(job["peer"])
    import torch
    from data.collators import DataCollatorForSupervisedDataset  # pyright: ignore[reportMissingImports]
    from trainer.unlearn.npo import NPO  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments

    class CurrentNPO(NPO):
        """The peer's trainer; transformers 5 passes ``num_items_in_batch`` to a signature of 4.45."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: object) -> Any:
            loss = super().compute_loss(model, inputs, return_outputs)
            losses.append(float(loss.detach()))
            return loss

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            mark(marks)

    marks, losses = Marks(), []
    before = peak_kib()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
    items = [
        {side: {key: torch.tensor(value) for key, value in row.items()} for side, row in pair.items()}
        for pair in (
            dict(zip(("forget", "retain"), both, strict=True))
            for both in zip(job["forget"], job["retain"], strict=True)
        )
    ]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = CurrentNPO(
            beta=0.1,
            alpha=1.0,
            gamma=1.0,
            retain_loss_type="NLL",
            model=model,
            train_dataset=items,
            data_collator=DataCollatorForSupervisedDataset(AutoTokenizer.from_pretrained(job["model"])),
            args=TrainingArguments(
                output_dir=scratch,
                per_device_train_batch_size=len(items),
                max_steps=job["steps"],
                learning_rate=1e-5,
                weight_decay=0.01,
                bf16=True,
                use_cpu=True,
                optim="adamw_torch",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            ),
            callbacks=[Clock()],
        )
        trainer.train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    extra = {"stubbed": stubbed, "attention": model.config._attn_implementation}
    return {**figures(marks, before, losses[0], trained), **extra}


def ours(job: Job) -> Job:
    """efface's NPO on a LoRA of rank 16 on every linear layer; then the reference over forget01, timed apart."""
    from efface.adapters import Encoded, answer_logprobs, attach, collate, disabled, load_base

    def encoded(row: Job, name: str) -> Encoded:
        ids, start = row["input_ids"], row["labels"].count(-100)
        return Encoded(name, tuple(ids[:start]), tuple(ids[start:]))

    marks, losses = Marks(), []
    before = peak_kib()
    quantization, _, checkpointing = job["side"].partition("-")
    model = attach(load_base(job["model"], quantization).model)
    forget = [encoded(row, f"forget-{i}") for i, row in enumerate(job["forget"])]
    retain = [encoded(row, f"retain-{i}") for i, row in enumerate(job["retain"])]

    def on_step(report: Any) -> None:
        losses.append(report.loss)
        mark(marks)

    train_ours(model, forget, retain, job, bool(checkpointing), on_step)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = figures(marks, before, losses[0], trained)
    rows = [encoded(row, f"reference-{i}") for i, row in enumerate(job["reference"])]
    started = time.perf_counter(), time.process_time()
    import torch

    with torch.no_grad(), disabled(model):
        for i in range(0, len(rows), 16):
            answer_logprobs(model, collate(rows[i : i + 16], job["pad_id"]))
    spent = time.perf_counter() - started[0], time.process_time() - started[1]
    return {**found, "reference": {"rows": len(rows), "wall_s": spent[0], "cpu_s": spent[1]}}


def train_ours(
    model: Any, forget: Any, retain: Any, job: Job, checkpointing: bool, on_step: Callable[[Any], None]
) -> None:
    """The one call of efface's trainer."""
    from efface.adapters import TrainSettings, train

    settings = TrainSettings(
        "npo",
        {"beta": 0.1},
        learning_rate=1e-4,
        steps=job["steps"],
        forget_batch=len(forget),
        retain_batch=len(retain),
        gradient_checkpointing=checkpointing,
    )
    train(model, forget, retain, settings, pad_id=job["pad_id"], on_step=on_step)


def mark(marks: Marks) -> None:
    marks.append((time.perf_counter(), time.process_time()))


def peak_kib() -> int:
    """Peak resident set so far, KiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def figures(marks: Marks, before: int, first_loss: float, trained: int) -> Job:
    """Seconds between consecutive marks after the first two steps, and memory; ``before``: after the imports."""
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks[1:])]
    peak = peak_kib()
    return {
        "wall_s": [wall for wall, _ in steps],
        "cpu_s": [cpu for _, cpu in steps],
        "peak_gib": peak / 2**20,
        "above_imports_gib": (peak - before) / 2**20,
        "first_loss": first_loss,
        "trained_parameters": trained,
    }


def main() -> None:
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    side = {"prepare": prepare, "peer": peer}.get(job["side"], ours)
    with contextlib.redirect_stdout(sys.stderr):
        # Both sides' libraries are in memory before the baseline is taken.
        for name in ("torch", "transformers", "peft", "bitsandbytes", "datasets", "torch._dynamo"):
            importlib.import_module(name)
        found = side(job)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
