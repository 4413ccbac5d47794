"""Devices, automatic settings, the size of a run and how it is launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swift_toolkit import plan
from swift_toolkit.config import Config, load_config

CPU = plan.Device("cpu", reason="no accelerator found")
TWO_GPUS = plan.Device("cuda", 2, "NVIDIA A100")


def config(**settings: Any) -> Config:
    return load_config({"model": "Qwen/Qwen2.5-7B-Instruct", "dataset": "a/b", **settings})


# --- devices: faked at one seam, plan.hardware ----------------------------------------------------------------


def machine(monkeypatch: pytest.MonkeyPatch, **has: Any) -> None:
    """Let this machine have so many ``gpus`` (of which ``mig`` are cut up), ``amd``, ``npus`` or be ``apple``."""
    gpus = [
        plan.Gpu("NVIDIA A100", f"GPU-{number}a2b3c4d", number < has.get("mig", 0))
        for number in range(has.pop("gpus", 0))
    ]
    has.pop("mig", None)
    found = plan.Hardware(**{"build": "cuda", "nvidia": gpus, **has})
    monkeypatch.setattr(plan, "hardware", lambda: found)


@pytest.mark.parametrize(
    ("has", "visible", "text"),
    [
        ({}, None, "cpu (no accelerator found)"),
        ({"gpus": 1}, None, "cuda (NVIDIA A100)"),
        ({"gpus": 2}, None, "2 × cuda (NVIDIA A100)"),
        ({"gpus": 8}, "0,3,5", "3 × cuda (NVIDIA A100)"),
        ({"gpus": 8}, " 7, 1 ", "2 × cuda (NVIDIA A100)"),
        ({"gpus": 1}, "0", "cuda (NVIDIA A100)"),
        ({"gpus": 2}, "", "cpu (CUDA_VISIBLE_DEVICES hides every GPU)"),
        ({"gpus": 2}, "-1", "cpu (CUDA_VISIBLE_DEVICES hides every GPU)"),
        ({"gpus": 4}, "1,-1,2", "cuda (NVIDIA A100)"),
        ({"gpus": 2}, "0,2,1", 'cuda (NVIDIA A100, CUDA_VISIBLE_DEVICES names "2", which is no GPU of this machine)'),
        ({"gpus": 2}, "1,1", 'cpu (CUDA_VISIBLE_DEVICES names "1" twice, which hides every GPU)'),
        ({"gpus": 4}, "GPU-3a2b3c4d,GPU-1a2", "2 × cuda (NVIDIA A100)"),
        ({"gpus": 4}, "GPU-9", 'cpu (CUDA_VISIBLE_DEVICES names "GPU-9", which is no GPU of this machine)'),
        ({"gpus": 2, "build": "cpu"}, None, "cpu (the installed torch is a CPU build, the GPU stays unused)"),
        ({"gpus": 8, "mig": 1}, None, "cuda (NVIDIA A100, a process can use only one MIG instance)"),
        ({"gpus": 8, "mig": 1}, "2,3", "2 × cuda (NVIDIA A100)"),
        ({"gpus": 1, "mig": 1}, "MIG-1f2e,MIG-3a4b", "cuda (NVIDIA A100, a process can use only one MIG instance)"),
        ({"build": "rocm", "amd": 4}, None, "4 × cuda (ROCm)"),
        ({"build": "rocm", "amd": 4}, "1,2", "2 × cuda (ROCm)"),
        ({"npus": 8}, None, "8 × npu"),
        ({"apple": True}, None, "mps"),
    ],
)  # fmt: skip
def test_the_device(
    has: dict[str, Any], visible: str | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **has)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert str(plan.find_device()) == text


@pytest.mark.parametrize(
    ("visible", "text"),
    [
        ("0,1,2", "3 × npu"),
        ("3", "npu"),
        ("1, 2", 'npu (ASCEND_RT_VISIBLE_DEVICES names " 2", which is no device here)'),
        ("1,3,8", '2 × npu (ASCEND_RT_VISIBLE_DEVICES names "8", which is no device here)'),
        ("", "cpu (ASCEND_RT_VISIBLE_DEVICES hides every device)"),
    ],
)
def test_ascend_devices(visible: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, npus=8)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    assert str(plan.find_device()) == text


def test_uuids_where_the_driver_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "hardware", lambda: plan.Hardware("cuda", [plan.Gpu()] * 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb")
    assert plan.find_device().count == 2


def test_the_torch_build_is_read_from_its_version_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: Spec)
    for line, build in [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", "cpu"),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", "cuda"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", "rocm"),
    ]:
        (tmp_path / "version.py").write_text(line)
        assert plan._torch_build() == build


# --- automatic settings -------------------------------------------------------------------------------------


def automatic(request: Config, device: plan.Device) -> dict[str, Any]:
    plan.fill_automatic(request, device)
    return {n: s.value for n, s in request.settings.items() if s.source.kind == "automatic"}


def test_nothing_is_chosen_for_a_hub_model_on_a_gpu() -> None:
    assert automatic(config(), TWO_GPUS) == {}


def test_a_cpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "cpu_computes_bfloat16", lambda: False)
    assert automatic(config(), CPU) == {"use_cpu": True, "torch_dtype": "float32"}
    assert automatic(config(torch_dtype="bfloat16"), CPU) == {"use_cpu": True}
    monkeypatch.setattr(plan, "cpu_computes_bfloat16", lambda: True)
    assert automatic(config(), CPU) == {"use_cpu": True}


@pytest.mark.parametrize(("free_gib", "chosen"), [(64, False), (2, None)])
def test_checkpointing_goes_where_the_memory_allows(
    free_gib: int, chosen: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "free_memory", lambda: free_gib << 30)
    request = config(model="builtin/SmolLM2-135M-Instruct", max_length=256, per_device_train_batch_size=4)
    settings = automatic(request, CPU)
    assert settings.get("gradient_checkpointing") is chosen
    assert (settings["model_type"], settings["template"], settings["check_model"]) == (
        "llama",
        "chatml",
        False,
    )


def test_what_the_user_or_null_decided_stays() -> None:
    request = config(model="builtin/SmolLM2-135M-Instruct", use_cpu=False, check_model=None)
    settings = automatic(request, CPU)
    assert "use_cpu" not in settings
    assert "check_model" not in settings
    assert request.get("use_cpu") is False


def test_the_activation_estimate_is_the_papers() -> None:
    request = config(model="builtin/SmolLM2-135M-Instruct", max_length=1024, per_device_train_batch_size=2)
    hidden, layers, heads, vocabulary, length, batch = 576, 30, 9, 49152, 1024, 2
    per_layer = length * batch * hidden * (34 + 5 * heads * length / hidden)
    assert plan.activation_bytes(request) == int(2 * layers * per_layer + 16 * length * batch * vocabulary)
    assert plan.activation_bytes(config()) is None


# --- size and launch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "effective", "steps"),
    [
        ({}, 16, 18),  # ms-swift accumulates to 16
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}, 12, 23),
        ({"per_device_train_batch_size": 32}, 32, 10),
        ({"max_steps": 7}, 16, 7),
        ({"num_train_epochs": 0.5}, 16, 4),
    ],
)
def test_batch_and_steps_of_100_rows(settings: dict[str, Any], effective: int, steps: int) -> None:
    request = config(**{"num_train_epochs": 2.5, **settings})
    assert plan.effective_batch_size(request, CPU) == effective
    assert plan.step_count(request, 100, CPU) == steps
    assert plan.step_count(request, None, CPU) == settings.get("max_steps")


def test_waiting_threads_soon_sleep_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    always = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    assert plan.environment(CPU) == {**always, "GOMP_SPINCOUNT": "2000"}
    assert plan.environment(TWO_GPUS) == always
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert plan.environment(CPU) == always


def test_advice_on_memory_is_in_the_runs_own_numbers() -> None:
    request = config(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        gradient_checkpointing=False,
        max_length=4096,
    )
    assert plan.memory_advice(request, TWO_GPUS) == [
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 16",
        "--gradient_checkpointing true",
        "--max_length 2048",
        "--train_type qlora",
        "--deepspeed zero2 (zero3 shards the weights as well)",
    ]
