"""Whether the installed PEFT can load an adapter with this adapter_config.json, and which layers its patterns mean."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from swift_toolkit.console.words import did_you_mean
from swift_toolkit.machine import packages
from swift_toolkit.machine.msswift import package_of
from swift_toolkit.model.checkpoints.recorded import AdapterConfig
from swift_toolkit.problems import Problem

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


@cache
def _known_types() -> frozenset[str]:
    """The types of adapters of the installed PEFT, read from its source; none if it cannot be read."""
    package = package_of("peft")
    if package is None:
        return frozenset()
    try:
        tree = ast.parse((package / "utils/peft_types.py").read_bytes())
    except (OSError, SyntaxError):
        return frozenset()
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PeftType"]
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


def _fits(key: str, name: str) -> bool:
    """Whether a key of a pattern means this layer (``get_pattern_key`` in PEFT)."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


def _is_regular(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return bool(text)
