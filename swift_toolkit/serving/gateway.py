"""The HTTP side of the server: access checks, routes, metrics, error responses.

``Gateway`` is an ASGI application in front of an engine. It does not depend on any engine and imports nothing heavy.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar
from urllib.parse import urlsplit

from swift_toolkit.serving.api import request as api_request
from swift_toolkit.serving.api.answer import model_entry, model_list
from swift_toolkit.serving.api.fields import ENDPOINTS
from swift_toolkit.serving.api.request import ApiError, ApiRequest, Facts, Limits
from swift_toolkit.serving.api.schema import AnswerBody, AnswerPiece, RequestBody

ASGIMessage = MutableMapping[str, Any]
"""The scope of a connection, see https://asgi.readthedocs.io/en/latest/specs/www.html."""

Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

BODY_SECONDS = 60.0
"""Seconds for the body of a request to arrive."""

SEND_SECONDS = 60.0
"""Seconds for a client to receive one piece of its answer."""

LAST_SEND_SECONDS = 1.0
"""Seconds for a client to receive the event which says that its answer was cut off."""


class Scope(TypedDict):
    """The part of an ASGI scope that is used here."""

    type: str
    method: str
    path: str
    headers: Headers


@dataclass
class Exchange:
    """One request in progress; the code that answers it fills in the fields.

    Args:
        method: HTTP method.
        path: path of the URL.
        id: identifies the request in the log and in the header ``x-request-id``.
        model: the requested model, once known.
        status: HTTP status of the response, once known.
        first_token: seconds until the first piece of the answer.
        prompt_tokens, completion_tokens: token counts, once answered.
        failure: the unexpected exception and where it was raised.
        cut: the server shut down before the answer was complete.
    """

    method: str
    path: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    model: str = ""
    status: int = 0
    began: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: str = ""
    cut: bool = False

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.began


class Observer(Protocol):
    """Is notified of every request."""

    def began(self, one: Exchange) -> None:
        """Called when a checked request is passed to the engine."""

    def ended(self, one: Exchange) -> None:
        """Called when the response was sent or the client has disconnected."""

    def exposition(self) -> tuple[bytes, str]:
        """The response of /metrics and its content type."""


