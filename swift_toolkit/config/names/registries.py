"""The names in ms-swift's own registries, read from its source: optimizers, rewards, losses, metrics and others.

A registry is a table in the source, ``orms = {"accuracy": MathAccuracy, ...}``. ms-swift looks a name up in it after
its import or after the model is loaded; this module finds a wrong name at once, without importing ms-swift. Plugins
(``external_plugins``) may add names, so their source is read too.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.console.words import did_you_mean, nearest
from swift_toolkit.machine import files as machine_files
from swift_toolkit.machine.msswift import LINES, Line, SwiftInstall, package_of
from swift_toolkit.problems import Problem

_TABLES = """
setting               v4 module:table                             v3 module:table
optimizer             optimizers.mapping:optimizers_map           plugin.optimizer:optimizers_map
callbacks             callbacks.mapping:callbacks_map             -
agent_template        agent_template.mapping:agent_template_map   plugin.agent_template:agent_templates
eval_metric           metrics.mapping:eval_metrics_map            -
metric                -                                           plugin.metric:metric_mapping
loss_type             loss.mapping:loss_map                       plugin.loss:loss_mapping
loss_scale            loss_scale.mapping:loss_scale_map           plugin.loss_scale.loss_scale:loss_scale_map
loss_scale_base       loss_scale.base:ALL_BASE_STRATEGY           plugin.loss_scale.loss_scale:ALL_BASE_STRATEGY
reward_funcs          rewards.orm:orms                            plugin.orm:orms
reward_model_plugin   rewards.rm_plugin:rm_plugins                plugin.rm_plugin:rm_plugins
multi_turn_scheduler  rollout.multi_turn:multi_turns              plugin.multi_turn:multi_turns
gym_env               rollout.gym_env:envs                        plugin.env:envs
context_manager       -                                           plugin.context_manager:context_managers
tuner_type            tuner_plugin.mapping:tuners_map             -
train_type            -                                           plugin.tuner:extra_tuners
"""
"""Where the names of a setting are defined: module inside ``swift`` and variable."""

_TUNERS = tuple("lora full longlora adalora llamapro adapter vera boft fourierft reft bone".split())


@dataclass(frozen=True)
class Registries:
    """The names in every registry.

    Args:
        names: setting -> its names, in the order of the source.
        columns: name of a reward function -> data columns that it requires.
        datasets: names of data sets without an owner.
    """

    names: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    datasets: tuple[str, ...]


def registry_places(line: Line) -> Iterator[tuple[str, str, str]]:
    """Setting, module and variable of each registry in a generation of ms-swift."""
    for row in _TABLES.strip().splitlines()[1:]:
        setting, v4, v3 = row.split()
        module, _, variable = (v3, v4)[LINES.index(line)].partition(":")
        if variable:
            yield setting, module, variable


_SCHEDULER = "lr_scheduler_kwargs of "
"""Prefix of the name of a scheduler, for the keys that it takes."""


def registries(install: SwiftInstall) -> Registries:
    """The registries of the installed ms-swift; one that cannot be found there has no entry."""

    def read() -> tuple[Any, list[Path]]:
        found, files = read_registries(install)
        return asdict(found), files

    def decode(found: Any) -> Registries:
        names = {setting: tuple(words) for setting, words in found["names"].items()}
        columns = {name: tuple(words) for name, words in found["columns"].items()}
        return Registries(names, columns, tuple(found["datasets"]))

    return machine_files.kept(f"registries-{install.version}", str(install.location), read, decode)


def read_registries(install: SwiftInstall) -> tuple[Registries, list[Path]]:
    """The registries in the source of ``install``, and the files that were read."""
    names: dict[str, tuple[str, ...]] = {}
    columns: dict[str, tuple[str, ...]] = {}
    files = [Path(__file__)]
    for setting, module, variable in registry_places(install.line):
        file = _file_of(install.location, module)
        if file is None:
            continue
        tree = ast.parse(file.read_bytes())
        files.append(file)
        names[setting] = tuple(name for name, _ in _entries(tree, variable))
        if setting == "reward_funcs":
            columns |= {name: tuple(_columns(tree, cls)) for name, cls in _entries(tree, variable)}
    init_names, sources = _init_names()
    names["init_weights"] = tuple(init_names)
    files += sources
    names["torch_compile_backend"], sources = _compilers()
    files += sources
    names["adapter_act"], sources = _activations()
    files += sources
    names["experts_impl"], sources = _experts()
    files += sources
    schedulers, sources = _scheduler_keys()
    names |= {f"{_SCHEDULER}{name}": tuple(keys) for name, keys in schedulers.items()}
    files += sources
    for trainer in ("dpo", "kto", "cpo", "grpo"):
        sources = _trainer_files(install, trainer)
        names[f"loss_type of {trainer}"] = tuple(sorted(_compared(sources, "loss_type")))
        files += sources
    sources = sorted((install.location / install.sources.datasets).glob("*.py"))
    known = {setting: words for setting, words in names.items() if words or setting.startswith(_SCHEDULER)}
    return Registries(known, columns, tuple(_dataset_names(sources))), [*files, *sources]


def _dataset_names(files: Iterable[Path]) -> list[str]:
    """The names under which ``register_dataset`` registers data sets, in addition to their hub ids."""
    keywords = (
        node
        for file in files
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.keyword) and node.arg == "dataset_name"
    )
    return sorted({text for node in keywords for text in _texts(node.value)})


def _file_of(root: Path, module: str) -> Path | None:
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file if file.is_file() else None


def _entries(tree: ast.Module, variable: str) -> Iterator[tuple[str, str]]:
    """The names in a table of a module, each with the name of the object it refers to."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if not any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            continue
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict):
            for key, entry in zip(value.keys, value.values, strict=True):
                if isinstance(key, ast.Constant):
                    yield str(key.value), entry.id if isinstance(entry, ast.Name) else ""
        elif isinstance(value, (ast.List, ast.Tuple)):
            yield from ((str(one.value), "") for one in value.elts if isinstance(one, ast.Constant))


