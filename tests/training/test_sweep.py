"""Sweeps, restarts with half the batch, and the record from which a run can be repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

import finetune_trainer
from finetune_trainer import FineTuner
from swift_toolkit.config.request import load_config
from swift_toolkit.problems import RequestError
from swift_toolkit.training import sweep
from swift_toolkit.training.checked import given_settings
from swift_toolkit.training.restart import Halved, halved
from tests.test_finetune_trainer import flags, tiny

ROOT = Path(__file__).resolve().parents[2]


# --- sweeps -------------------------------------------------------------------------------------------------


def test_the_runs_of_a_sweep(tmp_path: Path) -> None:
    values = sweep.parse_sweep(["learning-rate=1e-4,2e-4", "lora_rank=8, 16,8"])
    assert values == {"learning_rate": ["1e-4", "2e-4"], "lora_rank": ["8", "16"]}
    found = sweep.points(values, tmp_path)
    assert [point.name for point in found] == [
        "learning_rate=1e-4,lora_rank=8",
        "learning_rate=1e-4,lora_rank=16",
        "learning_rate=2e-4,lora_rank=8",
        "learning_rate=2e-4,lora_rank=16",
    ]
    assert found[0].output == tmp_path / "sweep/learning_rate=1e-4,lora_rank=8"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["learning_rate"], 'is "learning_rate"; it must name a setting and at least two values'),
        (["learning_rate=1e-4"], 'is "learning_rate=1e-4"; it must name a setting and at least two values'),
        (["a=1,2", "b=1,2", "c=1,2"], "takes one or two different settings"),
        (["a=1,2", "a=3,4"], "takes one or two different settings"),
        (["output_dir=a,b"], "cannot vary output_dir: each run gets its own"),
    ],
)
def test_mistakes(texts: list[str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        sweep.parse_sweep(texts)
    assert str(caught.value).startswith(f'"--sweep" {message}')


def test_every_run_is_checked_before_the_first_starts(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = flags(tiny(tiny_model, tmp_path / "out"))
    assert finetune_trainer.main([*words, "--sweep", "lora_rank=8,0", "--dry-run"]) == 2
    assert '"--lora_rank" is 0' in capsys.readouterr().err
    assert finetune_trainer.main([*words, "--sweep", "lora_rank=8,16", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"lora_rank={rank}: {tmp_path}/out/sweep/lora_rank={rank}" for rank in (8, 16)
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_sweep_that_goes_on(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is interrupted after its first run; the same command takes up the second and compares both."""
    settings = tiny(tiny_model, tmp_path / "out", max_steps=8, save_steps=8)
    words = [*flags(settings), "--sweep", "learning_rate=1e-6,1e-2"]
    train, started = FineTuner.run_training, 0

    def interrupted(self: FineTuner, *args: Any) -> Any:
        nonlocal started
        started += 1
        if started == 2:
            raise KeyboardInterrupt
        return train(self, *args)

    monkeypatch.setattr(FineTuner, "run_training", interrupted)
    assert finetune_trainer.main(words) == 130
    assert finetune_trainer.main(words) == 0
    said = capsys.readouterr()
    assert "Run 1 of 2: learning_rate=1e-6, finished before" in said.err
    assert started == 3
    assert "Best: learning_rate=1e-2. Next:" in said.out
    others = {name: value for name, value in settings.items() if name != "learning_rate"}
    again = f"  python finetune_trainer.py {' '.join(flags(others))} --learning_rate 1e-2"
    assert again in said.out.splitlines()
    assert "2 runs compared" in (tmp_path / "out/sweep/comparison.html").read_text()
    assert finetune_trainer.main([*words, "--lora_alpha", "99"]) == 2  # the runs there had another
    assert 'is a finished run of this sweep with other settings: "lora_alpha" ' in capsys.readouterr().err


# --- restarts -----------------------------------------------------------------------------------------------


