"""What may pass to an inference server, as a pure function of one request: everything else is refused.

Refused unless listed, never the other way round: servers grow endpoints and fields, and each new one (SGLang's
``lora_path``, LoRAX's ``adapter_id``, vLLM's ``kv_transfer_params``) is a new way to the base. Used by the gateway
and by the middleware inside vLLM (`efface.serving.middleware`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

COMPLETIONS = frozenset({"/v1/completions", "/v1/chat/completions"})
"""The endpoints that answer with a model: POST only."""
OPEN = frozenset({"/health", "/ping", "/version", "/metrics", "/v1/models"})
"""The endpoints without a model: GET and HEAD only."""
ADMIN = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""The endpoints of whoever holds the admin token: POST only."""
LARGEST_BODY = 8 << 20
"""Bytes."""

_ASKED = "model messages prompt suffix echo user metadata store service_tier priority cache_salt truncate_prompt_tokens"
_SHOWN = (
    "stream stream_options logprobs top_logprobs prompt_logprobs return_tokens_as_token_ids return_token_ids "
    "skip_special_tokens spaces_between_special_tokens include_stop_str_in_output"
)
_SAMPLED = (
    "max_tokens max_completion_tokens min_tokens temperature top_p top_k min_p n best_of seed stop stop_token_ids "
    "frequency_penalty presence_penalty repetition_penalty logit_bias ignore_eos reasoning_effort"
)
_FORMED = (
    "tools tool_choice parallel_tool_calls response_format add_special_tokens add_generation_prompt "
    "continue_final_message"
)
FIELDS = frozenset(f"{_ASKED} {_SHOWN} {_SAMPLED} {_FORMED}".split())
"""The fields of a request that may pass: none of them chooses weights, files, code or a template."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request does not pass: an HTTP status, a code for programs, and words that repeat nothing of it."""

    status: int
    code: str
    message: str

    def body(self) -> bytes:
        """The answer in the form of OpenAI's errors."""
        said = {"message": self.message, "type": "invalid_request_error", "param": None, "code": self.code}
        return json.dumps({"error": said}).encode()


NO_MODEL = Refusal(
    404, "model_not_found", "expected the name of a model that is served here; ask GET /v1/models for them"
)
_NO_PATH = Refusal(
    404, "not_found", "expected an endpoint that is open here: chat completions, completions or models"
)
_NO_METHOD = Refusal(
    405, "method_not_allowed", "expected another method: POST to ask a model, GET for the rest"
)
_TOO_LARGE = Refusal(413, "request_too_large", f"expected a body of at most {LARGEST_BODY} bytes; shorten it")
_NO_OBJECT = Refusal(
    400,
    "invalid_body",
    "expected one JSON object in UTF-8 without repeated names; send it as the OpenAI API has it",
)
_NO_FIELD = Refusal(
    400, "unknown_field", "expected fields of the OpenAI API only; leave out what is a server's own"
)


def refused(
    path: str, method: str, body: bytes, *, serves: Callable[[str], bool], largest: int = LARGEST_BODY
) -> Refusal | None:
    """Why this request must not reach the server; None where it may.

    ``path`` is decoded and without a query, as routers compare it. ``serves``: whether a model of this name may be
    asked; it is asked about texts only. Admin endpoints are refused here: who holds the token does not come this way.
    """
    if path in OPEN:
        return None if method in ("GET", "HEAD") and not body else _NO_METHOD
    if path not in COMPLETIONS:
        return _NO_PATH
    if method != "POST":
        return _NO_METHOD
    if len(body) > largest:
        return _TOO_LARGE
    return _refused_body(body, serves)


def parse_body(body: bytes) -> Mapping[str, Any]:
    """The object in ``body``, read so that no other parser can read another ``model`` from it. Raises ValueError."""
    found = json.loads(body.decode("utf-8"), object_pairs_hook=_unrepeated, parse_constant=_no_constant)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _refused_body(body: bytes, serves: Callable[[str], bool]) -> Refusal | None:
    try:
        asked = parse_body(body)
    except (ValueError, RecursionError):
        return _NO_OBJECT
    name = asked.get("model")
    if not isinstance(name, str) or not serves(name):
        return NO_MODEL
    return _NO_FIELD if asked.keys() - FIELDS else None


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _no_constant(_: str) -> Any:
    raise ValueError("NaN or infinity")
