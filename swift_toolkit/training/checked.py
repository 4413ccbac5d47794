"""A checked request for a training run: its plan, and where it writes or resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.config import requirements
from swift_toolkit.config.limits import tuners
from swift_toolkit.config.settings import Config
from swift_toolkit.machine import files
from swift_toolkit.problems import RequestError, RunError
from swift_toolkit.runs.directory import Output
from swift_toolkit.runs.record import SETTINGS
from swift_toolkit.runs.resume import is_secret, tidy
from swift_toolkit.training import automatic, preflight
from swift_toolkit.training.plan import TrainingPlan, default_output_dir
from swift_toolkit.training.preflight import VerifyArguments
from swift_toolkit.training.request import RequestFacts, TrainingRequest
from swift_toolkit.training.resume import Resumption, requested, resume


@dataclass
class CheckedRequest:
    """A valid request.

    Args:
        request: the request.
        plan: the run, with the automatic settings.
        output: where it writes.
        given: the user's settings as text, which must be the same on every node.
        verify_arguments: arguments for `dataset.verify.verify` that check all of the given data.
        resumption: the earlier training that it resumes, if any.
    """

    request: TrainingRequest
    plan: TrainingPlan
    output: Output
    given: Mapping[str, str]
    verify_arguments: VerifyArguments
    resumption: Resumption | None = None

    @property
    def directory(self) -> Path | None:
        """The directory of the run that is resumed; None for a new run."""
        return self.resumption.point.directory if self.resumption and self.resumption.point else None

    def begin(self, directory: Path) -> None:
        """Prepare the run's directory: remove everything newer than the checkpoint, and write the request.

        Raises:
            RunError: the directory cannot be written to.
        """
        try:
            if self.resumption and self.resumption.point:
                tidy(self.resumption.point, self.output.root)
            requested(self.plan, self.request.command).write(directory)
            files.write_json(directory / SETTINGS, given_settings(self.plan.config))
        except OSError as error:
            raise RunError(f"{error.filename or directory}: {error.strerror}.") from None


def given_settings(config: Config) -> dict[str, object]:
    """The given settings in the form of a config file, without secrets."""
    settings = {
        name: one.value
        for name, one in config.settings.items()
        if one.source.kind != "automatic" and not is_secret(name)
    }
    if config.command != "sft" and "rlhf_type" not in settings:
        settings["task"] = config.task.name
    if config.preset_asked:
        settings["preset"] = config.preset
    own = {"effective_batch_size": config.effective_batch, "balance": config.balance}
    return settings | {name: one.value for name, one in own.items() if one is not None}


def plan_training(request: TrainingRequest, facts: RequestFacts) -> CheckedRequest:
    """Plan the run of a request.

    Args:
        request: the request.
        facts: what `check_training` found.

    Raises:
        RequestError: the run cannot be resumed, or the disk is too small.
    """
    config = facts.config
    given = {name: setting.shown for name, setting in config.settings.items() if name != "output_dir"}
    verify_arguments = preflight.verify_arguments(config)
    plan = TrainingPlan(config, facts.device, facts.data, facts.cluster, request.trust_code)
    automatic.fill_automatic(plan)
    root = Path(config.get("output_dir") or default_output_dir(config)).expanduser()
    output = Output(root, own=config.get("add_version") is False)
    resumption = None if request.looking else resume(plan, output, request.resume, request.force)
    resumed = resumption is not None and resumption.point is not None
    schedule = tuners.schedule_problems(config, plan.steps)
    if problems := [*schedule, *preflight.disk_problems(config, plan.steps, resumed)]:
        raise RequestError(problems)
    config.warnings += preflight.disk_warnings(config, plan.steps, resumed)
    if (config.get("max_steps") or 0) <= 0:
        config.warnings += requirements.warmup_warnings(config, plan.steps)
    return CheckedRequest(request, plan, output, given, verify_arguments, resumption)
