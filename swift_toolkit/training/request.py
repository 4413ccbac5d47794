"""Read and check a request for a training run as a whole; `checked` plans the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from swift_toolkit.config import requirements, sharding
from swift_toolkit.config.limits import algorithms, trainer
from swift_toolkit.config.request import read_request
from swift_toolkit.config.settings import Config
from swift_toolkit.console.words import shown
from swift_toolkit.dataset import copies
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.machine.device import Device, find_device
from swift_toolkit.model import quantized, registry, templates
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.training import preflight
from swift_toolkit.training.batches import batch, defaults
from swift_toolkit.training.process.launch import Cluster, Launch, LaunchRequest

MAX_LOST_ROWS = "5%"
"""How many rows ms-swift may drop by default."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """An unchecked request.

    Args:
        config: a JSON or YAML file, a mapping of settings, or None if ``overrides`` hold everything.
        overrides: settings that take precedence over ``config``.
        overrides_from: name of the origin of the overrides in messages.
        skip_bad_rows: skip rows that have errors, see `dataset.copies.prepare`.
        max_lost_rows: how many rows ms-swift may drop: "N" or "P%".
        trust_code: run Python code that comes with the model or a checkpoint.
        launch: processes and machines, by the names in `launch.NAMES`; None if not given.
        looking: only inspect the data, which may have errors.
        resume: resume the newest run of the output directory, or of the given path.
        force: resume although settings changed that affect what is learned.
        keep_going: only warn when an alarm would end the run; see `monitor.watch`.
        command: the command line; empty if the request comes from Python.
        stop_grace: how long a run may take to save after a request to stop, in seconds; None means no limit.
    """

    config: str | Path | Mapping[str, object] | None = None
    overrides: Mapping[str, object] = field(default_factory=dict)
    overrides_from: Literal["command line", "call"] = "call"
    skip_bad_rows: str | None = None
    max_lost_rows: str = MAX_LOST_ROWS
    trust_code: bool = False
    launch: Mapping[str, object] = field(default_factory=dict)
    looking: bool = False
    resume: bool | str | Path = False
    force: bool = False
    keep_going: bool = False
    command: tuple[str, ...] = ()
    stop_grace: float | None = None


@dataclass(frozen=True, kw_only=True)
class RequestFacts:
    """The facts of a valid request.

    Args:
        config: the settings.
        device: the device of the run.
        data: what is known about the data so far.
        cluster: the requested processes and machines.
    """

    config: Config
    device: Device
    data: DataReport
    cluster: Cluster


def check_training(request: TrainingRequest) -> RequestFacts:
    """Check a request.

    Raises:
        RequestError: with every problem of the request.
    """
    as_flags = request.overrides_from == "command line"
    config, problems = read_request(request.config, request.overrides, overrides_from=request.overrides_from)
    registry.fill_task(config)
    problems += preflight.file_problems(config, request.trust_code)
    config.warnings += templates.template_warnings(config)
    config.warnings += templates.new_token_warnings(config)
    device, asked = find_device(), LaunchRequest(request.launch, as_flags=as_flags)
    problems += asked.problems(device)
    cluster = asked.cluster()
    world_size = Launch(config, device, cluster).world_size
    if not problems:
        defaults.fill_for_task(config, world_size)
    problems += batch.batch_problems(config, world_size)
    problems += requirements.generations(config, world_size)
    problems += requirements.processes(config, world_size)
    problems += sharding.batch_contradictions(config, world_size)
    problems += quantized.quantization_problems(config, device)
    problems += trainer.device_problems(config, device)
    config.warnings += quantized.quantization_warnings(config, device)
    whole = request.looking or request.skip_bad_rows is not None
    data = preflight.check_data(config, whole=whole, by_tokenizer=not problems)
    problems += _row_problems(request, config, data)
    problems += _grace_problems(request)
    problems += defaults.nothing_to_compare(config, data, world_size)
    config.warnings += defaults.label_warnings(config, data)
    if not problems:
        rows = preflight.expected_rows(config, data)
        problems += batch.rows_of_no_step(config, world_size, rows["train"])
        problems += algorithms.batches(config, world_size, rows["val"])
    if problems:
        raise RequestError(problems)
    return RequestFacts(config=config, device=device, data=data, cluster=cluster)


def _grace_problems(request: TrainingRequest) -> Iterator[Problem]:
    """Why the time that a run may take to stop cannot be used."""
    grace: object = request.stop_grace
    if grace is None or (isinstance(grace, (int, float)) and not isinstance(grace, bool) and grace >= 0):
        return
    key = "--stop-grace" if request.overrides_from == "command line" else "stop_grace"
    yield Problem(f"must be a number of seconds, at least 0, not {shown(grace)}", key=key)


def _row_problems(request: TrainingRequest, config: Config, data: DataReport) -> Iterator[Problem]:
    """Problems of the data, and of the numbers of rows that may be skipped or dropped."""
    numbers = {"skip_bad_rows": request.skip_bad_rows, "max_lost_rows": request.max_lost_rows}
    wrong = list(copies.number_problems(numbers, as_flags=request.overrides_from == "command line"))
    yield from wrong
    if not wrong and not request.looking:
        yield from copies.refusal(data, request.skip_bad_rows)
        yield from preflight.count_problems(config, data)
        yield from preflight.length_problems(config, data, request.max_lost_rows)
        yield from preflight.column_problems(config, data)
