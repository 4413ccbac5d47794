"""Logits of learned tokens only: the same gradient and losses as with ms-swift's own logits."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.training.both_ways import arguments, compare, write_mixed


@pytest.mark.slow
def test_the_gradient_is_that_of_all_logits(tiny_model: Path, tmp_path: Path) -> None:
    """Also with weighted tokens, and where the model's output embedding has an adapter."""
    chats, turns = tmp_path / "chats.jsonl", tmp_path / "turns.jsonl"
    write_mixed(chats)
    rows = [json.loads(line)["messages"] for line in chats.read_text().splitlines()]
    with turns.open("w") as file:
        for before, row in pairwise(rows):
            file.write(json.dumps({"messages": [*before, *row]}) + "\n")
    head = ["--target_modules", "q_proj", "lm_head"]
    given = {
        "lora": ("sft", arguments(tiny_model, chats, "lora"), 0.7),
        "full": ("sft", arguments(tiny_model, chats, "full", "--per_device_train_batch_size=2"), 0.8),
        "head": ("sft", arguments(tiny_model, chats, "lora", *head), 0.7),
        "turns": ("sft", arguments(tiny_model, turns, "lora", "--max_steps=10"), 0.7),
        "last": ("sft", arguments(tiny_model, turns, "lora", "--loss_scale=last_round"), 0.9),
        "pt": ("pt", arguments(tiny_model, chats, "full"), 0.7),
    }
    runs = [
        {"name": name, "command": command, "arguments": words, "computes": share}
        for name, (command, words, share) in given.items()
    ]
    compare("learned", tmp_path, runs)
