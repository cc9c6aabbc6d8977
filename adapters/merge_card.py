"""What stands beside merged weights: what was merged into what, for machines and for people."""

from __future__ import annotations

import json
from pathlib import Path

from .compose import Stack
from .model import Fingerprint
from .tensors import write_atomic

RECORD = "efface_merge.json"


def describe(folder: Path, base: Fingerprint, stack: Stack, onto: str, requantized: str | None) -> None:
    """Write `RECORD` and the model card into ``folder``."""
    parts = [{"adapter": part.adapter.digest, "weight": format(part.weight, "f")} for part in stack.parts]
    record: dict[str, object] = {"v": 1, "base": base.digest, "onto": onto, "parts": parts}
    if requantized is not None:
        record["requantized"] = requantized
    write_atomic(folder / RECORD, [json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"])
    listed = "\n".join(f"- {part['weight']} × `{part['adapter']}`" for part in parts)
    stored = f", then quantized to {requantized} (bitsandbytes)" if requantized else ""
    text = f"""---
library_name: transformers
tags: [unlearning, efface, merged]
---

# Merged by efface

Adapters that forget, merged into base `{base.digest}` ({onto} weights){stored}:

{listed}

The forgetting is in the weights. It is *consolidated* once the base is withdrawn, not before: whoever has both can
subtract them. It is not *erased*: the rows were in the training of the base. Serve it at a precision at which it was
audited.
"""
    write_atomic(folder / "README.md", [text.encode()])
