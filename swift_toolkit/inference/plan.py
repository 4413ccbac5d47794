"""The plan of an engine, made before anything heavy starts: backend, model, adapter, settings.

``make_plan`` is the entry point. It reads the checkpoint and the settings and raises all problems together.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from swift_toolkit.config.request import read_request
from swift_toolkit.config.rules import secret_problems, slow_dtype
from swift_toolkit.config.settings import Config
from swift_toolkit.config.tasks import TaskOutput
from swift_toolkit.inference.backend import PT, Backend, backend_problems, choose_backend
from swift_toolkit.inference.exchange import AskedOf, EngineOrder, Generation, Side
from swift_toolkit.inference.line import DATA, NO_LINE, LineData, asks_human, read_line
from swift_toolkit.machine.device import Device, cpu_computes_bfloat16, environment, find_device
from swift_toolkit.machine.msswift import trust
from swift_toolkit.model import templates
from swift_toolkit.model.builtin import is_builtin, materialise
from swift_toolkit.model.checkpoints.checkpoint import (
    Checkpoint,
    given_base_problems,
    hub_adapter,
    hub_model,
    read_checkpoint,
)
from swift_toolkit.model.checkpoints.code import code_phrase
from swift_toolkit.model.checkpoints.find import find_checkpoint
from swift_toolkit.model.gguf import opened
from swift_toolkit.model.loading import fill_model, is_on_hub, naming_problems
from swift_toolkit.model.merge import merge_problems as merging_problems
from swift_toolkit.model.merge import merged, unmergeable
from swift_toolkit.problems import Problem, RequestError

MAX_NEW_TOKENS = 512
"""Default limit of an answer, in tokens; ms-swift itself would continue to the end of the context."""

GENERATION = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "stop_words"),
    "seed",
)
"""The generation settings, by their names in ms-swift."""


def read_generation(config: Config) -> Generation:
    """The generation parameters of an infer request."""
    names = {"max_new_tokens": "max_tokens", "stop_words": "stop"}
    return Generation(**{names.get(name, name): config.get(name) for name in GENERATION})


def fill_generation(config: Config) -> None:
    """Fill in unset settings so that answers have limited length and are the same every time."""
    config.fill("max_new_tokens", MAX_NEW_TOKENS, "limits the answer")
    config.fill("temperature", 0.0, "the same answers every time")
    config.fill("seed", 42, "")


def generation_problems(config: Config) -> list[Problem]:
    """Problems with the values of the generation settings."""
    limits: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("max_new_tokens", lambda value: value >= 1, "must be at least 1"),
        ("temperature", lambda value: value >= 0, "must be 0 or more"),
        ("top_p", lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
        ("top_k", lambda value: value >= -1, "must be -1 (no limit) or more"),
        ("repetition_penalty", lambda value: value > 0, "must be above 0"),
        ("num_beams", lambda value: value >= 1, "must be at least 1"),
        ("max_batch_size", lambda value: value >= 1, "must be at least 1"),
    )
    return [
        config.problem(name, f"{rule}, not {config.get(name)}")
        for name, holds, rule in limits
        if config.get(name) is not None and not holds(config.get(name))
    ]


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """The toolkit's own options; everything else is a setting of ms-swift.

    Args:
        base_model: location of the base, if it is no longer where training found it.
        infer_backend: ``auto``, ``pt``, ``vllm``, ``sglang`` or ``lmdeploy``; None to use the settings, else ``auto``.
        merge_lora: merge an adapter into its base next to the checkpoint, and use the merged model.
        no_thinking: answer without thinking first, if the template supports it.
        trust_code: accept Python code in the checkpoint or its base.
        output: file for the answers, as given; the log is written next to it.
        log: file for the output of the engine; ``infer.log`` next to the checkpoint by default.
        verbose: also write the output of the engine to stderr.
        from_line: the settings come from a command line or script that starts ms-swift.
        overrides_from: how messages refer to the settings that override a config file.
    """

    base_model: str | None = None
    infer_backend: str | None = None
    merge_lora: bool = False
    no_thinking: bool = False
    trust_code: bool = False
    output: str | Path | None = None
    log: str | Path | None = None
    verbose: bool = False
    from_line: bool = False
    overrides_from: Literal["command line", "call"] = "call"

    @classmethod
    def taken_from(cls, given: dict[str, Any]) -> AskOptions:
        """The options among the keywords ``given``, which are removed from it."""
        return cls(**{one.name: given.pop(one.name) for one in fields(cls) if one.name in given})


_MERGING = {
    "beside": "the adapter into its base, kept next to the checkpoint",
    "aside": "the adapter into its base for this run: {self.backend.name} cannot load this adapter",
}


@dataclass
class Plan:
    """A checked plan to run a checkpoint.

    Args:
        checkpoint: the checkpoint.
        why: why this checkpoint was chosen.
        config: the settings, without those that the checkpoint determines.
        backend: the backend that generates.
        backend_why: why this backend was chosen.
        device: the device it runs on.
        merge: ``no``; ``beside`` to keep the merged model next to the checkpoint; ``aside`` to merge for this run
            only, because the backend cannot load the adapter.
        log: file for the output of the engine.
        line: what a command line for ms-swift says about questions and answers.
    """

    checkpoint: Checkpoint
    why: str
    config: Config
    backend: Backend
    backend_why: str
    device: Device
    merge: Literal["no", "beside", "aside"]
    log: Path
    line: LineData = NO_LINE

    @property
    def one_engine(self) -> bool:
        """Whether one loaded model answers for both sides, with its adapter on or off."""
        return self.checkpoint.kind == "lora" and self.merge == "no"

    @property
    def generation(self) -> Generation:
        """The generation parameters."""
        return read_generation(self.config)

    def model_of(self, side: Side) -> str | None:
        """The model to load for ``side``, before any merge; None if only an adapter on a hub names it."""
        base = side == "base" or self.checkpoint.kind == "lora"
        return self.checkpoint.base if base else str(self.checkpoint.path)

    def base_problems(self) -> list[Problem]:
        """Reasons why the base cannot be asked too."""
        if not self.checkpoint.generates:
            model = ASKED_ALONE.get(self.checkpoint.output, "such a model")
            what = f"cannot compare with the base: the base of {model} has a randomly initialised head"
            return [Problem(what, "Remove it.", "--compare-base")]
        if self.checkpoint.base is not None:
            return []
        what = f"needs the model that {self.checkpoint.path} was trained on"
        return [Problem(what, "Name it with --base-model DIR.", "--compare-base")]

    def arguments(self, side: Side, model: str | None = None) -> list[str]:
        """The argument list for ms-swift's InferArguments; ``model`` replaces `model_of`."""
        config = deepcopy(self.config)
        adapter = self.checkpoint.path if self.one_engine else None
        if self.device.kind == "cpu" and not cpu_computes_bfloat16():
            config.fill("torch_dtype", "float32", "this CPU has no bfloat16 arithmetic")
        fill_model(config, self.checkpoint, model=model or self.model_of(side), adapter=adapter)
        self.backend.fill(config, [self.checkpoint.lora_rank or 0] if adapter else [])
        return config.arguments()

    @contextmanager
    def order(self, side: Side) -> Iterator[EngineOrder]:
        """The order for the engine of ``side``; a temporary merged model exists for the duration of the block."""
        merging = self.merge != "no" and side == "tuned"
        with merged(self) if merging else opened(self.model_of(side), self.log) as model:
            yield EngineOrder(
                arguments=self.arguments(side, None if model is None else str(model)),
                backend=self.backend.name,
                generation=self.generation,
                environment={**environment(self.device), **trust(self.checkpoint.trusted)},
                adapter=str(self.checkpoint.path) if self.one_engine else None,
                largest_batch=self.config.get("max_batch_size"),
            )

    def rows(self) -> list[tuple[str, str]]:
        """The plan as names and values for the screen."""
        checkpoint = self.checkpoint
        kind = f"{checkpoint.kind}, rank {checkpoint.lora_rank}" if checkpoint.lora_rank else checkpoint.kind
        rows = [("checkpoint", f"{checkpoint.path} ({self.why})"), ("kind", kind)]
        if checkpoint.base is not None:
            rows.append(("base", f"{checkpoint.base} ({checkpoint.base_source or 'embedded'})"))
        if checkpoint.template or checkpoint.system:
            system = (
                f"system {json.dumps(checkpoint.system, ensure_ascii=False)}" if checkpoint.system else ""
            )
            rows.append(("template", ", ".join(part for part in (checkpoint.template, system) if part)))
        rows.append(("backend", f"{self.backend.name} ({self.backend_why}) on {self.device}"))
        if self.merge != "no":
            rows.append(("merging", _MERGING[self.merge].format(self=self)))
        warnings = [*served_warnings(self.config, checkpoint), *slow_dtype(self.config, self.device)]
        rows += [("warning", str(warning)) for warning in warnings]
        if code := code_phrase(checkpoint.code, checkpoint.trusted):
            rows.append(("code", code))
        return [*rows, ("settings", self.settings())]

    def settings(self) -> str:
        """The settings that were set or chosen, e.g. "temperature 0.3, seed 42"."""
        return ", ".join(f"{name} {setting.value}" for name, setting in self.config.settings.items())

    def change_generation(self, name: str, value: str) -> None:
        """Change one generation setting for all further answers.

        Raises:
            RequestError: the setting does not exist or does not accept this value.
        """
        changed, problems = read_request(None, {name: value}, command="infer", overrides_from="call")
        problems += generation_problems(changed)
        if not problems and name not in GENERATION:
            problems.append(
                Problem("is not a generation setting", f"Use one of {', '.join(GENERATION)}.", name)
            )
        if problems:
            raise RequestError(problems)
        self.config.settings.update(changed.settings)

    def facts(self) -> AskedOf:
        """The description of the model for the results."""
        checkpoint = self.checkpoint
        return AskedOf(
            checkpoint=str(checkpoint.path),
            base=checkpoint.base,
            train_type=checkpoint.tuner_type or checkpoint.kind,
            backend=self.backend.name,
            device=self.device.kind,
            code=code_phrase(checkpoint.code, checkpoint.trusted),
            merged=self.merge != "no",
            generation=self.generation.given(),
            seed=self.config.get("seed"),
        )

    def identity(self) -> dict[str, object]:
        """The data that identifies these answers, as JSON: the weights, the settings, the backend."""
        kinds = ("**/*.safetensors", "*.bin", "*.gguf")
        weights = [path for kind in kinds for path in sorted(self.checkpoint.path.glob(kind))]
        states = [(path, path.stat()) for path in weights]
        settings = {
            name: setting.value for name, setting in self.config.settings.items() if name != "max_batch_size"
        }
        return {
            "checkpoint": str(self.checkpoint.path),
            "weights": [[str(path), state.st_size, state.st_mtime_ns] for path, state in states],
            "base": self.checkpoint.base,
            "backend": self.backend.name,
            "merged": self.merge != "no",
            "settings": settings,
        }


