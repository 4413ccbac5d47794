"""How a training run is launched: how many processes, on how many nodes, started by which command.

One process is started directly. Several, and what DeepSpeed or FSDP shard, go through torch.distributed.run. A
process that torchrun or a similar launcher has already started, which LOCAL_RANK shows, joins the run as that rank.

Flags and arguments of FineTuner take precedence over the environment: ms-swift's variables (NPROC_PER_NODE, NNODES,
NODE_RANK, MASTER_ADDR, MASTER_PORT), torchrun's (PET_NNODES, ...), those of a SLURM job step. They are read once, into
a `Cluster`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from swift_toolkit.config.settings import Config
from swift_toolkit.console.words import counted
from swift_toolkit.machine.device import Device
from swift_toolkit.problems import Problem

NAMES = ("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port")
"""Names of flags and of FineTuner's arguments; in capitals, of environment variables."""

MASTER_PORT = 29500
"""torchrun's own default."""

KEEPS_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""glibc's variables with which a process keeps the memory that it frees. A training step allocates the same large
tensors as the step before; by default each is mapped and zeroed anew. On a virtual machine with two cores of an Intel
Xeon, steps take 4 to 9% less time, with 5% more memory at the peak."""

SHUTDOWN_SECONDS = 5
"""Seconds that the other processes of a node may take to end after one of them failed."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The rank that torchrun or a similar launcher gave this process.

    Args:
        rank: the rank among all processes, counted from 0.
        world: the number of processes.
        local_world: the number of processes on this machine.
    """

    rank: int
    world: int = 1
    local_world: int = 1


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The processes and machines of a run.

    Args:
        processes: requested processes on this machine; None starts one per device.
        nodes: the number of machines.
        node: the number of this machine, counted from 0.
        address: host name or address of node 0.
        port: the port on node 0 where the processes meet.
        started_as: the rank of this process, if torchrun or a similar launcher started it.
    """

    processes: int | None = None
    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = MASTER_PORT
    started_as: Rank | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process creates the run's directory and shows plan, progress and result."""
        return self.started_as.rank == 0 if self.started_as else self.node == 0

    @property
    def has_peers(self) -> bool:
        """Whether other starters take part, which must have the same request."""
        return self.started_as is not None or self.nodes > 1

    @property
    def label(self) -> str:
        """The name of this process's log file, without suffix."""
        return f"rank{self.started_as.rank}" if self.started_as else f"node{self.node}"


# --- the request --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Said:
    """A value and its origin: a flag, an argument or an environment variable; both empty if it is not set."""

    value: str = ""
    key: str = ""

    @property
    def number(self) -> int | None:
        return int(self.value) if self.value.isdecimal() else None


ALLOCATOR, GROWING = "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"
"""The environment variable of PyTorch's GPU allocator, and its value for expandable segments.

Measured on one H100 with torch 2.11, a Llama with 1.2 billion parameters, LoRA in bfloat16, 12 steps of 16 rows with 20
to 992 tokens: 13.2 GiB reserved with it and 32.2 GiB without, for 11.6 GiB in use at the peak, at the same speed.
Without gradient checkpointing: 42.2 and 56.1 GiB.
"""

_SLURM = {"NNODES": "SLURM_STEP_NUM_NODES", "NODE_RANK": "SLURM_NODEID", "MASTER_ADDR": "SLURM_STEP_NODELIST"}
# srun sets the names with STEP. The batch script itself, and salloc's shell, run on a single node.


