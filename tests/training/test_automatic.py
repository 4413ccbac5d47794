"""Devices, automatic settings, the size of a run and how it is launched."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config import rules
from swift_toolkit.config.request import load_config
from swift_toolkit.config.settings import Config
from swift_toolkit.console.words import counted
from swift_toolkit.dataset.report import DataReport
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.verify import verify
from swift_toolkit.machine import device as machine_device
from swift_toolkit.training import automatic as training_automatic
from swift_toolkit.training.batches import batch as batches_batch
from swift_toolkit.training.plan import TrainingPlan
from swift_toolkit.training.process.launch import Cluster

CPU = machine_device.Device("cpu", reason="no accelerator found")
TWO_GPUS = machine_device.Device("cuda", 2, "NVIDIA A100")


def config(**settings: Any) -> Config:
    return load_config({"model": "Qwen/Qwen2.5-7B-Instruct", "dataset": "a/b", **settings})


def planned(
    request: Config, device: machine_device.Device, report: DataReport | None = None, **cluster: Any
) -> TrainingPlan:
    """The plan of ``request``, without automatic settings; its data are elsewhere unless there is a report."""
    return TrainingPlan(request, device, report or DataReport(Rules()), Cluster(**cluster))


# --- devices: faked at one seam, machine.device.hardware ----------------------------------------------------------------


def machine(monkeypatch: pytest.MonkeyPatch, **has: Any) -> None:
    """Let this machine have so many ``gpus`` (of which ``mig`` are cut up), ``amd``, ``npus`` or be ``apple``."""
    gpus = [
        machine_device.Gpu("NVIDIA A100", f"GPU-{number}a2b3c4d", number < has.get("mig", 0))
        for number in range(has.pop("gpus", 0))
    ]
    has.pop("mig", None)
    found = machine_device.Hardware(**{"build": "cuda", "nvidia": gpus, **has})
    monkeypatch.setattr(machine_device, "hardware", lambda: found)


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
        ({"gpus": 2}, "0,2,1", 'cuda (NVIDIA A100, CUDA_VISIBLE_DEVICES names "2", which is not a GPU of this machine)'),
        ({"gpus": 2}, "1,1", 'cpu (CUDA_VISIBLE_DEVICES names "1" twice, which hides every GPU)'),
        ({"gpus": 4}, "GPU-3a2b3c4d,GPU-1a2", "2 × cuda (NVIDIA A100)"),
        ({"gpus": 4}, "GPU-9", 'cpu (CUDA_VISIBLE_DEVICES names "GPU-9", which is not a GPU of this machine)'),
        ({"gpus": 2, "build": "cpu"}, None, "cpu (the installed torch is a CPU build and cannot use the GPU)"),
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
    assert str(machine_device.find_device()) == text


@pytest.mark.parametrize(
    ("visible", "text"),
    [
        ("0,1,2", "3 × npu"),
        ("3", "npu"),
        ("1, 2", 'npu (ASCEND_RT_VISIBLE_DEVICES names " 2", which is not a device of this machine)'),
        ("1,3,8", '2 × npu (ASCEND_RT_VISIBLE_DEVICES names "8", which is not a device of this machine)'),
        ("", "cpu (ASCEND_RT_VISIBLE_DEVICES hides every device)"),
    ],
)
def test_ascend_devices(visible: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, npus=8)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    assert str(machine_device.find_device()) == text


def test_uuids_where_the_driver_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine_device,
        "hardware",
        lambda: machine_device.Hardware("cuda", [machine_device.Gpu()] * 2),
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb")
    assert machine_device.find_device().count == 2


def test_the_torch_build_is_read_from_its_version_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    for line, build in [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", "cpu"),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", "cuda"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", "rocm"),
    ]:
        (tmp_path / "version.py").write_text(line)
        assert machine_device._torch_build() == build


# --- automatic settings -------------------------------------------------------------------------------------


def automatic(request: Config, device: machine_device.Device, **cluster: Any) -> dict[str, Any]:
    training_automatic.fill_automatic(planned(request, device, **cluster))
    return {n: s.value for n, s in request.settings.items() if s.source.kind == "automatic"}


def test_nothing_is_chosen_for_a_hub_model_on_a_gpu() -> None:
    assert automatic(config(), TWO_GPUS) == {}


def test_a_cpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_automatic, "cpu_computes_bfloat16", lambda: False)
    plain = {"use_cpu": True}
    assert automatic(config(), CPU) == {**plain, "torch_dtype": "float32"}
    monkeypatch.setattr(rules, "cpu_computes_bfloat16", lambda: False)
    asked = config(torch_dtype="bfloat16")
    assert automatic(asked, CPU) == plain
    warning = (
        '"torch_dtype" is bfloat16, which takes about 18 times as long as float32 on this CPU. Use float32.'
    )
    assert [str(one) for one in asked.warnings] == [warning]
    monkeypatch.setattr(rules, "cpu_computes_bfloat16", lambda: True)
    assert not list(rules.slow_dtype(asked, CPU))
    monkeypatch.setattr(training_automatic, "cpu_computes_bfloat16", lambda: True)
    assert automatic(config(), CPU) == plain


def data(longest: int, mean: int = 0, rows: int = 100, val: int = 0) -> DataReport:
    """Data with rows of such lengths in tokens."""
    report = DataReport(Rules())
    report.tokens.update({(mean or longest) - 8: rows})
    report.longest.update(train=longest, val=val)
    return report


def gpus(count: int = 1, gib: float = 80, name: str = "NVIDIA A100") -> machine_device.Device:
    return machine_device.Device("cuda", count, name, memory=int(gib * training_automatic.GIB))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages among these that are taken to be installed; bitsandbytes alone at first."""
    some = {"bitsandbytes"}
    asked = {"bitsandbytes", "deepspeed", "flash_attn", "liger_kernel"}
    find = importlib.util.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        taken = find("json") if name in some else None
        return taken if name in asked else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return some