def make_plan(
    checkpoint: str | None,
    source: str | Path | Mapping[str, object] | None,
    overrides: Mapping[str, object],
    options: AskOptions,
) -> Plan:
    """Check the request and make the plan.

    Args:
        checkpoint: a checkpoint, a run directory or an output directory; None if the settings name it.
        source: settings, as a file or a mapping.
        overrides: settings that override ``source``.
        options: the toolkit's own options.

    Raises:
        RequestError: with all problems.
    """
    config, problems = read_request(source, overrides, command="infer", overrides_from=options.overrides_from)
    problems += other_ways(config, _OTHER_WAYS, options.from_line)
    problems += [*generation_problems(config), *secret_problems(config)]
    asked = _asked_for(config, checkpoint, options)
    if options.no_thinking:
        config.fill("enable_thinking", False, "--no-thinking")
    fill_generation(config)
    problems += backend_problems(asked.backend)
    found, of_checkpoint = _read(asked, options.trust_code)
    problems += of_checkpoint
    if found is not None:
        problems += _misuses(config, found[1], asked)
    if problems or found is None:
        raise RequestError(problems)
    why, read = found
    line = NO_LINE
    if options.from_line:
        human = asks_human(source) if isinstance(source, Mapping) else None
        line = read_line(config, read.path, human)
    device = find_device()
    backend, backend_why = choose_backend(asked.backend, [read], device)
    merge: Literal["no", "beside", "aside"] = "no"
    if read.kind == "lora" and (asked.merge or not backend.serves_adapter(read)):
        merge = "beside" if asked.merge else "aside"
    if merge == "aside" and (problems := list(aside_problems(backend, read))):
        raise RequestError(problems)
    log = Path(options.log) if options.log else _log(read, options.output)
    return Plan(read, why, config, backend, backend_why, device, merge, log, line)


