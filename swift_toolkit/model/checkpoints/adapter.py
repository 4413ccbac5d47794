"""Whether an adapter is usable and matches its base model, judged by the headers of their safetensors files.

PEFT only warns when it loads an adapter whose layers have other names, and the untuned base model then answers. Other
mismatches fail only after the model is loaded, or produce answers that repeat a single token.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from swift_toolkit.model.checkpoints import peft_config
from swift_toolkit.model.checkpoints.old_adapter import name_in_peft
from swift_toolkit.model.checkpoints.recorded import AdapterConfig, RecordedArguments
from swift_toolkit.model.files import adapter_root, read_json, safetensors_header
from swift_toolkit.problems import Problem

OWN_BASE = "Give the right base model: --base-model DIR"

SAMPLED_TENSORS, SAMPLED_VALUES = 64, 256
"""How many tensors are checked for NaN and infinity, and how many values of each."""

_NOT_FINITE = {"BF16": 0x7F80, "F16": 0x7C00}  # the exponent bits of infinity and NaN
_FLOATS = ("F32", *_NOT_FINITE)

# base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight
_MATRIX = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?(?:\.weight)?")
_EMBEDDING = re.compile(r"base_model\.model\.(.+)\.lora_embedding_(?:A|B)(?:\.default)?")
_SAVED = re.compile(r"base_model\.model\.(.+?)(?:\.modules_to_save(?:\.default)?)?\.(?:weight|bias)")
_OF_ANOTHER_MODULE = re.compile(r"\.(?:lora|ia3|vera|oft|boft|hada|lokr|bone|miss|prompt)_|\.default\.")


@dataclass(frozen=True)
class Tensor:
    """One weight in a safetensors file, as its header describes it.

    Args:
        shape: its size in each dimension.
        dtype: safetensors' name of the type, e.g. ``BF16``.
        file: the file that holds it.
        start: its first byte in the file.
        length: its size in bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    length: int

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape))


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Every weight in the safetensors files of the directory ``path``, by name; none if it is not a directory."""
    found = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else []:
        header = safetensors_header(file)
        if header is None:
            continue  # reported by `model.files`
        for name, one in header.tensors.items():
            start, end = one["data_offsets"]
            found[name] = Tensor(tuple(one["shape"]), one["dtype"], file, header.start + start, end - start)
    return found


def adapter_fit(
    path: Path, base: Path | None, args: RecordedArguments, do: str = OWN_BASE
) -> Iterator[Problem]:
    """Why a complete adapter cannot be used with its base model: its weights are empty or not finite, or do not match
    the rank in its own configuration or the layers of the base model.

    Args:
        path: the adapter.
        base: its base model; None, or a path that is not a directory, to check the adapter alone.
        args: the arguments of its training.
        do: the advice if the base model is a different one.
    """
    root = adapter_root(path) or path
    config = AdapterConfig.read(path)
    tensors = tensors_in(root)
    if config.swift_form:
        tensors = {name_in_peft(name): tensor for name, tensor in tensors.items()}
    file = root / "adapter_config.json"
    own = [*peft_config.type_problems(file, config), *_empty(path, tensors)]
    own = own or [
        *_not_numbers(path, tensors),
        *_other_rank(file, config, tensors),
        *_other_kind(root, config, tensors),
        *_halves(path, config, tensors),
    ]
    yield from own
    if not own and base is not None and (model := tensors_in(base)):
        fit = _Fit(path, base, tensors, model, args.new_special_tokens)
        yield from (replace(problem, do=do) for problem in fit.problems())


def _empty(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    empty = [tensor for tensor in tensors.values() if 0 in tensor.shape]
    if empty:
        shape = list(empty[0].shape)
        what = f"{path} has empty weights: {len(empty)} of its {len(tensors)} tensors have the shape {shape}"
        do = "They were saved under DeepSpeed ZeRO-3 without being gathered: use another checkpoint."
        yield Problem(what, do)


def _not_numbers(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    looked_at = list(tensors.items())[:: max(1, len(tensors) // SAMPLED_TENSORS)]
    for name, tensor in looked_at:
        if tensor.dtype in _FLOATS and not _is_finite(tensor):
            what = f"{path} holds values that are not numbers (NaN or infinite), e.g. in {name}"
            yield Problem(what, "Its training diverged: use an earlier checkpoint, or train again.")
            return


def _is_finite(tensor: Tensor) -> bool:
    size = 4 if tensor.dtype == "F32" else 2
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        content = file.read(min(tensor.length, SAMPLED_VALUES * size))
    content = content[: len(content) // size * size]
    if tensor.dtype == "F32":
        return all(map(math.isfinite, memoryview(content).cast("f")))
    exponent = _NOT_FINITE[tensor.dtype]
    return all(value & exponent != exponent for value in memoryview(content).cast("H"))


def _other_rank(file: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    """LoRA's A has one row per rank. AdaLoRA, which drops ranks, and parameters of several experts are not checked."""
    if config.peft_type != "LORA" or config.has_parameters:
        return
    matches = {name: match for name in tensors if (match := _MATRIX.fullmatch(name)) and match[2] == "A"}
    found = list(peft_config.pattern_problems(file, config, [match[1] for match in matches.values()]))
    yield from found
    for name, match in matches.items() if not found else ():
        rank, rows = peft_config.rank_of(config, match[1]), tensors[name].shape[0]
        if rows != rank:
            what = f"{file} says rank {rank}, but {name} has {rows}"
            yield Problem(what, "Use the adapter_config.json that was saved with these weights.")
            return


