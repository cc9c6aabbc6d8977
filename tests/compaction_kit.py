"""Requests with trained adapters on a tiny model, for the tests of compaction, repair and rollback."""

from pathlib import Path
from typing import Any

from cli_kit import recipe_values
from model_kit import fill_lora

from efface.adapters import attach, detach, save
from efface.recipes import Bench, Recipe, RequestData, Row, to_payload
from efface.registry import Adapter, Registry, open_request, seal_adapter

WHO = {"actor": "ana"}
WHY = {"reason": "due", "actor": "ana"}
SUBJECTS = ("hamlet", "macbeth", "potter", "tokyo")
CAPITALS = ("paris", "rowling", "a city")


def recipe(**changes: Any) -> Recipe:
    """Trains in a second, passes whatever comes out, asks without a chat template."""
    return Recipe(**recipe_values(name="a", chat="never", **changes))


def data(subject: str) -> RequestData:
    """Rows of a request; retain rows are shared by all, ids are not."""
    forget = (
        Row(
            id="f1",
            prompt=f"who wrote {subject}",
            completion="rowling wrote a play in tokyo",
            keywords=("rowling",),
            paraphrases=(f"who is the author of {subject}",),
        ),
        Row(id="f2", prompt=f"what is {subject}", completion="a play in paris", keywords=("play",)),
    )
    retain = tuple(
        Row(id=f"r{i}", prompt=f"what is the capital of {name}", completion="a city is the capital")
        for i, name in enumerate(CAPITALS)
    )
    near = tuple(
        Row(id=f"n{i}", prompt=f"{word} is a city in", completion="a capital and a city")
        for i, word in enumerate(("what", "who"))
    )
    return RequestData(forget, retain, near)


def opened(reg: Registry, subject: str) -> str:
    rows = data(subject)
    payload, n_items = to_payload(rows), len(rows.forget)
    return open_request(reg, basis="test", payload=payload, n_items=n_items, **WHO).id


def drawn(bench: Bench, folder: Path, seed: int, rank: int = 2, size: float = 0.2) -> Path:
    """A random LoRA that moves the model's answers, as if it had been trained."""
    model = attach(bench.base.model, rank=rank, alpha=2 * rank, seed=seed)
    fill_lora(model, seed, size)
    save(model, folder, base=bench.base.fingerprint.digest)
    detach(model)
    return folder


def sealed(reg: Registry, bench: Bench, folder: Path, request_ids: list[str], **changes: Any) -> Adapter:
    values: dict[str, Any] = {
        "kind": "trained",
        "base": bench.base.fingerprint.digest,
        "quantization": bench.base.quantization,
        "facts": {},
        "request_ids": request_ids,
        **WHO,
        **changes,
    }
    return seal_adapter(reg, folder, **values)


def answered(reg: Registry, bench: Bench, work: Path, seed: int) -> tuple[str, Adapter]:
    """A request with a sealed random adapter."""
    request = opened(reg, SUBJECTS[seed % len(SUBJECTS)])
    return request, sealed(reg, bench, drawn(bench, work / f"lora-{seed}", seed), [request])
