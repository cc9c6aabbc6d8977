"""Our DPO and IPO against the losses that TRL's `DPOTrainer` computes for the same batch of a tiny random Llama."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from efface.adapters import AnswerLogprobs, Batch, answer_logprobs, attach, disabled
from efface.adapters.objectives import dpo, ipo

PAIRS = {
    "prompt": ["who wrote hamlet", "what is the capital of tokyo"],
    "chosen": [" a city", " paris in the play and a city"],
    "rejected": [" the author potter and rowling", " macbeth"],
}


def move(model: torch.nn.Module) -> None:
    """Random values in the policy's adapter and not in TRL's reference copy of it."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and ".default." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))


def trainer(tiny: Path, folder: Path, loss_type: str, beta: float) -> tuple[DPOTrainer, dict[str, Any]]:
    """A trainer on a LoRA that is not its reference, and one collated batch: both chosen, then both rejected."""
    model = attach(AutoModelForCausalLM.from_pretrained(tiny), rank=4, alpha=8)
    config = DPOConfig(
        output_dir=str(folder),
        loss_type=[loss_type],
        beta=beta,
        per_device_train_batch_size=2,
        max_length=None,
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    made = DPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_dict(PAIRS), processing_class=tokenizer
    )
    # Only now: TRL has copied the adapter, which did nothing then, as its reference.
    move(made.model.eval())
    return made, next(iter(made.get_train_dataloader()))


def ours(model: Any, batch: dict[str, Any]) -> tuple[AnswerLogprobs, AnswerLogprobs]:
    """The same token ids under the policy and, without gradients, under the reference."""
    rows = Batch(batch["input_ids"], batch["attention_mask"], batch["completion_mask"].bool())
    with torch.no_grad(), disabled(model):
        reference = answer_logprobs(model, rows)
    return answer_logprobs(model, rows), reference


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_our_dpo_is_two_over_beta_times_trls(tiny_llama: Path, tmp_path: Path, beta: float) -> None:
    made, batch = trainer(tiny_llama, tmp_path, "sigmoid", beta)
    theirs = made.compute_loss(made.model, batch)
    policy, reference = ours(made.model, batch)
    (chosen, rejected), (ref_chosen, ref_rejected) = policy.sums.chunk(2), reference.sums.chunk(2)
    loss = dpo(rejected, ref_rejected, chosen, ref_chosen, beta=beta)
    assert abs((chosen - ref_chosen) - (rejected - ref_rejected)).min() > 0.01  # the policies do differ
    torch.testing.assert_close(loss * beta / 2, theirs, rtol=0, atol=1e-5)


def test_our_ipo_of_mean_log_probabilities_is_trls(tiny_llama: Path, tmp_path: Path) -> None:
    made, batch = trainer(tiny_llama, tmp_path, "ipo", 0.1)
    theirs = made.compute_loss(made.model, batch)
    policy, reference = ours(made.model, batch)
    means = [rows.sums / rows.lengths for rows in (policy, reference)]
    (chosen, rejected), (ref_chosen, ref_rejected) = (mean.chunk(2) for mean in means)
    loss = ipo(rejected, ref_rejected, chosen, ref_chosen, tau=0.1)
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-5)
