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


def test_the_page_has_every_metric_and_no_other() -> None:
    from efface.serving.gateway_metrics import Metrics
    from efface.serving.routes import Routes

    text = Metrics(Routes(), ["prod"]).text().decode()
    given = set(re.findall(r"^# TYPE (efface_gateway_\w+) ", text, re.MULTILINE))
    named = set(re.findall(r"`(efface_gateway_\w+)`", PAGE))
    assert {name for name in given if not name.endswith("_created")} == named


def test_the_codes_of_the_page_exist() -> None:
    code = "".join(file.read_text() for file in (ROOT / "serving").glob("*.py"))
    for word in ("not_served", "wrong_model", "internal_error"):
        assert word in PAGE
        assert f'"{word}"' in code


def test_the_nginx_example_passes_what_users_may_ask_and_nothing_else() -> None:
    from efface.serving.heads import GET, MODELS
    from efface.serving.rules import COMPLETIONS

    (location,) = re.findall(r"location ~ (\S+) \{", PAGE)
    open_paths = COMPLETIONS | {MODELS}
    for path in COMPLETIONS | GET | {f"{one}/x" for one in open_paths} | {f"/x{one}" for one in open_paths}:
        assert bool(re.search(location, path)) == (path in open_paths), path


def test_the_litellm_example_asks_the_public_model_of_the_gateway_that_the_page_starts() -> None:
    (yaml,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (public,) = set(re.findall(r"--channel prod=(\S+)", SHELL))
    (listen,) = re.findall(r"--listen (\S+:8080)", SHELL)
    assert f"model: openai/{public}\n" in yaml
    assert f"api_base: http://{listen}/v1\n" in yaml
    assert "fallback" not in yaml