def served_warnings(config: Config, checkpoint: Checkpoint) -> Iterator[Problem]:
    """A template that does not match the checkpoint's model; see `templates.served_warnings`."""
    if checkpoint.generates:
        model = checkpoint.base if checkpoint.kind == "lora" else checkpoint.path
        yield from templates.served_warnings(config, str(model or checkpoint.path), checkpoint.template)


def aside_problems(backend: Backend, checkpoint: Checkpoint) -> Iterator[Problem]:
    """Why a backend cannot run an adapter that it cannot load: it cannot be merged either."""
    for problem in unmergeable(checkpoint):
        what = f'is "{backend.name}", which cannot load this adapter; {problem.what}'
        yield Problem(what, "Use --infer-backend pt.", "--infer-backend")


def _misuses(config: Config, checkpoint: Checkpoint, asked: _Asked) -> Iterator[Problem]:
    """Yield requests that this checkpoint does not support."""
    if not checkpoint.generates:
        yield from _task_problems(checkpoint, asked.backend)
    if asked.merge and checkpoint.kind == "lora":
        yield from merging_problems(checkpoint)
    yield from naming_problems(config, checkpoint)


def _task_problems(checkpoint: Checkpoint, backend: str) -> Iterator[Problem]:
    """Yield problems with models that do not generate text; some return a class or score instead."""
    task = str(checkpoint.task_type)
    model = ASKED_ALONE.get(checkpoint.output)
    if model is None:
        do = _OTHER_TASKS.get(task, "Use ms-swift itself for it.")
        yield Problem(f"{checkpoint.path} was trained for {task} and cannot answer questions", do)
    elif backend not in ("auto", PT.name, PT.alias):
        yield Problem(f'is "{backend}", but {model} only runs with pt', "Remove it.", "--infer-backend")


