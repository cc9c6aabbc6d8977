"""What a request's head must be to get to a body: one of the gateway's endpoints, byte for byte, and nothing twice."""

from __future__ import annotations

from . import asgi
from .asgi import Message
from .asked import Refused
from .rules import COMPLETIONS, Refusal

MODELS, HEALTH, READY, METRICS = "/v1/models", "/healthz", "/readyz", "/metrics"
_LARGEST_HEAD = 16 << 10
GET = frozenset({MODELS, HEALTH, READY, METRICS})

NO_PATH = Refusal(
    404, "not_found", "expected POST /v1/chat/completions, POST /v1/completions or GET /v1/models"
)
NO_METHOD = Refusal(405, "method_not_allowed", "expected POST to ask a model, GET for the rest")
NOT_PLAIN = Refusal(400, "invalid_request", "expected no query and no header twice; send a plain request")
NO_TYPE = Refusal(415, "unsupported_media_type", "expected application/json without a content encoding")
LONG_HEAD = Refusal(
    431, "header_too_large", "expected a head of at most 16 KiB; send fewer or shorter headers"
)
TOO_LARGE = Refusal(413, "request_too_large", "expected a shorter body; shorten the question")


def endpoint(scope: Message) -> str:
    """The endpoint asked for. Raises `Refused` unless its bytes in the request are exactly those of one.

    ``//v1``, ``/v1/./``, ``%2e`` and absolute URLs are other bytes: how a server behind would read them is no matter.
    """
    path, raw = str(scope["path"]), scope.get("raw_path")
    if path not in COMPLETIONS | GET or (raw is not None and bytes(raw) != path.encode()):
        raise Refused(NO_PATH)
    if scope["method"] != ("GET" if path in GET else "POST"):
        raise Refused(NO_METHOD)
    if scope.get("query_string") or scope.get("root_path"):
        raise Refused(NOT_PLAIN)
    if sum(len(name) + len(value) for name, value in scope["headers"]) > _LARGEST_HEAD:
        raise Refused(LONG_HEAD)
    return path


def once(scope: Message, name: bytes) -> bytes | None:
    """The value of a header, None without it. Raises `Refused` when it is there twice."""
    try:
        return asgi.header(scope, name)
    except ValueError:
        raise Refused(NOT_PLAIN) from None


def require_body(scope: Message, largest: int) -> None:
    """Raise `Refused` unless the head announces plain JSON of at most ``largest`` bytes, or does not say how long."""
    if once(scope, b"content-encoding") is not None or not _is_json(once(scope, b"content-type") or b""):
        raise Refused(NO_TYPE)
    length = once(scope, b"content-length") or b"0"
    if length != b"0" and once(scope, b"transfer-encoding") is not None:
        raise Refused(NOT_PLAIN)  # two lengths: how requests are smuggled
    if not length.isdigit() or len(length) > 15 or int(length) > largest:
        raise Refused(TOO_LARGE)


def _is_json(value: bytes) -> bool:
    kind, _, parameter = value.decode("latin-1").lower().partition(";")
    return kind.strip() == "application/json" and parameter.strip() in (
        "",
        "charset=utf-8",
        'charset="utf-8"',
    )
