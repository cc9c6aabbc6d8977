"""`efface serve`: keep an inference server on what a channel's active release says."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from ..registry import Registry, checks
from .options import DEFAULT_REGISTRY, Format, FormatOption, RegistryOption
from .output import emit, talk

if TYPE_CHECKING:
    from ..serving.controller import Controller, Options
    from ..serving.state import ChannelState

app = typer.Typer(help="Serve releases: hot-swap them on a running server.", no_args_is_help=True)
VLLM_EXAMPLE = "Example: efface serve vllm --url http://127.0.0.1:8000 --channel prod --watch"

UrlOption = Annotated[str, typer.Option("--url", help="The server: http://HOST:PORT or unix:/PATH.")]
ChannelOption = Annotated[str, typer.Option("--channel", help="The channel to follow.")]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root", help="Where adapter folders and state are: one per server. By default in the registry."
    ),
]
RootAtServerOption = Annotated[
    Path | None,
    typer.Option("--root-at-server", help="The same folder as the server sees it (a container's mount)."),
]
MaxRankOption = Annotated[
    int, typer.Option("--max-lora-rank", min=1, max=512, help="What the server was started with.")
]
BaseOption = Annotated[
    Path | None,
    typer.Option("--model", envvar="EFFACE_MODEL", help="The base's folder: shapes are checked against it."),
]
GraceOption = Annotated[
    float, typer.Option("--grace", min=0, help="Seconds to keep what was served, for gateways to follow.")
]
ToleranceOption = Annotated[
    float | None,
    typer.Option("--tolerance", min=0, help="Of a probe, in nats. By default by the audit's precision."),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="VLLM_API_KEY", help="The server's own key.", show_default=False),
]
AdminTokenOption = Annotated[
    str | None,
    typer.Option(
        "--admin-token", envvar="EFFACE_ADMIN_TOKEN", help="Of efface's middleware.", show_default=False
    ),
]


@app.callback()
def _group() -> None:
    """Serve releases: hot-swap them on a running server."""


@app.command("vllm", epilog=VLLM_EXAMPLE)
def vllm(
    url: UrlOption,
    channel: ChannelOption,
    watch: Annotated[bool, typer.Option("--watch", help="Go on following the channel.")] = False,
    root: RootOption = None,
    root_at_server: RootAtServerOption = None,
    max_rank: MaxRankOption = 512,
    model: BaseOption = None,
    grace: GraceOption = 5.0,
    tolerance: ToleranceOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds to get there, without --watch.")
    ] = 120.0,
    api_key: ApiKeyOption = None,
    admin_token: AdminTokenOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Load the channel's active release into a running vLLM, probe it, route to it, and unload the one before.

    The route is written to ROOT/CHANNEL.json, which gateways follow. What fails its probe is not routed to: the release
    before it stays, and without --watch the exit code is 1. Run it again at any time: it goes on from what is there.
    """
    from ..serving.controller import Controller
    from ..serving.source import Source
    from ..serving.vllm import VllmServer

    checks.channel(channel)
    with Registry.open(registry) as reg, VllmServer(url, api_key=api_key, admin_token=admin_token) as server:
        place = root or default_root(reg, url)
        options = options_of(place, root_at_server, max_rank, model, grace, tolerance)
        controller = Controller(Source(reg, channel), server, options, told=say)
        with controller.owned():
            if watch:
                follow_until_stopped(controller)
            done = watch or controller.settle(timeout)
    if not done:
        say(f"{channel}: not done within {timeout:g} s; run it again, it goes on from there")
    emit(asdict(controller.state), format, _said(controller.state))
    raise typer.Exit(0 if done and controller.state.route and not controller.state.rejected else 1)


def default_root(registry: Registry, url: str) -> Path:
    """Where the folders of the server at ``url`` are, unless ``--root`` says: one place per server."""
    from ..serving.names import is_safe

    host = urlsplit(url).netloc.rpartition("@")[2] or url
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in host)
    return registry.root / "serving" / (name if is_safe(name) else "_")


def options_of(
    root: Path,
    root_at_server: Path | None,
    max_rank: int,
    model: Path | None,
    grace: float,
    tolerance: float | None,
) -> Options:
    """The controller's options; the base's shapes are read here, so that a bad folder is named at once."""
    from ..registry.base_shapes import read_shapes
    from ..serving.controller import Options
    from ..serving.folders import Limits

    limits = Limits(max_rank, None if model is None else read_shapes(model))
    return Options(root, root_at_server, grace=grace, tolerance=tolerance, limits=limits)


def follow_until_stopped(controller: Controller) -> None:
    """Watch until SIGINT or SIGTERM; the server keeps what it has."""
    stop = threading.Event()

    def ended(_signal: int, _frame: Any) -> None:
        stop.set()

    before = {number: signal.signal(number, ended) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        controller.watch(stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """One line on stderr."""
    talk.print(escape(text), soft_wrap=True)


def _said(state: ChannelState) -> str:
    route = state.route
    served = f"{route.name}  probed {route.probed_at}" if route else f"nothing: {state.reason}"
    lines = [f"{state.channel}  {served}"]
    if route:
        lines += [f"release  {route.release}", f"adapter  {route.adapter}"]
    return "\n".join([*lines, *(f"rejected  {name}: {why}" for name, why in state.rejected.items())])