ASKED_ALONE: Mapping[TaskOutput, str] = {
    "class": "a classifier", "reward": "a reward model", "score": "a reranker"
}  # fmt: skip
"""Models that give a class or a score instead of text."""


_OTHER_TASKS = {
    "embedding": "Serve it with deploy_model.py and use /v1/embeddings.",
    "decision": "Run it in ms-swift itself: swift infer --val_dataset.",
}


def folder_of(checkpoint: Checkpoint) -> Path:
    """The directory for answers: next to the checkpoint; for a model on a hub, under ``output``."""
    return checkpoint.path.parent if checkpoint.path.is_absolute() else Path("output", checkpoint.path.name)


def _log(checkpoint: Checkpoint, output: str | Path | None) -> Path:
    """The log file: next to the answers or the checkpoint, or elsewhere if that directory is not writable."""
    folder = folder_of(checkpoint) if output is None else Path(output).absolute().parent
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        folder = Path(tempfile.gettempdir(), f"swift-toolkit-{secrets.token_hex(8)}")  # made with the log
    return folder / "infer.log"


def _read(asked: _Asked, trust_code: bool) -> tuple[tuple[str, Checkpoint] | None, list[Problem]]:
    """Read the checkpoint; return why it was chosen and the checkpoint, or the problems with it."""
    path = asked.checkpoint
    if path is None:
        do = "Name a checkpoint, a run or an output directory."
        return None, [Problem("is needed", do, "--checkpoint")]
    if asked.on_hub == "adapter":
        return ("an adapter on a hub", hub_adapter(path, asked.base, trust_code)), []
    if asked.on_hub == "model":
        return ("a model on a hub", hub_model(path, trust_code)), []
    try:
        if is_builtin(path):
            return ("the embedded model", replace(read_checkpoint(materialise(path)), base=path)), []
        try:
            found = find_checkpoint(Path(path).expanduser())
        except RequestError as error:
            return None, [*error.problems, *given_base_problems(asked.base)]
        return (found.why, read_checkpoint(found.path, asked.base, trust_code)), []
    except RequestError as error:
        return None, error.problems


