"""The shared config module: settings from a file, flags or Python, combined with a preset and checked.

Call ``load_config``. Every value of the Config that it returns has the name and type that the installed ms-swift
takes, and knows its source; the RequestError that it raises lists every mistake in the request.

Precedence: command line or call > config file > preset > automatic setting > ms-swift's own default.
``null`` in a file (``None`` from Python) lets ms-swift decide.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal

from swift_toolkit.config import fields as config_fields
from swift_toolkit.config import named_files, presets, requirements, rules, sharding, tasks
from swift_toolkit.config.fields import Field
from swift_toolkit.config.file import environment_of, read_config_file
from swift_toolkit.config.limits import plugins, rope
from swift_toolkit.config.names import renames, translate
from swift_toolkit.config.presets import PRESETS_OF_LORA, Choice
from swift_toolkit.config.settings import OWN_KEYS, TUNER_NAMES, Config, Setting, Source
from swift_toolkit.config.values import typed_value
from swift_toolkit.console.words import did_you_mean, nearest
from swift_toolkit.machine import msswift
from swift_toolkit.machine.msswift import Command
from swift_toolkit.problems import Problem, RequestError

_OF_A_RUN = frozenset("rank local_rank global_world_size local_world_size".split())
"""Keys that occur only in the args.json of a run of ms-swift, never in a request."""
_RUN_ADVICE = 'Repeat the run with the settings under "config" in the result.json next to it.'
_ABOUT_THE_REQUEST = ("preset", "task", "effective_batch_size", "balance")
"""The toolkit's own keys, except those that are only new names for arguments of ms-swift."""


def load_config(
    source: str | Path | Mapping[str, object] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    command: Command = "sft",
    overrides_from: Literal["command line", "call"] = "call",
) -> Config:
    """Read, merge, translate and check a request.

    Args:
        source: a JSON or YAML file, a mapping, or None when ``overrides`` hold everything.
        overrides: settings that override ``source``; ``-`` and ``_`` are equivalent in names.
        command: the ms-swift command that takes the arguments. The keys ``task`` and ``rlhf_type`` can turn ``sft``
            into ``pt`` or ``rlhf``.
        overrides_from: the name of the overrides in messages.

    Raises:
        RequestError: with every problem of the request.
    """
    config, problems = read_request(source, overrides, command=command, overrides_from=overrides_from)
    if problems:
        raise RequestError(problems)
    return config


def read_request(
    source: str | Path | Mapping[str, object] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    command: Command = "sft",
    overrides_from: Literal["command line", "call"] = "call",
) -> tuple[Config, list[Problem]]:
    """``load_config`` for callers that do further checks before they stop: the valid part of the request, and all
    problems.

    Raises:
        RequestError: the file cannot be read at all, or ms-swift is not installed.
    """
    given = _given(source, overrides or {}, overrides_from)
    own = {name: setting for layer in given for name, setting in layer.items() if name in _ABOUT_THE_REQUEST}
    problems = list(_own_problems(own, command))
    if command == "sft":
        problems += _task_problems(own, given)
        given = _with_task(own, given)
        command = _task(own, given)
    install = msswift.installed()
    problems += [*msswift.missing_problems(command), *msswift.version_problems()]
    reader = _Reader(command, install, config_fields.fields(command, install))
    read = reader.merged(given)
    problems += read.problems
    trains = command in tasks.TRAINING_COMMANDS
    tuner_name = install.tuner_argument
    choice = (
        presets.choose(read.settings, own.get("preset"), tuner_name)
        if trains
        else Choice(None, read.settings)
    )
    typed = reader.typed({n: s for n, s in choice.settings.items() if s.value is not None})
    problems += [*choice.problems, *typed.problems]
    config = Config(
        command,
        install,
        choice.preset,
        typed.settings,
        [*read.notices, *choice.notices],
        left_alone={name for name, setting in read.settings.items() if setting.value is None},
        path=str(source) if isinstance(source, (str, Path)) else None,
        effective_batch=_effective_batch(own.get("effective_batch_size")),
        balance=_balance(own.get("balance")),
        preset_asked=choice.preset is not None and "preset" in own,
        stored_as=_stored_as(given),
    )
    for name, content in list(named_files.objects_in_files(config)):
        config.replace(name, content)
    rope.write_for_transformers(config)
    for name, notice in rules.unused_secrets(config):
        del config.settings[name]
        config.notices.append(notice)
    if command == "sft" and config.get("num_labels") is not None:
        config.fill("task_type", "seq_cls", "num_labels makes a classifier")
    if trains:
        _start_from_checkpoint(config)
        problems += rules.rule_problems(config, typed.rejected)
        config.warnings += [*requirements.unusual_values(config), *sharding.sharding_warnings(config)]
        config.warnings += named_files.named_file_warnings(config)
    else:
        problems += [*named_files.named_file_problems(config), *rope.rope_problems(config)]
        problems += plugins.plugin_problems(config)
    return config, problems


