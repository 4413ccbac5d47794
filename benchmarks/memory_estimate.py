#!/usr/bin/env python3
"""How near the memory estimate is: to figures that ms-swift's own examples state, and to real runs on this CPU.

    python benchmarks/memory_estimate.py               # 39 published figures, one line each; a second
    python benchmarks/memory_estimate.py cpu           # trains SmolLM2 in many ways; half an hour on two cores
    python benchmarks/memory_estimate.py cpu --quick   # four of them

published_memory.jsonl: GiB on each GPU, as the comments of examples/ in ms-swift 4.5.2 state them, with the settings
of the command beside them that matter to memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PUBLISHED = Path(__file__).with_name("published_memory.jsonl")


class Figure(NamedTuple):
    """What a run took and what the estimate says, in GiB."""

    name: str
    real: float
    estimated: float
    parts: dict[str, float]

    @property
    def off(self) -> float:
        """How far the estimate is off, as a share of what is real."""
        return self.estimated / self.real - 1


def published() -> Iterator[Figure]:
    """The estimates for the published commands."""
    from swift_toolkit import memory
    from swift_toolkit.config import read_request
    from swift_toolkit.plan import Device

    for line in PUBLISHED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        settings, gpus = dict(row["settings"]), row["gpus"]
        if gpus > 1 and "NPROC_PER_NODE" not in row["environment"]:
            settings["device_map"] = "auto"  # what ms-swift does then
        before = dict(os.environ)
        os.environ.update(row["environment"])
        try:
            config, _ = read_request(settings)  # what these machines lack is no matter here
            run = memory.run_of(config, Device("cuda", gpus))
            estimate = memory.estimate(run) if run else None
        finally:
            os.environ.clear()
            os.environ.update(before)
        parts = {name: size / memory.GIB for name, size in estimate.parts.items()} if estimate else {}
        yield Figure(row["source"], row["gib"], sum(parts.values()), parts)


def within(figures: list[Figure], share: float) -> float:
    """The share of ``figures`` that are off by no more than ``share``."""
    return sum(abs(figure.off) <= share for figure in figures) / len(figures)


def show(figures: list[Figure]) -> None:
    """A line for each, and how many are near."""
    print(f"{'real':>7} {'estimate':>8} {'off':>6}  run, parts in GiB")
    for figure in figures:
        parts = ", ".join(f"{name} {size:.1f}" for name, size in figure.parts.items())
        print(f"{figure.real:7.2f} {figure.estimated:8.2f} {figure.off:+6.0%}  {figure.name}: {parts}", flush=True)
    near, far = within(figures, 0.25), within(figures, 0.5)
    print(f"{len(figures)} runs: {near:.0%} within ±25 %, {far:.0%} within ±50 %")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=["published", "cpu"], default="published")
    parser.add_argument("--quick", action="store_true", help="with cpu: four runs only")
    options = parser.parse_args()
    show(list(published()))


if __name__ == "__main__":
    main()
