#!/usr/bin/env python3
"""Speed of the trainer, as ratios to raw ms-swift in one run of this script.

    python benchmarks/training.py               # everything; about 20 minutes on two cores
    python benchmarks/training.py checks        # help, a misspelled key, dry runs (also of a 7B model); 1 minute
    python benchmarks/training.py training      # whole training processes
    python benchmarks/training.py mixed         # steps on rows of mixed length; about 10 minutes
    python benchmarks/training.py mixed --only ours --runs 1 --times t.json   # one side per call; the last prints all
    python benchmarks/training.py mixed --rows 4  # micro-batches of 4 rows, instead of those that are chosen
    python benchmarks/training.py equal         # the same on rows of equal length
    python benchmarks/training.py start         # imports of the three kinds of workers; a few minutes
    python benchmarks/training.py known         # one-step trainings on 100,000 new rows, the same cached, and 16 rows
    python benchmarks/training.py shares        # padding and waiting, simulated on 1 and 8 devices; seconds

Both sides run alternately, so that changes in the machine's speed affect both. The figures are medians of wall-clock
time and, for whole trainings, also of processor time, which depends less on other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift_toolkit.training.batches.batch import Batch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.model_7b import write_model  # noqa: E402

TRAINER = [sys.executable, str(ROOT / "finetune_trainer.py")]
RAW = [str(Path(sys.executable).with_name("swift")), "sft"]
SIDES = ("raw", "raw-at-ours", "ours")
"""Raw ms-swift with its own 1 × 16, raw with micro-batches of our size, and ours."""

PARTS = ("checks", "training", "mixed", "equal", "start", "known", "shares")
CONFIG = str(ROOT / "configs/quickstart.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: all")
    parser.add_argument("--only", choices=SIDES, help="with mixed and equal: one side, with --times")
    parser.add_argument(
        "--times", type=Path, help="with mixed and equal: a file that collects the times of all sides"
    )
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each side (default 3)")
    parser.add_argument("--rows", type=int, help="with mixed and equal: rows per micro-batch, 1 to 16")
    options = parser.parse_args()
    for part in [options.part] if options.part else PARTS:
        if part in ("mixed", "equal"):
            sides = [options.only] if options.only else list(SIDES)
            steps(part, options.runs, sides, options.times, options.rows)
        else:
            SIMPLE[part](options.runs)


def seconds(command: list[str], status: int) -> float:
    """Wall-clock time of ``command``, which must end with ``status``."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode != status:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}, not {status}:\n{done.stderr[-2000:]}")
    return took