def _start_from_checkpoint(config: Config) -> None:
    """Full training from only the weights of a checkpoint needs no other model: ms-swift loads the checkpoint as it."""
    checkpoint = config.get("resume_from_checkpoint")
    if checkpoint and config.get("resume_only_model") and config.tuner == "full":
        config.fill("model", checkpoint, "resume_only_model loads only the checkpoint")


def _given(
    source: str | Path | Mapping[str, object] | None,
    overrides: Mapping[str, object],
    overrides_from: Literal["command line", "call"],
) -> list[dict[str, Setting]]:
    """The layers that the user gave, lowest precedence first."""
    layers = []
    if isinstance(source, (str, Path)):
        read = read_config_file(source)
        if read.values.keys() >= _OF_A_RUN:
            raise RequestError(
                [Problem("is the args.json of a run, which lists every default", _RUN_ADVICE, file=read.path)]
            )
        sources = {key: Source("file", file=read.path, line=line) for key, line in read.lines.items()}
        environment = environment_of(read.values)
        left = {"ENV"} if environment and os.environ.keys() >= environment.keys() else set()
        layers.append(
            {_plain(key): Setting(v, sources[key], key) for key, v in read.values.items() if key not in left}
        )
    elif source is not None:
        layers.append(
            {_plain(key): Setting(v, Source(overrides_from), str(key)) for key, v in source.items()}
        )
    layers.append({_plain(key): Setting(v, Source(overrides_from), str(key)) for key, v in overrides.items()})
    return layers


def _plain(name: str) -> str:
    return str(name).replace("-", "_")


def _task(own: Mapping[str, Setting], given: list[dict[str, Setting]]) -> Command:
    """The command of ms-swift given as ``task``, or implied by ``rlhf_type``."""
    task = own["task"].value if "task" in own else None
    if (row := _named_task(own)) is not None:
        return row.command
    if task in tasks.TRAINING_COMMANDS:
        return task  # type: ignore[no-any-return]
    rlhf = any(layer.get("rlhf_type") and layer["rlhf_type"].value is not None for layer in given)
    return "rlhf" if rlhf and task is None else "sft"


def _named_task(own: Mapping[str, Setting]) -> tasks.Task | None:
    """The task given as ``task``, if it is a task and not a command of ms-swift."""
    name = own["task"].value if "task" in own else None
    return next(
        (row for row in tasks.TASKS.values() if row.name == name and name not in tasks.TRAINING_COMMANDS),
        None,
    )


def _with_task(own: Mapping[str, Setting], given: list[dict[str, Setting]]) -> list[dict[str, Setting]]:
    """The layers, with ms-swift's own setting for a task added next to its name."""
    row = _named_task(own)
    if row is None:
        return given
    name, value = row.setting
    brought = {name: replace(own["task"], value=value)}
    return [brought | layer if layer.get("task") is own["task"] else layer for layer in given]


def _task_problems(own: Mapping[str, Setting], given: list[dict[str, Setting]]) -> Iterator[Problem]:
    """A task that contradicts ms-swift's own setting for it."""
    row = _named_task(own)
    if row is None:
        return
    name, value = row.setting
    for layer in given:
        if name in layer and layer[name].value not in (None, value):
            what = f'is "{row.name}", but "{layer[name].written}" is {json.dumps(layer[name].value, default=str)}'
            yield own["task"].problem(what, "Remove one of the two.")


