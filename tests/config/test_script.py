"""Shell lines and scripts that start ms-swift, as commands with settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_toolkit.config.scripts.script import all_commands, from_command
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
    command, env, settings, left_out, _ = from_command(text, TRAINING)
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
        "$MODEL is not known here and is kept unchanged",
        "$(date +%F) is not known here and is kept unchanged",
        "> log.txt",
    ]


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
            "run.sh: contains several commands of ms-swift: swift sft in line 1, swift rlhf in line 3. "
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
            "Here: deploy_model.py --checkpoint DIR --chat serves a chat page.",
        ),
        (
            "echo swift",
            "run.sh: contains no command of ms-swift. Give a line with swift sft, swift pt or swift rlhf.",
        ),
        (
            "",
            "run.sh: contains no command of ms-swift. Give a line with swift sft, swift pt or swift rlhf.",
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


def settings_of(text: str, file: str | None = None) -> dict[str, Any]:
    return from_command(text, TRAINING, file).values


def test_arrays() -> None:
    text = """
ARGS=(
    --lora_rank 16   # small
    --dataset "a b.jsonl"
    c.jsonl
)
ARGS+=(--packing)
SIZES=(8 4)
swift sft --model a/b "${ARGS[@]}" --lora_alpha ${SIZES[0]} --max_steps $SIZES ${SIZES[@]}
"""
    assert settings_of(text) == {
        "model": "a/b",
        "lora_rank": "16",
        "dataset": ["a b.jsonl", "c.jsonl"],
        "packing": True,
        "lora_alpha": "8",
        "max_steps": ["8", "8", "4"],
    }
    assert from_command("swift sft --model a ${NONE[@]}", TRAINING).left_out == [
        "${NONE[@]} is not known here and is kept unchanged"
    ]


@pytest.mark.parametrize(
    ("text", "dataset"),
    [
        ("D=$(pwd)\nswift sft --dataset $D/a.jsonl", "{cwd}/a.jsonl"),
        ("swift sft --dataset `pwd`/a.jsonl", "{cwd}/a.jsonl"),
        ('swift sft --dataset "$PWD/a.jsonl"', "{cwd}/a.jsonl"),
        ('D=$(dirname "$0")\nswift sft --dataset $D/a.jsonl', "sub/a.jsonl"),
        ("swift sft --dataset $(dirname $0)/a.jsonl", "sub/a.jsonl"),
        ('D=$(cd "$(dirname "$0")" && pwd)\nswift sft --dataset $D/a.jsonl', "{cwd}/sub/a.jsonl"),
        (
            'D="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"\nswift sft --dataset $D/a.jsonl',
            "{cwd}/a.jsonl",
        ),
        ("swift sft --dataset $DATA_ROOT/a.jsonl", "/data/a.jsonl"),
        ("swift sft --dataset $MY_TOKEN", "$MY_TOKEN"),
    ],
)
def test_places_are_known_without_running_anything(
    text: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", "/data")
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert settings_of(text, "sub/train.sh")["dataset"] == dataset.format(cwd=Path.cwd())


def test_no_line_that_is_skipped_shows_a_secret() -> None:
    text = """
