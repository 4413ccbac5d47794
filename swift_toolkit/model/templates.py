"""The chat templates of the installed ms-swift, read from its source: the marks of turns, and what they can write.

ms-swift trains with the template of another model without a warning: the model's tokenizer has no token for the
template's end mark, so the model learns to spell it. Nothing of ms-swift is imported.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_toolkit.config.names import registries
from swift_toolkit.machine import files as machine_files
from swift_toolkit.machine.msswift import SwiftInstall
from swift_toolkit.model import builtin, registry
from swift_toolkit.model.files import read_json
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
        system: whether it has a place for a system prompt, which the setting ``system`` needs.
        system_in_rows: whether it writes the system prompt of a row, for which some templates have code of their own.
        rounds: whether it writes more than one round; otherwise ms-swift uses only the last.
        thinking: the mark with which it begins every answer when asked, if it has no way to answer without thinking.
        needs_begin: whether it begins with the tokenizer's ``bos_token``, which ms-swift does not check.
    """

    name: str
    end: str = ""
    turn: str = ""
    agent: str = ""
    system: bool = True
    system_in_rows: bool = True
    rounds: bool = True
    thinking: str = ""
    needs_begin: bool = False


def templates(install: SwiftInstall) -> dict[str, Template]:
    """The templates by name, without those that are not registered by a single call."""

    def read() -> tuple[Any, list[Path]]:
        constants = install.location / install.sources.template_constants
        files = sorted(constants.parent.rglob("*.py"))
        found = [astuple(one) for one in _Source(files, constants).templates()]
        return found, [*files, Path(__file__)]

    def decode(rows: Any) -> dict[str, Template]:
        names = [one.name for one in fields(Template)]  # rows of an earlier version have fewer
        return {row[0]: Template(**dict(zip(names, row, strict=True))) for row in rows}

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
            system = _takes_system(given)
            end = _last(given.get("suffix"), texts)
            opening = _MARK.search(" ".join(_items(given.get("prompt"), texts)))
            agent = registry.source_text(given.get("agent_template"), texts)
            yield Template(
                name,
                end=end if _MARK.fullmatch(end) else "",
                turn=opening[0] if opening else "",
                agent=agent,
                system=system,
                system_in_rows=system or self._moves_system(given.get("template_cls")),
                rounds=not _is_none(given.get("chat_sep")),
                thinking=_always_thinks(given, texts),
                needs_begin=_mentions(given.get("prefix"), "bos_token_id"),
            )

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

    def _moves_system(self, name: ast.expr | None) -> bool:
        """Whether a class of templates, or a base of it below ``Template``, sets ``inputs.system`` itself."""
        node = self.classes.get(name.id) if isinstance(name, ast.Name) else None
        if node is None or node.name == "Template":
            return False
        sets = any(
            isinstance(one, ast.Attribute) and one.attr == "system" and isinstance(one.ctx, ast.Store)
            for one in ast.walk(node)
        )
        return sets or any(map(self._moves_system, node.bases))


def _default(value: ast.expr | None) -> ast.expr | None:
    """The value of ``field(default_factory=lambda: X)`` or ``field(default_factory=list)``."""
    if not isinstance(value, ast.Call):
        return value
    factory = next((word.value for word in value.keywords if word.arg == "default_factory"), None)
    if isinstance(factory, ast.Name) and factory.id == "list":
        return ast.List(elts=[])
    return factory.body if isinstance(factory, ast.Lambda) else None


def _is_none(node: ast.expr | None) -> bool:
    """Whether the source says None; an unknown value does not."""
    return isinstance(node, ast.Constant) and node.value is None


def _mentions(node: ast.expr | None, text: str) -> bool:
    return node is not None and any(
        isinstance(one, ast.Constant) and isinstance(one.value, str) and text in one.value
        for one in ast.walk(node)
    )


def _always_thinks(given: Mapping[str, ast.expr | None], texts: Mapping[str, str]) -> str:
    thinks, without = given.get("is_thinking"), given.get("non_thinking_prefix")
    if not (isinstance(thinks, ast.Constant) and thinks.value is True) or registry.source_text(
        without, texts
    ):
        return ""
    return registry.source_text(given.get("thinking_prefix"), texts).strip()


def _takes_system(given: Mapping[str, ast.expr | None]) -> bool:
    """Whether a system prompt has a place; a value that is computed may have one."""
    parts = [given.get("prefix"), given.get("prompt")]
    written = all(isinstance(part, ast.List) for part in parts)
    after = given.get("system_prefix")
    return (
        not written
        or not (after is None or _is_none(after))
        or any(_mentions(part, "{{SYSTEM}}") for part in parts)
    )


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
    if config.get("template_backend") == "jinja" and config.task.output == "chat":
        what = 'is "jinja", with which ms-swift does not tell answers from questions: it trains on all of the text'
        yield config.problem("template_backend", what, "Remove it; it is meant for inference.")
    model, given = str(config.get("model") or ""), _known(config)
    if given is not None and not is_plain(config):
        yield from _mismatch(config, given, model)


def served_warnings(config: Config, model: str, recorded: str | None) -> Iterator[Problem]:
    """A template that does not match the model that is asked or served with it.

    Args:
        config: the request.
        model: the model, or the base model of an adapter.
        recorded: the template of its training; ``template`` in the request has priority.
    """
    name = config.get("template") or recorded
    given = templates(config.install).get(str(name)) if name and not _plugins_register(config) else None
    if given is not None and config.get("use_chat_template") is not False:
        yield from _mismatch(config, given, model)