def _own_problems(own: Mapping[str, Setting], command: Command) -> Iterator[Problem]:
    """What is wrong with the keys that are not arguments of ms-swift."""
    task, batch = own.get("task"), own.get("effective_batch_size")
    is_named = task is None or task.value in (None, *tasks.TRAINING_COMMANDS) or _named_task(own) is not None
    if command == "sft" and task is not None and not is_named:
        do = did_you_mean(str(task.value), tasks.TASKS, f"Use one of {', '.join(tasks.TASKS)}.")
        yield task.problem(f"is {json.dumps(task.value, default=str)}", do)
    if batch is not None and batch.value is not None and _effective_batch(batch) is None:
        shown = json.dumps(batch.value, default=str)
        yield batch.problem(f"is {shown}; it must be a whole number, 1 or more")
    balance = own.get("balance")
    if balance is not None and balance.value is not None and _balance(balance) is None:
        yield balance.problem(f"must be true or false, not {json.dumps(balance.value, default=str)}")


def _effective_batch(given: Setting | None) -> Setting | None:
    text = str(given.value) if given is not None else ""
    if given is None or not (text.isascii() and text.isdecimal() and int(text) > 0):
        return None
    return replace(given, value=int(text))


def _balance(given: Setting | None) -> Setting | None:
    if given is None or given.value is None:
        return None
    try:
        return replace(given, value=typed_value(Field("balance", "bool"), given.value))
    except ValueError:
        return None


def _stored_as(given: list[dict[str, Setting]]) -> Setting | None:
    """The ``quant_method`` of the highest layer that has one, if models are stored by it."""
    found = [layer["quant_method"] for layer in given if "quant_method" in layer]
    return found[-1] if found and found[-1].value in renames.STORED_METHODS else None