def _columns(tree: ast.AST, name: str) -> list[str]:
    """The columns that a reward function requires: the parameters of its ``__call__`` without a default."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            calls = [one for one in node.body if _is_function(one) and one.name == "__call__"]  # type: ignore[attr-defined]
            return _demanded(calls[0]) if calls else []
        if _is_function(node) and node.name == name:  # type: ignore[attr-defined]
            return _demanded(node)
    return []


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


_FROM_THE_TRAINER = frozenset("self cls completions infer_requests trainer_state prompts".split())


def _demanded(function: Any) -> list[str]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    needed = positional[: len(positional) - len(arguments.defaults)]
    needed += [
        one
        for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    return [one.arg for one in needed if one.arg not in _FROM_THE_TRAINER]


def _trainer_files(install: SwiftInstall, trainer: str) -> list[Path]:
    """The sources of an algorithm: ms-swift's trainer, and TRL's trainer and settings if TRL computes the loss."""
    files = [install.location / install.sources.trainers / f"{trainer}_trainer.py"]
    trl = package_of("trl")
    if trl is not None and trainer != "grpo":  # ms-swift computes GRPO's loss itself
        places = ("trainer", f"experimental/{trainer}")
        files += [trl / place / f"{trainer}_{kind}.py" for place in places for kind in ("trainer", "config")]
    return [file for file in files if file.is_file()]


def _init_names() -> tuple[list[str], list[Path]]:
    """The values for initialising LoRA: those in the annotation of PEFT's LoraConfig, and ms-swift's own."""
    peft = package_of("peft")
    file = peft / "tuners/lora/config.py" if peft else Path()
    if not file.is_file():
        return [], []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.AnnAssign) and _last_name(node.target) == "init_lora_weights":
            return sorted(
                {"true", "false", "lora-ga", *_texts(node.annotation)}
                | _compared([file], "init_lora_weights")
            ), [file]
    return [], [file]


def _compilers() -> tuple[tuple[str, ...], list[Path]]:
    """The backends of ``torch.compile`` that accelerate knows."""
    accelerate = package_of("accelerate")
    file = accelerate / "utils/dataclasses.py" if accelerate else Path()
    if not file.is_file():
        return (), []
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == "DynamoBackend":
            values = [line.value for line in node.body if isinstance(line, ast.Assign)]
            return tuple(text.lower() for value in values for text in _texts(value)), [file]
    return (), [file]


def _activations() -> tuple[tuple[str, ...], list[Path]]:
    """The names of transformers' activation functions."""
    package = package_of("transformers")
    file = package / "activations.py" if package else Path()
    if not file.is_file():
        return (), []
    return tuple(name for name, _ in _entries(ast.parse(file.read_bytes()), "ACT2CLS")), [file]


