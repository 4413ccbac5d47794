"""The server as clients meet it: the openai package, curl, garbage, and the signals of an operator."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import json
import os
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import openai
import psutil
import pytest
from safetensors.numpy import load_file, save_file

import deploy_model
from deploy_model import ModelDeployer
from swift_toolkit.machine import process as machine_process
from swift_toolkit.problems import RunError
from swift_toolkit.serving import server as serving_server
from swift_toolkit.serving.engine import batches as engine_batches
from tests.adapters import make_adapter
from tests.serving import heeded

pytestmark = pytest.mark.slow

KEY = "correct-horse-battery"
HELLO = [{"role": "user", "content": "Hello"}]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The tiny model is fastest so, whatever else runs on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("SWIFT_API_KEY", raising=False)
        yield


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "one": make_adapter(tiny_model, folder / "one", 1, system="You are one."),
        "v2.0": make_adapter(tiny_model, folder / "two", 2, rank=16, system="You are two."),
        "spare": make_adapter(tiny_model, folder / "spare", 3),
    }


@pytest.fixture(scope="module")
def deployer(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelDeployer]:
    """Two adapters on the tiny model, with a key and everything that can be switched on."""
    folder = tmp_path_factory.mktemp("deploy")
    (folder / "key").write_text(KEY + "\n")
    deployer = ModelDeployer(
        multi_lora_config={name: str(adapters[name]) for name in ("one", "v2.0")},
        port=0,
        api_key_file=str(folder / "key"),
        allow_runtime_lora=True,
        adapter_dir=[str(adapters["spare"].parent), str(folder)],
        chat=True,
        max_tokens_limit=64,
        max_body_mb=1,
        output_dir=str(folder / "runs"),
    )
    with deployer:
        yield deployer


@pytest.fixture(scope="module")
def client(deployer: ModelDeployer) -> openai.OpenAI:
    return openai.OpenAI(base_url=deployer.url, api_key=KEY, max_retries=0, timeout=120)


def ask(client: openai.OpenAI, model: str, **more: Any) -> str:
    settings: dict[str, Any] = {"messages": HELLO, "max_tokens": 8, "temperature": 0, **more}
    answer = client.chat.completions.create(model=model, **settings)
    assert answer.model == model
    return answer.choices[0].message.content or ""


def test_a_checkpoint_is_compared_with_its_server(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    adapters: dict[str, Path],
    deployer: ModelDeployer,
) -> None:
    monkeypatch.setenv("SWIFT_API_KEY", KEY)
    words = ["--checkpoint", str(adapters["one"]), "--against", deployer.url]
    assert deploy_model.main(words) == 2
    assert "Name one of them: " in capsys.readouterr().err
    assert deploy_model.main([*words, "--served-model-name", "one"]) == 0
    out = capsys.readouterr().out
    assert "8 of 8 answers equal" in out, out


def post(deployer: ModelDeployer, path: str, body: bytes, key: str | None = KEY) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(deployer.url.removesuffix("/v1") + path, body or None, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def leave(deployer: ModelDeployer, body: bytes, after: float, length: int | None = None) -> None:
    """Send a request that says to be ``length`` bytes long, and go away ``after`` seconds."""
    host, port = "127.0.0.1", int(deployer.url.split(":")[2].split("/")[0])
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, port)) as connection, contextlib.suppress(OSError):
        connection.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body)
        time.sleep(after)


# --- clients ------------------------------------------------------------------------------------------------


def test_the_name_asked_for_decides(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-llama", "one", "v2.0"]
    answers = [ask(client, name) for name in ("tiny-llama", "one", "v2.0")]
    assert len(set(answers)) == 3
    assert answers == [ask(client, name) for name in ("tiny-llama", "one", "v2.0")]


def test_an_adapter_gets_the_system_prompt_it_was_trained_with(client: openai.OpenAI) -> None:
    for name, system in (("one", "You are one."), ("v2.0", "You are two.")):
        given = [{"role": "system", "content": system}, *HELLO]
        assert ask(client, name) == ask(client, name, messages=given)
        assert ask(client, name) != ask(client, name, messages=[{"role": "system", "content": "No."}, *HELLO])


def test_several_answers_to_one_question(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="one", messages=HELLO, max_tokens=8, temperature=1, n=3)
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_a_stream_says_what_an_answer_says(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="one", messages=HELLO, max_tokens=8, temperature=0, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ask(client, "one")
    assert {chunk.model for chunk in chunks} == {"one"}
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_completion_goes_on_from_its_prompt(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "one", "max_tokens": 8, "temperature": 0}
    answer = client.completions.create(prompt="Once upon a", logprobs=2, **settings)
    assert answer.usage is not None and answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 8
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.tokens is not None and scores.token_logprobs is not None
    assert "".join(scores.tokens) == answer.choices[0].text
    assert len(scores.token_logprobs) == 8 and all(score <= 0 for score in scores.token_logprobs)
    pieces = client.completions.create(prompt="Once upon a", stream=True, **settings)
    assert "".join(piece.choices[0].text or "" for piece in pieces) == answer.choices[0].text
    both = client.completions.create(prompt=["Once upon a", "Twice"], **settings)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == answer.choices[0].text


def test_an_answer_ends_before_a_stop_text(client: openai.OpenAI) -> None:
    whole = ask(client, "one", max_tokens=20)
    words = [word for word in re.findall(r"[A-Za-z]{4,}", whole) if whole.count(word) == 1]
    for stop in (words[2], words[2][1:3], whole[7]):  # a word, the middle of one, a letter
        expected = whole[: whole.index(stop)]
        settings: dict[str, Any] = {"messages": HELLO, "max_tokens": 20, "temperature": 0, "stop": [stop]}
        answer = client.chat.completions.create(model="one", **settings)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")
        chunks = list(client.chat.completions.create(model="one", stream=True, **settings))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_usage_of_a_stream_is_sent_where_it_is_asked_for(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "one", "messages": HELLO, "max_tokens": 4, "stream": True}
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**settings))
    *chunks, last = client.chat.completions.create(**settings, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 4


def test_what_is_asked_is_heeded(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> str:
        return ask(client, "one", temperature=1.5, seed=seed, max_tokens=16)

    assert drawn(5) == drawn(5) != drawn(6)
    long = client.chat.completions.create(
        model="one",
        messages=HELLO,
        max_tokens=64,
        temperature=1,
        extra_body={"ignore_eos": True, "min_p": 0.001},
    )
    assert long.usage is not None and long.usage.completion_tokens == 64
    two = [{"role": "system", "content": "You are"}, {"role": "developer", "content": "one."}, *HELLO]
    joined = [{"role": "system", "content": "You are\n\none."}, *HELLO]
    assert ask(client, "one", messages=two) == ask(client, "one", messages=joined)
    assert client.models.retrieve("v2.0").id == "v2.0"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("v3.0")
    with pytest.raises(openai.BadRequestError, match="This model was not trained to make embeddings"):
        client.embeddings.create(model="one", input="x")


def test_every_field_is_applied_or_refused_as_the_table_says(deployer: ModelDeployer) -> None:
    assert list(heeded.faults(heeded.Server(deployer.url, KEY, "one"), "pt")) == []


def test_the_async_client(deployer: ModelDeployer, client: openai.OpenAI) -> None:
    async def both() -> list[str]:
        async with openai.AsyncOpenAI(base_url=deployer.url, api_key=KEY, max_retries=0) as asynchronous:
            settings: dict[str, Any] = {"messages": HELLO, "max_tokens": 8, "temperature": 0}
            create = asynchronous.chat.completions.create
            plain = create(model="one", **settings)
            stream = await create(model="one", stream=True, **settings)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [(await plain).choices[0].message.content or "", text]

    assert asyncio.run(both()) == [ask(client, "one")] * 2


class Worker:
    """What ``_Batches`` knows of ms-swift's engine."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self._task_pool: dict[str, Any] = {}

    def _fetch_infer_requests(self) -> Any:
        there = [self._queue.get() for _ in range(self._queue.qsize())]
        return {"infer_requests": there}, [f"to {one.number}" for one in there]


