"""What ms-swift needs to load a model: type, template, source."""

from __future__ import annotations

import difflib
from copy import deepcopy
from pathlib import Path

from swift_toolkit.config import fields as config_fields
from swift_toolkit.config.names import renames, translate
from swift_toolkit.config.settings import Config
from swift_toolkit.machine.msswift import LINES
from swift_toolkit.model import registry, templates
from swift_toolkit.model.builtin import BUILTIN, is_builtin, materialise
from swift_toolkit.model.checkpoints.checkpoint import HUB_ID, Checkpoint
from swift_toolkit.model.files import NO_OWNERS, looks_local
from swift_toolkit.problems import Problem


def fill_model(config: Config, checkpoint: Checkpoint, *, model: str | None, adapter: Path | None) -> None:
    """Set in ``config`` what the checkpoint determines and the user did not set.

    Args:
        config: an infer or export request.
        checkpoint: the checkpoint to load.
        model: the directory or hub id of the model to load; None to let ms-swift read it from the adapter.
        adapter: the adapter to load on top of it, or None.
    """
    reason = "from the checkpoint"
    if model is not None:
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


def _names(config: Config, checkpoint: Checkpoint, model: str | None) -> dict[str, str]:
    """``model_type`` and ``template`` of a checkpoint, under the names of the installed ms-swift."""
    builtin = BUILTIN.get(checkpoint.base or "")
    if builtin is not None:
        return {"model_type": builtin.model_type, "template": builtin.template}
    recorded = {"model_type": checkpoint.args.model_type, "template": checkpoint.template, "model": model}
    line, generation = config.install.line, checkpoint.generation
    if generation in LINES and generation != line:
        for name in ("model_type", "template"):
            written = recorded[name]
            recorded[name] = written and renames.in_other_line(name, written, line)
    known = {name: value for name, value in recorded.items() if value is not None}
    if generation not in (None, line):
        fields = config_fields.fields("infer", config.install)
        known = translate.translate(known, "infer", line, fields).values
    return {name: known[name] for name in ("model_type", "template") if name in known}


def naming_problems(config: Config, checkpoint: Checkpoint) -> list[Problem]:
    """What ms-swift cannot determine about the model, and what its template cannot write, given the request and the
    checkpoint."""
    model = checkpoint.base if checkpoint.kind == "lora" else str(checkpoint.path)
    filled = deepcopy(config)
    fill_model(filled, checkpoint, model=model, adapter=None)
    return [*registry.model_type_problems(filled), *templates.template_problems(filled)]


def local(model: str | None) -> str | None:
    """A model that ms-swift can load: an embedded one is unpacked."""
    return str(materialise(model)) if model is not None and is_builtin(model) else model


def is_on_hub(model: str | None) -> bool:
    """Whether a model or adapter must be downloaded from a hub: its name has the form ``owner/name``, no directory here
    is named like the owner or nearly so (which would be a misspelled path), and the owner is none of `NO_OWNERS`.
    """
    if model is None or is_builtin(model) or looks_local(model) or HUB_ID.fullmatch(model) is None:
        return False
    owner, _, name = model.partition("/")
    if owner in NO_OWNERS or Path(owner).is_dir() or name.startswith("checkpoint-"):
        return False
    directories = [entry.name for entry in Path().iterdir() if entry.is_dir()]
    return not difflib.get_close_matches(owner, directories, n=1, cutoff=0.8)
