"""Whether the installed PEFT can load an adapter with this adapter_config.json, and which layers its patterns mean."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from swift_toolkit.console.words import did_you_mean, shown
from swift_toolkit.machine import packages
from swift_toolkit.machine.msswift import package_of
from swift_toolkit.model.checkpoints.recorded import AdapterConfig
from swift_toolkit.problems import Problem

ITS_OWN = "Use the adapter_config.json that was saved with these weights."

DEFAULT_RANK = 8
"""The rank of PEFT's LoraConfig if none is given."""


def type_problems(file: Path, config: AdapterConfig) -> Iterator[Problem]:
    """A ``peft_type`` that the installed PEFT lacks, or none at all: PEFT ends in a KeyError after the model is loaded.

    Args:
        file: the adapter_config.json.
        config: its content.
    """
    known = _known_types()
    if not known or config.swift_form or config.peft_type in known or not file.is_file():
        return
    saved = f"It was saved with PEFT {config.peft_version}. " if config.peft_version else ""
    if not config.peft_type:
        yield Problem(f'{file} has no "peft_type"', f'Add it, e.g. "peft_type": "LORA". {saved}'.rstrip())
        return
    what = (
        f'{file} says "{config.peft_type}", which the installed PEFT {packages.version("peft")} does not have'
    )
    yield Problem(what, did_you_mean(config.peft_type, known, f"{saved}Use a version of PEFT that has it."))


def value_problems(file: Path, config: AdapterConfig) -> Iterator[Problem]:
    """Values that PEFT accepts when it reads the file, and fails with once the model is loaded.

    Args:
        file: the adapter_config.json.
        config: its content.
    """
    rules = {**(_OF_LORA if config.peft_type == "LORA" else {}), **_OF_ALL}
    for name, (holds, rule) in rules.items():
        if name in config.content and not holds(config.content[name]):
            yield Problem(
                f'{file} has "{name}": {shown(config.content[name])}, which must be {rule}', "Correct it."
            )
    yield from _start_problems(file, config)
    tasks, task = _values_of("TaskType"), config.content.get("task_type")
    if tasks and task is not None and task not in tasks:
        what = f'{file} has "task_type": {shown(task)}, which the installed PEFT does not have'
        yield Problem(what, did_you_mean(str(task), tasks, f"Use one of {', '.join(sorted(tasks))}."))


def _start_problems(file: Path, config: AdapterConfig) -> Iterator[Problem]:
    """A way to initialise LoRA that the installed PEFT lacks; it is applied before the weights are loaded."""
    way, known = config.content.get("init_lora_weights"), _ways_to_start()
    if config.peft_type != "LORA" or not isinstance(way, str) or not known or way in _OF_OTHERS:
        return
    if way not in known and not re.fullmatch(r"pissa_niter_\d+", way):
        what = f'{file} has "init_lora_weights": {shown(way)}, which the installed PEFT does not have'
        yield Problem(what, "Set it to true: the weights are already trained.")


_OF_OTHERS = ("lora-ga", "lora_ga")  # ms-swift and the package of LoRA-GA add these to PEFT


@cache
def _ways_to_start() -> frozenset[str]:
    """The names that ``init_lora_weights`` of the installed PEFT takes, read from its source."""
    tree = _source("tuners/lora/config.py")
    fields = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    types = [node.annotation for node in fields if getattr(node.target, "id", "") == "init_lora_weights"]
    values = [node.value for one in types for node in ast.walk(one) if isinstance(node, ast.Constant)]
    return frozenset(value for value in values if isinstance(value, str))


def _source(file: str) -> ast.Module:
    """A file of the installed PEFT; empty if it cannot be read."""
    package = package_of("peft")
    try:
        return ast.parse((package / file).read_bytes() if package else b"")
    except (OSError, SyntaxError):
        return ast.Module([], [])


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_switch(value: object) -> bool:
    return value is None or isinstance(value, (bool, int))


_Rules = Mapping[str, tuple[Callable[[Any], bool], str]]

_OF_ALL: _Rules = {
    "target_modules": (
        lambda value: value is None or isinstance(value, str) or _are_strings(value), "a string or a list of strings"
    ),
    "modules_to_save": (lambda value: value is None or _are_strings(value), "a list of strings"),
}  # fmt: skip

_OF_LORA: _Rules = {
    "r": (_is_rank, "a whole number of at least 1"),
    "lora_alpha": (lambda value: _is_number(value) and value != 0, "a number other than 0"),
    "lora_dropout": (
        lambda value: _is_number(value) and not (value < 0 or value > 1),
        "a number from 0 to 1",
    ),
    "bias": (lambda value: value in ("none", "all", "lora_only"), '"none", "all" or "lora_only"'),
    "rank_pattern": (
        lambda value: isinstance(value, dict) and all(map(_is_rank, value.values())),
        "an object with whole numbers",
    ),
    "alpha_pattern": (
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
        "an object with numbers",
    ),
    "use_dora": (_is_switch, "true or false"),
    "use_rslora": (_is_switch, "true or false"),
}


def _known_types() -> frozenset[str]:
    """The types of adapters of the installed PEFT."""
    return _values_of("PeftType")


