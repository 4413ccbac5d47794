"""One training run, from the start of its processes to its result.

The processes run `training.process.worker`. Their reports are folded into a `RunState`, which is shown as a live line,
written to ``result.json``, and determines how the run ends.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from msgspec import structs, to_builtins

from swift_toolkit.console import screen
from swift_toolkit.dataset import copies
from swift_toolkit.machine import packages
from swift_toolkit.model.checkpoints.find import checkpoints_of, step_of
from swift_toolkit.problems import RunError
from swift_toolkit.runs import directory as runs_directory
from swift_toolkit.runs import lock
from swift_toolkit.runs.record import RunDetails, RunPlan, TrainingResult, commit_of
from swift_toolkit.runs.recorder import Recorder
from swift_toolkit.runs.resume import is_secret, stored_request
from swift_toolkit.training import preflight, restart
from swift_toolkit.training.checked import CheckedRequest
from swift_toolkit.training.job import Job
from swift_toolkit.training.monitor.data_check import DataCheck
from swift_toolkit.training.monitor.ending import Ending
from swift_toolkit.training.monitor.follow import follow
from swift_toolkit.training.monitor.progress import NodeLine, TrainingLine
from swift_toolkit.training.monitor.watch import Watch, WatchLimits
from swift_toolkit.training.plan import TrainingPlan
from swift_toolkit.training.process import events
from swift_toolkit.training.process.events import RunState


@contextlib.contextmanager
def directory(checked: CheckedRequest) -> Iterator[Path]:
    """The directory where this process writes during the run.

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
            raise RunError(f"cannot write {where}: {error.strerror or error}.") from None


def prepare_run(checked: CheckedRequest, plan: TrainingPlan, directory: Path, verbose: bool = False) -> Job:
    """Make the run write to ``directory``, and convert data that ms-swift cannot read directly.

    Raises:
        RequestError: the data has more bad rows than may be skipped.
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
    point = checked.resumption.point if checked.resumption else None
    return Job(checked, plan, directory, given.as_dict(), verbose, point)


def train(job: Job) -> TrainingResult:
    """Run a training that this process shows and records.

    Raises:
        RequestError: the data was rejected before the first step.
        RunError: the run failed.
        Interrupted: it was interrupted.
    """
    checked, plan = job.checked, job.plan
    expected = functools.partial(preflight.expected_rows, plan.config)
    recorder = Recorder(job.directory, checked.output.root)
    recorder.begin(_record(job))
    lost = checked.request.max_lost_rows
    with DataCheck(plan.data, checked.verify_arguments, expected, lost) as check:
        ending = follow(job, TrainingLine(row_tokens=plan.row_tokens), check, recorder, _watch(plan))
        if (batch := restart.halved(plan.config, restart.lacks_memory(ending), tried=False)) is not None:
            job = restart.restarted(job, batch)
            plan = job.plan
            screen.say(_restart_sentence(batch, job))
            ending = follow(job, TrainingLine(row_tokens=plan.row_tokens), check, recorder, _watch(plan))
        plan, rows = replace(plan, data=check.report), check.as_dict()
    ending = _without_damaged(ending, recorder)
    result = ending.result(plan)
    reason = ending.reason(plan) if result.status == "failed" else ""
    try:
        recorder.write(result, reason, _details(job, plan, ending, rows))
    except OSError as error:
        _say_unwritten(recorder, error, ending, result)
    recorder.report()
    ending.raise_if_not_done(result, reason)
    return result


def _restart_sentence(batch: restart.Halved, job: Job) -> str:
    where = f"from step {job.point.step}" if job.point and job.point.checkpoint else "from the beginning"
    parts = f"{batch.rows} rows at once × {batch.accumulation} accumulated"
    return f"Out of memory. Restarting {where} with {parts}; the effective batch size stays the same."


def _without_damaged(ending: Ending, recorder: Recorder) -> Ending:
    """After a loss that is not a number, rename the checkpoints whose weights may not be numbers."""
    if ending.alarm is None or ending.alarm.kind != "not a number":
        return ending
    later = [one for one in checkpoints_of(recorder.directory) if step_of(one) > ending.watch.finite]
    aside = [runs_directory.set_aside(checkpoint) for checkpoint in later]
    if not aside:
        return ending
    screen.say(f"Renamed, because their weights may contain NaN: {', '.join(path.name for path in aside)}")
    left, best = checkpoints_of(recorder.directory), ending.state.best
    last = str(left[0]) if left else None
    state = structs.replace(ending.state, last=last, best=best if best and Path(best).exists() else last)
    recorder.unlink_missing()
    recorder.link(state.last, state.best)
    return replace(ending, state=state)


def _watch(plan: TrainingPlan) -> Watch:
    run = plan.memory_run
    scales = plan.config.get("torch_dtype") == "float16" or bool(plan.config.get("fp16"))
    return Watch(limits=WatchLimits(memory=run.device_bytes if run else 0, scales_loss=scales))


def _say_unwritten(recorder: Recorder, error: OSError, ending: Ending, result: TrainingResult) -> None:
    """Report that result.json cannot be written.

    Raises:
        RunError: the run did not fail otherwise.
    """
    what = f"cannot write {recorder.directory / 'result.json'}: {error.strerror}."
    if result.status != "done":
        screen.say(what)
        return
    lines = ending.checkpoint_lines("Make the directory writable.")
    raise RunError("\n".join([f"All {result.steps} steps are done, but {what}", *lines])) from None


def take_part(job: Job) -> TrainingResult:
    """Run this process's part of a training that another process shows and records.

    Raises:
        RequestError: the processes have different requests.
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
    """Move this process's startup log to the logs of the ranks, and remove the temporary directory."""
    before, log = job.directory / "train.log", logs / f"start-{job.plan.cluster.label}.log"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        shutil.move(before, log)
    except OSError as error:
        screen.say(f"cannot write {log}: {error.strerror}. The log remains in {before}.")
        return before
    shutil.rmtree(job.directory, ignore_errors=True)
    return log