def _mismatch(config: Config, given: Template, model: str) -> Iterator[Problem]:
    """Why a template does not match a model, if it is known."""
    if not given.end:
        return
    own, files, unlike = _own(config, model), _tokenizer_files(model), _unlike_chat_template(model, given)
    its = f'The template of this model is "{own.name}".' if own and own.name != given.name else ""
    if files and not any(_holds(file, given.end) for file in files):
        what = f'is "{given.name}", which ends an answer with {given.end}: that is not a token of this model'
        yield config.problem("template", what, its or "Choose the template that the model was trained with.")
    elif own and own.end and (own.end, own.turn) != (given.end, given.turn):
        what = f'is "{given.name}", which writes turns as {given.turn} ... {given.end}'
        yield config.problem("template", what, f"{its} It has {own.turn} ... {own.end}.")
    elif unlike is not None and not own:
        what = f'is "{given.name}", which begins a turn with {given.turn}: the model\'s own {unlike} does not'
        yield config.problem("template", what, "Choose the template that the model was trained with.")


def new_token_warnings(config: Config) -> Iterator[Problem]:
    """Tokens that are added but not learned: adapters do not train embeddings unless they are told to."""
    trained = {*(config.get("modules_to_save") or []), *(config.get("target_modules") or [])}
    if config.tuner not in ("lora", "adalora") or trained & {"embed_tokens", "all-embedding", "wte"}:
        return
    files = _tokenizer_files(str(config.get("model")))
    given = [str(token) for token in config.get("new_special_tokens") or []]
    if any(not any(_holds(file, token) for file in files) for token in given):
        what = "adds tokens that the model cannot learn: adapters do not train their embeddings"
        yield config.problem(
            "new_special_tokens", what, 'Add "modules_to_save": ["embed_tokens", "lm_head"].'
        )


def template_problems(config: Config) -> Iterator[Problem]:
    """What the template in use cannot write although the settings ask for it; ms-swift fails after loading the model,
    or at the first batch."""
    chosen = used(config)
    if _lacks(config, "eos_token", "pad_token"):
        do = 'Set "eos_token" in its tokenizer_config.json to the token that ends an answer.'
        yield config.problem("model", "has a tokenizer without eos_token and pad_token", do)
    if config.get("system") is not None:
        if is_plain(config):
            do = 'Remove it, or set "use_chat_template" to true.'
            yield config.problem("system", "cannot be used without a chat template", do)
        elif chosen is not None and not chosen.system:
            what = f'cannot be used with the template "{chosen.name}", which has no place for a system prompt'
            yield config.problem("system", what, "Remove it, or choose another template.")
    if chosen is not None and chosen.needs_begin and not is_plain(config) and _lacks(config, "bos_token"):
        what = f'is "{chosen.name}", which begins with the token bos_token: this model has none'
        yield config.problem("template", what, "Choose the template that the model was trained with.")


def used(config: Config) -> Template | None:
    """The template in use, if it is known."""
    return _known(config) or (
        None if config.get("template") else _own(config, str(config.get("model") or ""))
    )


def is_plain(config: Config) -> bool:
    """Whether training uses plain texts without a chat template."""
    given = config.get("use_chat_template")
    if config.command == "pt":
        return config.install.pretrains_plainly or not given
    return given is False


def _lacks(config: Config, *names: str) -> bool:
    """Whether the tokenizer of a model on this machine says that it has none of these tokens."""
    directory = _directory(str(config.get("model")))
    if directory is None:
        return False
    files = ("special_tokens_map.json", "tokenizer_config.json")
    special, settings = ((read_json(directory / file)[0] or {}) for file in files)
    given = settings | {name: token for name, token in special.items() if token is not None}
    return names[0] in given and all(given.get(name) is None for name in names)


def _known(config: Config) -> Template | None:
    """The template that was set, if ms-swift registers it."""
    name = config.get("template")
    return None if _plugins_register(config) or not name else templates(config.install).get(str(name))


def _plugins_register(config: Config) -> bool:
    """Whether a plugin of the request registers templates."""
    return registries.plugins_of(config).mention("register_template", "TEMPLATE_MAPPING")


def _own(config: Config, model: str) -> Template | None:
    """The template of the model, if its name or the embedded model determines it."""
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


def _unlike_chat_template(model: str, template: Template) -> str | None:
    """The file of a model on this machine with a chat template that does not contain the template's first mark.

    Marks that name a role are not looked for: a chat template may compose them.
    """
    directory = _directory(model)
    if directory is None or not template.turn or re.search("(?i)user|human|question", template.turn):
        return None
    for file in (directory / "chat_template.jinja", directory / "tokenizer_config.json"):
        content = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        if file.suffix == ".json":
            with contextlib.suppress(ValueError, AttributeError):
                content = json.dumps(json.loads(content).get("chat_template") or "", ensure_ascii=False)
        if content.strip('"'):
            return None if template.turn in content else file.name
    return None


def _directory(model: str) -> Path | None:
    if not builtin.is_builtin(model):
        return Path(model).expanduser()
    return builtin.cached_path(model) if model in builtin.BUILTIN else None


def _holds(file: Path, mark: str) -> bool:
    """Whether a tokenizer file contains the mark as a complete string."""
    content = file.read_bytes()
    return any(json.dumps(mark, ensure_ascii=escaped).encode() in content for escaped in (True, False))
