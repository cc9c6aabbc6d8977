"""`efface doctor`: whether this machine and this registry are fit for work."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from ..registry import NotFound, Registry, RegistryError, vault_binding
from ..registry.migrations import REVISIONS
from .failure import CHECK_FAILED
from .options import DEFAULT_REGISTRY, Format, FormatOption, RegistryOption
from .output import emit
from .record_acts import CheckRecord, DoctorRecord

EXAMPLE = "Example: efface doctor --format json"
TRAINING = ("torch", "transformers", "peft", "bitsandbytes", "safetensors")
LEAST_FREE = 2**30
"""Bytes: less is not enough for one training's checkpoints and its adapter."""


def doctor(registry: RegistryOption = DEFAULT_REGISTRY, format: FormatOption = Format.text) -> None:
    """Check Python, the libraries, the registry with its schema, the vault's key and the disk. Exit 1 if one is wrong.

    A registry that is not there yet is fine. Like every command, it brings an older schema up to date.
    """
    checks = [_python(), *map(_library, ("efface", *TRAINING)), *_registry(registry)]
    record: DoctorRecord = {"ok": all(check["ok"] for check in checks), "checks": checks}
    marks = {True: "ok   ", False: "WRONG"}
    emit(record, format, "\n".join(f"{marks[c['ok']]}  {c['name']:14} {c['found']}" for c in checks))
    raise typer.Exit(0 if record["ok"] else CHECK_FAILED)


def _python() -> CheckRecord:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return {"name": "python", "ok": sys.version_info >= (3, 11), "found": found}


def _library(name: str) -> CheckRecord:
    try:
        return {"name": name, "ok": True, "found": version(name)}
    except PackageNotFoundError:
        return {"name": name, "ok": False, "found": f"not installed: pip install {name}"}


def _registry(url: str) -> list[CheckRecord]:
    try:
        with Registry.open(url, any_vault=True) as reg:
            next(iter(reg.blobs), None)  # wherever they are, they can be listed
            return [
                {"name": "registry", "ok": True, "found": reg.database.where},
                {"name": "schema", "ok": True, "found": REVISIONS[-1]},
                _vault(reg),
                _disk(reg.root),
            ]
    except NotFound:
        return [{"name": "registry", "ok": True, "found": "none there yet"}, _disk(Path.cwd())]
    except RegistryError as error:
        return [{"name": "registry", "ok": False, "found": str(error)}, _disk(Path.cwd())]


def _vault(reg: Registry) -> CheckRecord:
    keys = reg.vault.keys
    try:
        if not keys.complete():
            return {"name": "vault key", "ok": True, "found": "no vault here yet"}
        with reg.read() as db:
            vault_binding.check(db, reg.vault)
        keys.subject()
        return {"name": "vault key", "ok": True, "found": keys.provider().describe()}
    except PermissionError:
        return {"name": "vault key", "ok": False, "found": "a vault that this user may not enter"}
    except RegistryError as error:
        return {"name": "vault key", "ok": False, "found": str(error)}


def _disk(folder: Path) -> CheckRecord:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    return {"name": "free disk", "ok": free >= LEAST_FREE, "found": f"{free / 2**30:.1f} GiB"}