def test_requests_that_come_one_after_the_other_are_answered_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_batches, "GATHER_SECONDS", 0.5)  # the machine may be busy
    monkeypatch.setattr(engine_batches, "GATHER_AT_MOST", 30)
    worker = Worker()
    batches = engine_batches.Batches(worker, SimpleNamespace(prepare_generate_kwargs=None))

    def come() -> None:
        for number in range(8):
            time.sleep(0.02)
            worker._queue.put(SimpleNamespace(number=number, abandoned=number == 3))
            batches.came = time.monotonic()

    threading.Thread(target=come).start()
    kwargs, queues = worker._fetch_infer_requests()
    assert [one.number for one in kwargs["infer_requests"]] == [0, 1, 2, 4, 5, 6, 7]  # one has gone
    assert queues == ["to 0", "to 1", "to 2", "to 4", "to 5", "to 6", "to 7"]
    worker._queue.put(SimpleNamespace(number=8, abandoned=True))
    assert worker._fetch_infer_requests() is None


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_written_for_a_client_that_has_gone(
    deployer: ModelDeployer, client: openai.OpenAI, stream: bool
) -> None:
    def seconds(**more: Any) -> float:
        began = time.monotonic()
        ask(client, "one", max_tokens=64, **more)
        return time.monotonic() - began

    whole = min(seconds() for _ in range(3))
    for number in range(1, 41):  # no two are answered together
        body = {"model": "one", "messages": HELLO, "stream": stream, "max_tokens": 64, "top_k": number}
        leave(deployer, json.dumps(body).encode(), 0.01)
    assert seconds() < 10 * whole


