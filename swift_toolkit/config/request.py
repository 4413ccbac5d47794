"""The shared config module: settings from a file, flags or Python, laid over a preset and checked.

``load_config`` is the one way in. Every value of the Config it returns is spelled and typed as the installed
ms-swift takes it and knows where it came from; every mistake of the request is in the one RequestError it raises.

Precedence: command line or call > config file > preset > automatic setting (plan.py) > ms-swift's own default.
``null`` in a file (``None`` from Python) means "leave this one to ms-swift".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from swift_toolkit.config import fields as config_fields
from swift_toolkit.config import presets as config_presets
from swift_toolkit.config import renames, rules, tasks
from swift_toolkit.config import translate as config_translate
from swift_toolkit.config.fields import Field
from swift_toolkit.config.file import read_config_file
from swift_toolkit.config.presets import PRESETS_OF_LORA
from swift_toolkit.config.settings import OWN_KEYS, TUNER_NAMES, Config, Setting, Source
from swift_toolkit.config.values import typed_value
from swift_toolkit.machine import msswift
from swift_toolkit.machine.msswift import Command
from swift_toolkit.problems import Problem, RequestError

_ABOUT_THE_REQUEST = (
    "preset",
    "task",
    "effective_batch_size",
)  # the own keys that are no argument of ms-swift under another name


def load_config(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    command: Command = "sft",
    overrides_from: Literal["command line", "call"] = "call",
) -> Config:
    """Read, merge, translate and check a request.

    Args:
        source: a JSON or YAML file, a mapping, or None when ``overrides`` hold everything.
        overrides: settings laid over ``source``; ``-`` and ``_`` are alike in names.
        command: the ms-swift command that will take the arguments. For ``sft`` the keys ``task`` and ``rlhf_type``
            can make it ``pt`` or ``rlhf``.
        overrides_from: what to call the overrides in messages.

    Raises:
        RequestError: with every problem of the request.
    """
    config, problems = read_request(source, overrides, command=command, overrides_from=overrides_from)
    if problems:
        raise RequestError(problems)
    return config


def read_request(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    command: Command = "sft",
    overrides_from: Literal["command line", "call"] = "call",
) -> tuple[Config, list[Problem]]:
    """``load_config`` for callers that look further before they stop: the request as far as it is good, and its
    problems.

    Raises:
        RequestError: the file cannot be read at all, or ms-swift is not installed.
    """
    given = _given(source, overrides or {}, overrides_from)
    own = {name: setting for layer in given for name, setting in layer.items() if name in _ABOUT_THE_REQUEST}
    problems: list[Problem] = []
    if command == "sft":
        command = _task(own, given, problems)
    install = msswift.installed()
    reader = _Reader(command, install, config_fields.fields(command, install), problems)
    merged: dict[str, Setting] = {}
    for layer in given:
        others = {n: s.value for other in given if other is not layer for n, s in other.items()}
        reader.beside = {name: value for name, value in others.items() if value is not None}
        merged.update(reader.translate({n: s for n, s in layer.items() if n not in _ABOUT_THE_REQUEST}))
    path = str(source) if isinstance(source, (str, Path)) else None
    effective = _effective_batch(own.get("effective_batch_size"), problems)
    config = Config(command, install, None, merged, reader.notices, path=path, effective_batch=effective)
    if command in tasks.COMMANDS:
        config_presets.apply(config, own.get("preset"), problems)
    config.left_alone = {name for name, setting in merged.items() if setting.value is None}
    config.settings = reader.typed({n: s for n, s in config.settings.items() if s.value is not None})
    if command in tasks.COMMANDS:
        problems += rules.check(config, set(reader.rejected))
    return config, problems


def _given(
    source: str | Path | Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    overrides_from: Literal["command line", "call"],
) -> list[dict[str, Setting]]:
    """The layers the user gave, weakest first."""
    layers = []
    if isinstance(source, (str, Path)):
        read = read_config_file(source)
        sources = {key: Source("file", file=read.path, line=line) for key, line in read.lines.items()}
        layers.append({_plain(key): Setting(value, sources[key], key) for key, value in read.values.items()})
    elif source is not None:
        layers.append(
            {_plain(key): Setting(v, Source(overrides_from), str(key)) for key, v in source.items()}
        )
    layers.append({_plain(key): Setting(v, Source(overrides_from), str(key)) for key, v in overrides.items()})
    return layers


def _plain(name: str) -> str:
    return str(name).replace("-", "_")


def _task(own: Mapping[str, Setting], given: list[dict[str, Setting]], problems: list[Problem]) -> Command:
    rlhf = any(layer.get("rlhf_type") and layer["rlhf_type"].value is not None for layer in given)
    if "task" not in own or own["task"].value is None:
        return "rlhf" if rlhf else "sft"
    task = own["task"].value
    if task not in tasks.COMMANDS:
        problems.append(own["task"].problem(f"is {json.dumps(task)}", 'Use "sft", "pt" or "rlhf".'))
        return "sft"
    return task  # type: ignore[no-any-return]


def _effective_batch(given: Setting | None, problems: list[Problem]) -> Setting | None:
    if given is None or given.value is None:
        return None
    text = str(given.value)
    if not (text.isdecimal() and int(text) > 0):
        problems.append(given.problem(f"is {json.dumps(given.value)}; it must be a whole number, 1 or more"))
        return None
    return replace(given, value=int(text))


class _Reader:
    """Translates and types the layers of one request, collecting what is wrong."""

    def __init__(
        self,
        command: Command,
        install: msswift.SwiftInstall,
        fields: Mapping[str, Field],
        problems: list[Problem],
    ) -> None:
        self.command, self.install, self.fields, self.problems = command, install, fields, problems
        self.notices: list[str] = []
        self.beside: dict[str, Any] = {}
        self.rejected: list[str] = []

    def translate(self, layer: Mapping[str, Setting]) -> dict[str, Setting]:
        """One layer in the names of the installed ms-swift."""
        layer = dict(layer)
        result = {name: layer.pop(name) for name in list(layer) if layer[name].value in (None, [])}
        presets = {n: layer[n].value for n in TUNER_NAMES if n in layer and layer[n].value in PRESETS_OF_LORA}
        for name in presets:  # no tuner: put back below, for presets.apply
            layer[name] = replace(layer[name], value="lora")
        values = {name: setting.value for name, setting in layer.items()}
        done = config_translate.translate(values, self.command, self.install.line, self.fields, self.beside)
        for name, value in done.values.items():
            first = layer[done.origin[name][0]]
            named = presets.get(done.origin[name][0]) if name in TUNER_NAMES else None
            result[name] = replace(first, value=named or value)
            if name in done.added:
                result[name] = Setting(value, Source("automatic", done.added[name]), name)
        self.notices += [line for line in done.notices if not line.startswith("train_type ")]
        for name, text in done.warnings:
            self.notices.append(f"{name}: {text}")
        for name, what, do in done.errors:
            self.problems.append(layer[name].problem(what, do))
        for name in done.unknown:
            self.problems.append(self._unknown(layer[name], name))
        for name in [name for name in result if name not in self.fields]:
            self.problems.append(self._unknown(result.pop(name), name))
        return result

    def _unknown(self, setting: Setting, name: str) -> Problem:
        dashes = "--" if setting.source.kind == "command line" else ""
        known = renames.foreign(name)
        if known:
            right, project = known
            return setting.problem(f"is a name of {project}", f'In ms-swift it is "{dashes}{right}".')
        near = config_translate.suggestions(name, [*OWN_KEYS, *self.fields])
        mean = " or ".join(f'"{dashes}{word}"' for word in near[:2])
        return setting.problem("is not a setting", f"Did you mean {mean}?" if near else "Remove it.")

    def typed(self, settings: Mapping[str, Setting]) -> dict[str, Setting]:
        """The settings with every value in the type its field takes; what cannot be is reported and left out."""
        result = {}
        for name, setting in settings.items():
            try:
                result[name] = replace(setting, value=typed_value(self.fields[name], setting.value))
            except ValueError as error:
                self.problems.append(setting.problem(*error.args))
                self.rejected.append(name)
        return result
