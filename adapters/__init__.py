"""Adapters: load a base, train one unlearning LoRA on it, and add LoRAs up as files.

Read `objectives/` (the losses), `logprobs.py` and `encode.py` (what they are functions of), `trainer.py`,
then `compose.py` (the exact stack) and `model.py` (bases, their precision and fingerprint).
"""

from .apart import initialise_null_space
from .checkpoint import Checkpoints
from .compose import Composed, Part, Stack, compose, parse_weight, plan
from .contrast import initialise_contrast
from .encode import (
    Batch,
    Encoded,
    Item,
    Message,
    collate,
    encode,
    encode_all,
    focus,
    prompt_ids,
    shorten,
)
from .errors import (
    AdapterError,
    BaseMismatch,
    CompositionError,
    Interrupted,
    InvalidAdapter,
    ModelError,
    ObjectiveError,
    TrainingError,
)
from .fetch import fetch_model
from .folder import AdapterFolder, LoraModule, delta, read_adapter
from .generate import greedy
from .logprobs import AnswerLogprobs, answer_logprobs, token_logprobs
from .lora import attach, detach, disabled, load, save
from .model import QUANTIZATIONS, Base, Fingerprint, Quantization, load_base, state_digest
from .objectives import OBJECTIVES, npo, retain_nll, simnpo
from .peft_config import AdapterConfig
from .probing import ProbeReport
from .reference import ReferenceCache
from .settings import Constraint, Stacking, StopRules, TrainSettings
from .tensors import digest_bytes, digest_file
from .trainer import train
from .truncate import Truncation, require_context
from .watch import StepReport, TrainResult

__all__ = [
    "OBJECTIVES",
    "QUANTIZATIONS",
    "AdapterConfig",
    "AdapterError",
    "AdapterFolder",
    "AnswerLogprobs",
    "Base",
    "BaseMismatch",
    "Batch",
    "Checkpoints",
    "Composed",
    "CompositionError",
    "Constraint",
    "Encoded",
    "Fingerprint",
    "Interrupted",
    "InvalidAdapter",
    "Item",
    "LoraModule",
    "Message",
    "ModelError",
    "ObjectiveError",
    "Part",
    "ProbeReport",
    "Quantization",
    "ReferenceCache",
    "Stack",
    "Stacking",
    "StepReport",
    "StopRules",
    "TrainResult",
    "TrainSettings",
    "TrainingError",
    "Truncation",
    "answer_logprobs",
    "attach",
    "collate",
    "compose",
    "delta",
    "detach",
    "digest_bytes",
    "digest_file",
    "disabled",
    "encode",
    "encode_all",
    "fetch_model",
    "focus",
    "greedy",
    "initialise_contrast",
    "initialise_null_space",
    "load",
    "load_base",
    "npo",
    "parse_weight",
    "plan",
    "prompt_ids",
    "read_adapter",
    "require_context",
    "retain_nll",
    "save",
    "shorten",
    "simnpo",
    "state_digest",
    "token_logprobs",
    "train",
]
