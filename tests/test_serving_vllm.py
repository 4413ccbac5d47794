"""The server on vLLM's engine, with its own scheduler: run by ``make test-vllm`` in an environment of its own."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from adapters import make_adapter

from deploy_model import ModelDeployer
from swift_toolkit.problems import RunError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vllm")

KEY = "correct-horse-battery"
QUESTIONS: list[Any] = [
    [{"role": "user", "content": f"Tell me about the number {number}."}] for number in range(8)
]


@pytest.fixture(scope="module")
def adapters(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    names = ("one", "two", "spare")
    return {
        name: make_adapter(demo_model, folder / name, seed, rank=8 * (seed + 1))
        for seed, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def deployer(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelDeployer]:
    folder = tmp_path_factory.mktemp("deploy")
    (folder / "key").write_text(KEY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "")  # ms-swift's own wants torchvision
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        deployer = ModelDeployer(
            multi_lora_config={name: str(adapters[name]) for name in ("one", "two")},
            infer_backend="vllm",
            port=0,
            api_key_file=str(folder / "key"),
            allow_runtime_lora=True,
            output_dir=str(folder / "runs"),
            vllm_enforce_eager=True,
            vllm_max_model_len=512,
            torch_dtype="float32",
        )
        deployer.start()
        yield deployer
        deployer.stop()


@pytest.fixture(scope="module")
def client(deployer: ModelDeployer) -> openai.OpenAI:
    return openai.OpenAI(base_url=deployer.url, api_key=KEY, max_retries=0, timeout=300)


def ask(client: openai.OpenAI, model: str, question: Any) -> str:
    """The first token of the answer: random adapters leave close calls, which batches round either way, later."""
    answer = client.chat.completions.create(model=model, messages=question, max_tokens=1, temperature=0)
    assert answer.model == model
    return answer.choices[0].message.content or ""


def test_adapters_answer_differently_under_load(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[1:] == ["one", "two"]
    keys = [(name, index) for name in names for index in range(len(QUESTIONS))]
    alone = {(name, index): ask(client, name, QUESTIONS[index]) for name, index in keys}
    assert all(len({alone[name, index] for name in names}) == 3 for index in range(len(QUESTIONS)))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda key: ask(client, key[0], QUESTIONS[key[1]]), keys * 3))
    same = sum(answer == alone[key] for key, answer in zip(keys * 3, answers, strict=True))
    assert same >= 0.95 * len(answers)


def test_mistakes_are_told_the_same_way(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="one", messages=[{"role": "user", "content": "word " * 600}], stream=stream
            )
        assert caught.value.code == "context_length_exceeded"


def test_adapters_come_and_go(client: openai.OpenAI, adapters: dict[str, Path]) -> None:
    import httpx

    def change(what: str, **body: str) -> httpx.Response:
        url = f"{str(client.base_url).rstrip('/')}/{what}_lora_adapter"
        return httpx.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=120)

    assert change("load", lora_name="new", lora_path=str(adapters["two"])).status_code == 200
    assert ask(client, "new", QUESTIONS[0]) == ask(client, "two", QUESTIONS[0])
    assert change("unload", lora_name="new").status_code == 200
    with pytest.raises(openai.NotFoundError):
        ask(client, "new", QUESTIONS[0])
    too_high = change("load", lora_name="new", lora_path=str(adapters["spare"]))
    assert (too_high.status_code, too_high.json()["error"]["param"]) == (400, "lora_path")


def test_an_engine_that_dies_ends_the_server(deployer: ModelDeployer, client: openai.OpenAI) -> None:
    ask(client, "one", QUESTIONS[0])
    processes = psutil.Process().children(recursive=True)
    (core,) = [
        process for process in processes if "EngineCore" in " ".join(process.cmdline() or [process.name()])
    ]
    core.kill()
    with pytest.raises(RunError, match="The server has ended"):
        deployer.wait()
    deadline = time.monotonic() + 10
    while any(process.is_running() and process.status() != "zombie" for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert json.loads((deployer.directory / "result.json").read_text())["status"] == "failed"
