"""Checks tensor by tensor whether the weights of a merged model are those of its base plus the adapter.

A wrongly merged model often still produces fluent text, and the distributions only show that it differs. The tensors
show what went wrong. Runs in the worker, as it needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swift_toolkit.console.words import listed
from swift_toolkit.model.checkpoints.old_adapter import as_peft
from swift_toolkit.model.files import JsonObject, adapter_root, read_json
from swift_toolkit.serving.proof.exchange import Deviation

ROUNDING = {"torch.bfloat16": 2**-8, "torch.float16": 2**-11, "torch.float32": 2**-23}
"""Largest relative rounding error of each dtype (IEEE 754)."""

_SHARE = 0.05
"""Largest difference of a merged weight from base + adapter, as a share of the adapter's change: ms-swift may add in a
different dtype than this comparison."""


class _Tensors:
    """The tensors in the safetensors files of a directory, read one at a time as float32."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        for file in sorted(path.glob("*.safetensors")):
            opened: Any = safe_open(str(file), framework="pt")
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return list(self._files)

    def stored(self, name: str) -> Any:
        return self._files[name].get_tensor(name)


class _Adapter:
    """The change that a PEFT adapter makes to each weight of its base."""

    def __init__(self, path: Path) -> None:
        root = adapter_root(path) or path
        self.config: JsonObject = read_json(root / "adapter_config.json")[0] or {}
        self._tensors = _Tensors(root)
        self.modules = {
            name.split(".lora_")[0].removeprefix("base_model.model."): name.split(".lora_")[0]
            for name in self._tensors.names()
            if ".lora_A" in name or ".lora_embedding_A" in name
        }
        self.saved = {
            name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): name
            for name in self._tensors.names()
            if ".lora_" not in name
        }

    @property
    def plain(self) -> bool:
        """Whether the adapter is plain LoRA, so that the merged weight is base + B·A."""
        return self.config.get("peft_type") == "LORA" and not self.config.get("use_dora")

    def whole(self, tensor: str) -> Any:
        """A tensor that was trained in full."""
        return self._tensors.stored(self.saved[tensor])

    def added(self, module: str) -> Any:
        """The scaled B·A, in the shape of the weight."""
        prefix = self.modules[module]
        if f"{prefix}.lora_embedding_A" in self._tensors:
            a, b = (self._tensors.stored(f"{prefix}.lora_embedding_{one}").float() for one in "AB")
            return (b @ a).T * self._scale(module, a.shape[0])
        a, b = (self._tensors.stored(f"{prefix}.lora_{one}.weight").float() for one in "AB")
        delta = (b.flatten(1) @ a.flatten(1)) * self._scale(module, a.shape[0])
        return delta.T if self.config.get("fan_in_fan_out") else delta

    def _scale(self, module: str, rank: int) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        alpha = next(
            (v for k, v in patterns.items() if module.endswith(k)), self.config.get("lora_alpha", rank)
        )
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def weight_faults(merged: Path, base: Path, adapter: Path) -> Iterator[Deviation]:
    """Yield problems with the weights in ``merged``; none if its layers are named differently from the base's."""
    original, artefact = _Tensors(base), _Tensors(merged)
    change = _Adapter(Path(as_peft(str(adapter))))
    shared = [name for name in original.names() if name in artefact]
    if len(shared) < len(original.names()) // 2:
        return
    found: dict[str, list[str]] = {}
    for name in shared:
        kind = _kind(name, original.stored(name), artefact.stored(name), change)
        if kind:
            found.setdefault(kind, []).append(name)
    missing = [name for name in change.saved if name not in artefact and name in original]
    if missing:
        found.setdefault("missing", []).extend(missing)
    yield from _as_faults(found, len(shared))


_WORDS = {
    "base": "{names}: {count} of {all} weights are not those of the base: it was merged into a different model",
    "unmerged": "{names}: the adapter was not merged",
    "transposed": "{names}: the adapter was added transposed",
    "scaled": "{names}: the adapter was added with a different scale (lora_alpha, rslora)",
    "saved": "{names}: the adapter's modules_to_save are missing, the base's weights are there instead",
    "missing": "{names}: missing",
    "shape": "{names}: the shape differs from the base's",
    "other": "{names}: neither the base with this adapter nor the base alone",
}


def _as_faults(found: Mapping[str, list[str]], count: int) -> Iterator[Deviation]:
    for kind, names in found.items():
        text = _WORDS[kind].format(names=listed(names, most=2), count=len(names), all=count)
        yield Deviation("weights", text)


def _kind(name: str, base: Any, merged: Any, change: _Adapter) -> str:
    """The kind of problem with a merged tensor, "" if it is correct."""
    if name in change.saved:
        whole = change.whole(name)
        return "" if _close(merged.float(), whole.float(), merged, 0) else "saved"
    if base.shape != merged.shape:
        return "" if _resized(base, merged) else "shape"
    module = name.removesuffix(".weight")
    difference = merged.float() - base.float()
    noise = _noise(base, merged)
    if module not in change.modules:
        return "" if float(difference.norm()) <= noise else "base"
    if not change.plain:
        return "unmerged" if float(difference.norm()) == 0 else ""
    added = change.added(module).reshape(base.shape)
    return _kind_of_difference(difference, added, noise)


def _kind_of_difference(difference: Any, added: Any, noise: float) -> str:
    size = float(added.norm())
    allowed = _SHARE * size + noise
    if float((difference - added).norm()) <= allowed:
        return ""
    if float(difference.norm()) <= noise:
        return "unmerged"
    if (
        added.dim() == 2
        and added.shape[0] == added.shape[1]
        and float((difference - added.T).norm()) <= allowed
    ):
        return "transposed"
    scale = float((difference * added).sum()) / (size * size or 1.0)
    return "scaled" if float((difference - scale * added).norm()) <= allowed else "other"


def _noise(base: Any, merged: Any) -> float:
    """Norm of the largest change that rounding to the dtypes of both can cause."""
    coarser = max(ROUNDING.get(str(one.dtype), 0.0) for one in (base, merged))
    return coarser * float(merged.float().norm()) + 1e-12


def _close(one: Any, other: Any, stored: Any, more: float) -> bool:
    if one.shape != other.shape:
        return False
    allowed = ROUNDING.get(str(stored.dtype), 0.0) * float(other.norm()) + more + 1e-12
    return float((one - other).norm()) <= allowed


def _resized(base: Any, merged: Any) -> bool:
    """Whether only rows were added, for tokens added in training."""
    return bool(base.dim() == 2 and merged.shape[0] > base.shape[0] and merged.shape[1] == base.shape[1])
