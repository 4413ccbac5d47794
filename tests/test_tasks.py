"""Every training task: its shipped config and data train for real and learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer import FineTuner
from swift_toolkit.config.request import load_config
from swift_toolkit.config.tasks import TASKS
from swift_toolkit.problems import RequestError

CONFIGS = [
    "pt", "dpo", "orpo", "simpo", "cpo", "kto", "rm", "grpo", "gkd", "seq_cls", "seq_cls_multi", "seq_cls_regression",
    "embedding", "reranker", "generative_reranker",
]  # fmt: skip
WITHOUT_CONFIG = {
    "sft": "configs/quickstart.json",
    "ppo": "needs a reward model",
    "decision": "ms-swift 4.6 alone",
}


def test_every_task_has_a_config_or_a_reason_and_a_row_in_the_docs() -> None:
    tasks = {load_config(f"configs/{name}.json").task.name for name in CONFIGS}
    assert tasks | WITHOUT_CONFIG.keys() == TASKS.keys()
    docs = Path("docs/tasks.md").read_text(encoding="utf-8")
    for name in TASKS.keys() - {"decision"}:
        assert f"| `{name}` |" in docs
    for name in CONFIGS:
        assert f"`configs/{name}.json`" in docs


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


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_shipped_config_trains_and_learns(name: str, tiny_model: Path, tmp_path: Path) -> None:
    small = {
        "model": str(tiny_model),
        "model_type": "llama",
        "template": "chatml",
        "output_dir": str(tmp_path),
    }
    more: dict[str, Any] = {
        "max_steps": 8,
        "save_steps": 8,
        "learning_rate": 1e-2,
        "target_modules": "all-linear",
    }
    if name == "gkd":
        more["teacher_model"] = str(tiny_model)
        more["max_completion_length"] = 8
    result = FineTuner(f"configs/{name}.json", **small, **more).run_training()
    assert (result.status, result.steps) == ("done", 8)
    lines = (result.run_directory / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    logs = [log for log in map(json.loads, lines) if "loss" in log]
    losses = [log["loss"] for log in logs]
    assert max(log["grad_norm"] for log in logs) > 0 or name == "grpo"  # random weights find no sum
    if name not in ("grpo", "gkd"):
        assert min(losses[2:]) < sum(losses[:2]) / 2, losses
