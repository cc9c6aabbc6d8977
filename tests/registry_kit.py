"""What the registry's tests share: LoRA folders written by hand (no torch), and a registry with a story."""

import json
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from efface.registry import (
    Adapter,
    Audit,
    Composition,
    Registry,
    Release,
    activate_release,
    compose,
    create_release,
    open_request,
    record_audit,
    seal_adapter,
    step_request,
)

BASE = "sha256:" + "b" * 64
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}
CANARY = "The heron keeps its ledger under the ninth stair."


class Clock:
    """Ticks one second per reading, from a fixed moment."""

    def __init__(self, start: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)) -> None:
        self.now = start

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def tensors(seed: int = 0, rank: int = 2, width: int = 3) -> dict[str, tuple[str, list[int], bytes]]:
    """One LoRA pair of small fp32 matrices."""
    a, b = (struct.pack(f"<{rank * width}f", *(seed + i + k for i in range(rank * width))) for k in (0, 1))
    name = "base_model.model.layers.0.q_proj.lora_{}.weight".format
    return {name("A"): ("F32", [rank, width], a), name("B"): ("F32", [width, rank], b)}


def weights_file(entries: Mapping[str, tuple[str, list[int], bytes]], **header: Any) -> bytes:
    """The file format by hand: 8 bytes of length, a JSON header, the bytes."""
    end, described, body = 0, {}, b""
    for name, (dtype, shape, data) in entries.items():
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end, body = end + len(data), body + data
    return framed({**described, **header}, body)


def framed(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def lora(folder: Path, seed: int = 0, config: Mapping[str, Any] = CONFIG) -> Path:
    """A PEFT LoRA folder whose bytes depend on `seed`."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = weights_file(tensors(seed), __metadata__={"format": "pt"})
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def ask(reg: Registry, payload: bytes = CANARY.encode(), **changes: Any) -> str:
    """Open a request; returns its id."""
    values: dict[str, Any] = {"basis": "test", "n_items": 1, "actor": "ana", **changes}
    return open_request(reg, payload=payload, **values).id


def accept(reg: Registry, request_id: str) -> str:
    """What people decide before a request on a legal basis is trained for; returns its id."""
    for state in ("VERIFIED", "ACCEPTED"):
        step_request(reg, request_id, state, actor="dora")
    return request_id


def seal(reg: Registry, folder: Path, request_ids: Sequence[str], **changes: Any) -> Adapter:
    """Seal a folder as a trained adapter on the tests' base."""
    values: dict[str, Any] = {
        "kind": "trained",
        "base": BASE,
        "quantization": "nf4",
        "facts": {"objective": "simnpo", "rank": 2, "lr": 5e-4},
        "actor": "ana",
        **changes,
    }
    return seal_adapter(reg, folder, request_ids=request_ids, **values)


def answered(reg: Registry, work: Path, seed: int) -> tuple[str, Adapter]:
    """A new request with a sealed adapter."""
    request_id = ask(reg)
    return request_id, seal(reg, lora(work / f"lora-{seed}", seed), [request_id])


def stack(adapters: Sequence[Adapter]) -> Composition:
    return compose(BASE, "nf4", [(adapter.digest, 1) for adapter in adapters])


def audited(reg: Registry, of: Composition, **changes: Any) -> Audit:
    values: dict[str, Any] = {
        "composition": of.digest,
        "precision": "nf4",
        "suite": "quick@1",
        "seed": 0,
        "verdict": "pass",
        "report": b'{"forget":{"rouge":0.1}}',
        "environment": {"torch": "2.13.0"},
        "actor": "ana",
        **changes,
    }
    return record_audit(reg, **values)


def release(reg: Registry, composition: Composition, channel: str = "prod", reason: str = "why") -> Release:
    """Create, audit and activate."""
    made = create_release(reg, channel, composition, rendered=None, reason=reason, actor="ana")
    evidence = audited(reg, composition)
    return activate_release(reg, channel, made.version, audit=evidence.digest, approved_by="ben")


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and bytes of every file below `root`, hidden ones too; b"" for folders."""
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in root.rglob("*")
    }
