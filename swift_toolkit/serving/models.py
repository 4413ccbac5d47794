"""The served models and their names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from swift_toolkit.config.file import read_config_file
from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.inference.backend import Backend
from swift_toolkit.model import loading
from swift_toolkit.model.builtin import is_builtin, materialise
from swift_toolkit.model.checkpoints.checkpoint import (
    Checkpoint,
    given_base_problems,
    hub_adapter,
    hub_model,
    read_checkpoint,
)
from swift_toolkit.model.checkpoints.find import find_checkpoint
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.serving.options import ServingOptions

Type = Literal["lora", "full", "multi-lora"]
TYPES: tuple[Type, ...] = ("lora", "full", "multi-lora")


MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
"""A model name that every client and backend accepts."""


@dataclass(frozen=True)
class ServedModel:
    """One model name that clients can request.

    Args:
        name: the name.
        kind: the kind of model behind it.
        path: the directory of the adapter or model, or a hub id.
        base: the base model of an adapter.
        system: system prompt for requests without one; None for the template's default.
        rank: LoRA rank of an adapter.
        offered: whether clients can request it; not a base without the head of its adapters.
    """

    name: str
    kind: Literal["base", "lora", "full", "merged"]
    path: str
    base: str | None = None
    system: str | None = None
    rank: int | None = None
    offered: bool = True

    def __str__(self) -> str:
        if self.kind != "lora":
            offered = "" if self.offered else ", only with an adapter: its own head has random weights"
            return f"{self.path} ({self.kind}{offered})"
        return f"{self.path} (lora{f', rank {self.rank}' if self.rank else ''}, on {self.base})"


# --- what is served -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RequestedModel:
    """The models that the settings and options name.

    Args:
        type: the type the user requires.
        checkpoint: one checkpoint, model or hub id.
        several: a file, or a mapping, of several adapters.
        on_hub: what the hub id ``checkpoint`` refers to, "" if it is a directory.
        base: the base model, if given.
        backend: ``auto`` or a backend.
        merge: merge the adapter first.
        trust_code: accept Python code in a checkpoint.
    """

    type: str | None
    checkpoint: str | None
    several: str | Mapping[str, str] | None
    on_hub: Literal["adapter", "model", ""]
    base: str | None
    backend: str
    merge: bool
    trust_code: bool


def take_asked(config: Config, options: ServingOptions) -> RequestedModel:
    """Find out what to serve and remove the settings that name it from ``config``. ms-swift's own ``adapters`` and
    ``model`` stand for a checkpoint and its base.
    """
    named = _named_adapters(config)
    taken = {
        name: config.settings.pop(name).value
        for name in ("adapters", "model", "merge_lora", "infer_backend")
        if name in config.settings
    }
    model = taken.get("model")
    checkpoint, several = options.checkpoint, options.multi_lora_config
    base = options.base_model or model
    on_hub: Literal["adapter", "model", ""] = "model" if base is None else "adapter"
    if checkpoint is None and several is None and named:
        several = named
    elif checkpoint is None and several is None and taken.get("adapters"):
        checkpoint, on_hub = taken["adapters"][0], "adapter"
    elif checkpoint is None and several is None:
        checkpoint, base, on_hub = model, options.base_model, "model"
    return RequestedModel(
        type=options.type,
        checkpoint=checkpoint,
        several=several,
        on_hub=on_hub if loading.is_on_hub(checkpoint) else "",
        base=base,
        backend=options.infer_backend or taken.get("infer_backend") or "auto",
        merge=bool(options.merge_lora or taken.get("merge_lora")),
        trust_code=options.trust_code,
    )


def _named_adapters(config: Config) -> dict[str, str]:
    """Name -> directory of the adapters, if ms-swift's ``adapters`` gives names: ``name=directory``."""
    adapters = config.value("adapters")
    return dict(one.split("=", 1) for one in adapters if "=" in one and not Path(one).exists())


def adapter_name_problems(config: Config) -> Iterator[Problem]:
    """A problem if ``config`` has several adapters and not all of them have a name of their own."""
    adapters = config.value("adapters")
    names = [one.partition("=")[0] for one in adapters if "=" in one and not Path(one).exists()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        do = "Choose another name: clients request an adapter by its name."
        yield config.problem("adapters", f"has several adapters with the name {twice[0]}", do)
    elif len(adapters) > 1 and len(names) < len(adapters):
        do = "Write name=DIR for each: clients request an adapter by its name."
        yield config.problem("adapters", "has several adapters, but not all of them have a name", do)


@dataclass(frozen=True)
class FoundModels:
    """The checkpoints to serve, as read.

    Args:
        type: what is served: ``lora``, ``full`` or ``multi-lora``.
        names: names of several adapters.
        checkpoints: in the order of the names; one element for a single adapter or model.
    """

    type: Type
    names: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]