def _experts() -> tuple[tuple[str, ...], list[Path]]:
    """The implementations of experts in transformers 5: the tables of its ``ExpertsInterface`` classes."""
    package = package_of("transformers")
    places = [package / f"integrations/{name}.py" for name in ("moe", "finegrained_fp8")] if package else []
    files = [file for file in places if file.is_file()]
    classes = [
        node
        for file in files
        for node in ast.parse(file.read_bytes()).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("ExpertsInterface")
    ]
    found = [name for node in classes for name, _ in _entries(ast.Module(node.body, []), "_global_mapping")]
    return (tuple(dict.fromkeys(["eager", *found])) if found else ()), files


_OF_EVERY_SCHEDULER = frozenset("optimizer num_warmup_steps num_training_steps last_epoch".split())
_WITHOUT_KEYS = ("constant", "constant_with_warmup")
"""Schedulers to which transformers does not pass ``lr_scheduler_kwargs``."""


def _scheduler_keys() -> tuple[dict[str, list[str]], list[Path]]:
    """The keys that each scheduler of transformers takes in ``lr_scheduler_kwargs``; omits those that take any key."""
    package = package_of("transformers")
    file = package / "optimization.py" if package else Path()
    if not file.is_file():
        return {}, []
    tree = ast.parse(file.read_bytes())
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    tables = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    ]
    found = {}
    for key, value in ((k, v) for table in tables for k, v in zip(table.keys, table.values, strict=True)):
        name, words = _last_name(key).lower() if key else "", functions.get(_last_name(value))
        if words is not None and words.kwarg is None and name not in _WITHOUT_KEYS:
            found[name] = sorted({one.arg for one in [*words.args, *words.kwonlyargs]} - _OF_EVERY_SCHEDULER)
    return found, [file]


def _texts(tree: ast.AST) -> list[str]:
    return [
        one.value for one in ast.walk(tree) if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]


def _compared(files: Iterable[Path], name: str) -> set[str]:
    """The strings that a variable or attribute is compared with, without those for which the code only raises."""
    found = set()
    for file in files:
        tree = ast.parse(file.read_bytes())
        rejecting = {
            id(node.test)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)
        }
        for node in ast.walk(tree):
            if id(node) in rejecting:
                continue
            if isinstance(node, ast.Compare) and name in (
                getattr(node.left, "id", ""),
                getattr(node.left, "attr", ""),
            ):
                found |= set(_texts(node))
    return found


