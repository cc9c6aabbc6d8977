"""A running LoRAX over HTTP: the calls of `server.LoraServer`. Tested against a stub of its documented API only.

By its OpenAPI document (docs/reference/openapi.json of predibase/lorax, read in November 2026); no LoRAX ran here.
LoRAX has no loading and no names: a request brings the folder of its adapter along (``adapter_id`` with
``adapter_source`` ``local``), and one without any is answered by the base. What it does not say is not made up:

- names are this client's own, and are lost with it; the controller then loads again;
- it tells the log-probability of the token it chose only, and takes text only: the probe compares one token per
  prompt, after decoding it here;
- it does not say whose requests it runs: `LoraxServer.busy` is always True, and the controller deletes no folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ServerError
from .http_json import HttpJson
from .server import Prompt


class LoraxServer:
    """A LoRAX at ``url``. ``decode``: the text of token ids by the base's tokenizer, special tokens included."""

    def __init__(
        self,
        url: str,
        *,
        decode: Callable[[Prompt], str],
        api_key: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._http = HttpJson(url, api_key=api_key, timeout=timeout)
        self._decode = decode
        self._paths: dict[str, Path] = {}
        self.url = url

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def alive(self) -> bool:
        """Whether ``/health`` answers 200 within five seconds."""
        return self._http.status("/health") == 200

    def loaded(self) -> Mapping[str, Path | None]:
        """What this client has loaded. Raises `ServerError` when the server does not answer."""
        self._http.json("GET", "/info")
        return dict(self._paths)

    def load(self, name: str, path: Path) -> None:
        """Ask one token of the folder, which brings it into memory. Raises `ServerError` when that fails."""
        if name in self._paths:
            raise ServerError("expected a new name, got one that is loaded; a version is never replaced")
        self._generate(path, "a")
        self._paths[name] = path

    def unload(self, name: str) -> None:
        """Forget the name; LoRAX evicts the adapter when it needs the room."""
        self._paths.pop(name, None)

    def first_token_logprobs(
        self, name: str, prompts: Sequence[Prompt], top: int = 5
    ) -> list[Mapping[int, float]]:
        """The likeliest next token of each prompt: LoRAX says no more of them, whatever ``top``."""
        if top < 1 or name not in self._paths:
            raise ServerError("expected a name that is loaded and at least one token, got another")
        return [self._generate(self._paths[name], self._decode(prompt)) for prompt in prompts]

    def busy(self, name: str) -> bool:  # noqa: ARG002 - the protocol's
        """True: LoRAX does not say."""
        return True

    def _generate(self, path: Path, text: str) -> dict[int, float]:
        parameters: dict[str, Any] = {
            "adapter_id": str(path),
            "adapter_source": "local",
            "details": True,
            "max_new_tokens": 1,
        }
        found = self._http.json("POST", "/generate", {"inputs": text, "parameters": parameters})
        try:
            token = found["details"]["tokens"][0]
            return {int(token["id"]): float(token["logprob"])}
        except (LookupError, TypeError, ValueError):
            raise ServerError(
                "expected the details of one token from /generate, got something else"
            ) from None