_OTHER_WAYS = {
    "val_dataset": "Give the questions with --questions-file.",
    "dataset": "Give the questions with --questions-file.",
    "val_dataset_sample": "Use --limit.",
    "result_path": "Name the file for the answers with --output.",
    "metric": "Answers are scored whenever there are references.",
    "stream": "Remove it: single questions and chats stream, batches do not.",
    "load_args": "Remove it: the checkpoint's own settings are always read.",
    "load_data_args": "Give the questions with --questions-file.",
}


def other_ways(config: Config, ways: Mapping[str, str], from_line: bool) -> list[Problem]:
    """Problems for settings of ms-swift that have an equivalent option here. Settings from a command line for ms-swift
    are skipped with a notice instead.

    Args:
        config: the request.
        ways: setting -> instruction to the user.
        from_line: whether the settings come from a command line or script that starts ms-swift.
    """
    taken = (*DATA, "val_dataset_sample", "result_path") if from_line and ways is _OTHER_WAYS else ()
    found = [name for name in ways if name in config.settings and name not in taken]
    if not from_line:
        return [config.problem(name, "is not used here", ways[name]) for name in found]
    for name in found:
        del config.settings[name]
        rest = ways[name].removeprefix("Remove it")  # "." or ": why"
        config.notices.append(f"skipped: {name}{rest if rest != ways[name] else f'. {rest}'}")
    return []


def _taken(config: Config, name: str) -> Any:
    """The value of a setting, which is removed from ``config``."""
    setting = config.settings.pop(name, None)
    return None if setting is None else setting.value


def two_models(checkpoint: str) -> tuple[str, str]:
    """The problem of ``adapters`` beside ``--checkpoint``: what is wrong, and what to do."""
    what = f'cannot be used with --checkpoint, which names "{checkpoint}"'
    return what, "Keep one of them. For an adapter on a base: --checkpoint ADAPTER --base-model BASE"


class _Asked(NamedTuple):
    """The model that the options and, as in ms-swift's own commands, the settings ``adapters`` and ``model`` name."""

    checkpoint: str | None
    base: str | None
    on_hub: Literal["adapter", "model", ""]
    backend: str
    merge: bool


def _asked_for(config: Config, checkpoint: str | None, options: AskOptions) -> _Asked:
    """Find out which model to use; the settings that name it are removed from ``config``."""
    adapters, model = config.settings.pop("adapters", None), _taken(config, "model")
    backend = _taken(config, "infer_backend")
    merge = bool(_taken(config, "merge_lora"))
    how = (options.infer_backend or backend or "auto", options.merge_lora or merge)
    base = options.base_model
    if checkpoint is not None:
        if adapters is not None:
            raise RequestError([adapters.problem(*two_models(checkpoint))])
        base = base or model
        kind: Literal["adapter", "model"] = "model" if base is None else "adapter"
        return _Asked(checkpoint, base, kind if is_on_hub(checkpoint) else "", *how)
    if adapters is None:
        return _Asked(model, base, "model" if is_on_hub(model) else "", *how)
    if len(adapters.value) > 1:
        raise RequestError([adapters.problem("names several adapters", "Name only one.")])
    adapter = str(adapters.value[0]).rpartition("=")[2]
    return _Asked(adapter, base or model, "adapter" if is_on_hub(adapter) else "", *how)
