"""``save_total_limit`` leaves the best and the newest checkpoint, by transformers' own code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swift_toolkit.machine import msswift


@pytest.mark.parametrize(
    ("limit", "strategy", "kept"),
    [(1, "steps", 2), (1, "epoch", 2), (1, "no", 1), (2, "steps", 2), (None, "steps", None)],
)
def test_a_limit_of_one_leaves_room_for_the_newest(
    limit: int | None, strategy: str, kept: int | None
) -> None:
    for value in (strategy, SimpleNamespace(value=strategy)):  # a text or transformers' enumeration
        args: Any = SimpleNamespace(save_total_limit=limit, eval_strategy=value)
        msswift.keep_newest_checkpoint(args)
        assert args.save_total_limit == kept


def test_transformers_keeps_the_best_and_the_newest_of_two(tmp_path: Path) -> None:
    trainer_utils = pytest.importorskip("transformers.trainer_utils")
    rotate = getattr(trainer_utils, "rotate_checkpoints", None)
    if rotate is None:
        pytest.skip("until transformers 5 this is a method of the trainer")
    for step in (1, 2, 3, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(str(tmp_path), save_total_limit=2, best_model_checkpoint=str(tmp_path / "checkpoint-2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]
