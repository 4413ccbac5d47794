"""The shared config module: settings from a file, flags or Python, laid over a preset and checked.

``load_config`` is the one way in. Every value of the Config it returns is spelled and typed as the installed
ms-swift takes it and knows where it came from; every mistake of the request is in the one RequestError it raises.

Precedence: command line or call > config file > preset > automatic setting (plan.py) > ms-swift's own default.
``null`` in a file (``None`` from Python) means "leave this one to ms-swift".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from swift_toolkit.config import fields as config_fields
from swift_toolkit.config import translate as config_translate
from swift_toolkit.config.fields import Command, Field
from swift_toolkit.config.file import read_config_file
from swift_toolkit.problems import Problem, RequestError

OWN_KEYS = {
    "preset": "`lora`, `qlora`, `full` or `multimodal`; without it `train_type` decides",
    "train_type": "a preset's name or another tuner of ms-swift: what ms-swift 4 calls `tuner_type`",
    "task": "`sft` (default), `pt` or `rlhf`; `rlhf_type` alone means `rlhf`",
    "effective_batch_size": "rows an optimiser step, on any number of devices: batch and accumulation follow from it",
}
"""The keys that are the toolkit's own, with what they take; all others are ms-swift's."""

_ABOUT_THE_REQUEST = (
    "preset",
    "task",
    "effective_batch_size",
)  # the own keys that are no argument of ms-swift under another name

TUNER_NAMES = ("tuner_type", "train_type", "sft_type")
"""The names that the generations of ms-swift gave the argument that chooses the tuner, newest first."""

PRESETS_OF_LORA = ("qlora", "multimodal")
"""What may be said in the tuner's place and is no tuner but a preset, which begins with LoRA."""


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
        return " ".join(_word(value) for value in values)

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
        effective_batch: the rows of an optimiser step that were asked for, None if nobody asked.
    """

    command: Command
    install: config_fields.SwiftInstall
    preset: str | None
    settings: dict[str, Setting]
    notices: list[str] = field(default_factory=list)
    left_alone: set[str] = field(default_factory=set)
    path: str | None = None
    effective_batch: Setting | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """The value of ``name``, or ``default`` when nobody set it."""
        return self.settings[name].value if name in self.settings else default

    @property
    def tuner_name(self) -> str:
        """What the installed ms-swift calls the argument that chooses the tuner."""
        return "tuner_type" if self.install.line == "v4" else "train_type"

    @property
    def tuner(self) -> str:
        """The tuner in force; ``lora`` is ms-swift's own default."""
        return str(self.get(self.tuner_name, "lora"))

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
        """Put ``value`` in the place of what was given for ``name``, if anything was; it keeps its source."""
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
            words = [_word(value) for value in values]
            # with "=", so that a value may begin with "-"
            result[name] = [f"--{name}={words[0]}"] if len(words) == 1 else [f"--{name}", *words]
        return result


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


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
    install = config_fields.installed()
    reader = _Reader(command, install, config_fields.fields(command, install), problems)
    merged: dict[str, Setting] = {}
    for layer in given:
        others = {n: s.value for other in given if other is not layer for n, s in other.items()}
        reader.beside = {name: value for name, value in others.items() if value is not None}
        merged.update(reader.translate({n: s for n, s in layer.items() if n not in _ABOUT_THE_REQUEST}))
    path = str(source) if isinstance(source, (str, Path)) else None
    effective = _effective_batch(own.get("effective_batch_size"), problems)
    config = Config(command, install, None, merged, reader.notices, path=path, effective_batch=effective)
    if command in ("sft", "pt", "rlhf"):
        from swift_toolkit.config import presets as config_presets

        config_presets.apply(config, own.get("preset"), problems)
    config.left_alone = {name for name, setting in merged.items() if setting.value is None}
    config.settings = reader.typed({n: s for n, s in config.settings.items() if s.value is not None})
    if command in ("sft", "pt", "rlhf"):
        from swift_toolkit.config import rules

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
    if task not in ("sft", "pt", "rlhf"):
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
        install: config_fields.SwiftInstall,
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
        known = config_translate.foreign(name)
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


# --- values -------------------------------------------------------------------------------------------------

_WORDS_FOR_BOOL = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def typed_value(field: Field, value: Any) -> Any:
    """``value`` in the type that ``field`` takes.

    Words from a command line are understood like the values of a file: ``"8"`` is 8 for a number, ``"true"`` is
    True for a switch, ``'["a", "b"]'`` is a list.

    Raises:
        ValueError: with two arguments, what is wrong and what to do.
    """
    if field.is_list:
        return _typed_list(field, value)
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"takes one value, not {len(value)}", "")
        value = value[0]
    return _typed_one(field, value)


def _typed_list(field: Field, value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        values = list(value)
    elif isinstance(value, str) and value.lstrip().startswith("["):
        values = _json(value, list, "a list")
    else:
        values = [value]
    if not values:
        raise ValueError("is an empty list", "Name at least one, or remove it.")
    return [_typed_one(field, one) for one in values]


def _typed_one(field: Field, value: Any) -> Any:
    if isinstance(value, str) and not value.strip() and field.kind != "str":
        raise ValueError("is empty", "Give a value, or remove it.")
    if field.choices is None:
        return _KINDS[field.kind](value)
    for choice in field.choices:  # "8" from a command line is the 8 of a Literal[4, 8]
        if _word(choice) == _word(value):
            return choice
    raise ValueError(*not_one_of(value, field.choices))


def not_one_of(value: Any, choices: Iterable[Any]) -> tuple[str, str]:
    """What to say of a value that is not among the ``choices``."""
    import difflib

    words, word = [str(choice) for choice in choices], str(value).lower()
    longer = [choice for choice in words if word and choice.startswith(f"{word}_")]
    near = longer or difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    do = f'Did you mean "{near[0]}"?' if near else f"Use one of {', '.join(words)}."
    return f"cannot be {json.dumps(value, ensure_ascii=False, default=str)}", do


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("0", "1"):
        return word == "1"
    if word not in _WORDS_FOR_BOOL:
        raise ValueError(f"must be true or false, not {_shown(value)}", "")
    return _WORDS_FOR_BOOL[word]


def _int(value: Any) -> int:
    number = _float(value)
    if number != int(number):
        raise ValueError(f"must be a whole number, not {_shown(value)}", "")
    return int(number)


def _float(value: Any) -> float:
    """A number; a whole one given as such stays an int, to be shown as it was written."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"must be a number, not {_shown(value)}", "")
    whole = isinstance(value, int) or (isinstance(value, str) and value.strip().isdigit())
    return int(value) if whole else number


def _str(value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise ValueError(f"must be text, not {_shown(value)}", "")
    return _word(value)


def _dict(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return _json(value, dict, "an object")
    if isinstance(value, (list, bool)):
        raise ValueError(f"must be an object or text, not {_shown(value)}", "")
    return value if isinstance(value, dict) else str(value)


def _json(text: str, kind: type, called: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON ({error.msg[:1].lower()}{error.msg[1:]})", "") from None
    if not isinstance(value, kind):
        raise ValueError(f"must be {called}", "")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


_KINDS: dict[str, Callable[[Any], Any]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _str,
    "dict": _dict,
}
