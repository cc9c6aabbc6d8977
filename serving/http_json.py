"""JSON over HTTP to an inference server that only an operator talks to: the part that clients of several share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from .errors import ServerError
from .tls import tls_context


class HttpJson:
    """Requests to ``url``, without proxies of the environment. Raises `ServerError`, which repeats no prompt."""

    def __init__(self, url: str, *, api_key: str | None, timeout: float) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(
                base_url=url,
                headers=headers,
                timeout=timeout,
                trust_env=False,
                verify=tls_context(),
            )
        except (httpx.InvalidURL, ValueError):
            raise ServerError(
                "expected a URL such as http://127.0.0.1:30000, got another; correct --url"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def status(self, path: str, timeout: float = 5.0) -> int:
        """The status of a GET; 0 when nobody answers."""
        try:
            return self._http.get(path, timeout=timeout).status_code
        except httpx.HTTPError:
            return 0

    def text(self, path: str) -> str:
        """What a GET gives."""
        return self._send("GET", path, None, (200,)).text

    def json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, fine: Sequence[int] = (200,)
    ) -> Any:
        """The JSON of an answer whose status is in ``fine``."""
        answer = self._send(method, path, body, fine)
        try:
            return answer.json()
        except ValueError:
            raise ServerError(
                f"expected JSON from {path}, got something else; is it the right server?"
            ) from None

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, fine: Sequence[int]
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ServerError(
                f"expected an answer from {path}, got {type(error).__name__}; is it running?"
            ) from None
        if answer.status_code not in fine:
            raise ServerError(
                f"expected {path} to work, got {answer.status_code}; see the server's log", answer.status_code
            )
        return answer
