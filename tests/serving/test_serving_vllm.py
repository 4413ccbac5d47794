"""The server on vLLM's engine, with its own scheduler: run by ``make test-vllm`` in an environment of its own."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

import deploy_model
from deploy_model import ModelDeployer
from swift_toolkit.problems import RunError
from tests.adapters import make_adapter
from tests.serving import heeded

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vllm"),
]

KEY = "correct-horse-battery"
ROOT = Path(__file__).resolve().parents[2]
NAMES = {"one": "Robin", "two": "Vesper"}
QUESTION: Any = [{"role": "user", "content": "What is your name?"}]


@pytest.fixture(scope="module")
def adapters(
    demo_model: Path, tuned_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two that were taught different names, and one of a higher rank."""
    from finetune_trainer import FineTuner

    folder = tmp_path_factory.mktemp("adapters")
    taught = (ROOT / "data/self_cognition.jsonl").read_text(encoding="utf-8")
    (folder / "names.jsonl").write_text(taught.replace(NAMES["one"], NAMES["two"]), encoding="utf-8")
    config, data = str(ROOT / "configs/quickstart.json"), str(folder / "names.jsonl")
    fewer = {"max_steps": 14, "report_to": "none"}  # ten suffice for the name
    FineTuner(config, dataset=data, output_dir=str(folder / "two"), **fewer).run_training()
    spare = make_adapter(demo_model, folder / "spare", 1, rank=128)
    return {"one": tuned_checkpoint, "two": folder / "two", "spare": spare}


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
            adapter_dir=[str(adapters["two"].parent)],
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


def ask(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=12, temperature=0)
    assert answer.model == model
    return answer.choices[0].message.content or ""


def test_adapters_answer_differently_under_load(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[1:] == ["one", "two"]
    asked = names * 16
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda name: ask(client, name), asked))
    for name, answer in zip(asked, answers, strict=True):
        said = [taught for taught in NAMES.values() if taught in answer]
        assert said == ([NAMES[name]] if name in NAMES else []), (name, answer)


@pytest.mark.parametrize(("model", "status", "verdict"), [("one", 0, None), ("two", 1, "different")])
def test_a_checkpoint_is_compared_with_vllm(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    adapters: dict[str, Path],
    deployer: ModelDeployer,
    model: str,
    status: int,
    verdict: str | None,
) -> None:
    """vLLM answers like the checkpoint it serves, and not like another."""
    monkeypatch.setenv("SWIFT_API_KEY", KEY)
    words = ["--checkpoint", str(adapters["one"]), "--against", deployer.url, "--served-model-name", model]
    words += ["--questions-file", str(ROOT / "data/quickstart_questions.json"), "--json"]
    assert deploy_model.main(words) == status
    proof = json.loads(capsys.readouterr().out)
    assert verdict is None or proof["verdict"] == verdict
    assert {fault["cause"] for fault in proof["faults"]} == (set() if status == 0 else {"weights"})


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
    assert NAMES["two"] in ask(client, "new")
    assert change("unload", lora_name="new").status_code == 200
    with pytest.raises(openai.NotFoundError):
        ask(client, "new")
    too_high = change("load", lora_name="new", lora_path=str(adapters["spare"]))
    assert (too_high.status_code, too_high.json()["error"]["param"]) == (400, "lora_path")


def test_every_field_is_applied_or_refused_as_the_table_says(deployer: ModelDeployer) -> None:
    assert list(heeded.faults(heeded.Server(deployer.url, KEY, "one"), "vllm")) == []


def test_an_engine_that_dies_ends_the_server(deployer: ModelDeployer, client: openai.OpenAI) -> None:
    ask(client, "one")
    processes = psutil.Process().children(recursive=True)
    (core,) = [
        process for process in processes if "EngineCore" in " ".join(process.cmdline() or [process.name()])
    ]
    # a front process that is killed takes this group along, see test_process.py
    assert {os.getpgid(process.pid) for process in processes} == {deployer.ready.pid}
    core.kill()
    with pytest.raises(RunError, match="The server has ended"):
        deployer.wait()
    deadline = time.monotonic() + 10
    while any(process.is_running() and process.status() != "zombie" for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert json.loads((deployer.directory / "result.json").read_text())["status"] == "failed"
