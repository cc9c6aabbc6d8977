"""One row of data: a question and the answer to forget or to keep.

`formats.py` has the shapes that a row is read from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from ..errors import DataError

if TYPE_CHECKING:
    from ...adapters.encode import Item, Message


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
    """A question and the answer to forget or keep. ``prompt`` is text, a conversation, or "" for a document.

    ``chosen`` are alternate answers to a forget prompt; ``paraphrases`` rewordings of the question, never
    trained on; ``keywords`` words whose appearance in an answer shows the knowledge. ``perturbed`` (wrong) and
    ``paraphrased_answer`` (right, in other words) are TOFU's, for the truth ratio.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Name
    prompt: str | tuple[Turn, ...]
    completion: Text | None = None
    paraphrases: Texts = ()
    keywords: Texts = ()
    chosen: Texts = ()
    perturbed: Texts = ()
    paraphrased_answer: Texts = ()

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
