#!/usr/bin/env python3
"""Check that killed and resumed runs equal undisturbed ones, by killing real trainings at random moments.

    python benchmarks/resume.py                       # LoRA on the CPU, float32, 3 runs with 3 kills each; minutes
    python benchmarks/resume.py --kind zero2 --runs 2

The command ``finetune_trainer.py --config ... --resume`` runs once undisturbed. Other runs are then killed three times
each (the whole process tree, with SIGKILL) during startup, a step, an evaluation or the saving of a checkpoint, and
continued with the same command. Weights must be equal bit for bit, and losses digit for digit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from swift_toolkit.model.checkpoints import training_state  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"train_type": "lora"},
    "full": {"train_type": "full"},
    "ddp": {"train_type": "lora"},
    "zero2": {"train_type": "lora", "deepspeed": "zero2", "fp16": False, "bf16": False},
}
PROCESSES = {"ddp": 2, "zero2": 2}
MOMENTS = ("start", "save", "evaluation", "step")
STEPS, SAVE, EVALUATE, LOG = 24, 4, 6, 3
KILLS = 3
"""Number of kills per run."""

PATIENCE = 900.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS, default="lora")
    parser.add_argument(
        "--runs", type=int, default=3, help="number of runs, each killed three times (default 3)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="a small model; default: a Llama with two random layers")
    parser.add_argument(
        "--folder", type=Path, help="working directory; default: a temporary one, which is removed"
    )
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="resume-"))
    trial = Trial(folder, options.kind, options.model or tiny_model(folder))
    reference = trial.undisturbed()
    chance = random.Random(options.seed)
    counted, failed = Counter[str](), 0
    for number in range(options.runs):
        moments = [MOMENTS[(KILLS * number + kill) % len(MOMENTS)] for kill in range(KILLS)]
        happened, wrong = trial.killed_and_resumed(number, moments, chance, reference)
        counted.update(happened)
        failed += bool(wrong)
        print(json.dumps({"run": number, "killed in": happened, "wrong": wrong}), flush=True)
    print(json.dumps({"kind": options.kind, "kills": dict(counted), "failed": failed}))
    if options.folder is None:
        shutil.rmtree(folder)
    return 1 if failed else 0


def tiny_model(folder: Path) -> Path:
    """The model of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import make_tiny_llama

    from swift_toolkit.model.builtin import materialise

    path = folder / "tiny-llama"
    if not path.exists():
        make_tiny_llama(materialise("builtin/SmolLM2-135M-Instruct"), path)
    return path


class Trial:
    """The runs of one config.

    Args:
        folder: the working directory.
        kind: the kind of training.
        model: the model to train.
    """

    def __init__(self, folder: Path, kind: str, model: Path) -> None:
        self.folder, self.kind = folder, kind
        data = ROOT / "data/self_cognition.jsonl"
        self.settings = {
            "model": str(model),
            "model_type": "llama",
            "template": "chatml",
            "torch_dtype": "float32",
            "learning_rate": 0.003,
            "dataset": f"{data}#32",
            "val_dataset": f"{data}#8",
            "max_steps": STEPS,
            "save_steps": SAVE,
            "eval_steps": EVALUATE,
            "logging_steps": LOG,
            "save_total_limit": 3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "report_to": "none",
            **KINDS[kind],
        }

    def undisturbed(self) -> tuple[dict[str, bytes], list[Any]]:
        """Weights and losses of the undisturbed run."""
        output = self.folder / f"{self.kind}-whole"
        if not list(output.glob(f"v0-*/checkpoint-{STEPS}")):
            shutil.rmtree(output, ignore_errors=True)
            process = self.start(output)
            if process.wait() != 0:
                sys.exit(errors_of(output))
        (run,) = output.glob("v*-*")
        return weights(run), losses(run)

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        """The command of all runs."""
        config = output.with_suffix(".json")
        config.write_text(json.dumps({**self.settings, "output_dir": str(output)}))
        command = [sys.executable, str(ROOT / "finetune_trainer.py"), "--config", str(config), "--resume"]
        if processes := PROCESSES.get(self.kind):
            command += ["--nproc-per-node", str(processes)]
        with output.with_suffix(".err").open("ab") as errors:
            return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)

    def killed_and_resumed(
        self,
        number: int,
        moments: list[str],
        chance: random.Random,
        reference: tuple[dict[str, bytes], list[Any]],
    ) -> tuple[list[str], str]:
        """The phases in which the kills happened, and how the final run differs; "" if it does not."""
        output = self.folder / f"{self.kind}-{number}"
        happened = []
        for moment in moments:
            said = len(errors_of(output))
            process = self.start(output)
            Watch(output, process, chance, said).wait_for(moment)
            if process.poll() is not None:
                break  # the run finished before the moment
            kill_tree(process)
            happened.append(self.state_at_the_kill(output, said))
        else:
            process = self.start(output)
        if (status := process.wait(PATIENCE)) != 0:
            return happened, f"exit status {status}: {errors_of(output)}"
        runs = list(output.glob("v*-*"))
        wrong = "" if len(runs) == 1 else f"{len(runs)} run directories. "
        if weights(runs[0]) != reference[0]:
            wrong += "other weights. "
        if losses(runs[0]) != reference[1]:
            wrong += "other losses. "
        if (output / "last").resolve() != runs[0].resolve() / f"checkpoint-{STEPS}":
            wrong += "last points elsewhere. "
        if not wrong:
            shutil.rmtree(output)
        return happened, wrong

    def state_at_the_kill(self, output: Path, said: int) -> str:
        """The phase of the kill, judged by the files that the killed processes left."""
        runs = list(output.glob("v*-*"))
        logged = losses(runs[0]) if runs else []
        if not re.search(r"^step \d+/", errors_of(output)[said:], re.MULTILINE):
            return "start"
        if any(
            training_state.training_state_problems(path) for run in runs for path in run.glob("checkpoint-*")
        ):
            return "save"
        if not logged:
            return "step"
        step, kind = logged[-1][:2]
        return "evaluation" if kind == "loss" and step % EVALUATE == 0 else "step"