LONG = [{"role": "user", "content": "word " * 9000}]


@pytest.mark.parametrize(
    ("request_", "kind", "code", "message"),
    [
        ({"model": "none"}, openai.NotFoundError, "model_not_found",
         'The model "none" does not exist. Available models: tiny-llama, one, v2.0.'),
        ({"messages": []}, openai.BadRequestError, None, "messages must be a list of at least one message."),
        ({"max_tokens": -5}, openai.BadRequestError, None,
         "max_tokens must be a whole number of at least 1, not -5."),
        ({"max_tokens": 65}, openai.BadRequestError, None,
         "max_tokens is 65; this server generates at most 64 tokens."),
        ({"messages": LONG}, openai.BadRequestError, "context_length_exceeded", None),
        ({"messages": LONG, "stream": True}, openai.BadRequestError, "context_length_exceeded", None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]},
         openai.BadRequestError, None, "This model only accepts text, not image input."),
        ({"messages": [{"role": "user", "content": "x" * 2_000_000}]}, openai.APIStatusError, None,
         "The request is larger than 1,048,576 bytes, the limit of this server."),
    ],
)  # fmt: skip
def test_mistakes_raise_the_clients_own_errors(
    client: openai.OpenAI, request_: dict[str, Any], kind: type[openai.APIStatusError], code: str | None,
    message: str | None,
) -> None:  # fmt: skip
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "one", "messages": HELLO, **request_})
    assert caught.value.code == code
    body: Any = caught.value.body
    assert message is None or body["message"] == message
    assert set(body) == {"message", "type", "param", "code"}


def test_a_prompt_that_leaves_little_room_gets_a_short_answer(client: openai.OpenAI) -> None:
    usage = client.chat.completions.create(model="tiny-llama", messages=HELLO, max_tokens=1).usage
    assert usage is not None
    words = 8192 - usage.prompt_tokens - 3  # of one token each, beside the one of HELLO
    short = [{"role": "user", "content": "Hello" + " word" * words}]
    answer = client.chat.completions.create(model="tiny-llama", messages=short, max_tokens=64, temperature=0)
    assert answer.usage is not None and answer.usage.completion_tokens <= 3


# --- the key, the routes, the log ---------------------------------------------------------------------------


def test_everything_but_health_wants_the_key(deployer: ModelDeployer) -> None:
    assert post(deployer, "/health", b"", key=None)[0] == 200
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/infer/", "/nowhere"):
        for key in (None, "wrong", KEY + "x", "ключ".encode().decode("latin-1")):
            status, said = post(deployer, path, b"", key=key)
            assert status == 401
            assert said["error"]["code"] == "invalid_api_key"
    for path in ("/v1/chat/completions", "/v1/load_lora_adapter"):
        assert post(deployer, path, b"{}", key=None)[0] == 401
    with pytest.raises(openai.AuthenticationError, match="The API key is missing or wrong"):
        openai.OpenAI(base_url=deployer.url, api_key="wrong", max_retries=0).models.list()


def test_only_the_routes_that_are_told_exist(deployer: ModelDeployer) -> None:
    for path in ("/docs", "/openapi.json", "/infer/", "/ping"):
        status, said = post(deployer, path, b"")
        assert (status, said["error"]["message"]) == (404, f"{path} does not exist on this server.")
    assert post(deployer, "/v1/chat/completions", b"")[0] == 405


