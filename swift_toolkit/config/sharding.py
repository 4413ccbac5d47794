"""DeepSpeed's and FSDP's settings, which are files or objects of their own: missing, broken, or contradicting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from swift_toolkit.config.named_files import json_of, not_an_object
from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.console.words import shown
from swift_toolkit.machine import files as machine_files
from swift_toolkit.problems import Problem

DEEPSPEED = tuple("zero0 zero1 zero2 zero3 zero2_offload zero3_offload".split())
"""The DeepSpeed configurations included in ms-swift."""

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


def sharding_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the settings of DeepSpeed and FSDP."""
    for name in ("deepspeed", "teacher_deepspeed"):
        yield from _deepspeed(config, name)
    yield from _fsdp(config)


def _is_file(value: str) -> bool:
    """Whether text means a file, and not one of a few names."""
    return "/" in value or "." in value or machine_files.exists(value)


# --- DeepSpeed ----------------------------------------------------------------------------------------------


def _deepspeed(config: Config, name: str) -> Iterator[Problem]:
    value = config.get(name)
    if value is None or (isinstance(value, str) and value in DEEPSPEED):
        return
    if isinstance(value, str) and not value.lstrip().startswith("{") and not _is_file(value):
        yield config.problem(name, *not_one_of(value, DEEPSPEED))
        return
    content = json_of(value) if isinstance(value, str) else value
    if isinstance(content, Problem):
        yield config.problem(name, content.what, content.do)
    elif not isinstance(content, dict):
        yield config.problem(name, *not_an_object(str(value)))
    elif name == "deepspeed":
        if config.get("zero_hpz_partition_size") is not None and "zero_optimization" not in content:
            what = f'needs "zero_optimization" in {_place(value)}'
            yield config.problem("zero_hpz_partition_size", what, "Add it, or remove this setting.")
        yield from _contradictions(config, content, _place(value))


def _place(value: object) -> str:
    """How to name the settings of DeepSpeed in a message."""
    return value if isinstance(value, str) and machine_files.exists(value) else '"deepspeed"'


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


def _dtypes(config: Config, content: dict[str, object], path: str) -> Iterator[Problem]:
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
    content = json_of(value) if isinstance(value, str) and value not in DEEPSPEED else value
    theirs = _inside(content, "train_batch_size")
    accumulated = config.get("gradient_accumulation_steps")
    if not isinstance(theirs, int) or accumulated is None:
        return
    rows = config.value("per_device_train_batch_size")
    ours = rows * accumulated * world_size
    if ours != theirs:
        what = f'says "train_batch_size": {theirs}, and {rows} × {accumulated} × {world_size} process(es) make {ours}'
        named = f'names "{value}", which ' if isinstance(value, str) else ""
        yield config.problem("deepspeed", named + what, 'Write "train_batch_size": "auto" there.')


def _inside(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


# --- FSDP ---------------------------------------------------------------------------------------------------

_FILE = 'a JSON file such as {"fsdp": "full_shard auto_wrap", "fsdp_config": {...}}.'
_TAKES = f'Set it to "fsdp2", or to {_FILE}'

_OPTIONS = "full_shard shard_grad_op no_shard hybrid_shard hybrid_shard_zero2 offload auto_wrap".split()
"""Words of transformers' ``FSDPOption``."""

_KEYS = frozenset(
    """version auto_wrap_policy cpu_ram_efficient_loading state_dict_type reshard_after_forward cpu_offload
    activation_checkpointing min_num_params transformer_layer_cls_to_wrap backward_prefetch forward_prefetch
    limit_all_gathers use_orig_params sync_module_states sharding_strategy offload_params""".split()
)
"""Settings of FSDP, without the ``fsdp_`` that may precede them."""


def _fsdp(config: Config) -> Iterator[Problem]:
    """``_init_fsdp`` of ms-swift reads a file of its own named ``fsdp2``, a JSON file, or JSON; it takes the settings
    from this object and ignores the argument ``fsdp_config``."""
    value = config.get("fsdp")
    if value in (None, ""):
        return
    if value == "fsdp2" and not config.install.has_fsdp2:
        what = f'is "fsdp2", but ms-swift {config.install.version} lacks the file with its settings'
        yield config.problem("fsdp", what, f"Set it to {_FILE}")
    if value == "fsdp2":
        content: Any = {}
    elif isinstance(value, str) and not value.lstrip().startswith("{") and not _is_file(value):
        do = "Remove it." if value == "false" else _TAKES
        yield config.problem("fsdp", f"cannot be {shown(value)}", do)
        return
    else:
        content = json_of(value) if isinstance(value, str) else value
    if isinstance(content, Problem):
        yield config.problem("fsdp", content.what, content.do)
    elif not isinstance(content, dict):
        yield config.problem("fsdp", *not_an_object(str(value)))
    else:
        yield from _fsdp_content(config, content)


def _fsdp_content(config: Config, content: dict[str, object]) -> Iterator[Problem]:
    words = content.get("fsdp", "")
    unknown = [word for word in str(words).split() if word not in _OPTIONS]
    if unknown or not isinstance(words, str):
        what, do = not_one_of(unknown[0] if unknown else words, _OPTIONS)
        yield config.problem("fsdp", f'holds an object whose "fsdp" {what}', do)
    settings = content.get("fsdp_config", {})
    if not isinstance(settings, dict):
        yield config.problem("fsdp", 'holds a "fsdp_config" that is not an object', "Fix the file.")
        return
    kept = str(settings.get("state_dict_type", "SHARDED_STATE_DICT"))
    if config.get("save_only_model") and "SHARDED" in kept.upper():
        do = 'Remove it, or set "state_dict_type" of "fsdp_config" to "FULL_STATE_DICT".'
        yield config.problem("save_only_model", "cannot be used with the sharded checkpoints of FSDP", do)


def sharding_warnings(config: Config) -> Iterator[Problem]:
    """Settings of FSDP without effect."""
    value = config.get("fsdp")
    content = json_of(value) if isinstance(value, str) and _is_file(value) else value
    keys = content if isinstance(content, dict) else {}
    astray = next((key for key in keys if key.removeprefix("fsdp_") in _KEYS), None)
    if astray is not None:
        what = f'has "{astray}" outside of its "fsdp_config", where ms-swift ignores it'
        yield config.problem("fsdp", what, 'Put it inside: {"fsdp_config": {...}}.')
    if config.get("fsdp_config") is not None:
        what = 'has no effect: ms-swift takes the settings of FSDP from the object that "fsdp" names'
        yield config.problem("fsdp_config", what, 'Put them there, under "fsdp_config".')
