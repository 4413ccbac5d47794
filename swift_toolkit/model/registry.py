"""The models and templates of the installed ms-swift, read from its source without importing it.

ms-swift finds the ``model_type`` of a local directory by the directory's name, else by the architecture in its
config.json, and the template by both. If several match it gives up, but only after its slow import. This module finds
the same in a fraction of a second.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_toolkit.config.names import registries
from swift_toolkit.console.words import did_you_mean
from swift_toolkit.machine import files as machine_files
from swift_toolkit.machine.msswift import SwiftInstall
from swift_toolkit.problems import Problem

if TYPE_CHECKING:
    from swift_toolkit.config.settings import Config

SHOWN_NAMES = 12
"""How many names a message lists at most."""


@dataclass(frozen=True)
class ModelType:
    """One ``model_type``.

    Args:
        name: ms-swift's name.
        architectures: those in config.json that it covers.
        template: of its models, "" if they have none in common.
        models: name of a model, in lower case and without its owner -> its own template, "" for the common one.
        task_type: the only task of its models; "" for any.
    """

    name: str
    architectures: tuple[str, ...] = ()
    template: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    task_type: str = ""

    @property
    def templates(self) -> list[str]:
        """All templates of models of this type."""
        return [one for one in dict.fromkeys([self.template, *self.models.values()]) if one]


class Registry:
    """What ms-swift registers.

    Args:
        types: every ``model_type``, by its name, in ms-swift's order.
        templates: every template's name.
    """

    def __init__(self, types: Iterable[ModelType], templates: Iterable[str]) -> None:
        self.types = {one.name: one for one in types}
        self.templates = set(templates)

    def named(self, model: str) -> ModelType | None:
        """The type of the model with this directory name or hub id."""
        name = model_name(model)
        return next((one for one in self.types.values() if name in one.models), None)

    def for_architecture(self, architecture: str) -> list[ModelType]:
        """All types that cover an architecture."""
        return [one for one in self.types.values() if architecture in one.architectures]


def model_name(model: str) -> str:
    """The name under which ms-swift looks up a model: the last part of the path or id, or the repository's name in the
    cache of a hub (``get_model_name``)."""
    cached = re.search(r"/models(?:--|/)(?:.+?--)?(.+?)/snapshots/", model)
    return (cached[1] if cached else Path(model).name.replace("___", ".")).lower()


def registry(install: SwiftInstall) -> Registry:
    """The models and templates of the installed ms-swift."""

    def read() -> tuple[Any, list[Path]]:
        found, files = read_registry(install)
        return {
            "types": [astuple(one) for one in found.types.values()],
            "templates": list(found.templates),
        }, files

    def decode(content: Any) -> Registry:
        types = [ModelType(name, tuple(words), *rest) for name, words, *rest in content["types"]]
        return Registry(types, content["templates"])

    return machine_files.kept(f"models-{install.version}", str(install.location), read, decode)


def read_registry(install: SwiftInstall) -> tuple[Registry, list[Path]]:
    """The models and templates in the source of ``install``, and the files they were read from."""
    root, sources = install.location, install.sources
    models, templates = root / sources.model_constants, root / sources.template_constants
    files = sorted((root / sources.models).glob("*.py"))
    constants, known = constants_of(models), constants_of(templates)
    calls = (call for file in files for call in calls_of(ast.parse(file.read_bytes()), "ModelMeta"))
    found = [_model_type(call, constants, known, sources.template_at) for call in calls]
    return Registry((one for one in found if one.name), known.values()), [
        *files,
        models,
        templates,
        Path(__file__),
    ]


def constants_of(file: Path) -> dict[str, str]:
    """The strings that the classes of a file define, by name; none if there is no such file."""
    tree = ast.parse(file.read_bytes() if file.is_file() else b"")
    return {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def calls_of(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """The calls of a function by its plain name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def _argument(call: ast.Call, name: str, at: int | None = None) -> ast.expr | None:
    given = next((word.value for word in call.keywords if word.arg == name), None)
    return given or (call.args[at] if at is not None and len(call.args) > at else None)


def source_text(node: ast.expr | None, constants: Mapping[str, str]) -> str:
    """A string literal, or the constant that ``Class.name`` stands for; "" for anything else."""
    if isinstance(node, ast.Attribute):
        return constants.get(node.attr, "")
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _model_type(
    call: ast.Call, constants: Mapping[str, str], templates: Mapping[str, str], template_at: int
) -> ModelType:
    words = _argument(call, "architectures")
    architectures = [source_text(word, {}) for word in words.elts] if isinstance(words, ast.List) else []
    models: dict[str, str] = {}
    for group in calls_of(call, "ModelGroup"):
        own = source_text(_argument(group, "template", 1), templates)
        for model in calls_of(group, "Model"):
            ids = [
                source_text(_argument(model, f"{hub}_model_id", at), {})
                for at, hub in enumerate(("ms", "hf"))
            ]
            models |= {one.rsplit("/", 1)[-1].lower(): own for one in ids if one}
    template = source_text(_argument(call, "template", template_at), templates)
    name = source_text(_argument(call, "model_type", 0), constants)
    return ModelType(
        name, tuple(architectures), template, models, source_text(_argument(call, "task_type"), {})
    )


