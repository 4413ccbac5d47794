"""ms-swift 3.12: real training, real answers and a real server; run by ``make test-swift3`` in a venv of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

import inference_test
from deploy_model import ModelDeployer
from finetune_trainer import FineTuner, TrainingResult
from inference_test import InferenceTester
from swift_toolkit import __main__
from swift_toolkit.machine.msswift import installed
from swift_toolkit.problems import RequestError

pytestmark = [pytest.mark.swift3, pytest.mark.slow]

STEPS = 8
SAID = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A LoRA training of the embedded model, as a config of ms-swift 2 asks for it."""
    old = tmp_path_factory.mktemp("old") / "old.json"
    old.write_text(
        json.dumps(
            {
                "model_id_or_path": "builtin/SmolLM2-135M-Instruct",
                "sft_type": "lora",
                "lora_target_modules": ["ALL"],
                "dtype": "fp32",
                "dataset": "data/self_cognition.jsonl",
                "dataset_test_ratio": 0,
                "batch_size": 4,
                "gradient_accumulation_steps": 1,
                "learning_rate": 2e-3,
                "max_length": 256,
                "max_steps": STEPS,
                "warmup_steps": 0,
                "logging_steps": 1,
                "output_dir": str(tmp_path_factory.mktemp("runs")),
            }
        )
    )
    return FineTuner(str(old)).run_training()


def test_training(result: TrainingResult) -> None:
    assert installed().version == "3.12.6"
    assert (result.status, result.steps) == ("done", STEPS)
    lines = (result.run_directory / "logging.jsonl").read_text().splitlines()
    losses = [loss for line in lines if (loss := json.loads(line).get("loss")) is not None]
    assert len(losses) == STEPS and losses[-1] < 0.8 * losses[0]
    assert result.last_checkpoint is not None
    args = json.loads((result.last_checkpoint / "args.json").read_text())
    assert (args["train_type"], args["torch_dtype"], args["template"]) == ("lora", "float32", "chatml")


def test_the_record_of_the_run(
    result: TrainingResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ``runs`` and the report say of a run of ms-swift 3."""
    run = result.run_directory
    report = (run / "report.html").read_text()
    for title in ("Loss", "Token accuracy", "Gradient norm", "Learning rate", "Time per step", "Memory"):
        assert f"<figcaption>{title}" in report
    other = shutil.copytree(run, tmp_path / "other" / run.name)
    settings = json.loads((other / "plan.json").read_text())
    settings["settings"]["learning_rate"]["value"] = "0.5"
    (other / "plan.json").write_text(json.dumps(settings))

    def said(*words: object) -> Any:
        assert __main__.main(["runs", *map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    (listed,) = said(run.parent)["runs"]
    assert (listed["state"], listed["step"], listed["max_steps"]) == ("done", STEPS, STEPS)
    assert listed["best_loss"] < 2 and not listed["faults"] and not listed["resumable"]
    assert said("show", run)["result"]["steps"] == STEPS
    page = tmp_path / "comparison.html"
    assert said("compare", run, other, "--report", page)["settings"] == [["learning_rate", "0.002", "0.5"]]
    assert "2 runs compared" in page.read_text()
    assert said("repeat", run)["command"] == ["finetune_trainer.py", "--config", str(run / "settings.json")]
    assert not said("clean", run.parent)["found"]
    with pytest.raises(RequestError, match="the run is finished"):
        FineTuner(run / "settings.json", resume=run)


def test_a_batch_of_questions_and_a_served_answer(result: TrainingResult, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"query": "Who are you?"}\n{"query": "What is your name?"}\n')
    line = f"swift infer --ckpt_dir {result.last_checkpoint} --val_dataset {questions} --max_new_tokens 12"
    output = tmp_path / "answers.json"
    words = ["--from-command", line, "--compare-base", "--output", str(output)]
    assert inference_test.main(words) == 0
    answers = json.loads(output.read_text())["results"]
    assert len(answers) == 2
    assert all(one["answer"] and one["answer"] != one["base"]["answer"] for one in answers)
    assert result.last_checkpoint is not None
    with ModelDeployer(str(result.last_checkpoint), port=0, output_dir=str(tmp_path / "serve")) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300)
        base, tuned = [model.id for model in client.models.list()]
        assert _ask(client, tuned) == answers[0]["answer"].strip()
        assert _ask(client, base) == answers[0]["base"]["answer"].strip()


def _ask(client: openai.OpenAI, name: str) -> str:
    messages = [{"role": "user", "content": "Who are you?"}]
    answer = client.chat.completions.create(model=name, messages=messages, max_tokens=12, temperature=0)  # type: ignore[arg-type]
    return (answer.choices[0].message.content or "").strip()


def test_a_merged_checkpoint(result: TrainingResult, tmp_path: Path) -> None:
    with InferenceTester(str(result.last_checkpoint), **SAID, log=tmp_path / "a.log") as tester:
        expected = tester.ask("Who are you?")
    with InferenceTester(
        str(result.last_checkpoint), merge_lora=True, **SAID, log=tmp_path / "b.log"
    ) as tester:
        assert tester.ask("Who are you?") == expected
