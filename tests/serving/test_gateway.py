"""The layer around the server, around an application that has no engine behind it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from swift_toolkit.serving import gateway
from swift_toolkit.serving.gateway import Exchange, Gateway, Policy, exchange
from swift_toolkit.serving.metrics import Metrics
from swift_toolkit.serving.request import ApiError, Limits

ASKED = {"model": "one", "messages": [{"role": "user", "content": "Hi"}]}


def application() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> Any:
        said = body["messages"][0]["content"]
        if said == "refuse":
            return JSONResponse({"message": "No.", "object": "error"}, 400)
        if said == "too long":
            exchange.get().error = ApiError(400, "Too long.", "messages", "context_length_exceeded")
            return JSONResponse({"message": "?", "object": "error"}, 400)
        if said == "break":
            raise RuntimeError("broken")

        async def pieces() -> AsyncIterator[str]:
            yield 'data: {"choices": []}\n\n'
            if said == "break later":
                raise RuntimeError("broken")
            yield "data: [DONE]\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    return app


def post(content: Any, policy: Policy | None = None, **more: Any) -> tuple[httpx.Response, list[Exchange]]:
    told: list[Exchange] = []
    policy = policy or Policy(None, Limits())
    layer = Gateway(application(), policy, {"one": 1}, Counter(), Metrics(told.append), {})

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(layer)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/v1/chat/completions", content=content, **more)

    return asyncio.run(send()), told


def chat(said: str) -> tuple[httpx.Response, list[Exchange]]:
    return post(json.dumps({**ASKED, "messages": [{"role": "user", "content": said}]}))


def test_an_error_of_the_application_is_put_in_the_format_of_openai() -> None:
    response, (one,) = chat("refuse")
    error = {"message": "No.", "type": "invalid_request_error", "param": None, "code": None}
    assert (response.status_code, response.json()) == (400, {"error": error})
    assert (one.status, one.model) == (400, "one")
    assert chat("too long")[0].json()["error"]["code"] == "context_length_exceeded"


def test_what_breaks_is_a_500_without_its_details() -> None:
    response, (one,) = chat("break")
    assert (response.status_code, one.status) == (500, 500)
    assert response.json()["error"] == {
        "message": "The server failed to answer; its log says why.",
        "type": "server_error",
        "param": None,
        "code": None,
    }


def test_a_stream_that_breaks_says_so_and_ends() -> None:
    response, (one,) = chat("break later")
    first, last = response.text.strip().split("\n\n")
    assert first == 'data: {"choices": []}'
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert one.status == 500


def test_a_body_is_bounded_whether_or_not_it_says_how_long_it_is() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    policy = Policy(None, Limits(max_body=1000))
    for body in (b"x" * 2000, pieces()):
        response, _ = post(body, policy)
        assert response.status_code == 413
        assert (
            response.json()["error"]["message"]
            == "The request is over 1,000 bytes, the most this server takes."
        )


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: Any) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    monkeypatch.setattr(gateway, "BODY_SECONDS", 0.1)
    assert post(nothing())[0].status_code == 408


def test_a_client_that_goes_away_is_not_answered() -> None:
    ended: list[str] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("work")

    metrics = Metrics(lambda one: ended.append(f"exchange {one.status}"))
    layer = Gateway(slow, Policy(None, Limits()), {"one": 1}, Counter(), metrics, {})
    coming = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": json.dumps(ASKED).encode()},
    ]

    async def receive() -> Any:
        return coming.pop()

    async def send(message: Any) -> None:
        ended.append("answer")

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    asyncio.run(asyncio.wait_for(layer(scope, receive, send), 5))
    assert ended == ["work", "exchange 0"]
    assert (
        b'swift_requests_total{model="one",path="/v1/chat/completions",status="499"} 1.0'
        in metrics.exposition()[0]
    )


def test_half_a_character_is_no_reason_to_break() -> None:
    response, _ = post(b'{"model": "\\ud800", "messages": []}')
    assert response.status_code == 404


def test_a_key_is_wanted_in_the_usual_way() -> None:
    policy = Policy("the-right-key", Limits())
    for header, status in (
        ("Bearer the-right-key", 200),
        ("bearer the-right-key", 200),
        ("Basic the-right-key", 401),
        ("Bearer the-right-ke", 401),
        ("the-right-key", 401),
        ("", 401),
    ):
        response, _ = post(json.dumps(ASKED), policy, headers={"Authorization": header})
        assert response.status_code == status, header
    assert response.headers["www-authenticate"] == "Bearer"
