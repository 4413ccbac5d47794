"""The layer around ms-swift's server: who may ask, what may be asked, what is counted, how an error looks.

``Gateway`` is an ASGI application that passes checked requests on to another one, ms-swift's FastAPI app. It knows
nothing of engines and imports nothing heavy.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from swift_toolkit.serving import request as serving_request
from swift_toolkit.serving.request import ApiError, Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_SECONDS = 60.0
"""How long the body of a request may take to arrive."""

CHECKS = {
    "/v1/chat/completions": serving_request.check_chat,
    "/v1/completions": serving_request.check_completion,
    "/v1/embeddings": serving_request.check_embedding,
}


@dataclass
class Exchange:
    """One request on its way; what answers it adds what it learns.

    Args:
        path: of the URL.
        model: that is asked for, once known.
        status: HTTP status of the response, once known.
        first_token: seconds until the first piece of the answer.
        prompt_tokens, completion_tokens: once answered.
        error: why it cannot be answered, set by the engine's side.
    """

    path: str
    model: str = ""
    status: int = 0
    began: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: ApiError | None = None

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self.began


exchange: ContextVar[Exchange] = ContextVar("exchange")
"""The exchange that the running task belongs to."""


class Observer(Protocol):
    """What is told of every request."""

    def began(self, one: Exchange) -> None:
        """A checked request goes on to the engine."""

    def ended(self, one: Exchange) -> None:
        """The response is out, or the client has gone."""

    def exposition(self) -> tuple[bytes, str]:
        """What /metrics answers, and its content type."""


@dataclass(frozen=True)
class Policy:
    """What the gateway enforces.

    Args:
        key: the API key, None for none.
        limits: of one request.
        default_tokens: longest answer where a request names none; None for the limit.
        page: the chat page, None for none.
    """

    key: str | None
    limits: Limits
    default_tokens: int | None = None
    page: bytes | None = None


Action = Callable[[Mapping[str, Any]], Awaitable[str]]


class Gateway:
    """An ASGI application around ``app``.

    Args:
        app: what answers checked requests.
        policy: what is enforced.
        names: the model names that are served; may change while serving.
        running: how many requests each model has on their way; kept here, for whoever wants to know.
        observer: is told of every request.
        actions: paths of POST requests that are answered here, with what answers them.
    """

    def __init__(
        self,
        app: App,
        policy: Policy,
        names: Mapping[str, Any],
        running: Counter[str],
        observer: Observer,
        actions: Mapping[str, Action],
    ) -> None:
        self._app, self._policy, self._names, self._observer = app, policy, names, observer
        self._running, self._actions = running, actions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything that is no HTTP request goes on as it is."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # a WebSocket is closed unanswered
        one = Exchange(scope["path"])
        exchange.set(one)
        envelope = _Envelope(one, send)
        try:
            await self._answer(one, scope, receive, envelope)
        except ApiError as error:
            one.error = error
            await _respond(
                send, error.status, error.body(), _JSON, _AUTHENTICATE if error.status == 401 else []
            )
            one.status = error.status
        except Exception:
            traceback.print_exc()
            await envelope.fail()
        finally:
            self._observer.ended(one)

    async def _answer(self, one: Exchange, scope: Scope, receive: Receive, send: _Envelope) -> None:
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", "/health"):
            await self._app(scope, receive, send)
            return
        if (method, path) == ("GET", "/") and self._policy.page is not None:
            await _respond(send, 200, self._policy.page, b"text/html; charset=utf-8", _PAGE_HEADERS)
            return
        self._check_key(scope)
        if (method, path) == ("GET", "/v1/models"):
            await self._app(scope, receive, send)
        elif (method, path) == ("GET", "/metrics"):
            content, kind = self._observer.exposition()
            await _respond(send, 200, content, kind.encode())
        elif method == "POST" and path in self._actions:
            text = await self._actions[path](serving_request.parse(await self._body(scope, receive)))
            await _respond(send, 200, text.encode(), b"text/plain; charset=utf-8")
        elif method == "POST" and path in CHECKS:
            await self._ask(one, scope, receive, send)
        else:
            raise self._no_such_route(method, path)

    def _check_key(self, scope: Scope) -> None:
        if self._policy.key is None:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        if not hmac.compare_digest(key.strip(), self._policy.key.encode()) or scheme.lower() != b"bearer":
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    def _no_such_route(self, method: str, path: str) -> ApiError:
        gets = {"/health", "/v1/models", "/metrics"}
        if path in gets or path in CHECKS or path in self._actions:
            right = "GET" if path in gets else "POST"
            return ApiError(405, f"{path} takes {right}, not {method}.")
        return ApiError(404, f"There is no {path} here.")

    async def _ask(self, one: Exchange, scope: Scope, receive: Receive, send: _Envelope) -> None:
        request = serving_request.parse(await self._body(scope, receive))
        one.model = serving_request.check_model(request, self._names)
        checked = CHECKS[one.path](request, self._policy.limits, self._policy.default_tokens)
        try:
            body = json.dumps(checked).encode()
        except RecursionError:
            raise ApiError(400, "The body of the request is nested too deeply.") from None
        headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"content-type")]
        headers += [(b"content-length", str(len(body)).encode()), (b"content-type", _JSON)]
        self._observer.began(one)
        self._running[one.model] += 1
        try:
            await _while_there(
                receive, send, self._app({**scope, "headers": headers}, _replay(body, receive), send)
            )
        finally:
            self._running[one.model] -= 1

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._policy.limits.max_body
        too_long = ApiError(413, f"The request is over {limit:,} bytes, the most this server takes.")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if length.isdigit() and int(length) > limit:
            raise too_long
        body = bytearray()
        deadline = time.monotonic() + BODY_SECONDS
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise ApiError(408, f"The request did not arrive within {BODY_SECONDS:.0f} s.") from None
            if message["type"] == "http.disconnect":
                raise ApiError(400, "The request is not whole.")
            body += message.get("body", b"")
            if len(body) > limit:
                raise too_long
            if not message.get("more_body"):
                return bytes(body)


_JSON = b"application/json"
_AUTHENTICATE = [(b"www-authenticate", b"Bearer")]
_PAGE_HEADERS = [
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
     b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]  # fmt: skip


async def _respond(
    send: Send, status: int, body: bytes, kind: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    lines = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """``receive`` as it was before ``body`` was read."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return whole.pop() if whole else await receive()

    return replayed


