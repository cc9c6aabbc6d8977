"""The registry against a plain dict model, over generated stories (see `story_kit`), on each backend.

On Postgres and object storage fewer and shorter ones: they cost a server's round trips.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from registry_backends import KINDS, Backend, new_backend, rows
from story_kit import Story

from efface.registry import Registry


class StoryOn(Story):
    """The same story on another database and other blobs."""

    def __init__(self, place: Callable[[Path], Backend]) -> None:
        super().__init__()
        self.place = place(self.work)

    def open(self) -> Registry:
        return self.place.open(clock=self.clock)

    def dump(self) -> Any:
        return rows(self.reg)

    def everything(self) -> Any:
        return self.place.state(self.reg)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.place.close()


# Examples and steps; what a backend costs decides.
SIZES = {"folder": (25, 30), "postgres": (5, 20), "postgres+s3": (3, 15)}


@pytest.mark.parametrize("kind", KINDS)
def test_story(kind: str, request: pytest.FixtureRequest, quiet_vault: None) -> None:
    examples, steps = SIZES[kind]
    run_state_machine_as_test(  # pyright: ignore[reportUnknownMemberType]
        lambda: StoryOn(lambda folder: new_backend(kind, folder, request)),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
