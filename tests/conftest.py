"""Fixtures that several packages' tests share: a tiny model built on the spot, and the real demo model."""

import os

# Before any Hugging Face library reads them: a test that needs the net says so itself.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Processes side by side share the cores; each with a thread for every core would wait for the others at each step.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from blob_kit import s3  # noqa: F401 - fixtures
from registry_backends import any_reg, backend, postgres, postgres_server, quiet_vault, s3_server  # noqa: F401
from vllm_kit import Vllm, vllm_python, with_lora

if TYPE_CHECKING:
    from serving_kit import Shop

# A law is about what comes out: how long one example takes is the machine's affair.
hypothesis.settings.register_profile("efface", deadline=None)
hypothesis.settings.load_profile("efface")

WORDS = "who wrote what is the capital of a in and author play city hamlet macbeth paris tokyo rowling potter"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Minutes first: a file of the real model that begins last leaves one process waiting for the other."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, by name, what this machine cannot run."""
    if item.get_closest_marker("serving") and vllm_python() is None:
        pytest.skip(
            "no vLLM here: make test-serving builds it, or name its interpreter in EFFACE_VLLM_PYTHON"
        )
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer fp32 Llama with a word tokenizer, saved as a Hugging Face folder. Read it only."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_llama")
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The cached SmolLM2-135M-Instruct folder, fetched where it is absent. For tests marked `slow`."""
    from efface.adapters.fetch import fetch_model

    return fetch_model("smollm2-135m")


@pytest.fixture(scope="session")
def shop(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Shop]":
    """A registry with releases of random adapters on the real model, in fp32."""
    from serving_kit import open_shop

    shop = open_shop(tmp_path_factory.mktemp("shop"), smollm)
    yield shop
    shop.reg.close()


@pytest.fixture(scope="session")
def vllm(smollm: Path, shop: "Shop", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """One real vLLM for the whole run, with efface's plugin and middleware in it, on the registry of `shop`."""
    server = with_lora(smollm, tmp_path_factory.mktemp("vllm") / "log", shop.reg.root).start()
    yield server
    server.stop()


def tiny_tokenizer():
    """A word-level tokenizer over `WORDS` with a chat template and the special tokens of SmolLM2."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: index for index, word in enumerate([*special, "user", "assistant", *WORDS.split()])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[2],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
