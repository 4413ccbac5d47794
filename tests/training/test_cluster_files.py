"""The files under configs/cluster are what SLURM, SkyPilot and Kubernetes take, and start what they say."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

import finetune_trainer
from swift_toolkit.machine import device as machine_device
from swift_toolkit.training.process import launch
from tests.training.test_automatic import config, machine
from tests.training.test_launch import nodes, set_all

CLUSTER = Path("configs/cluster")
SBATCH_OPTIONS = {  # of `man sbatch`, those that job scripts of this kind use, with the form of their values
    "job-name": r"[\w.-]+",
    "partition": r"[\w,.-]+",
    "account": r"[\w.-]+",
    "qos": r"[\w.-]+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"([\w.]+:)?\d+",
    "gres": r"gpu(:[\w.]+)?:\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]?",
    "time": r"(\d+-)?\d+(:\d\d(:\d\d)?)?",
    "signal": r"(R:|B:)?(\w+)(@\d+)?",
    "output": r"[\w%./-]+",
    "error": r"[\w%./-]+",
    "exclusive": "",
    "requeue": "",
}


def read(name: str) -> Any:
    return YAML(typ="safe").load((CLUSTER / name).read_text(encoding="utf-8"))


def schema(name: str) -> jsonschema.Draft202012Validator:
    path = Path(__file__).with_name("schemas") / name
    content = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


@pytest.mark.parametrize("name", ["pytorchjob", "skypilot"])
def test_the_yaml_files_keep_to_their_schemas(name: str) -> None:
    content = read(f"{name}.yaml")
    found = [f"{error.json_path}: {error.message}" for error in schema(f"{name}.json").iter_errors(content)]
    assert found == []
    misspelled = {**content, "sepc": {}}
    assert not schema(f"{name}.json").is_valid(misspelled)


def script_lines() -> list[str]:
    return (CLUSTER / "slurm.sbatch").read_text(encoding="utf-8").splitlines()


def test_every_sbatch_option_exists_and_stands_before_the_first_command() -> None:
    lines = script_lines()
    commands = [at for at, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    given = {}
    for at, line in enumerate(lines):
        if line.startswith("#SBATCH"):
            assert at < commands[0]  # sbatch would take no notice of it
            (option,) = shlex.split(line.removeprefix("#SBATCH"), comments=True)
            name, _, value = option.removeprefix("--").partition("=")
            assert re.fullmatch(SBATCH_OPTIONS[name], value), line
            given[name] = value
    assert given["ntasks-per-node"] == "1"


def test_the_shell_parts_are_shell(tmp_path: Path) -> None:
    task = read("skypilot.yaml")
    for text in ("\n".join(script_lines()), task["setup"], task["run"]):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_sbatch_itself_reads_the_script(tmp_path: Path) -> None:
    if shutil.which("sbatch") is None:
        pytest.skip("the command sbatch is missing (package slurm-client)")
    cluster = tmp_path / "slurm.conf"
    cluster.write_text(
        "ClusterName=x\nSlurmctldHost=localhost\nGresTypes=gpu\nNodeName=n[1-2] Gres=gpu:8\nPartitionName=gpu Nodes=ALL\n"
    )
    command = ["sbatch", "--test-only", str(CLUSTER / "slurm.sbatch")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"SLURM_CONF": str(cluster), "PATH": "/usr/bin:/bin"}
    )
    assert "Unable to contact slurm controller" in done.stderr  # all options were understood before
    assert "unrecognized" not in done.stderr


def trainer_words(line: str) -> list[str]:
    """The words after finetune_trainer.py."""
    words = shlex.split(line.replace("\\\n", " "))
    return words[next(at for at, word in enumerate(words) if word.endswith("finetune_trainer.py")) + 1 :]


def test_what_they_start_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own checks on each command line; what the cluster sets is set by hand."""
    machine(monkeypatch, gpus=8)
    slurm = next(line for line in script_lines() if line.startswith("srun"))
    sky = read("skypilot.yaml")["run"].replace('"$(echo "$SKYPILOT_NODE_IPS" | head -n1)"', "h")
    for name, value in {"NUM_NODES": "2", "NODE_RANK": "1", "NUM_GPUS_PER_NODE": "8"}.items():
        sky = sky.replace(f"$SKYPILOT_{name}", value)
    pods = read("pytorchjob.yaml")["spec"]["pytorchReplicaSpecs"]
    assert pods["Worker"]["template"] == pods["Master"]["template"]
    (container,) = pods["Worker"]["template"]["spec"]["containers"]
    for words, said, port in (
        (trainer_words(slurm), "SLURM_STEP_NUM_NODES=2 SLURM_NODEID=1 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=h,i MASTER_PORT=21234", 21234),
        (trainer_words(sky), "", 29500),
        (container["command"][2:], "PET_NNODES=2 PET_NODE_RANK=1 PET_NPROC_PER_NODE=auto MASTER_ADDR=h MASTER_PORT=23456 WORLD_SIZE=2 RANK=1", 23456),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            for name in (*map(str.upper, launch.NAMES), "WORLD_SIZE", "RANK"):
                patch.delenv(name, raising=False)
            set_all(patch, said)
            options, settings = finetune_trainer.make_parser().parse(words)
            given = {name: getattr(options, name) for name in launch.NAMES}
            assert Path(options.config).is_file()
            assert set(settings) <= {"output_dir"}
            device = machine_device.find_device()
            asked = launch.LaunchRequest(given)
            assert list(asked.problems(device)) == []
            assert launch.Launch(config(), device, asked.cluster()).command() == nodes(1, port=port)
