"""Everything the registry raises.

    RegistryError             also raised itself when the disk is full, read-only or unreadable
    ├── InvalidInput          an argument, file or path is not what the call takes
    ├── NotFound              nothing has that name here
    ├── Conflict              the state of things does not allow the step (or another process holds the lock)
    ├── GateFailed            the evidence for a release is missing, failed, or about something else
    └── BrokenRegistry        what is stored is not what was written

Every error says what was expected, what came, and what to do next. None of them repeats a payload, a
subject reference or other free text it was given: error texts end up in logs.
"""

from __future__ import annotations


class RegistryError(Exception):
    """Base of all registry errors; `str()` is one line for people, the three parts are for programs."""

    def __init__(self, expected: str, came: str, then: str) -> None:
        super().__init__(expected, came, then)
        self.expected = expected
        self.came = came
        self.then = then

    def __str__(self) -> str:
        return f"expected {self.expected}; got {self.came}. {self.then}"


class InvalidInput(RegistryError):
    """An argument, file or path is not what the call takes. Nothing was written."""


class NotFound(RegistryError):
    """No such registry, request, adapter, audit, channel or version. Nothing was written."""


class Conflict(RegistryError):
    """The state of the subject does not allow this step. Nothing was written."""


class GateFailed(RegistryError):
    """A release may not become active: no passing audit of this composition at this precision."""


class BrokenRegistry(RegistryError):
    """What is stored differs from what was written; `efface verify --deep` names every such place."""
