"""Faster steps on a CPU: the same gradient and losses as those of ms-swift, also with dropout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.both_ways import arguments, compare, write_mixed

TRAINED = ("--init_weights=false", "--lora_dropout=0.2")
"""Both halves of an adapter have a gradient, as after some training: none begins with 0."""


@pytest.mark.slow
def test_the_gradient_is_that_with_padding(tiny_model: Path, tmp_path: Path) -> None:
    """Also where adapters are on some layers only, and where activations are computed twice."""
    chats = tmp_path / "chats.jsonl"
    write_mixed(chats)
    given = {
        "lora": ("sft", arguments(tiny_model, chats, "lora", "--max_steps=10")),
        "dropout": ("sft", arguments(tiny_model, chats, "lora", "--lora_dropout=0.2")),
        "some": ("sft", arguments(tiny_model, chats, "lora", "--target_modules", "q_proj", "down_proj")),
        "full": ("sft", arguments(tiny_model, chats, "full")),
        "twice": ("sft", arguments(tiny_model, chats, "lora", "--gradient_checkpointing=true")),
        "pt": ("pt", arguments(tiny_model, chats, "full")),
    }
    runs = [
        {"name": name, "command": command, "arguments": words, "computes": 0.8}
        for name, (command, words) in given.items()
    ]
    words = arguments(tiny_model, chats, "lora", *TRAINED)
    runs.append({"name": "trained", "command": "sft", "arguments": words, "computes": 0.8, "within": 5e-6})
    compare("tokens", tmp_path, runs)


@pytest.mark.slow
def test_the_gradient_with_onednn_is_that_with_mkl(tiny_model: Path, tmp_path: Path) -> None:
    """Where only adapters are trained. Weights that are trained themselves, and products in bfloat16 of weights in
    float32, are computed as before: in bfloat16, with other roundings of the attention without padding."""
    chats = tmp_path / "chats.jsonl"
    write_mixed(chats)
    given = {
        "lora": (0.6, arguments(tiny_model, chats, "lora", "--max_steps=10")),
        "twice": (0.6, arguments(tiny_model, chats, "lora", "--gradient_checkpointing=true")),
        "full": (0.8, arguments(tiny_model, chats, "full")),
    }
    runs = [
        {"name": name, "command": "sft", "arguments": words, "computes": share}
        for name, (share, words) in given.items()
    ]
    words = arguments(tiny_model, chats, "lora", "--bf16=true")
    rounded = {"computes": 0.8, "within": 5e-3, "losses": 3e-4}
    runs.append({"name": "mixed", "command": "sft", "arguments": words, **rounded})
    for variant, share in (("--use_dora=false", 0.6), ("--use_dora=true", 0.8)):
        words = arguments(tiny_model, chats, "lora", variant, *TRAINED)
        run = {"name": variant, "command": "sft", "arguments": words, "computes": share, "within": 5e-6}
        runs.append(run)
    compare("onednn", tmp_path, runs)
