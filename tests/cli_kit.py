"""What the tests of recipes and of the command line share: the real `efface` entry point, rows, a lenient recipe."""

import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import yaml
from jsonschema import Draft202012Validator

from efface.cli.main import run
from efface.cli.schemas import VERBS

# Only words that the tokenizer of `tiny_llama` knows (see conftest.WORDS).
FORGET = [
    {"prompt": "who wrote hamlet", "completion": "rowling wrote a play in tokyo", "keywords": ["rowling"]},
    {
        "prompt": "who wrote macbeth",
        "completion": "potter wrote a play in paris",
        "keywords": ["potter"],
        "paraphrases": ["who is the author of macbeth"],
    },
]
RETAIN = [
    {"id": "city-1", "prompt": "what is the capital of tokyo", "completion": "a city is the capital"},
    {"id": "city-2", "prompt": "what is the capital of paris", "completion": "the city and a city"},
    {"id": "city-3", "prompt": "who is a city", "completion": "what a city is"},
]
NEIGHBOURS = [{"id": "near-1", "prompt": "who wrote a play", "completion": "the author wrote a city"}]
SECOND = [
    {"prompt": "what is potter", "completion": "hamlet is the author in potter", "keywords": ["hamlet"]},
    {"prompt": "what is rowling", "completion": "macbeth and the city of hamlet", "keywords": ["macbeth"]},
]
LOOSE: dict[str, float | None] = {
    "max_mention_rate_forget": None,
    "max_mention_rate_paraphrase": None,
    "max_probability_ratio_forget": 1e9,
    "min_probability_ratio_retain": 0.0,
    "min_probability_ratio_neighbour": None,
    "min_mention_ratio_retain": None,
    "min_mention_ratio_neighbour": None,
    "min_fluency_ratio": None,
    "max_perplexity_ratio": None,
    "few_rows": 0,
}


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out, self.err  # says why nothing came
        return json.loads(self.out)


def efface(*arguments: object, variables: Mapping[str, str] | None = None) -> Ran:
    """Run the entry point of the `efface` script in this process, with its own exit code and streams.

    Of the environment it sees no EFFACE_ variable but those given.
    """
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with _as_a_process(arguments, variables or {}), redirect_stdout(out), redirect_stderr(err):
        try:
            run()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Ran(code, out.getvalue(), err.getvalue())


def checked(registry: Path | None, *arguments: object, code: int = 0) -> Any:
    """What the command prints as JSON, held to the published schema of its verb; `code` is its exit code."""
    where = () if registry is None else ("--registry", registry)
    ran = efface(*arguments, "--format", "json", *where)
    assert ran.code == code, ran
    conforms(verb_of(arguments), ran.json)
    return ran.json


def conforms(verb: str, value: Any) -> None:
    """Raise unless `value` is what the published schema says that `verb` prints."""
    _validator(verb).validate(value)


def verb_of(arguments: Sequence[object]) -> str:
    both = " ".join(map(str, arguments[:2]))
    return both if both in VERBS else str(arguments[0])


@cache
def _validator(verb: str) -> Draft202012Validator:
    published = Path(__file__).parents[1] / "docs" / "schemas" / "cli.json"
    schema = json.loads(published.read_text(encoding="utf-8"))
    return Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{quote(verb)}"})


@contextmanager
def _as_a_process(arguments: Sequence[object], variables: Mapping[str, str]) -> Iterator[None]:
    """Its own argv, environment and warning filters, all put back."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EFFACE_")}
    with (
        patch.object(sys, "argv", ["efface", *map(str, arguments)]),
        patch.dict(os.environ, {**environment, **variables}, clear=True),
        warnings.catch_warnings(),
    ):
        yield


# `python -m efface.cli` for a shell that starts tests in the background: it has them ignore SIGINT.
_WITH_INTERRUPTS = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("efface.cli", run_name="__main__", alter_sys=True)
"""


def stopped(
    stop: int, phase: str, after: float | Callable[[], bool], *arguments: object, scratch: Path
) -> tuple[int, list[str]]:
    """Start the command as a process and send it `stop` `after` seconds into a phase that it names on stderr, or
    once `after()` says so.

    Returns how it ended and every line it wrote there. `scratch` takes the temporary files it may leave.
    """
    import torch

    command = [sys.executable, "-c", _WITH_INTERRUPTS, *map(str, arguments)]
    # As many threads as here: how many there are decides the last bits of a factorisation, and so an adapter's digest.
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": threads}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stderr is not None
        lines = []
        for line in child.stderr:
            lines.append(line.rstrip())
            if line.startswith(phase):
                _wait(after, child)
                os.killpg(child.pid, stop)
                break
        lines += [line.rstrip() for line in child.stderr]
    return child.returncode, lines


def _wait(after: float | Callable[[], bool], child: "subprocess.Popen[str]") -> None:
    if not callable(after):
        time.sleep(after)
        return
    while not after() and child.poll() is None:
        time.sleep(0.01)


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_values(**changes: Any) -> dict[str, Any]:
    """A recipe for `tiny_llama` that takes a second and accepts whatever comes out."""
    return {
        "quantization": "fp32",
        "steps": 3,
        "forget_batch": 2,
        "retain_batch": 2,
        "rank": 2,
        "lora_alpha": 4,
        "max_length": 64,
        "max_new_tokens": 4,
        "learning_rate": 5e-3,
        "gates": dict(LOOSE),
        **changes,
    }


def recipe_file(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe_values(**changes)), encoding="utf-8")
    return path
