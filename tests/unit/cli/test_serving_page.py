"""docs/serving.md: each `efface` command on it is one, with the options that it has; its codes and metrics exist."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from efface.cli import app

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line for line in SHELL.splitlines() if line.startswith("efface ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    context = None
    while hasattr(command, "commands"):
        word = words.pop(0)
        command = command.commands[word]
    context = command.make_context(command.name, words)
    assert context.command.name in ("gateway", "vllm", "key", "revoke")


def test_there_are_commands_and_python_that_is_python() -> None:
    assert len(COMMANDS) >= 5
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    ast.parse(code)


def test_every_metric_and_code_of_the_page_exists() -> None:
    code = "".join(file.read_text() for file in (ROOT / "serving").glob("*.py"))
    for name in (
        "answers",
        "refused",
        "in_flight",
        "first_byte_seconds",
        "answer_seconds",
        "ready",
        "release",
    ):
        assert f"efface_gateway_{name}" in code
    for word in ("not_served", "wrong_model"):
        assert word in PAGE
        assert f'"{word}"' in code
