"""The gateway: an ASGI application in front of an inference server, and the only thing that users can reach.

    app = Gateway(Settings(channels={"support": "prod"}), routes, upstream, lambda: read_keys(path))

It answers for public model names only, by the adapter that `Routes` says is active, verified and probed. There is no
list of what is forbidden: three endpoints, the fields of `asked`, no header of the user's. Whatever goes wrong, the
answer is an error; the base is never asked, and never a release that was not routed to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from . import asgi, asked, heads, relay
from .asgi import Message, Receive, Send
from .asked import Asked, Refused
from .errors import NoRoute, ServingError
from .gateway_metrics import CONTENT_TYPE, Metrics
from .headers import RELEASE_HEADER
from .keys import ApiKey, who
from .relay import Failed, Upstream
from .routes import Route, Routes
from .rules import NO_MODEL, Refusal
from .talk import Talk

DIGEST_HEADER = "x-efface-digest"
"""Digest of the adapter that answers, beside its name (`headers.RELEASE_HEADER`), on every answer."""

_log = logging.getLogger("efface.gateway")

_NO_KEY = Refusal(
    401, "invalid_api_key", "expected Authorization: Bearer KEY with a key of this gateway; ask for one"
)
_TOO_SLOW = Refusal(408, "request_timeout", "expected the whole body in time; send it again")
_FAULT = Refusal(500, "internal_error", "expected no fault of the gateway, got one; its log has the place")
_TOO_MANY = Refusal(429, "too_many_requests", "expected fewer requests at once; try again later")


@dataclass(frozen=True, slots=True)
class Settings:
    """``channels``: by public model name. ``at_once``: requests in flight, in all; ``per_key``: of one key.

    ``largest``: bytes of a body; ``body_s``: seconds to send it.
    """

    channels: Mapping[str, str]
    at_once: int = 256
    per_key: int = 64
    largest: int = 1 << 20
    body_s: float = 30.0


class Gateway:
    """The ASGI application. ``keys`` is asked at each request, and may raise `ServingError`: then nobody gets in."""

    def __init__(
        self, settings: Settings, routes: Routes, upstream: Upstream, keys: Callable[[], Sequence[ApiKey]]
    ) -> None:
        self._settings, self._routes, self._upstream, self._keys = settings, routes, upstream, keys
        self._metrics = Metrics(routes, sorted(set(settings.channels.values())))
        self._flying: Counter[str] = Counter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await self._upstream.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        talk = Talk(secrets.token_hex(8))
        try:
            await self._route(talk, scope, receive, send)
        except Refused as error:
            await self._refuse(talk, send, error.refusal)
        except (asgi.Disconnected, asyncio.CancelledError) as error:
            talk.code = "client_gone"
            if isinstance(error, asyncio.CancelledError):
                raise
        except Exception as error:  # noqa: BLE001 - its text may hold what a user said: not for uvicorn to print
            await self._fault(talk, send, error)
        finally:
            self._told(talk)

    async def _route(self, talk: Talk, scope: Message, receive: Receive, send: Send) -> None:
        talk.path = path = heads.endpoint(scope)
        if path in (heads.HEALTH, heads.READY):
            await self._healthy(talk, path, send)
            return
        key = self._key(scope)
        talk.key = key.id
        if path == heads.MODELS:
            await self._models(talk, key, send)
        elif path == heads.METRICS:
            await self._scraped(talk, key, send)
        else:
            await self._completion(talk, key, scope, receive, send)

    async def _completion(
        self, talk: Talk, key: ApiKey, scope: Message, receive: Receive, send: Send
    ) -> None:
        body = await self._body(scope, receive)
        question = asked.read(talk.path, body)
        channel = self._settings.channels.get(question.public)
        if channel is None or channel not in key.channels:
            raise Refused(NO_MODEL)
        talk.channel, talk.stream = channel, question.stream
        try:
            with self._routes.lease(channel) as talk.route, self._entered(key, channel):
                await self._until_gone(self._ask(talk, question, talk.route, send), receive)
        except NoRoute:
            raise Refused(
                Refusal(503, "not_served", "expected a verified release, got none now; try later")
            ) from None
        except Failed as error:
            raise Refused(error.refusal) from None

    async def _ask(self, talk: Talk, question: Asked, route: Route, send: Send) -> None:
        body = question.body(route.name)
        async with self._upstream.ask(talk.path, body, stream=question.stream) as answer:
            if question.stream:
                async with aclosing(relay.events(answer, route.name, question.public)) as events:  # pyright: ignore[reportArgumentType]
                    await self._stream(talk, events, send)
            else:
                data = await relay.whole(answer, route.name, question.public)
                await self._respond(talk, send, 200, data)

    async def _stream(self, talk: Talk, events: Any, send: Send) -> None:
        """The first event comes before the status: what goes wrong until then is an honest error."""
        first = await anext(events)
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        talk.begun(200)
        await asgi.start(send, 200, {**self._headers(talk), **headers})
        await self._event(talk, send, first)
        try:
            async for event in events:
                await self._event(talk, send, event)
        except Failed as error:
            talk.code = error.refusal.code
            await self._event(talk, send, relay.error_event(error.refusal))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _event(self, talk: Talk, send: Send, event: bytes) -> None:
        talk.sent += len(event)
        await send({"type": "http.response.body", "body": event, "more_body": True})

    async def _until_gone(self, work: Any, receive: Receive) -> None:
        """Do ``work``; give up when the client hangs up, which closes the connection to the server and frees it."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(asgi.disconnected(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise asgi.Disconnected
            task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            for one in (task, gone):
                with suppress(asyncio.CancelledError, Exception):
                    await one

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        heads.require_body(scope, self._settings.largest)
        try:
            async with asyncio.timeout(self._settings.body_s):
                return await asgi.read_body(receive, self._settings.largest)
        except TimeoutError:
            raise Refused(_TOO_SLOW) from None
        except asgi.BodyTooLarge:
            raise Refused(heads.TOO_LARGE) from None

    def _key(self, scope: Message) -> ApiKey:
        try:
            key = who(self._keys(), heads.once(scope, b"authorization"))
        except ServingError:
            key = None
        if key is None:
            raise Refused(_NO_KEY)
        return key

    @contextmanager
    def _entered(self, key: ApiKey, channel: str) -> Generator[None]:
        if self._flying.total() >= self._settings.at_once or self._flying[key.id] >= self._settings.per_key:
            raise Refused(_TOO_MANY)
        self._flying[key.id] += 1
        self._metrics.in_flight.labels(channel).inc()
        try:
            yield
        finally:
            self._flying[key.id] -= 1
            self._metrics.in_flight.labels(channel).dec()

    async def _healthy(self, talk: Talk, path: str, send: Send) -> None:
        ready = path == heads.HEALTH or self.ready()
        await self._respond(talk, send, 200 if ready else 503, asgi.dumped({"ok": ready}))

    def ready(self) -> bool:
        """Whether every channel has a verified and probed release, and somebody could be let in."""
        routes = self._routes.snapshot().routes
        try:
            keys = bool(self._keys())
        except ServingError:
            keys = False
        return keys and all(channel in routes for channel in self._settings.channels.values())

    async def _models(self, talk: Talk, key: ApiKey, send: Send) -> None:
        routes = self._routes.snapshot().routes
        names = [name for name, channel in self._settings.channels.items() if channel in key.channels]
        cards = [
            {"id": name, "object": "model", "created": 0, "owned_by": "efface"}
            for name in sorted(names)
            if self._settings.channels[name] in routes
        ]
        await self._respond(talk, send, 200, asgi.dumped({"object": "list", "data": cards}))

    async def _scraped(self, talk: Talk, key: ApiKey, send: Send) -> None:
        if not key.metrics:
            raise Refused(heads.NO_PATH)
        await self._respond(talk, send, 200, self._metrics.text(), {"content-type": CONTENT_TYPE})

    async def _fault(self, talk: Talk, send: Send, error: Exception) -> None:
        """Log kind and place of a fault of this program, without its text, and end the answer."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        said = {"id": talk.id, "code": _FAULT.code, "error": type(error).__name__, "at": at}
        _log.error("%s", json.dumps(said))
        talk.code = _FAULT.code
        if talk.first is None:
            await self._refuse(talk, send, _FAULT)
        elif talk.stream:
            await self._event(talk, send, relay.error_event(_FAULT))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _refuse(self, talk: Talk, send: Send, refusal: Refusal) -> None:
        talk.code = refusal.code
        again = {"retry-after": "1"} if refusal.status in (429, 503) else {}
        await self._respond(talk, send, refusal.status, refusal.body(), again)

    async def _respond(
        self, talk: Talk, send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        talk.begun(status)
        talk.sent += len(body)
        await asgi.respond(send, status, body, {**self._headers(talk), **(headers or {})})

    def _headers(self, talk: Talk) -> dict[str, str]:
        """On every answer; release and digest as soon as a release is concerned."""
        plain = {"x-request-id": talk.id, "x-content-type-options": "nosniff"}
        if talk.route is None:
            return plain
        return {**plain, RELEASE_HEADER: talk.route.name, DIGEST_HEADER: talk.route.adapter}

    def _told(self, talk: Talk) -> None:
        if talk.channel is None:
            self._metrics.refused.labels(talk.code).inc()
        else:
            self._metrics.answers.labels(talk.channel, talk.code).inc()
            self._metrics.whole.labels(talk.channel).observe(talk.seconds())
            if talk.first is not None:
                self._metrics.first_byte.labels(talk.channel).observe(talk.first)
        _log.info("%s", talk.line())
