"""How a training run is launched: how many processes, on how many nodes, started by which command.

One process is started directly. Several, and what DeepSpeed or FSDP shard, go through torch.distributed.run. In a
process that torchrun (or something like it) has started already, told by LOCAL_RANK, the run takes part as that rank.

How many there are is read from the environment, under ms-swift's own names (NPROC_PER_NODE, NNODES, NODE_RANK,
MASTER_ADDR, MASTER_PORT), which flags of the same names set; else under torchrun's (PET_NNODES, ...), else under
those of a SLURM job step.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swift_toolkit.problems import Problem

if TYPE_CHECKING:
    from swift_toolkit.config.settings import Config
    from swift_toolkit.machine.device import Device

FLAGS = ("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port")
"""Names of the flags; each stands for the environment variable of the same name in capitals."""

MASTER_PORT = 29500
"""torchrun's own default."""

SHUTDOWN_SECONDS = 5
"""How long the other processes of a node may take to end after one of them failed."""


@dataclass(frozen=True)
class Nodes:
    """The machines of a run.

    Args:
        count: how many take part.
        rank: which of them this is, counted from 0.
        address: host name or address of node 0.
        port: the port on node 0 over which the processes find each other.
    """

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = MASTER_PORT


# --- what was asked for -------------------------------------------------------------------------------------


def _said(name: str) -> tuple[str, str]:
    """The value of a launch setting and the variable it is in; two empty texts if nobody set it."""
    for variable in (name, f"PET_{name}", _SLURM.get(name, "")):
        if value := os.environ.get(variable, "").strip():
            return value, variable
    return "", ""


_SLURM = {"NNODES": "SLURM_STEP_NUM_NODES", "NODE_RANK": "SLURM_NODEID", "MASTER_ADDR": "SLURM_STEP_NODELIST"}
# srun sets the names with STEP. In the batch script itself, and in salloc's shell, there is one node: this one.


def problems(device: Device) -> list[Problem]:
    """What is wrong with how the run shall be launched."""
    return list(_started_from_outside() if takes_part() else _asked_for(device))


def _asked_for(device: Device) -> Iterator[Problem]:
    bounds = {"NPROC_PER_NODE": 1, "NNODES": 1, "NODE_RANK": 0, "MASTER_PORT": 1}
    good = True
    for name, least in bounds.items():
        value, variable = _said(name)
        words = value in ("auto", "gpu", "cpu", "xpu") and variable == "PET_NPROC_PER_NODE"
        if value and not words and not (value.isdecimal() and int(value) >= least):
            good = False
            yield Problem(f'is "{value}"; it must be a whole number, {least} or more', key=variable)
    count, variable = _said("NPROC_PER_NODE")
    if good and count.isdecimal() and device.kind != "cpu" and int(count) > device.count:
        what = f"is {count}, and {device.count} {device.kind} device(s) are visible here"
        yield Problem(what, "Ask for no more, or make more visible.", variable)
    if good and (nodes := _said("NNODES")[0]) and int(nodes) > 1:
        yield from _among_nodes(int(nodes))


def _among_nodes(count: int) -> Iterator[Problem]:
    rank, variable = _said("NODE_RANK")
    if not rank:
        do = "Add --node-rank: 0 on the first machine, 1 on the second, and so on."
        yield Problem(f"{count} nodes are asked for, and which of them this is was not said", do)
    elif int(rank) >= count:
        yield Problem(f"is {rank}; with {count} nodes it must be from 0 to {count - 1}", key=variable)
    if not _said("MASTER_ADDR")[0]:
        do = "Add --master-addr: the host name or address of the first machine, the same on all."
        yield Problem(f"{count} nodes are asked for, and where to find the first was not said", do)
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if _said("NNODES")[1].startswith("SLURM") and tasks.isdecimal() and int(tasks) != count:
        what = f"SLURM started {tasks} tasks on {count} nodes, and each node needs just one"
        yield Problem(what, "Use srun --ntasks-per-node=1: a process for every GPU is started from there.")