# --- plugins ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plugins:
    """The source of a run's plugins.

    Args:
        trees: their syntax trees.
        complete: whether the trees are all of their source: all were read, and none imports a module next to it.
    """

    trees: tuple[ast.Module, ...]
    complete: bool

    def added(self, variable: str) -> dict[str, ast.expr] | None:
        """The names that they add to a registry, None if the source does not show them."""
        if not self.complete:
            return None
        found: dict[str, ast.expr] = {}
        for tree in self.trees:
            mentions = sum(_last_name(node) == variable for node in ast.walk(tree))
            for node in ast.walk(tree):
                entry = _addition(node, variable)
                if entry is not None:
                    found |= entry
                    mentions -= 1
            if mentions > 0:  # used in some other way, such as in a loop
                return None
        return found

    def mention(self, *names: str) -> bool:
        """Whether they may use one of these functions and tables: they name it, or their source is incomplete."""
        return not self.complete or any(
            (node.name if isinstance(node, ast.alias) else _last_name(node)) in names
            for tree in self.trees
            for node in ast.walk(tree)
        )


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _addition(node: ast.AST, variable: str) -> dict[str, ast.expr] | None:
    """The names that ``table["name"] = value`` or ``table.update({...})`` adds; None for any other statement."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Subscript):
        target = node.targets[0]
        key = target.slice
        if _last_name(target.value) == variable and isinstance(key, ast.Constant):
            return {str(key.value): node.value}
    if isinstance(node, ast.Call) and _last_name(node.func) == "update":
        table = node.func.value if isinstance(node.func, ast.Attribute) else node.func
        names = node.args[0] if node.args else None
        if _last_name(table) == variable and isinstance(names, ast.Dict):
            pairs = zip(names.keys, names.values, strict=True)
            return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}
    return None


def plugins_of(config: Config) -> Plugins:
    """The plugins of a request; those that cannot be read are reported elsewhere."""
    paths = [
        Path(str(file)).expanduser()
        for name in ("external_plugins", "custom_register_path")
        for file in config.get(name) or []
    ]
    trees, complete = [], True
    for path in paths:
        try:
            trees.append(ast.parse(path.read_bytes()))
        except (OSError, SyntaxError, ValueError):
            complete = False
    complete = complete and not any(
        _imports_beside(tree, path.parent) for tree, path in zip(trees, paths, strict=False)
    )
    return Plugins(tuple(trees), complete)


def _imports_beside(tree: ast.Module, folder: Path) -> bool:
    """Whether a plugin imports a module from its own folder or one that is not installed."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.level:
                return True
        roots = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
        if any((folder / root).is_dir() or (folder / f"{root}.py").is_file() for root in roots):
            return True
    return False


# --- problems -----------------------------------------------------------------------------------------------


def registry_problems(config: Config) -> Iterator[Problem]:
    """Names in a request that are in none of ms-swift's registries."""
    known, plugins = registries(config.install), plugins_of(config)
    for setting, _, variable in registry_places(config.install.line):
        words = known.names.get(setting)
        values = config.get(setting)
        if words is None or values is None:
            continue
        added = plugins.added(variable)
        if added is None:
            continue
        allowed = (*words, *added, *(_TUNERS if setting == config.tuner_name else ()))
        if setting == "loss_scale":
            yield from _loss_scale(config, str(values), allowed, known.names["loss_scale_base"])
        elif setting == "loss_type" and config.command == "rlhf":
            yield from _unknown(
                config, setting, values, known.names.get(f"loss_type of {config.task.trainer}")
            )
        elif setting == "reward_model_plugin" and not config.get("reward_model"):
            continue
        else:
            yield from _unknown(config, setting, values, allowed)
    yield from _init_weights(config)
    if (compiler := config.get("torch_compile_backend")) is not None:
        yield from _unknown(
            config, "torch_compile_backend", str(compiler).lower(), known.names.get("torch_compile_backend")
        )
    if config.tuner == "adapter" and (activation := config.get("adapter_act")) is not None:
        yield from _unknown(config, "adapter_act", activation, known.names.get("adapter_act"))
    if (experts := config.get("experts_impl")) is not None:
        yield from _unknown(config, "experts_impl", experts, known.names.get("experts_impl"))
    yield from _scheduler_problems(config)
    if not config.get("custom_dataset_info") and not plugins.trees and plugins.complete:
        yield from _dataset_problems(config, known.datasets)


