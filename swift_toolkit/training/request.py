"""A request for a training run, read and checked as a whole; `checked` turns it into a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from swift_toolkit.config import requirements
from swift_toolkit.config.request import read_request
from swift_toolkit.config.settings import Config
from swift_toolkit.dataset import copies
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.machine.device import Device, find_device
from swift_toolkit.model import templates
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.training import preflight
from swift_toolkit.training.batches import batch
from swift_toolkit.training.process.launch import Cluster, Launch, LaunchRequest

MAX_LOST_ROWS = "5%"
"""How many rows may get lost between the files and the first step, unless the user says otherwise."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What was asked for, unchecked.

    Args:
        config: a JSON or YAML file, a mapping of settings, or None if ``overrides`` hold everything.
        overrides: settings laid over ``config``.
        overrides_from: what to call the overrides in messages.
        skip_bad_rows: train without the rows that have errors, see `dataset.copies.prepare`.
        max_lost_rows: how many rows ms-swift may drop: "N" or "P%".
        trust_code: run Python code that the model or a checkpoint brings.
        launch: processes and machines, by the names in `launch.NAMES`; None where not given.
        looking: only the data is looked at, which may be bad.
        resume: go on with the newest run of the output directory, or of the place named here.
        force: go on although what is learned changes.
        stop_grace: seconds that a run that was asked to stop may take to save; None waits as long as it takes.
    """

    config: str | Path | Mapping[str, Any] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    overrides_from: Literal["command line", "call"] = "call"
    skip_bad_rows: str | None = None
    max_lost_rows: str = MAX_LOST_ROWS
    trust_code: bool = False
    launch: Mapping[str, object] = field(default_factory=dict)
    looking: bool = False
    resume: bool | str | Path = False
    force: bool = False
    stop_grace: float | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a request in which nothing is wrong.

    Args:
        config: its settings.
        device: what this machine computes on.
        data: what its data holds, as far as that was looked at.
        cluster: the processes and machines that take part.
    """

    config: Config
    device: Device
    data: DataReport
    cluster: Cluster


def check_request(request: TrainingRequest) -> Facts:
    """Look for everything that is wrong with a request.

    Raises:
        RequestError: with every problem of the request.
    """
    as_flags = request.overrides_from == "command line"
    config, problems = read_request(request.config, request.overrides, overrides_from=request.overrides_from)
    problems += preflight.check_files(config, request.trust_code)
    config.warnings += templates.template_warnings(config)
    device, asked = find_device(), LaunchRequest(request.launch, as_flags=as_flags)
    problems += asked.problems(device)
    cluster = asked.cluster()
    world_size = Launch(config, device, cluster).world_size
    problems += batch.batch_problems(config, world_size)
    problems += requirements.generations(config, world_size)
    whole = request.looking or request.skip_bad_rows is not None
    data = preflight.check_data(config, whole=whole, by_tokenizer=not problems)
    problems += _row_problems(request, config, data)
    if problems:
        raise RequestError(problems)
    return Facts(config=config, device=device, data=data, cluster=cluster)


def _row_problems(request: TrainingRequest, config: Config, data: DataReport) -> Iterator[Problem]:
    """What is wrong with the data, and with how many rows of them may be skipped or lost."""
    numbers = {"skip_bad_rows": request.skip_bad_rows, "max_lost_rows": request.max_lost_rows}
    wrong = list(copies.number_problems(numbers, as_flags=request.overrides_from == "command line"))
    yield from wrong
    if not wrong and not request.looking:
        yield from copies.refusal(data, request.skip_bad_rows)
        yield from preflight.count_problems(config, data)
        yield from preflight.column_problems(config, data)
