"""One training run, from the start of its processes to its result.

The processes are those of `training.worker`. What they report is folded into a `RunState`, which is shown in one live
line, kept in ``result.json``, and decides how the run ends.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from swift_toolkit.console import screen
from swift_toolkit.dataset import copies
from swift_toolkit.machine import packages
from swift_toolkit.machine.process import Child
from swift_toolkit.problems import Problem, RunError
from swift_toolkit.runs import lock
from swift_toolkit.runs.record import SAME_VERSIONS, Recorder, TrainingResult
from swift_toolkit.training import preflight
from swift_toolkit.training.checked import CheckedRequest
from swift_toolkit.training.ending import Ending
from swift_toolkit.training.monitor.data_check import DataCheck
from swift_toolkit.training.monitor.progress import NodeLine, TrainingLine
from swift_toolkit.training.plan import TrainingPlan
from swift_toolkit.training.process import events, worker
from swift_toolkit.training.process.events import RunEvent, RunState, fold
from swift_toolkit.training.resume import Resumption

FAILED_FOR = 15.0
"""Seconds after which a run is ended whose process has failed and which has not ended by itself."""

ONE_PRESS = 0.5
"""Seconds within which several interrupts are one: a wrapper such as timeout(1) sends each signal twice."""


@dataclass(frozen=True)
class Job:
    """A checked request that is about to run.

    Args:
        checked: as it was asked for.
        plan: with the run's directory among its settings.
        directory: where the run writes; of a process that takes part elsewhere, a temporary one.
        left_out: the bad rows that are skipped, as `dataset.copies` reports them.
        verbose: also show everything that ms-swift prints.
    """

    checked: CheckedRequest
    plan: TrainingPlan
    directory: Path
    left_out: copies.PreparedDict
    verbose: bool = False


@contextlib.contextmanager
def directory(checked: CheckedRequest) -> Iterator[Path]:
    """Where this process writes while the run lasts.

    Raises:
        RunError: it cannot write there.
        RequestError: another run writes there.
    """
    with contextlib.ExitStack() as stack:
        try:
            if not checked.plan.cluster.is_first:
                yield Path(tempfile.mkdtemp(prefix="swift-toolkit-"))
                return
            found = checked.directory or checked.output.claim()
            stack.enter_context(lock.held(found, screen.say))
            checked.begin(found)
            yield found
        except OSError as error:
            where = error.filename or checked.output.root
            raise RunError(f"{where} cannot be written: {error.strerror or error}.") from None


def prepare_run(checked: CheckedRequest, plan: TrainingPlan, directory: Path, verbose: bool = False) -> Job:
    """Let the run write to ``directory``, with copies of data that ms-swift cannot read as they are.

    Raises:
        RequestError: there are more bad rows than may be skipped.
    """
    plan.unpack_models()
    plan.write_to(directory)
    given = copies.prepare_data(plan.data, directory / "data", checked.request.skip_bad_rows)
    if given.rejected is not None:
        count = given.left_out.total()
        rows = "1 bad row" if count == 1 else f"{count:,} bad rows"
        screen.say(f"Skipping {rows}, listed with reasons in {given.rejected}")
    plan.config.replace("dataset", given.train)
    plan.config.replace("val_dataset", given.val)
    return Job(checked, plan, directory, given.as_dict(), verbose)


def train(job: Job) -> TrainingResult:
    """Carry out a run that this process shows and writes down.

    Raises:
        RequestError: the data was refused before the first step.
        RunError: the run failed.
        Interrupted: it was interrupted.
    """
    checked, plan = job.checked, job.plan
    expected = functools.partial(preflight.expected_rows, plan.config)
    recorder = Recorder(job.directory, checked.output.root)
    lost = checked.request.max_lost_rows
    with DataCheck(plan.data, checked.verify_arguments, expected, lost) as check:
        ending = follow(job, TrainingLine(row_tokens=plan.row_tokens), check, recorder)
        plan, rows = replace(plan, data=check.report), check.as_dict()
    result = ending.result(plan)
    reason = ending.reason(plan) if result.status == "failed" else ""
    try:
        recorder.write(result, reason, _details(job, plan, ending.state, rows))
    except OSError as error:
        _say_unwritten(recorder, error, ending, result)
    ending.raise_if_not_done(result, reason)
    return result


def _say_unwritten(recorder: Recorder, error: OSError, ending: Ending, result: TrainingResult) -> None:
    """Say that result.json cannot be written.

    Raises:
        RunError: the run did not fail otherwise.
    """
    what = f"{recorder.directory / 'result.json'} cannot be written: {error.strerror}."
    if result.status != "done":
        screen.say(what)
        return
    lines = ending.checkpoint_lines("Make the directory writable.")
    raise RunError("\n".join([f"All {result.steps} steps were taken, but {what}", *lines])) from None


def take_part(job: Job) -> TrainingResult:
    """Carry out this process's part of a run that another process shows and writes down.

    Raises:
        RequestError: the processes were asked for different runs.
        RunError: the run failed.
        Interrupted: it was interrupted.
    """
    ending = follow(job, NodeLine())
    if ending.state.directory is not None:
        directory = Path(ending.state.directory)
        ending = replace(ending, directory=directory, log=_move_log(job, directory / "logs"))
    result = ending.result(job.plan)
    ending.raise_if_not_done(result, ending.reason(job.plan))
    return result


def _move_log(job: Job, logs: Path) -> Path:
    """Put the log of this process's start beside those of the ranks, and remove the temporary directory."""
    before, log = job.directory / "train.log", logs / f"start-{job.plan.cluster.label}.log"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        shutil.move(before, log)
    except OSError as error:
        screen.say(f"{log} cannot be written: {error.strerror}. The log is in {before}.")
        return before
    shutil.rmtree(job.directory, ignore_errors=True)
    return log