def test_key_and_prompts_are_written_nowhere(deployer: ModelDeployer, client: openai.OpenAI) -> None:
    secret = "the-secret-of-the-prompt"
    ask(client, "one", messages=[{"role": "user", "content": secret}])
    with pytest.raises(openai.BadRequestError):
        ask(client, "one", messages=[{"role": "user", "content": secret}], temperature=-1)
    for file in deployer.directory.rglob("*"):
        text = file.read_text()
        assert KEY not in text and secret not in text
    children = psutil.Process().children(recursive=True)
    assert len(children) >= 1
    assert not any(KEY in word for process in children for word in process.cmdline())
    result = json.loads((deployer.directory / "result.json").read_text())
    assert (result["status"], result["url"]) == ("serving", deployer.url)


def test_metrics_count(deployer: ModelDeployer, client: openai.OpenAI) -> None:
    def value(name: str, **labels: str) -> float:
        text = post(deployer, "/metrics", b"")[1].decode()
        from prometheus_client.parser import text_string_to_metric_families

        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    before = value("swift_requests_total", model="v2.0", status="200")
    tokens = value("swift_completion_tokens_total", model="v2.0")
    ask(client, "v2.0", max_tokens=5)
    list(
        client.chat.completions.create(model="v2.0", messages=HELLO, max_tokens=3, temperature=0, stream=True)
    )
    assert value("swift_requests_total", model="v2.0", status="200") == before + 2
    assert value("swift_completion_tokens_total", model="v2.0") == tokens + 8
    assert value("swift_first_token_seconds_count", model="v2.0") >= 1
    errors = value("swift_errors_total", model="", status="404")
    with pytest.raises(openai.NotFoundError):
        ask(client, "made-up-name")
    assert value("swift_errors_total", model="", status="404") == errors + 1
    assert value("swift_requests_in_progress") == 0


# --- adapters while serving ---------------------------------------------------------------------------------


def test_adapters_come_and_go(
    deployer: ModelDeployer,
    client: openai.OpenAI,
    adapters: dict[str, Path],
    tmp_path: Path,
    tiny_model: Path,
) -> None:
    def load(name: str, path: Path) -> tuple[int, Any]:
        body = json.dumps({"lora_name": name, "lora_path": str(path)}).encode()
        return post(deployer, "/v1/load_lora_adapter", body)

    def unload(name: str) -> tuple[int, Any]:
        return post(deployer, "/v1/unload_lora_adapter", json.dumps({"lora_name": name}).encode())

    before = {name: ask(client, name) for name in ("tiny-llama", "one")}
    assert load("new", adapters["spare"]) == (200, b"Success: LoRA adapter 'new' added successfully.")
    assert "new" in [model.id for model in client.models.list()]
    spare = ask(client, "new")
    assert spare not in before.values()
    assert load("new", adapters["one"])[0] == 400
    assert unload("new") == (200, b"Success: LoRA adapter 'new' removed successfully.")
    assert unload("new")[0] == unload("tiny-llama")[0] == 404
    with pytest.raises(openai.NotFoundError):
        ask(client, "new")
    same_as_one = [{"role": "system", "content": "You are one."}, *HELLO]
    assert load("new", adapters["one"])[0] == 200  # the old weights of that name are gone
    assert ask(client, "new", messages=same_as_one) == before["one"] != spare
    assert unload("new")[0] == 200
    shutil.copytree(tiny_model, tmp_path / "other-base")
    other = make_adapter(tmp_path / "other-base", tmp_path / "foreign", 4)
    for path in (other, tiny_model, tmp_path / "gone"):
        status, said = load("bad", path)
        assert (status, said["error"]["param"]) == (400, "lora_path")
    assert {name: ask(client, name) for name in before} == before