@pytest.mark.parametrize(("free_gib", "chosen"), [(64, False), (2, None)])
def test_checkpointing_goes_where_the_memory_allows(free_gib: int, chosen: bool | None) -> None:
    request = config(model="builtin/SmolLM2-135M-Instruct", max_length=256, per_device_train_batch_size=4)
    training_automatic.fill_automatic(
        planned(request, machine_device.Device("cpu", memory=free_gib << 30), data(250))
    )
    assert request.get("gradient_checkpointing") is chosen
    assert (request.get("model_type"), request.get("template"), request.get("check_model")) == (
        "llama",
        "chatml",
        False,
    )


def test_checkpointing_stays_where_the_rows_are_not_known() -> None:
    request = config()
    training_automatic.fill_automatic(planned(request, gpus(gib=1000)))
    assert "gradient_checkpointing" not in request.settings
    training_automatic.fill_automatic(planned(request, gpus(gib=1000), data(500)))
    assert str(request.settings["gradient_checkpointing"].source).startswith("automatic: about ")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Tesla V100-SXM2-32GB", "float16"),
        ("Tesla T4", "float16"),
        ("NVIDIA GeForce RTX 2080 Ti", "float16"),
        ("NVIDIA GeForce GTX 1080 Ti", "float16"),
        ("Quadro RTX 8000", "float16"),
        ("NVIDIA A100-SXM4-80GB", None),
        ("NVIDIA H100 80GB HBM3", None),
        ("NVIDIA GeForce RTX 3090", None),
        ("NVIDIA RTX A6000", None),
        ("NVIDIA RTX 6000 Ada Generation", None),
        ("NVIDIA L4", None),
        ("", None),
    ],
)
def test_gpus_without_bfloat16(name: str, dtype: str | None) -> None:
    assert automatic(config(), machine_device.Device("cuda", 1, name)).get("torch_dtype") == dtype


@pytest.mark.usefixtures("installed")
def test_attention_by_what_is_installed(installed: set[str]) -> None:
    assert "attn_impl" not in automatic(config(), gpus())
    installed.add("flash_attn")
    assert automatic(config(), gpus())["attn_impl"] == "flash_attn"
    assert "attn_impl" not in automatic(config(model="owner/new-7B"), gpus())
    assert "attn_impl" not in automatic(config(torch_dtype="float32"), gpus())
    assert "attn_impl" not in automatic(config(), gpus(name="Tesla T4"))
    assert "attn_impl" not in automatic(config(attn_impl="sdpa"), gpus())


