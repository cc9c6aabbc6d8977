"""Which adapters are compacted, and on which rows a distillation compares student and stack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedModel

from ..adapters import Item, encode_all
from ..adapters.encode import Encoded
from ..registry import Composition, Registry, active_release, adapter_for_request, get_adapter
from ..registry import compose as composition_of
from ..registry.compactions import beneath, everything
from .bench import Bench, ask, own_answers
from .data import RequestData
from .errors import RequestError
from .prepare import kept_rows, scope_of, telling
from .progress import Progress
from .recipe import Recipe
from .release import require_in_force

Told = tuple[Item, bool]
"""A question with an answer, and whether the answer has an end."""
SAMPLE = 64
"""Rows of a role on which the KL in a compaction's manifest is measured, evenly spread."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What the student learns to answer as the stack does."""

    forget: tuple[Encoded, ...]
    retain: tuple[Encoded, ...]
    neighbour: tuple[Encoded, ...]

    @property
    def every(self) -> tuple[Encoded, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((*self.forget, *self.retain, *self.neighbour)))

    def sampled(self) -> dict[str, tuple[Encoded, ...]]:
        """At most `SAMPLE` of each role."""
        roles = {"forget": self.forget, "retain": self.retain, "neighbour": self.neighbour}
        return {
            role: tuple(some[i * len(some) // SAMPLE] for i in range(SAMPLE)) if len(some) > SAMPLE else some
            for role, some in roles.items()
        }


def to_compact(registry: Registry, requests: Sequence[str], channel: str | None) -> Composition:
    """The adapters of ``requests``, or what ``channel`` serves (of them, where some are named), as a composition.

    Raises `RequestError` for an adapter that forgets other requests too, or that was trained on one not among them.
    """
    if not requests and channel is None:
        raise RequestError("expected requests or a channel to compact, got neither: name some")
    wanted = set(requests)
    if channel is None:
        found = [adapter_for_request(registry, request) for request in sorted(wanted)]
        weights = {adapter.digest: "1" for adapter in found}
        base, quantization = found[0].base, found[0].quantization
    else:
        served = active_release(registry, channel).composition
        base, quantization = served.base, served.quantization
        weights = {part.adapter: part.weight for part in served.parts if _of(registry, part.adapter, wanted)}
    held = {request for adapter in weights for request in get_adapter(registry, adapter).requests}
    if wanted and held != wanted:
        lacking, more = sorted(wanted - held), sorted(held - wanted)
        raise RequestError(
            f"expected adapters of the requests named alone, got {'none of ' + ', '.join(lacking) if lacking else ''}"
            f"{'some of ' + ', '.join(more) + ' too: name those as well' if more else ''}"
        )
    require_in_force(registry, sorted(held))
    _require_one_base(registry, weights)
    _require_whole(registry, weights)
    return composition_of(base, quantization, weights.items())


def _of(registry: Registry, adapter: str, wanted: set[str]) -> bool:
    return not wanted or bool(wanted & set(get_adapter(registry, adapter).requests))


def _require_one_base(registry: Registry, adapters: Iterable[str]) -> None:
    on = {
        f"{one.base} at {one.quantization}": one.digest
        for one in (get_adapter(registry, adapter) for adapter in sorted(adapters))
    }
    if len(on) > 1:
        (base, first), (other, second) = sorted(on.items())[:2]
        raise RequestError(
            f"expected adapters on one base, got {first} on base {base} and {second} on base {other}: "
            "compact those of one base at a time"
        )


def _require_whole(registry: Registry, adapters: Iterable[str]) -> None:
    """What an adapter was trained on top of is compacted with it: alone it answers as nobody trained it to."""
    with registry.read() as db:
        within = everything(db, adapters)
        for adapter in sorted(adapters):
            if outside := sorted(beneath(db, adapter) - within):
                raise RequestError(
                    f"{adapter} was trained on top of {outside[0]}, which is not among them: compact both, or neither"
                )


def distillation_rows(
    bench: Bench,
    model: PreTrainedModel | PeftModel,
    stack: Composition,
    requests: Mapping[str, RequestData],
    recipe: Recipe,
    progress: Progress,
) -> Rows:
    """The rows of ``requests``; ``model`` wears the stack.

    Forget rows with the answer that they name, with what the base says where that names a keyword, and with what the
    stack says. Retain rows, and every other neighbour row: the audit still has neighbours, and all paraphrases, that
    no training saw. Retain and neighbour rows in the scope of any of the requests are left out.
    """
    scope = scope_of(requests.values())
    forget, retain, near = list[Told](), list[Told](), list[Told]()
    for data in requests.values():  # one at a time: ids are a request's own
        items = [row.item() for row in data.forget]
        said = {name: own.text for name, own in own_answers(bench, data.forget, progress).items()}
        forget += [(item, False) for item in (*items, *telling(items, said, "own"))]
        forget += _stack_answers(bench, model, stack, items, recipe, progress)
        beside = data.neighbours[::2]
        asked = [row for row in (*data.retain, *beside) if row.completion is None]
        own = own_answers(bench, asked, progress)
        retain += kept_rows(data.retain, own, scope)[0]
        near += kept_rows(beside, own, scope)[0]
    return Rows(*(_encoded(bench, _once(told), recipe) for told in (forget, retain, near)))


def _stack_answers(
    bench: Bench,
    model: PreTrainedModel | PeftModel,
    stack: Composition,
    items: Sequence[Item],
    recipe: Recipe,
    progress: Progress,
) -> list[Told]:
    """What the stack answers to each forget question that it answers at all, and whether it came to an end."""
    asked = [item for item in items if item.prompt]
    prompts = [row.prompt for row in _encoded(bench, [(item, False) for item in asked], recipe)]
    answers = ask(bench, model, stack, prompts, progress)
    decode, most = bench.base.tokenizer.decode, bench.method.max_new_tokens
    said = [(str(decode(list(ids), skip_special_tokens=True)).strip(), len(ids) < most) for ids in answers]
    return [
        (Item(f"{item.id}/stack", item.prompt, text, item.keywords), ended)
        for item, (text, ended) in zip(asked, said, strict=True)
        if text
    ]


def _encoded(bench: Bench, rows: Sequence[Told], recipe: Recipe) -> tuple[Encoded, ...]:
    return encode_all(
        bench.base.tokenizer,
        [item for item, _ in rows],
        chat=bench.method.chat,
        end=[ended for _, ended in rows],
        max_length=recipe.max_length,
        truncation=recipe.truncation,
    )


def _once(rows: Iterable[Told]) -> list[Told]:
    """Requests often share retain files: each row once."""
    return list({(item.text, item.completion, ended): (item, ended) for item, ended in rows}.values())