def test_a_server_of_classifiers_offers_only_what_can_classify(tiny_model: Path, tmp_path: Path) -> None:
    def classifier(name: str, classes: int) -> Path:
        adapter = make_adapter(tiny_model, tmp_path / name, classes, task_type="seq_cls", num_labels=classes)
        file = adapter / "adapter_model.safetensors"
        head = numpy.random.default_rng(0).normal(0, 1, (classes, 64)).astype("float32")
        save_file(load_file(file) | {"base_model.model.score.weight": head}, file, {"format": "pt"})
        config = json.loads((adapter / "adapter_config.json").read_text())
        config |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        return adapter

    (tmp_path / "key").write_text(KEY)
    three, chat = classifier("three", 3), make_adapter(tiny_model, tmp_path / "chat", 1)
    deployer = ModelDeployer(
        checkpoint=str(classifier("two", 2)),
        port=0,
        allow_runtime_lora=True,
        api_key_file=str(tmp_path / "key"),
        adapter_dir=[str(tmp_path)],
        output_dir=str(tmp_path / "runs"),
    )
    with deployer:
        client = openai.OpenAI(base_url=deployer.url, api_key=KEY, max_retries=0, timeout=120)
        assert [model.id for model in client.models.list()] == ["tiny-llama-lora"]
        answer = client.chat.completions.create(model="tiny-llama-lora", messages=HELLO)
        assert answer.choices[0].message.content in ("0", "1")
        with pytest.raises(openai.NotFoundError, match="Available models: tiny-llama-lora"):
            client.chat.completions.create(model="tiny-llama", messages=HELLO)
        for path, why in (
            (three, "the number of classes 3, but the server runs with 2"),
            (chat, "the task causal_lm, but the server runs with seq_cls"),
        ):
            body = json.dumps({"lora_name": "other", "lora_path": str(path)}).encode()
            status, said = post(deployer, "/v1/load_lora_adapter", body)
            assert (status, said["error"]["message"]) == (400, f"lora_path was trained for {why}.")


# --- the chat page ------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_chat_page(deployer: ModelDeployer, client: openai.OpenAI, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 600})
        asked: list[str] = []
        faults: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(deployer.url.removesuffix("v1"))
        page.fill("#key", "a-wrong-key")
        page.press("#key", "Enter")
        expect(page.locator("#why")).to_have_text("This key is wrong.")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        expect(page.locator("#model option")).to_have_count(3)
        page.select_option("#model", "one")
        page.fill("#question", "Hello")
        page.press("#question", "Enter")
        expect(page.locator("#send")).to_have_text("Send", timeout=60_000)
        assert (page.text_content("article.answer") or "").strip() == ask(
            client, "one", max_tokens=64
        ).strip()
        page.fill("#question", "And <b>now</b>?")
        page.click("#send")
        expect(page.locator("#send")).to_have_text("Send", timeout=60_000)
        expect(page.locator("article")).to_have_count(4)
        assert page.locator("article b").count() == 0
        page.screenshot(path=os.environ.get("CHAT_SCREENSHOT", str(tmp_path / "chat.png")))
        browser.close()
    assert faults == []
    assert all(url.startswith((deployer.url.removesuffix("v1"), "data:")) for url in asked)


