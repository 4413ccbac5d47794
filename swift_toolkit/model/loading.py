"""What ms-swift must be told to load a model: type, template, source."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from swift_toolkit.config import fields as config_fields
from swift_toolkit.config import renames, translate
from swift_toolkit.config.settings import Config
from swift_toolkit.machine.msswift import LINES
from swift_toolkit.model import registry
from swift_toolkit.model.builtin import BUILTIN, is_builtin, materialise
from swift_toolkit.model.checkpoint import Checkpoint
from swift_toolkit.model.files import looks_local
from swift_toolkit.problems import Problem


def fill_model(config: Config, checkpoint: Checkpoint, *, model: str, adapter: Path | None) -> None:
    """Set in ``config`` what the checkpoint decides and nobody has set.

    Args:
        config: an infer or export request.
        checkpoint: what is asked.
        model: the directory or hub id of the model to load.
        adapter: the adapter to load on it, None for none.
    """
    reason = "from the checkpoint"
    config.fill("model", model, reason)
    if adapter is not None:
        config.fill("adapters", [str(adapter)], reason)
    if checkpoint.tuner_type:
        config.fill(config.tuner_name, checkpoint.tuner_type, reason)
    for name, value in _names(config, checkpoint, model).items():
        config.fill(name, value, reason)
    for name in ("system", "torch_dtype"):
        if getattr(checkpoint, name):
            config.fill(name, getattr(checkpoint, name), reason)


def _names(config: Config, checkpoint: Checkpoint, model: str) -> dict[str, Any]:
    """``model_type`` and ``template`` of a checkpoint, as the installed ms-swift calls them."""
    builtin = BUILTIN.get(checkpoint.base or "")
    if builtin is not None:
        return {"model_type": builtin.model_type, "template": builtin.template}
    recorded: dict[str, Any] = {
        "model_type": checkpoint.args.get("model_type"),
        "template": checkpoint.template,
        "model": model,
    }
    line, generation = config.install.line, checkpoint.generation
    if generation in LINES and generation != line:
        for name in ("model_type", "template"):
            recorded[name] = recorded[name] and renames.in_other_line(name, recorded[name], line)
    known = {name: value for name, value in recorded.items() if value is not None}
    if generation not in (None, line):
        fields = config_fields.fields("infer", config.install)
        known = translate.translate(known, "infer", line, fields).values
    return {name: known[name] for name in ("model_type", "template") if name in known}


def naming_problems(config: Config, checkpoint: Checkpoint) -> list[Problem]:
    """What ms-swift could not tell of the model, with all that the request and the checkpoint say of it."""
    model = checkpoint.base if checkpoint.kind == "lora" else str(checkpoint.path)
    filled = deepcopy(config)
    fill_model(filled, checkpoint, model=str(model), adapter=None)
    return list(registry.problems(filled))


def local(model: str) -> str:
    """A model as ms-swift takes it: an embedded one is unpacked."""
    return str(materialise(model)) if is_builtin(model) else model


def is_on_hub(model: str | None) -> bool:
    """Whether the model is to be fetched from a hub: its name has the form, and neither it nor its owner is a
    directory's.
    """
    if model is None or is_builtin(model) or looks_local(model):
        return False
    return not (Path(model).parent.is_dir() or Path(model).name.startswith("checkpoint-"))
