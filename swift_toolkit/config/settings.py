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
    "preset": "`lora`, `qlora`, `full` or `multimodal`; without it `train_type` decides",
    "train_type": "a preset's name or another tuner of ms-swift: what ms-swift 4 calls `tuner_type`",
    "task": "what is trained: `sft` (default), `pt`, `dpo`, `grpo`, `seq_cls` … see docs/tasks.md",
    "effective_batch_size": "rows an optimiser step, on any number of devices: batch and accumulation follow from it",
    "balance": "rows of a step share micro-batches with rows of about their length: `true` or `false`",
}
"""The keys that are the toolkit's own, with what they take; all others are ms-swift's."""


TUNER_NAMES = ("tuner_type", "train_type", "sft_type")
"""The names that the generations of ms-swift gave the argument that chooses the tuner, newest first."""


@dataclass(frozen=True)
class Source:
    """Where a value came from.

    Args:
        kind: the layer it was given in.
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
    """One value with its source and the name under which the user gave it."""

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
        command: the ms-swift command whose arguments these are.
        install: the ms-swift that is installed.
        preset: the preset in force, None for commands and tuners that have none.
        settings: exact argument name -> Setting; None values are already gone.
        notices: one line for each translation that was made.
        left_alone: names given as null, which no automatic setting may fill.
        path: the config file, None without one.
        effective_batch: the requested rows per optimiser step; None if not requested.
        preset_asked: the preset was named, not only derived from other settings.
        warnings: what is legal and probably not meant.
        balance: whether the rows of a step are shared out by length, None where that is left to the plan.
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

    def get(self, name: str, default: Any = None) -> Any:
        """The value of ``name``, or ``default`` if it is not set."""
        return self.settings[name].value if name in self.settings else default

    @property
    def task(self) -> Task:
        """What is trained; of other commands, what the model was made for."""
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
        """What the installed ms-swift calls the argument that chooses the tuner."""
        return self.install.tuner_argument

    @property
    def tuner(self) -> str:
        """The tuner in force; ``lora`` is ms-swift's own default."""
        return str(self.value(self.tuner_name))

    def problem(self, name: str, what: str, do: str = "") -> Problem:
        """The problem ``what`` of setting ``name``, at the place where it was given."""
        if name in self.settings:
            return self.settings[name].problem(what, do)
        return Problem(what, do, name, self.path)

    def fill(self, name: str, value: Any, reason: str) -> None:
        """Set ``name`` automatically unless somebody decided it already."""
        if name not in self.settings and name not in self.left_alone:
            self.settings[name] = Setting(value, Source("automatic", reason), name)

    def replace(self, name: str, value: Any) -> None:
        """Replace the value of ``name``, if it is set; the source stays."""
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
            words = [word_of(value) for value in values]
            # with "=", so that a value may begin with "-"
            result[name] = [f"--{name}={words[0]}"] if len(words) == 1 else [f"--{name}", *words]
        return result


def word_of(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