def _started_from_outside() -> Iterator[Problem]:
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value.isdecimal():
            do = "Start the trainer without LOCAL_RANK, or with all that torchrun sets."
            yield Problem(f'is "{value}", and LOCAL_RANK says that torchrun started this process', do, name)
    if not os.environ.get("MASTER_ADDR"):
        yield Problem("is not set, and LOCAL_RANK says that torchrun started this process", "", "MASTER_ADDR")


# --- processes and nodes ------------------------------------------------------------------------------------


def takes_part() -> bool:
    """Whether torchrun or its like started this very process as one rank of a run."""
    return bool(os.environ.get("LOCAL_RANK"))


def is_first() -> bool:
    """Whether the run's directory, plan, progress and result are this process's to make and show."""
    return os.environ.get("RANK") == "0" if takes_part() else nodes().rank == 0


def nodes() -> Nodes:
    """The machines of the run; what ``problems`` would report is read as the default."""
    count, rank = (int(value) if value.isdecimal() else 0 for value, _ in map(_said, ("NNODES", "NODE_RANK")))
    if count < 2:
        return Nodes()
    address, variable = _said("MASTER_ADDR")
    port, _ = _said("MASTER_PORT")
    if variable.startswith("SLURM"):
        address = first_host(address)
    return Nodes(count, rank, address, int(port) if port.isdecimal() else MASTER_PORT)


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list: ``gpu[03-05,9],login`` begins with ``gpu03``."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodelist)
    return f"{found[1]}{found[2] or ''}{found[3] or ''}" if found else nodelist


def processes(config: Config, device: Device) -> int:
    """How many training processes run on this machine: as many as asked for, else one for every accelerator.

    A model that is spread with ``device_map`` takes all of them in one process.
    """
    if takes_part():
        size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "")
        return int(size) if size.isdecimal() else 1
    asked, _ = _said("NPROC_PER_NODE")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return 1 if config.get("device_map") else device.count


def world_size(config: Config, device: Device) -> int:
    """Training processes on all nodes together."""
    if takes_part():
        size = os.environ.get("WORLD_SIZE", "")
        return int(size) if size.isdecimal() else 1
    return processes(config, device) * nodes().count


def needs_launcher(config: Config, device: Device) -> bool:
    """Whether the run goes through torch.distributed.run."""
    if takes_part():
        return False
    sharded = config.get("deepspeed") or config.get("fsdp")
    return bool(sharded or _said("NPROC_PER_NODE")[0] or world_size(config, device) > 1)


def phrase(config: Config, device: Device) -> str:
    """The launch in a few words, e.g. "8 processes, one a device, through torch.distributed.run"."""
    here, among = processes(config, device), nodes()
    if takes_part():
        return f"rank {os.environ.get('RANK')} of {world_size(config, device)}, as torchrun started it"
    if not needs_launcher(config, device):
        return "one process"
    text = "1 process" if here == 1 else f"{here} processes"
    if here > 1 and not _said("NPROC_PER_NODE")[0]:
        text += ", one for each visible device"
    if among.count > 1:
        text += f", node {among.rank} of {among.count}, the first is {among.address}:{among.port}"
    return f"{text}, through torch.distributed.run"


# --- command ------------------------------------------------------------------------------------------------


def command(config: Config, device: Device) -> list[str]:
    """The command that starts the training process or processes of this machine."""
    module = ["-m", "swift_toolkit.training.worker"]
    if not needs_launcher(config, device):
        return [sys.executable, *module]
    among = nodes()
    where = [
        f"--nnodes={among.count}",
        f"--node_rank={among.rank}",
        f"--master_addr={among.address}",
        f"--master_port={among.port}",
    ]
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        f"--nproc_per_node={processes(config, device)}",
        *(where if among.count > 1 else ["--standalone"]),  # alone: any free port will do
        *module,
    ]


def environment(config: Config, device: Device) -> dict[str, str]:
    """The variables the processes of this run need besides ``plan.environment`` and the user's own, which win."""
    wanted = {}
    if device.kind == "cpu" and config.get("deepspeed"):
        wanted["DS_ACCELERATOR"] = "cpu"
    if needs_launcher(config, device):
        wanted["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN_SECONDS)
    if (among := nodes()).count > 1:
        wanted |= {"NNODES": str(among.count), "NODE_RANK": str(among.rank)}  # ms-swift reads them too
    return {name: value for name, value in wanted.items() if name not in os.environ}
