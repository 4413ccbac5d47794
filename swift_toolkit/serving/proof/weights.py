"""Checks tensor by tensor whether the weights of a merged model are those of its base plus the adapter.

A wrongly merged model often still produces fluent text, and the distributions only show that it differs. The tensors
show what went wrong. Runs in the worker, as it needs torch.
"""

from __future__ import annotations

import math
import re
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


_PREFIXES = ("base_model", "model", "language_model", "vision_model")
"""Parts of names that differ between a model in memory, which an adapter refers to, and its files."""


def _place(name: str) -> str:
    """The name of a module without the parts that depend on who wrote it."""
    return ".".join(part for part in name.removesuffix(".weight").split(".") if part not in _PREFIXES)


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
        names = self._tensors.names()
        self.modules = {
            _place(name.split(".lora_")[0]): name.split(".lora_")[0]
            for name in names
            if ".lora_A" in name or ".lora_embedding_A" in name
        }
        self.saved = {
            _place(name.replace(".modules_to_save.default", "")): name
            for name in names
            if ".lora_" not in name and ".base_layer." not in name
        }

    @property
    def known(self) -> bool:
        """Whether the merged weights can be computed: plain LoRA, or DoRA of linear layers."""
        return self.config.get("peft_type") == "LORA"

    def whole(self, place: str) -> Any:
        """A tensor that was trained in full."""
        return self._tensors.stored(self.saved[place])

    def change(self, place: str, base: Any) -> Any | None:
        """The difference of the merged weight from ``base``; None if it cannot be computed."""
        added = self._added(place).reshape(base.shape)
        magnitude = f"{self.modules[place]}.lora_magnitude_vector"
        if not self.config.get("use_dora"):
            return added
        if magnitude not in self._tensors or added.dim() != 2:
            return None
        tuned = base.float() + added  # DoRA, https://arxiv.org/abs/2402.09353, equation 5
        scale = self._tensors.stored(magnitude).float().flatten() / tuned.norm(dim=1)
        return scale[:, None] * tuned - base.float()

    def _added(self, place: str) -> Any:
        """The scaled B·A, in the shape of the weight."""
        prefix = self.modules[place]
        if f"{prefix}.lora_embedding_A" in self._tensors:
            a, b = (self._tensors.stored(f"{prefix}.lora_embedding_{one}").float() for one in "AB")
            return (b @ a).T * self._scale(prefix, a.shape[0])
        a, b = (self._tensors.stored(f"{prefix}.lora_{one}.weight").float() for one in "AB")
        delta = (b.flatten(1) @ a.flatten(1)) * self._scale(prefix, a.shape[0])
        return delta.T if self.config.get("fan_in_fan_out") else delta

    def _scale(self, prefix: str, rank: int) -> float:
        module = prefix.removeprefix("base_model.model.")
        patterns = self.config.get("alpha_pattern") or {}  # regular expressions for the end of a name
        matching = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
        alpha = next(matching, self.config.get("lora_alpha", rank))
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
    there = {_place(name) for name in artefact.names()}
    missing = [
        name for name in original.names() if _place(name) in change.saved and _place(name) not in there
    ]
    if missing:
        found.setdefault("missing", []).extend(missing)
    if not change.modules.keys() | change.saved.keys() <= there:  # what belongs to the adapter is not known
        found.pop("base", None)
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
    place = _place(name)
    if place in change.saved:
        return "" if _close(merged.float(), change.whole(place).float(), merged, 0) else "saved"
    if base.shape != merged.shape:
        return "" if _resized(base, merged) else "shape"
    difference = merged.float() - base.float()
    noise = _noise(base, merged)
    if place not in change.modules or not name.endswith(".weight"):
        return "" if float(difference.norm()) <= noise else "base"
    expected = change.change(place, base) if change.known else None
    if expected is None:
        return "unmerged" if float(difference.norm()) == 0 else ""
    return _kind_of_difference(difference, expected, noise)


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
