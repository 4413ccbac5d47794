"""The models that are served, and their names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from swift_toolkit.config.file import ConfigFile, read_config_file
from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.inference.backend import Backend
from swift_toolkit.model import loading
from swift_toolkit.model.builtin import is_builtin, materialise
from swift_toolkit.model.checkpoint import Checkpoint, hub_model, read_checkpoint
from swift_toolkit.model.find import find_checkpoint
from swift_toolkit.problems import Problem, RequestError

Type = Literal["lora", "full", "multi-lora"]
TYPES: tuple[Type, ...] = ("lora", "full", "multi-lora")


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
"""A model name that every client and every backend can take."""


@dataclass(frozen=True)
class ServedModel:
    """One name that clients can ask for.

    Args:
        name: the name.
        kind: what answers to it.
        path: the directory of the adapter or model, or a hub id.
        base: the model under an adapter.
        system: the system prompt a request without one gets; None for the template's own.
        rank: of an adapter.
    """

    name: str
    kind: Literal["base", "lora", "full", "merged"]
    path: str
    base: str | None = None
    system: str | None = None
    rank: int | None = None

    def __str__(self) -> str:
        if self.kind != "lora":
            return f"{self.path} ({self.kind})"
        return f"{self.path} (lora{f', rank {self.rank}' if self.rank else ''}, on {self.base})"


# --- what is served -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What the settings and flags name together."""

    checkpoint: str | None
    several: str | Mapping[str, str] | None
    on_hub: bool
    base: str | None
    backend: str
    merge: bool

    @classmethod
    def take(cls, config: Config, flags: Mapping[str, Any], problems: list[Problem]) -> Given:
        """Take it out of ``config``; ms-swift's own ``adapters`` and ``model`` stand for a checkpoint and its
        base."""

        def taken(name: str) -> Any:
            setting = config.settings.pop(name, None)
            return None if setting is None else setting.value

        named = _named_adapters(config, problems)
        adapters, model, merge = taken("adapters"), taken("model"), taken("merge_lora")
        backend = flags.get("infer_backend") or taken("infer_backend") or "auto"
        checkpoint, several, on_hub = flags.get("checkpoint"), flags.get("multi_lora_config"), False
        if checkpoint is None and several is None and named:
            several = named
        elif checkpoint is None and several is None and adapters:
            checkpoint = adapters[0]
        elif checkpoint is None and several is None:
            checkpoint, model, on_hub = model, None, loading.is_on_hub(model)
        base = flags.get("base_model") or model
        return cls(checkpoint, several, on_hub, base, backend, bool(flags.get("merge_lora") or merge))


def _named_adapters(config: Config, problems: list[Problem]) -> dict[str, str]:
    """Name -> directory of the adapters, where ms-swift's ``adapters`` names them: ``name=directory``."""
    adapters = config.get("adapters", [])
    pairs = [one.split("=", 1) for one in adapters if "=" in one and not Path(one).exists()]
    if len(adapters) > 1 and len(pairs) < len(adapters):
        do = "Write name=DIR for each: clients ask for an adapter by its name."
        problems.append(config.problem("adapters", "has several adapters, and not every one has a name", do))
    return dict(pairs)


def read_models(
    given: Given, flags: Mapping[str, Any], problems: list[Problem]
) -> tuple[list[str], list[Checkpoint], Type | None]:
    """The adapters' names (of several), the checkpoints, and what they are together; None if something is wrong."""
    asked, several = flags.get("type"), given.several
    if asked is not None and asked not in TYPES:
        problems.append(Problem(*not_one_of(asked, TYPES), key="--type"))
        return [], [], None
    if several is not None:
        return _read_several(several, given, flags, problems)
    if asked == "multi-lora":
        do = 'Name a file of {"name": "adapter directory"}: --multi-lora-config FILE'
        problems.append(Problem('is "multi-lora" without a list of adapters', do, "--type"))
        return [], [], None
    if given.checkpoint is None:
        do = "Name a checkpoint, a run or an output directory."
        problems.append(Problem("is needed", do, "--checkpoint"))
        return [], [], None
    try:
        trust = bool(flags.get("trust_code"))
        checkpoint = (
            hub_model(given.checkpoint) if given.on_hub else _checkpoint(given.checkpoint, given.base, trust)
        )
    except RequestError as error:
        problems += error.problems
        return [], [], None
    kind: Type = "lora" if checkpoint.kind == "lora" else "full"
    if asked not in (None, kind):
        what = f'is "{asked}", but {checkpoint.path} holds {_SAID[checkpoint.kind]}'
        problems.append(Problem(what, f"Use --type {kind}, or leave it out.", "--type"))
        return [], [], None
    return [], [checkpoint], kind


_SAID = {"lora": "an adapter", "full": "a full model", "merged": "a merged model"}


def _checkpoint(path: str, base: str | None, trust_code: bool) -> Checkpoint:
    if is_builtin(path):
        return replace(read_checkpoint(materialise(path)), base=path)
    return read_checkpoint(find_checkpoint(Path(path).expanduser()).path, base, trust_code)


def read_adapter(path: str) -> Checkpoint:
    """The adapter that ``path`` means.

    Raises:
        RequestError: it cannot be served.
    """
    checkpoint = _checkpoint(path, None, False)
    if checkpoint.kind != "lora":
        raise RequestError([Problem(f"{checkpoint.path} holds {_SAID[checkpoint.kind]}, not an adapter")])
    return checkpoint