def test_a_model_too_large_for_one_gpu_is_divided(installed: set[str]) -> None:
    assert not {"deepspeed", "device_map"} & set(automatic(config(), gpus(4)))
    large = {"model": "Qwen/Qwen2.5-72B-Instruct"}
    request = config(**large)
    assert automatic(request, gpus(4))["device_map"] == "auto"
    assert planned(request, gpus(4)).launch.processes == 1
    installed.add("deepspeed")
    request = config(**large)
    assert automatic(request, gpus(4))["deepspeed"] == "zero3"
    assert str(request.settings["deepspeed"].source) == (
        "automatic: one device would need about 141 GiB and has 80; its weights are sharded"
    )
    assert automatic(config(model="owner/big-200B", train_type="qlora"), gpus(4))["device_map"] == "auto"
    assert not {"deepspeed", "device_map"} & set(automatic(config(**large), gpus(1)))


def test_machines_with_a_gpu_each_divide_it_too(installed: set[str]) -> None:
    large, four = {"model": "Qwen/Qwen2.5-72B-Instruct"}, {"nodes": 4, "node": 1}
    assert not {"deepspeed", "device_map"} & set(automatic(config(**large), gpus(1), **four))
    installed.add("deepspeed")
    assert automatic(config(**large), gpus(1), **four)["deepspeed"] == "zero3"


@pytest.mark.parametrize(
    ("settings", "device", "batch", "steps"),
    [
        ({}, gpus(1), 16, 4),
        ({}, gpus(8), 8, 1),
        ({}, gpus(2, 40), 8, 4),
        ({}, machine_device.Device("cuda", 2), 1, 32),  # memory not known
        ({"per_device_train_batch_size": 2}, gpus(8), 2, 4),
        ({"gradient_accumulation_steps": 4}, gpus(8), 2, 4),
    ],
)
def test_an_effective_batch_of_64(
    settings: dict[str, Any], device: machine_device.Device, batch: int, steps: int, installed: set[str]
) -> None:
    request = config(effective_batch_size="64", gradient_checkpointing=True, **settings)
    assert list(batches_batch.batch_problems(request, device.count)) == []
    training_automatic.fill_automatic(planned(request, device, data(800, 200)))
    assert request.get("per_device_train_batch_size", 1) == batch
    assert request.get("gradient_accumulation_steps") == steps
    assert planned(request, device).batch.effective == 64
    source = request.settings["gradient_accumulation_steps"].source
    if "gradient_accumulation_steps" not in settings:
        assert (
            str(source)
            == f"automatic: {batch} × {steps} × {counted(device.count, 'process', 'processes')} = 64"
        )


def test_rows_that_are_not_here_may_fill_the_batch(installed: set[str]) -> None:
    request = config(effective_batch_size=64, max_length=4096, gradient_checkpointing=True)
    training_automatic.fill_automatic(planned(request, gpus(2)))
    assert request.get("per_device_train_batch_size") == 2
    seen = config(effective_batch_size=64, max_length=4096, gradient_checkpointing=True)
    training_automatic.fill_automatic(planned(seen, gpus(2), data(1000)))
    assert seen.get("per_device_train_batch_size") == 8


@pytest.mark.parametrize(
    ("wish", "settings", "problem"),
    [
        (
            10,
            {},
            '"effective_batch_size" is 10, which is not a multiple of 4 process(es). Use 8.',
        ),
        (
            12,
            {"per_device_train_batch_size": 2},
            '"effective_batch_size" is 12, which is not a multiple of 4 process(es) × 2 rows per device. Use 16.',
        ),
        (
            64,
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
            '"effective_batch_size" is 64, but 4 process(es) × 2 rows per device × 2 accumulated are 16. '
            "Remove one of them.",
        ),
        (16, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, None),
    ],
)
def test_an_effective_batch_that_cannot_be(wish: int, settings: dict[str, Any], problem: str | None) -> None:
    found = batches_batch.batch_problems(config(effective_batch_size=wish, **settings), 4)
    assert [str(one) for one in found] == ([problem] if problem else [])


