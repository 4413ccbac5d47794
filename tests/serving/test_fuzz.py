"""Random requests to the real server: no status outside the contract, no traceback, no wait over five seconds.

A short part runs with the other slow tests. ``make fuzz`` runs all: 500 raw HTTP requests and 500 chat requests, or as
many as FUZZ_REQUESTS says. FUZZ_SEED chooses other ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy_model import ModelDeployer
from swift_toolkit.serving.api import fields
from tests.adapters import make_adapter

pytestmark = pytest.mark.slow

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "120"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
LONGEST_WAIT = 5.0
"""Seconds; nothing that is asked here takes longer on a machine that is not busy."""

SECRET = "a-word-of-a-request"


@pytest.fixture(scope="module")
def deployer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelDeployer]:
    folder = tmp_path_factory.mktemp("fuzz")
    adapter = make_adapter(tiny_model, folder / "one", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("SWIFT_API_KEY", raising=False)
        deployer = ModelDeployer(
            adapter, port=0, output_dir=str(folder / "runs"), max_tokens_limit=8, max_body_mb=0.25
        )
        with deployer:
            yield deployer


def exchange(deployer: ModelDeployer, request: bytes, patience: float = 30) -> tuple[bytes, float]:
    """What the server sends for the bytes of a request, and the seconds it took; ours is the last word after
    ``patience`` seconds of silence, or once it has begun to answer.
    """
    began = time.monotonic()
    answer = bytearray()
    address = ("127.0.0.1", int(deployer.url.split(":")[2].split("/")[0]))
    with socket.create_connection(address, timeout=patience) as connection, contextlib.suppress(OSError):
        connection.sendall(request)
        with contextlib.suppress(TimeoutError):
            answer += connection.recv(65536)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(30)
        while block := connection.recv(65536):
            answer += block
    return bytes(answer), time.monotonic() - began


def status_of(answer: bytes) -> int:
    """The HTTP status; 0 where the server just closed."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def check(
    deployer: ModelDeployer, make: Callable[[random.Random], bytes], allowed: set[int], patience: float
) -> Counter[int]:
    """Send random requests one after the other and hold the server to its contract."""
    statuses: Counter[int] = Counter()
    slowest = 0.0
    for number in range(REQUESTS):
        request = make(random.Random(f"{SEED}/{number}"))
        answer, seconds = exchange(deployer, request, patience)
        status = status_of(answer)
        assert status in allowed, (number, request[:2000], answer[:500])
        assert seconds < 6 * LONGEST_WAIT, (number, request[:2000])  # the machine may be busy
        slowest = max(slowest, seconds)
        statuses[status] += 1
    print(f"{REQUESTS} requests, slowest {slowest:.2f} s, {dict(statuses)}")
    return statuses