@dataclass(frozen=True)
class _Read:
    """The valid settings, and the messages about all others.

    Args:
        rejected: names of settings whose values have the wrong type.
    """

    settings: dict[str, Setting]
    problems: list[Problem]
    notices: list[str] = field(default_factory=list)
    rejected: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Reader:
    """Translates and converts the settings of one request."""

    command: Command
    install: msswift.SwiftInstall
    fields: Mapping[str, Field]

    def merged(self, layers: list[dict[str, Setting]]) -> _Read:
        """All layers in the names of the installed ms-swift, merged by precedence."""
        whole = _Read({}, [])
        for layer in layers:
            others = {n: s.value for other in layers if other is not layer for n, s in other.items()}
            beside = {name: value for name, value in others.items() if value is not None}
            read = self.translated({n: s for n, s in layer.items() if n not in _ABOUT_THE_REQUEST}, beside)
            whole = _Read(
                whole.settings | read.settings, whole.problems + read.problems, whole.notices + read.notices
            )
        return whole

    def translated(self, layer: Mapping[str, Setting], beside: Mapping[str, object]) -> _Read:
        """One layer in the names of the installed ms-swift.

        Args:
            layer: the settings; ``null`` and an empty list let ms-swift decide.
            beside: the settings in the other layers.
        """
        unset = {name for name, setting in layer.items() if setting.value in (None, [])}
        values = {
            name: "lora" if _names_preset(name, setting) else setting.value
            for name, setting in layer.items()
            if name not in unset
        }
        done = translate.translate(values, self.command, self.install.line, self.fields, beside)
        current = {name: renames.current_name(name, self.command, self.install.line) for name in unset}
        settings = {
            new: replace(layer[old], value=None) for old, new in current.items() if new in self.fields
        }
        settings |= {name: self._named(name, done, layer) for name in done.values}
        problems = [layer[name].problem(what, do) for name, what, do in done.errors]
        unknown = [*done.unknown, *(old for old in layer if old in unset and not self._knows(old))]
        problems += map(self._unknown, (layer[name] for name in unknown), unknown, count())
        notices = [line for line in done.notices if not line.startswith("train_type ")]
        return _Read(settings, problems, [*notices, *(f"{name}: {text}" for name, text in done.warnings)])

    def _knows(self, name: str) -> bool:
        return name in self.fields or renames.is_known(name, self.command)

    def _named(self, name: str, done: translate.Translation, layer: Mapping[str, Setting]) -> Setting:
        """The setting that results from a translation, with the source of the original one."""
        if name in done.added:
            return Setting(done.values[name], Source("automatic", done.added[name]), name)
        origin = done.origin[name][0]
        is_preset = name in TUNER_NAMES and _names_preset(origin, layer[origin])
        return layer[origin] if is_preset else replace(layer[origin], value=done.values[name])

    def _unknown(self, setting: Setting, name: str, place: int) -> Problem:
        """The problem of an unknown name; only the first fifty get a suggestion, which takes time."""
        dashes = "--" if setting.source.kind == "command line" else ""
        known = renames.foreign(name)
        trains = self.command in tasks.TRAINING_COMMANDS
        if known and (trains or (known.name in self.fields and not nearest(name, self.fields))):
            do = known.do or f'In ms-swift it is "{dashes}{known.name}".'
            return setting.problem(f"is a name of {known.tool}", do)
        if do := self._misplaced(setting, name):
            return setting.problem("is not a setting", do)
        if other := self._other_command(name):
            return setting.problem(f"is a setting of swift {other}", _FOR_COMMAND[other])
        if name.lower() in _ENVIRONMENT or name.isupper():
            return setting.problem("is not a setting", _environment_advice(name))
        names = [*OWN_KEYS, *self.fields]
        near = (nearest(name, names, most=2) or _holding(name, names)) if place < 50 else []
        mean = " or ".join(f'"{dashes}{word}"' for word in near)
        return setting.problem("is not a setting", f"Did you mean {mean}?" if near else "Remove it.")

    def _misplaced(self, setting: Setting, name: str) -> str:
        """What to do with a group of settings, a comment, or a name in capitals; "" for any other name."""
        if name == "ENV" and isinstance(setting.value, dict):
            return f"Set these environment variables before: {', '.join(map(str, setting.value))}."
        if isinstance(setting.value, dict) and any(self._knows(_plain(key)) for key in setting.value):
            return f'Write its settings beside the others, without "{setting.written}".'
        if name.startswith(("_", "//", "#")):
            return "Remove it; a .yaml file can hold comments."
        if name.isupper() and name.lower() in self.fields:
            return f'Did you mean "{name.lower()}"? {_environment_advice(name)}'
        return ""

    def _other_command(self, name: str) -> Command | None:
        """Another command that has the argument."""
        return next(
            (
                one
                for one in _FOR_COMMAND
                if one != self.command and name in config_fields.fields(one, self.install)
            ),
            None,
        )

    def _takes_a_value(self, name: str) -> bool:
        field = self.fields[name]
        return field.kind != "bool" and not (field.choices and True in field.choices)

    def typed(self, settings: Mapping[str, Setting]) -> _Read:
        """The settings, with every value converted to the type of its field."""
        good, problems = {}, []
        for name, setting in settings.items():
            if setting.value is True and setting.source.kind == "command line" and self._takes_a_value(name):
                problems.append(setting.problem("needs a value"))
                continue
            try:
                good[name] = replace(setting, value=typed_value(self.fields[name], setting.value))
            except ValueError as error:
                problems.append(setting.problem(*error.args))
        return _Read(good, problems, rejected=frozenset(settings.keys() - good.keys()))


_FOR_COMMAND: dict[Command, str] = {
    "sft": "Pass it to finetune_trainer.py.",
    "rlhf": 'Set "rlhf_type", e.g. to "dpo" or "grpo", to use it.',
    "infer": "Pass it to inference_test.py.",
    "deploy": "Pass it to deploy_model.py.",
    "export": "Pass it to deploy_model.py.",
}
"""Where the settings of each command belong; a setting of several counts for the first of them."""


def _holding(name: str, known: Iterable[str]) -> list[str]:
    """The names, at most two, that contain all words of ``name``: ``lr_scheduler_type`` for ``scheduler``."""
    words = set(name.lower().split("_"))
    found = [one for one in known if words <= set(one.split("_"))]
    return found if len(found) <= 2 else []


_ENVIRONMENT = frozenset("nproc_per_node nnodes node_rank master_addr master_port".split())
"""Launcher settings, which are flags of the script or environment variables."""


def _environment_advice(name: str) -> str:
    if name.lower() in _ENVIRONMENT:
        flag = name.lower().replace("_", "-")
        return f"Set it in the environment ({name.upper()}=...) or on the command line (--{flag} ...)."
    return f"If it is an environment variable, set it before the command: {name}=... python ..."


def _names_preset(name: str, setting: Setting) -> bool:
    """Whether the tuner setting holds a preset, which `presets.choose` handles."""
    return name in TUNER_NAMES and setting.value in PRESETS_OF_LORA
