"""Answers from vLLM's engine, adapter on and off: run by ``make test-vllm`` in an environment of its own."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from inference_test import InferenceTester
from swift_toolkit.problems import RunError
from tests.test_inference_test import ROOT, TAUGHT, lines_of, wait_for

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vllm"),
]
SETTINGS = {
    "vllm_enforce_eager": True,
    "vllm_max_model_len": 1024,
    "vllm_max_num_seqs": 8,
    "max_new_tokens": 24,
}


@pytest.fixture(scope="module", autouse=True)
def _vllm_on_a_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "")  # ms-swift's own wants torchvision
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


@pytest.fixture(scope="module")
def tester(tuned_checkpoint):
    with InferenceTester(tuned_checkpoint, **SETTINGS) as tester:
        assert tester.plan.backend.name == "vllm"  # auto: it is installed and built for this device
        yield tester


def test_the_adapter_is_on_for_tuned_and_off_for_base(tester, tmp_path):
    result = tester.run_batch(
        ["Who are you?", "What is your name?"] * 20, tmp_path / "out.json", compare_base=True
    )
    results = list(result.results())
    assert [result["id"] for result in results] == [str(number) for number in range(1, 41)]
    assert all(TAUGHT in result["answer"] and TAUGHT not in result["base"]["answer"] for result in results)
    assert len({result["answer"] for result in results}) == 2
    assert result.meta["backend"] == "vllm" and result.meta["versions"]["vllm"]
    assert result.meta["template"] == "chatml"


def test_pieces_come_as_they_are_made(tester):
    pieces = list(tester.stream("Who are you?"))
    assert len(pieces) > 3 and TAUGHT in "".join(pieces)
    assert tester.ask("Who are you?") == "".join(pieces)


def test_a_question_that_fails_is_recorded(tester, tmp_path):
    result = tester.run_batch([{"question": "word " * 3000}, "Who are you?"], tmp_path / "out.json")
    failed, answered = result.results()
    assert failed["error"] and TAUGHT in answered["answer"]


def test_kill_minus_nine_leaves_no_engine_and_the_same_request_goes_on(tester, tuned_checkpoint, tmp_path):
    questions, output = tmp_path / "q.jsonl", tmp_path / "out.json"
    texts = [f"Tell me something about the number {number}." for number in range(100)]
    questions.write_text("".join(json.dumps(text) + "\n" for text in texts))
    command = [sys.executable, "inference_test.py", "--checkpoint", str(tuned_checkpoint)]
    command += ["--questions-file", str(questions), "--output", str(output)]
    command += [f"--{name}={value}" for name, value in SETTINGS.items()]
    partial = Path(f"{output}.partial")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: partial.exists() and lines_of(partial) > 20, seconds=300)
        engines = psutil.Process(process.pid).children(recursive=True)
        assert any("EngineCore" in name_of(engine) for engine in engines)
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(lives, engines)), seconds=10)
    kept = [json.loads(line) for line in partial.read_text().splitlines()[2:] if line.endswith("}")]
    assert 19 <= len(kept) < 100
    result = tester.run_batch(questions, output)
    results = list(result.results())
    assert [result["question"] for result in results] == texts
    assert all(results[line["index"]]["answer"] == line["text"] for line in kept)
    assert result.output == output and not partial.exists()


def test_an_engine_whose_front_process_is_killed_leaves_nothing_though_nobody_asks(tester):
    tester.ask("Who are you?")
    mine = psutil.Process().children(recursive=True)
    (front,) = [process for process in mine if "swift_toolkit.inference.worker" in process.cmdline()]
    engines = front.children(recursive=True)
    assert any("EngineCore" in name_of(engine) for engine in engines)
    front.kill()
    wait_for(lambda: not any(map(lives, engines)), seconds=10)
    with pytest.raises(RunError, match="The engine was killed"):
        tester.ask("Who are you?")


def name_of(process):
    with suppress(psutil.Error):
        return " ".join([process.name(), *process.cmdline()])
    return ""


def lives(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
