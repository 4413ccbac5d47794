"""The number of sequences to generate at once."""

from __future__ import annotations

from typing import Any

from swift_toolkit.machine.device import free_memory

CACHE_SHARE = 0.5
"""Share of the free memory that the cache of a batch may use; the rest is for activations and other processes."""


def largest_batch(device: str) -> int:
    """The most sequences to generate together. On a CPU, more than 32 do not increase the tokens per second (measured,
    SmolLM2-135M).
    """
    return 32 if device == "cpu" else 128


def sequences_that_fit(model: Any, tokens: int, most: int) -> int:
    """The number of sequences of ``tokens`` tokens that pt can generate together in the free memory, 1 to ``most``.

    Keys and values of every layer and the widest activations take ``(2 * layers * kv_heads * head_dim + 4 * (hidden +
    intermediate)) * bytes`` per token.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    cache = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    activations = 4 * (config.hidden_size + getattr(config, "intermediate_size", config.hidden_size))
    bytes_each = tokens * (cache + activations) * model.dtype.itemsize
    fitting = int(_free_memory(model) * CACHE_SHARE / bytes_each)
    return max(1, min(fitting, most))


def _free_memory(model: Any) -> int:
    """Free bytes on the device of ``model``; on the fullest one if it is spread over several."""
    import torch

    if model.device.type != "cuda":
        return free_memory()
    return int(min(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())))
