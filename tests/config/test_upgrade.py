"""Requests of older generations written in today's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import finetune_trainer
from swift_toolkit.config.request import load_config
from swift_toolkit.config.scripts.upgrade import upgrade
from swift_toolkit.problems import RequestError

pytestmark = pytest.mark.swift4  # the expected names are of that

OLD_YAML = """\
# my old run
model_id_or_path: qwen/Qwen-7B-Chat  # the model
sft_type: qlora  # cheap
dtype: AUTO  # nothing

# data
dataset: data/self_cognition.jsonl
custom_val_dataset_path:  # of last week
- a.jsonl  # good
# and
- b.jsonl  # bad

num_train_epochs: 3  # all of it
target_modules:
- q_proj  # first
- v_proj
max_length: 1024
dataset_test_ratio: 0
# the end
"""
NEW_YAML = """\
# my old run
model: qwen/Qwen-7B-Chat # the model
tuner_type: lora # cheap
quant_method: bnb
quant_bits: 4
# nothing

# data
dataset: data/self_cognition.jsonl
val_dataset: [a.jsonl, b.jsonl] # of last week
# good
# and
# bad

num_train_epochs: 3  # all of it
target_modules:
- q_proj  # first
- v_proj
max_length: 1024
split_dataset_ratio: 0
# the end
warmup_ratio: 0.05
"""


def test_yaml_keeps_its_order_and_comments(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(OLD_YAML)
    assert upgrade(old, new) == [
        "model_id_or_path → model",
        'sft_type "qlora" → tuner_type "lora", quant_method "bnb", quant_bits 4',
        'dtype "AUTO" → left to ms-swift',
        "custom_val_dataset_path → val_dataset",
        "dataset_test_ratio → split_dataset_ratio",
        "warmup_ratio 0.05 added: the default before ms-swift 3.0",
        "defaults that were different and are not set in this request: weight_decay 0.01 before 2.0, adam_beta2 0.999 before 2.3, "
        "max_grad_norm 0.5 from 1.4 to 2.2, lr_scheduler_type linear from 1.6 to 2.1, truncation_strategy left before "
        "1.4. Set them to repeat a run from before ms-swift 3.0",
    ]
    assert new.read_text() == NEW_YAML
    assert load_config(new).notices == []


def test_a_task_of_the_toolkit_is_kept(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    settings = {"task": "dpo", "model": "a/b", "dataset": ["c/d"], "beta": 0.2}
    old.write_text(json.dumps({**settings, "model_id_or_path": "a/b"}))
    assert upgrade(old, new) == ["model_id_or_path → model"]
    assert json.loads(new.read_text()) == settings


def test_comments_of_what_is_dropped_stay(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(
        "# top\ndtype: AUTO # a\n# b\nmodel: x\ntarget_modules:\n- q_proj # q\n- v_proj\nsave_total_limit: -1 # c\n\n# d\n"
        "lora_rank: 8\nlora_modules_to_save: [] # e\n"
    )
    upgrade(old, new)
    assert new.read_text() == (
        "# top\n# a\n# b\nmodel: x\ntarget_modules:\n- q_proj # q\n- v_proj\n# c\n\n# d\nlora_rank: 8\n# e\n"
    )


def test_a_shell_line_becomes_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.json"
    line = "CUDA_VISIBLE_DEVICES=0 swift sft --model a/b --dataset c/d e/f#5 --train_type qlora --streaming false --lora_rank 16"
    assert finetune_trainer.main(["--from-command", line, "--upgrade", str(new)]) == 0
    assert capsys.readouterr().out == f"{new}\n"
    assert json.loads(new.read_text()) == {
        "model": "a/b",
        "dataset": ["c/d", "e/f#5"],
        "train_type": "qlora",
        "streaming": False,
        "lora_rank": 16,
    }


def test_a_script_is_planned_like_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "old.sh"
    script.write_text(
        "echo start\nMODEL=builtin/SmolLM2-135M-Instruct\nswift sft --model $MODEL \\\n  --dataset data/self_cognition.jsonl --max_steps 3\n"
    )
    assert (
        finetune_trainer.main(["--from-script", str(script), "--max_steps", "5", "--dry-run", "--json"]) == 0
    )
    shown = capsys.readouterr()
    assert json.loads(shown.out)["arguments"]["max_steps"] == 5
    assert shown.err == "skipped: line 1: echo start\n"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        upgrade({"lora_rnak": 8, "lora_rank": "x"}, tmp_path / "a.json")
    assert str(caught.value) == (
        '"lora_rnak" is not a setting. Correct or remove it first.\n"lora_rank" must be a number, not "x".'
    )
    (tmp_path / "b.json").write_text("mine")
    with pytest.raises(RequestError) as caught:
        upgrade({"lora_rank": 8}, tmp_path / "b.json")
    assert str(caught.value) == f"{tmp_path}/b.json: already exists. Give a new file."
    assert (tmp_path / "b.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "a.json", "--from-command", "x"], "--config and --from-command cannot be used together. Keep one of them."),
        (["--from-script", "no.sh"], "no.sh: no such file. Check the path."),
        (["--config", "configs/quickstart.json", "--upgrade", "x.json", "--lora_rank", "8"], '--upgrade with a file takes no settings: "--lora_rank". Remove them.'),
    ],
)  # fmt: skip
def test_wrong_uses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune_trainer.main(arguments) == 2
    assert capsys.readouterr().err.strip() == message


@pytest.mark.parametrize("name", ["new.json", "new.yaml"])
def test_secrets_are_not_copied(name: str, tmp_path: Path) -> None:
    old = {
        "model_type": "qwen2-7b",
        "dataset": ["a.jsonl"],
        "hub_token": "abc123",
        "swanlab_secret": "def456",
    }
    said = upgrade(old, tmp_path / name)
    assert "abc123" not in (tmp_path / name).read_text() and "def456" not in (tmp_path / name).read_text()
    assert "hub_token: is a secret and skipped. " in "\n".join(said)
    path = tmp_path / "old.yaml"
    path.write_text("model_type: qwen2-7b  # the model\nhub_token: abc123  # mine\ndataset: [a.jsonl]\n")
    upgrade(path, tmp_path / f"from-file-{name}")
    assert "abc123" not in (tmp_path / f"from-file-{name}").read_text()


def test_a_secret_within_a_value_is_refused(tmp_path: Path) -> None:
    old = {"model_type": "qwen2-7b", "dataset": ["a.jsonl"], "model_kwargs": {"token": "abc-123"}}
    with pytest.raises(RequestError, match='"model_kwargs" holds a secret under "token"'):
        upgrade(old, tmp_path / "new.yaml")
    assert not (tmp_path / "new.yaml").exists()