# --- load and garbage ---------------------------------------------------------------------------------------


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
STRANGE: list[Any] = [
    [],
    {"messages": [[]]},
    {"messages": [{"role": "system", "content": "alone"}]},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{"role": "tool_call", "content": "{"}, {"role": "tool_response", "content": "}"}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
    {"messages": [{"role": "user", "content": "<image><video>"}]},
    {"messages": [{"role": "user", "content": [PICTURE, PICTURE]}]},
    {"messages": HELLO, "images": ["data:image/png;base64,AAAA"]},
    {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
    {"messages": HELLO, "chat_template_kwargs": 5, "objects": []},
    {"messages": HELLO, "temperature": 1e-300, "top_k": 10**30, "stream": True},
    {"messages": HELLO, "stop": ["\x00", "a" * 1000], "seed": -1, "min_p": 1},
    {"messages": HELLO, "num_beams": 3, "n": 2, "logprobs": True, "top_logprobs": 20},
    {"messages": [{"role": "user", "content": "word " * 20000}], "stream": True},
]
"""Requests that are wrong, or nearly."""


def strange(request: Any) -> bytes:
    more = {"model": "one", "max_tokens": 2}
    return json.dumps({**more, **request} if isinstance(request, dict) else request).encode()


def test_no_strange_request_is_a_500(deployer: ModelDeployer) -> None:
    answers = [post(deployer, "/v1/chat/completions", strange(request)) for request in STRANGE]
    assert [(status, said) for status, said in answers if status >= 500] == []


def test_nobody_suffers_from_others(deployer: ModelDeployer, client: openai.OpenAI) -> None:
    """2,000 requests at concurrency 32 among garbage, half-sent bodies and clients that go away."""
    names = ("tiny-llama", "one", "v2.0")
    questions = [[{"role": "user", "content": f"Question {number}"}] for number in range(10)]
    expected = {
        (name, index): ask(client, name, messages=question, max_tokens=4)
        for name in names
        for index, question in enumerate(questions)
    }
    server = psutil.Process(deployer.ready.pid)
    wrong: list[object] = []
    memory: list[int] = []

    def good(number: int) -> None:
        key = (names[number % 3], number % 10)
        if ask(client, key[0], messages=questions[key[1]], max_tokens=4) != expected[key]:
            wrong.append(key)
        if number % 100 == 0:
            memory.append(server.memory_info().rss)

    def garbage(number: int) -> None:
        draw = random.Random(number)
        body = draw.choice([draw.randbytes(200), *(strange(request) for request in STRANGE)])
        status, said = post(deployer, "/v1/chat/completions", body)
        if status != 200 and not (400 <= status < 500 and "error" in said):
            wrong.append((status, said))

    def go(number: int) -> None:
        whole = json.dumps({"model": "one", "messages": HELLO, "stream": True, "max_tokens": 32}).encode()
        leave(deployer, whole[: len(whole) // 2] if number % 2 else whole, 0.02, len(whole))

    jobs = [(good, number) for number in range(2000)]
    jobs += [(garbage, number) for number in range(500)] + [(go, number) for number in range(60)]
    random.Random(0).shuffle(jobs)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for done in [pool.submit(work, number) for work, number in jobs]:
            done.result()
    assert wrong == []
    assert max(memory[5:]) < memory[4] + (100 << 20)
    assert post(deployer, "/health", b"", key=None)[0] == 200


# --- pictures -----------------------------------------------------------------------------------------------


def test_a_picture_comes_with_the_request(tiny_llava: Path, tmp_path: Path) -> None:
    pictures = sorted((tiny_llava / "images").glob("*.png"))
    deployer = ModelDeployer(
        tiny_llava / "model",
        port=0,
        media_dir=str(tiny_llava / "images"),
        output_dir=str(tmp_path),
        model_type="llava1_5_hf",
        template="llava1_5_hf",
    )
    with deployer as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)

        def about(picture: str) -> Any:
            parts: Any = [
                {"type": "image_url", "image_url": {"url": picture}},
                {"type": "text", "text": "What?"},
            ]
            messages: Any = [{"role": "user", "content": parts}]
            return client.chat.completions.create(
                model="model", messages=messages, max_tokens=4, temperature=0, logprobs=True
            )

        def as_data(picture: Path) -> str:
            return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"

        first = about(as_data(pictures[0]))
        tokens = first.usage.prompt_tokens
        assert tokens > 16  # the picture is 16 of them
        scores = [token.logprob for token in first.choices[0].logprobs.content]
        other = [token.logprob for token in about(as_data(pictures[3])).choices[0].logprobs.content]
        assert scores != other  # it was looked at
        named = about(str(pictures[0]))
        assert [token.logprob for token in named.choices[0].logprobs.content] == pytest.approx(scores)
        for bad in ("data:image/png;base64,AAAA", "/etc/passwd", str(tiny_llava / "train.jsonl")):
            with pytest.raises(openai.BadRequestError):
                about(bad)


# --- the command --------------------------------------------------------------------------------------------


class Command:
    """``deploy_model.py`` as an operator runs it."""

    def __init__(self, *words: object, **environment: str) -> None:
        command = [sys.executable, str(ROOT / "deploy_model.py"), *map(str, words)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.server = psutil.Process(self.process.pid).children(recursive=True)
        assert self.server
        return found

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; the exit status and what was said. Nothing is left running."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=120)
        deadline = time.monotonic() + 10
        while any(one.is_running() and one.status() != "zombie" for one in self.server):
            assert time.monotonic() < deadline, "something is left running"
            time.sleep(0.1)
        return self.process.returncode, err


@pytest.fixture(scope="module")
def commands(
    adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Command, Path]]]:
    """Servers for the tests that end one, with their output directories; started together, which is quicker."""
    found = {}
    all_of_them = {
        "drained": ["--drain-seconds", "120"],
        "cut": ["--drain-seconds", "2", "--max-tokens-limit", "8000"],
        "interrupted": ["--log-requests"],
    }
    for name, more in all_of_them.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "tmp").mkdir()
        where = ("--checkpoint", adapters["one"], "--port", 0, "--output-dir", folder)
        found[name] = Command(*where, "--wait-json", *more, TMPDIR=str(folder / "tmp")), folder
    yield found
    for one, _ in found.values():
        one.process.kill()
        one.process.wait()


