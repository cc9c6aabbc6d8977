"""A running SGLang over HTTP: the calls of `server.LoraServer`. Tested against a stub of its documented API only.

By https://docs.sglang.io/docs/advanced_features/lora and .../basic_usage/sampling_params (read in November 2026); no
SGLang ran here. It needs ``--enable-lora`` with ``--max-lora-rank`` and ``--lora-target-modules``, and
``--enable-metrics`` for `SglangServer.busy`. Its OpenAI API takes ``base:adapter`` as the model and a ``lora_path``
field, so that efface's gateway, which speaks vLLM's way, is not for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import ServerError
from .http_json import HttpJson
from .server import Prompt

_GAUGE = re.compile(r"^sglang:num_(?:running|queue)_reqs(?:\{[^}]*\})?\s+(\S+)", re.M)


class SglangServer:
    """An SGLang at ``url``. ``api_key``: its ``--api-key`` or admin key."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 60.0) -> None:
        self._http = HttpJson(url, api_key=api_key, timeout=timeout)
        self.url = url

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def alive(self) -> bool:
        """Whether ``/health`` answers 200 within five seconds."""
        return self._http.status("/health") == 200

    def loaded(self) -> Mapping[str, Path | None]:
        """Names and folders of its adapters, by ``/v1/models``: the cards with a parent."""
        found = self._http.json("GET", "/v1/models")
        try:
            cards = [card for card in found["data"] if card.get("parent") is not None]
            return {str(card["id"]): Path(card["root"]) if card.get("root") else None for card in cards}
        except (LookupError, TypeError, AttributeError):
            raise ServerError("expected a list of models from the server, got something else") from None

    def load(self, name: str, path: Path) -> None:
        """Load a folder under a new name: one that is loaded is refused by SGLang."""
        self._done("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    def unload(self, name: str) -> None:
        """Forget the name, once SGLang has finished its requests; one that it has not is forgotten already."""
        if name in self.loaded():
            self._done("/unload_lora_adapter", {"lora_name": name})

    def first_token_logprobs(
        self, name: str, prompts: Sequence[Prompt], top: int = 5
    ) -> list[Mapping[int, float]]:
        """The ``top`` likeliest next tokens of each prompt, in one batch."""
        asked = {
            "input_ids": [list(prompt) for prompt in prompts],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "top_logprobs_num": top,
            "lora_path": [name] * len(prompts),
        }
        found = self._http.json("POST", "/generate", asked)
        try:
            pairs = zip(found, prompts, strict=True)
            rows = [one["meta_info"]["output_top_logprobs"][0] for one, _ in pairs]
            return [{int(token): float(logprob) for logprob, token, *_ in row} for row in rows]
        except (LookupError, TypeError, ValueError):
            raise ServerError("expected log-probabilities by token id, got something else") from None

    def busy(self, name: str) -> bool:  # noqa: ARG002 - its metrics do not tell adapters apart
        """Whether ``/metrics`` says that it runs or queues any request; True when it does not say."""
        try:
            counts = [float(count) for count in _GAUGE.findall(self._http.text("/metrics"))]
        except (ServerError, ValueError):
            return True
        return not counts or any(counts)

    def _done(self, path: str, body: Mapping[str, str]) -> None:
        found = self._http.json("POST", path, body)
        if not isinstance(found, dict) or found.get("success") is not True:
            raise ServerError(f"expected {path} to succeed, got a refusal; see the server's log")
