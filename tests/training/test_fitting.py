"""Whether a run fits, and the smallest change that makes it fit."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest

from swift_toolkit.machine.device import GIB
from swift_toolkit.model import size as model_size
from swift_toolkit.training.memory import fitting
from swift_toolkit.training.memory.run import MemoryRun, Rows
from tests.training.test_memory import ROWS, SHAPE


@pytest.fixture(autouse=True)
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed is there."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: find("json" if name == "deepspeed" else name)
    )


def run(gib: float, world: int = 1, rows: Rows = ROWS, **settings: Any) -> MemoryRun:
    assert SHAPE is not None
    return MemoryRun(
        {"torch_dtype": "bfloat16", **settings}, SHAPE, rows, "cuda", world, world, int(gib * GIB)
    )


@pytest.mark.parametrize(
    ("size", "device", "word"),
    [(8.4, 10, "fits"), (8.6, 10, "tight"), (9.8, 10, "does not fit"), (5, 0, "unknown")],
)
def test_the_word(size: float, device: float, word: str) -> None:
    assert fitting.word_for(int(size * GIB), int(device * GIB)) == word


@pytest.mark.parametrize(
    ("request_", "flags"),
    [
        (
            run(22, per_device_train_batch_size=8),
            "--per_device_train_batch_size 1 --gradient_accumulation_steps 16",
        ),
        (
            run(22, per_device_train_batch_size=4, gradient_accumulation_steps=3),
            "--per_device_train_batch_size 1 --gradient_accumulation_steps 12",
        ),
        (run(22, gradient_checkpointing=False), "--gradient_checkpointing true"),
        (run(12), "--train_type qlora"),
        (run(64, 8, tuner_type="full"), "--deepspeed zero2"),
        (run(30, 8, tuner_type="full"), "--deepspeed zero3"),
        (run(24, 1, tuner_type="full"), "--deepspeed zero2_offload"),
        (run(16, 1, tuner_type="full"), "--deepspeed zero3_offload"),
    ],
)
def test_the_smallest_change_that_fits(request_: MemoryRun, flags: str) -> None:
    verdict = fitting.judge_memory(request_)
    assert verdict.word == "does not fit"
    assert str(verdict.saving) == flags
    assert verdict.saving is not None
    assert verdict.saving.total <= fitting.FULL * request_.device_bytes


def test_quantised_weights_are_not_divided() -> None:
    shape = model_size.find_shape("Qwen/Qwen2.5-72B-Instruct")
    assert shape is not None
    settings = {"torch_dtype": "bfloat16"}
    large = MemoryRun(settings, shape, ROWS, "cuda", 8, 8, 32 * GIB)
    assert str(fitting.judge_memory(large).saving) == "--deepspeed zero3"
    assert str(fitting.judge_memory(replace(large, device_bytes=48 * GIB)).saving) == "--train_type qlora"


def test_nothing_that_fits() -> None:
    verdict = fitting.judge_memory(run(2))
    assert (verdict.word, verdict.saving) == ("does not fit", None)
    assert [line for name, line in verdict.lines() if name == "to fit"] == ["more memory is needed"]


def test_what_is_said_of_rows_that_are_not_here() -> None:
    lines = dict(fitting.judge_memory(run(24, rows=Rows(), max_length=8192)).lines())
    assert lines["memory"].startswith("about 18.0 GiB of 24.0 GiB per device, fits: weights 14.2, ")
    assert lines[""].startswith(
        "at the peak of training, assuming rows of 1,024 tokens, because the data is not on this machine; "
    )
    assert lines[""].endswith(" GiB if they fill max_length")


def test_an_unknown_model() -> None:
    verdict = fitting.judge_memory(None)
    assert verdict.as_dict() == {"verdict": "unknown"}
    assert list(verdict.lines()) == [
        ("memory", "unknown: neither a config.json nor the model's name gives its size")
    ]


def test_as_plain_data() -> None:
    told = fitting.judge_memory(run(24)).as_dict()
    assert (told["verdict"], told["device"], told["advice"]) == ("fits", 24 * GIB, None)
    assert told["estimate"] == sum(told["parts"].values())
    assert told["rows"] == {"longest": 1000, "longest_val": 1000, "mean": 200, "seen": True}