@cache
def _values_of(name: str) -> frozenset[str]:
    """The values of an enumeration of the installed PEFT, read from its source; none if it cannot be read."""
    tree = _source("utils/peft_types.py")
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    values = [line.value for body in bodies for line in body if isinstance(line, ast.Assign)]
    return frozenset(str(value.value) for value in values if isinstance(value, ast.Constant))


def rank_of(config: AdapterConfig, layer: str) -> int:
    """The rank that PEFT gives to a layer: that of the first key of ``rank_pattern`` that fits its name."""
    key = next((key for key in config.rank_pattern if _fits(key, layer)), None)
    if key is not None:
        return config.rank_pattern[key]
    return DEFAULT_RANK if config.rank is None else config.rank


def pattern_problems(file: Path, config: AdapterConfig, layers: Iterable[str]) -> Iterator[Problem]:
    """Keys of ``rank_pattern`` and ``alpha_pattern`` that are no regular expressions, and keys of ``alpha_pattern``
    that name a layer of the adapter by another path: PEFT would load it with the scale of ``lora_alpha``.

    Args:
        file: the adapter_config.json.
        config: its content.
        layers: the names of the layers that the adapter changes.
    """
    names = list(layers)
    keys = {"rank_pattern": tuple(config.rank_pattern), "alpha_pattern": config.alpha_pattern}
    for pattern, key in ((pattern, key) for pattern, some in keys.items() for key in some):
        try:
            re.compile(key)
        except re.error as error:
            yield Problem(
                f'{file}: "{pattern}" has "{key}", which is not a regular expression ({error})', "Correct it."
            )
            return
    for key in config.alpha_pattern:
        last = key.rpartition(".")[2]
        alike = [name for name in names if _fits(last, name.rpartition(".")[2])] if _is_regular(last) else []
        if alike and not any(_fits(key, name) for name in names):
            what = f'{file}: "alpha_pattern" has "{key}", which fits no layer of the adapter'
            yield Problem(what, f"Its layers are named like {alike[0]}: correct the key.")
            return


def lists_targets(config: AdapterConfig) -> bool:
    """Whether ``target_modules`` lists names of modules, and nothing else limits them to some layers."""
    content = config.content
    targets = content.get("target_modules")
    limits = ("layers_to_transform", "exclude_modules", "target_parameters", "layer_replication")
    return _are_strings(targets) and _EVERY not in targets and not any(content.get(name) for name in limits)


_EVERY = "all-linear"


def is_target(config: AdapterConfig, name: str) -> bool:
    """Whether PEFT puts an adapter on the module ``name`` (``check_target_module_exists`` in PEFT); True if that is
    not certain.
    """
    content = config.content
    targets, excluded = content.get("target_modules"), content.get("exclude_modules")
    if isinstance(excluded, str) and _is_regular(excluded) and re.fullmatch(excluded, name):
        return False
    if isinstance(excluded, list) and _ends_in(name, excluded):
        return False
    if isinstance(targets, str):
        return targets == _EVERY or not _is_regular(targets) or re.fullmatch(targets, name) is not None
    if not _are_strings(targets) or _EVERY in targets or name in targets:
        return True
    return _ends_in(name, targets) and _in_layers(
        content.get("layers_to_transform"), content.get("layers_pattern"), name
    )


def _ends_in(name: str, endings: Iterable[str]) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in endings)


def _in_layers(layers: object, pattern: object, name: str) -> bool:
    """Whether ``layers_to_transform`` and ``layers_pattern`` include the block of the module ``name``."""
    if layers is None or layers == []:
        return True
    patterns = [pattern] if isinstance(pattern, str) else pattern if isinstance(pattern, list) else []
    found = [re.match(rf".*?\.{one}\.(\d+)\.", name) for one in patterns or ["[^.]*"]]
    block = next((int(match[1]) for match in found if match), None)
    return block in (layers if isinstance(layers, list) else [layers])


def saved_modules(config: AdapterConfig) -> list[str]:
    """The names in ``modules_to_save``."""
    return list(config.content.get("modules_to_save") or [])


def target_problems(file: Path, config: AdapterConfig, layers: Iterable[str]) -> Iterator[Problem]:
    """Layers of the adapter that its own ``target_modules`` does not name: PEFT would not load their weights.

    Args:
        file: the adapter_config.json.
        config: its content.
        layers: the names of the layers that the adapter changes.
    """
    if config.has_parameters or config.peft_type not in ("LORA", "ADALORA"):
        return
    apart = [one for one in layers if not is_target(config, one) and one.rpartition(".")[2] not in _TIED]
    if apart:
        more = f" and {len(apart) - 1} more of the layers" if len(apart) > 1 else ", one of the layers"
        targets = shown(config.content.get("target_modules"))
        what = f'{file} has "target_modules": {targets}, which leaves out {apart[0]}{more} that the weights are for'
        yield Problem(what, ITS_OWN)


_TIED = ("lm_head", "embed_tokens")
"""Modules that share weights: PEFT may adapt one because the other is a target."""


def _fits(key: str, name: str) -> bool:
    """Whether a key of a pattern means this layer (``get_pattern_key`` in PEFT)."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


def _is_regular(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return bool(text)