def test_sigterm_lets_running_answers_end(commands: Any) -> None:
    """Also one that takes longer than a process that is ended is usually waited for."""
    running, folder = commands["drained"]
    found = running.ready()
    assert found["pid"] == running.process.pid
    assert found["models"] == ["tiny-llama", "tiny-llama-lora"]
    client = openai.OpenAI(base_url=found["url"], api_key="none", max_retries=0)
    more = {"ignore_eos": True, "top_k": 5}
    stream = client.chat.completions.create(
        model="tiny-llama", messages=HELLO, max_tokens=3000, temperature=1, stream=True, extra_body=more
    )
    chunks = iter(stream)
    next(chunks)
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(openai.APIConnectionError):
        openai.OpenAI(base_url=found["url"], api_key="none", max_retries=0).models.list()
    began = time.monotonic()
    assert list(chunks)[-1].choices[0].finish_reason == "length"
    print(f"the stream went on for {time.monotonic() - began:.0f} s")
    status, err = running.wait()
    assert status == 0, err
    assert "Shutting down: running answers have 120 s to finish (a second signal stops at once)" in err
    assert list((folder / "tmp").glob("swift*")) == []  # torch keeps a cache there


def test_an_answer_that_takes_too_long_is_cut_at_the_end(commands: Any) -> None:
    running, folder = commands["cut"]
    url = running.ready()["url"]
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    half = socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])))
    half.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 9000\r\n\r\n{"model": '
    )
    stream = client.chat.completions.create(
        model="tiny-llama",
        messages=HELLO,
        max_tokens=8000,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = iter(stream)
    next(chunks)
    running.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="The server is shutting down and cut off this answer"):
        list(chunks)
    with half:  # a body that does not come does not keep the server from ending
        assert half.recv(100).startswith(b"HTTP/1.1 503")
    status, err = running.wait()
    assert status == 1, err
    assert err.splitlines()[-1] == "Running answers that were cut after 2 s: 2"
    (log,) = folder.glob("*/serve.log")
    assert "Traceback" not in log.read_text()
    assert json.loads((log.parent / "result.json").read_text())["cut_answers"] == 2
    assert list((folder / "tmp").glob("swift*")) == []  # torch keeps a cache there


def test_ctrl_c_and_a_second_one(commands: Any) -> None:
    running, folder = commands["interrupted"]
    found = running.ready()
    client = openai.OpenAI(base_url=found["url"], api_key="none", max_retries=0)
    asked = "a question for the log"
    ask(client, "tiny-llama-lora", messages=[{"role": "user", "content": asked}])
    (log,) = folder.glob("*/serve.log")
    assert asked in log.read_text()  # it was told to
    stream = client.chat.completions.create(
        model="tiny-llama", messages=HELLO, max_tokens=4000, temperature=1, stream=True
    )
    next(iter(stream))
    running.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert running.process.poll() is None  # it waits for the answer
    assert running.end(signal.SIGINT)[0] == 130


def test_a_server_that_does_not_end_is_killed_and_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_server, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(machine_process, "KILL_AFTER_SECONDS", 0.5)
    stuck = ModelDeployer(
        tiny_model, port=0, drain_seconds=0, output_dir=str(tmp_path), model_type="llama", template="chatml"
    )
    stuck.start()
    assert stuck.ready is not None
    os.kill(stuck.ready.pid, signal.SIGSTOP)
    said = "The server did not end within 0.5 s and was killed; running answers were lost. Full log: "
    with pytest.raises(RunError, match=said):
        stuck.stop()
    assert not psutil.pid_exists(stuck.ready.pid)
    result = json.loads((stuck.directory / "result.json").read_text())
    assert result["status"] == "failed" and result["error"].startswith(said)
    stuck.stop()  # once more changes nothing
    assert json.loads((stuck.directory / "result.json").read_text()) == result


