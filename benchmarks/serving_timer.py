"""How long a server took for each completion, by its own clock: a middleware for vLLM (`--middleware`).

A token takes vLLM on a CPU 100 to 350 ms, and not the same twice: what a gateway adds, a hundredth of it, shows only
in what the server's own time does not explain. One client asks, one question at a time: the n-th line of the file is
the n-th question.
"""

import os
import time
from typing import Any

FILE = "EFFACE_BENCH_TIMES"


class Timed:
    """ASGI middleware: seconds from a completion's head to the end of its answer, a line each."""

    def __init__(self, app: Any) -> None:
        self._app, self._file = app, os.environ[FILE]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/completions":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def timed(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                with open(self._file, "a") as file:  # noqa: PTH123 - one client, which waits anyway
                    file.write(f"{time.perf_counter() - began}\n")
            await send(message)

        await self._app(scope, receive, timed)
