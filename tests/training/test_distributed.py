"""Several processes and several machines for real: gloo between CPUs, machines as network namespaces."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.test_finetune_trainer import DATA, flags, leftovers, losses

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
FAST = 20.0
"""Seconds within which a run must have ended after one of its processes died."""

pytestmark = pytest.mark.slow

PLUGIN = """
import hashlib, os
from pathlib import Path
from transformers import TrainerCallback, trainer

class Spy(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if os.environ.get("FAIL_AT") == f"{os.environ.get('RANK')}:{state.global_step}":
            raise ValueError("this rank is not well")

    def on_train_end(self, args, state, control, model=None, **kwargs):
        mark = hashlib.sha256()
        for parameter in model.parameters():
            mark.update(parameter.detach().numpy().tobytes())
        Path(os.environ["MARKS"], os.environ.get("RANK", "0")).write_text(mark.hexdigest())

trainer.DEFAULT_CALLBACKS.append(Spy)
"""


def settings(model: Path, output: Path, **more: Any) -> dict[str, Any]:
    """A full fine-tuning of four steps of two rows a process, in float32."""
    return {
        "model": model,
        "model_type": "llama",
        "template": "chatml",
        "train_type": "full",
        "torch_dtype": "float32",
        "dataset": DATA,
        "output_dir": output,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 4,
        "report_to": "none",
        **more,
    }


@dataclass
class Trainer:
    """finetune_trainer.py at work, with what it prints in files."""

    output: Path
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    name: str = "node0"

    def __post_init__(self) -> None:
        self.errors = self.output.with_name(f"{self.output.name}-{self.name}.err")
        self.prints = self.errors.with_suffix(".out")
        command = [*self.before, sys.executable, str(ROOT / "finetune_trainer.py"), *self.arguments]
        with self.errors.open("wb") as errors, self.prints.open("wb") as prints:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(command, stdout=prints, stderr=errors, env=environment)

    def until(self, words: str) -> None:
        deadline = time.monotonic() + SECONDS
        while words not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def wait(self) -> int:
        return self.process.wait(timeout=SECONDS)

    def said(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    @property
    def run_directory(self) -> Path:
        (found,) = self.output.glob("v*-*")
        return found


def train(output: Path, *arguments: str, **environment: str) -> Path:
    """A run that succeeds; returns its directory."""
    done = Trainer(output, list(arguments), environment)
    assert done.wait() == 0, done.said()
    return done.run_directory


def result(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run all others are compared with: one process, four rows a step."""
    output = tmp_path_factory.mktemp("alone") / "out"
    return train(output, *flags(settings(tiny_model, output, per_device_train_batch_size=4)))


def weights(run: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(run / "checkpoint-4/model.safetensors"))


def test_two_processes_learn_what_one_learns(alone: Path, tiny_model: Path, tmp_path: Path) -> None:
    import numpy

    plugin, temporary = tmp_path / "plugin.py", Path(tempfile.mkdtemp())  # sockets in it need a short path
    plugin.write_text(PLUGIN)
    asked = flags(settings(tiny_model, tmp_path / "out", external_plugins=plugin))
    run = train(tmp_path / "out", *asked, "--nproc-per-node", "2", MARKS=str(tmp_path), TMPDIR=str(temporary))
    assert [*temporary.glob("torchelastic*"), *temporary.glob("swift-toolkit*")] == []
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    for name, there in weights(alone).items():
        numpy.testing.assert_allclose(weights(run)[name], there, atol=1e-5)
    assert (run / "logs/rank1.log").stat().st_size
    assert result(run)["config"]["ddp_backend"] == "gloo"


def test_under_torchrun_the_script_takes_part(alone: Path, tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(ROOT / "finetune_trainer.py"), *flags(settings(tiny_model, output))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    (run,) = output.glob("v*-*")
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert done.stderr.count("step 4/4") == done.stdout.count("Trained 4 steps") == 1
    assert (run / "logs/rank1.log").stat().st_size
    assert result(run)["status"] == "done"


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_deepspeed_shards_and_learns_the_same(
    stage: str, alone: Path, tiny_model: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: DS_BUILD_OPS=0 pip install -e '.[deepspeed]'")
    if not (shutil.which("g++") and shutil.which("ninja")):
        pytest.skip("DeepSpeed builds its CPU communication with g++ and ninja, and one of them is missing")
    output = tmp_path / "out"
    asked = flags(settings(tiny_model, output, deepspeed=stage))
    run = train(output, *asked, "--nproc-per-node", "2")
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    shards = list((run / "checkpoint-4/global_step4").glob("*optim_states.pt"))
    assert len(shards) == 2


# --- a process that dies ------------------------------------------------------------------------------------


@pytest.fixture
def endless(tiny_model: Path, tmp_path: Path) -> Iterator[Trainer]:
    """Two processes that train for hours, at their third step."""
    asked = flags(settings(tiny_model, tmp_path / "out", max_steps=50_000, save_steps=2, save_total_limit=3))
    run = Trainer(tmp_path / "out", [*asked, "--nproc-per-node", "2"])
    run.until("step 3/")
    yield run
    run.process.kill()


def ranks(run: Trainer) -> dict[int, int]:
    """Rank -> process id of the training processes."""
    found = {}
    for pid in leftovers(run.run_directory):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        here = dict(word.split(b"=", 1) for word in words if b"=" in word)
        if b"RANK" in here and os.getpgid(int(pid)) == int(pid):
            found[int(here[b"RANK"])] = int(pid)
    return found


def test_a_killed_rank_ends_all(endless: Trainer) -> None:
    began = time.monotonic()
    os.kill(ranks(endless)[1], signal.SIGKILL)
    assert endless.wait() == 1
    seconds = time.monotonic() - began
    print(f"killed rank 1, the run ended after {seconds:.1f} s")
    assert seconds < FAST
    first = endless.said()[endless.said().index("Training failed") :].splitlines()[0]
    assert first == (
        "Training failed: the system killed the process of rank 1, most likely because memory ran out. "
        f"Full log: {endless.run_directory}/train.log"
    )
    assert result(endless.run_directory)["status"] == "failed"
    assert not leftovers(endless.run_directory)


def test_the_error_of_the_rank_that_fails_comes_first(tiny_model: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    asked = flags(
        settings(tiny_model, tmp_path / "out", max_steps=50_000, save_total_limit=2, external_plugins=plugin)
    )
    run = Trainer(
        tmp_path / "out", [*asked, "--nproc-per-node", "2"], {"FAIL_AT": "1:3", "MARKS": str(tmp_path)}
    )
    run.until("step 2/")
    began = time.monotonic()
    assert run.wait() == 1
    assert time.monotonic() - began < FAST
    first = run.said()[run.said().index("Training failed") :].splitlines()[0]
    assert first.startswith("Training failed: rank 1: ValueError: this rank is not well. Full log: ")
    assert "this rank is not well" in (run.run_directory / "logs/rank1.log").read_text()
    assert result(run.run_directory)["error"].startswith("Training failed: rank 1: ValueError: ")
    assert not leftovers(run.run_directory)


# --- two machines -------------------------------------------------------------------------------------------


class Machines:
    """Two network namespaces with an address each and a cable between them."""

    def __init__(self) -> None:
        self.names = [f"swift{os.getpid()}{letter}" for letter in "ab"]
        self.cards = [f"sw{os.getpid()}{letter}" for letter in "ab"]
        self.addresses = ["10.213.7.1", "10.213.7.2"]
        a, b = self.names
        steps = [f"netns add {a}", f"netns add {b}"]
        steps += [f"link add {self.cards[0]} netns {a} type veth peer name {self.cards[1]} netns {b}"]
        for name, card, address in zip(self.names, self.cards, self.addresses, strict=True):
            steps += [f"-n {name} addr add {address}/24 dev {card}"]
            steps += [f"-n {name} link set {card} up", f"-n {name} link set lo up"]
        for step in steps:
            subprocess.run(["ip", *step.split()], check=True, capture_output=True, text=True)

    def start(self, node: int, output: Path, arguments: list[str], port: int) -> Trainer:
        where = [f"--nnodes=2 --node-rank={node} --master-addr={self.addresses[0]} --master-port={port}"]
        environment = {"GLOO_SOCKET_IFNAME": self.cards[node]}
        before = ["ip", "netns", "exec", self.names[node]]
        return Trainer(output, [*arguments, *where[0].split()], environment, before, f"node{node}")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def machines() -> Iterator[Machines]:
    if shutil.which("ip") is None:
        pytest.skip("the command ip is missing (package iproute2)")
    try:
        made = Machines()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    yield made
    made.remove()


def test_two_machines_train_together(
    machines: Machines, alone: Path, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    asked = flags(settings(tiny_model, output))
    second = machines.start(1, output, asked, 29611)
    first = machines.start(0, output, asked, 29611)
    assert (first.wait(), second.wait()) == (0, 0), first.said() + second.said()
    run = first.run_directory
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert "step 4/4" in first.said()
    assert "step" not in second.said()
    assert f"joined the run in {run}" in second.said()
    assert second.prints.read_text() == ""
    assert {path.name for path in (run / "logs").iterdir()} == {"rank1.log", "start-node1.log"}


def test_a_machine_that_dies_ends_the_run_which_then_goes_on(
    machines: Machines, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    asked = flags(settings(tiny_model, output, max_steps=50_000, save_steps=2, save_total_limit=3))
    first, second = (machines.start(node, output, asked, 29612) for node in (0, 1))
    first.until("step 5/")
    began = time.monotonic()
    second.process.kill()
    assert first.wait() == 1
    seconds = time.monotonic() - began
    print(f"killed node 1, node 0 ended after {seconds:.1f} s")
    assert seconds < FAST
    run = first.run_directory
    failed = first.said()[first.said().index("Training failed") :].splitlines()
    assert failed[0].startswith("Training failed: node 1 (")
    assert ") is lost: its last heartbeat was " in failed[0]
    while leftovers(run):  # node 1 notices by itself that its starter has gone
        assert time.monotonic() - began < FAST
        time.sleep(0.1)
    told = result(run)
    assert told["status"] == "failed"
    checkpoint = Path(told["last_checkpoint"])
    assert failed[-1] == f"To resume from {checkpoint}, run the same command with --resume."

    steps = int(checkpoint.name.removeprefix("checkpoint-"))
    again = [*flags(settings(tiny_model, output, max_steps=steps + 2, save_total_limit=3)), "--resume"]
    first, second = (machines.start(node, output, again, 29613) for node in (0, 1))
    assert (first.wait(), second.wait()) == (0, 0), first.said() + second.said()
    assert list(output.glob("v*-*")) == [run]
    assert result(run)["steps"] == steps + 2
    assert len(losses(run)) == steps + 2


def test_machines_that_were_asked_for_different_things(
    machines: Machines, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    data = tmp_path / "data.jsonl"
    data.write_text(Path(DATA).read_text(encoding="utf-8"), encoding="utf-8")
    first = machines.start(0, output, flags(settings(tiny_model, output)), 29614)
    other = flags(settings(tiny_model, output, learning_rate=2e-3, dataset=data))
    second = machines.start(1, output, other, 29614)
    assert (first.wait(), second.wait()) == (2, 2), first.said() + second.said()
    for said in (first.said(), second.said()):
        assert '"learning_rate" is 0.002 on node 1 (' in said
        assert "), but 0.001 on node 0 (" in said
        assert "Start every node with the same config and flags." in said
        assert f'"{data}" is ' in said
        assert ", but missing on node 0 (" in said
        assert "Traceback" not in said