def read_models(asked: RequestedModel) -> FoundModels:
    """Read the requested checkpoints.

    Raises:
        RequestError: with all problems of the checkpoints.
    """
    if asked.type is not None and asked.type not in TYPES:
        raise RequestError([Problem(*not_one_of(asked.type, TYPES), key="--type")])
    if asked.several is not None:
        return _read_several(asked.several, asked)
    if asked.type == "multi-lora":
        do = 'Give a file with {"name": "adapter directory", ...}: --multi-lora-config FILE'
        raise RequestError([Problem('is "multi-lora" without a list of adapters', do, "--type")])
    if asked.checkpoint is None:
        raise RequestError(
            [Problem("is needed", "Name a checkpoint, a run or an output directory.", "--checkpoint")]
        )
    return _read_one(asked.checkpoint, asked)


def _read_one(path: str, asked: RequestedModel) -> FoundModels:
    if asked.on_hub == "model":
        return FoundModels("full", (), (hub_model(path, asked.trust_code),))
    checkpoint = _checkpoint(path, asked.base, asked.trust_code)
    kind: Type = "lora" if checkpoint.kind == "lora" else "full"
    if asked.type not in (None, kind):
        what = f'is "{asked.type}", but {checkpoint.path} holds {_KINDS[checkpoint.kind]}'
        raise RequestError([Problem(what, f"Use --type {kind}, or omit it.", "--type")])
    return FoundModels(kind, (), (checkpoint,))


_KINDS = {"lora": "an adapter", "full": "a full model", "merged": "a merged model"}


def _checkpoint(path: str, base: str | None, trust_code: bool) -> Checkpoint:
    if is_builtin(path):
        return replace(read_checkpoint(materialise(path)), base=path)
    if loading.is_on_hub(path):
        if base is None:
            do = "Name the model it was trained on: --base-model NAME"
            raise RequestError([Problem(f"{path} is an adapter on a hub, but its base is not known", do)])
        return hub_adapter(path, base, trust_code)
    try:
        found = find_checkpoint(Path(path).expanduser())
    except RequestError as error:
        raise RequestError([*error.problems, *given_base_problems(base)]) from None
    return read_checkpoint(found.path, base, trust_code)


def read_adapter(path: str) -> Checkpoint:
    """Read the adapter at ``path``.

    Raises:
        RequestError: it cannot be served as an adapter.
    """
    checkpoint = _checkpoint(path, None, False)
    if checkpoint.kind != "lora":
        raise RequestError([Problem(f"{checkpoint.path} holds {_KINDS[checkpoint.kind]}, not an adapter")])
    return checkpoint


def _read_several(several: str | Mapping[str, str], asked: RequestedModel) -> FoundModels:
    """Read the adapters that a file (or, from Python, a mapping) lists."""
    listed = _read_list(several) if isinstance(several, str) else _Listed(None, dict(several), {})
    problems = [*_other_names(asked)]
    checkpoints = []
    for name, path in listed.values.items():
        where = Problem("", key=name, file=listed.file, line=listed.lines.get(name))
        try:
            checkpoints.append(_listed_adapter(path, asked))
        except RequestError as error:
            problems += [replace(where, what=one.what, do=one.do) for one in error.problems]
    if not listed.values:
        problems.append(Problem("does not list any adapter", _LIST_FORM, file=listed.file))
    if problems:
        raise RequestError(problems)
    return FoundModels("multi-lora", tuple(listed.values), tuple(checkpoints))


def _other_names(asked: RequestedModel) -> Iterator[Problem]:
    """Problems with settings that name a model in addition to a list of adapters."""
    for name, value in (("--type", asked.type), ("--checkpoint", asked.checkpoint)):
        if value not in (None, "multi-lora"):
            what = f'is "{value}", but --multi-lora-config lists several adapters'
            yield Problem(what, "Remove one of the two.", name)


def _listed_adapter(path: object, asked: RequestedModel) -> Checkpoint:
    if not isinstance(path, str):
        raise RequestError([Problem("must be the directory of an adapter")])
    try:
        checkpoint = _checkpoint(path, asked.base, asked.trust_code)
    except RequestError as error:
        raise RequestError(
            [replace(one, what=f"cannot be served: {one.what}") for one in error.problems]
        ) from None
    if checkpoint.kind != "lora":
        what = f"is {_KINDS[checkpoint.kind]}, not an adapter"
        raise RequestError([Problem(what, "Serve it separately.")])
    return checkpoint


