"""The values of one request, each with its source."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from swift_toolkit.config import fields
from swift_toolkit.config.tasks import TRAINING_COMMANDS, Task, task_of
from swift_toolkit.machine import msswift
from swift_toolkit.machine.msswift import Command
from swift_toolkit.problems import Problem

OWN_KEYS = {
    "preset": "`lora`, `qlora`, `full` or `multimodal`; by default, `train_type` decides",
    "train_type": "a preset's name or another tuner of ms-swift (`tuner_type` in ms-swift 4)",
    "task": "training task: `sft` (default), `pt`, `dpo`, `grpo`, `seq_cls` … see docs/tasks.md",
    "effective_batch_size": "rows per optimiser step on any number of devices; sets batch size and accumulation",
    "balance": "whether a micro-batch holds rows of similar length: `true` or `false`",
}
"""The toolkit's own keys, with their values; all others are ms-swift's."""


TUNER_NAMES = ("tuner_type", "train_type", "sft_type")
"""The names of the argument that chooses the tuner in the generations of ms-swift, newest first."""


@dataclass(frozen=True)
class Source:
    """The source of a value.

    Args:
        kind: the layer that contains it.
        detail: the preset's name, or the reason of an automatic setting.
        file: the config file, as the user spelled it.
        line: line in that file, counted from 1.
    """

    kind: Literal["command line", "call", "file", "preset", "automatic"]
    detail: str = ""
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        if self.kind == "file":
            return f"{self.file}:{self.line}"
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True)
class Setting:
    """One value, with its source and the name under which the user gave it."""

    value: Any
    source: Source
    written: str

    @property
    def shown(self) -> str:
        """The value as a user would write it."""
        values = self.value if isinstance(self.value, list) else [self.value]
        return " ".join(word_of(value) for value in values)

    def problem(self, what: str, do: str = "") -> Problem:
        """The problem ``what`` of this setting, at the place where it was given."""
        key = f"--{self.written}" if self.source.kind == "command line" else self.written
        return Problem(what, do, key, self.source.file, self.source.line)


@dataclass
class Config:
    """A checked request, in the names and types of the installed ms-swift.

    Args:
        command: the ms-swift command that takes the arguments.
        install: the installed ms-swift.
        preset: the preset in use, None for commands and tuners that have none.
        settings: exact argument name -> Setting, without None values.
        notices: one line for each translation.
        left_alone: names given as null, which no automatic setting may set.
        path: the config file, None if there is none.
        effective_batch: the requested rows per optimiser step; None if not requested.
        preset_asked: the preset was given, not derived from other settings.
        warnings: what is legal but probably a mistake.
        balance: whether rows of a step are grouped by length; None lets the plan decide.
        stored_as: the method (``gptq``, ``awq``, ``aqlm``) by which the user says that the model is stored; ms-swift
            reads it from the model itself.
    """

    command: Command
    install: msswift.SwiftInstall
    preset: str | None
    settings: dict[str, Setting]
    notices: list[str] = field(default_factory=list)
    left_alone: set[str] = field(default_factory=set)
    path: str | None = None
    effective_batch: Setting | None = None
    preset_asked: bool = False
    warnings: list[Problem] = field(default_factory=list)
    balance: Setting | None = None
    stored_as: Setting | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """The value of ``name``, or ``default`` if it is not set."""
        return self.settings[name].value if name in self.settings else default

    @property
    def task(self) -> Task:
        """The training task; for other commands, the task that the model was made for."""
        return task_of(
            self.command if self.command in TRAINING_COMMANDS else "sft",
            self.get("rlhf_type"),
            self.get("task_type"),
        )

    def value(self, name: str) -> Any:
        """The value of ``name``, or ms-swift's own default if it is not set."""
        return self.get(name, fields.default(name, self.command, self.install))

    @property
    def tuner_name(self) -> str:
        """The installed ms-swift's name for the argument that chooses the tuner."""
        return self.install.tuner_argument

    @property
    def tuner(self) -> str:
        """The tuner in use; ``lora`` is ms-swift's own default."""
        return str(self.value(self.tuner_name))

    def problem(self, name: str, what: str, do: str = "") -> Problem:
        """The problem ``what`` of setting ``name``, at the place where it was given."""
        if name in self.settings:
            return self.settings[name].problem(what, do)
        return Problem(what, do, name, self.path)

    def fill(self, name: str, value: Any, reason: str) -> None:
        """Set ``name`` automatically unless the user or the preset set it."""
        if name not in self.settings and name not in self.left_alone:
            self.settings[name] = Setting(value, Source("automatic", reason), name)

    def replace(self, name: str, value: Any) -> None:
        """Replace the value of ``name`` if it is set; its source is unchanged."""
        if name in self.settings:
            self.settings[name] = replace(self.settings[name], value=value)

    def arguments(self) -> list[str]:
        """The argument list for ms-swift's own parser, e.g. ``["--lora_rank=8"]``."""
        return [word for words in self.words().values() for word in words]

    def words(self) -> dict[str, list[str]]:
        """The words of each argument for ms-swift's own parser, e.g. ``{"lora_rank": ["--lora_rank=8"]}``."""
        result = {}
        for name, setting in self.settings.items():
            values = setting.value if isinstance(setting.value, list) else [setting.value]
            words = [_argument(name, value) for value in values]
            # with "=", so that a value may start with "-"
            result[name] = [f"--{name}={words[0]}"] if len(words) == 1 else [f"--{name}", *words]
        return result


def _argument(name: str, value: Any) -> str:
    """A value for ms-swift's own parser, which reads ``max_memory`` as a Python literal: in JSON the numbers of devices
    would be text, which accelerate refuses."""
    if name == "max_memory" and isinstance(value, dict):
        return repr({int(key) if str(key).isdecimal() else key: limit for key, limit in value.items()})
    return word_of(value)


def word_of(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