@dataclass(frozen=True)
class LaunchRequest:
    """The requested processes and machines.

    Args:
        given: values from flags or arguments, keyed by the names in `NAMES`; None if not given.
        environ: the environment, for values that are not given.
        as_flags: messages name a given value by its flag.
    """

    given: Mapping[str, object] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    as_flags: bool = False

    def cluster(self) -> Cluster:
        """The requested cluster; invalid values are ignored."""
        started = self._started_as()
        processes = self._said("nproc_per_node").number or None
        nodes, node = self._said("nnodes").number or 1, self._said("node_rank").number
        if nodes < 2 or node is None:
            return Cluster(processes=processes, started_as=started)
        where = self._said("master_addr")
        address = first_host(where.value) if where.key.startswith("SLURM") else where.value
        port = self._said("master_port").number or MASTER_PORT
        return Cluster(
            processes=processes, nodes=nodes, node=node, address=address, port=port, started_as=started
        )

    def problems(self, device: Device) -> Iterator[Problem]:
        """Problems of the request on this machine."""
        return self._outside_problems() if self._is_started() else self._own_problems(device)

    def _said(self, name: str) -> _Said:
        value = self.given.get(name)
        if value is not None and str(value).strip():
            return _Said(str(value).strip(), self._spelled(name))
        variable = name.upper()
        for key in (variable, f"PET_{variable}", _SLURM.get(variable, "")):
            if found := self.environ.get(key, "").strip():
                return _Said(found, key)
        return _Said()

    # --- a process that torchrun started ------------------------------------------------------------------

    def _is_started(self) -> bool:
        return bool(self.environ.get("LOCAL_RANK"))

    def _number(self, *variables: str) -> int:
        found = next((value for name in variables if (value := self.environ.get(name))), "")
        return int(found) if found.isdecimal() else 1

    def _started_as(self) -> Rank | None:
        if not self._is_started():
            return None
        here, world = self._number("LOCAL_WORLD_SIZE", "WORLD_SIZE"), self._number("WORLD_SIZE")
        return Rank(rank=self._number("RANK"), world=world, local_world=here)

    def _outside_problems(self) -> Iterator[Problem]:
        because = "and LOCAL_RANK shows that torchrun started this process"
        for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT"):
            value = self.environ.get(name, "")
            if not value.isdecimal():
                do = "Start the trainer without LOCAL_RANK, or with everything that torchrun sets."
                yield Problem(f'is "{value}", {because}', do, name)
        if not self.environ.get("MASTER_ADDR"):
            yield Problem(f"is not set, {because}", "", "MASTER_ADDR")

    # --- processes that this one will start ---------------------------------------------------------------

    def _own_problems(self, device: Device) -> Iterator[Problem]:
        wrong = list(self._number_problems())
        yield from wrong
        count, nodes = self._said("nproc_per_node"), self._said("nnodes").number or 1
        if wrong:
            return
        if count.number and device.kind != "cpu" and count.number > device.count:
            what = f"is {count.value}, but {device.count} {device.kind} devices are visible here"
            yield Problem(what, "Request fewer processes, or make more devices visible.", count.key)
        if nodes > 1:
            yield from self._node_problems(nodes)

    def _number_problems(self) -> Iterator[Problem]:
        for name, least in {"nproc_per_node": 1, "nnodes": 1, "node_rank": 0, "master_port": 1}.items():
            said = self._said(name)
            by_device = said.key == "PET_NPROC_PER_NODE" and said.value in ("auto", "gpu", "cpu", "xpu")
            if said.value and not by_device and (said.number is None or said.number < least):
                yield Problem(f'is "{said.value}"; it must be a whole number, {least} or more', key=said.key)

    def _node_problems(self, count: int) -> Iterator[Problem]:
        rank = self._said("node_rank")
        if rank.number is None:
            do = f"Add {self._spelled('node_rank')}: 0 on the first machine, 1 on the second, and so on."
            yield Problem(f"{count} nodes are requested, but the number of this node is not given", do)
        elif rank.number >= count:
            what = f"is {rank.value}; with {count} nodes it must be from 0 to {count - 1}"
            yield Problem(what, key=rank.key)
        if not self._said("master_addr").value:
            do = f"Add {self._spelled('master_addr')}: the host name or address of the first machine, the same on all."
            yield Problem(f"{count} nodes are requested, but the address of the first is not given", do)
        tasks = self.environ.get("SLURM_STEP_NUM_TASKS", "")
        by_slurm = self._said("nnodes").key.startswith("SLURM")
        if by_slurm and tasks.isdecimal() and int(tasks) != count:
            what = f"SLURM started {tasks} tasks on {count} nodes, but each node needs exactly one"
            yield Problem(what, "Use srun --ntasks-per-node=1: it starts one process for each GPU itself.")

    def _spelled(self, name: str) -> str:
        return f"--{name.replace('_', '-')}" if self.as_flags else name


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list: ``gpu03`` of ``gpu[03-05,9],login``."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodelist)
    return f"{found[1]}{found[2] or ''}{found[3] or ''}" if found else nodelist


