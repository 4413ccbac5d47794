"""Detects problems of a run in the events that its processes report.

`Watch` is immutable: `after` returns the watch after an event, `at` the watch at a time without an event. Both add to
`Watch.alarms`. Each kind of alarm is raised once per run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from swift_toolkit.console.screen import duration, gib
from swift_toolkit.training.process import events
from swift_toolkit.training.process.events import RunEvent

Kind = Literal["not a number", "learns nothing", "zero gradient", "loss jump", "memory", "stall", "disk"]

STOPS: tuple[Kind, ...] = ("not a number", "learns nothing", "stall")
"""Alarms that end the run, unless the user asked to keep going."""

_WINDOW = 50
"""Window of the running median of the loss, in logs."""

FEWEST_LOGS = 10
"""Number of logs before the loss and the memory are judged."""

JUMP, LEAST_JUMP, JUMPING_LOGS = 3.0, 0.5, 3
"""The loss jumps if it exceeds its running median by this factor and by this amount in this many consecutive logs: a
single batch can be hard, and three times a loss near zero is still near zero."""

ZERO_LOGS, REWARD_LOGS = 5, 20
"""Consecutive logs without a gradient after which a run learns nothing; the second with rewards, which can be rare."""

SCALED_LOGS = 40
"""Consecutive logs without a finite gradient that loss scaling (float16) may need: each one halves the scale."""

FULL_SHARE, GROWING_LOGS = 0.92, 5
"""Memory is about to run out if this share of the device is used and it grew in this many of the last `FEWEST_LOGS`
logs."""

LEAST_STALL, SAVE_STALL = 300.0, 3600.0
"""Seconds without progress that are always allowed: between steps, and while a checkpoint is saved."""

STALL_STEPS = 10.0
"""A run stalls if nothing happens for this many median steps."""

STEPS_BEFORE_STALL = 5
"""Steps before a run can stall: the first ones may compile kernels."""

LEAST_DISK = 512 << 20
"""A disk with less free space than this, in bytes, is nearly full."""


@dataclass(frozen=True)
class Alarm:
    """A problem of a running run.

    Args:
        kind: the kind of problem.
        step: the step at which it was noticed.
        what: what is wrong.
        do: what to do, one or more sentences.
    """

    kind: Kind
    step: int
    what: str
    do: str

    @property
    def stops(self) -> bool:
        """Whether it ends the run, unless the user asked to keep going."""
        return self.kind in STOPS

    def __str__(self) -> str:
        return f"step {self.step}: {self.what}. {self.do}"


@dataclass(frozen=True, kw_only=True)
class WatchLimits:
    """The limits of normal behaviour of a run.

    Args:
        memory: bytes of a device for one process; 0 if unknown.
        scales_loss: training in float16 with loss scaling, which skips steps with an infinite gradient.
        least_stall: seconds without progress that are always allowed between steps.
        save_stall: the same while a checkpoint is saved.
    """

    memory: int = 0
    scales_loss: bool = False
    least_stall: float = LEAST_STALL
    save_stall: float = SAVE_STALL


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The observations of a run so far.

    Args:
        limits: what is normal.
        alarms: the alarms raised, in order.
        step: the last step.
        losses: the last training losses, at most `_WINDOW`.
        jumps: consecutive logs with a loss far above the median.
        zeros: consecutive logs without a gradient.
        infinite: consecutive logs with a gradient that is not finite.
        learned: whether any log had a gradient.
        finite: the step of the last training log with a finite loss and gradient.
        memory: the last memory peaks in bytes, at most `FEWEST_LOGS` + 1.
        times: durations of the last steps in seconds, at most `_WINDOW`.
        stepped: when the last step ended; None before the first step.
        active: time of the last activity; None before the first step.
        saving: a checkpoint is being saved, or will be before the next step.
    """

    limits: WatchLimits = field(default_factory=WatchLimits)
    alarms: tuple[Alarm, ...] = ()
    step: int = 0
    losses: tuple[float, ...] = ()
    jumps: int = 0
    zeros: int = 0
    infinite: int = 0
    learned: bool = False
    finite: int = 0
    memory: tuple[int, ...] = ()
    times: tuple[float, ...] = ()
    stepped: float | None = None
    active: float | None = None
    saving: bool = False

    def after(self, event: RunEvent, now: float) -> Watch:
        """The watch after ``event``.

        Args:
            event: an event that a process reported.
            now: the time in seconds, by a monotonic clock.
        """
        match event:
            case events.Begin(step=step):
                return replace(self, step=step, stepped=now, active=now, times=(), saving=False)
            case events.Step():
                return self._stepped(event, now)
            case events.Log():
                return replace(self, active=now)._logged(event)
            case events.CheckpointSaved() if self.active is not None:
                return replace(self, active=now, stepped=None, saving=False)
            case events.Done():
                return self._ended()
            case events.End():
                return replace(self, active=None)
        return replace(self, active=now) if self.active is not None else self

    def at(self, now: float, free: int | None = None, checkpoint: int = 0) -> Watch:
        """The watch at a time without an event.

        Args:
            now: the time in seconds, by the same clock.
            free: bytes free on the disk of the run; None if unknown.
            checkpoint: bytes of the last checkpoint; 0 if there is none.
        """
        found = [self._stall(now), self._disk(free, checkpoint)]
        return self._with(*(alarm for alarm in found if alarm))

    # --- events -------------------------------------------------------------------------------------------

    def _stepped(self, event: events.Step, now: float) -> Watch:
        took = () if self.stepped is None else (now - self.stepped,)
        times = (*self.times, *took)[-_WINDOW:]
        return replace(self, step=event.step, times=times, stepped=now, active=now, saving=event.saves)

    def _logged(self, event: events.Log) -> Watch:
        logs = {name: value for name, value in event.logs.items() if name != "epoch"}
        watch = replace(self, step=event.step)
        if event.memory:
            watch = replace(watch, memory=(*self.memory, event.memory)[-FEWEST_LOGS - 1 :])
        if "loss" in logs:
            watch = watch._counted(logs)
        return watch._with(*watch._log_alarms(logs))

    def _counted(self, logs: Mapping[str, float]) -> Watch:
        loss, gradient = logs["loss"], logs.get("grad_norm")
        zero, bad = _is_zero(logs), gradient is not None and not math.isfinite(gradient)
        middle = self._median
        jumps = math.isfinite(loss) and middle > 0 and loss > max(JUMP * middle, middle + LEAST_JUMP)
        return replace(
            self,
            losses=(*self.losses, loss)[-_WINDOW:] if math.isfinite(loss) and not jumps else self.losses,
            jumps=self.jumps + 1 if jumps else 0,
            zeros=self.zeros + 1 if zero else 0,
            infinite=self.infinite + 1 if bad else 0,
            learned=self.learned or not (zero or bad),
            finite=self.finite if bad or not math.isfinite(loss) else self.step,
        )

    def _ended(self) -> Watch:
        """The watch of a finished run: it learned nothing if no log had a gradient, however few logs there are."""
        watch = replace(self, active=None)
        return watch._with(self._nothing()) if self.zeros and not self.learned else watch

    # --- alarms -------------------------------------------------------------------------------------------

    def _with(self, *found: Alarm) -> Watch:
        first = {alarm.kind: alarm for alarm in reversed((*self.alarms, *found))}
        return replace(self, alarms=tuple(sorted(first.values(), key=(*self.alarms, *found).index)))

    @property
    def _median(self) -> float:
        return statistics.median(self.losses) if len(self.losses) >= FEWEST_LOGS else 0.0

    def _log_alarms(self, logs: Mapping[str, float]) -> Iterator[Alarm]:
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                yield self._not_a_number(f"{name} is {logs[name]}")
        if self.infinite > (SCALED_LOGS if self.limits.scales_loss else 0):
            yield self._not_a_number(f"grad_norm is {logs['grad_norm']}")
        if self.zeros >= (REWARD_LOGS if "frac_reward_zero_std" in logs else ZERO_LOGS):
            yield self._nothing() if not self.learned else self._no_gradient()
        if self.jumps >= JUMPING_LOGS:
            what = f"the loss is {logs['loss']:.4g}, more than {JUMP:.0f} times its median {self._median:.4g}"
            do = 'Lower "learning_rate" or "max_grad_norm", or raise "warmup_ratio"; check the rows of these steps.'
            yield Alarm("loss jump", self.step, what, do)
        if self._grows():
            what = f"{gib(self.memory[-1])} of {gib(self.limits.memory)} memory are in use, and usage is still growing"
            do = 'If it runs out, halve "per_device_train_batch_size" and double "gradient_accumulation_steps".'
            yield Alarm("memory", self.step, what, do)

    def _not_a_number(self, what: str) -> Alarm:
        do = 'Lower "learning_rate", set "max_grad_norm" to 1, or use bfloat16 or float32 instead of float16.'
        return Alarm("not a number", self.step, what, do)

    def _nothing(self) -> Alarm:
        do = "Check that the rows have answers to learn from, that parameters are trainable, and, with rewards, that "
        do += "the answers of a group get different rewards."
        return Alarm("learns nothing", self.step, "the gradient has been zero since the first step", do)

    def _no_gradient(self) -> Alarm:
        what = f"the gradient was zero in the last {self.zeros} logs"
        do = "The model no longer learns. Stop here, or use data with something left to learn."
        return Alarm("zero gradient", self.step, what, do)

    def _grows(self) -> bool:
        peaks, limit = self.memory, self.limits.memory
        if not limit or len(peaks) <= FEWEST_LOGS or peaks[-1] < FULL_SHARE * limit:
            return False
        return sum(after > before for before, after in pairwise(peaks)) >= GROWING_LOGS

    def _stall(self, now: float) -> Alarm | None:
        if self.active is None or len(self.times) < STEPS_BEFORE_STALL:
            return None
        middle, silence = statistics.median(self.times), now - self.active
        least = self.limits.save_stall if self.saving else self.limits.least_stall
        if silence <= max(least, STALL_STEPS * middle):
            return None
        what = f"no progress for {duration(silence)}; a step takes {duration(middle)}"
        do = "The Python stacks of every rank are in logs/stacks-rank*.txt of the run."
        return Alarm("stall", self.step, what, do)

    def _disk(self, free: int | None, checkpoint: int) -> Alarm | None:
        if free is None or free >= max(LEAST_DISK, checkpoint + checkpoint // 4):
            return None
        needed = f"; a checkpoint takes {gib(checkpoint)}" if checkpoint else ""
        do = 'Free some space, or set "save_total_limit".'
        return Alarm("disk", self.step, f"the disk has {gib(free)} free{needed}", do)


def _is_zero(logs: Mapping[str, float]) -> bool:
    """Whether a training log shows that nothing was learned: no gradient (or no loss, if the gradient is not logged)
    and, with rewards, no group of answers with different rewards."""
    if logs.get("frac_reward_zero_std") == 1:
        return True
    gradient = logs.get("grad_norm")
    return logs["loss"] == 0 if gradient is None else gradient == 0
