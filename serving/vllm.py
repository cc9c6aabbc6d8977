"""A running vLLM over HTTP: the calls of `server.LoraServer`.

The server needs ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`` and ``--enable-lora``. Never ``load_inplace``: it is sticky
(vLLM then reads the files again at every step), and leaves blocks of the old weights in the prefix cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from .errors import ServerError, ServingError
from .headers import ADMIN_HEADER
from .server import Prompt
from .tls import tls_context

_INFO = re.compile(r"^vllm:lora_requests_info\{(?P<labels>[^}]*)\}\s+(?P<at>\S+)", re.M)
_STATS = "vllm:num_requests_running{"
"""There from the start, unless the server keeps no statistics (``--disable-log-stats``)."""
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class VllmServer:
    """A vLLM at ``url``, ``http://HOST:PORT`` or ``unix:/PATH`` (its ``--uds``).

    ``api_key``: its ``--api-key``; ``admin_token``: that of efface's middleware in it.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, admin_token: str | None = None, timeout: float = 60.0
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        if admin_token:
            headers[ADMIN_HEADER] = admin_token
        # No proxies from the environment: prompts and admin calls go to this server and nowhere else.
        unix = url.removeprefix("unix:") if url.startswith("unix:/") else None
        self._http = httpx.Client(
            base_url=_base(url) if unix is None else "http://server",
            headers=headers,
            timeout=timeout,
            trust_env=False,
            verify=tls_context(),
            transport=None if unix is None else httpx.HTTPTransport(uds=unix),
        )
        self.url = url

    def __enter__(self) -> VllmServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def alive(self) -> bool:
        """Whether ``/health`` answers 200 within five seconds."""
        try:
            return self._http.get("/health", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def loaded(self) -> Mapping[str, Path | None]:
        """Names and folders of its adapters, by ``/v1/models``: those with a parent, which the base has not."""
        found = self._json("GET", "/v1/models")
        try:
            cards = [card for card in found["data"] if card.get("parent") is not None]
            return {str(card["id"]): Path(card["root"]) if card.get("root") else None for card in cards}
        except (LookupError, TypeError, AttributeError):
            raise ServerError("expected a list of models from the server, got something else") from None

    def load(self, name: str, path: Path) -> None:
        """Load a folder under a new name. Raises `ServerError` with what vLLM says."""
        self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    def unload(self, name: str) -> None:
        """Forget the name; one that it has not is forgotten already."""
        self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name}, fine=(200, 404))

    def first_token_logprobs(
        self, name: str, prompts: Sequence[Prompt], top: int = 5
    ) -> list[Mapping[int, float]]:
        """The ``top`` likeliest next tokens of each prompt, in one batch."""
        asked = {
            "model": name,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": top,
            "return_tokens_as_token_ids": True,
        }
        found = self._json("POST", "/v1/completions", asked)
        try:
            choices = sorted(found["choices"], key=lambda choice: choice["index"])
            return [_by_id(choice["logprobs"]["top_logprobs"][0]) for choice in choices]
        except (LookupError, TypeError, ValueError, AttributeError):
            raise ServerError("expected log-probabilities by token id, got something else") from None

    def busy(self, name: str) -> bool:
        """Whether ``/metrics`` says that it runs or queues requests of ``name``; True when it does not say."""
        try:
            text = self._send("GET", "/metrics").text
        except ServerError:
            return True
        return _STATS not in text or name in running(text)

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            return self._send(method, path, body).json()
        except ValueError:
            raise ServerError(
                f"expected JSON from {path}, got something else; is this a vLLM server?"
            ) from None

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, fine: Sequence[int] = (200,)
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ServerError(
                f"expected an answer from {path}, got {type(error).__name__}; is it running?"
            ) from None
        if answer.status_code not in fine:
            raise ServerError(
                f"expected {path} to work, got {answer.status_code}{_said(answer)}", answer.status_code
            )
        return answer


def _base(url: str) -> httpx.URL:
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        found = httpx.URL("")
    if found.scheme not in ("http", "https") or not found.host:
        raise ServingError(
            "expected a URL such as http://127.0.0.1:8000 or unix:/run/vllm/socket, got another text; correct --url"
        )
    return found


def running(metrics: str) -> frozenset[str]:
    """The adapters that a vLLM runs or queues, by its Prometheus metrics: the newest of its info series."""
    found = [(float(match["at"]), dict(_LABEL.findall(match["labels"]))) for match in _INFO.finditer(metrics)]
    if not found:
        return frozenset()
    newest = max(found, key=lambda one: one[0])[1]
    both = [newest.get(kind, "") for kind in ("running_lora_adapters", "waiting_lora_adapters")]
    return frozenset(name.strip() for names in both for name in names.split(",") if name.strip())


def _by_id(tokens: Mapping[str, Any]) -> dict[int, float]:
    return {int(token.removeprefix("token_id:")): float(logprob) for token, logprob in tokens.items()}


def _said(answer: httpx.Response) -> str:
    """What the server says of an error, in one short line."""
    try:
        value = answer.json()
        text = str(value.get("error", {}).get("message", "")) if isinstance(value, dict) else ""
    except (ValueError, AttributeError):
        text = ""
    return f": {' '.join(text.split())[:300]}" if text else ""