def _record(job: Job) -> RunPlan:
    """The contents of plan.json, which is written before the run starts."""
    plan, request = job.plan, stored_request(job.directory)
    return RunPlan(
        facts=list(plan.facts()),
        settings={
            name: {"value": "***" if is_secret(name) else one.shown, "source": str(one.source)}
            for name, one in plan.config.settings.items()
        },
        command=request.command if request else (),
        commit=commit_of(Path.cwd()),
        fingerprints=request.data if request else {},
        versions=packages.versions(),
    )


def _details(job: Job, plan: TrainingPlan, ending: Ending, rows: Mapping[str, object]) -> RunDetails:
    state, request = ending.state, stored_request(job.directory)
    done, settings, estimate = state.done or events.Done(), plan.config.settings, plan.verdict.estimate
    return RunDetails(
        config={name: setting.value for name, setting in settings.items() if not is_secret(name)},
        sources={name: str(setting.source) for name, setting in settings.items()},
        data={**plan.data.as_dict(), "given": job.left_out},
        model_parameters=done.model_parameter_info,
        rows=rows,
        learned=to_builtins(state.audit) if state.audit else None,
        tokens_per_row={"train": done.train_dataset, "val": done.val_dataset},
        memory={"peak": state.memory or None, "estimate": estimate.total if estimate else None},
        alarms=[asdict(alarm) for alarm in ending.watch.alarms],
        planned={
            "steps": plan.steps,
            "tokens": plan.tokens,
            "memory": estimate.total if estimate else None,
        },
        measured=_measured(plan, state),
        commit=commit_of(Path.cwd()),
        command=request.command if request else (),
        fingerprints=request.data if request else {},
        seed=int(plan.config.value("seed")),
        devices={**asdict(plan.device), "processes": plan.world_size},
    )


def _measured(plan: TrainingPlan, state: RunState) -> dict[str, float | None]:
    """Measured steps, tokens, memory and speed of a run."""
    done = state.steps - state.resumed
    seconds = (state.ended or time.time()) - state.begun if state.begun else None
    tokens = plan.row_tokens * plan.batch.effective * state.steps if plan.row_tokens else None
    pace = round(seconds / done, 3) if seconds and done > 0 else None
    return {"steps": state.steps, "tokens": tokens, "memory": state.memory or None, "seconds_per_step": pace}
