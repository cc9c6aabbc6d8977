"""The README must not name what is not there."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from efface.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("code", _blocks(README, "python") + _blocks(GUIDE, "python"))
def test_every_import_of_the_examples_resolves(code: str) -> None:
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_the_python_example_is_about_twenty_lines() -> None:
    (code,) = _blocks(README, "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 22


def _commands() -> list[list[str]]:
    lines = [
        line for block in _blocks(README, "") for line in block.splitlines() if line.startswith("efface ")
    ]
    parts = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [shlex.split(part)[1:] for part in parts]


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_of_the_readme_exists_with_its_options(words: list[str]) -> None:
    command: click.Command = typer.main.get_command(app)
    while words and isinstance(command, click.Group):
        name, *words = words
        assert name in command.commands, name
        command = command.commands[name]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_every_link_of_the_readme_is_there(link: str) -> None:
    assert (ROOT / link).exists(), link


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
