"""What the tuners of PEFT and ms-swift require and exclude, as far as it does not depend on the model."""

from __future__ import annotations

from collections.abc import Iterator

from swift_toolkit.config.settings import Config
from swift_toolkit.machine import packages
from swift_toolkit.machine.msswift import package_of
from swift_toolkit.problems import Problem

NEEDS = """
callbacks=lisa    tuner=full
"""
"""Conditions, and the conditions of which one must hold, too."""

EXCLUDES = """
use_dora          tuner=adalora
"""
"""Conditions that cannot hold together."""

_WITHOUT_SETTINGS = ("loftq", "corda")
"""Values of ``init_weights`` that need settings or a preparation which ms-swift does not pass to PEFT."""


def tuner_problems(config: Config) -> Iterator[Problem]:
    """What does not fit the tuner of a request."""
    if config.tuner != "full":
        yield from _single_adapter(config)
    if config.tuner == "lora":
        yield from _initial_weights(config)
    if config.tuner == "boft":
        yield from _blocks(config)
    if config.tuner == "bone" and not _peft_has("bone"):
        what = f'is "bone", which PEFT {packages.version("peft")} no longer has'
        yield config.problem(config.tuner_name, what, 'Use "lora".')
    if config.get("use_swift_lora") and config.install.breaks_swift_lora:
        what = f"cannot be used with PEFT {packages.version('peft')}: ms-swift's own LoRA does not fit it"
        yield config.problem("use_swift_lora", what, "Remove it.")
    yield from _dimensions(config)


def _peft_has(tuner: str) -> bool:
    package = package_of("peft")
    return package is None or (package / "tuners" / tuner).is_dir()


def _single_adapter(config: Config) -> Iterator[Problem]:
    adapters = config.get("adapters") or []
    if len(adapters) > 1 and not config.get("resume_from_checkpoint"):
        yield config.problem("adapters", f"takes one adapter to train, not {len(adapters)}", "Keep one.")


def _initial_weights(config: Config) -> Iterator[Problem]:
    value, rank = str(config.get("init_weights")), config.value("lora_rank")
    if value in _WITHOUT_SETTINGS:
        what = f'is "{value}", which needs settings that ms-swift does not pass to PEFT'
        yield config.problem("init_weights", what, 'Use e.g. "pissa", or remove it.')
    elif value == "orthogonal" and rank % 2:
        what = f'is {rank}, but "init_weights" "orthogonal" needs an even rank'
        yield config.problem("lora_rank", what, f"Use {rank + 1}.")


def _blocks(config: Config) -> Iterator[Problem]:
    """BOFT takes the size of a block or the number of blocks; ms-swift's defaults are a size of 4 and no number."""
    size, number = config.value("boft_block_size"), config.value("boft_block_num")
    if size and number:
        what = f'is {number}, beside "boft_block_size" {size}: BOFT takes one of them'
        yield config.problem("boft_block_num", what, "Set the other one to 0.")
    elif not size and not number:
        do = "Set it to e.g. 4, or set boft_block_num."
        yield config.problem("boft_block_size", 'and "boft_block_num" are both 0', do)


def _dimensions(config: Config) -> Iterator[Problem]:
    """``mrl_dims`` maps whole numbers to weights."""
    content = config.get("mrl_dims")
    for key, weight in content.items() if isinstance(content, dict) else ():
        whole = str(key).isascii() and str(key).isdecimal()
        if not whole or isinstance(weight, bool) or not isinstance(weight, (int, float)):
            what = f'has "{key}": {weight!r}, which is not a dimension with its weight'
            yield config.problem("mrl_dims", what, 'Write e.g. {"64": 1.0, "128": 1.0}.')


def schedule_problems(config: Config, steps: int | None) -> Iterator[Problem]:
    """AdaLoRA's steps before and after it removes ranks, if they leave none between them.

    Args:
        config: the request.
        steps: optimiser steps of the run; None if not known.
    """
    before, after = config.value("adalora_tinit"), config.value("adalora_tfinal")
    if config.tuner == "adalora" and steps and before + after >= steps:
        name = "adalora_tinit" if config.get("adalora_tinit") else "adalora_tfinal"
        what = f"is {config.get(name)}, and the run has {steps:,} steps: none is left to remove ranks in"
        yield config.problem(name, what, "Lower it.")
