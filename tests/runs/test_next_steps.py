"""The commands that are recommended for a checkpoint fit what its model gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swift_toolkit.runs.next_steps import recorded_commands

ASK, SERVE = "python inference_test.py --checkpoint {path}", "python deploy_model.py --checkpoint {path}"


@pytest.mark.parametrize(
    ("args", "commands"),
    [
        ({}, [ASK, SERVE]),
        ({"task_type": "causal_lm", "rlhf_type": "dpo"}, [ASK, SERVE]),
        ({"task_type": "seq_cls"}, [ASK + " --questions-file FILE", SERVE]),
        ({"task_type": "seq_cls", "rlhf_type": "rm"}, [ASK + " --questions-file FILE", SERVE]),
        ({"task_type": "generative_reranker"}, [ASK + " --questions-file FILE", SERVE]),
        ({"task_type": "embedding"}, [SERVE]),
        ({"external_plugins": ["rewards.py"]}, [ASK + " --trust-code", SERVE + " --trust-code"]),
        ({"task_type": "decision"}, ["swift infer --adapters {path} --val_dataset FILE"]),
    ],
)
def test_commands_by_what_the_model_gives(
    args: dict[str, object], commands: list[str], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "args.json").write_text(json.dumps({"dataset": ["owner/name"], **args}))
    assert list(recorded_commands(tmp_path)) == [one.format(path=tmp_path) for one in commands]


def test_the_first_local_file_of_the_data_is_given(tmp_path: Path) -> None:
    data = tmp_path / "my data.jsonl"
    data.touch()
    args = {"task_type": "seq_cls", "val_dataset": [], "dataset": ["owner/name", f"{data}#500"]}
    (tmp_path / "args.json").write_text(json.dumps(args))
    assert next(recorded_commands(tmp_path)).endswith(f"--questions-file '{data}'")
