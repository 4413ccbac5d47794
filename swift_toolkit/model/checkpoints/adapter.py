"""Whether an adapter is usable and matches its base model, judged by the headers of their files.

PEFT only warns when it loads an adapter whose layers have other names, and the untuned base model then answers. Other
mismatches fail only after the model is loaded, or produce answers that repeat a single token.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from swift_toolkit.model.checkpoints import peft_config
from swift_toolkit.model.checkpoints.old_adapter import name_in_peft
from swift_toolkit.model.checkpoints.peft_config import ITS_OWN
from swift_toolkit.model.checkpoints.recorded import AdapterConfig, RecordedArguments
from swift_toolkit.model.checkpoints.tensors import FLOATS, Tensor, tensors_in, tensors_of
from swift_toolkit.model.files import ADAPTER_WEIGHTS, JsonObject, adapter_root, read_json
from swift_toolkit.problems import Problem

OWN_BASE = "Give the right base model: --base-model DIR"

SAMPLED_TENSORS = 64
"""How many tensors are checked for NaN and infinity."""

# base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
_MATRIX = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.weight)?")
_EMBEDDING = re.compile(r"base_model\.model\.(.+)\.lora_embedding_(A|B)")
_SAVED = re.compile(r"base_model\.model\.(.+?)(?:\.modules_to_save(?:\.default)?)?\.(?:weight|bias)")
_OF_ANOTHER_MODULE = re.compile(r"\.(?:lora|ia3|vera|oft|boft|hada|lokr|bone|miss|prompt)_|\.default\.")


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
    file = root / "adapter_config.json"
    tensors = adapter_weights(path, config)
    own = [*peft_config.type_problems(file, config), *peft_config.value_problems(file, config)]
    if not own and tensors is not None:
        own = list(_own_problems(path, file, config, tensors))
    yield from own
    if not own and tensors and base is not None and (model := tensors_in(base)):
        fit = _Fit(path, base, config, tensors, model, args.new_special_tokens)
        yield from (problem if problem.do else replace(problem, do=do) for problem in fit.problems())


def adapter_weights(path: Path, config: AdapterConfig) -> dict[str, Tensor] | None:
    """The weights of the adapter ``path`` that PEFT would load, by PEFT's names; None if they cannot be read here."""
    root = adapter_root(path) or path
    files = [root / name for name in ADAPTER_WEIGHTS if (root / name).is_file()]
    tensors = tensors_of(files[0]) if files else None
    if tensors is not None and config.swift_form:
        return {name_in_peft(name): tensor for name, tensor in tensors.items()}
    return tensors


def _own_problems(
    path: Path, file: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]
) -> Iterator[Problem]:
    """Why an adapter with a valid configuration cannot be used with any base model."""
    found = (
        [*_empty(path, tensors)] or [*_other_kind(file, config, tensors)] or [*_unread(path, config, tensors)]
    )
    yield from found
    if found:
        return
    yield from _not_numbers(path, tensors)
    yield from _other_rank(file, config, tensors)
    yield from _halves(path, config, tensors)
    yield from peft_config.target_problems(file, config, layers_of(tensors))


def layers_of(tensors: Iterable[str]) -> list[str]:
    """The layers that have matrices of LoRA."""
    matches = ((_MATRIX.fullmatch(name) or _EMBEDDING.fullmatch(name)) for name in tensors)
    return list(dict.fromkeys(match[1] for match in matches if match))


