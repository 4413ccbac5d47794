"""The HTTP side of the server, in front of an engine that says what the test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import httpx
import pytest

from swift_toolkit.serving import gateway
from swift_toolkit.serving.api.request import ApiError, ApiRequest, Facts, Limits
from swift_toolkit.serving.gateway import Exchange, Gateway, Policy
from swift_toolkit.serving.metrics import Metrics

ASKED = {"model": "one", "messages": [{"role": "user", "content": "Hi"}]}
OPEN = Policy(key=None, limits=Limits())
KEY = Policy(key="the-right-key", limits=Limits())


class Engine:
    """Answers a question with what its text asks for."""

    models: Mapping[str, Any] = {"one": 1}
    facts = Facts()

    async def answer(self, request: ApiRequest, one: Exchange) -> Any:
        said = request.conversations[0].messages[0]["content"]
        if said == "too long":
            raise ApiError(400, "Too long.", "messages", "context_length_exceeded")
        if said == "break":
            raise RuntimeError("a secret of the request")
        if said == "wait":
            await asyncio.sleep(60)
        return self._pieces(said) if request.stream else {"said": said}

    async def _pieces(self, said: str) -> AsyncGenerator[Any, None]:
        yield {"choices": []}
        if said == "break later":
            raise RuntimeError("a secret of the request")
        if said == "wait later":
            await asyncio.sleep(60)


def ask(
    content: Any,
    policy: Policy = OPEN,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    **headers: str,
) -> tuple[httpx.Response, list[Exchange]]:
    seen: list[Exchange] = []
    layer = Gateway(Engine(), policy, Metrics(seen.append), {})
    sent = {
        "content-type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(layer)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            return await client.request(method, path, content=content, headers=sent)

    return asyncio.run(send()), seen


def chat(said: str, **more: Any) -> tuple[httpx.Response, list[Exchange]]:
    return ask(json.dumps({**ASKED, "messages": [{"role": "user", "content": said}], **more}))


def test_a_refusal_of_the_engine_is_in_the_format_of_openai() -> None:
    response, (one,) = chat("too long")
    assert (response.status_code, one.status, one.model) == (400, 400, "one")
    assert response.json()["error"] == {
        "message": "Too long.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }


@pytest.mark.parametrize(("said", "stream"), [("break", False), ("break later", True)])
def test_what_breaks_is_one_line_with_the_id_of_the_request(said: str, stream: bool) -> None:
    response, (one,) = chat(said, stream=stream)
    text = response.text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(text)["error"] == {
        "message": f"The server failed to answer; see request {one.id} in its log.",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert response.headers["x-request-id"] == one.id
    assert (response.status_code, one.status) == (200 if stream else 500, 500)
    assert one.failure.startswith("RuntimeError at tests/serving/test_gateway.py:")
    assert "secret" not in one.failure


def test_a_body_is_bounded_whether_or_not_it_says_how_long_it_is() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    policy = Policy(key=None, limits=Limits(max_body=1000))
    for body in (b"x" * 2000, pieces()):
        response, _ = ask(body, policy)
        assert response.status_code == 413
        assert (
            response.json()["error"]["message"]
            == "The request is larger than 1,000 bytes, the limit of this server."
        )


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: Any) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    monkeypatch.setattr(gateway, "BODY_SECONDS", 0.1)
    assert ask(nothing())[0].status_code == 408


def run(said: str, stream: bool, then: Any) -> tuple[list[Any], list[Exchange]]:
    """What is sent to a client that asks, and what was seen; ``then(layer, leave)`` happens a moment later."""
    sent: list[Any] = []
    seen: list[Exchange] = []

    async def both() -> None:
        layer = Gateway(Engine(), OPEN, Metrics(seen.append), {})
        leaving = asyncio.Event()
        body = json.dumps(
            {**ASKED, "messages": [{"role": "user", "content": said}], "stream": stream}
        ).encode()
        coming = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            if coming:
                return coming.pop()
            await leaving.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": headers,
            "scheme": "http",
        }
        answering = asyncio.ensure_future(layer(scope, receive, send))
        await asyncio.sleep(0.1)
        then(layer, leaving)
        await asyncio.wait_for(answering, 5)

    asyncio.run(both())
    return sent, seen


def test_a_client_that_goes_away_is_not_answered() -> None:
    sent, (one,) = run("wait", False, lambda layer, leaving: leaving.set())
    assert (sent, one.status) == ([], 0)


def test_answers_that_are_cut_say_so() -> None:
    sent, (one,) = run("wait", False, lambda layer, leaving: layer.cut_answers())
    assert (sent[0]["status"], one.cut) == (503, True)
    sent, (one,) = run("wait later", True, lambda layer, leaving: layer.cut_answers())
    assert one.cut
    assert sent[-1]["more_body"] is False
    last = json.loads(sent[-1]["body"].decode().removeprefix("data: "))
    assert last["error"]["message"] == "The server is shutting down and cut off this answer."


class Streaming(Engine):
    """Streams without a pause; ``steps`` turns of the event loop after its tenth piece the answers are cut."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.layer: Gateway

    async def _pieces(self, said: str) -> AsyncGenerator[Any, None]:
        for number in range(1000):
            if number == 10:
                self._cut_after(self.steps)
            yield {"choices": []}

    def _cut_after(self, steps: int) -> None:
        if steps:
            asyncio.get_running_loop().call_soon(self._cut_after, steps - 1)
        else:
            self.layer.cut_answers()


