"""A sealed adapter as a plain PEFT folder with a model card: what PEFT, vLLM and the Hub take as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import plain_files
from .card import CardFacts, model_card
from .package import Package, check_publishable

CARD = "README.md"


def export_folder(
    made: Package,
    folder: Path,
    facts: CardFacts,
    *,
    single_request: bool = False,
    along: Mapping[str, bytes] | None = None,
) -> Path:
    """Write `adapter_config.json`, `adapter_model.safetensors` (the sealed bytes) and `README.md` to `folder`.

    `along` are further files by name (`release_file.LIMITS`). All of them or, after a crash too, nothing. Raises
    InvalidInput when something is in `folder`, and Conflict for an adapter of a single request without `single_request`
    (`package.check_publishable`).
    """
    check_publishable(made, single_request=single_request)
    card = model_card(made, facts)
    plain_files.write_folder(Path(folder), {**made.files, CARD: card, **(along or {})})
    return Path(folder)
