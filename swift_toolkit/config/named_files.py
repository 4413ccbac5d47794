"""Files that settings name, checked before a run starts: prompts, tokens, tables of data sets, DeepSpeed's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swift_toolkit.config.settings import Config
from swift_toolkit.problems import Problem

DEEPSPEED = tuple("zero0 zero1 zero2 zero3 zero2_offload zero3_offload".split())
"""The DeepSpeed configurations included in ms-swift."""
_TEXTS = ("system", "new_special_tokens")
_TABLES = ("custom_dataset_info",)
_SHARED = """
train_micro_batch_size_per_gpu   per_device_train_batch_size
gradient_accumulation_steps      gradient_accumulation_steps
gradient_clipping                max_grad_norm
optimizer.params.lr              learning_rate
optimizer.params.weight_decay    weight_decay
optimizer.params.eps             adam_epsilon
scheduler.params.warmup_max_lr   learning_rate
fp16.enabled                     fp16
bf16.enabled                     bf16
"""
"""Settings that DeepSpeed's file has too; transformers fails if they differ (HfTrainerDeepSpeedConfig)."""


def named_file_problems(config: Config) -> Iterator[Problem]:
    """Files that are missing, cannot be read, or contradict the settings."""
    for name in _TEXTS:
        for path in _paths(config, name, ".txt"):
            if isinstance(read := _text(path), Problem):
                yield config.problem(name, read.what, read.do)
            elif not read.strip():
                yield config.problem(name, f'names the file "{path}", which is empty')
    for name in _TABLES:
        for path in _paths(config, name, ""):
            found = _json(path)
            if isinstance(found, Problem):
                yield config.problem(name, found.what, found.do)
            elif not isinstance(found, list):
                yield config.problem(
                    name, f'names the file "{path}", which does not hold a list of data sets'
                )
    for name in ("cached_dataset", "cached_val_dataset"):
        for path in config.get(name) or []:
            places = (path, path.rpartition("#")[0] or path)
            if not any(Path(place).expanduser().is_dir() for place in places):
                what = f'names the directory "{path}", which does not exist'
                yield config.problem(name, what, "Make it with: swift export --to_cached_dataset true")
    for name in ("deepspeed", "teacher_deepspeed"):
        yield from _deepspeed(config, name)


def _paths(config: Config, name: str, suffix: str) -> Iterator[str]:
    """The files that a setting names: strings with an extension that ms-swift reads as a file."""
    value = config.get(name) or []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and one.endswith(suffix) and "\n" not in one:
            yield one


def _text(path: str) -> str | Problem:
    """The text of a file, or why it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Problem(f'names the file "{path}", which does not exist', "Check the path.")
    except UnicodeDecodeError:
        return Problem(f'names the file "{path}", which is not UTF-8 text', "Save it as UTF-8.")
    except OSError as error:
        return Problem(f'names "{path}", which cannot be read ({error.strerror})', "Check the path.")


def _json(path: str) -> Any:
    """The content of a JSON file, or why it cannot be read."""
    text = _text(path)
    if isinstance(text, Problem):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        return Problem(f'names the file "{path}", which is not valid JSON ({error})', "Fix the file.")


def _deepspeed(config: Config, name: str) -> Iterator[Problem]:
    value = config.get(name)
    if not isinstance(value, str) or value in DEEPSPEED:
        return
    is_path = value.endswith(".json") or "/" in value
    content = _json(value) if is_path else None
    if isinstance(content, Problem):
        yield config.problem(name, content.what, content.do)
    elif is_path and not isinstance(content, dict):
        yield config.problem(
            name, f'names the file "{value}", which does not hold an object', "Fix the file."
        )
    elif isinstance(content, dict) and name == "deepspeed":
        yield from _contradictions(config, content, value)


def _contradictions(config: Config, content: dict[str, object], path: str) -> Iterator[Problem]:
    """Values in DeepSpeed's file that differ from the settings."""
    for row in _SHARED.strip().splitlines():
        key, setting = row.split()
        theirs, ours = _inside(content, key), _ours(config, setting)
        if theirs in (None, "auto") or ours is None or theirs == ours:
            continue
        what = f'is {json.dumps(ours)}, and {path} has "{key}": {json.dumps(theirs)}'
        yield config.problem(setting, what, f'Write "{key}": "auto" there to use the value of the setting.')
    yield from _dtypes(config, content, path)
    stage = _inside(content, "zero_optimization.stage")
    if stage == 3 and config.get("device_map"):
        yield config.problem(
            "device_map", f"cannot be used with ZeRO-3, which {path} asks for", "Remove one."
        )


def _ours(config: Config, setting: str) -> Any:
    """The value of a setting that is known before the run; a batch has one row by default."""
    if setting == "per_device_train_batch_size":
        return config.value(setting)
    return config.get(setting)


def _dtypes(config: Config, content: dict[str, Any], path: str) -> Iterator[Problem]:
    """A number format that DeepSpeed's file enables but that is not ``torch_dtype`` (ms-swift sets ``fp16`` and
    ``bf16`` from it)."""
    dtype = config.get("torch_dtype")
    for kind, name in (("fp16", "float16"), ("bf16", "bfloat16")):
        is_on = _inside(content, f"{kind}.enabled") is True
        if (
            is_on
            and config.get(kind) is None
            and dtype not in (None, name, "float32" if kind == "fp16" else name)
        ):
            do = f'Write "enabled": "auto" there, or set "torch_dtype" to "{name}".'
            yield config.problem("torch_dtype", f'is "{dtype}", but {path} enables {kind}', do)


def batch_contradictions(config: Config, world_size: int) -> Iterator[Problem]:
    """``train_batch_size`` in DeepSpeed's file if it is not the number of rows per step.

    Args:
        config: the request.
        world_size: number of processes on all machines.
    """
    value = config.get("deepspeed")
    content = _json(value) if isinstance(value, str) and value.endswith(".json") else None
    theirs = _inside(content, "train_batch_size")
    accumulated = config.get("gradient_accumulation_steps")
    if not isinstance(theirs, int) or accumulated is None:
        return
    rows = config.value("per_device_train_batch_size")
    ours = rows * accumulated * world_size
    if ours != theirs:
        what = f'says "train_batch_size": {theirs}, and {rows} × {accumulated} × {world_size} process(es) make {ours}'
        yield config.problem(
            "deepspeed", f'names "{value}", which {what}', 'Write "train_batch_size": "auto" there.'
        )


def _inside(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
