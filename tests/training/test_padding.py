"""What is padded, by simulation, and the micro-batches that follow from it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from finetune_trainer import FineTuner
from swift_toolkit.config.request import load_config
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.machine.device import Device
from swift_toolkit.problems import RequestError
from swift_toolkit.training import automatic
from swift_toolkit.training.batches import padding
from swift_toolkit.training.batches.batch import Batch
from swift_toolkit.training.plan import TrainingPlan

CPU = Device("cpu", memory=24 << 30)


def h100(count: int = 1) -> Device:
    return Device("cuda", count, "NVIDIA H100 80GB HBM3", memory=80 << 30)


def chats(spread: float = 0.9) -> DataReport:
    """Rows of log-normal length, about 168 tokens in the mean."""
    random, report = Random(0), DataReport(Rules())
    lengths = [min(928, max(8, int(random.lognormvariate(4.72, spread)))) for _ in range(2000)]
    report.tokens = Counter(length // 16 * 16 for length in lengths)
    report.longest["train"] = max(lengths)
    return report


def planned(device: Device = CPU, report: DataReport | None = None, **settings: Any) -> TrainingPlan:
    config = load_config({"model": "builtin/SmolLM2-135M-Instruct", "dataset": "a/b", **settings})
    plan = TrainingPlan(config, device, chats() if report is None else report)
    automatic.fill_automatic(plan)
    return plan


def sizes(plan: TrainingPlan) -> tuple[int, int]:
    return plan.batch.rows, plan.batch.accumulation


@pytest.mark.parametrize("settings", [{}, {"effective_batch_size": 16}])
def test_mixed_rows_on_a_cpu_are_not_put_into_the_largest_batch_that_fits(settings: dict[str, Any]) -> None:
    plan = planned(**settings)
    assert sizes(plan) in [(2, 8), (4, 4)]
    assert plan.balances and plan.padding is not None
    assert plan.padding.own > 1.4 and plan.padding.shared < 1.2


def test_a_batch_that_the_user_chose_stays_and_is_shared_out() -> None:
    plan = planned(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert sizes(plan) == (8, 2) and plan.balances
    line = dict(plan.facts())["padding"]
    assert plan.padding is not None and line == str(plan.padding)
    assert line.endswith("of the tokens, with the same rows in each step")


def test_the_chosen_micro_batches_never_take_more_time_than_single_rows() -> None:
    for spread in (0.0, 0.3, 0.9, 1.4):
        for device in (CPU, h100(), h100(8)):
            plan = planned(device, chats(spread), effective_batch_size=64)
            fixed, rows = plan.micro_batch_tokens, plan.batch
            assert rows.effective == 64
            found = plan.padding_of(rows)
            single = plan.padding_of(Batch(rows=1, accumulation=64 // rows.feeders, feeders=rows.feeders))
            taken = (found.shared_step if plan.balances else found.own_step) + fixed * rows.accumulation
            assert taken <= single.own_step + fixed * (64 // rows.feeders)


def test_a_gpu_takes_more_rows_at_once_than_a_cpu() -> None:
    assert (
        planned(h100(), effective_batch_size=64).batch.rows > planned(CPU, effective_batch_size=64).batch.rows
    )


def test_rows_of_one_length_are_not_shared_out() -> None:
    report = DataReport(Rules())
    report.tokens, report.longest["train"] = Counter({96: 500}), 112
    plan = planned(report=report, per_device_train_batch_size=4)
    assert not plan.balances and "padding" not in dict(plan.facts())
    assert planned(report=report, per_device_train_batch_size=4, balance=True).balances


def test_false_keeps_the_order_and_the_batch_of_ms_swift() -> None:
    plan = planned(balance=False)
    assert sizes(plan) == (1, 16) and not plan.balances
    assert not planned(balance="false", per_device_train_batch_size=4).balances
    assert "balance" not in plan.config.settings


def test_neither_true_nor_false() -> None:
    with pytest.raises(RequestError, match='"balance" must be true or false'):
        planned(balance="sometimes")


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        ({"task": "pt"}, True),
        ({"rlhf_type": "dpo"}, True),
        ({"rlhf_type": "dpo", "rpo_alpha": 0.1}, False),
        ({"rlhf_type": "dpo", "loss_type": "bco_pair"}, False),
        ({"rlhf_type": "orpo"}, False),
        ({"rlhf_type": "kto"}, False),
        ({"rlhf_type": "grpo", "reward_funcs": "format"}, False),
        ({"task_type": "embedding", "loss_type": "infonce"}, False),
        ({"task_type": "seq_cls", "num_labels": 2}, True),
        ({"group_by_length": True}, False),
        ({"lazy_tokenize": True}, True),
        ({"streaming": True, "max_steps": 4}, False),
        ({"neftune_noise_alpha": 5}, False),
        ({"label_smoothing_factor": 0.1}, False),
    ],
)
def test_only_where_the_gradient_stays_the_same(settings: dict[str, Any], shared: bool) -> None:
    assert planned(per_device_train_batch_size=4, **settings).balances == shared


def test_devices_get_equal_work_where_each_has_single_rows() -> None:
    assert planned(h100(8), per_device_train_batch_size=1, gradient_accumulation_steps=4).balances
    assert not planned(h100(), per_device_train_batch_size=1, gradient_accumulation_steps=4).balances


def test_without_padding_devices_get_equal_work() -> None:
    plans = [planned(h100(count), per_device_train_batch_size=4) for count in (1, 8)]
    for plan in plans:
        plan.config.fill("padding_free", True, "flash-attn is installed")
    assert not plans[0].balances and plans[1].balances
    assert dict(plans[1].facts())["padding"].startswith(
        "none; with equal work for every device, a step is 1."
    )


def test_memory_is_that_of_the_largest_micro_batch_as_it_occurs() -> None:
    shared = planned(h100(), per_device_train_batch_size=8, gradient_accumulation_steps=8)
    own = planned(h100(), per_device_train_batch_size=8, gradient_accumulation_steps=8, balance=False)
    assert shared.verdict.estimate is not None and own.verdict.estimate is not None
    assert 928 <= shared.verdict.estimate.tokens < 0.6 * own.verdict.estimate.tokens


def test_what_a_micro_batch_costs_follows_from_the_gpu() -> None:
    tokens = [
        padding.tokens_of_a_micro_batch(Device("cuda", name=name))
        for name in ("NVIDIA H100 80GB HBM3", "Tesla T4")
    ]
    assert tokens == [295, 203]
    shape = planned(h100()).shape
    assert shape is not None
    large = replace(shape, parameters=7_000_000_000, text=replace(shape.text, layers=32))
    assert padding.tokens_of_a_micro_batch(h100(), large) == 4521
    assert padding.tokens_of_a_micro_batch(h100(), large, trains_all=True) == 3014
    assert padding.tokens_of_a_micro_batch(h100(), replace(large, parameters=10**12)) == 295


# --- real runs ----------------------------------------------------------------------------------------------


def tiny_run(model: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """A LoRA without dropout on 64 rows of mixed length."""
    random, data = Random(0), folder / "chats.jsonl"
    answers = [" ".join(["word"] * max(1, int(random.lognormvariate(2.5, 0.9)))) for _ in range(64)]
    data.write_text("\n".join(json.dumps({"query": "Say it", "response": one}) for one in answers))
    settings = {"model": str(model), "model_type": "llama", "template": "chatml", "dataset": str(data)}
    settings |= {
        "train_type": "lora",
        "lora_dropout": 0,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
    }
    return {**settings, **more}


def losses(run: Path) -> list[float]:
    entries = map(json.loads, (run / "logging.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.fixture(scope="module")
def shared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The settings and the directory of a run that shares the rows out: over an epoch of four steps, into the next."""
    folder = tmp_path_factory.mktemp("shared")
    settings = tiny_run(tiny_model, folder, max_steps=6, save_steps=2, save_total_limit=5)
    tuner = FineTuner(settings, output_dir=str(folder / "whole"))
    assert tuner.plan.balances
    return settings, tuner.run_training().run_directory


@pytest.mark.slow
def test_the_losses_of_a_real_run_are_those_of_ms_swifts_order(
    shared: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    settings, first = shared
    tuner = FineTuner(settings, balance=False, output_dir=str(tmp_path / "own"))
    assert not tuner.plan.balances
    assert len(losses(first)) == 6
    assert losses(first) == pytest.approx(losses(tuner.run_training().run_directory), abs=1e-5)


@pytest.mark.slow
def test_a_resumed_run_takes_the_rows_it_would_have_taken(
    shared: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """From the middle of an epoch: every loss is that of the uninterrupted run."""
    settings, first = shared
    again = {"resume_from_checkpoint": str(first / "checkpoint-2"), "output_dir": str(tmp_path / "again")}
    second = FineTuner({**settings, **again}).run_training().run_directory
    assert losses(second) == losses(first)[2:]
