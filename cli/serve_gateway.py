"""`efface serve gateway`, and the API keys that it asks for."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..registry import Registry, checks
from .options import DEFAULT_REGISTRY, Format, FormatOption, RegistryOption
from .output import emit
from .serve import (
    AdminTokenOption,
    ApiKeyOption,
    BaseOption,
    GraceOption,
    MaxRankOption,
    RootAtServerOption,
    RootOption,
    ToleranceOption,
    default_root,
    options_of,
    say,
)

if TYPE_CHECKING:
    from ..serving.controller import Controller

EXAMPLE = (
    "Example: efface serve gateway --upstream http://127.0.0.1:8000 --channel prod=support --keys keys.json "
    "--listen 127.0.0.1:8080"
)
KEY_EXAMPLE = "Example: efface serve key team-a --keys keys.json --channel prod"
REVOKE_EXAMPLE = "Example: efface serve revoke team-a --keys keys.json"
_PUBLIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}", re.ASCII)

KeysOption = Annotated[Path, typer.Option("--keys", help="The file with the hashes of the API keys.")]
KeyArgument = Annotated[str, typer.Argument(metavar="ID", help="A name for the log, such as team-a.")]


def gateway(
    upstream: Annotated[str, typer.Option("--upstream", help="The server: http://HOST:PORT or unix:/PATH.")],
    channel: Annotated[
        list[str],
        typer.Option("--channel", metavar="NAME[=MODEL]", help="A channel, and the model's public name."),
    ],
    keys: KeysOption,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where users ask.")
    ] = "127.0.0.1:8080",
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Follow the state files here instead: another process swaps."),
    ] = None,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Requests in flight, in all.")] = 256,
    per_key: Annotated[int, typer.Option("--per-key", min=1, help="Of one API key.")] = 64,
    largest: Annotated[int, typer.Option("--max-body", min=1024, max=8 << 20, help="Bytes of a request.")] = 1
    << 20,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that the server may say nothing.")
    ] = 600.0,
    root: RootOption = None,
    root_at_server: RootAtServerOption = None,
    max_rank: MaxRankOption = 512,
    model: BaseOption = None,
    grace: GraceOption = 5.0,
    tolerance: ToleranceOption = None,
    api_key: ApiKeyOption = None,
    admin_token: AdminTokenOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Answer the OpenAI API by verified releases only: the one thing that users of the server can reach.

    Without --state it also follows the channels and swaps, as `efface serve vllm --watch` does. No release that is
    verified and probed, no answer. The server must be reachable from here only: docs/serving.md.
    """
    from ..serving.controller import Controller
    from ..serving.feeds import controlling, following
    from ..serving.gateway import Gateway, Settings
    from ..serving.keys import KeyFile
    from ..serving.listen import serve
    from ..serving.relay import Upstream
    from ..serving.routes import Routes
    from ..serving.source import Source
    from ..serving.vllm import VllmServer

    publics, (host, port) = public_models(channel), address(listen)
    channels, file, routes = tuple(sorted(set(publics.values()))), KeyFile(keys), Routes()
    file()
    settings = Settings(publics, at_once=at_once, per_key=per_key, largest=largest)
    server = Upstream(upstream, api_key=api_key, timeout=timeout, connections=at_once)

    @contextmanager
    def opened(name: str) -> Generator[Controller]:
        with (
            Registry.open(registry) as reg,
            VllmServer(upstream, api_key=api_key, admin_token=admin_token) as one,
        ):
            place = root or default_root(reg, upstream)
            options = options_of(place, root_at_server, max_rank, model, grace, tolerance)
            with Controller(Source(reg, name), one, options, routes=routes, told=say).owned() as controller:
                yield controller

    feed = following(state, channels, routes, say) if state else controlling(opened, channels, routes, say)
    _log_to_stderr()
    with feed:
        serve(Gateway(settings, routes, server, file), host, port, at_once=at_once)
    emit({"listen": listen, "models": publics}, format, "stopped")


def key(
    id: KeyArgument,
    keys: KeysOption,
    channel: Annotated[list[str], typer.Option("--channel", help="What it may ask. Repeatable.")] = [],  # noqa: B006
    metrics: Annotated[bool, typer.Option("--metrics", help="It may read /metrics.")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Make an API key and print it, once: the file has its hash only. A running gateway takes it at once."""
    from ..serving.errors import ServingError
    from ..serving.keys import changing, new_key, read_keys, write_keys

    text, record = new_key(id, channel, metrics=metrics)
    with changing(keys):
        there = read_keys(keys) if keys.exists() else ()
        if any(one.id == id for one in there):
            raise ServingError(
                f"expected a new id, got {id}, which has a key; revoke that one: efface serve revoke {id}"
            )
        write_keys(keys, [*there, record])
    emit({"id": id, "key": text, "channels": list(record.channels), "metrics": metrics}, format, text)


def revoke(id: KeyArgument, keys: KeysOption, format: FormatOption = Format.text) -> None:
    """Take an API key out of the file. A running gateway lets it in no more."""
    from ..serving.errors import ServingError
    from ..serving.keys import changing, read_keys, write_keys

    with changing(keys):
        there = read_keys(keys)
        left = [one for one in there if one.id != id]
        if len(left) == len(there):
            raise ServingError(
                f"expected one of {', '.join(one.id for one in there) or 'no keys'}, got {id}; name one"
            )
        write_keys(keys, left)
    emit({"id": id, "left": [one.id for one in left]}, format, f"{id} is revoked")


def public_models(given: Sequence[str]) -> dict[str, str]:
    """Channels by public name, from ``NAME`` or ``NAME=MODEL``."""
    found: dict[str, str] = {}
    for one in given:
        channel, _, public = one.partition("=")
        public = public or channel
        checks.channel(channel)
        if not _PUBLIC.fullmatch(public) or public in found:
            raise typer.BadParameter("expected each --channel as NAME or NAME=MODEL, with a MODEL of its own")
        found[public] = channel
    return found


def address(listen: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[::1]:PORT`` included."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise typer.BadParameter("expected --listen as HOST:PORT, such as 127.0.0.1:8080")
    return host, int(port)


def _log_to_stderr() -> None:
    """One JSON object per line and request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("efface.gateway")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
