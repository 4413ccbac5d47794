"""Limits of ms-swift that need a package or a device which the test machine may lack; the others: tests/limits.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

from swift_toolkit.config.limits import tuners
from swift_toolkit.config.limits.conditions import Condition
from swift_toolkit.config.limits.trainer import device_problems
from swift_toolkit.config.request import read_request
from swift_toolkit.machine.device import Device

_GRPO = {
    "rlhf_type": "grpo",
    "reward_funcs": ["format"],
    "num_generations": 2,
    "per_device_train_batch_size": 2,
}
_LIGER = {**_GRPO, "use_liger_kernel": True}
_GKD = {"rlhf_type": "gkd", "use_liger_kernel": True, "teacher_model": "o/t"}
_BEST = {"load_best_model_at_end": True, "save_only_model": True, "split_dataset_ratio": 0.1}


def _problems(**settings: object) -> list[str]:
    _, problems = read_request({"model": "owner/name", "dataset": "owner/data", **settings})
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**_LIGER, "delta": 1.5}, '"use_liger_kernel" cannot be used with "delta". Keep one of the two.'),
        ({**_LIGER, "sequence_parallel_size": 2}, 'with "sequence_parallel_size" above 1'),
        ({**_LIGER, "top_entropy_quantile": 0.2}, 'with "top_entropy_quantile" below 1'),
        ({**_LIGER, "log_entropy": True}, 'with "log_entropy"'),
        ({**_LIGER, "advantage_estimator": "rloo"}, 'with "advantage_estimator" "rloo"'),
        ({**_GKD, "sft_alpha": 0.1}, '"use_liger_kernel" cannot be used with "sft_alpha"'),
        (
            {**_GRPO, "use_vllm": True, "async_generate": True},
            '"async_generate" needs "vllm_mode" "server". Set "vllm_mode" to "server".',
        ),
        (
            {"optim": "galore_adamw_layerwise", "optim_target_modules": ["all-linear"]},
            '"optim" is "galore_adamw_layerwise", which needs "gradient_accumulation_steps" "1"',
        ),
        ({**_BEST, "deepspeed": "zero2"}, '"save_only_model" cannot be used with "deepspeed"'),
        (
            {"auto_find_batch_size": True, "deepspeed": "zero3"},
            '"auto_find_batch_size" cannot be used with "deepspeed" "zero3"',
        ),
        (
            {**_GRPO, "reward_funcs": [], "use_vllm": True, "vllm_mode": "server", "vllm_server_host": ["a"]},
            None,
        ),
        ({"debug": "word"}, '"debug" cannot be "word"'),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0}}, None),
        ({**_LIGER, "top_entropy_quantile": 1.0, "sequence_parallel_size": 1, "log_entropy": False}, None),
    ],
)
def test_limits(settings: dict[str, object], message: str | None) -> None:
    found = [one for one in _problems(**settings) if "package" not in one]
    assert any(message in one for one in found) if message else not found, found


@pytest.mark.swift3
def test_ms_swift_3_learns_from_the_answers_of_a_teacher() -> None:
    assert not _problems(rlhf_type="gkd", teacher_model="o/t", seq_kd=True)


def test_a_misspelled_condition_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a condition"):
        Condition.parse("a b")


def test_settings_for_a_gpu_without_one() -> None:
    config, _ = read_request({"model": "o/m", "dataset": "o/d", "tf32": True, "use_cpu": False, "bf16": True})
    found = [str(one) for one in device_problems(config, Device("cpu", reason="no GPU found"))]
    assert found == [
        '"tf32" needs an NVIDIA GPU, but the device is cpu (no GPU found). Remove it.',
        '"use_cpu" is false, but there is no GPU, and "bf16" asks for bfloat16. Remove it.',
    ]
    assert not list(device_problems(config, Device("cuda")))


def test_steps_of_adalora() -> None:
    settings = {"model": "o/m", "dataset": "o/d", "train_type": "adalora", "adalora_tinit": 200}
    config, _ = read_request({**settings, "adalora_tfinal": 100})
    assert not list(tuners.schedule_problems(config, 301))
    assert [str(one) for one in tuners.schedule_problems(config, 300)] == [
        '"adalora_tinit" is 200, and the run has 300 steps: none is left to remove ranks in. Lower it.'
    ]


def test_a_plugin_that_is_not_python(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import json\ndef reward(:\n")
    [found] = _problems(external_plugins=[str(broken)])
    assert f'names the file "{broken}", which is not valid Python: line 2' in found
