"""What transformers' ``TrainingArguments`` and ``Trainer`` require and exclude."""

from __future__ import annotations

import json
from collections.abc import Iterator

from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.machine.device import Device
from swift_toolkit.problems import Problem

NEEDS = """
optim=galore_adamw_layerwise         gradient_accumulation_steps=1
optim=galore_adamw_8bit_layerwise    gradient_accumulation_steps=1
optim=galore_adafactor_layerwise     gradient_accumulation_steps=1
optim=apollo_adamw_layerwise         gradient_accumulation_steps=1
"""
"""Conditions, and the conditions of which one must hold, too."""

EXCLUDES = """
save_only_model&load_best_model_at_end    deepspeed
save_only_model&load_best_model_at_end    fsdp
auto_find_batch_size                      deepspeed=zero3
auto_find_batch_size                      deepspeed=zero3_offload
fp16                                      bf16
fp16_full_eval                            bf16_full_eval
dataloader_prefetch_factor                dataloader_num_workers=0
lr_scheduler_type=reduce_lr_on_plateau    eval_strategy=no
lr_scheduler_type=greedy                  eval_strategy=no
"""
"""Conditions that cannot hold together."""

_ACCELERATOR_KEYS = """split_batches dispatch_batches even_batches use_seedable_sampler non_blocking
    gradient_accumulation_kwargs use_configured_state""".split()
"""The fields of transformers' ``AcceleratorConfig``."""
_CHECKPOINTING_KEYS = "use_reentrant preserve_rng_state context_fn determinism_check debug early_stop".split()
"""The keyword arguments of ``torch.utils.checkpoint.checkpoint``."""
_NO_WORDS = {
    "liger_kernel_config": "Remove it; use_liger_kernel enables all kernels.",
    "parallelism_config": "Remove it; sequence_parallel_size and deepspeed_autotp_size split a model or its rows.",
}
"""Arguments for which the command line of ms-swift takes no value, with what to do."""


def trainer_problems(config: Config) -> Iterator[Problem]:
    """What the trainer rejects."""
    yield from _number_formats(config)
    yield from _keys(config)
    yield from _accelerator(config)
    yield from _ray(config)
    for name, do in _NO_WORDS.items():
        if config.get(name) is not None:
            yield config.problem(name, "cannot be given on the command line of ms-swift", do)


def _number_formats(config: Config) -> Iterator[Problem]:
    """``bf16`` beside a format for which ms-swift sets ``fp16``, and the reverse (``_init_mixed_precision``)."""
    dtype = config.get("torch_dtype")
    implied = {"float32": "fp16", "float16": "fp16", "bfloat16": "bf16"}.get(str(dtype))
    other = {"fp16": "bf16", "bf16": "fp16"}.get(implied or "")
    if implied and other and config.get(other) and config.get(implied) is None:
        what = f'is true, but "torch_dtype" is "{dtype}", for which ms-swift also sets {implied}'
        do = f'Remove it, or set "{implied}" to false.'
        yield config.problem(other, what, do)


_KEYS = {"accelerator_config": _ACCELERATOR_KEYS, "gradient_checkpointing_kwargs": _CHECKPOINTING_KEYS}


def _keys(config: Config) -> Iterator[Problem]:
    """Unknown keys of objects that are passed on as keyword arguments."""
    for name, known in _KEYS.items():
        content = config.get(name)
        for key in content if isinstance(content, dict) else ():
            if key not in known:
                what, do = not_one_of(key, known)
                yield config.problem(name, f"has a key that {what}", do)


def _accelerator(config: Config) -> Iterator[Problem]:
    content = config.get("accelerator_config")
    if not isinstance(content, dict):
        return
    kept = content.get("gradient_accumulation_kwargs")
    steps = kept.get("num_steps") if isinstance(kept, dict) else None
    if steps is not None and (config.get("gradient_accumulation_steps") or 2) > 1:
        what = f'sets "num_steps" to {steps}, beside "gradient_accumulation_steps"'
        yield config.problem("accelerator_config", what, 'Remove "num_steps".')


def _ray(config: Config) -> Iterator[Problem]:
    groups = config.get("device_groups")
    try:
        content = json.loads(groups) if isinstance(groups, str) else {}
    except ValueError as error:
        content = None
        yield config.problem("device_groups", f"is not valid JSON ({error})", "Fix it.")
    if isinstance(content, list):
        yield config.problem("device_groups", "is a list, not an object", "Fix it.")


def device_problems(config: Config, device: Device) -> Iterator[Problem]:
    """Settings for a GPU on a machine without one.

    Args:
        config: the request.
        device: the device of the run.
    """
    if device.kind != "cpu":
        return
    if config.get("tf32"):
        yield config.problem("tf32", f"needs an NVIDIA GPU, but the device is {device}", "Remove it.")
    if config.get("use_cpu") is not False:
        return
    for name, value in (("torch_dtype", "bfloat16"), ("bf16", True), ("bf16_full_eval", True)):
        if config.get(name) == value:
            what = f'is false, but there is no GPU, and "{name}" asks for bfloat16'
            yield config.problem("use_cpu", what, "Remove it.")
            return