@pytest.mark.parametrize("steps", range(8))
def test_a_cut_is_not_lost_in_the_middle_of_a_send(steps: int) -> None:
    seen: list[Exchange] = []
    sent: list[Any] = []
    engine = Streaming(steps)
    engine.layer = Gateway(engine, OPEN, Metrics(seen.append), {})
    coming = [{"type": "http.request", "body": json.dumps({**ASKED, "stream": True}).encode()}]

    async def receive() -> Any:
        if not coming:
            await asyncio.sleep(60)
        return coming.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    asyncio.run(engine.layer(scope, receive, send))
    assert [one.cut for one in seen] == [True]
    assert b"cut off this answer" in sent[-1]["body"]
    assert len(sent) < 40


def test_a_connection_that_takes_no_answer_is_no_failure() -> None:
    """As h11 behaves where the client broke the protocol after its request."""
    seen: list[Exchange] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(ASKED).encode()}

    async def send(message: Any) -> None:
        raise RuntimeError("can't handle event type Response when role=SERVER and state=ERROR")

    layer = Gateway(Engine(), OPEN, Metrics(seen.append), {})
    for path, kind in (("/v1/chat/completions", b"text/plain"), ("/health", b""), ("/none", b"")):
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"content-type", kind)],
            "scheme": "http",
        }
        asyncio.run(layer(scope, receive, send))
    assert [one.failure for one in seen] == [""]


def test_half_a_character_is_no_reason_to_break() -> None:
    response, _ = ask(b'{"model": "\\ud800", "messages": []}')
    assert response.status_code == 404
    assert chat("\ud800")[0].status_code == 400


def test_a_key_is_asked_for_in_the_usual_way() -> None:
    for header, status in (
        ("Bearer the-right-key", 200),
        ("bearer the-right-key", 200),
        ("Basic the-right-key", 401),
        ("Bearer the-right-ke", 401),
        ("the-right-key", 401),
        ("", 401),
    ):
        response, _ = ask(json.dumps(ASKED), KEY, Authorization=header)
        assert response.status_code == status, header
    assert response.headers["www-authenticate"] == "Bearer"


def test_models_are_shown_one_by_one() -> None:
    assert ask(b"", path="/v1/models", method="GET")[0].json()["data"][0]["id"] == "one"
    assert ask(b"", path="/v1/models/one", method="GET")[0].json()["id"] == "one"
    assert ask(b"", path="/v1/models/two", method="GET")[0].json()["error"]["code"] == "model_not_found"
    assert ask(b"", path="/v1/models", method="PUT")[0].status_code == 405


def test_a_request_must_say_that_it_is_json() -> None:
    response, _ = ask(json.dumps(ASKED), content_type="text/plain")
    assert response.status_code == 415
    assert response.json()["error"]["message"] == "The Content-Type must be application/json."
    assert ask(json.dumps(ASKED), content_type="application/json; charset=utf-8")[0].status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("", 403),
        ("[", 403),
    ],
)
def test_without_a_key_another_name_may_be_a_trap(host: str, status: int) -> None:
    assert ask(json.dumps(ASKED), Host=host)[0].status_code == status
    assert ask(json.dumps(ASKED), KEY, Host=host, Authorization="Bearer the-right-key")[0].status_code == 200


def test_pages_of_other_sites_may_not_ask() -> None:
    policy = Policy(key=None, limits=Limits(), origins=frozenset({"https://allowed.example"}))
    for origin, status in (
        ("http://localhost:8000", 200),
        ("https://localhost:8000", 200),  # a proxy speaks TLS
        ("https://allowed.example", 200),
        ("https://evil.example", 403),
        ("http://localhost:3000", 403),
        ("null", 403),
    ):
        response, _ = ask(json.dumps(ASKED), policy, Origin=origin)
        assert response.status_code == status, origin
        assert response.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
    preflight, _ = ask(b"", policy, method="OPTIONS", Origin="https://allowed.example")
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
