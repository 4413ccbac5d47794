"""Conditions on the values of a request, written as text in tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from swift_toolkit.config.settings import Config

_TEXT = re.compile(r"([\w.]+)(?:([=<>])(.+))?")


@dataclass(frozen=True)
class Condition:
    """``setting=value``: the setting has this value or is a list that contains it. ``setting>1`` and ``setting<1``
    compare a number, and a setting alone is set and not false.

    ``task`` and ``tuner`` stand for their final values; ``setting.key`` is a key of an object.
    """

    setting: str
    value: str = "*"
    sign: str = "="

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The condition that ``text`` describes."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"not a condition: {text!r}")
        return cls(found[1], found[3] or "*", found[2] or "=")

    def holds(self, config: Config) -> bool:
        """Whether the condition holds in ``config``."""
        given = _value(config, self.setting)
        if self.value == "*":
            return given not in (None, False, "no", "", [], {})
        if self.sign != "=":
            is_number = isinstance(given, (int, float))
            return is_number and (
                given > float(self.value) if self.sign == ">" else given < float(self.value)
            )
        return self.value in [str(one) for one in (given if isinstance(given, list) else [given])]

    def is_given(self, config: Config) -> bool:
        """Whether the setting is given, which a number may be although it is 0, or the condition holds."""
        given = _value(config, self.setting)
        is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
        return (self.value == "*" and is_number) or self.holds(config)

    def blamed(self, config: Config) -> str:
        """The setting to name in the message."""
        names = {"task": "task_type" if config.get("task_type") else "rlhf_type", "tuner": config.tuner_name}
        return names.get(self.setting, self.setting)

    def named(self, config: Config) -> str:
        """The condition in a message: ``"loss_type" "real"``."""
        shown = {"=": f' "{self.value}"', ">": f" above {self.value}", "<": f" below {self.value}"}
        return f'"{self.blamed(config)}"' + ("" if self.value == "*" else shown[self.sign])

    @property
    def shown(self) -> str:
        """The beginning of a message about the setting: ``is "real", which``."""
        return f'is "{self.value}", which ' if self.value != "*" and self.sign == "=" else ""


@dataclass(frozen=True)
class Conditions:
    """``condition&condition``: all of them hold; messages name the first."""

    all: tuple[Condition, ...]

    @classmethod
    def parse(cls, text: str) -> Conditions:
        """The conditions that ``text`` describes."""
        return cls(tuple(map(Condition.parse, text.split("&"))))

    @property
    def first(self) -> Condition:
        return self.all[0]

    def hold(self, config: Config) -> bool:
        """Whether all conditions hold in ``config``."""
        return all(one.holds(config) for one in self.all)


def _value(config: Config, name: str) -> Any:
    if name == "task":
        return config.task.name
    if name == "tuner":
        return config.tuner
    setting, _, key = name.partition(".")
    value = config.get(setting)
    if key and isinstance(value, dict):
        return value.get(key)
    return None if key else value