class Watch:
    """Waits for a certain moment of a run.

    Args:
        output: the output directory of the run.
        process: the starter of the run.
        chance: chooses among the moments of a kind, and the delay after its start.
        said: number of characters that earlier starts of the run have printed.
    """

    def __init__(
        self, output: Path, process: subprocess.Popen[bytes], chance: random.Random, said: int
    ) -> None:
        self.output, self.process, self.chance, self.said = output, process, chance, said
        saved = [int(path.name.partition("-")[2]) for path in output.glob("v*-*/checkpoint-*")]
        self.step = max((step for step in saved if step < STEPS), default=0)

    def wait_for(self, moment: str) -> None:
        """Return in the middle of ``moment``."""
        if moment == "start":
            self.until(lambda: "importing" in self.printed())
            time.sleep(self.chance.uniform(0, 4))
        elif moment == "save":
            step = self.one_of(SAVE)
            self.until(lambda: bool(list(self.output.glob(f"v*-*/checkpoint-{step}"))), every=0.0005)
            time.sleep(self.chance.uniform(0, 0.02))
        else:
            step = self.one_of(EVALUATE if moment == "evaluation" else LOG)
            self.until(lambda: f"step {step}/" in self.printed(), every=0.005)
            time.sleep(self.chance.uniform(0, 0.15 if moment == "evaluation" else 0.6))

    def one_of(self, every: int) -> int:
        """A step soon after the last checkpoint, a multiple of ``every``."""
        first = self.step // every + 1
        return every * self.chance.randint(first, max(first, min(first + 1, STEPS // every - 1)))

    def printed(self) -> str:
        """The output of this start of the run."""
        return errors_of(self.output)[self.said :]

    def until(self, holds: Any, every: float = 0.05) -> None:
        """Wait until ``holds`` is true or the run has ended."""
        deadline = time.monotonic() + PATIENCE
        while not holds() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(every)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to the starter and all its descendants at once."""
    tree = [psutil.Process(process.pid)] if process.poll() is None else []
    tree += [child for one in tree for child in one.children(recursive=True)]
    for one in tree:
        try:
            os.kill(one.pid, signal.SIGSTOP)  # so that no process reacts to the death of another
        except ProcessLookupError:
            continue
    for one in tree:
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def errors_of(output: Path) -> str:
    """The logs of the runs of ``output``."""
    file = output.with_suffix(".err")
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def weights(run: Path) -> dict[str, bytes]:
    """The weight files of the last checkpoint."""
    return {file.name: file.read_bytes() for file in (run / f"checkpoint-{STEPS}").glob("*.safetensors")}


def losses(run: Path) -> list[Any]:
    """Every loss in the log with its step, as text."""
    if not (run / "logging.jsonl").exists():
        return []
    found = []
    for line in (run / "logging.jsonl").read_text().splitlines():
        if not line.endswith("}"):
            continue  # truncated by the kill
        content = json.loads(line)
        for name in ("loss", "eval_loss"):
            if name in content:
                step = int(content["global_step/max_steps"].partition("/")[0])
                found.append((step, name, content[name], content.get("grad_norm")))
    return found


if __name__ == "__main__":
    sys.exit(main())
