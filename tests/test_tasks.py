"""Every training task: its shipped config and data train for real and learn."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import deploy_model
import finetune_trainer
import inference_test
from finetune_trainer import FineTuner
from swift_toolkit.config.request import load_config
from swift_toolkit.config.tasks import TASKS, TaskName
from swift_toolkit.dataset.verify import verify
from swift_toolkit.machine.msswift import installed
from swift_toolkit.problems import RequestError
from swift_toolkit.runs.record import TrainingResult

CONFIGS = [
    "pt", "dpo", "orpo", "simpo", "cpo", "kto", "rm", "grpo", "gkd", "seq_cls", "seq_cls_multi", "seq_cls_regression",
    "embedding", "reranker", "generative_reranker",
]  # fmt: skip
if installed().line == "v4":
    CONFIGS.append("decision")
OF_ITS_OWN = {
    "sft": "configs/quickstart.json",
    "ppo": "configs/ppo.json",
    "decision": "configs/decision.json",
}


def test_every_task_has_a_config_or_a_reason_and_a_row_in_the_docs() -> None:
    tasks = {load_config(f"configs/{name}.json").task.name for name in CONFIGS}
    assert tasks | OF_ITS_OWN.keys() == TASKS.keys()
    docs = Path("docs/tasks.md").read_text(encoding="utf-8")
    for name in TASKS:
        assert f"| `{name}` |" in docs
    for name in CONFIGS:
        assert f"`configs/{name}.json`" in docs


SAMPLES: dict[str, tuple[TaskName, bool]] = {
    "embedding": ("embedding", False),
    "gkd": ("gkd", False),
    "grpo": ("grpo", False),
    "kto": ("kto", False),
    "preference": ("dpo", False),
    "pt": ("pt", False),
    "reranker": ("reranker", False),
    "seq_cls": ("seq_cls", False),
    "decision": ("decision", False),
    "self_cognition": ("sft", False),
    "images": ("sft", True),
    "grounding": ("sft", True),
    "audio": ("sft", True),
    "video": ("sft", True),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_shipped_rows_are_good(name: str) -> None:
    task, multimodal = SAMPLES[name]
    report = verify([f"data/{name}.jsonl"], task=task, multimodal=multimodal)
    assert (report.errors, report.warnings) == ([], [])
    assert (report.train_rows or 0) >= (4 if name in ("audio", "video") else 16)


@pytest.mark.parametrize(
    ("name", "metrics", "first", "commands"),
    [
        ("sft", {"final_loss": 0.5, "best_loss": 0.4}, "loss 0.5000 (best 0.4000)", ["inference_test", "deploy_model"]),
        ("grpo", {"final_loss": 0.0, "best_loss": 0.0, "reward": 0.75}, "reward 0.750", ["inference_test", "deploy_model"]),
        ("dpo", {"final_loss": 0.5, "best_loss": 0.5, "rewards/margins": 1.5, "rewards/accuracies": 1.0},
         "loss 0.5000 (best 0.5000), margin 1.500, accuracy 100%", ["inference_test", "deploy_model"]),
        ("rm", {}, "", ["--questions-file data/preference.jsonl", "deploy_model"]),
        ("seq_cls", {}, "", ["--questions-file data/seq_cls.jsonl", "deploy_model"]),
        ("embedding", {}, "", ["deploy_model"]),
        ("reranker", {}, "", ["--questions-file data/reranker.jsonl", "deploy_model"]),
        ("decision", {}, "", ["swift infer --adapters"]),
    ],
)  # fmt: skip
def test_what_is_said_of_a_trained_model(
    name: TaskName,
    metrics: dict[str, float],
    first: str,
    commands: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "adapter_config.json").touch()
    result = TrainingResult("done", tmp_path, tmp_path, None, 8, metrics, {"training": 2.0})
    config = load_config("configs/quickstart.json" if name == "sft" else f"configs/{name}.json")
    finetune_trainer._print_result(result, config, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Trained 8 steps in 2.0 s{f', {first}' if first else ''}."
    for line, command in zip(lines[4:], commands, strict=True):
        assert command in line and str(tmp_path) in line


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_its_settings_of_ms_swift(name: str) -> None:
    task = TASKS[name]
    config = load_config({"task": name, "model": "m/m", "dataset": "d/d"} | NEEDED.get(name, {}))
    assert (config.task.name, config.command) == (name, task.command)
    if task.rlhf_type:
        assert config.get("rlhf_type") == name


NEEDED: dict[str, dict[str, Any]] = {
    "grpo": {"reward_funcs": "format"},
    "ppo": {"reward_model": "m/r"},
    "gkd": {"teacher_model": "m/t"},
    "seq_cls": {"num_labels": 2},
    "embedding": {"loss_type": "infonce"},
    "reranker": {"loss_type": "pointwise_reranker"},
    "generative_reranker": {"loss_type": "pointwise_reranker"},
    "decision": {"loss_type": "scoring"},
}


def test_a_task_that_contradicts_a_setting_or_does_not_exist_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{\n"task": "dpo",\n"rlhf_type": "kto",\n"model": "m/m",\n"dataset": "d/d"\n}')
    with pytest.raises(RequestError) as caught:
        load_config(path)
    assert f'{path}:2: "task" is "dpo", but "rlhf_type" is "kto". Remove one of the two.' in str(caught.value)
    with pytest.raises(RequestError) as caught:
        load_config({"task": "rerankr", "model": "m/m", "dataset": "d/d"})
    assert '"task" is "rerankr". Did you mean "reranker"?' in str(caught.value)
    with pytest.raises(RequestError) as caught:
        load_config({"task": ["dpo"], "model": "m/m", "dataset": "d/d"})
    assert '"task" is ["dpo"]. Use one of sft, pt, dpo' in str(caught.value)


def tiny(model: Path, output: Path) -> dict[str, str]:
    fixed = {"model": str(model), "model_type": "llama", "template": "chatml", "report_to": "none"}
    return {**fixed, "output_dir": str(output)}


LETTERS = """
try:
    from swift.rewards import ORM, orms
