"""What a user asked, read strictly: one JSON object that no other parser can read otherwise, written anew.

The server gets what is checked here and no byte of what came, so that a repeated name, a lenient parser or an unknown
field cannot make it take another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .asgi import dumped
from .rules import FIELDS, NO_MODEL, Refusal, parse_body

ANSWERED = FIELDS - {"priority"}
"""The fields of a request to the gateway: `rules.FIELDS`, but for the one that jumps the queue."""
_DEPTH = 32
_MOST = {"n": 16, "best_of": 16}
_MOST_PROMPTS = 64
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_PART = {"type", "text"}


class Refused(Exception):
    """A request that is not passed on."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked question. ``public``: the model's name as the user knows it."""

    public: str
    stream: bool
    fields: Mapping[str, Any]

    def body(self, name: str) -> bytes:
        """The JSON for the server, asking the adapter ``name``."""
        return dumped({**self.fields, "model": name})


def read(path: str, body: bytes) -> Asked:
    """The question in ``body`` to the endpoint ``path``. Raises `Refused`; what it says repeats nothing of the body."""
    try:
        fields = parse_body(body)
        _require_shallow(fields)
        dumped(fields)
    except (ValueError, RecursionError):
        raise _refused(
            "invalid_body",
            "expected one JSON object in UTF-8, without repeated names, NaN or 32 levels of nesting",
        ) from None
    public, stream = fields.get("model"), fields.get("stream", False)
    if not isinstance(public, str):
        raise Refused(NO_MODEL)
    if fields.keys() - ANSWERED:
        raise _refused(
            "unknown_field", "expected fields of the OpenAI API only; leave out what is a server's own"
        )
    if stream is not None and not isinstance(stream, bool):
        raise _refused("invalid_body", "expected stream to be true or false")
    _require_limits(fields)
    _require_question(path, fields)
    return Asked(public, bool(stream), fields)


def _require_question(path: str, fields: Mapping[str, Any]) -> None:
    chat = path.endswith("/chat/completions")
    if chat != ("messages" in fields) or chat == ("prompt" in fields):
        raise _refused("invalid_body", "expected messages for chat completions, and a prompt for completions")
    if not (_is_chat(fields["messages"]) if chat else _is_prompt(fields["prompt"])):
        raise _refused(
            "invalid_body",
            "expected text: messages of a known role with text only, or a prompt of text or token ids",
        )


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_message, cast("list[Any]", value)))


def _is_message(value: Any) -> bool:
    """Text only: a server fetches the URLs of images, audio and files, from where it stands."""
    if not isinstance(value, dict):
        return False
    message = cast("dict[str, Any]", value)
    content = message.get("content")
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    plain = content is None or isinstance(content, str) or (bool(parts) and all(map(_is_text, parts)))
    return plain and message.get("role") in _ROLES


def _is_text(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    part = cast("dict[str, Any]", value)
    return set(part) == _PART and part["type"] == "text" and isinstance(part["text"], str)


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str):
        return True
    if not isinstance(value, list) or not value:
        return False
    items = cast("list[Any]", value)
    many = len(items) <= _MOST_PROMPTS and all(isinstance(one, str) or _is_ids(one) for one in items)
    return _is_ids(items) or many


def _is_ids(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(type(one) is int and 0 <= one < 2**31 for one in cast("list[Any]", value))


def _require_limits(fields: Mapping[str, Any]) -> None:
    for name, most in _MOST.items():
        value = fields.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise _refused("invalid_body", f"expected {name} to be a whole number from 1 to {most}")


def _require_shallow(value: Any) -> None:
    """Raise ValueError for deep nesting: other parsers have less room than this one."""
    level: list[Any] = [value]
    for _ in range(_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (
                cast("dict[str, Any]", one).values() if isinstance(one, dict) else cast("list[Any]", one)
            )
        ]
        if not level:
            return
    raise ValueError("too deep")


def _refused(code: str, message: str) -> Refused:
    return Refused(Refusal(400, code, message))
