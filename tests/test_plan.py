"""Devices, automatic settings, the size of a run and how it is launched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit import plan
from swift_toolkit.config import Config, load_config

CPU = plan.Device("cpu", reason="no accelerator found")
TWO_GPUS = plan.Device("cuda", 2, "NVIDIA A100")


def config(**settings: Any) -> Config:
    return load_config({"model": "Qwen/Qwen2.5-7B-Instruct", "dataset": "a/b", **settings})


# --- devices: the driver's files and the torch build are faked at their two readers -------------------------


@pytest.mark.parametrize(
    ("gpus", "build", "variable", "text"),
    [
        (0, "cuda", None, "cpu (no accelerator found)"),
        (2, "cuda", None, "2 × cuda (NVIDIA A100)"),
        (8, "cuda", "0,3,5", "3 × cuda (NVIDIA A100)"),
        (1, "cuda", "0", "cuda (NVIDIA A100)"),
        (2, "cuda", "", "cpu (CUDA_VISIBLE_DEVICES hides every GPU)"),
        (2, "cuda", "-1", "cpu (CUDA_VISIBLE_DEVICES hides every GPU)"),
        (2, "cpu", None, "cpu (the installed torch is a CPU build, the GPU stays unused)"),
        (1, "cuda", "MIG-1f2e", "cuda (NVIDIA A100)"),
    ],
)
def test_the_device(
    gpus: int, build: str, variable: str | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_nvidia_gpus", lambda: ["NVIDIA A100"] * gpus)
    monkeypatch.setattr(plan, "_torch_build", lambda: build)
    monkeypatch.setattr(sys, "platform", "linux")
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert str(plan.find_device()) == text


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


def test_one_process_is_started_directly() -> None:
    assert plan.launch_command(config(), TWO_GPUS) == [sys.executable, "-m", "swift_toolkit.training"]


def test_several_processes_go_through_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPROC_PER_NODE", "8")
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=8"]
    assert plan.launch_command(config(), TWO_GPUS) == [*run, "--standalone", "-m", "swift_toolkit.training"]
    assert plan.effective_batch_size(config(per_device_train_batch_size=4), TWO_GPUS) == 32
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "29501"}.items():
        monkeypatch.setenv(name, value)
    where = ["--nnodes=2", "--node_rank=1", "--master_addr=h", "--master_port=29501"]
    assert plan.launch_command(config(), TWO_GPUS) == [*run, *where, "-m", "swift_toolkit.training"]


def test_waiting_threads_soon_sleep_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert plan.environment(CPU) == {"GOMP_SPINCOUNT": "2000"}
    assert plan.environment(TWO_GPUS) == {}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert plan.environment(CPU) == {}


def test_deepspeed_takes_every_visible_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = config()
    request.settings["deepspeed"] = request.settings["model"]  # as if deepspeed were installed and asked for
    assert "--nproc_per_node=2" in plan.launch_command(request, TWO_GPUS)


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
