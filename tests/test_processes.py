"""The tests' own plugin: no test leaves a process, and Ctrl-C works however pytest was started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import processes

ROOT = Path(__file__).resolve().parent.parent
SLEEPS = """
import time

print("ready", flush=True)
time.sleep(600)
"""
LEAVES = """
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
SLEEPER = [sys.executable, str(HERE / "sleeps.py")]


def start(name):
    process = subprocess.Popen(SLEEPER, stdout=subprocess.PIPE)
    process.stdout.readline()
    (HERE / name).write_text(str(process.pid))
    return process


@pytest.fixture(scope="module")
def server():
    return start("server")


def test_fails_in_the_middle(server):
    start("child")
    raise RuntimeError


def test_leaves_an_orphan_in_a_group_of_its_own(server):
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=-3, start_new_session=True).pid, flush=True)"
    starter = subprocess.Popen([sys.executable, "-c", code, *SLEEPER], stdout=subprocess.PIPE)
    (HERE / "orphan").write_text(starter.stdout.readline().decode())
    starter.wait()


def test_those_of_the_failed_test_are_gone_and_the_modules_are_not(server):
    assert not psutil.pid_exists(int((HERE / "child").read_text()))
    assert psutil.pid_exists(int((HERE / "orphan").read_text()))
    assert server.poll() is None
"""
INTERRUPTS = """
import signal
import subprocess
import sys
from pathlib import Path


def test_a_child_is_interrupted():
    command = [sys.executable, str(Path(__file__).with_name("sleeps.py"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT
"""
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "tests.processes", "-p", "no:cacheprovider"]


def environment() -> dict[str, str]:
    """That of a session of its own, which is no worker of this one."""
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", processes.MARK))
    }
    return {**ours, "PYTHONPATH": str(ROOT)}


def inner(folder: Path, text: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run a test file of this text."""
    (folder / "sleeps.py").write_text(SLEEPS)
    (folder / "test_inner.py").write_text(text)
    command = [*launcher, *PYTEST, "--rootdir", str(folder), "test_inner.py"]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def is_running(file: Path) -> bool:
    return psutil.pid_exists(int(file.read_text()))


def test_no_process_is_left_by_a_test_that_fails(tmp_path: Path) -> None:
    done = inner(tmp_path, LEAVES)
    assert "1 failed, 2 passed, 2 warnings" in done.stdout, done.stdout
    assert done.stdout.count("left running, now ended") == 2
    for name in ("child", "orphan", "server"):
        assert not is_running(tmp_path / name), name


def test_no_process_is_left_by_a_session_that_is_terminated(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    (tmp_path / "test_inner.py").write_text(LEAVES.replace("raise RuntimeError", "sys.stdin.read()"))
    command = [*PYTEST, "-s", "test_inner.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as session:
        while not (tmp_path / "child").exists():
            time.sleep(0.05)
        session.send_signal(signal.SIGTERM)
        session.wait(60)
    assert not is_running(tmp_path / "child") and not is_running(tmp_path / "server")


@pytest.mark.parametrize("launcher", ['trap "" INT; exec "$@"', '"$@" & wait $!'], ids=["trap", "background"])
def test_ctrl_c_reaches_children_however_pytest_was_started(tmp_path: Path, launcher: str) -> None:
    done = inner(tmp_path, INTERRUPTS, "bash", "-c", launcher, "bash")
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_training_that_a_failed_test_started_is_ended(tmp_path: Path, tiny_model: Path) -> None:
    text = f"""
import subprocess, sys, time
from pathlib import Path

def test_fails_while_training():
    command = [sys.executable, {str(ROOT / "finetune_trainer.py")!r}, "--model", {str(tiny_model)!r},
        "--model_type", "llama", "--template", "chatml", "--train_type", "lora",
        "--dataset", {str(ROOT / "data/self_cognition.jsonl")!r}, "--num_train_epochs", "500",
        "--logging_steps", "1", "--report_to", "none", "--output_dir", {str(tmp_path / "out")!r}]
    subprocess.Popen(command, start_new_session=True)
    while not list(Path({str(tmp_path)!r}).glob("out/*/logging.jsonl")):
        time.sleep(0.1)
    raise RuntimeError
"""
    done = inner(tmp_path, text)
    assert "1 failed" in done.stdout and "left running, now ended" in done.stdout
    training = [
        one for one in psutil.process_iter(["cmdline"]) if str(tmp_path / "out") in str(one.info["cmdline"])
    ]
    assert training == []