def _read_several(
    several: str | Mapping[str, str], given: Given, flags: Mapping[str, Any], problems: list[Problem]
) -> tuple[list[str], list[Checkpoint], Type | None]:
    """The adapters that a file (or, from Python, a mapping) names."""
    found: list[Problem] = []
    for name, value in (("--type", flags.get("type")), ("--checkpoint", given.checkpoint)):
        if value not in (None, "multi-lora"):
            what = f'is "{value}", but --multi-lora-config names several adapters'
            found.append(Problem(what, "Remove one of the two.", name))
    file, lines, values = None, {}, dict(several) if isinstance(several, Mapping) else {}
    if not isinstance(several, Mapping):
        read = _read_list(several)
        file, lines, values = read.path, read.lines, read.values
    checkpoints = []
    for name, path in values.items():
        where = Problem("", key=name, file=file, line=lines.get(name))
        if not isinstance(path, str):
            found.append(replace(where, what="must be the directory of an adapter"))
            continue
        try:
            checkpoint = _checkpoint(path, given.base, bool(flags.get("trust_code")))
        except RequestError as error:
            found += [
                replace(where, what=f"cannot be served: {one.what}", do=one.do) for one in error.problems
            ]
            continue
        if checkpoint.kind != "lora":
            what = f"is {_SAID[checkpoint.kind]}, not an adapter"
            found.append(replace(where, what=what, do="Serve it alone."))
        checkpoints.append(checkpoint)
    if not values:
        found.append(Problem("names no adapter", _LIST_FORM, file=file))
    problems += found
    return list(values), checkpoints, None if found else "multi-lora"


_LIST_FORM = 'Write {"name": "adapter directory", ...}.'


def _read_list(path: str) -> ConfigFile:
    try:
        return read_config_file(path)
    except RequestError as error:
        forms = [one.what.startswith(("holds", "is empty")) for one in error.problems]
        raise RequestError(
            [
                replace(one, do=_LIST_FORM) if of_form else one
                for one, of_form in zip(error.problems, forms, strict=True)
            ]
        ) from None


def served_models(
    kind: Type, names: list[str], checkpoints: list[Checkpoint], config: Config, merge: str
) -> list[ServedModel]:
    """The names to serve: of adapters, the base's own first."""
    first, asked = checkpoints[0], config.settings.pop("served_model_name", None)
    base_name = Path(str(first.base)).name
    given = str(asked.value) if asked else None
    if kind == "full":
        kind_of: Literal["full", "merged"] = "merged" if first.kind == "merged" else "full"
        return [ServedModel(given or _own_name(first.path), kind_of, str(first.path))]
    if merge != "no":
        return [ServedModel(given or f"{base_name}-lora", "merged", str(first.path), first.base)]
    if kind == "lora":
        names = [given or f"{base_name}-lora"]
    base = ServedModel(given if given and kind == "multi-lora" else base_name, "base", str(first.base))
    return [base, *(_adapter(name, one) for name, one in zip(names, checkpoints, strict=True))]


def _own_name(path: Path) -> str:
    """What to call a model: its directory, or of ``<output>/<run>/checkpoint-N`` the output directory."""
    return path.parent.parent.name if path.name.startswith("checkpoint-") else path.name


def _adapter(name: str, checkpoint: Checkpoint) -> ServedModel:
    return ServedModel(
        name, "lora", str(checkpoint.path), checkpoint.base, checkpoint.system, checkpoint.lora_rank
    )


def name_problems(models: list[ServedModel], config: Config) -> Iterator[Problem]:
    for model in models:
        if not NAME.fullmatch(model.name):
            do = "Use letters, digits and . _ : / - only, at most 128, a letter or digit first."
            yield Problem(f"{json.dumps(model.name)} cannot be the name of a model", do)
        if model.kind == "lora" and "=" in model.path:
            what = f'{model.path} has a "=" in its path, which ms-swift takes for the end of the name'
            yield Problem(what, "Rename the directory.")
    base, adapters = models[0], models[1:]
    if any(model.name == base.name for model in adapters):
        do = "Choose another name for the adapter."
        yield Problem(f'"{base.name}" is the name of the base model and of an adapter', do)


def adapters_together(
    kind: Type, names: list[str], checkpoints: list[Checkpoint], backend: Backend
) -> Iterator[Problem]:
    """What keeps several adapters from being served side by side."""
    if kind != "multi-lora":
        return
    first = checkpoints[0]
    for what, of in _MUST_AGREE.items():
        for name, checkpoint in zip(names[1:], checkpoints[1:], strict=True):
            if of(checkpoint) != of(first):
                sides = f"{of(first)} for {names[0]}, {of(checkpoint)} for {name}"
                yield Problem(f"The adapters differ in their {what}: {sides}", "Serve them apart.")
    if not backend.several_adapters:
        do = "Use --infer-backend pt or vllm."
        yield Problem(f"{backend.name} cannot serve several adapters on one base", do)
        return
    for name, checkpoint in zip(names, checkpoints, strict=True):
        if not backend.serves_adapter(checkpoint):
            what = f'"{name}" cannot be served by {backend.name}, which takes plain LoRA up to rank 512 only'
            yield Problem(what, "Use --infer-backend pt.")


_MUST_AGREE: dict[str, Callable[[Checkpoint], Any]] = {
    "base model": lambda one: one.base,
    "template": lambda one: one.template,
    "task": lambda one: one.task_type or "causal_lm",
    "quantisation of the base": lambda one: one.args.get("quant_method"),
}
