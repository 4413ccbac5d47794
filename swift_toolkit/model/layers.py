"""The names of a model's parts, from the index or the headers of its weights: whether a setting names any of them.

ms-swift and PEFT skip a name that fits nothing as long as another one fits, so a misspelled layer is not trained and
nothing says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from swift_toolkit.config.settings import Config
from swift_toolkit.console.words import did_you_mean
from swift_toolkit.model import builtin
from swift_toolkit.model.files import JsonObject, read_json, safetensors_header, weight_files
from swift_toolkit.problems import Problem

_EVERY = frozenset("all-linear all-embedding all-norm all-router".split())
"""What stands for all parts of a kind."""
_NOT_STORED = frozenset("lm_head score v_head classifier".split())
"""Parts that a model can have without weights of their own in its files: tied, or made for training."""
_OF_EXPERTS = frozenset("experts gate_up_proj down_proj gate router".split())
"""Parts of a mixture of experts that are stored under other names than transformers 5 gives them."""


@dataclass(frozen=True)
class Layers:
    """The parts of a model.

    Args:
        weights: names of its weights, as its files have them.
        renamed: transformers may give them other names, in front of those that are stored.
    """

    weights: tuple[str, ...]
    renamed: bool = False

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The parts that have weights of their own."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.weights))

    @cached_property
    def last_names(self) -> frozenset[str]:
        """The last parts of the names of all modules, those that hold others included."""
        return frozenset(part for name in self.modules for part in name.split(".") if not part.isdecimal())

    @cached_property
    def has_experts(self) -> bool:
        return any(".experts." in name for name in self.weights)

    def named(self, name: str) -> int:
        """How many modules have this name or end in it, as PEFT matches a list."""
        return sum(module == name or module.endswith(f".{name}") for module in self.modules)

    def holding(self, name: str) -> int:
        """The same, modules that hold others included."""
        inside = re.compile(rf"(?:^|\.){re.escape(name)}(?:\.|$)")
        return len({module[: found.end()] for module in self.modules if (found := inside.search(module))})

    def matching(self, pattern: re.Pattern[str]) -> int:
        """How many modules a pattern fits as a whole, as PEFT matches a text."""
        return sum(pattern.fullmatch(module) is not None for module in self.modules)

    def beginning(self, prefix: str) -> int:
        """How many weights begin so, as ms-swift freezes and unfreezes them."""
        return sum(name.startswith(prefix) or f"model.{name}".startswith(prefix) for name in self.weights)

    def searched(self, pattern: re.Pattern[str]) -> int:
        """How many weights a pattern is found in."""
        return sum(pattern.search(name) is not None for name in self.weights)


def layers_of(model: str) -> Layers | None:
    """The parts of a local or embedded model; None where its files do not tell."""
    if builtin.is_builtin(model):
        return Layers(builtin.weight_names(model)) if model in builtin.BUILTIN else None
    path = Path(model).expanduser()
    names = _stored_names(path) if path.is_dir() else ()
    if not names:
        return None
    config, _ = read_json(path / "config.json")
    return Layers(tuple(names), renamed=_has_inner_models(config or {}))


def _has_inner_models(config: JsonObject) -> bool:
    """Whether the model is made of several, whose weights transformers renames when it loads them."""
    return any(
        key.endswith("_config") and isinstance(value, dict) and "hidden_size" in json.dumps(value)
        for key, value in config.items()
        if key != "quantization_config"
    )


def _stored_names(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for file in weight_files(path):
        if file.suffix == ".json":
            content, _ = read_json(file)
            names += (content or {}).get("weight_map", {})
        elif file.suffix == ".safetensors":
            header = safetensors_header(file)
            names += header.tensors if header else ()
        else:
            return ()
    return tuple(names)


# --- settings that name parts ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """How a setting names parts."""

    count: Callable[[Layers, Any], int]
    is_pattern: bool = False
    what: str = "layer"


_WAYS: dict[str, _Way] = {
    "target_modules": _Way(Layers.named),
    "modules_to_save": _Way(Layers.holding, what="part"),
    "target_regex": _Way(Layers.matching, is_pattern=True),
    "freeze_parameters": _Way(Layers.beginning, what="parameter"),
    "trainable_parameters": _Way(Layers.beginning, what="parameter"),
    "freeze_parameters_regex": _Way(Layers.searched, is_pattern=True, what="parameter"),
    "trainable_parameters_regex": _Way(Layers.searched, is_pattern=True, what="parameter"),
}


def layer_problems(config: Config) -> Iterator[Problem]:
    """Names of parts that the model of a request does not have, and patterns that are none."""
    layers = layers_of(str(config.get("model")))
    for setting, name, way in _named(config):
        if way.is_pattern and isinstance(pattern := _compiled(name), str):
            yield config.problem(setting, f'has "{name}", which is not a regular expression: {pattern}')
        elif layers is not None and not _fits(layers, name, way):
            yield config.problem(setting, *_nothing_fits(layers, name, way))


def layer_counts(config: Config) -> Iterator[str]:
    """How many parts each name fits, one line for each setting that names some."""
    layers = layers_of(str(config.get("model")))
    found: dict[str, list[str]] = {}
    for setting, name, way in _named(config) if layers else ():
        if (
            name not in _EVERY
            and layers
            and (count := way.count(layers, _compiled(name) if way.is_pattern else name))
        ):
            found.setdefault(setting, []).append(f"{name} {count:,}")
    for setting, parts in found.items():
        yield f"{setting}: {', '.join(parts)}"


def _named(config: Config) -> Iterator[tuple[str, str, _Way]]:
    """Setting, name and way of every name of a part in the request."""
    for setting, way in _WAYS.items():
        value = config.get(setting) or []
        for name in value if isinstance(value, list) else [value]:
            yield setting, str(name), way


def _compiled(pattern: str) -> Any:
    """The pattern; a text with the reason where it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        return error.msg


def _fits(layers: Layers, name: str, way: _Way) -> bool:
    """Whether a name fits, or may fit what is not in the files."""
    if way.is_pattern:
        return layers.renamed or way.count(layers, _compiled(name)) > 0
    last = name.rpartition(".")[2]
    may_be_there = name in _EVERY or last in _NOT_STORED or (layers.has_experts and last in _OF_EXPERTS)
    dotted = "." in name or way.what == "parameter"
    return may_be_there or (layers.renamed and dotted) or way.count(layers, name) > 0


def _nothing_fits(layers: Layers, name: str, way: _Way) -> tuple[str, str]:
    """What to say of a name that fits nothing."""
    if way.is_pattern:
        return f'has "{name}", which fits no {way.what} of the model', f'It has e.g. "{layers.modules[-1]}".'
    known = {*layers.last_names, *_EVERY} if way.what != "parameter" else _prefixes(layers)
    do = did_you_mean(name, sorted(known), f"It has {', '.join(sorted(_leaves(layers)))}.")
    return f'names "{name}", and no {way.what} of the model is called so', do


def _leaves(layers: Layers) -> set[str]:
    return {module.rpartition(".")[2] for module in layers.modules} - {""}


def _prefixes(layers: Layers) -> set[str]:
    """What names of weights begin with, of repeated layers those of the first."""
    found = set()
    for name in layers.weights:
        parts = name.split(".")
        if all(part == "0" for part in parts if part.isdecimal()):
            found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return found
