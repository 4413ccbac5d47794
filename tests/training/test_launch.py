"""How many processes on how many nodes, and the exact command that starts them; devices faked at one seam."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer import FineTuner
from swift_toolkit.config.settings import Config, Setting, Source
from swift_toolkit.machine import device as machine_device
from swift_toolkit.problems import RequestError
from swift_toolkit.training.process import launch
from swift_toolkit.training.process.launch import KEEPS_MEMORY, Launch, LaunchRequest
from tests.training.test_automatic import CPU, TWO_GPUS, config, machine, planned

TRAINING = ["-m", "swift_toolkit.training.process.worker"]
RUN = [sys.executable, "-m", "torch.distributed.run"]
ONE = [sys.executable, *TRAINING]


def several(count: int) -> list[str]:
    return [*RUN, f"--nproc_per_node={count}", "--standalone", *TRAINING]


def nodes(rank: int, count: int = 8, address: str = "h", port: int = 29500) -> list[str]:
    where = [f"--nnodes=2 --node_rank={rank} --master_addr={address} --master_port={port}"]
    return [*RUN, f"--nproc_per_node={count}", *where[0].split(), *TRAINING]


def said_in(text: str) -> dict[str, str]:
    """The variables of an environment, written as a shell does."""
    return dict(word.split("=", 1) for word in text.split())


def set_all(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for name, value in said_in(text).items():
        monkeypatch.setenv(name, value)


def launched(request: Config, device: machine_device.Device) -> Launch:
    """The launch that the environment asks for."""
    return Launch(request, device, LaunchRequest().cluster())


# --- what is started ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has", "said", "command"),
    [
        ({}, "", ONE),
        ({}, "NPROC_PER_NODE=2", several(2)),
        ({"gpus": 1}, "", ONE),
        ({"gpus": 1}, "NPROC_PER_NODE=1", several(1)),
        ({"gpus": 2}, "", several(2)),
        ({"gpus": 8}, "", several(8)),
        ({"gpus": 8}, "NPROC_PER_NODE=1", several(1)),
        ({"gpus": 8}, "CUDA_VISIBLE_DEVICES=1,3", several(2)),
        ({"gpus": 8}, "CUDA_VISIBLE_DEVICES=5", ONE),
        ({"gpus": 8}, "CUDA_VISIBLE_DEVICES=GPU-1a2b3c4d,GPU-7a,GPU-0", several(3)),
        ({"gpus": 8, "mig": 8}, "", ONE),
        ({"gpus": 1, "mig": 1}, "CUDA_VISIBLE_DEVICES=MIG-1f2e,MIG-3a4b", ONE),
        ({"npus": 8}, "", several(8)),
        ({"npus": 8}, "ASCEND_RT_VISIBLE_DEVICES=0,1,2,3", several(4)),
        ({"apple": True}, "", ONE),
        ({"build": "rocm", "amd": 4}, "HIP_VISIBLE_DEVICES=0,2", several(2)),
        ({"gpus": 8}, "NNODES=2 NODE_RANK=0 MASTER_ADDR=h", nodes(0)),
        ({"gpus": 8}, "NNODES=2 NODE_RANK=1 MASTER_ADDR=h MASTER_PORT=29501", nodes(1, port=29501)),
        ({"gpus": 1}, "NNODES=2 NODE_RANK=1 MASTER_ADDR=h", nodes(1, 1)),
        ({"gpus": 8}, "NNODES=1 NODE_RANK=0 MASTER_ADDR=h MASTER_PORT=1", several(8)),
        (
            {"gpus": 8},  # what Kubeflow's PyTorchJob sets
            "PET_NNODES=2 PET_NODE_RANK=1 PET_NPROC_PER_NODE=auto PET_MASTER_ADDR=h PET_MASTER_PORT=23456 "
            "MASTER_ADDR=h MASTER_PORT=23456 WORLD_SIZE=2 RANK=1",
            nodes(1, port=23456),
        ),
        (
            {"gpus": 8},
            "SLURM_STEP_NUM_NODES=2 SLURM_NODEID=1 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=gpu[03-04]",
            nodes(1, address="gpu03"),
        ),
        ({"gpus": 8}, "SLURM_NNODES=2 SLURM_NODEID=0 SLURM_JOB_NODELIST=gpu[03-04]", several(8)),  # no job step
        ({"gpus": 8}, "LOCAL_RANK=3 RANK=11 WORLD_SIZE=16 MASTER_ADDR=h MASTER_PORT=1", ONE),
    ],
)  # fmt: skip
def test_the_command(
    has: dict[str, Any], said: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **has)
    set_all(monkeypatch, said)
    device = machine_device.find_device()
    assert list(LaunchRequest().problems(device)) == []
    assert launched(config(), device).command() == command


def test_what_is_sharded_goes_through_torchrun_even_alone() -> None:
    request = config()
    for name in ("deepspeed", "fsdp"):
        request.settings = {"model": request.settings["model"], name: request.settings["model"]}
        assert launched(request, machine_device.Device("cuda", 1)).command() == several(1)
        assert launched(request, machine_device.Device("cuda", 8)).command() == several(8)


def test_a_spread_model_takes_all_devices_in_one_process() -> None:
    assert launched(config(device_map="auto"), TWO_GPUS).command() == ONE


def test_the_size_of_the_world() -> None:
    request = config(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    eight = machine_device.Device("cuda", 8)
    for environ, processes, world, rows in (
        ("", 8, 8, 64),
        ("NNODES=2 NODE_RANK=1 MASTER_ADDR=h", 8, 16, 128),
        ("LOCAL_RANK=0 RANK=4 WORLD_SIZE=8 LOCAL_WORLD_SIZE=4", 4, 8, 64),
    ):
        plan = planned(request, eight)
        plan.cluster = LaunchRequest(environ=said_in(environ)).cluster()
        found = (plan.launch.processes, plan.world_size, plan.batch.effective)
        assert found == (processes, world, rows)


@pytest.mark.parametrize(
    ("said", "first", "phrase"),
    [
        ("", True, "2 processes, one per visible device, through torch.distributed.run"),
        ("NPROC_PER_NODE=1", True, "1 process, through torch.distributed.run"),
        (
            "NNODES=4 NODE_RANK=2 MASTER_ADDR=h",
            False,
            "2 processes, one per visible device, node 2 of 4, the first is h:29500, through torch.distributed.run",
        ),
        ("LOCAL_RANK=0 RANK=0 WORLD_SIZE=8", True, "rank 0 of 8, as torchrun started it"),
        ("LOCAL_RANK=0 RANK=4 WORLD_SIZE=8", False, "rank 4 of 8, as torchrun started it"),
    ],
)
def test_the_phrase(said: str, first: bool, phrase: str) -> None:
    cluster = LaunchRequest(environ=said_in(said)).cluster()
    assert (Launch(config(), TWO_GPUS, cluster).phrase(), cluster.is_first) == (phrase, first)


def environment(request: Config, device: machine_device.Device, text: str = "") -> dict[str, str]:
    environ = said_in(text)
    return Launch(request, device, LaunchRequest(environ=environ).cluster()).environment(environ)


def test_the_environment() -> None:
    assert environment(config(), CPU) == KEEPS_MEMORY
    assert environment(config(), CPU, "MALLOC_TOP_PAD_=0")["MALLOC_MMAP_MAX_"] == "0"
    assert "MALLOC_TOP_PAD_" not in environment(config(), CPU, "MALLOC_TOP_PAD_=0")
    grows = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert environment(config(), TWO_GPUS) == {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5", **grows}
    said = "PET_NNODES=2 PET_NODE_RANK=1 PET_MASTER_ADDR=h TORCH_ELASTIC_SHUTDOWN_TIMEOUT=60 PYTORCH_ALLOC_CONF=x:y"
    assert environment(config(), TWO_GPUS, said) == {"NNODES": "2", "NODE_RANK": "1"}
    request = config()
    request.settings["deepspeed"] = request.settings["model"]
    assert environment(request, CPU)["DS_ACCELERATOR"] == "cpu"


def test_segments_grow_on_a_gpu_unless_the_user_or_vllm_decides_otherwise() -> None:
    assert not launched(config(), CPU).grows_segments({})
    assert launched(config(), TWO_GPUS).grows_segments({})
    assert launched(config(), TWO_GPUS).grows_segments({"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
    assert not launched(config(), TWO_GPUS).grows_segments(
        {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}
    )
    with_vllm = config(rlhf_type="grpo", reward_funcs="format")
    with_vllm.settings["use_vllm"] = Setting(True, Source("call"), "use_vllm")
    assert not launched(with_vllm, TWO_GPUS).grows_segments({})


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu01", "gpu01"),
        ("gpu01,gpu02", "gpu01"),
        ("gpu[03-05,9],login", "gpu03"),
        ("a[1,3]-ib,b", "a1-ib"),
        ("rack-2-n[001-128]", "rack-2-n001"),
    ],
)
def test_the_first_host_of_a_slurm_job(nodelist: str, first: str) -> None:
    assert launch.first_host(nodelist) == first


# --- what cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "messages"),
    [
        ("NPROC_PER_NODE=two", ['"NPROC_PER_NODE" is "two"; it must be a whole number, 1 or more.']),
        (
            "NPROC_PER_NODE=4",
            [
                '"NPROC_PER_NODE" is 4, but 2 cuda devices are visible here. Request fewer processes, or make more devices visible.'
            ],
        ),
        (
            "NNODES=2",
            [
                "2 nodes are requested, but the number of this node is not given. "
                "Add --node-rank: 0 on the first machine, 1 on the second, and so on.",
                "2 nodes are requested, but the address of the first is not given. "
                "Add --master-addr: the host name or address of the first machine, the same on all.",
            ],
        ),
        (
            "NNODES=2 NODE_RANK=2 MASTER_ADDR=h",
            ['"NODE_RANK" is 2; with 2 nodes it must be from 0 to 1.'],
        ),
        ("PET_NNODES=1:4 PET_NODE_RANK=0", ['"PET_NNODES" is "1:4"; it must be a whole number, 1 or more.']),
        (
            "SLURM_STEP_NUM_NODES=2 SLURM_NODEID=0 SLURM_STEP_NUM_TASKS=16 SLURM_STEP_NODELIST=a,b",
            [
                "SLURM started 16 tasks on 2 nodes, but each node needs exactly one. "
                "Use srun --ntasks-per-node=1: it starts one process for each GPU itself."
            ],
        ),
        (
            "LOCAL_RANK=0 MASTER_PORT=1 MASTER_ADDR=h WORLD_SIZE=2",
            [
                '"RANK" is "", and LOCAL_RANK shows that torchrun started this process. '
                "Start the trainer without LOCAL_RANK, or with everything that torchrun sets."
            ],
        ),
    ],
)
def test_problems(said: str, messages: list[str]) -> None:
    found = LaunchRequest(environ=said_in(said), as_flags=True).problems(TWO_GPUS)
    assert [str(problem) for problem in found] == messages


# --- flags and arguments ------------------------------------------------------------------------------------


def test_what_is_given_wins_over_the_environment() -> None:
    environ = said_in("NNODES=4 NODE_RANK=3 MASTER_ADDR=a MASTER_PORT=1 NPROC_PER_NODE=8")
    given = {"nnodes": "2", "node_rank": 0, "master_addr": "b", "master_port": 2, "nproc_per_node": 1}
    cluster = LaunchRequest(given, environ).cluster()
    assert cluster == launch.Cluster(processes=1, nodes=2, node=0, address="b", port=2)
    told = Launch(config(), TWO_GPUS, cluster).environment(environ)
    assert (told["NNODES"], told["NODE_RANK"]) == ("2", "0")
    one = LaunchRequest({"nnodes": 1}, environ).cluster()
    assert Launch(config(), TWO_GPUS, one).environment(environ)["NNODES"] == "1"


def test_messages_name_what_was_given() -> None:
    given = {"nnodes": "2", "node_rank": "5", "nproc_per_node": None}
    flags = [str(one) for one in LaunchRequest(given, {}, as_flags=True).problems(CPU)]
    assert flags[0] == '"--node-rank" is 5; with 2 nodes it must be from 0 to 1.'
    assert "Add --master-addr: " in flags[1]
    arguments = [str(one) for one in LaunchRequest(given, {}).problems(CPU)]
    assert arguments[0] == '"node_rank" is 5; with 2 nodes it must be from 0 to 1.'
    assert "Add master_addr: " in arguments[1]


def test_python_asks_for_several_machines() -> None:
    before = dict(os.environ)
    tuner = FineTuner(
        "configs/quickstart.json", nproc_per_node=2, nnodes=2, node_rank=1, master_addr="h", master_port=4000
    )
    told = tuner.describe()["launch"]
    assert told["command"] == nodes(1, 2, port=4000)
    assert told["environment"]["NNODES"] == "2"
    assert (told["processes"], told["nodes"], told["effective_batch_size"]) == (2, 2, 16)
    assert dict(os.environ) == before
    with pytest.raises(RequestError) as caught:
        FineTuner("configs/quickstart.json", nnodes=2, master_addr="h")
    assert str(caught.value) == (
        "2 nodes are requested, but the number of this node is not given. "
        "Add node_rank: 0 on the first machine, 1 on the second, and so on."
    )


def test_flags_ask_for_several_machines() -> None:
    script = str(Path(__file__).resolve().parents[2] / "finetune_trainer.py")
    base = [sys.executable, script, "--config", "configs/quickstart.json", "--dry-run"]
    where = [
        "--nproc-per-node",
        "2",
        "--nnodes=2",
        "--node_rank",
        "1",
        "--master-addr",
        "h",
        "--master-port",
        "4000",
    ]
    done = subprocess.run([*base, "--json", *where], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["launch"]
    assert told["command"] == nodes(1, 2, port=4000)
    assert (told["processes"], told["nodes"], told["effective_batch_size"]) == (2, 2, 16)
    done = subprocess.run([*base, "--nnodes", "2", "--lora_rnak", "8"], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3  # all problems at once
