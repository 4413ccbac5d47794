"""LoRA adapters written by ms-swift 1, in the format that PEFT loads.

Before 2.0, ms-swift saved adapters in its own format: in the folder ``default`` of the checkpoint, under names without
PEFT's prefix, with a ``swift_type``. Today's ms-swift cannot load them with today's PEFT. The processes that load a
model call `as_peft`; copies are kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from swift_toolkit.machine.files import written_beside
from swift_toolkit.model.files import ADAPTER_WEIGHTS

OLD_FOLDER = "default"

# q_proj.loramodule_default.lora_A until 1.3, q_proj.loramodule_default.lora_A.default.weight in 1.4,
# q_proj.lora_A.default.weight until 1.7
_MATRIX = re.compile(rf"(?:loramodule_{OLD_FOLDER}\.)?(lora_[AB])(?:\.{OLD_FOLDER})?(?:\.weight)?$")
_EMBEDDING = re.compile(rf"(lora_embedding_[AB])\.{OLD_FOLDER}$")
_PREFIX = "base_model.model."


def is_old(path: Path) -> bool:
    """Whether the checkpoint ``path`` holds an adapter in the format of ms-swift 1."""
    try:
        return (path / OLD_FOLDER / "adapter_config.json").is_file()
    except OSError:
        return False


def as_peft(path: str) -> str:
    """The directory ``path``, or, if it holds an adapter of ms-swift 1, a copy that PEFT can load."""
    if not is_old(Path(path)):
        return path
    import platformdirs

    source = Path(path).resolve() / OLD_FOLDER
    weights = next(source / name for name in ADAPTER_WEIGHTS if (source / name).is_file())
    state = weights.stat()
    mark = hashlib.sha256(f"{weights} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    target = platformdirs.user_cache_path("swift-toolkit") / "adapters" / mark
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with written_beside(target) as beside:
                beside.mkdir()
                _write(source, weights, beside)
        except OSError:
            if not target.is_dir():  # another process may have made it first
                raise
    return str(target)


def with_peft_adapters(words: Iterable[str]) -> list[str]:
    """An argument list with the adapters in it (``--adapters=DIR``, ``NAME=DIR``) replaced by `as_peft`."""
    parts = [word.rpartition("=") for word in words]
    return [name + equals + as_peft(value) for name, equals, value in parts]


def name_in_peft(name: str) -> str:
    """PEFT's name for the weight that ms-swift 1 called ``name``."""
    name = _EMBEDDING.sub(r"\1", _MATRIX.sub(r"\1.weight", name))
    return name if name.startswith(_PREFIX) else _PREFIX + name


def _write(source: Path, weights: Path, target: Path) -> None:
    import torch
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file

    old: dict[str, torch.Tensor] = (
        load_file(weights)
        if weights.suffix == ".safetensors"
        else torch.load(weights, "cpu", weights_only=True)
    )
    tensors = {name_in_peft(name): tensor.contiguous() for name, tensor in old.items()}
    save_file(tensors, target / ADAPTER_WEIGHTS[0], metadata={"format": "pt"})
    given = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    known = {name: value for name, value in given.items() if name in LoraConfig.__dataclass_fields__}
    LoraConfig(**{**known, "peft_type": "LORA", "task_type": "CAUSAL_LM"}).save_pretrained(target)
