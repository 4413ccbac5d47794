"""The logged numbers of a run by step, read from its files."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from swift_toolkit.runs.record import MEASURED, RecordObject

LOG = "logging.jsonl"
"""ms-swift's log: one line of JSON per log of the trainer."""

_STEPS = "global_step/max_steps"


@dataclass(frozen=True)
class History:
    """The numbers that a run logged.

    Args:
        step: the last step.
        max_steps: the planned number of steps; 0 if it was not logged.
        values: for each name, step -> value.
        speed: seconds per step, by step.
        memory: peak memory in GiB, by step.
    """

    step: int = 0
    max_steps: int = 0
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    speed: Mapping[int, float] = field(default_factory=dict)
    memory: Mapping[int, float] = field(default_factory=dict)

    def of(self, name: str) -> Mapping[int, float]:
        """The values of ``name`` by step; empty if it was not logged."""
        return self.values.get(name, {})


@dataclass(frozen=True)
class Progress:
    """How far a run came.

    Args:
        step: the last step.
        max_steps: the planned number of steps; 0 if it was not logged.
        best_loss: the lowest evaluation loss or, without evaluation, training loss; None if there is none.
    """

    step: int = 0
    max_steps: int = 0
    best_loss: float | None = None


def read_progress(directory: Path) -> Progress:
    """The progress of the run in ``directory``, by what ms-swift logged."""
    logged = _read_log(directory, only=("loss", "eval_loss"))
    losses = [filter(math.isfinite, logged.of(name).values()) for name in ("eval_loss", "loss")]
    least = (min(values, default=None) for values in losses)
    return Progress(logged.step, logged.max_steps, next((one for one in least if one is not None), None))


def _read_log(directory: Path, only: Collection[str] = ()) -> History:
    """What ms-swift logged, without speed and memory; with ``only``, these values alone."""
    values: dict[str, dict[int, float]] = {}
    step = max_steps = 0
    for step, max_steps, line in _lines(directory / LOG):  # noqa: B007 - those of the last line are kept
        for name, value in ((one, line.get(one)) for one in only or line):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                values.setdefault(name, {})[step] = float(value)
    return History(step, max_steps, values)


def read_history(directory: Path) -> History:
    """The history of the run in ``directory``; empty if it logged nothing."""
    logged = _read_log(directory)
    times: dict[int, float] = {}
    memory: dict[int, float] = {}
    for at, _, line in _lines(directory / MEASURED):
        if isinstance(line.get("time"), (int, float)):
            times[at] = float(line["time"])
        if isinstance(line.get("memory"), int) and line["memory"]:
            memory[at] = line["memory"] / (1 << 30)
    speed = _speed(times) or logged.of("train_speed(s/it)")
    return replace(logged, speed=speed, memory=memory or logged.of("memory(GiB)"))


def _lines(file: Path) -> Iterator[tuple[int, int, RecordObject]]:
    """Step, planned steps and content of each line; lines truncated by a kill are skipped."""
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for text in lines:
            try:
                line = _object(text)
                step, max_steps = (int(part) for part in line[_STEPS].split("/"))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            yield step, max_steps, line


def _object(text: bytes) -> RecordObject:
    """The JSON object on a line; msgspec is fast but, unlike ms-swift's log, knows no NaN."""
    import msgspec

    try:
        return msgspec.json.decode(text, type=dict)
    except msgspec.DecodeError:
        return json.loads(text)  # type: ignore[no-any-return]


def _speed(times: Mapping[int, float]) -> dict[int, float]:
    """Seconds per step between logs; a pause, for example before the run was resumed, leaves a gap."""
    steps = sorted(times)
    paces = {
        step: (times[step] - times[before]) / (step - before)
        for before, step in pairwise(steps)
        if times[step] > times[before]
    }
    middle = sorted(paces.values())[len(paces) // 2] if paces else 0.0
    return {step: pace for step, pace in paces.items() if pace < 20 * middle}