def test_idle_cores_read_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_automatic, "cpu_cores", lambda: 32)
    many = data(500, rows=20_000)
    monkeypatch.setattr(DataReport, "train_rows", 20_000)

    def chosen(device: machine_device.Device, **settings: Any) -> dict[str, Any]:
        request = config(**settings)
        training_automatic.fill_automatic(planned(request, device, many))
        names = ("dataset_num_proc", "dataloader_num_workers")
        return {name: request.get(name) for name in names if name in request.settings}

    assert chosen(gpus(1)) == {"dataset_num_proc": 8}
    assert chosen(gpus(1), preset="multimodal") == {"dataset_num_proc": 8, "dataloader_num_workers": 8}
    assert chosen(gpus(4), preset="multimodal") == {"dataset_num_proc": 8, "dataloader_num_workers": 4}
    assert chosen(gpus(1), streaming=True, max_steps=5) == {}
    assert chosen(CPU) == chosen(CPU, preset="multimodal") == {"dataset_num_proc": 8}
    for cores, processes in ((2, {"dataset_num_proc": 2}), (1, {})):
        monkeypatch.setattr(training_automatic, "cpu_cores", lambda cores=cores: cores)
        assert chosen(gpus(1)) == chosen(CPU) == processes


def test_processes_on_a_cpu_share_its_memory() -> None:
    run = planned(config(), machine_device.Device("cpu", memory=40 << 30), processes=4).verdict.run
    assert run is not None
    assert (run.world, run.device_bytes) == (4, 10 << 30)


def test_what_is_only_suggested(installed: set[str]) -> None:
    request = config(max_length=2048, per_device_train_batch_size=4)
    assert planned(request, gpus(), data(1000, 200)).suggestions == [
        "--packing true --attn_impl flash_attn (needs flash-attn): packs rows of about 200 tokens into sequences of 2048; "
        "a step then learns from more rows, so adjust the batch size",
        "--use_liger_kernel true (needs liger-kernel and a model it supports): saves most of the 6.6 GiB of logits",
    ]
    installed |= {"flash_attn", "liger_kernel"}
    assert planned(request, gpus(), data(2000, 1000)).suggestions[0] == (
        "--padding_free true --attn_impl flash_attn: no computation is wasted on padding"
    )
    assert planned(request, CPU, data(1000, 200)).suggestions == []
    assert not {"packing", "use_liger_kernel"} & set(automatic(request, gpus()))


def test_with_flash_attention_nothing_is_padded(installed: set[str]) -> None:
    def words(device: machine_device.Device | None = None, **settings: Any) -> list[str]:
        request = config(per_device_train_batch_size=4, gradient_accumulation_steps=4, **settings)
        training_automatic.fill_automatic(planned(request, device or gpus(), data(1000, 200)))
        return [word for word in request.arguments() if word.startswith(("--attn", "--padding"))]

    assert words() == []
    installed.add("flash_attn")
    chosen = ["--attn_impl=flash_attn", "--padding_free=true"]
    assert words() == words(task="pt") == chosen
    kept = (
        {"balance": False},
        {"rlhf_type": "dpo"},
        {"rlhf_type": "orpo"},
        {"streaming": True},
    )
    for settings in kept:
        assert words(**settings, **({"max_steps": 5} if "streaming" in settings else {})) == chosen[:1]
    assert words(model="Qwen/Qwen2.5-VL-7B-Instruct") == chosen[:1]
    assert words(torch_dtype="float32") == words(CPU) == words(gpus(name="Tesla T4")) == []
    assert words(padding_free=False) == ["--padding_free=false", "--attn_impl=flash_attn"]


def test_what_the_user_or_null_decided_stays() -> None:
    request = config(model="builtin/SmolLM2-135M-Instruct", use_cpu=False, check_model=None)
    settings = automatic(request, CPU)
    assert "use_cpu" not in settings
    assert "check_model" not in settings
    assert request.get("use_cpu") is False


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
    assert planned(request, CPU).batch.effective == effective
    batch = planned(request, CPU).batch
    assert batches_batch.step_count(request, batch, 100) == steps
    assert batches_batch.step_count(request, batch, None) == settings.get("max_steps")