_KINDS = {
    "LORA": "lora", "ADALORA": "lora", "IA3": "ia3", "VERA": "vera", "BOFT": "boft", "OFT": "oft", "LOHA": "hada",
    "LOKR": "lokr",
}  # fmt: skip
"""PEFT's types of adapters -> how the names of their weights begin."""


def _other_kind(root: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    """Weights of another type of adapter: PEFT would load none of them, and the base model would answer."""
    wanted = _KINDS.get(str(config.peft_type))
    marks = {mark for mark in _KINDS.values() if any(f".{mark}_" in name for name in tensors)}
    if wanted is not None and marks and wanted not in marks:
        what = (
            f'{root / "adapter_config.json"} says "{config.peft_type}", but the weights are of {min(marks)}'
        )
        yield Problem(what, "Use the adapter_config.json that was saved with these weights.")
    content, _ = read_json(root / "adapter_config.json")
    is_dora = bool((content or {}).get("use_dora")) and wanted == "lora"
    if is_dora and tensors and not any("lora_magnitude_vector" in name for name in tensors):
        what = f'{root / "adapter_config.json"} says "use_dora", but the weights hold no magnitudes'
        yield Problem(what, "Use the adapter_config.json that was saved with these weights.")


def _halves(path: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    """LoRA's A without B, or the reverse: PEFT would fill in the other one, and the layer would stay untuned."""
    other = {"A": "B", "B": "A"}
    matches = [match for name in tensors if (match := _MATRIX.fullmatch(name))]
    known = {(match[1], match[2]) for match in matches}
    halves = [(layer, one) for layer, one in known if (layer, other[one]) not in known]
    if halves and config.peft_type in ("LORA", "ADALORA"):
        layer, one = min(halves)
        what = f"{path} is not whole: {layer} has lora_{one} but no lora_{other[one]}"
        yield Problem(what, "Download it again, or use another checkpoint.")


class _Fit:
    """An adapter and its base model."""

    def __init__(
        self, path: Path, base: Path, adapter: Mapping[str, Tensor], model: Mapping[str, Tensor], grown: bool
    ) -> None:
        self.path, self.base, self.adapter, self.model = path, base, adapter, model
        self.grown = grown  # tokens were added, and are added again when it is loaded
        self.modules = {name.rpartition(".")[0] for name in model}
        matches = ((_MATRIX.fullmatch(name) or _EMBEDDING.fullmatch(name)) for name in adapter)
        self.layers = dict.fromkeys(match[1] for match in matches if match)

    def problems(self) -> Iterator[Problem]:
        """The first mismatch of each kind."""
        found = [*self._names(), *self._matrices()]
        yield from found[:1]
        yield from self._saved()

    def _in_model(self, layer: str) -> str | None:
        """The layer's name in the model's files, which may lack the names of its outermost modules."""
        parts = layer.split(".")
        names = (".".join(parts[index:]) for index in range(len(parts)))
        return next((name for name in names if name in self.modules), None)

    def _names(self) -> Iterator[Problem]:
        layers = [layer for layer in self.layers if layer.rpartition(".")[2] not in _MADE]
        absent = [layer for layer in layers if self._in_model(layer) is None]
        if len(absent) == len(layers) > 0 and not self._fits_loosely(absent):
            near = difflib.get_close_matches(absent[0], self._alike(absent[0]), n=1, cutoff=0)
            shown = f", which has {near[0]}" if near else ""
            what = (
                f"none of the {len(layers)} layers of the adapter, e.g. {absent[0]}, is in the model{shown}"
            )
            yield self._problem(what)
        elif absent and len(absent) < len(layers):
            kinds = {_INDEX.sub(".N.", one) for one in self.modules}
            cut = [layer for layer in absent if self._kind(layer) in kinds]
            if cut:
                more = f" and {len(cut) - 1} more of its layers are" if len(cut) > 1 else " is"
                yield self._problem(f"{cut[0]}{more} not in the model")

    def _kind(self, layer: str) -> str:
        return _INDEX.sub(".N.", layer)

    def _alike(self, layer: str) -> list[str]:
        """A few of the model's modules that have the same last name."""
        last = layer.rpartition(".")[2]
        return [one for one in self.modules if one.rpartition(".")[2] == last][:64]

    def _fits_loosely(self, layers: list[str]) -> bool:
        """Whether a model of several parts has such layers: transformers renames those parts when it loads them."""
        config = read_json(self.base / "config.json")[0] or {}
        if not any(isinstance(value, dict) and name.endswith("_config") for name, value in config.items()):
            return False
        tails = {_tail(one) for one in self.modules}
        return any(_tail(layer) in tails for layer in layers)

    def _matrices(self) -> Iterator[Problem]:
        """A LoRA of rank r on a weight of shape (out, in) is A of shape (r, in) and B of shape (out, r); see
        https://arxiv.org/abs/2106.09685, section 4.1. Packed weights of a quantised model cannot be compared.
        """
        for name, a in self.adapter.items():
            match = _MATRIX.fullmatch(name)
            b = self.adapter.get(name.replace(".lora_A", ".lora_B"))
            weight = self.model.get(f"{self._in_model(match[1])}.weight") if match else None
            if match is None or match[2] == "B" or b is None or not _is_matrix(weight, a, b):
                continue
            assert weight is not None
            expected = (b.shape[0], a.shape[1])
            if sorted(weight.shape) != sorted(expected):  # or transposed, as in GPT-2
                what = f"{match[1]} is {expected[0]} x {expected[1]} in the adapter and {weight} in the model"
                yield self._problem(what)
                return

    def _saved(self) -> Iterator[Problem]:
        """Fully trained layers (``modules_to_save``) and embeddings."""
        for name, tensor in self.adapter.items():
            match = _SAVED.fullmatch(name)
            if match is None or _OF_ANOTHER_MODULE.search(name):
                continue
            leaf = name.rpartition(".")[2]
            weight = self.model.get(f"{self._in_model(match[1])}.{leaf}")
            if weight is None or weight.dtype not in _FLOATS or weight.shape == tensor.shape:
                continue
            if self.grown and weight.shape[1:] == tensor.shape[1:]:
                continue
            yield self._problem(f"{match[1]} is {tensor} in the adapter and {weight} in the model")
            return

    def _problem(self, what: str) -> Problem:
        return Problem(f"{self.path} was not trained from {self.base}: {what}")


_MADE = ("lm_head", "score", "classifier", "output", "v_head")
"""Layers that may have no weights of their own in the model: shared with the embedding, or created for a task."""

_INDEX = re.compile(r"\.\d+\.")


def _tail(module: str) -> str:
    """A module's name, from its first number on."""
    return _INDEX.split(f".{module}", maxsplit=1)[-1]


def _is_matrix(*tensors: Tensor | None) -> bool:
    return all(one is not None and len(one.shape) == 2 and one.dtype in _FLOATS for one in tensors)