async def _while_there(receive: Receive, send: _Envelope, answering: Awaitable[None]) -> None:
    """Await ``answering``, but cancel it when the client goes away before it has its answer."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.ensure_future(answering), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not send.done:
            work.cancel()
        with suppress(asyncio.CancelledError):
            await work
    finally:
        work.cancel()
        leaving.cancel()


class _Envelope:
    """Passes a response on; one that says an error is put in OpenAI's format first."""

    def __init__(self, one: Exchange, send: Send) -> None:
        self._one, self._send = one, send
        self._failed = bytearray()
        self.done = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._one.status = message["status"]
            if message["status"] < 400:
                await self._send(message)
            return
        self.done = not message.get("more_body")
        if self._one.status < 400:
            await self._send(message)
        else:
            self._failed += message.get("body", b"")
            if self.done:
                await self._refuse(self._one.error or ApiError(self._one.status, _said(self._failed)))

    async def _refuse(self, error: ApiError) -> None:
        self.done = True
        self._one.error, self._one.status = error, error.status
        await _respond(self._send, error.status, error.body(), _JSON)

    async def fail(self) -> None:
        """End a response whose maker failed: a stream that has begun with an event that says so."""
        error = self._one.error or ApiError(500, "The server failed to answer; its log says why.")
        if self.done:
            return
        if not 0 < self._one.status < 400:
            await self._refuse(error)
            return
        self._one.error, self._one.status = error, 500
        await self._send({"type": "http.response.body", "body": b"data: " + error.body() + b"\n\n"})


def _said(body: bytes | bytearray) -> str:
    """The words of an error in ms-swift's or FastAPI's own format."""
    try:
        content = dict(json.loads(body))
    except (ValueError, TypeError):
        return "The server failed to answer; its log says why."
    if isinstance(content.get("detail"), list):
        return "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in content["detail"])
    return str(content.get("message") or content.get("detail") or "The request cannot be answered.")
