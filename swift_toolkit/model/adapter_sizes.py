"""Settings of tuners that must fit the sizes of a model's layers, read from its headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from swift_toolkit.config.settings import Config
from swift_toolkit.model.files import read_json, safetensors_header, weight_files
from swift_toolkit.problems import Problem

_SIZED = ("boft", "fourierft", "vera", "llamapro", "lora")
"""Tuners with such settings."""


class _Linear(NamedTuple):
    """A linear layer: its name, and the widths of its input and output."""

    name: str
    inputs: int
    outputs: int

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]


def size_problems(config: Config) -> Iterator[Problem]:
    """Settings of the tuner of a request that do not fit its local model."""
    path = Path(str(config.get("model"))).expanduser()
    if config.tuner not in _SIZED or not path.is_dir():
        return
    if config.tuner == "llamapro":
        yield from _blocks(config, path)
    elif config.tuner != "lora" or config.get("init_weights") == "mica":
        yield from _RULES[config.tuner](config, _targets(config, path))


def _targets(config: Config, path: Path) -> list[_Linear]:
    """The layers that get an adapter, as far as names show them; none if a pattern names them."""
    if config.get("target_regex"):
        return []
    wanted = set(config.value("target_modules"))
    return [
        layer
        for layer in _linears(path)
        if layer.last in wanted or ("all-linear" in wanted and ".layers." in layer.name)
    ]


def _linears(path: Path) -> Iterator[_Linear]:
    for file in weight_files(path):
        header = safetensors_header(file) if file.suffix == ".safetensors" else None
        for name, tensor in (header.tensors if header else {}).items():
            if name.endswith(".weight") and len(tensor["shape"]) == 2:
                outputs, inputs = tensor["shape"]
                yield _Linear(name.removesuffix(".weight"), inputs, outputs)


def _boft(config: Config, targets: list[_Linear]) -> Iterator[Problem]:
    for name in ("boft_block_size", "boft_block_num"):
        value = config.value(name)
        wrong = next((layer for layer in targets if value and layer.inputs % value), None)
        if wrong is not None:
            what = f"is {value}, which does not divide {wrong.inputs}, the width of {wrong.name}"
            yield config.problem(name, what, "Use a power of 2.")


def _fourierft(config: Config, targets: list[_Linear]) -> Iterator[Problem]:
    value = config.value("fourier_n_frequency")
    small = min(targets, key=lambda layer: layer.inputs * layer.outputs, default=None)
    if small is not None and value > (most := small.inputs * small.outputs):
        what = f"is {value:,}, but {small.name} has {most:,} weights"
        yield config.problem("fourier_n_frequency", what, f"Use at most {most}.")


def _vera(config: Config, targets: list[_Linear]) -> Iterator[Problem]:
    """ms-swift keeps the layers of one size, that of the first name with a "v" (``get_vera_target_modules``)."""
    names = config.value("target_modules")
    sizes = {(layer.inputs, layer.outputs) for layer in targets}
    if len(sizes) > 1 and "all-linear" not in names and not any("v" in name for name in names):
        what = "names layers of different sizes, but VeRA needs layers of one size"
        yield config.problem("target_modules", what, "Name e.g. q_proj and v_proj.")


def _mica(config: Config, targets: list[_Linear]) -> Iterator[Problem]:
    rank = config.value("lora_rank")
    small = min(targets, key=lambda layer: min(layer.inputs, layer.outputs), default=None)
    if small is not None and rank > (most := min(small.inputs, small.outputs)):
        what = f'is {rank}, but "init_weights" "mica" takes at most the width of {small.name}, {most}'
        yield config.problem("lora_rank", what)


_RULES = {"boft": _boft, "fourierft": _fourierft, "vera": _vera, "lora": _mica}


def _blocks(config: Config, path: Path) -> Iterator[Problem]:
    content, _ = read_json(path / "config.json")
    layers, new = (content or {}).get("num_hidden_layers"), config.value("llamapro_num_new_blocks")
    if isinstance(layers, int) and isinstance(new, int) and new > 0 and layers % new:
        what = f"is {new}, which does not divide the {layers} layers of the model"
        name = "llamapro_num_new_blocks"
        near = max(number for number in range(1, new + 1) if layers % number == 0)
        yield config.problem(name, what, f"Use e.g. {near}.")
