"""Models whose weights are stored quantised: what their config.json says, and which runs they allow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.config.settings import Config
from swift_toolkit.console.words import shown
from swift_toolkit.machine import packages
from swift_toolkit.machine.device import Device
from swift_toolkit.model.files import read_json
from swift_toolkit.problems import Problem

_NAMES = {"bitsandbytes": "bnb", "fbgemm_fp8": "fp8"}
_PACKAGES = {
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bnb": ("bitsandbytes", "bitsandbytes"),
    "hqq": ("hqq", "hqq"),
    "aqlm": ("aqlm", "aqlm"),
    "eetq": ("eetq", "eetq"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
}
"""Method -> the module that transformers imports to load it, and the package that contains it."""

_HAS_FP8 = re.compile(
    r"\b(L4|L20|L40S?|H\d{2,3}|GH200|B\d{3}|GB\d{3}|RTX [45]0\d\d|RTX PRO|Ada)\b", re.IGNORECASE
)
"""Names of GPUs of compute capability 8.9 and higher, from NVIDIA's list of CUDA GPUs."""

_UNPACKED = ("fp8", "mxfp4")
"""Methods whose weights transformers converts to bfloat16 if the device cannot compute with them."""


@dataclass(frozen=True)
class Quantized:
    """How the weights of a model are stored.

    Args:
        method: under ms-swift's name, if it has one.
        bits: bits of a weight; None if config.json does not say.
    """

    method: str
    bits: int | None


def stored(model: str) -> Quantized | None:
    """How the local directory ``model`` stores its weights; None if not quantised or not known."""
    config, _ = read_json(Path(model).expanduser() / "config.json")
    found = (config or {}).get("quantization_config")
    if not isinstance(found, dict):
        return None
    method = str(found.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in found else "?"))
    bits = 4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else found.get("bits")
    return Quantized(_NAMES.get(method, method), bits if isinstance(bits, int) else None)


def is_unpacked(found: Quantized, device: Device) -> bool:
    """Whether transformers converts the weights to bfloat16 while loading, which takes two bytes each: FP8 with no GPU
    or below compute capability 8.9 (``validate_environment`` of its quantizers)."""
    return found.method in _UNPACKED and not (device.kind == "cuda" and _HAS_FP8.search(device.name))


def quantization_problems(config: Config, device: Device) -> Iterator[Problem]:
    """What a run cannot do with a quantised model."""
    model = config.get("model")
    found = stored(model) if isinstance(model, str) else None
    if found is None:
        yield from _not_stored(config, str(model))
        return
    wanted = config.get("quant_method")
    unpacked = is_unpacked(found, device)
    if wanted is not None and (wanted != found.method or config.get("quant_bits") not in (None, found.bits)):
        bits = config.get("quant_bits")
        what = f"is {shown(wanted)}" + (f" with {bits} bits" if bits else "")
        stands = f"{found.method}" + (f" with {found.bits} bits" if found.bits else "")
        do = 'Remove it and "quant_bits" ("train_type": "lora"), or give the model that is not quantised.'
        yield config.problem("quant_method", f"{what}, but {model} is already quantised: {stands}", do)
    elif config.tuner == "full" and not unpacked:
        what = f'is "full", but {model} is quantised ({found.method}), and its weights stay frozen'
        do = 'Set "train_type" to "lora", or give the model that is not quantised.'
        yield config.problem(config.tuner_name, what, do)
    module, package = _PACKAGES.get(found.method, ("", ""))
    if module and not packages.is_installed(module):
        what = f'names "{model}", which is quantised with {found.method} and needs the package {package}'
        yield config.problem("model", what, f"pip install {package}")


def _not_stored(config: Config, model: str) -> Iterator[Problem]:
    """A method of stored models for a model that is stored unquantised. ms-swift would load it as it is."""
    if config.stored_as is None or not (Path(model).expanduser() / "config.json").is_file():
        return
    method = config.stored_as.value
    what = f'is "{method}", but {model} is not quantised, and a run cannot quantise it to {method}'
    do = f'Give a model that is stored as {method}, or set "quant_method" to "bnb" and "quant_bits" to 4.'
    yield config.stored_as.problem(what, do)


def quantization_warnings(config: Config, device: Device) -> Iterator[Problem]:
    """Weights that take more memory than their files."""
    found = stored(model) if isinstance(model := config.get("model"), str) else None
    if found is not None and is_unpacked(found, device):
        what = f'names "{model}", stored as {found.method}, which this device cannot compute with'
        do = "It is loaded as bfloat16, which takes twice the memory of its files or more."
        yield config.problem("model", what, do)