def _unknown(config: Config, setting: str, values: Any, words: Iterable[str] | None) -> Iterator[Problem]:
    """The values that are not among ``words``; nothing if ``words`` is empty, which means not known."""
    allowed = tuple(words or ())
    for value in (values if isinstance(values, list) else [values]) if allowed else []:
        if value not in allowed:
            yield config.problem(setting, *not_one_of(value, allowed))


def _loss_scale(config: Config, value: str, words: Iterable[str], bases: Iterable[str]) -> Iterator[Problem]:
    """``base+name+name``; 3.12 takes one name, 4 several."""
    first, *rest = value.split("+")
    names = rest if first in bases else [first, *rest]
    yield from _unknown(config, "loss_scale", names, (*([] if rest else bases), *words))


def uses_hugging_face(config: Config) -> bool:
    """Whether models and data sets come from Hugging Face; ModelScope is ms-swift's default."""
    return bool(config.get("use_hf")) or os.environ.get("USE_HF", "").lower() in ("1", "true")


_DATA_FILE = re.compile(r"\.(jsonl?|csv|tsv|txt|parquet|arrow|gz|zst|zip)$", re.IGNORECASE)


def _dataset_problems(config: Config, known: tuple[str, ...]) -> Iterator[Problem]:
    """Data sets without an owner that are neither a file nor a name that ms-swift registers. Hugging Face has some."""
    use_hf = uses_hugging_face(config)
    for setting in ("dataset", "val_dataset"):
        for text in config.get(setting) or []:
            hub, _, rest = str(text).rpartition("::")
            name = re.split("[:#]", rest)[0]
            is_id = "/" in rest or "\\" in rest or _DATA_FILE.search(name) or not name
            if (
                is_id
                or name in known
                or hub.upper() == "HF"
                or (use_hf and not hub)
                or machine_files.exists(rest)
            ):
                continue
            if not machine_files.exists(name):
                do = _near_data(name, known) or "Give a file, or a data set on a hub as owner/name."
                yield config.problem(
                    setting, f'names "{text}", which is neither a file nor a known data set', do
                )


def _near_data(name: str, known: tuple[str, ...]) -> str:
    files = {path.stem: path.name for path in Path.cwd().iterdir() if _DATA_FILE.search(path.name)}
    near = nearest(name, [*files, *files.values(), *known])
    return f'Did you mean "{files.get(near[0], near[0])}"?' if near else ""


def _init_weights(config: Config) -> Iterator[Problem]:
    value = str(config.get("init_weights", "true"))
    names = registries(config.install).names.get("init_weights", ())
    is_iterated = value.startswith("pissa_niter_") and value[12:].isdecimal()
    if config.tuner == "lora" and not is_iterated and value.lower() not in ("true", "false"):
        yield from _unknown(config, "init_weights", value, names)


def _scheduler_problems(config: Config) -> Iterator[Problem]:
    """Keys that the scheduler does not take, which transformers would report only at the first step."""
    given, name = config.get("lr_scheduler_kwargs"), str(config.value("lr_scheduler_type"))
    keys = registries(config.install).names.get(f"{_SCHEDULER}{name}")
    for key in given if isinstance(given, dict) and keys is not None else []:
        if key not in (keys or ()):
            do = did_you_mean(key, keys or (), f"It takes {', '.join(keys)}." if keys else "Remove it.")
            yield config.problem(
                "lr_scheduler_kwargs", f'has "{key}", which scheduler "{name}" does not take', do
            )


def demanded_columns(config: Config) -> dict[str, tuple[str, ...]]:
    """The columns that the reward functions of a request require in each row, by the function's name."""
    if not config.get("reward_funcs"):
        return {}
    columns, plugins = registries(config.install).columns, plugins_of(config)
    variable = next(
        variable for setting, _, variable in registry_places(config.install.line) if setting == "reward_funcs"
    )
    for name, value in (plugins.added(variable) or {}).items():
        found = [_columns(tree, _last_name(value)) for tree in plugins.trees]
        columns = columns | {name: tuple(next((one for one in found if one), ()))}
    return {name: columns[name] for name in config.get("reward_funcs") if columns.get(name)}