@trials(deadline=None, max_examples=25)
@given(exponent=st.integers(1, 5), accumulation=st.integers(1, 64))
def test_half_the_batch_keeps_the_effective_one(exponent: int, accumulation: int) -> None:
    rows = 2**exponent
    config = load_config({**MODEL, "effective_batch_size": rows * accumulation})
    config.fill("per_device_train_batch_size", rows, "test")
    config.fill("gradient_accumulation_steps", accumulation, "test")
    found = halved(config, lacks_memory=True, tried=False)
    assert found is not None
    assert (found.rows, found.rows * found.accumulation) == (rows // 2, rows * accumulation)
    assert halved(config, lacks_memory=True, tried=True) is None
    assert halved(config, lacks_memory=False, tried=False) is None


MODEL = {"model": "a/b", "model_type": "llama", "template": "chatml", "dataset": "a/b", "train_type": "lora"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"effective_batch_size": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            Halved(2, 4),
        ),
        (
            {"effective_batch_size": 8, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
            None,
        ),
        (
            {"effective_batch_size": 9, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
            None,
        ),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, None),
    ],
)
def test_only_a_batch_that_was_left_open_is_halved(settings: dict[str, Any], expected: Halved | None) -> None:
    assert halved(load_config({**MODEL, **settings}), lacks_memory=True, tried=False) == expected


RUNS_OUT = """
import os
import torch
from transformers import TrainerCallback, trainer

class RunsOut(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ["RUNS_OUT_AT"]) and args.per_device_train_batch_size == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

trainer.DEFAULT_CALLBACKS.append(RunsOut)
"""


@pytest.fixture
def runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], dict[str, Any]]:
    """The settings of a run that lacks memory for 4 rows at the beginning of a step."""

    def at(step: int) -> dict[str, Any]:
        monkeypatch.setenv("RUNS_OUT_AT", str(step))
        plugin = tmp_path / "runs_out.py"
        plugin.write_text(RUNS_OUT)
        return {"external_plugins": [str(plugin)], "effective_batch_size": 4}

    return at


@pytest.mark.slow
def test_a_real_run_starts_again_with_half_the_batch(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    runs_out: Callable[[int], dict[str, Any]],
) -> None:
    settings = tiny(tiny_model, tmp_path / "out", max_steps=8, **runs_out(5))
    result = FineTuner(settings | {"per_device_train_batch_size": 4}).run_training()
    assert result.status == "done"
    said = "Out of memory. Restarting from step 4 with 2 rows at once × 2 accumulated; "
    assert said in capsys.readouterr().err
    lines = [json.loads(line) for line in (result.run_directory / "logging.jsonl").read_text().splitlines()]
    steps = [line["global_step/max_steps"] for line in lines if "loss" in line]
    assert steps == [f"{step}/8" for step in range(1, 9)]
    record = json.loads((result.run_directory / "result.json").read_text())
    assert record["config"]["per_device_train_batch_size"] == 2
    assert record["measured"]["steps"] == 8


@pytest.mark.slow
def test_half_the_batch_after_a_restart_and_from_the_start(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    runs_out: Callable[[int], dict[str, Any]],
) -> None:
    """A run that lacks memory in its first step ends with the same weights as one started with half the batch."""
    lacking = runs_out(0)
    weights = []
    for rows in (4, 2):
        settings = tiny(tiny_model, tmp_path / f"out{rows}", max_steps=4, save_steps=4, **lacking)
        result = FineTuner(
            settings | {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 4 // rows}
        ).run_training()
        assert result.last_checkpoint is not None
        weights.append((result.last_checkpoint / "adapter_model.safetensors").read_bytes())
    said = "Out of memory. Restarting from the beginning with 2 rows at once × 2 accumulated; "
    assert capsys.readouterr().err.count(said) == 1
    assert weights[0] == weights[1]


# --- the record ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"train_type": "qlora", "lora_rank": 4},
        {"preset": "full", "effective_batch_size": 16},
        {"task": "dpo", "train_type": "lora"},
        {"task": "pt", "train_type": "full", "balance": False},
    ],
)
def test_a_config_made_of_the_record_is_the_same_request(settings: dict[str, Any], tmp_path: Path) -> None:
    model = {"model": "a/b", "model_type": "llama", "template": "chatml", "dataset": "a/b"}
    first = load_config({**model, **settings})
    first.fill("check_model", False, "test")
    (tmp_path / "settings.json").write_text(json.dumps(given_settings(first)))
    again = load_config(tmp_path / "settings.json")
    del first.settings["check_model"]
    assert {name: one.value for name, one in again.settings.items()} == {
        name: one.value for name, one in first.settings.items()
    }
    assert (again.command, again.preset, again.task) == (first.command, first.preset, first.task)
    assert (again.balance is None, again.effective_batch is None) == (
        first.balance is None,
        first.effective_batch is None,
    )
