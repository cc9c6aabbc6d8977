"""From the shapes that rows come in to `Row`: TRL's formats, TOFU's, and plain documents.

TRL: prompt-completion and prompt-only, ``{"messages"}``, and preference rows; text or lists of messages. In a
preference row *rejected* is the answer to forget and *chosen* its alternate. TOFU: ``{"question", "answer"}``
with its paraphrased and perturbed columns. Documents: ``{"text"}``. docs/guide.md has the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, TypeGuard

from pydantic import ValidationError

from .rows import Row

SHAPES = ("prompt", "messages", "question", "text")
_TOFU = {
    "question": "prompt",
    "answer": "completion",
    "paraphrased_question": "paraphrases",
    "perturbed_answer": "perturbed",
}
_KEY = re.compile(r"[A-Za-z_][\w.-]{0,39}", re.ASCII)
_TYPE = re.compile(r"str|(tuple|function)\b.+")


def parse_row(data: object, name: str, *, forget: bool) -> tuple[Row | None, list[str]]:
    """The row that ``data`` (parsed JSON) is, or what is wrong with it, without a word of its text.

    ``name`` is its id unless it has one. ``forget`` rows need an answer; only they may be preference rows.
    """
    if not isinstance(data, dict):
        return None, [f"expected a JSON object, found {type(data).__name__}"]
    try:
        row = Row.model_validate({"id": name, **_canonical(data, forget)})  # type: ignore[arg-type]
    except ValidationError as error:
        return None, [_wrong(detail) for detail in error.errors(include_input=False, include_url=False)]
    except ValueError as error:
        return None, [str(error)]
    if forget and row.completion is None:
        return None, [
            "no answer: a forget row needs `completion` (or `answer`, or `rejected` beside `chosen`), "
            "the text to be forgotten"
        ]
    return row, []


def _canonical(data: dict[str, Any], forget: bool) -> dict[str, Any]:
    if "rejected" in data:
        return _from_preference(data, forget)
    shapes = [key for key in SHAPES if key in data]
    if len(shapes) != 1:
        raise ValueError(
            f"expected exactly one of {', '.join(f'`{shape}`' for shape in SHAPES)}, found "
            + (" and ".join(f"`{s}`" for s in shapes) or f"keys {[_shown(key) for key in sorted(data)[:8]]}")
        )
    match shapes[0]:
        case "messages":
            return _from_messages(data)
        case "question":
            return _with(
                {k: v for k, v in data.items() if k not in _TOFU},
                {new: data[old] for old, new in _TOFU.items() if old in data},
            )
        case "text":
            rest = {key: value for key, value in data.items() if key != "text"}
            return _with(rest, {"prompt": "", "completion": data["text"]})
        case _:
            return {
                **data,
                **{key: _answer(data[key], key) for key in ("completion", "chosen") if key in data},
            }


def _with(data: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Both together; a field that both give would be lost silently."""
    if twice := sorted(data.keys() & found.keys()):
        raise ValueError(f"`{twice[0]}` is given twice: by its name and by the row's shape")
    return {**found, **data}


def _from_messages(data: dict[str, Any]) -> dict[str, Any]:
    turns = data["messages"]
    rest = {key: value for key, value in data.items() if key != "messages"}
    if not _is_conversation(turns):
        raise ValueError("`messages` must be a list of objects with `role` and `content`")
    if turns[-1].get("role") != "assistant":
        return _with(rest, {"prompt": turns})
    return _with(rest, {"prompt": turns[:-1], "completion": _answer(turns[-1:], "messages")})


def _from_preference(data: dict[str, Any], forget: bool) -> dict[str, Any]:
    if not forget:
        raise ValueError(
            "a preference row (`chosen`, `rejected`) belongs in the forget set, where `rejected` is forgotten: "
            "for a row to keep give `prompt` and `completion`"
        )
    beside = sorted({"completion", "answer", *SHAPES[1:]} & data.keys())
    if "chosen" not in data or beside:
        raise ValueError(
            "beside `rejected` (the answer to forget) expected `chosen` (its alternate) and perhaps `prompt`, "
            f"found {f'`{beside[0]}`' if beside else 'no `chosen`'}"
        )
    rest = {key: value for key, value in data.items() if key not in ("prompt", "chosen", "rejected")}
    chosen, rejected = data["chosen"], data["rejected"]
    if "prompt" in data:
        prompt = data["prompt"]
    else:
        prompt, chosen, rejected = _implicit_prompt(chosen, rejected)
    answers = {"completion": _answer(rejected, "rejected"), "chosen": _answer(chosen, "chosen")}
    return {"prompt": prompt, **answers, **rest}


def _implicit_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """What both begin with, and what is left of each (TRL's `extract_prompt`, but no word is cut in two)."""
    if _is_conversation(chosen) and _is_conversation(rejected):
        shared = _alike(chosen, rejected)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        alike = _alike(chosen, rejected)
        shared = len(re.sub(r"\w*\Z", "", chosen[:alike]))
        shared -= chosen[:shared].endswith(" ")  # as in TRL, the space is the answer's
    else:
        raise ValueError(
            "without `prompt` expected `chosen` and `rejected` as two texts or two conversations"
        )
    if not shared:
        raise ValueError("`chosen` and `rejected` begin alike nowhere: give `prompt`")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _alike(left: Sequence[Any], right: Sequence[Any]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _answer(value: Any, key: str) -> Any:
    """An answer as text; TRL's conversational form of one is a list of the assistant's message."""
    if not _is_conversation(value):
        return value
    if len(value) != 1 or value[0].get("role") != "assistant" or value[0].keys() != {"role", "content"}:
        raise ValueError(
            f"`{key}`: expected text, or one message of the assistant with `role` and `content` alone; "
            "earlier turns belong in the prompt"
        )
    return value[0]["content"]


def _is_conversation(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _wrong(detail: Any) -> str:
    unknown = detail["type"] == "extra_forbidden"
    *parents, last = [*detail["loc"]] or [""]
    # pydantic also names the arms of a union (`prompt` is text or a conversation).
    parts = [part for part in parents if not _TYPE.fullmatch(str(part))]
    parts += [_shown(str(last))] if unknown else [] if _TYPE.fullmatch(str(last)) else [last]
    place = ".".join(str(part) for part in parts)
    return f"`{place}`: {detail['msg']}" if place else str(detail["msg"])


def _shown(key: str) -> str:
    """A key as messages may repeat it: one that is no name may be the text of a row."""
    return key if _KEY.fullmatch(key) else f"a key of {len(key)} characters"