def test_a_start_that_fails_says_why(tmp_path: Path, tiny_model: Path) -> None:
    config = tmp_path / "model"
    config.mkdir()
    for file in tiny_model.iterdir():
        (config / file.name).write_bytes(file.read_bytes())
    sizes = json.loads((config / "config.json").read_text())
    (config / "config.json").write_text(json.dumps({**sizes, "hidden_size": 65}))
    words = ["--checkpoint", config, "--model_type", "llama", "--template", "chatml", "--port", 0]
    words += ["--output-dir", tmp_path / "runs"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy_model.py"), *map(str, words)], capture_output=True, text=True
    )
    (log,) = tmp_path.glob("runs/*/serve.log")
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"The server could not be started: \w+: .*\. Full log: " + re.escape(str(log)), last)


def test_what_is_printed_can_be_pasted_and_a_server_that_dies_is_told(
    tmp_path: Path, adapters: dict[str, Path]
) -> None:
    """The curl command and the Python example, over TLS and with a key; then the server is killed."""
    from tests.test_deploy_model import make_certificate

    certificate, key = make_certificate(tmp_path, "server")
    words = ["--checkpoint", adapters["one"], "--port", 0, "--output-dir", tmp_path / "runs"]
    words += ["--ssl-certfile", certificate, "--ssl-keyfile", key]
    environment = {
        "SWIFT_API_KEY": KEY,
        "CURL_CA_BUNDLE": str(certificate),
        "SSL_CERT_FILE": str(certificate),
    }
    running = Command(*words, **environment)
    try:
        assert running.process.stdout is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith("print(")):
            lines.append(running.process.stdout.readline())
            assert lines[-1], running.process.stderr.read() if running.process.stderr else ""
        printed = "".join(lines)
        assert KEY not in printed
        assert printed.startswith("Serving on https://127.0.0.1:")
        _, _, examples = printed.partition("\n\n")
        curl, _, python = examples.partition("\n\n")
        environment = {**os.environ, **environment}
        asked = subprocess.run(
            ["bash", "-c", curl], env=environment, capture_output=True, text=True, check=True
        )
        answer = json.loads(asked.stdout)["choices"][0]["message"]["content"]
        said = subprocess.run(
            [sys.executable, "-c", python], env=environment, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() and answer
        running.server = psutil.Process(running.process.pid).children(recursive=True)
        running.server[0].kill()
        status, err = running.wait()
        (log,) = (tmp_path / "runs").glob("*/serve.log")
        assert status == 1
        end = f"The server has ended: it was killed, most likely because memory ran out. Full log: {log}"
        assert err.splitlines()[-1] == end
        assert json.loads((log.parent / "result.json").read_text())["error"] == end
    finally:
        running.process.kill()
        running.process.wait()


def examples(readme: str, heading: str) -> list[str]:
    """The code in a section of a README."""
    section = (ROOT / readme).read_text(encoding="utf-8").partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)


def test_the_examples_of_the_readme(tuned_checkpoint: Path, tmp_path: Path) -> None:
    """Word for word, but for the address; the tuned model says its new name, its base does not."""
    _, client, curl, python = examples("README.md", "## Deploy")
    (tmp_path / "output").mkdir()
    (tmp_path / "output/quickstart").symlink_to(tuned_checkpoint)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def output(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    with ModelDeployer(tuned_checkpoint, port=0, output_dir=str(tmp_path / "runs")) as url:
        said = output(sys.executable, "-c", client.replace("http://127.0.0.1:8000/v1", url))
        assert said.startswith("['SmolLM2-135M-Instruct', 'SmolLM2-135M-Instruct-lora']\n")
        assert "Robin" in said
        said = output("bash", "-c", curl.removeprefix("$ ").replace("http://127.0.0.1:8000/v1", url))
        assert "Robin" in json.loads(said)["choices"][0]["message"]["content"]
    base, tuned = output(sys.executable, "-c", python).split("SmolLM2-135M-Instruct-lora: ")
    assert "Robin" in tuned and "Robin" not in base


def test_the_examples_are_the_same_in_both_languages() -> None:
    def code(text: str) -> str:
        return re.sub(r" +# .*", "", text)

    here, there = examples("README.md", "## Deploy"), examples("README_zh.md", "## 部署")
    assert list(map(code, here)) == list(map(code, there))