# --- what ms-swift cannot determine ------------------------------------------------------------------------


OTHER_MODELS = ("ref_model", "reward_model", "teacher_model")
"""Settings that name further models of a run."""

_TYPES = ("model_type", *(f"{name}_type" for name in OTHER_MODELS))


def model_type_problems(config: Config) -> Iterator[Problem]:
    """A model type or a template that ms-swift does not know, or cannot determine for a local model by itself.

    Models on a hub are left to ms-swift; so is everything if plugins may register more.
    """
    model = Path(str(config.get("model"))).expanduser()
    kind, template = config.get("model_type"), config.get("template")
    named = [name for name in (*_TYPES, *_TEMPLATES, *OTHER_MODELS) if config.get(name)]
    if not (named or model.is_dir() or config.task.own_models):
        return
    known, plugins = registry(config.install), registries.plugins_of(config)
    adds_models = plugins.mention("register_model", "MODEL_MAPPING")
    if not adds_models:
        yield from _unknown_names(config, _TYPES, known.types)
    if not plugins.mention("register_template", "TEMPLATE_MAPPING"):
        yield from _unknown_names(config, _TEMPLATES, known.templates)
    if adds_models:
        return
    if config.task.own_models:
        yield from _own_model_problems(config, known)
    yield from _kinds_of_other_models(config, known)
    if (kind and kind not in known.types) or (model / "args.json").exists() or not model.is_dir():
        return
    kinds = [known.types[kind]] if kind else _possible(known, model)
    if len(kinds) > 1:
        more = "" if template else ', and "template"'
        yield config.problem("model", *_several(kinds, model, "model_type", more))
    elif kinds and not template and not config.install.guesses_template:
        found = kinds[0].models.get(model_name(str(model))) or kinds[0].template
        if not found and len(kinds[0].templates) != 1:
            what = f'is needed: models of type "{kinds[0].name}" have several templates'
            yield config.problem("template", what, f"Add it: {_some(kinds[0].templates)}.")


def _several(kinds: Iterable[ModelType], model: Path, setting: str, more: str = "") -> tuple[str, str]:
    what = f"is a {_architecture(model)}, which belongs to several model types of ms-swift"
    return what, f'Add "{setting}": {_some(one.name for one in kinds)}{more}.'


def _kinds_of_other_models(config: Config, known: Registry) -> Iterator[Problem]:
    """A local teacher, reward or reference model whose type ms-swift cannot determine."""
    for name in OTHER_MODELS:
        given = config.get(name) or []
        if config.get(f"{name}_type") or (name == "ref_model" and config.get("model_type")):
            continue  # ms-swift takes the type of the model for that of its reference
        for value in given if isinstance(given, list) else [given]:
            model = Path(str(value)).expanduser()
            if value == config.get("model") or not model.is_dir() or (model / "args.json").exists():
                continue
            if len(kinds := _possible(known, model)) > 1:
                yield config.problem(name, *_several(kinds, model, f"{name}_type"))


_TEMPLATES = ("template", "reward_template")


def _unknown_names(config: Config, settings: Iterable[str], known: Collection[str]) -> Iterator[Problem]:
    for setting in settings:
        value = config.get(setting) or []
        for name in value if isinstance(value, list) else [value]:
            if name not in known:
                yield config.problem(setting, *_unknown(str(name), known))


def fill_task(config: Config) -> None:
    """Fill in the task of a model that ms-swift makes for one task only, e.g. of a reranker, as ms-swift does."""
    known, kind = registry(config.install), config.get("model_type")
    found = known.types.get(kind) if kind else known.named(str(config.get("model")))
    if config.command == "sft" and found is not None and found.task_type:
        config.fill("task_type", found.task_type, f"models of the type {found.name} are made for it")


def _own_model_problems(config: Config, known: Registry) -> Iterator[Problem]:
    """A model of a type that ms-swift does not support for the task."""
    kind = config.get("model_type")
    found = known.types.get(kind) if kind else known.named(str(config.get("model")))
    task = config.task.name
    if found is None or found.task_type != task:
        names = [one.name for one in known.types.values() if one.task_type == task]
        what = f'is "{task}", which only models of the types {_some(names)} support'
        do = f'Add "model_type" and "template", e.g. "{names[-1]}" for any text model.' if names else ""
        yield config.problem("task_type", what, do)


def _unknown(name: str, known: Iterable[str]) -> tuple[str, str]:
    do = did_you_mean(name, known, 'ms-swift lists them under "Supported models and datasets".')
    return f'is "{name}", which this ms-swift does not know', do


def _possible(known: Registry, model: Path) -> list[ModelType]:
    """The possible types of a local model; none if its config.json names no architecture."""
    named = known.named(str(model))
    return [named] if named else known.for_architecture(_architecture(model))


def _architecture(model: Path) -> str:
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # files.py reports what is wrong with it
    words = config.get("architectures") if isinstance(config, dict) else None
    return str(words[0]) if isinstance(words, list) and words else ""


def _some(names: Iterable[str]) -> str:
    words = list(names)
    return ", ".join(words[:SHOWN_NAMES]) + (", ..." if len(words) > SHOWN_NAMES else "")
