"""Exit codes: 0 done, 1 a check or gate failed, 2 bad input, 3 broken registry, 130 interrupted.

2 also where a disk, a store or the system does not let us: it is the caller's to put right, and nothing was measured,
so it must not look like a gate that failed. 3 is kept for what is stored and not what was written.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.markup import escape

from ..registry import BrokenRegistry, GateFailed, RegistryError, durable
from .output import talk

CHECK_FAILED, BAD_INPUT, BROKEN_REGISTRY, INTERRUPTED = 1, 2, 3, 130
_CHECK_TYPES = ("TrainingError", "GateNotMet", "ServerError", "ProbeFailed")
_BAD_INPUT_TYPES = ("AdapterError", "AuditError", "RecipeError", "ServingError")


@contextmanager
def exit_codes() -> Generator[None]:
    """Turn efface's errors, and the system's, into a message on stderr and an exit code. Anything else is a bug."""
    try:
        yield
    except GateFailed as error:
        _stop(error, CHECK_FAILED)
    except BrokenRegistry as error:
        _stop(error, BROKEN_REGISTRY)
    except RegistryError as error:
        _stop(error, BAD_INPUT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            _stop(durable.explained(error.filename or "a file", error), BAD_INPUT)
        # By name, because importing those packages would import torch for commands that need none.
        if not {kind.__name__ for kind in type(error).__mro__} & set(_BAD_INPUT_TYPES):
            raise
        _stop(error, CHECK_FAILED if type(error).__name__ in _CHECK_TYPES else BAD_INPUT)


def _stop(error: Exception, code: int) -> None:
    for line in str(error).splitlines() or [type(error).__name__]:
        talk.print(f"[red]error:[/red] {escape(line)}", soft_wrap=True)
    raise typer.Exit(code)