@dataclass(frozen=True)
class _Listed:
    """The adapters of a list: names and directories, and their line numbers."""

    file: str | None
    values: Mapping[str, object]
    lines: Mapping[str, int]


_LIST_FORM = 'Write {"name": "adapter directory", ...}.'


def _read_list(path: str) -> _Listed:
    try:
        read = read_config_file(path)
    except RequestError as error:
        raise RequestError([_with_form(one) for one in error.problems]) from None
    return _Listed(read.path, read.values, read.lines)


def _with_form(problem: Problem) -> Problem:
    return replace(problem, do=_LIST_FORM) if problem.what.startswith(("holds", "is empty")) else problem


def served_models(found: FoundModels, config: Config, merge: str) -> tuple[ServedModel, ...]:
    """The models to serve; with adapters, the base comes first. Removes ``served_model_name`` from ``config``."""
    first, asked = found.checkpoints[0], config.settings.pop("served_model_name", None)
    base_name = _as_name(Path(str(first.base)).name)
    given = str(asked.value) if asked else None
    if found.type == "full":
        kind: Literal["full", "merged"] = "merged" if first.kind == "merged" else "full"
        return (ServedModel(given or _own_name(first.path), kind, str(first.path)),)
    if merge != "no":
        return (ServedModel(given or f"{base_name}-lora", "merged", str(first.path), first.base),)
    several = found.type == "multi-lora"
    names = found.names if several else (given or f"{base_name}-lora",)
    base_name = given if given and several else base_name
    base = ServedModel(base_name, "base", str(first.base), offered=first.base_answers)
    return base, *(_adapter(name, one) for name, one in zip(names, found.checkpoints, strict=True))


def _own_name(path: Path) -> str:
    """The name of a model: its directory, or for ``<output>/<run>/checkpoint-N`` the output directory."""
    return _as_name(path.parent.parent.name if path.name.startswith("checkpoint-") else path.name)


def _as_name(directory: str) -> str:
    """The name of a directory without what `MODEL_NAME` does not allow."""
    allowed = re.sub(r"[^A-Za-z0-9._:/-]+", "-", directory)
    return allowed[:100].strip("-._:/") or "model"


def _adapter(name: str, checkpoint: Checkpoint) -> ServedModel:
    return ServedModel(
        name, "lora", str(checkpoint.path), checkpoint.base, checkpoint.system, checkpoint.lora_rank
    )


def name_problems(models: Sequence[ServedModel]) -> Iterator[Problem]:
    """Problems with names and paths that clients or ms-swift do not accept."""
    for model in models:
        if not MODEL_NAME.fullmatch(model.name):
            do = "Use at most 128 letters, digits and . _ : / -, starting with a letter or digit."
            yield Problem(f"{json.dumps(model.name)} is not a valid model name", do)
        if model.kind == "lora" and "=" in model.path:
            what = f'{model.path} has a "=" in its path, which ms-swift reads as the end of the name'
            yield Problem(what, "Rename the directory.")
    base, adapters = models[0], models[1:]
    if any(model.name == base.name for model in adapters):
        do = "Choose another name for the adapter."
        yield Problem(f'"{base.name}" is the name of both the base model and an adapter', do)


def adapters_together(found: FoundModels, backend: Backend) -> Iterator[Problem]:
    """Reasons why several adapters cannot be served together."""
    if found.type != "multi-lora":
        return
    first, names = found.checkpoints[0], found.names
    for what, of in _MUST_AGREE.items():
        for name, checkpoint in zip(names[1:], found.checkpoints[1:], strict=True):
            if of(checkpoint) != of(first):
                sides = f"{of(first)} for {names[0]}, {of(checkpoint)} for {name}"
                yield Problem(f"The adapters differ in their {what}: {sides}", "Serve them separately.")
    if not backend.several_adapters:
        do = "Use --infer-backend pt or vllm."
        yield Problem(f"{backend.name} cannot serve several adapters on one base", do)
        return
    for name, checkpoint in zip(names, found.checkpoints, strict=True):
        if not backend.serves_adapter(checkpoint):
            what = (
                f'"{name}" cannot be served by {backend.name}, which supports only plain LoRA up to rank 512'
            )
            yield Problem(what, "Use --infer-backend pt.")


_MUST_AGREE: dict[str, Callable[[Checkpoint], object]] = {
    "base model": lambda one: one.base,
    "template": lambda one: one.template,
    "task": lambda one: one.task_type or "causal_lm",
    "number of classes": lambda one: one.args.num_labels,
    "quantisation of the base": lambda one: one.args.quant_method,
}
