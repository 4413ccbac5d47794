"""The chat templates of the installed ms-swift, read from its source: end of answer, start of turn, tool format.

ms-swift trains with the template of another model without a warning: the model's tokenizer has no token for the
template's end mark, so the model learns to spell it. Nothing of ms-swift is imported.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_toolkit.config.names import registries
from swift_toolkit.machine import files as machine_files
from swift_toolkit.machine.msswift import SwiftInstall
from swift_toolkit.model import builtin, registry
from swift_toolkit.problems import Problem

if TYPE_CHECKING:
    from swift_toolkit.config.settings import Config

_MARK = re.compile(r"<[^\s<>]+>|\[/?[A-Z_]+\]")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")


@dataclass(frozen=True)
class Template:
    """One chat template.

    Args:
        name: ms-swift's name.
        end: the mark that ends an answer; "" if it is the model's own end of text, or not a single mark.
        turn: the first mark of a question, "" if there is none.
        agent: its format for tools, "" if there is none.
    """

    name: str
    end: str = ""
    turn: str = ""
    agent: str = ""


def templates(install: SwiftInstall) -> dict[str, Template]:
    """The templates by name, without those that are not registered by a single call."""

    def read() -> tuple[Any, list[Path]]:
        constants = install.location / install.sources.template_constants
        files = sorted(constants.parent.rglob("*.py"))
        found = [astuple(one) for one in _Source(files, constants).templates()]
        return found, [*files, Path(__file__)]

    def decode(rows: Any) -> dict[str, Template]:
        return {row[0]: Template(*row) for row in rows}

    return machine_files.kept(f"templates-{install.version}", str(install.location), read, decode)


class _Source:
    """The classes of templates in ms-swift's source, and the calls that register them."""

    def __init__(self, files: list[Path], constants: Path) -> None:
        self.trees = [ast.parse(file.read_bytes()) for file in files]
        self.names = registry.constants_of(constants)
        self.classes = {
            node.name: node for tree in self.trees for node in tree.body if isinstance(node, ast.ClassDef)
        }

    def templates(self) -> Iterator[Template]:
        for tree in self.trees:
            texts = dict(_texts(tree))
            for call in registry.calls_of(tree, "register_template"):
                meta = call.args[0] if call.args else None
                if isinstance(meta, ast.Call) and isinstance(meta.func, ast.Name):
                    yield from self._template(meta, texts)

    def _template(self, meta: ast.Call, texts: Mapping[str, str]) -> Iterator[Template]:
        given = self._fields(meta.func.id)  # type: ignore[attr-defined]
        given |= dict(zip(given, meta.args, strict=False)) | {
            word.arg: word.value for word in meta.keywords if word.arg
        }
        name = registry.source_text(given.get("template_type"), self.names)
        if name:
            end = _last(given.get("suffix"), texts)
            opening = _MARK.search(" ".join(_items(given.get("prompt"), texts)))
            agent = registry.source_text(given.get("agent_template"), texts)
            yield Template(name, end if _MARK.fullmatch(end) else "", opening[0] if opening else "", agent)

    def _fields(self, name: str) -> dict[str, ast.expr | None]:
        """The fields of a class and their defaults, in the order of its constructor."""
        node = self.classes.get(name)
        if node is None:
            return {}
        found: dict[str, ast.expr | None] = {}
        for base in node.bases:
            found |= self._fields(base.id) if isinstance(base, ast.Name) else {}
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                found[line.target.id] = _default(line.value)
        return found


def _default(value: ast.expr | None) -> ast.expr | None:
    """The value of ``field(default_factory=lambda: X)``."""
    if not isinstance(value, ast.Call):
        return value
    factory = next((word.value for word in value.keywords if word.arg == "default_factory"), None)
    return factory.body if isinstance(factory, ast.Lambda) else None


def _texts(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The string constants of a module, by name."""
    for node in tree.body:
        text = registry.source_text(node.value, {}) if isinstance(node, ast.Assign) else ""
        if isinstance(node, ast.Assign) and text and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, text


def _items(node: ast.expr | None, texts: Mapping[str, str]) -> list[str]:
    """The strings of a list; "" for other items."""
    if not isinstance(node, ast.List):
        return []
    return [
        texts.get(one.id, "") if isinstance(one, ast.Name) else registry.source_text(one, texts)
        for one in node.elts
    ]


def _last(node: ast.expr | None, texts: Mapping[str, str]) -> str:
    items = _items(node, texts)
    return items[-1].strip() if items else ""


# --- what does not match the model --------------------------------------------------------------------------


def template_warnings(config: Config) -> Iterator[Problem]:
    """A template that was set but does not match the model: its end mark is not a token, or not the right one."""
    given = _known(config)
    if given is None or not given.end:
        return
    own = _own(config)
    its = f'The template of this model is "{own.name}".' if own and own.name != given.name else ""
    files = _tokenizer_files(str(config.get("model")))
    if files and not any(_holds(file, given.end) for file in files):
        what = f'is "{given.name}", which ends an answer with {given.end}: that is not a token of this model'
        yield config.problem("template", what, its or "Choose the template that the model was trained with.")
    elif own and own.end and (own.end, own.turn) != (given.end, given.turn):
        what = f'is "{given.name}", which writes turns as {given.turn} ... {given.end}'
        yield config.problem("template", what, f"{its} It has {own.turn} ... {own.end}.")


def without_tools(config: Config) -> str:
    """The template in use if it is known to have no tool format and none is set; else ""."""
    used = _known(config) or (None if config.get("template") else _own(config))
    return used.name if used and not used.agent and not config.get("agent_template") else ""


def _known(config: Config) -> Template | None:
    """The template that was set, if ms-swift registers it."""
    plugins = registries.plugins_of(config).mention("register_template", "TEMPLATE_MAPPING")
    name = config.get("template")
    return None if plugins or not name else templates(config.install).get(str(name))


def _own(config: Config) -> Template | None:
    """The template of the model, if its name or the embedded model determines it."""
    model = str(config.get("model") or "")
    if builtin.is_builtin(model):
        return templates(config.install).get(builtin.template_of(model))
    named = registry.registry(config.install).named(model)
    if named is None:
        return None
    name = named.models.get(registry.model_name(model)) or named.template
    return templates(config.install).get(name)


def _tokenizer_files(model: str) -> list[Path]:
    """The files that hold the tokens of a model on this machine; none if only unsupported files hold them."""
    directory = _directory(model)
    if directory is None or not (directory / _TOKENIZER_FILES[0]).is_file():
        return []
    return [file for name in _TOKENIZER_FILES if (file := directory / name).is_file()]


def _directory(model: str) -> Path | None:
    if not builtin.is_builtin(model):
        return Path(model).expanduser()
    return builtin.cached_path(model) if model in builtin.BUILTIN else None


def _holds(file: Path, mark: str) -> bool:
    """Whether a tokenizer file contains the mark as a complete string."""
    content = file.read_bytes()
    return any(json.dumps(mark, ensure_ascii=escaped).encode() in content for escaped in (True, False))
