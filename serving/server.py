"""The little that efface asks of an inference server that holds LoRA adapters.

Implemented for vLLM in `vllm.py`; a server of another kind needs these five calls and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

Prompt = tuple[int, ...]
"""Token ids, special tokens included: what the model sees, whatever the server's tokenizer or chat template is."""


class LoraServer(Protocol):
    """A running inference server. Every call raises `ServerError`, also when nobody answers."""

    def alive(self) -> bool:
        """Whether it answers its health check; False instead of an error when it does not."""
        ...

    def loaded(self) -> Mapping[str, Path | None]:
        """The adapters that it has by name, with the folder they came from (None where it does not say)."""
        ...

    def load(self, name: str, path: Path) -> None:
        """Load the folder under a name that is not in use, never in place; ``path`` as the server sees it."""
        ...

    def unload(self, name: str) -> None:
        """Forget the name. No error when it has none such."""
        ...

    def first_token_logprobs(
        self, name: str, prompts: Sequence[Prompt], top: int = 5
    ) -> list[Mapping[int, float]]:
        """Natural log-probabilities of at least the ``top`` likeliest next tokens, by token id, for each prompt."""
        ...

    def busy(self, name: str) -> bool:
        """Whether it still runs or queues requests of this adapter; True where it cannot say."""
        ...