def _details(job: Job, plan: TrainingPlan, state: RunState, rows: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json holds beyond the result."""
    done, settings, estimate = state.done or events.Done(), plan.config.settings, plan.verdict.estimate
    return {
        "config": {name: setting.value for name, setting in settings.items()},
        "sources": {name: str(setting.source) for name, setting in settings.items()},
        "data": {**plan.data.as_dict(), "given": job.left_out},
        "model_parameters": done.model_parameter_info,
        "rows": rows,
        "tokens_per_row": {"train": done.train_dataset, "val": done.val_dataset},
        "memory": {"peak": state.memory or None, "estimate": estimate and estimate.total},
    }


# --- following the processes --------------------------------------------------------------------------------


def follow(
    job: Job, line: TrainingLine, check: DataCheck | None = None, recorder: Recorder | None = None
) -> Ending:
    """Start the processes of a run and follow them to their end.

    Args:
        job: what is carried out.
        line: where its progress is shown.
        check: holds its first step back, None if nothing does.
        recorder: links its checkpoints, None if that is not for this process to do.
    """
    log, started, plan = job.directory / "train.log", time.time(), job.plan
    content = msgspec.json.encode(_request(job, check), enc_hook=str).decode()
    environment = {worker.REQUEST_VARIABLE: content, **plan.environment}
    echo = sys.stderr if job.verbose else None
    with Child(plan.launch.command(), log, environment, echo) as child, line:
        if (cluster := plan.cluster).nodes > 1:
            line.note(f"waiting for the other nodes at {cluster.address}:{cluster.port}")
        grace = job.checked.request.stop_grace
        follower = _Follower(child, line, check, recorder, _reached(job.checked.resumption), grace)
        follower.run()
        status = child.process.wait()
        if check is not None and (sentence := check.last_sentence()):
            line.say(f"{sentence}.")
    return Ending(
        state=follower.state,
        exit_status=status,
        directory=job.directory,
        log=log,
        started=started,
        interrupt=follower.interrupt,
        refused=follower.refused,
    )


def _request(job: Job, check: DataCheck | None) -> events.RunOrder:
    """What the training process is asked to do."""
    config = job.plan.config
    return events.RunOrder(
        command=config.command,
        arguments={**config.words(), **_balance(job.plan)},
        directory=str(job.directory),
        peers=_peers(job) if job.plan.cluster.has_peers else None,
        data_check=events.DataCheckFiles(path=str(check.path), lost=str(check.lost)) if check else None,
    )


def _balance(plan: TrainingPlan) -> dict[str, list[str]]:
    """How the rows of a step are shared out, among the arguments so that it is the same on all nodes: how large a
    micro-batch may be, in rows as long as the longest."""
    return {"balance": [f"{plan.largest_batch:.3f}"]} if plan.balances else {}


def _peers(job: Job) -> events.PeersOrder:
    """What every process that others started must be asked alike."""
    plan = job.plan
    settings = plan.config.settings.items()
    return events.PeersOrder(
        own_starter=plan.cluster.started_as is not None,
        automatic=[*(name for name, one in settings if one.source.kind == "automatic"), *_balance(plan)],
        node=f"node {plan.cluster.node} ({socket.gethostname()})",
        given=job.checked.given,
        data=preflight.fingerprints(plan.data),
        versions={name: version for name, version in packages.versions().items() if name in SAME_VERSIONS},
    )


def _reached(resumption: Resumption | None) -> RunState:
    """What the training that goes on had reached; of a new one nothing."""
    state, point = RunState(), resumption.point if resumption else None
    if point is None or point.state is None or point.directory is None:
        return state
    for logs in point.state.logs:
        numbers = {key: value for key, value in logs.items() if key != "step"}
        state = fold(state, events.Log(step=point.step, memory=0, logs=numbers))
    best = str(point.directory / point.state.best) if point.state.best else None
    return fold(state, events.CheckpointSaved(step=point.step, checkpoint=str(point.checkpoint), best=best))


class _Follower:
    """Takes in what the processes of a run report, and ends them when they must not go on.

    Args:
        child: the process that was started.
        line: where the progress is shown.
        check: of the data, None if the first step does not wait for it.
        recorder: links the checkpoints, None if that is not for this process to do.
        state: what an earlier part of the training reached.
        grace: seconds that a run which was asked to stop may take to save; None waits as long as it takes.
    """

    def __init__(
        self,
        child: Child,
        line: TrainingLine,
        check: DataCheck | None,
        recorder: Recorder | None,
        state: RunState,
        grace: float | None,
    ) -> None:
        self.child, self.line, self.check, self.recorder = child, line, check, recorder
        self.state, self.grace = state, grace
        self.interrupt: KeyboardInterrupt | None = None
        self.refused: list[Problem] = []
        self._failed = 0.0  # when the first failure was reported
        self._pressed = -ONE_PRESS

    def run(self) -> None:
        """Follow until the processes have ended, or were ended."""
        while True:
            try:
                for event in self._events():
                    if event is not None:
                        self._take(event)
                    if self._must_end():
                        self.child.end(patience=0)
                        return
                return
            except KeyboardInterrupt as interrupt:
                if self._ends_now(interrupt):
                    self.child.end(patience=0)
                    return

    def _events(self) -> Iterator[RunEvent | None]:
        for report in self.child.events():
            yield None if report is None else events.decode(report)

    def _take(self, event: RunEvent) -> None:
        before, self.state = self.state, fold(self.state, event)
        if self.state.failures and not before.failures:
            self._failed = time.monotonic()
        if self.recorder is not None and isinstance(event, (events.CheckpointSaved, events.Done)):
            self.recorder.link(self.state.last, self.state.best)
        self.line.show(event)
        if self.check is not None and (sentence := self.check.take(event)):
            self.line.say(f"{sentence}.")

    def _must_end(self) -> bool:
        """Whether the data is bad, a failed run does not end by itself, or it takes too long to stop."""
        if self.check is not None and not self.refused:
            self.refused = self.check.problems()
        now = time.monotonic()
        hangs = self.state.failures and now > self._failed + FAILED_FOR
        stops = self.interrupt is not None and self.grace is not None and now > self._pressed + self.grace
        return bool(self.refused or hangs or stops)

    def _ends_now(self, interrupt: KeyboardInterrupt) -> bool:
        """Take in Ctrl-C or SIGTERM: whether the run ends at once, not after a last checkpoint."""
        if time.monotonic() - self._pressed < ONE_PRESS:
            return False
        self._pressed = time.monotonic()
        again, self.interrupt = self.interrupt is not None, interrupt
        if again or self.state.begun is None:
            return True
        self.line.note("stopping after this step, then saving (Ctrl-C again ends at once)")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.state.pid, signal.SIGTERM)
        return False