def test_processes_that_share_a_row_count_once() -> None:
    request = config(per_device_train_batch_size=2, gradient_accumulation_steps=3, sequence_parallel_size=4)
    assert planned(request, gpus(8)).batch.effective == 12
    assert batches_batch.step_count(request, planned(request, gpus(8)).batch, 100) == 27  # 3 × 9


def test_waiting_threads_soon_sleep_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    always = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    assert machine_device.environment(CPU) == {**always, "GOMP_SPINCOUNT": "2000"}
    assert machine_device.environment(TWO_GPUS) == always
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert machine_device.environment(CPU) == always


def test_advice_on_memory_is_in_the_runs_own_numbers(installed: set[str]) -> None:
    request = config(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        gradient_checkpointing=False,
        max_length=4096,
    )
    assert [line.partition(" (")[0] for line in planned(request, gpus(2, 24), data(4000)).memory_advice] == [
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 32",
        "--gradient_checkpointing true",
        "--train_type qlora",
        "--device_map auto",
        "--max_length 2048",
    ]
    installed.add("deepspeed")
    assert [line.partition(" (")[0] for line in planned(request, gpus(2, 24), data(4000)).memory_advice][
        3:
    ] == [
        "--deepspeed zero3_offload",
        "--max_length 2048",
    ]
    assert planned(config(model="owner/unknown"), gpus()).memory_advice == ["a machine with more memory"]


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("NVIDIA A100-SXM4-80GB", 80),
        ("NVIDIA H100 80GB HBM3", 80),
        ("Tesla V100-SXM2-32GB", 32),
        ("NVIDIA L4", 0),
    ],
)
def test_the_memory_that_a_name_tells(name: str, gib: int) -> None:
    assert machine_device.memory_in(name) == gib << 30


def test_the_memory_of_gpus_is_what_nvidias_tool_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '24564, GPU-b, NVIDIA RTX A5000'\necho '81559, GPU-a, NVIDIA H100'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine_device._with_memory(
        [machine_device.Gpu("NVIDIA H100", "GPU-a"), machine_device.Gpu("NVIDIA RTX A5000", "GPU-b")]
    )
    assert [gpu.memory >> 20 for gpu in found] == [81559, 24564]
    unnamed = machine_device._with_memory([machine_device.Gpu(), machine_device.Gpu()])
    assert [(gpu.name, gpu.memory >> 20) for gpu in unnamed] == [
        ("NVIDIA RTX A5000", 24564),
        ("NVIDIA H100", 81559),
    ]
    machine(monkeypatch, gpus=2)
    assert machine_device.find_device().memory == 0
    monkeypatch.setattr(machine_device, "hardware", lambda: machine_device.Hardware("cuda", found))
    assert machine_device.find_device().memory >> 20 == 24564  # of the smaller
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine_device._with_memory([machine_device.Gpu()]) == [machine_device.Gpu()]


@pytest.mark.parametrize(
    ("settings", "rows", "kept"),
    [
        ({}, 2_000, True),
        ({}, 1_999, False),
        ({"load_from_cache_file": True}, 10, True),
        ({"load_from_cache_file": False}, 2_000, False),
        ({"streaming": True, "max_steps": 5}, 2_000, False),
        ({"dataset": "AI-ModelScope/alpaca-gpt4-data-zh"}, 2_000, False),
        ({"model": "llava-hf/llava-1.5-7b-hf"}, 2_000, False),
    ],
)
def test_rows_are_kept_where_that_is_safe_and_worth_it(
    tmp_path: Path, settings: dict[str, Any], rows: int, kept: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "a question", "response": "an answer"}\n' * rows)
    request = config(**{"dataset": str(path), **settings})
    report = verify([request.get("dataset")[0]])
    plan = planned(request, CPU, report)
    assert plan.keeps_rows == kept
    assert ("rows" in dict(plan.facts())) == kept