# --- the processes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """How the processes of one run are started on this machine.

    Args:
        config: the settings of the run.
        device: the device of the run.
        cluster: the requested processes and machines.
    """

    config: Config
    device: Device
    cluster: Cluster

    @property
    def processes(self) -> int:
        """Training processes on this machine: as many as requested, else one per accelerator.

        A model that is spread over devices with ``device_map`` uses all of them in one process.
        """
        if self.cluster.started_as:
            return self.cluster.started_as.local_world
        return self.cluster.processes or (1 if self.config.get("device_map") else self.device.count)

    @property
    def world_size(self) -> int:
        """Training processes on all nodes together."""
        started = self.cluster.started_as
        return started.world if started else self.processes * self.cluster.nodes

    @property
    def needs_launcher(self) -> bool:
        """Whether the run goes through torch.distributed.run."""
        if self.cluster.started_as:
            return False
        sharded = self.config.get("deepspeed") or self.config.get("fsdp")
        return bool(sharded or self.cluster.processes or self.world_size > 1)

    def phrase(self) -> str:
        """The launch in a few words, e.g. "8 processes, one per visible device, through torch.distributed.run"."""
        here, cluster = self.processes, self.cluster
        if cluster.started_as:
            return f"rank {cluster.started_as.rank} of {self.world_size}, as torchrun started it"
        if not self.needs_launcher:
            return "one process"
        text = counted(here, "process", "processes")
        if here > 1 and not cluster.processes:
            text += ", one per visible device"
        if cluster.nodes > 1:
            text += f", node {cluster.node} of {cluster.nodes}, the first is {cluster.address}:{cluster.port}"
        return f"{text}, through torch.distributed.run"

    def command(self) -> list[str]:
        """The command that starts the training process or processes of this machine."""
        module = ["-m", "swift_toolkit.training.process.worker"]
        if not self.needs_launcher:
            return [sys.executable, *module]
        cluster = self.cluster
        where = [
            f"--nnodes={cluster.nodes}",
            f"--node_rank={cluster.node}",
            f"--master_addr={cluster.address}",
            f"--master_port={cluster.port}",
        ]
        return [
            *(sys.executable, "-m", "torch.distributed.run"),
            f"--nproc_per_node={self.processes}",
            *(where if cluster.nodes > 1 else ["--standalone"]),  # on one machine: any free port
            *module,
        ]

    def grows_segments(self, environ: Mapping[str, str] | None = None) -> bool:
        """Whether PyTorch's allocator uses expandable segments, so that rows of varying length leave no gaps in memory.

        It does unless the user configured the allocator otherwise, or vLLM shares the GPU: its sleep mode needs memory
        pools, which exclude expandable segments.

        Args:
            environ: the user's own variables; those of this process by default.
        """
        environ = os.environ if environ is None else environ
        said = "".join(environ.get(name, "") for name in (ALLOCATOR, "PYTORCH_ALLOC_CONF"))
        if said:
            return GROWING in said
        return self.device.kind == "cuda" and sys.platform == "linux" and not self.config.get("use_vllm")

    def environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment variables that the processes of this run need in addition to `device.environment`.

        Args:
            environ: the user's own variables, which take precedence; those of this process by default.
        """
        environ = os.environ if environ is None else environ
        wanted = {}
        if self.grows_segments(environ):
            wanted[ALLOCATOR] = GROWING
        if self.device.kind == "cpu":
            wanted |= KEEPS_MEMORY
            if self.config.get("deepspeed"):
                wanted["DS_ACCELERATOR"] = "cpu"
        if self.needs_launcher:
            wanted["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN_SECONDS)
        wanted = {name: value for name, value in wanted.items() if name not in environ}
        cluster = self.cluster
        nodes = {"NNODES": str(cluster.nodes), "NODE_RANK": str(cluster.node)}  # ms-swift reads them too
        differ = any(environ.get(name, value) != value for name, value in nodes.items())
        return wanted | nodes if cluster.nodes > 1 or (differ and not cluster.started_as) else wanted