except ModuleNotFoundError:
    from swift.plugin import ORM, orms


class Letters(ORM):
    def __call__(self, completions, **columns):
        return [sum(map(str.isalpha, one)) / (len(one) or 1) for one in completions]


orms["letters"] = Letters
"""
"""A reward that differs between the answers of random weights, which never find the right sum."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_shipped_config_trains_and_learns(name: str, tiny_model: Path, tmp_path: Path) -> None:
    small = tiny(tiny_model, tmp_path)
    if name == "decision":
        small |= dict.fromkeys(("model_type", "template"), "generic_decision")
    more: dict[str, Any] = {
        "max_steps": 8,
        "save_steps": 8,
        "learning_rate": 1e-2,
        "target_modules": "all-linear",
    }
    if name == "grpo":
        plugin = tmp_path / "letters.py"
        plugin.write_text(LETTERS)
        more["external_plugins"] = ["configs/rewards/solution.py", str(plugin)]
        more["reward_funcs"] = ["solution", "letters"]
    if name == "gkd":
        more["teacher_model"] = str(tiny_model)
        more["lmbda"] = 0  # the answers of the data, whose losses can be compared
    result = FineTuner(f"configs/{name}.json", **small, **more).run_training()
    assert (result.status, result.steps) == ("done", 8)
    lines = (result.run_directory / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    logs = [log for log in map(json.loads, lines) if "loss" in log]
    losses = [log["loss"] for log in logs]
    assert max(log["grad_norm"] for log in logs) > 0
    if name != "grpo":
        assert min(losses[2:]) < sum(losses[:2]) / 2, losses
    assert result.last_checkpoint is not None
    config = load_config(f"configs/{name}.json")
    for command in finetune_trainer._next_commands(result.last_checkpoint, config):
        follow(command, name, tmp_path / "answers.json")


ASKED = {
    "class": [None, None],
    "reward": ["preferred", "rejected"] * 2,
    "score": ["matching", "not matching"] * 2,
}
"""The categories of the first two rows of a task's data."""


def follow(command: str, name: str, answers: Path) -> None:
    """Run a command that is recommended after training: ask two rows, or check what would be served.

    Models that generate text are asked in other tests; of them, only the request is checked.
    """
    _, script, *words = shlex.split(command)
    task = load_config(f"configs/{name}.json").task
    if script == "deploy_model.py":
        assert deploy_model.main([*words, "--dry-run"]) == 0
    elif script == "inference_test.py" and task.output in ASKED:
        assert inference_test.main([*words, "--limit", "2", "--output", str(answers)]) == 0
        results = json.loads(answers.read_text())["results"]
        assert [one["category"] for one in results] == ASKED[task.output]
        if task.output == "class":
            assert all(one["reference"] for one in results) or name == "seq_cls_regression"
        else:  # the answer or the document decides, not the question alone
            assert len({one["answer"] for one in results}) > 1
    elif script == "inference_test.py":
        assert inference_test.main([*words, "--dry-run"]) == 0


@pytest.mark.slow
def test_ppo_learns_from_a_reward_model(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = FineTuner(
        "configs/rm.json", **tiny(tiny_model, tmp_path / "rm"), train_type="full", lora_rank=None, lora_alpha=None,
        max_steps=2, save_steps=2,
    ).run_training()  # fmt: skip
    given = tiny(tiny_model, tmp_path / "ppo") | {"reward_model": str(judge.last_checkpoint)}
    tuner = FineTuner("configs/ppo.json", **given, max_steps=2, save_steps=2)
    assert tuner.plan.steps == 2
    result = tuner.run_training()
    assert (result.status, result.steps) == ("done", 2)
    assert result.last_checkpoint is not None and (result.last_checkpoint / "adapter_config.json").exists()
    assert "objective/scores" in result.metrics
    assert re.search(r"step 2/2 · score -?\d+\.\d{3} · lr", capsys.readouterr().err)


@pytest.mark.slow
def test_a_reward_function_that_fails_stops_the_run_before_its_model_is_loaded(
    tiny_model: Path, tmp_path: Path
) -> None:
    source = Path("configs/rewards/solution.py").read_text(encoding="utf-8")
    broken = tmp_path / "broken.py"
    broken.write_text(
        source.replace("numbers = [", 'raise ValueError("no numbers here")\n        numbers = [')
    )
    given = tiny(tiny_model, tmp_path / "out") | {"external_plugins": str(broken)}
    with pytest.raises(RequestError) as caught:
        FineTuner("configs/grpo.json", **given, max_steps=1).run_training()
    assert str(caught.value) == (
        '"reward_funcs" "solution" fails on the first 8 rows (from data/grpo.jsonl:1): ValueError: no numbers here. '
        "Correct the function, or the columns that it reads. Full log: train.log."
    )
    (log,) = (tmp_path / "out").glob("*/train.log")
    assert "model_parameter_info" not in log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_that_would_learn_nothing_stops_before_its_model_is_loaded(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = [{"role": "user", "content": "why " * 300}, {"role": "assistant", "content": "Because."}]
    rows = tmp_path / "a.jsonl"
    rows.write_text("".join(json.dumps({"messages": talk, "n": n}) + "\n" for n in range(8)))
    given = tiny(tiny_model, tmp_path / "out") | {"dataset": str(rows), "train_type": "lora"}
    with pytest.raises(RequestError) as caught:
        FineTuner(given, max_length=100, truncation_strategy="right", max_steps=1).run_training()
    assert str(caught.value) == (
        "none of 8 rows has a token to learn. max_length truncates every answer: raise it."
    )
    assert "(8 of 8 inspected rows)" in capsys.readouterr().err
