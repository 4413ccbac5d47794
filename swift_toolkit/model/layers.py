"""The names of a model's modules and weights, from its weight index or headers, to check settings that name them.

ms-swift and PEFT ignore a name that matches nothing as long as another one matches, so a misspelled layer is silently
not trained.
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
"""Names that stand for all modules of a kind."""
_NOT_STORED = frozenset("lm_head score v_head classifier".split())
"""Modules that may have no weights of their own in the files: tied, or created for training."""
_OF_EXPERTS = frozenset("experts gate_up_proj down_proj gate router".split())
"""Modules of a mixture of experts that transformers 5 names differently from the files."""
_NORM = re.compile(r"(?:^|[._])(?:\w*norm\w*|ln_?\w)$", re.IGNORECASE)
"""Names of normalisations, for which PEFT has no adapters."""
_WITH_ADAPTERS = ("lora", "adalora", "vera", "boft", "fourierft", "bone")
"""Tuners of PEFT that put an adapter on single layers."""


@dataclass(frozen=True)
class Layers:
    """The modules and weights of a model.

    Args:
        weights: names of the weights, as in the model's files.
        renamed: transformers may load the weights under other names, in addition to the stored ones.
    """

    weights: tuple[str, ...]
    renamed: bool = False

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The modules that have weights of their own."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.weights))

    @cached_property
    def last_names(self) -> frozenset[str]:
        """The last components of the names of all modules, including those that contain others."""
        return frozenset(part for name in self.modules for part in name.split(".") if not part.isdecimal())

    @cached_property
    def containers(self) -> tuple[str, ...]:
        """The modules that contain others."""
        parts = [module.split(".") for module in self.modules]
        return tuple(dict.fromkeys(".".join(words[:end]) for words in parts for end in range(1, len(words))))

    def inside(self, name: str) -> list[str]:
        """The last names of the modules in containers of this name, without normalisations."""
        found = [module for module in self.modules if f".{name}." in f".{module}"]
        return sorted({module.rpartition(".")[2] for module in found if not _NORM.search(module)})

    @cached_property
    def has_experts(self) -> bool:
        return any(".experts." in name for name in self.weights)

    def named(self, name: str) -> int:
        """How many modules have this name or end in it, which is how PEFT matches a list."""
        return sum(module == name or module.endswith(f".{name}") for module in self.modules)

    def holding(self, name: str) -> int:
        """The same, including modules that contain others."""
        inside = re.compile(rf"(?:^|\.){re.escape(name)}(?:\.|$)")
        return len({module[: found.end()] for module in self.modules if (found := inside.search(module))})

    def matching(self, pattern: re.Pattern[str]) -> int:
        """How many modules a pattern matches in full, which is how PEFT matches a string."""
        return sum(pattern.fullmatch(module) is not None for module in self.modules)

    def beginning(self, prefix: str) -> int:
        """How many weights start with this, which is how ms-swift freezes and unfreezes them."""
        return sum(name.startswith(prefix) or f"model.{name}".startswith(prefix) for name in self.weights)

    def ending(self, name: str) -> int:
        """How many weights have this name or end in it, which is how PEFT matches ``target_parameters``."""
        return sum(weight == name or weight.endswith(f".{name}") for weight in self.weights)

    def searched(self, pattern: re.Pattern[str]) -> int:
        """How many weights a pattern matches anywhere."""
        return sum(pattern.search(name) is not None for name in self.weights)


def layers_of(model: str) -> Layers | None:
    """The modules of a local or embedded model; None if its files do not list them."""
    if builtin.is_builtin(model):
        return Layers(builtin.weight_names(model)) if model in builtin.BUILTIN else None
    path = Path(model).expanduser()
    names = _stored_names(path) if path.is_dir() else ()
    if not names:
        return None
    config, _ = read_json(path / "config.json")
    return Layers(tuple(names), renamed=_has_inner_models(config or {}))


def _has_inner_models(config: JsonObject) -> bool:
    """Whether the model combines several models, whose weights transformers renames when it loads them."""
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


# --- settings that name modules ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """How a setting names modules or weights."""

    count: Callable[[Layers, Any], int]
    is_pattern: bool = False
    what: str = "layer"


_WAYS: dict[str, _Way] = {
    "target_modules": _Way(Layers.named),
    "target_parameters": _Way(Layers.ending, what="parameter"),
    "modules_to_save": _Way(Layers.holding, what="part"),
    "target_regex": _Way(Layers.matching, is_pattern=True),
    "freeze_parameters": _Way(Layers.beginning, what="parameter"),
    "trainable_parameters": _Way(Layers.beginning, what="parameter"),
    "freeze_parameters_regex": _Way(Layers.searched, is_pattern=True, what="parameter"),
    "trainable_parameters_regex": _Way(Layers.searched, is_pattern=True, what="parameter"),
}


def layer_problems(config: Config) -> Iterator[Problem]:
    """Names that match nothing in the model of a request, and invalid patterns."""
    layers = layers_of(str(config.get("model")))
    for setting, name, way in _named(config):
        if way.is_pattern and isinstance(pattern := _compiled(name), str):
            yield config.problem(setting, f'has "{name}", which is not a regular expression: {pattern}')
        elif layers is None:
            continue
        elif config.tuner in _WITH_ADAPTERS and (wrong := _without_adapter(layers, setting, name)):
            yield config.problem(setting, *wrong)
        elif not _fits(layers, name, way):
            yield config.problem(setting, *_nothing_fits(layers, name, way))


def _without_adapter(layers: Layers, setting: str, name: str) -> tuple[str, str] | None:
    """What is wrong with a name of something that cannot have an adapter, and what to do; PEFT fails after loading."""
    if setting == "target_regex" and not layers.renamed:
        pattern = re.compile(name)
        for module in (*layers.containers, *filter(_NORM.search, layers.modules)):
            if pattern.fullmatch(module):
                what = f'has "{name}", which also matches "{module}", which cannot have an adapter'
                return what, 'Let it match layers only, e.g. with "(q_proj|v_proj)" at its end.'
    if setting != "target_modules" or name in _EVERY:
        return None
    if layers.named(name) and _NORM.search(name):
        do = 'Add it to "modules_to_save" instead, to train all of it.'
        return f'names "{name}", a normalisation, which cannot have an adapter', do
    ends = any(f".{part}".endswith(f".{name}") for part in layers.containers)
    if ends and not layers.named(name) and not layers.has_experts:
        do = f"Name the layers in it: {' '.join(layers.inside(name))}."
        return f'names "{name}", which contains layers and cannot have an adapter of its own', do
    return None


def layer_counts(config: Config) -> Iterator[str]:
    """How many modules or weights each name matches, one line for each setting that names any."""
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
    """Each name in the request, with its setting and how the setting names things."""
    for setting, way in _WAYS.items():
        value = config.get(setting) or []
        for name in value if isinstance(value, list) else [value]:
            yield setting, str(name), way


def _compiled(pattern: str) -> Any:
    """The compiled pattern, or the reason why it is invalid."""
    try:
        return re.compile(pattern)
    except re.error as error:
        return error.msg


def _fits(layers: Layers, name: str, way: _Way) -> bool:
    """Whether a name matches, or may match something that is not in the files."""
    if way.is_pattern:
        return layers.renamed or way.count(layers, _compiled(name)) > 0
    last = name.rpartition(".")[2]
    may_be_there = name in _EVERY or last in _NOT_STORED or (layers.has_experts and last in _OF_EXPERTS)
    dotted = "." in name or way.what == "parameter"
    may_be_there = may_be_there or (layers.has_experts and way.count == Layers.ending)
    return may_be_there or (layers.renamed and dotted) or way.count(layers, name) > 0


def _nothing_fits(layers: Layers, name: str, way: _Way) -> tuple[str, str]:
    """What is wrong with a name that matches nothing, and what to do."""
    if way.is_pattern:
        return (
            f'has "{name}", which matches no {way.what} of the model',
            f'It has e.g. "{layers.modules[-1]}".',
        )
    if len(words := [word for word in re.split(r"[\s,\[\]\"']+", name) if word]) > 1 or (
        words and words[0] != name
    ):
        return f'names "{name}" as one name', f"Write each as a word of its own: {' '.join(words)}."
    known = {*layers.last_names, *_EVERY} if way.what != "parameter" else _prefixes(layers)
    do = did_you_mean(name, sorted(known), f"It has {', '.join(sorted(_leaves(layers)))}.")
    return f'names "{name}", but the model has no {way.what} of that name', do


def _leaves(layers: Layers) -> set[str]:
    return {module.rpartition(".")[2] for module in layers.modules} - {""}


def _prefixes(layers: Layers) -> set[str]:
    """The prefixes of the weights' names; of repeated layers only the first."""
    found = set()
    for name in layers.weights:
        parts = name.split(".")
        if all(part == "0" for part in parts if part.isdecimal()):
            found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return found
