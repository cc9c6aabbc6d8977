"""One row of data and the formats it is read from.

A JSONL line is one of: TRL prompt-completion ``{"prompt", "completion"}``; TRL conversational
``{"messages": [{"role", "content"}, …]}``, the last turn being the assistant's; TOFU's ``{"question",
"answer"}``; a plain document ``{"text"}``. Optional beside them: ``id``, ``paraphrases`` (in-scope rewordings
of the question, never trained on), ``keywords`` (words whose appearance in an answer shows the knowledge),
``chosen`` and ``perturbed``. Retain and neighbour rows may leave the answer out: the base then answers itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ..errors import DataError

if TYPE_CHECKING:
    from ...adapters.encode import Item, Message

MAX_LINE_BYTES = 1_000_000
_KEY = re.compile(r"[A-Za-z_][\w.-]{0,39}", re.ASCII)
_TYPE = re.compile(r"str|(tuple|function)\b.+")


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_name(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _says_something(text: str) -> str:
    if not text.isspace():
        return text
    raise ValueError("expected some text, found white space alone")


def _on_one_line(text: str) -> str:
    if text.isprintable():
        return text
    raise ValueError("expected a short name on one line")


Text = Annotated[str, Field(min_length=1), AfterValidator(_says_something)]
# Ids stand in audit reports and messages, where no text of a row may.
Name = Annotated[Text, BeforeValidator(_as_name), Field(max_length=300), AfterValidator(_on_one_line)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_list)]


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Text

    def message(self) -> Message:
        """This turn as the tokenizers take it."""
        return {"role": self.role, "content": self.content}


class Row(BaseModel):
    """A question and the answer to forget or keep. ``prompt`` is text, a conversation, or "" for a document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Name
    prompt: str | tuple[Turn, ...]
    completion: Text | None = None
    paraphrases: Texts = ()
    keywords: Texts = ()
    chosen: Texts = ()
    perturbed: Texts = ()

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Row:
        if self.prompt == ():
            raise ValueError("a conversation needs a user turn before the answer")
        if not self.prompt and self.completion is None:
            raise ValueError("a row needs a prompt, a completion, or both")
        return self

    @property
    def question(self) -> str:
        """The prompt as text: the last turn of a conversation."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content

    def item(self, completion: str | None = None) -> Item:
        """This row for training or scoring, with ``completion`` in place of its own answer if given."""
        answer = self.completion if completion is None else completion
        if answer is None:
            raise DataError([f"row {self.id!r} has no completion and none was given for it"])
        prompt = self.prompt if isinstance(self.prompt, str) else tuple(t.message() for t in self.prompt)
        return _item_type()(self.id, prompt, answer, self.keywords)

    def paraphrased(self) -> list[Item]:
        """One item per paraphrase of the question, with the same answer."""
        answer, item = self.completion or "", _item_type()
        return [
            item(f"{self.id}/p{i}", text, answer, self.keywords) for i, text in enumerate(self.paraphrases, 1)
        ]


def _item_type() -> type[Item]:
    # Opening a request reads rows and needs no model: torch is imported when rows become items.
    from ...adapters.encode import Item

    return Item


def row_to_json(row: Row) -> dict[str, Any]:
    """Plain JSON of ``row`` without its empty fields; `row_from_json` reads it back."""
    return row.model_dump(mode="json", exclude_defaults=True)


def row_from_json(data: dict[str, Any]) -> Row:
    """Read what `row_to_json` wrote."""
    return Row.model_validate(data)


def read_rows(path: Path, *, answers_required: bool, name: str | None = None) -> tuple[Row, ...]:
    """Every row of a JSONL file. Rows without ``id`` are named ``<name>-<line>``; ``name`` is the file's stem.

    Raises :class:`DataError` with every bad line at once: file, line, what was expected, what came. The
    message never repeats a row's text (it may be what must be forgotten).
    """
    lines = _lines(path)
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in lines:
        row, wrong = _read_line(line, f"{name or path.stem}-{number}", answers_required)
        problems += [f"{path}:{number}: {what}" for what in wrong]
        rows += [row] if row else []
    problems += _duplicates(path, rows)
    if not rows and not problems:
        problems = [f"{path}: no rows: expected JSON lines such as " + '{"prompt": "…", "completion": "…"}']
    if problems:
        raise DataError(problems)
    return tuple(rows)


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError([f"{path}: expected UTF-8 text, byte {error.start} is not"]) from None
    except OSError as error:
        raise DataError([f"{path}: cannot be read: {error.strerror}. Expected a JSONL file"]) from None
    return [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _read_line(line: str, name: str, answers_required: bool) -> tuple[Row | None, list[str]]:
    if len(line.encode()) > MAX_LINE_BYTES:
        return None, [f"a line of {len(line.encode())} bytes: expected at most {MAX_LINE_BYTES}"]
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return None, [f"not JSON{where}: expected one JSON object per line"]
    if not isinstance(data, dict):
        return None, [f"expected a JSON object, found {type(data).__name__}"]
    try:
        row = Row.model_validate({"id": name, **_canonical(data)})  # type: ignore[arg-type]
    except ValidationError as error:
        return None, [_wrong(detail) for detail in error.errors(include_input=False, include_url=False)]
    except ValueError as error:
        return None, [str(error)]
    if answers_required and row.completion is None:
        return None, ["no answer: a forget row needs `completion` (or `answer`), the text to be forgotten"]
    return row, []


def _canonical(data: dict[str, Any]) -> dict[str, Any]:
    data = dict(data)
    shapes = [key for key in ("prompt", "messages", "question", "text") if key in data]
    if len(shapes) != 1:
        raise ValueError(
            "expected exactly one of `prompt`, `messages`, `question`, `text`, found "
            + (" and ".join(f"`{s}`" for s in shapes) or f"keys {[_shown(key) for key in sorted(data)[:8]]}")
        )
    match shapes[0]:
        case "messages":
            return _from_messages(data)
        case "question":
            renames = {"question": "prompt", "answer": "completion", "paraphrased_question": "paraphrases"}
            renames["perturbed_answer"] = "perturbed"
            return {renames.get(k, k): v for k, v in data.items() if k != "paraphrased_answer"}
        case "text":
            return {"prompt": "", "completion": data.pop("text"), **data}
        case _:
            return data


def _from_messages(data: dict[str, Any]) -> dict[str, Any]:
    turns = data.pop("messages")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
        raise ValueError("`messages` must be a list of objects with `role` and `content`")
    last = turns[-1]
    if last.get("role") == "assistant":
        return {"prompt": turns[:-1], "completion": last.get("content"), **data}
    return {"prompt": turns, **data}


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


def _duplicates(path: Path, rows: list[Row]) -> list[str]:
    seen: dict[str, str] = {}
    asked: dict[tuple[str, str | None], str] = {}
    problems: list[str] = []
    for row in rows:
        if row.id in seen:
            problems.append(f"{path}: id {row.id!r} is used twice: expected each id once")
        key = (str(row.prompt), row.completion)
        if key in asked:
            problems.append(
                f"{path}: rows {asked[key]!r} and {row.id!r} are the same: expected each row once"
            )
        seen[row.id] = asked[key] = row.id
    return problems
