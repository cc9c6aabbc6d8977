"""What keeps a gateway's `Routes`: state files of controllers elsewhere, or controllers in threads of this process.

Whatever ends a feed withdraws its channels: a gateway that is not told of changes any more answers nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from .controller import Controller
from .errors import ServingError
from .routes import Routes
from .state import Follower, state_file

Told = Callable[[str], None]
_STARTED = 60.0


@contextmanager
def following(
    root: Path, channels: Sequence[str], routes: Routes, told: Told, *, interval: float = 0.2
) -> Generator[None]:
    """Follow the state files ``<root>/<channel>.json`` for as long as the block runs.

    ``interval``: seconds; the controllers' ``--grace`` must be longer, or they unload what is still asked for. Raises
    `ServingError` for a channel that cannot be served.
    """
    for channel in channels:
        state_file(root, channel)
    follower, stop = Follower(root, tuple(channels), routes), threading.Event()

    def follow() -> None:
        while not stop.wait(interval):
            follower.poll()

    follower.poll()
    with _thread("efface-follow", follow, stop, tuple(channels), routes, told):
        yield


@contextmanager
def controlling(
    opened: Callable[[str], AbstractContextManager[Controller]],
    channels: Sequence[str],
    routes: Routes,
    told: Told,
) -> Generator[None]:
    """Run the controller that ``opened`` gives for each channel, opened in a thread of its own.

    Raises what opening raises (`ServingError` when another controller has the channel), before the block runs.
    """
    with ExitStack() as running:
        for channel in channels:
            running.enter_context(_controlled(opened, channel, routes, told))
        yield


@contextmanager
def _controlled(
    opened: Callable[[str], AbstractContextManager[Controller]], channel: str, routes: Routes, told: Told
) -> Generator[None]:
    stop, ready, failed = threading.Event(), threading.Event(), list[Exception]()

    def control() -> None:
        try:
            with opened(channel) as controller:
                ready.set()
                controller.watch(stop)
        except Exception as error:
            if not ready.is_set():
                failed.append(error)
                return
            raise
        finally:
            ready.set()

    with _thread(f"efface-control-{channel}", control, stop, (channel,), routes, told):
        if not ready.wait(_STARTED):
            raise ServingError(
                f"expected the registry to open within {_STARTED:g} s, got nothing; is it there?"
            )
        if failed:
            raise failed[0]
        yield


@contextmanager
def _thread(
    name: str,
    work: Callable[[], None],
    stop: threading.Event,
    channels: Sequence[str],
    routes: Routes,
    told: Told,
) -> Generator[None]:
    """``work`` in a thread until the block ends; if it ends before, whyever, the channels are withdrawn."""

    def run() -> None:
        reason = "its controller ended"
        try:
            work()
        except Exception as error:  # noqa: BLE001 - nobody else hears of it, and no route may outlive its feed
            reason = f"its controller failed: {type(error).__name__}"
            told(f"{', '.join(channels)}: {reason}: {error}")
        for channel in channels:
            routes.withdraw(channel, reason)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
