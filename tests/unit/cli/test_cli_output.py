"""Small parts of the command line: cells, tables, exit codes, progress."""

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import typer
from audit_kit import report
from rich.progress import Progress as Bars

import efface.adapters.errors as adapter_errors
import efface.audits.errors as audit_errors
import efface.recipes.errors as recipe_errors
import efface.registry.errors as registry_errors
from efface.cli.failure import exit_codes
from efface.cli.options import Format, default_actor, writable
from efface.cli.output import RichProgress, emit, emit_table, progress, short, talk
from efface.cli.reports import findings_text
from efface.recipes import Progress

DIGEST = "sha256:" + "0123456789abcdef" * 4
HOMES = (adapter_errors, audit_errors, recipe_errors, registry_errors)
FAILED_CHECKS = {"TrainingError", "GateNotMet", "GateFailed"}
BROKEN = {"BrokenRegistry"}


def errors() -> Iterator[type[Exception]]:
    """Every exception class that the packages declare."""
    for home in HOMES:
        for value in vars(home).values():
            if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == home.__name__:
                yield value


def raised(kind: type[Exception], text: str) -> Exception:
    if issubclass(kind, registry_errors.RegistryError):
        return kind("a thing", text, "Try again.")
    return kind([text]) if kind is recipe_errors.DataError else kind(text)


def stopped(error: Exception) -> tuple[int, str]:
    """The exit code and what stood on stderr."""
    err = io.StringIO()
    with redirect_stderr(err), pytest.raises(typer.Exit) as stop, exit_codes():
        raise error
    return stop.value.exit_code, err.getvalue()


@pytest.mark.parametrize("kind", list(errors()), ids=lambda kind: kind.__name__)
def test_every_error_has_an_exit_code_and_one_message(kind: type[Exception]) -> None:
    code, err = stopped(raised(kind, "[bold]what came[/nope]"))
    assert code == (1 if kind.__name__ in FAILED_CHECKS else 3 if kind.__name__ in BROKEN else 2)
    assert err.startswith("error: ")
    assert "[bold]what came[/nope]" in err
    assert err.count("\n") == 1


def test_the_errors_are_found() -> None:
    names = {kind.__name__ for kind in errors()}
    assert names >= FAILED_CHECKS | BROKEN | {"DataError", "InvalidRecipe", "ModelError", "InvalidAdapter"}


def test_each_problem_is_a_line_as_it_was_written() -> None:
    long = "x" * 300
    code, err = stopped(recipe_errors.DataError(["a.jsonl:100: bad", "b.jsonl:1234: :fire:", long]))
    assert code == 2
    assert err.splitlines() == ["error: a.jsonl:100: bad", "error: b.jsonl:1234: :fire:", f"error: {long}"]


def test_an_error_without_text_is_named() -> None:
    assert stopped(adapter_errors.ModelError())[1] == "error: ModelError\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_a_bug_is_not_dressed_up(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"), exit_codes():
        raise error


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "a full disk"), (errno.EROFS, "read-only"), (errno.ENOTDIR, "ENOTDIR")],
)
def test_what_the_system_refuses_is_a_message(number: int, said: str) -> None:
    code, err = stopped(OSError(number, os.strerror(number), "/registry/vault/x"))
    assert (code, said in err, "/registry/vault/x" in err) == (2, True, True)
    assert said in stopped(OSError(number, os.strerror(number)))[1]


def test_an_error_of_the_system_without_a_number_is_a_bug() -> None:
    with pytest.raises(OSError, match="a bug"), exit_codes():
        raise OSError("a bug")


def test_no_error_no_exit() -> None:
    with exit_codes():
        pass


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (3, "3"),
        ("", ""),
        (DIGEST, "sha256:0123456789ab"),
        (f"see {DIGEST}", f"see {DIGEST}"),
        (0, "0"),
        (False, "False"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert short(value) == shown


def printed(format: Format, records: list[dict[str, object]], columns: list[str]) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        emit_table(records, columns, format, "Nothing yet.")
    return out.getvalue(), err.getvalue()


def test_a_table_shows_the_columns_and_json_all() -> None:
    records: list[dict[str, object]] = [
        {"id": "a", "digest": DIGEST, "why": "[red]licence[/red] :fire:", "more": 1},
        {"id": "b", "digest": None, "why": "x" * 200, "more": 2},
    ]
    out, err = printed(Format.text, records, ["id", "digest", "why"])
    assert err == ""
    assert [line.split() for line in out.splitlines()] == [
        ["id", "digest", "why"],
        ["a", "sha256:0123456789ab", "[red]licence[/red]", ":fire:"],
        ["b", "–", "x" * 200],
    ]
    out, err = printed(Format.json, records, ["id"])
    assert (json.loads(out), err) == (records, "")


def test_an_empty_table_is_talk_and_an_empty_list_is_json() -> None:
    assert printed(Format.text, [], ["id"]) == ("", "Nothing yet.\n")
    assert json.loads(printed(Format.json, [], ["id"])[0]) == []


def test_json_keeps_text_and_refuses_what_is_no_number() -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        emit({"who": "Žofie", "n": 1.5}, Format.json, "")
        emit({}, Format.text, "[red]as it is[/red]\n\n")
    assert out.getvalue() == '{\n  "who": "Žofie",\n  "n": 1.5\n}\n[red]as it is[/red]\n'
    with pytest.raises(ValueError, match="JSON"):
        emit({"n": float("nan")}, Format.json, "")


def test_progress_off_a_terminal_is_a_line_a_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as bars:
        bars.phase("Training", 3)
        bars.advance(1, "p 0.5")
        bars.advance()
        bars.phase("Sealing")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line for line in captured.err.splitlines() if line] == ["Training …", "Sealing …", "Done …"]


def test_progress_ends_with_what_was_raised(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress() as bars:
            bars.phase("Training")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        work()
    assert "Done" not in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with progress() as bars:
        bars.phase("Training [3]", 3)
        bars.advance(2, "forget p 0.50")
        bars.phase("Sealing")
    shown = screen.getvalue()
    assert "Training" in shown
    assert "3/3" in shown  # a phase that ended is a full bar
    assert "Sealing" in shown
    assert "Sealing …" not in shown


def test_progress_is_what_the_recipes_listen_to() -> None:
    listener: Progress = RichProgress(Bars(console=talk))
    listener.advance()  # before any phase it says nothing


def test_findings_in_lines() -> None:
    text = findings_text(report())
    first, *gates = text.splitlines()
    assert first == "Audit [green]passed[/green]: One request"
    assert gates
    assert all(
        line.startswith("  [green]✓[/green] ") or line.startswith("  [yellow]–[/yellow] ") for line in gates
    )


def test_a_report_needs_a_folder(tmp_path: Path) -> None:
    assert writable(None) is None
    assert writable(tmp_path / "a.html") == tmp_path / "a.html"
    assert writable(Path("a.html")) == Path("a.html")
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "absent" / "a.html", tmp_path / "file" / "a.html"):
        with pytest.raises(typer.BadParameter, match="expected a file in a folder"):
            writable(place)


def test_somebody_acts_even_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_actor()
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    assert default_actor() == "unknown"