def cpu_seconds() -> float:
    """Processor time of all processes that this one has started and waited for, including their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def checks(runs: int) -> None:
    """Startup times before anything is trained, measured in turn."""
    from swift_toolkit.model import builtin

    raw_runs, runs = runs, max(runs, 9)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "Qwen2.5-7B-Instruct"
        write_model(builtin.materialise("builtin/SmolLM2-135M-Instruct"), model)
        timed = {
            "python -c pass": ([sys.executable, "-c", "pass"], 0),
            "--help": ([*TRAINER, "--help"], 0),
            "a misspelled key": ([*TRAINER, "--config", CONFIG, "--lora_rnak", "8"], 2),
            "a correct --dry-run": ([*TRAINER, "--config", CONFIG, "--dry-run"], 0),
            "--dry-run with a local 7B model": (
                [*TRAINER, "--model", str(model), "--dataset", "data/self_cognition.jsonl", "--dry-run"],
                0,
            ),
        }
        taken: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(1 + runs):  # the first round fills the caches
            for name, (command, status) in timed.items():
                taken[name].append(seconds(command, status))
    for name, times in taken.items():
        report(name, times[1:])
    misspelled = [*RAW, "--model", "none/none", "--lora_rnak", "8"]
    report("raw swift sft, a misspelled key", [seconds(misspelled, 1) for _ in range(raw_runs)])


def training(runs: int) -> None:
    """Times of whole processes, from the command to its exit."""
    from swift_toolkit.model import builtin

    model = str(builtin.materialise("builtin/SmolLM2-135M-Instruct"))
    settings = json.loads(Path(CONFIG).read_text())
    raw = {**settings, "model": model, "model_type": "llama", "template": "chatml"}
    raw["tuner_type"] = raw.pop("train_type")
    automatic = {"use_cpu": True, "check_model": False, "gradient_checkpointing": False}
    with tempfile.TemporaryDirectory() as folder:
        pair("identical settings", settings, {**raw, **automatic}, Path(folder) / "same", runs)
        pair("automatic settings against raw defaults", settings, raw, Path(folder) / "automatic", runs)


def pair(name: str, ours: dict[str, Any], raw: dict[str, Any], folder: Path, runs: int) -> None:
    """Time both sides alternately, and compare their logged losses."""
    walls: dict[str, list[float]] = {"ours": [], "raw": []}
    processors: dict[str, list[float]] = {"ours": [], "raw": []}
    found: dict[str, list[Any]] = {}
    for number in range(runs):
        sides: list[tuple[str, Callable[[Path], list[str]]]] = [
            ("ours", lambda output: [*TRAINER, *flags({**ours, "output_dir": str(output)})]),
            ("raw", lambda output: [*RAW, *flags({**raw, "output_dir": str(output)})]),
        ]
        for side, command in sides if number % 2 == 0 else reversed(sides):
            output = folder / f"{side}-{number}"
            before = cpu_seconds()
            walls[side].append(seconds(command(output), 0))
            processors[side].append(cpu_seconds() - before)
            found[side] = losses(output)
    print(f"\n{name}")
    for what, times in (("wall clock", walls), ("processor time", processors)):
        for side in times:
            report(f"  {what}, {side}", times[side])
        ratios = [ours / raw for ours, raw in zip(times["ours"], times["raw"], strict=True)]
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"  {what}, ratio ours/raw: median {statistics.median(ratios):.3f} of {each}")
    pairs = list(zip(found["ours"], found["raw"], strict=True))
    furthest = max(abs(mine - other) for mine, other in pairs)
    print(f"  logged losses of {len(pairs)} steps: at most {furthest:.0e} from raw's", flush=True)


# --- rows of mixed length -----------------------------------------------------------------------------------


def steps(part: str, runs: int, sides: list[str], times: Path | None, rows: int | None) -> None:
    """Times of steps on 48 chats, 16 per step: raw with its default, raw with our micro-batch, and ours.

    Args:
        part: "mixed" or "equal" lengths.
        runs: number of runs per side.
        sides: the sides to run now.
        times: a file with earlier measurements, to which the new ones are added.
        rows: rows per micro-batch of ours; None for those that are chosen.
    """
    from finetune_trainer import FineTuner

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "chats.jsonl"
        sizes = lengths("chats", 48) if part == "mixed" else [168] * 48
        data.write_text("".join(map(chat, sizes)), encoding="utf-8")
        ours = {"model": "builtin/SmolLM2-135M-Instruct", "train_type": "lora", **common(data)}
        if rows:
            ours |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 16 // rows}
        batch = FineTuner(ours).plan.batch
        found = json.loads(times.read_text()) if times and times.exists() else {}
        for number in range(runs):
            for side in sides:
                output = Path(folder) / f"{side}-{number}"
                command = [*TRAINER, *flags(ours)] if side == "ours" else raw_steps(side, data, batch)
                seconds([*command, "--output_dir", str(output)], 0)
                found.setdefault(side, []).append([step_seconds(output), losses(output)])
    if times:
        times.write_text(json.dumps(found))
    print(
        f"\n48 chats of {part} length in 3 steps of 16, ours {batch.rows} × {batch.accumulation}, the steps alone"
    )
    show_steps(found)


def common(data: Path) -> dict[str, Any]:
    """The settings of all sides."""
    settings = {"dataset": str(data), "torch_dtype": "float32", "lora_dropout": 0, "max_steps": 3}
    return settings | {"logging_steps": 1, "save_strategy": "no", "seed": 1}


def raw_steps(side: str, data: Path, batch: Batch) -> list[str]:
    """The command of raw ms-swift; for `raw-at-ours` with our micro-batch."""
    from swift_toolkit.model import builtin

    model = str(builtin.materialise("builtin/SmolLM2-135M-Instruct"))
    raw = {"model": model, "model_type": "llama", "template": "chatml", "tuner_type": "lora", **common(data)}
    raw |= {"use_cpu": True, "check_model": False, "gradient_checkpointing": False}
    if side == "raw-at-ours":
        raw |= {"per_device_train_batch_size": batch.rows, "gradient_accumulation_steps": batch.accumulation}
    return [*RAW, *flags(raw)]


def show_steps(found: dict[str, list[Any]]) -> None:
    """Print the times of every side, and the ratios of ours to the others."""
    for side, each in found.items():
        report(f"  {side}", [took for took, _ in each])
        if "raw" in found:
            pairs = zip(each[-1][1], found["raw"][-1][1], strict=True)
            print(f"    losses at most {max(abs(one - other) for one, other in pairs):.0e} from raw's")
    if "ours" in found:
        mine = statistics.median(took for took, _ in found["ours"])
        for side in found.keys() - {"ours"}:
            ratio = mine / statistics.median(took for took, _ in found[side])
            print(f"  ours / {side}: {ratio:.3f}", flush=True)


def chat(tokens: int) -> str:
    """A row with about the given number of tokens in SmolLM2's template."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "no", "dog"]
    text = " ".join(words[number % len(words)] for number in range(max(tokens - 36, 2)))
    turns = [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": text}]
    return json.dumps({"messages": turns}) + "\n"


def step_seconds(output: Path) -> float:
    """The duration of the steps of a run, as measured by transformers."""
    (log,) = output.glob("v0-*/logging.jsonl")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return next(float(entry["train_runtime"]) for entry in reversed(entries) if "train_runtime" in entry)


def lengths(kind: str, count: int) -> list[int]:
    """Row lengths in tokens: of chats (mean 168, maximum 928), of short instructions, of documents.

    They are the quantiles of a log-normal distribution in random order, so that a few rows vary as many do.
    """
    middle, spread, longest = {
        "chats": (4.72, 0.9, 928), "instructions": (4.6, 0.5, 512), "documents": (6.5, 1.1, 8192),
    }[kind]  # fmt: skip
    normal = statistics.NormalDist(middle, spread)
    quantiles = [math.exp(normal.inv_cdf((row + 0.5) / count)) for row in range(count)]
    return random.Random(7).sample([min(longest, max(20, round(size))) for size in quantiles], count)


def shares(runs: int) -> None:
    """Computed tokens and work of the slowest device, with rows distributed by length and in ms-swift's order."""
    from swift_toolkit.training.batches import balance

    print(
        "\nrows of each step distributed by length, over 64 steps: computed tokens relative to the data, time"
    )
    for kind in ("chats", "instructions", "documents"):
        for ranks, batch, accumulation in ((1, 4, 4), (1, 8, 2), (8, 4, 4), (8, 4, 1), (8, 1, 4)):
            size = ranks * batch * accumulation
            rows = lengths(kind, 64 * size)
            totals = [0, 0, 0, 0]
            for at in range(0, len(rows), size):
                step = rows[at : at + size]
                own = balance.own_order(size, ranks, batch)
                shared = balance.share_out(step, ranks, batch, hidden=4096)
                for number, one in enumerate((own, shared)):
                    totals[number] += balance.padded_tokens(one, step)
                    totals[2 + number] += max(balance.padded_tokens([share], step) for share in one)
            before, after, slow, fast = totals
            print(
                f"  {kind:12} {ranks} device(s), {batch} × {accumulation}: {before / sum(rows):.0%} → "
                f"{after / sum(rows):.0%}, a step {slow / fast:.2f} times shorter",
                flush=True,
            )


# --- startup ------------------------------------------------------------------------------------------------

WORKERS = {
    "training": ('msswift.train_function("sft", [])', "sft_main"),
    "inference": ("msswift.inference_api()", "infer_main"),
    "serving": ("msswift.serving_api()", "deploy_main"),
}


def start(runs: int) -> None:
    """Import times of the workers, compared with importing ms-swift's own function for the same task."""
    print("\nimport of ms-swift, whole process")
    for name, (ours, raw) in WORKERS.items():
        scripts = {
            "raw": f"try:\n    from swift.pipelines import {raw}\nexcept ImportError:\n    from swift.llm import {raw}",
            "ours": f"from swift_toolkit.machine import msswift\n{ours}",
        }
        walls: dict[str, list[float]] = {side: [] for side in scripts}
        processors: dict[str, list[float]] = {side: [] for side in scripts}
        for _ in range(runs):
            for side, script in scripts.items():
                before = cpu_seconds()
                walls[side].append(seconds([sys.executable, "-c", script], 0))
                processors[side].append(cpu_seconds() - before)
        for what, times in (("wall clock", walls), ("processor time", processors)):
            ratio = statistics.median(times["ours"]) / statistics.median(times["raw"])
            report(f"  {name}, {what}, raw", times["raw"])
            report(f"  {name}, {what}, ours ({ratio:.2f} of it)", times["ours"])


def known(runs: int) -> None:
    """Time whole trainings of one step on 100,000 new rows, on the same rows once they are cached, and on 16 rows."""
    took: dict[str, list[float]] = {"16 rows": [], "100,000 new rows": [], "100,000 known rows": []}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"XDG_CACHE_HOME": folder, "MODELSCOPE_CACHE": f"{folder}/modelscope"}
            for name, count in (
                ("", 16),
                ("16 rows", 16),
                ("100,000 new rows", 100_000),
                ("100,000 known rows", 100_000),
            ):
                data = Path(folder) / f"{count}.jsonl"
                if not data.exists():
                    data.write_text("".join(chat(size) for size in lengths("instructions", count)))
                settings = {"model": "builtin/SmolLM2-135M-Instruct", "train_type": "lora", **common(data)}
                settings |= {"max_steps": 1, "output_dir": f"{folder}/output"}
                began = time.perf_counter()
                subprocess.run([*TRAINER, *flags(settings)], env=environment, capture_output=True, check=True)
                if name:  # the first unpacks the model
                    took[name].append(time.perf_counter() - began)
    print("\na whole training of one step")
    for name, times in took.items():
        report(f"  {name}", times)
    ratio = statistics.median(took["100,000 known rows"]) / statistics.median(took["16 rows"])
    print(f"  known rows against 16: {ratio:.2f}", flush=True)


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def losses(output: Path) -> list[Any]:
    (log,) = output.glob("v0-*/logging.jsonl")
    return [entry["loss"] for entry in map(json.loads, log.read_text().splitlines()) if "loss" in entry]


def report(name: str, times: list[float]) -> None:
    print(
        f"{name}: median {statistics.median(times):.2f} s, min {min(times):.2f}, max {max(times):.2f}",
        flush=True,
    )


SIMPLE: dict[str, Callable[[int], None]] = {
    "checks": checks,
    "training": training,
    "start": start,
    "known": known,
    "shares": shares,
}

if __name__ == "__main__":
    main()