export WANDB_API_KEY=0a1b2c3d
MY_SECRET=sesame
huggingface-cli login --token first
wandb login $WANDB_API_KEY
curl -H "Authorization: Bearer second" https://me:third@host/x
echo prefix-$MY_SECRET-suffix
swift sft --model a/b --dataset c.jsonl 2> log-$MY_SECRET
"""
    said = "\n".join(from_command(text).left_out)
    assert said.count("***") == 5
    for secret in ("0a1b2c3d", "sesame", "first", "second", "third"):
        assert secret not in said
    with pytest.raises(RequestError) as caught:
        from_command("MY_TOKEN=fourth\nswift app --model a --api_key $MY_TOKEN")
    assert "***" in str(caught.value) and "fourth" not in str(caught.value)


def test_comments_behind_a_backslash() -> None:
    text = "swift sft \\\n  --model a/b \\ # the base\n  --lora_rank 8 \\  # small\n  --system 'a # b' --tag a\\#b\n"
    assert settings_of(text) == {"model": "a/b", "lora_rank": "8", "system": "a # b", "tag": "a#b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "swift sft ^\n  --model a",
            'run.sh:1: "^" continues lines in cmd.exe. Write "\\" at the end of the line.',
        ),
        (
            "swift sft `\n  --model a",
            'run.sh:1: "`" continues lines in PowerShell. Write "\\" at the end of the line.',
        ),
        (
            "swift sft --model a \\\n  ——lora_rank 8",
            'run.sh:2: "——lora_rank" starts with a long dash. Write --lora_rank.',
        ),
        ("swift sft –-lora_rank=8", 'run.sh:1: "–-lora_rank=8" starts with a long dash. Write --lora_rank.'),
        ("swift sft --save_total_limit −1", 'run.sh:1: "−1" starts with a long dash. Write -1.'),
        (
            "swift sft --system “You are”",
            'run.sh:1: "“" is a typographic quotation mark, which the shell reads as a letter. Write " or \'.',
        ),
    ],
)
def test_what_no_shell_of_linux_reads_as_meant(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        from_command(text, TRAINING, "run.sh")
    assert message in str(caught.value).splitlines()


def test_typographic_marks_inside_quotes_are_text() -> None:
    text = "swift sft --system '“Hello” — he said' --model_author \"– x\""
    assert settings_of(text) == {"system": "“Hello” — he said", "model_author": "– x"}


@pytest.mark.parametrize(
    ("text", "env"),
    [
        (
            "accelerate launch --num_processes 8 --num_machines 2 --machine_rank 1 --main_process_ip h "
            "--main_process_port 1234 swift/cli/sft.py --model a",
            {
                "NPROC_PER_NODE": "4",
                "NNODES": "2",
                "NODE_RANK": "1",
                "MASTER_ADDR": "h",
                "MASTER_PORT": "1234",
            },
        ),
        ("deepspeed --num_gpus=2 llm_sft.py --model a", {"NPROC_PER_NODE": "2"}),
        (
            "deepspeed --include localhost:1,3 --master_port 7 llm_sft.py --model a",
            {"CUDA_VISIBLE_DEVICES": "1,3", "NPROC_PER_NODE": "2", "MASTER_PORT": "7"},
        ),
        (
            "python -m torch.distributed.run --nproc-per-node 2 --nnodes $WORLD_SIZE swift/cli/sft.py --model a",
            {"NPROC_PER_NODE": "2", "NNODES": "3"},
        ),
        (
            "torchrun --nproc_per_node 2 --node_rank $NO_RANK swift/cli/sft.py --model a",
            {"NPROC_PER_NODE": "2"},
        ),
        (
            "CUDA_VISIBLE_DEVICES=0,1 python llm_sft.py --model a",
            {"CUDA_VISIBLE_DEVICES": "0,1", "NPROC_PER_NODE": "1"},
        ),
        (
            "CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=2 swift sft --model a",
            {"CUDA_VISIBLE_DEVICES": "0,1", "NPROC_PER_NODE": "2"},
        ),
    ],
)
def test_launchers(text: str, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert from_command(text, TRAINING).env == env


def test_what_a_launcher_cannot_pass_on_is_said() -> None:
    found = from_command("deepspeed --hostfile hosts --num_gpus 2 llm_sft.py --model a", TRAINING)
    assert found.left_out == [
        "deepspeed --hostfile hosts",
        "a hostfile: start this on each machine with --nnodes, --node-rank and --master-addr",
    ]
    found = from_command("CUDA_VISIBLE_DEVICES=0,1 swift sft --model a", TRAINING)
    assert found.left_out == [] and found.notices == [
        "one process over 2 devices, as written; --nproc-per-node 2 uses them all at once"
    ]