class ServingEngine(Protocol):
    """Answers checked requests."""

    @property
    def models(self) -> Mapping[str, object]:
        """The names of the served models; may change while serving."""

    @property
    def facts(self) -> Facts:
        """The properties of the model that requests are checked against."""

    async def answer(
        self, request: ApiRequest, one: Exchange
    ) -> AnswerBody | AsyncGenerator[AnswerPiece, None]:
        """Return the whole answer, or a generator of its pieces.

        Raises:
            ApiError: the request cannot be answered.
        """


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules that the gateway enforces.

    Args:
        key: the API key, None for no key.
        limits: limits of one request.
        hosts: accepted host names, checked only without a key; IP addresses are always accepted.
        origins: origins whose web pages may send requests, in addition to the server's own.
        page: the chat page, None for no page.
    """

    key: str | None
    limits: Limits
    hosts: frozenset[str] = frozenset({"localhost"})
    origins: frozenset[str] = frozenset()
    page: bytes | None = None


Action = Callable[[RequestBody], Awaitable[str]]


@dataclass(frozen=True)
class _Http:
    """One HTTP request as ASGI provides it."""

    scope: Scope
    receive: Receive
    response: _Response

    def header(self, name: bytes) -> str | None:
        found = next((value for key, value in self.scope["headers"] if key == name), None)
        return None if found is None else found.decode("latin-1")


@dataclass(frozen=True)
class Route:
    """One route of the server.

    Args:
        method: GET or POST.
        path: path of the URL; one that ends with ``/`` includes all paths below it.
        answer: handler.
        is_open: whether no key is required.
    """

    method: str
    path: str
    answer: Callable[[Exchange, _Http], Coroutine[Any, Any, None]]
    is_open: bool = False

    def fits(self, path: str) -> bool:
        """Whether the route handles ``path``."""
        if self.path.endswith("/") and len(self.path) > 1:
            return path.startswith(self.path) and path != self.path
        return path == self.path


class Gateway:
    """An ASGI application in front of an engine.

    Args:
        engine: answers checked requests.
        policy: the rules to enforce.
        observer: is notified of every request.
        actions: handlers of POST requests that change the engine, by path.
    """

    def __init__(
        self, engine: ServingEngine, policy: Policy, observer: Observer, actions: Mapping[str, Action]
    ) -> None:
        self._engine, self._policy, self._observer = engine, policy, observer
        self._cut = asyncio.Event()
        self.routes = (
            Route("GET", "/health", self._health, is_open=True),
            *([Route("GET", "/", self._page, is_open=True)] if policy.page is not None else []),
            Route("GET", "/v1/models", self._list_models),
            Route("GET", "/v1/models/", self._show_model),
            Route("GET", "/metrics", self._metrics),
            *(Route("POST", path, self._ask) for path in ENDPOINTS),
            *(Route("POST", path, self._action(action)) for path, action in actions.items()),
        )

    def cut_answers(self) -> None:
        """End all running answers with an error that states the reason."""
        self._cut.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a WebSocket is closed unanswered."""
        if scope["type"] != "http":
            return
        one = Exchange(scope["method"], scope["path"])
        http = _Http(scope, receive, _Response(one, send))
        try:
            await self._answer_in_time(one, http)
        except ApiError as error:
            await http.response.refuse(error)
        except (ConnectionError, asyncio.TimeoutError):
            pass  # the client has disconnected or does not read
        except Exception as error:
            one.failure = place_of(error)
            await http.response.refuse(
                ApiError(500, f"The server failed to answer; see request {one.id} in its log.")
            )
        finally:
            self._observer.ended(one)

    async def _answer_in_time(self, one: Exchange, http: _Http) -> None:
        """Answer, unless the shutdown cuts the answer off first.

        Raises:
            ApiError: the answer was cut off, or the request refused.
        """
        answering = asyncio.ensure_future(self._answer(one, http))
        if await _first(answering, self._cut.wait()):
            await answering
            return
        await _end(answering)
        if not answering.cancelled():
            answering.result()
            return
        one.cut = True
        http.response.patience = LAST_SEND_SECONDS
        raise ApiError(503, "The server is shutting down and cut off this answer.")

    async def _answer(self, one: Exchange, http: _Http) -> None:
        self._check_host(http)
        self._check_origin(http)
        method, path = one.method, one.path
        fitting = [route for route in self.routes if route.fits(path)]
        route = next((route for route in fitting if route.method == method), None)
        if route is None or not route.is_open:
            if method == "OPTIONS" and fitting and http.header(b"origin"):
                await http.response.send(200, b"", "text/plain", _PREFLIGHT)
                return
            self._check_key(http)
        if route is None:
            raise _no_such_route(method, path, fitting)
        await route.answer(one, http)

    # --- access checks --------------------------------------------------------------------------------------

    def _check_host(self, http: _Http) -> None:
        """Without a key, refuse unknown host names: a page of another site may have rebound one to this server."""
        host = http.header(b"host")
        if self._policy.key is not None or host is None:
            return
        name = _host_name(host)
        if name not in self._policy.hosts and not _is_address(name):
            raise ApiError(403, "This Host is not allowed. Allow it with --allow-origin.")

    def _check_origin(self, http: _Http) -> None:
        origin = http.header(b"origin")
        if origin is None:
            return
        own = (http.header(b"host") or "").lower()  # behind a proxy that terminates TLS the scheme differs
        if origin.lower().partition("://")[2] != own and origin.lower() not in self._policy.origins:
            raise ApiError(403, "Pages of this Origin are not allowed. Allow them with --allow-origin.")
        http.response.headers += [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"vary", b"origin"),
        ]

    def _check_key(self, http: _Http) -> None:
        if self._policy.key is None:
            return
        scheme, _, key = (http.header(b"authorization") or "").partition(" ")
        right = hmac.compare_digest(key.strip().encode("latin-1"), self._policy.key.encode())
        if not right or scheme.lower() != "bearer":
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    # --- routes ---------------------------------------------------------------------------------------------

    async def _health(self, one: Exchange, http: _Http) -> None:
        await http.response.send(200, b"", "text/plain")

    async def _page(self, one: Exchange, http: _Http) -> None:
        await http.response.send(200, self._policy.page or b"", "text/html; charset=utf-8", _PAGE_HEADERS)

    async def _list_models(self, one: Exchange, http: _Http) -> None:
        await http.response.json(model_list(self._engine.models))

    async def _show_model(self, one: Exchange, http: _Http) -> None:
        name = one.path.removeprefix("/v1/models/")
        if name not in self._engine.models:
            raise api_request.no_such_model(name, self._engine.models)
        await http.response.json(model_entry(name))

    async def _metrics(self, one: Exchange, http: _Http) -> None:
        content, kind = self._observer.exposition()
        await http.response.send(200, content, kind)

    def _action(self, action: Action) -> Callable[[Exchange, _Http], Coroutine[Any, Any, None]]:
        async def answer(one: Exchange, http: _Http) -> None:
            text = await action(await self._body(http))
            await http.response.send(200, text.encode(), "text/plain; charset=utf-8")

        return answer

    async def _ask(self, one: Exchange, http: _Http) -> None:
        body = await self._body(http)
        engine, limits = self._engine, self._policy.limits
        one.model = api_request.check_model(body, engine.models)
        request = api_request.check_fields(one.path, body, engine.models, limits, engine.facts)
        self._observer.began(one)
        answering = asyncio.ensure_future(self._send_answer(request, one, http))
        if await _first(answering, _gone(http.receive)):
            await answering
            return
        await _end(answering)
        if not answering.cancelled():
            answering.result()

    async def _send_answer(self, request: ApiRequest, one: Exchange, http: _Http) -> None:
        answer = await self._engine.answer(request, one)
        if not isinstance(answer, AsyncGenerator):
            await http.response.json(answer)
            return
        async with aclosing(answer):
            await http.response.begin_stream()
            async for event in answer:
                await http.response.event(event)
            await http.response.end_stream()

    async def _body(self, http: _Http) -> RequestBody:
        """Read the JSON object of a request."""
        kind = (http.header(b"content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "The Content-Type must be application/json.")
        limit = self._policy.limits.max_body
        length = http.header(b"content-length") or ""
        if length.isdecimal() and (len(length) > 15 or int(length) > limit):
            raise _too_large(limit)
        try:
            return api_request.parse_request(await _within(BODY_SECONDS, _whole_body(http.receive, limit)))
        except asyncio.TimeoutError:
            raise ApiError(408, f"The request did not arrive within {BODY_SECONDS:g} s.") from None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is larger than {limit:,} bytes, the limit of this server.")


async def _whole_body(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return bytes(body)


def _no_such_route(method: str, path: str, fitting: list[Route]) -> ApiError:
    if fitting:
        return ApiError(405, f"{path} requires {fitting[0].method}, not {method}.")
    return ApiError(404, f"{path} does not exist on this server.")


def _host_name(host: str) -> str:
    """The name in a Host header or an origin, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_ROOT = Path(__file__).resolve().parents[2]


def place_of(error: BaseException) -> str:
    """The type of an error and where its cause was raised: a log line without any content of the request."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return type(error).__name__ + place.replace(f"{_ROOT}/", "")


# --- the response -------------------------------------------------------------------------------------------

_PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type"),
    (b"access-control-max-age", b"600"),
]
_PAGE_HEADERS: Headers = [
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
     b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(
        "utf-8", "replace"
    )  # text may contain a lone surrogate


class _Response:
    """One response: sent whole, or as a stream of events.

    Args:
        one: the exchange it belongs to; its status is set.
        send: ASGI's send function.

    ``ended``: the last part was sent. ``patience``: seconds for a client to receive one part.
    """

    def __init__(self, one: Exchange, send: Send) -> None:
        self._one, self._raw = one, send
        self._begun = self.ended = False
        self.patience = SEND_SECONDS
        self.headers: Headers = [(b"x-request-id", one.id.encode()), (b"x-content-type-options", b"nosniff")]

    async def _send(self, message: ASGIMessage) -> None:
        try:
            await _within(self.patience, self._raw(message))
        except asyncio.TimeoutError:
            raise
        except Exception as error:  # h11 refuses to send after the client violated the protocol
            raise ConnectionError from error

    async def _start(self, status: int, kind: str, more: Headers) -> None:
        self._one.status, self._begun = status, True
        headers = [(b"content-type", kind.encode()), *more, *self.headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, status: int, body: bytes, kind: str, headers: Headers | None = None) -> None:
        """Send a whole response."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, kind, [length, *(headers or [])])
        self.ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def json(self, value: Any) -> None:
        """Send a whole answer as JSON."""
        await self.send(200, _json(value), "application/json")

    async def begin_stream(self) -> None:
        """Begin a stream of events."""
        await self._start(200, "text/event-stream; charset=utf-8", [(b"cache-control", b"no-cache")])

    async def event(self, value: Any) -> None:
        """Send one event."""
        await self._data(_json(value), more=True)

    async def end_stream(self) -> None:
        """Send the event that marks the stream as complete."""
        await self._data(b"[DONE]", more=False)

    async def _data(self, data: bytes, more: bool) -> None:
        self.ended = not more
        await self._send(
            {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": more}
        )

    async def refuse(self, error: ApiError) -> None:
        """Send an error; a stream that has begun ends with an event that contains it."""
        if self.ended:
            return
        with suppress(ConnectionError, asyncio.TimeoutError):
            if self._begun:
                self._one.status = error.status
                await self._data(error.body(), more=False)
                return
            more = [(b"www-authenticate", b"Bearer")] if error.status == 401 else []
            if error.status in (408, 413):  # the rest of the body is not read
                more.append((b"connection", b"close"))
            await self.send(error.status, error.body(), "application/json", more)


_Value = TypeVar("_Value")


async def _gone(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(work: asyncio.Future[None], *others: Coroutine[Any, Any, Any]) -> bool:
    """Whether ``work`` ends before the others, which are cancelled."""
    rest = [asyncio.ensure_future(one) for one in others]
    try:
        await asyncio.wait([work, *rest], return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    except asyncio.CancelledError:
        await _end(work)
        raise
    finally:
        for one in rest:
            one.cancel()


async def _end(work: asyncio.Future[Any]) -> None:
    """Cancel ``work`` and wait until it has ended; its exception is not raised."""
    work.cancel()
    await asyncio.wait([work])


async def _within(seconds: float, work: Awaitable[_Value]) -> _Value:
    """Return the result of ``work``.

    Before Python 3.12, ``asyncio.wait_for`` loses a cancellation that arrives in the same iteration of the event loop
    in which ``work`` ends; a stream could then never be ended.

    Raises:
        asyncio.TimeoutError: it took longer than ``seconds``.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        await _end(task)
        raise asyncio.TimeoutError
    return task.result()
