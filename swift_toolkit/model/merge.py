"""An adapter merged into its base model: next to the checkpoint, to be kept, or in a temporary directory.

A kept merged model records its origin in ``merged_from.json``. It is used again only if the base is the same and the
adapter has not changed since.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from swift_toolkit.config.settings import Config
from swift_toolkit.machine.device import environment, find_device
from swift_toolkit.machine.failure import ENDED, child_failure
from swift_toolkit.machine.files import write_json
from swift_toolkit.machine.msswift import trust
from swift_toolkit.machine.process import Child
from swift_toolkit.machine.scratch import ScratchFolder
from swift_toolkit.model.checkpoints.adapter import adapter_weights, layers_of
from swift_toolkit.model.checkpoints.checkpoint import Checkpoint
from swift_toolkit.model.checkpoints.recorded import AdapterConfig
from swift_toolkit.model.checkpoints.tensors import tensors_in
from swift_toolkit.model.files import ARGS_FILES, model_problems, read_json
from swift_toolkit.model.loading import fill_model, local
from swift_toolkit.model.quantized import stored
from swift_toolkit.problems import Problem, RunError

MARK = "merged_from.json"


class Merging(Protocol):
    """What merging needs; the plans of inference and of serving have these."""

    @property
    def merge(self) -> str:
        """``beside`` the checkpoint, or ``aside``."""

    @property
    def config(self) -> Config:
        """The settings."""

    @property
    def log(self) -> Path:
        """Where the engine writes."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The adapter."""


def place(checkpoint: Checkpoint) -> Path:
    """Where the kept merged model of ``checkpoint`` belongs."""
    return checkpoint.path.with_name(f"{checkpoint.path.name}-merged")


def merge_problems(checkpoint: Checkpoint) -> list[Problem]:
    """Why the adapter cannot be merged next to the checkpoint."""
    path = place(checkpoint)
    if not checkpoint.path.is_absolute():
        what = f"cannot merge {checkpoint.path} next to itself: it is on a hub"
        return [Problem(what, "Download it and give its directory.", "--merge-lora")]
    if path.exists() and _mark(path) is None:
        what = f"cannot write {path}: it exists and was not made by this command"
        return [Problem(what, "Move it, or give it as the checkpoint.", "--merge-lora")]
    if not os.access(path.parent, os.W_OK):
        return [Problem(f"cannot write {path}: permission denied", "", "--merge-lora")]
    return [replace(problem, key="--merge-lora") for problem in unmergeable(checkpoint)]


@contextmanager
def merged(plan: Merging) -> Iterator[Path]:
    """The directory of the merged model; permanent if ``plan.merge`` is ``beside``, else it exists only in the block.

    Raises:
        RunError: it could not be merged.
    """
    if plan.merge == "aside":
        with ScratchFolder() as folder:
            path = folder / plan.checkpoint.path.name
            merge_into(plan, path)
            yield path
        return
    path = place(plan.checkpoint)
    if not is_fresh(path, plan.checkpoint):
        with ScratchFolder(path.parent, f"{path.name}.partial-") as folder:
            partial = folder / path.name
            merge_into(plan, partial)
            write_json(partial / MARK, made_of(plan.checkpoint))
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
    yield path


def is_fresh(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether ``path`` holds the complete merged model of the adapter in its present state."""
    return _mark(path) == made_of(checkpoint) and not model_problems(path)


def _mark(path: Path) -> Any:
    try:
        return json.loads((path / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def made_of(checkpoint: Checkpoint) -> dict[str, object]:
    """What identifies this adapter in its present state, for `MARK`."""
    states = [(path, path.stat()) for path in sorted(checkpoint.path.glob("adapter_*"))]
    files = [[path.name, state.st_size, state.st_mtime_ns] for path, state in states]
    return {"adapter": str(checkpoint.path), "files": files, "base": checkpoint.base}


def merge_into(plan: Merging, output: Path) -> None:
    """Merge the adapter into its base, in the new directory ``output``.

    Raises:
        RunError: it could not be merged.
    """
    arguments = [*export_arguments(plan), "--merge_lora=true", f"--output_dir={output}"]
    run_export(arguments, {**environment(find_device()), **trust(plan.checkpoint.trusted)}, plan.log)
    found = model_problems(output)
    if found:
        raise RunError(f"The merged model is incomplete: {found[0]}\nFull log: {plan.log}")
    recorded = read_json(output / ARGS_FILES[0])[0]
    if (
        recorded is not None and plan.checkpoint.args.quant_method
    ):  # else ms-swift would quantise it while loading it
        write_json(output / ARGS_FILES[0], {**recorded, "quant_method": None, "quant_bits": None})


def run_export(
    arguments: list[str],
    environment: Mapping[str, str],
    log: Path,
    what: str = "merge the adapter into its base",
) -> None:
    """Run ms-swift's export with these arguments until it ends; the message of a failure says ``what`` it does.

    Raises:
        RunError: it failed.
    """
    command = [sys.executable, "-m", "swift_toolkit.model.worker"]
    with Child(command, log, environment=environment, listens=True) as child:
        child.send({"export": arguments})
        events = (event for event in child.events() if event is not None)
        event = next((event for event in events if event["event"] in ("exported", "failed")), ENDED)
        if event["event"] != "exported":
            raise child_failure(event, f"ms-swift could not {what}", child, log)


def export_arguments(plan: Merging) -> list[str]:
    """What ms-swift's export needs to know about the checkpoint."""
    config = Config("export", plan.config.install, None, {})
    model = local(plan.checkpoint.base)
    fill_model(config, plan.checkpoint, model=model, adapter=plan.checkpoint.path)
    return config.arguments()


# --- adapters that cannot be merged ---------------------------------------------------------------------------

_WITHOUT_MERGE = frozenset(
    "ADAPTION_PROMPT CARTRIDGE CPT MULTITASK_PROMPT_TUNING P_TUNING POLY PREFIX_TUNING PROMPT_TUNING XLORA".split()
)
"""PEFT's types of adapters that are not added to weights: virtual tokens, and mixtures of adapters."""

_PACKED = ("gptq", "awq", "aqlm")
"""Ways to store weights quantised to which PEFT cannot add others."""

AS_IT_IS = "Use the adapter without merging it."


def unmergeable(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Why the adapter of ``checkpoint`` cannot be merged into its base; nothing for a whole model."""
    if checkpoint.kind != "lora" or not checkpoint.path.is_absolute():
        return
    config, base = AdapterConfig.read(checkpoint.path), Path(str(checkpoint.base))
    packed = stored(str(base))
    reasons = []
    if config.peft_type in _WITHOUT_MERGE:
        reasons.append(f"PEFT cannot merge {config.peft_type}")
    if config.content.get("layer_replication"):
        reasons.append('it repeats layers of its base ("layer_replication")')
    if packed is not None and packed.method in _PACKED:
        reasons.append(f"the weights of its base are packed ({packed.method})")
    if config.peft_type == "LORA":
        reasons += _bias_reasons(config, checkpoint.path, base)
    for reason in reasons:
        yield Problem(f"cannot merge {checkpoint.path}: {reason}", AS_IT_IS)


def _bias_reasons(config: AdapterConfig, path: Path, base: Path) -> Iterator[str]:
    if not config.content.get("lora_bias"):
        return
    model, layers = tensors_in(base), layers_of(adapter_weights(path, config) or {})
    without = sorted(one for one in layers if f"{one}.weight" in model and f"{one}.bias" not in model)
    if without:
        yield f'it has biases ("lora_bias"), and {without[0]} of its base has none'