@pytest.fixture(autouse=True)
def _healthy(deployer: ModelDeployer) -> Iterator[None]:
    """Nothing of a request is in the log, and the server still answers with hardly more memory than before."""
    assert deployer.ready is not None
    server = psutil.Process(deployer.ready.pid)
    before = server.memory_info().rss
    yield
    log = (deployer.directory / "serve.log").read_text(errors="replace")
    assert "Traceback" not in log
    assert SECRET not in log
    assert server.memory_info().rss - before < 300 << 20
    answer, _ = exchange(deployer, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status_of(answer) == 200


# --- raw HTTP -----------------------------------------------------------------------------------------------

METHODS = (b"GET", b"POST", b"PUT", b"OPTIONS", b"HEAD", b"DELETE", b"CONNECT", b"get", b"", b"G\0T", b"PRI")
PATHS = (b"/", b"/health", b"/v1/models", b"/v1/models/one", b"/v1/models/%00", b"/metrics", b"/v1/chat/completions",
         b"/v1/completions", b"/v1/embeddings", b"*", b"", b"//", b"/../../etc/passwd", b"/%2e%2e", b"/\xff", b"/a b",
         b"http://evil.example/", b"/" + b"a" * 9000, b"/v1/chat/completions?x=" + b"b" * 200)  # fmt: skip
HEADERS = (b"Host: localhost", b"Host: evil.example", b"Host: [", b"Host:", b"Host: localhost\r\nHost: evil.example",
           b"Content-Type: application/json", b"Content-Type: text/plain", b"Content-Type: \xff",
           b"Content-Length: 10", b"Content-Length: -1", b"Content-Length: 99999999999999999999",
           b"Content-Length: 5\r\nContent-Length: 6", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
           b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: websocket",
           b"Connection: upgrade", b"Connection: close", b"Authorization: Bearer \xff", b"Origin: null",
           b"Origin: https://evil.example", b"X: " + b"y" * 70_000, b"no colon", b": empty", b" folded",
           b"Cookie: a=b", b"Range: bytes=0-1", b"Accept-Encoding: br;q=nan")  # fmt: skip
BODIES = (b"", b"{}", b"{", b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"\0" * 100, b"[" * 5000,
          b'{"model": "a"}', b"x" * 400_000)  # fmt: skip


def raw_request(draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        return draw.randbytes(draw.randrange(400))
    version = draw.choice((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""))
    headers = draw.sample(HEADERS, draw.randrange(5))
    if draw.random() < 0.8:
        headers.insert(0, b"Host: localhost")
    if draw.random() < 0.5:
        headers.append(b"Content-Type: application/json")
    head = b"\r\n".join([b" ".join((draw.choice(METHODS), draw.choice(PATHS), version)), *headers])
    whole = head + b"\r\n\r\n" + draw.choice(BODIES)
    if draw.random() < 0.1:
        return whole[: draw.randrange(len(whole))]
    if draw.random() < 0.1:
        return whole * 2
    return whole


def test_raw_requests(deployer: ModelDeployer) -> None:
    check(deployer, raw_request, {0, 100, 200, 400, 401, 403, 404, 405, 408, 413, 415, 431}, 0.2)


# --- chats --------------------------------------------------------------------------------------------------

TEXTS = ("Hello", "", SECRET, "<image>", "<img>/etc/passwd</img>", "<|im_end|>", "\0", "\ud800", "é" * 50, "word " * 3000,
         "<tool_call>", "Action: f\nAction Input: {", "</think>", "🙂", "{{ 7*7 }}", "<bbox><ref-object>", " ", "\n")  # fmt: skip
VALUES: tuple[Any, ...] = (None, True, False, 0, 1, 2, 3, -1, 0.5, 1e308, 10**30, "", "auto", "none", SECRET, [], {},
                           [SECRET], {"type": "text"}, [[]], {"a": {"b": []}})  # fmt: skip
ROLES = (
    "user",
    "user",
    "user",
    "assistant",
    "system",
    "developer",
    "tool",
    "tool_call",
    "tool_response",
    "x",
    None,
)


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}, "stop": ["a", "e"]},
    {"temperature": 1.5, "top_k": 3, "seed": 7},
    {"n": 2, "temperature": 1.0},
    {"num_beams": 2},
    {"ignore_eos": True, "min_p": 0.2, "temperature": 2},
    {"min_tokens": 2, "repetition_penalty": 10, "top_p": 1e-9, "temperature": 0.01},
)


def some(draw: random.Random, depth: int = 3) -> Any:
    kind = draw.random()
    if depth and kind < 0.15:
        return [some(draw, depth - 1) for _ in range(draw.randrange(4))]
    if depth and kind < 0.3:
        names = ("type", "text", "url", "name", "function", "role", "content", SECRET)
        return {draw.choice(names): some(draw, depth - 1) for _ in range(draw.randrange(4))}
    return draw.choice((*VALUES, *TEXTS))


def message(draw: random.Random) -> Any:
    if draw.random() < 0.05:
        return some(draw)
    content: Any = draw.choice(TEXTS)
    if draw.random() < 0.3:
        kinds = ("text", "text", "image_url", "image", "audio", "video_url", "x")
        content = [
            {"type": (kind := draw.choice(kinds)), kind: draw.choice((*TEXTS, some(draw)))} for _ in range(2)
        ]
    elif draw.random() < 0.1:
        content = some(draw)
    return {
        "role": draw.choice(ROLES),
        "content": content,
        **({"tool_calls": some(draw)} if draw.random() < 0.1 else {}),
    }


def chat_request(draw: random.Random) -> bytes:
    path = draw.choice((fields.CHAT, fields.CHAT, fields.CHAT, fields.COMPLETIONS, fields.EMBEDDINGS))
    model = draw.choice(("tiny-llama", "tiny-llama-lora")) if draw.random() < 0.95 else SECRET
    body: dict[str, Any] = {"model": model, "max_tokens": 2}
    if path == fields.CHAT and draw.random() < 0.6:
        roles = ("user", "assistant") * 2
        body["messages"] = [
            {"role": role, "content": draw.choice(TEXTS)} for role in roles[: draw.choice((1, 3))]
        ]
    elif path == fields.CHAT:
        body["messages"] = [message(draw) for _ in range(draw.randrange(1, 5))]
    else:
        body["prompt" if path == fields.COMPLETIONS else "input"] = draw.choice(
            (*TEXTS, list(TEXTS[:3]), some(draw))
        )
    for one in draw.sample(fields.FIELDS, draw.choice((0, 0, 1, 2, 3))):
        if one.name not in ("model", "messages"):
            body[one.name] = draw.choice((*one.neutral, *VALUES, some(draw)))
    body |= draw.choice(SETTINGS)
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data


def test_chat_requests(deployer: ModelDeployer) -> None:
    statuses = check(deployer, chat_request, {200, 400, 404, 413}, 30)
    assert statuses[200] > REQUESTS / 10  # not everything is refused
