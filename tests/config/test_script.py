"""Shell lines and scripts that start ms-swift, as commands with settings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_toolkit.config.script import all_commands, from_command
from swift_toolkit.machine.msswift import Command
from swift_toolkit.problems import RequestError

TRAINING: tuple[Command, ...] = ("sft", "pt", "rlhf")
INFERENCE: tuple[Command, ...] = ("infer",)


def test_a_line() -> None:
    text = (
        "CUDA_VISIBLE_DEVICES=0 NPROC_PER_NODE=2 swift sft --model a/b --dataset c.jsonl 'd e#500' --packing"
    )
    assert from_command(text) == (
        "sft",
        {"CUDA_VISIBLE_DEVICES": "0", "NPROC_PER_NODE": "2"},
        {"model": "a/b", "dataset": ["c.jsonl", "d e#500"], "packing": True},
        [],
    )


def test_a_script() -> None:
    text = """#!/bin/bash
# 2 * 50GB
nproc_per_node=2
NAME="my model"
export OMP_NUM_THREADS=4   # shared cores
pip install ms-swift -U

CUDA_VISIBLE_DEVICES=0,1 \\
torchrun \\
    --nproc_per_node=$nproc_per_node --master_port 29500 \\
    src/llm_sft.py \\
    --model_type qwen-7b \\
    # --quantization_bit 4 \\
    --output_dir "out/${NAME}/${STEP:-1}" \\
    --gradient_accumulation_steps $(expr 16 / $nproc_per_node) \\
    --deepspeed='{"a": {"b": 1}}' \\
    --save_total_limit -1 2>&1 | tee train.log &
"""
    command, env, settings, left_out = from_command(text, TRAINING)
    assert command == "sft"
    assert env == {
        "OMP_NUM_THREADS": "4",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "NPROC_PER_NODE": "2",
        "MASTER_PORT": "29500",
    }
    assert settings == {
        "model_type": "qwen-7b",
        "output_dir": "out/my model/1",
        "gradient_accumulation_steps": "8",
        "deepspeed": '{"a": {"b": 1}}',
        "save_total_limit": "-1",
    }
    assert left_out == ["line 6: pip install ms-swift -U", "line 17: tee train.log"]


@pytest.mark.parametrize(
    ("text", "command", "settings"),
    [
        ("swift rlhf --rlhf_type dpo", "rlhf", {"rlhf_type": "dpo"}),
        ("swift dpo --beta 0.1", "rlhf", {"rlhf_type": "dpo", "beta": "0.1"}),
        ("swift merge-lora --adapters a", "export", {"merge_lora": "true", "adapters": "a"}),
        ("python -m swift.cli.infer --stream true", "infer", {"stream": "true"}),
        ("python3 swift/cli/main.py deploy --port 8000", "deploy", {"port": "8000"}),
        ("python swift/cli/eval.py --eval_limit 5", "eval", {"eval_limit": "5"}),
        ("nohup python llm_infer.py --do_sample false > a.log 2>&1 &", "infer", {"do_sample": "false"}),
        ("/opt/bin/swift pt --max-steps 5", "pt", {"max_steps": "5"}),
        ("swift sft train.yaml --max_steps 5", "sft", {"config": "train.yaml", "max_steps": "5"}),
        ("USE_HF=1 swift sft --model a", "sft", {"use_hf": "true", "model": "a"}),
        ("swift sft --a 1 ... --b 2", "sft", {"a": "1", "b": "2"}),
        ("A='x y'; swift sft --a $A --b \"$A\"", "sft", {"a": ["x", "y"], "b": "x y"}),
        ("n=2\nswift sft --a $((n * 8 / 4)) --b `expr 6 / 2 / 3`", "sft", {"a": "4", "b": "1"}),
        ('swift sft --a "say \\"hi\\" for \\$5"', "sft", {"a": 'say "hi" for $5'}),
        ("swift sft --a\\\n--b c\\ d \\", "sft", {"a": True, "b": "c d"}),
        ("swift sft --a 'two\nlines'", "sft", {"a": "two\nlines"}),
        ("swift sft --a=b=c --a last", "sft", {"a": "last"}),
    ],
)
def test_ways_to_write_a_command(text: str, command: Command, settings: dict[str, Any]) -> None:
    found = from_command(text)
    assert (found.command, found.values) == (command, settings)


def test_what_cannot_be_known_is_said() -> None:
    found = from_command("swift sft --model $MODEL --output_dir out/$(date +%F) > log.txt")
    assert found.values == {"model": "$MODEL", "output_dir": "out/$(date +%F)"}
    assert found.left_out == [
        "$MODEL is not known here and kept as it stands",
        "$(date +%F) is not known here and kept as it stands",
        "> log.txt",
    ]
    assert from_command("swift sft stray --a 1").left_out == ["stray belongs to no setting"]


def test_a_comment_after_a_continued_line_ends_the_command_unless_options_follow() -> None:
    text = "swift sft --a 1 \\\n  # --b 2 \\\n  # --c 3 \\\n  --d 4 \\\n# node1\nX=1 \\\nswift sft --e 5\n"
    assert [command.values for command in all_commands(text)] == [{"a": "1", "d": "4"}, {"e": "5"}]


def test_the_wanted_command_of_several() -> None:
    text = "swift sft --a 1\nswift infer --b 2\n"
    assert from_command(text, TRAINING).values == {"a": "1"}
    assert from_command(text, TRAINING).left_out == ["line 2: swift infer --b 2"]
    assert from_command(text, INFERENCE).values == {"b": "2"}
    assert [command.command for command in all_commands(text)] == ["sft", "infer"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "swift sft --a 1\n\nswift rlhf --b 2",
            "run.sh: several commands of ms-swift are in it: swift sft in line 1, swift rlhf in line 3. "
            "Keep one of them.",
        ),
        (
            "cd swift\nmegatron sft --model a",
            'run.sh:2: "megatron sft --model a" is a command that cannot be run here. '
            "Give a line with swift sft, swift pt or swift rlhf.",
        ),
        (
            "swift app --model a",
            'run.sh:1: "swift app --model a" is a command that cannot be run here. '
            "Give a line with swift sft, swift pt or swift rlhf.",
        ),
        (
            "echo swift",
            "run.sh: no command of ms-swift is in it. Give a line with swift sft, swift pt or swift rlhf.",
        ),
        (
            "",
            "run.sh: no command of ms-swift is in it. Give a line with swift sft, swift pt or swift rlhf.",
        ),
    ],
)
def test_scripts_without_one_command(text: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        from_command(text, TRAINING, file="run.sh")
    assert str(error.value) == message


@given(st.text(alphabet="swift ft-a=1$(){}'\"\\\n`#;&|<>", max_size=60))
def test_any_text_is_read(text: str) -> None:
    for command in all_commands(text):
        assert command.command == "sft"