def _empty(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    empty = [tensor for tensor in tensors.values() if 0 in tensor.shape]
    if not tensors:
        yield Problem(f"{path} holds no weights: its file lists no tensor", "Use another checkpoint.")
    if empty:
        shape = list(empty[0].shape)
        what = f"{path} has empty weights: {len(empty)} of its {len(tensors)} tensors have the shape {shape}"
        do = "They were saved under DeepSpeed ZeRO-3 without being gathered: use another checkpoint."
        yield Problem(what, do)


def _not_numbers(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    step = len(tensors) // SAMPLED_TENSORS | 1  # odd: A and B of LoRA alternate
    for name, tensor in list(tensors.items())[::step]:
        if not tensor.is_finite():
            what = f"{path} holds values that are not numbers (NaN or infinite), e.g. in {name}"
            yield Problem(what, "Its training diverged: use an earlier checkpoint, or train again.")
            return


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
            yield Problem(f"{file} says rank {rank}, but {name} has {rows}", ITS_OWN)
            return


_KINDS = {
    "LORA": "lora", "ADALORA": "lora", "IA3": "ia3", "VERA": "vera", "BOFT": "boft", "OFT": "oft", "LOHA": "hada",
    "LOKR": "lokr",
}  # fmt: skip
"""PEFT's types of adapters -> how the names of their weights begin."""


def _other_kind(file: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    """Weights of another type of adapter: PEFT would load none of them, and the base model would answer."""
    wanted = _KINDS.get(str(config.peft_type))
    marks = {mark for mark in _KINDS.values() if any(f".{mark}_" in name for name in tensors)}
    if wanted is not None and marks and wanted not in marks:
        yield Problem(f'{file} says "{config.peft_type}", but the weights are of {min(marks)}', ITS_OWN)
    is_dora = bool(config.content.get("use_dora")) and wanted == "lora"
    has_magnitudes = any("lora_magnitude_vector" in name for name in tensors)
    if is_dora and not has_magnitudes:
        yield Problem(f'{file} says "use_dora", but the weights hold no magnitudes', ITS_OWN)
    elif has_magnitudes and wanted == "lora" and not is_dora:
        yield Problem(f'{file} does not say "use_dora", but the weights hold magnitudes', ITS_OWN)


_PREFIX = "base_model.model."


def _unread(path: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    """Names of weights that PEFT ignores, because another program wrote them or a wrapper of the model is part of them:
    those layers would stay untuned.
    """
    mark = _KINDS.get(str(config.peft_type))
    if mark is None:
        return
    own = [name for name in tensors if f"{mark}_" in name]
    unread = [name for name in own if not _is_read(name, mark)]
    if not own or (mark == "lora" and not layers_of(tensors)):
        unread = list(tensors)
    if unread:
        of = f"{len(unread)} of its {len(tensors)} weights, e.g. {unread[0]}"
        example = f"{_PREFIX}<layer>.{mark}_{'A.weight' if mark == 'lora' else '...'}"
        what = f"{path} was not saved by PEFT, which would not load {of}: PEFT's names are like {example}"
        yield Problem(what, "Save it with PEFT (save_pretrained), or rename its weights.")


def _is_read(name: str, mark: str) -> bool:
    """Whether PEFT loads a weight of this name."""
    layer, _, parameter = name.partition(f".{mark}_")
    wrapped = not _WRAPPERS.isdisjoint(layer.split("."))
    prefix = _PREFIX if mark == "lora" else "base_model."  # VeRA's projections belong to no layer
    return name.startswith(prefix) and bool(parameter) and ".default" not in parameter and not wrapped


_WRAPPERS = frozenset("_orig_mod module _fsdp_wrapped_module _checkpoint_wrapped_module".split())
"""Modules that torch.compile, data parallelism and FSDP put around others."""


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
    """An adapter and its base model.

    Args:
        path: the adapter.
        base: the directory of its base model.
        config: the adapter's configuration.
        adapter, model: the weights of both, by name.
        grown: tokens were added, and are added again when it is loaded.
    """

    def __init__(
        self, path: Path, base: Path, config: AdapterConfig, adapter: Mapping[str, Tensor],
        model: Mapping[str, Tensor], grown: bool,
    ) -> None:  # fmt: skip
        self.path, self.base, self.config, self.adapter, self.model = path, base, config, adapter, model
        self.grown = grown
        self.modules = {name.rpartition(".")[0] for name in model}
        self.roots = {name.partition(".")[0] for name in model}
        self.layers = layers_of(adapter)

    def problems(self) -> Iterator[Problem]:
        """The first mismatch of each kind."""
        found = [*self._names(), *self._matrices(), *self._embeddings(), *self._untuned()]
        yield from found[:1]
        yield from self._saved()
        yield from self._not_saved()

    def _in_model(self, layer: str) -> str | None:
        """The layer's name in the model's files, which may lack the names of its outermost modules, or have one more
        where a model without its head is loaded.
        """
        if layer in self.modules:
            return layer
        root, *parts = layer.split(".")
        names = (".".join(parts[index:]) for index in range(len(parts)))
        if root not in self.roots and (found := next((one for one in names if one in self.modules), None)):
            return found
        return self._headless.get(layer)

    @cached_property
    def _headless(self) -> dict[str, str]:
        """The modules by their names in a model that is loaded without its head."""
        if self.config.task_type != "FEATURE_EXTRACTION":
            return {}
        return {name.partition(".")[2]: name for name in self.modules}

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
        elif absent and len(absent) < len(layers) and not self.config.content.get("layer_replication"):
            kinds = {self._kind(one) for one in self.modules}
            cut = [layer for layer in absent if self._kind(layer) in kinds or self._is_misnamed(layer)]
            if cut:
                more = f" and {len(cut) - 1} more of its layers are" if len(cut) > 1 else " is"
                yield self._problem(f"{cut[0]}{more} not in the model")

    def _is_misnamed(self, layer: str) -> bool:
        """Whether the model has the block of a layer, but not the layer. The parts of a larger model, and experts, may
        have other names in the files than in the loaded model, and code of the model's own may name them as it likes.
        """
        if self._has_parts or "auto_map" in self.base_config or "expert" in layer:
            return False
        return layer.rpartition(".")[0] in self._blocks

    @cached_property
    def _blocks(self) -> set[str]:
        return {module.rpartition(".")[0] for module in self.modules}

    @cached_property
    def base_config(self) -> JsonObject:
        """The config.json of the base model."""
        return read_json(self.base / "config.json")[0] or {}

    @property
    def _has_parts(self) -> bool:
        values = self.base_config.items()
        return any(isinstance(value, dict) and name.endswith("_config") for name, value in values)

    def _kind(self, layer: str) -> str:
        return _INDEX.sub(".N.", layer)

    def _alike(self, layer: str) -> list[str]:
        """A few of the model's modules that have the same last name."""
        last = layer.rpartition(".")[2]
        return [one for one in self.modules if one.rpartition(".")[2] == last][:64]

    def _fits_loosely(self, layers: list[str]) -> bool:
        """Whether a model of several parts has such layers: transformers renames those parts when it loads them."""
        if not self._has_parts:
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

    def _embeddings(self) -> Iterator[Problem]:
        """LoRA of an embedding of shape (tokens, width) is A of shape (r, tokens) and B of shape (width, r)."""
        for name, a in self.adapter.items():
            match = _EMBEDDING.fullmatch(name)
            b = self.adapter.get(name.replace("lora_embedding_A", "lora_embedding_B"))
            weight = self.model.get(f"{self._in_model(match[1])}.weight") if match else None
            if match is None or match[2] == "B" or b is None or not _is_matrix(weight, a, b):
                continue
            expected = (a.shape[1], b.shape[0])
            if weight is not None and weight.shape != expected and not self.grown:
                what = f"{match[1]} is {expected[0]} x {expected[1]} in the adapter and {weight} in the model"
                yield self._problem(what)

    def _untuned(self) -> Iterator[Problem]:
        """Layers that the configuration targets and the adapter lacks, though it has the same layer of other blocks."""
        if not peft_config.lists_targets(self.config) or self.config.peft_type != "LORA":
            return
        blocks = self.base_config.get("num_hidden_layers")
        if not isinstance(blocks, int):
            return
        kinds = {self._kind(layer) for layer in self.layers}
        there = {name for layer in self.layers if (name := self._in_model(layer))}
        same = sorted(
            name for name in self.modules - there
            if self._kind(name) in kinds and (block := _INDEX.search(name)) and int(block[0][1:-1]) < blocks
        )  # fmt: skip
        lacking = [name for name in same if peft_config.is_target(self.config, name)]
        if lacking:
            more = f" and {len(lacking) - 1} more layers" if len(lacking) > 1 else ""
            what = f'{self.path} is not whole: "target_modules" names {lacking[0]}{more}, which it has no weights for'
            yield Problem(what, "Download it again, or use another checkpoint.")

    @property
    def _tied_head(self) -> list[str]:
        """The head of a language model that shares its weights with the embedding, and is not in the files."""
        writes = str(self.base_config.get("architectures")).endswith("ForCausalLM']")
        return ["lm_head"] if writes and "model.embed_tokens" in self.modules else []

    def _not_saved(self) -> Iterator[Problem]:
        """Fully trained layers that the configuration names and the adapter lacks; PEFT fails with a KeyError."""
        for module in peft_config.saved_modules(self.config):
            inside = re.compile(rf"(?:^|.*\.){re.escape(module)}(?:\.modules_to_save)?\.")
            names = [name.removeprefix(_PREFIX) for name in self.adapter]
            stored = any(inside.match(f"{name}.") for name in (*self.modules, *self._tied_head))
            if stored and not any(inside.match(name) for name in names):
                what = (
                    f'{self.path} is not whole: "modules_to_save" names {module}, which it has no weights for'
                )
                yield Problem(what, "Download it again, or use another checkpoint.")

    def _saved(self) -> Iterator[Problem]:
        """Fully trained layers (``modules_to_save``) and embeddings."""
        for name, tensor in self.adapter.items():
            match = _SAVED.fullmatch(name)
            if match is None or _OF_ANOTHER_MODULE.search(name):
                continue
            leaf = name.rpartition(".")[2]
            weight = self.model.get(f"{self._in_model(match[1])}.{leaf}")
            if weight is None or weight.dtype not in FLOATS or weight.shape == tensor.shape:
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
    return all(one is not None and len(one.shape) == 2 and one.dtype in FLOATS for one in tensors)
