"""The real server under malice and bad luck: what it refuses, what it survives, and what it leaves behind."""

from __future__ import annotations

import base64
import contextlib
import json
import resource
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy_model import ModelDeployer
from tests.adapters import make_adapter
from tests.serving.test_media import as_data, bomb

pytestmark = pytest.mark.slow

HELLO = [{"role": "user", "content": "Hello"}]
KEY = "correct-horse-battery"
SECRET = "what-nobody-else-may-read"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("SWIFT_API_KEY", KEY)  # of the starter: it must not reach the server's environment
        yield


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with adapters, and beside it things that may not be loaded."""
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(tiny_model, folder / "allowed" / "one", 1)
    make_adapter(tiny_model, folder / "private", 2)
    pickled = make_adapter(tiny_model, folder / "allowed" / "pickled", 3)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    decoy = make_adapter(tiny_model, folder / "allowed" / "decoy", 4)  # PEFT reads adapter_model.bin there
    (decoy / "adapter_model.safetensors").rename(decoy / "other.safetensors")
    shutil.copy(pickled / "adapter_model.bin", decoy)
    (folder / "allowed" / "link").symlink_to(folder / "private")
    return folder


@pytest.fixture(scope="module")
def deployer(
    tiny_model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelDeployer]:
    deployer = ModelDeployer(
        adapters / "allowed" / "one",
        port=0,
        allow_runtime_lora=True,
        adapter_dir=[str(adapters / "allowed")],
        allow_origin=["https://allowed.example"],
        output_dir=str(tmp_path_factory.mktemp("deploy")),
    )
    with deployer:
        yield deployer


def send(deployer: ModelDeployer, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Ask the server; its status and what it says."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **headers}
    request = urllib.request.Request(deployer.url.removesuffix("/v1") + path, data, sent)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]


def chat(deployer: ModelDeployer, **body: Any) -> tuple[int, Any]:
    model = deployer.deployment.models[-1].name
    return send(
        deployer, "/v1/chat/completions", {"model": model, "messages": HELLO, "max_tokens": 2, **body}
    )


def log_of(deployer: ModelDeployer) -> str:
    return (deployer.directory / "serve.log").read_text()


def connect(deployer: ModelDeployer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(deployer.url.split(":")[2].split("/")[0])))


# --- the key, the log ---------------------------------------------------------------------------------------


def test_the_key_is_not_in_the_environment_of_the_server(deployer: ModelDeployer) -> None:
    assert deployer.ready is not None
    assert chat(deployer)[0] == 200
    server = psutil.Process(deployer.ready.pid)
    for process in (server, *server.children(recursive=True)):
        assert KEY not in Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
        assert not any(KEY in word for word in process.cmdline())


DEEP_TOOL: dict[str, Any] = {"type": "object", "properties": {}}
for _ in range(25):
    DEEP_TOOL = {"type": "object", "properties": {SECRET: DEEP_TOOL}}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": SECRET}]},
        {"messages": [{"role": "user", "content": f"<image><video><img>{SECRET}</img>"}]},
        {"messages": [{"role": "user", "content": f"{SECRET} \ud800"}]},
        {"messages": [{"role": "user", "content": f"{SECRET} " * 20_000}]},
        {"messages": [{"role": "tool", "content": SECRET}]},
        {"tools": [{"type": "function", "function": {"name": SECRET, "parameters": DEEP_TOOL}}]},
        {"images": [f"https://site.example/a.png?signature={SECRET}"]},
        {"stop": [SECRET], "stream": True},
        {SECRET: 1},
        {"model": SECRET},
    ],
)
def test_no_content_of_a_request_is_in_the_log(deployer: ModelDeployer, body: dict[str, Any]) -> None:
    before = len(log_of(deployer))
    assert chat(deployer, **body)[0] < 500
    written = log_of(deployer)[before:]
    assert SECRET not in written
    assert len(written.splitlines()) <= 2, written


def test_a_path_is_not_in_the_log_either(deployer: ModelDeployer) -> None:
    assert send(deployer, f"/v1/{SECRET}")[0] == 404
    assert SECRET not in log_of(deployer)


# --- adapters -----------------------------------------------------------------------------------------------

REFUSED = "lora_path is not an adapter below one of the --adapter-dir directories."


def test_adapters_only_come_from_the_allowed_directory(deployer: ModelDeployer, adapters: Path) -> None:
    def load(path: object) -> tuple[int, Any]:
        return send(deployer, "/v1/load_lora_adapter", {"lora_name": "new", "lora_path": str(path)})

    outside = (
        adapters / "private",
        adapters / "allowed" / "link",
        adapters / "allowed" / ".." / "private",
        adapters / "gone",
        adapters / "allowed" / "gone",
        "/etc",
        "/",
        "~nouser/x",
        "a\0b",
        "x" * 5000,
        "builtin/SmolLM2-135M-Instruct",
    )
    assert [load(path) for path in outside] == [(400, REFUSED)] * len(outside)
    for name in ("pickled", "decoy"):
        assert load(adapters / "allowed" / name)[0] == 400
    assert load(adapters / "allowed" / "one") == (200, b"Success: LoRA adapter 'new' added successfully.")
    assert send(deployer, "/v1/unload_lora_adapter", {"lora_name": "new"})[0] == 200
    assert chat(deployer)[0] == 200


# --- pages of other sites -----------------------------------------------------------------------------------


def test_a_web_page_of_another_site_cannot_ask(deployer: ModelDeployer) -> None:
    assert send(deployer, "/v1/models", Origin="https://evil.example")[0] == 403
    assert send(deployer, "/v1/models", Origin="https://allowed.example")[0] == 200
    form = json.dumps({"model": "x", "messages": HELLO}).encode()
    assert send(deployer, "/v1/chat/completions", form, **{"Content-Type": "text/plain"})[0] == 415


# --- connections --------------------------------------------------------------------------------------------


def test_half_a_head_is_not_waited_for(deployer: ModelDeployer) -> None:
    """200 connections that never finish their head are closed; the server answers others in the meantime."""
    with contextlib.ExitStack() as stack:
        there = [stack.enter_context(connect(deployer)) for _ in range(200)]
        for one in there:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert send(deployer, "/health")[0] == 200
        deadline = time.monotonic() + 40
        for one in there:
            one.settimeout(max(0.1, deadline - time.monotonic()))
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1000) == b""  # closed


def test_more_connections_than_there_are_descriptors(tiny_model: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    deployer = ModelDeployer(
        tiny_model,
        port=0,
        model_type="llama",
        template="chatml",
        output_dir=str(tmp_path),
        max_tokens_limit=8,
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 4096), hard))
    with deployer:
        with contextlib.ExitStack() as stack:
            there = [stack.enter_context(connect(deployer)) for _ in range(1100)]
            time.sleep(1)
            refused = 0
            for one in there[-50:]:
                one.settimeout(5)
                refused += one.recv(100).startswith(b"HTTP/1.1 503 ")
            assert refused == 50
        deadline = time.monotonic() + 20
        while send(deployer, "/health")[0] != 200:
            assert time.monotonic() < deadline
        assert len(log_of(deployer)) < 100_000
        for _ in range(300):
            send(deployer, "/v1/models/none")
    assert len(log_of(deployer)) < 200_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_huge_prompt_does_not_keep_others_waiting(deployer: ModelDeployer) -> None:
    assert deployer.ready is not None
    server = psutil.Process(deployer.ready.pid)
    before, began = server.memory_info().rss, time.monotonic()
    status, said = chat(deployer, messages=[{"role": "user", "content": "word " * 3_000_000}])
    assert (status, said.split(":")[0]) == (400, "The prompt is too long")
    assert time.monotonic() - began < 10
    assert server.memory_info().rss - before < 400 << 20


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"messages": [{"role": ("user", "assistant")[at % 2], "content": ""} for at in range(200_001)]},
            "A request may have at most 4,096 messages, not 200,001.",
        ),
        (
            {"messages": HELLO, "metadata": [[]] * 2_000_000},
            "The body of the request has more than 1,000,000 commas and brackets.",
        ),
        ({"messages": HELLO, "chat_template_kwargs": {"x": "word " * 2_000_000}}, "The prompt is too long"),
        ({"messages": HELLO, "x" * 12_000_000: 1}, '"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'),
    ],
)
def test_a_large_body_of_little_does_not_keep_others_waiting(
    deployer: ModelDeployer, body: dict[str, Any], message: str
) -> None:
    assert deployer.ready is not None
    server = psutil.Process(deployer.ready.pid)
    before = server.cpu_times()
    status, said = chat(deployer, **body)
    after = server.cpu_times()
    assert (status, said[: len(message)]) == (400, message)
    assert after.user + after.system - before.user - before.system < 1


# --- pictures -----------------------------------------------------------------------------------------------


def test_pictures_that_are_too_large_cost_nothing(tiny_llava: Path, tmp_path: Path) -> None:
    deployer = ModelDeployer(
        tiny_llava / "model",
        port=0,
        output_dir=str(tmp_path),
        model_type="llava1_5_hf",
        template="llava1_5_hf",
    )
    with deployer:
        assert deployer.ready is not None
        server = psutil.Process(deployer.ready.pid)
        good = as_data(next((tiny_llava / "images").glob("*.png")).read_bytes())

        def about(*pictures: str, text: str = "What?", model: str = "model") -> tuple[int, Any]:
            parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
            content = [*parts, {"type": "text", "text": text}]
            return chat(deployer, model=model, messages=[{"role": "user", "content": content}])

        assert about(good)[0] == 200
        before = server.memory_info().rss
        for _ in range(4):
            status, said = about(as_data(bomb(30_000, 30_000)))
            assert (status, said) == (400, "The images have more than 50,000,000 pixels in total.")
        assert server.memory_info().rss - before < 200 << 20
        assert about("https://site.example/a.png")[1].endswith(
            "which this server does not fetch. Send a data: URI."
        )
        assert about("http://127.0.0.1:1/a.png")[0] == 400
        secret = tmp_path / "secret.png"
        secret.write_bytes(base64.b64decode(good.partition(",")[2]))
        for cut in range(1, 12):
            tag = f"<img>{secret}</img>"
            parts = [{"type": "text", "text": tag[:cut]}, {"type": "text", "text": tag[cut:]}]
            assert chat(deployer, model="model", messages=[{"role": "user", "content": parts}])[0] == 400
