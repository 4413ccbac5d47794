"""Rewrite a request of any ms-swift generation as a config file with current names.

The order of the keys and the comments of a YAML file are kept. Values are those of the request; whatever the
translation adds or drops is reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swift_toolkit.config import fields as config_fields
from swift_toolkit.config import tasks
from swift_toolkit.config.file import EXTENSIONS, read_config_file
from swift_toolkit.config.names import renames, translate
from swift_toolkit.config.rules import SECRETS, secret_advice
from swift_toolkit.config.settings import OWN_KEYS
from swift_toolkit.config.values import typed_value
from swift_toolkit.console import secrets
from swift_toolkit.machine import msswift
from swift_toolkit.machine.files import whole_text
from swift_toolkit.machine.msswift import Command
from swift_toolkit.problems import Problem, RequestError


def upgrade(source: str | Path | Mapping[str, object], target: str | Path) -> list[str]:
    """Write the settings of ``source`` to ``target`` in the names of the installed ms-swift.

    Args:
        source: a config file, or settings.
        target: a .json, .yaml or .yml file that does not exist yet.

    Returns:
        One line for each name that changed or was skipped.

    Raises:
        RequestError: a name or a value is not known or has no successor, or the target exists or cannot be written.
    """
    path = Path(target)
    if path.suffix.lower() not in EXTENSIONS:
        raise RequestError(
            [Problem("has an unknown extension", "Use .json, .yaml or .yml.", file=str(target))]
        )
    if path.exists():
        raise RequestError([Problem("already exists", "Give a new file.", file=str(target))])
    settings = _settings(source)
    file = None if isinstance(source, Mapping) else str(source)
    done = _translated(settings, file)
    names = _in_order(settings, done)
    _write(settings, names, done.values, path)
    return [*done.notices, *(f"{name}: {text}" for name, text in done.warnings)]


def _settings(source: str | Path | Mapping[str, object]) -> Any:
    """The settings; for a YAML file with its comments."""
    if isinstance(source, Mapping):
        return dict(source)
    read = read_config_file(source)  # raises if the file is invalid
    if Path(source).suffix.lower() == ".json":
        return read.values
    from ruamel.yaml import YAML

    return YAML().load(Path(source).read_text(encoding="utf-8-sig"))


def _translated(settings: Mapping[str, object], file: str | None) -> translate.Translation:
    """The settings under current names, each value in the type of its argument."""
    install = msswift.installed()
    command = _command(settings)
    fields = config_fields.fields(command, install)
    given = {
        _plain(name): value for name, value in settings.items() if value is not None and name not in OWN_KEYS
    }
    done = translate.translate(given, command, install.line, fields)
    problems = [Problem(what, do, name, file) for name, what, do in done.errors]
    problems += [_unknown(name, file) for name in done.unknown]
    for name in sorted(SECRETS.keys() & done.values.keys()):
        del done.values[name], done.origin[name]
        done.warnings.append((name, f"is a secret and skipped. {secret_advice(name)}".rstrip()))
    for name, value in done.values.items():
        problems += [
            Problem(f"holds a secret {place}", "Remove it first.", name, file)
            for place in secrets.places(value)
        ]
        try:
            typed = typed_value(fields[name], value) if isinstance(value, str) else value
            done.values[name] = value if typed == [value] else typed
        except ValueError as error:
            what, do = error.args
            problems.append(Problem(what, do, name, file))
    if problems:
        raise RequestError(problems)
    return done


def _unknown(name: str, file: str | None) -> Problem:
    if (known := renames.foreign(name)) is None:
        return Problem("is not a setting", "Correct or remove it first.", name, file)
    do = known.do or f'In ms-swift it is "{known.name}".'
    return Problem(f"is a name of {known.tool}", do, name, file)


def _command(settings: Mapping[str, object]) -> Command:
    """The command of ms-swift that the settings are for."""
    named = (task.command for task in tasks.TASKS.values() if task.name == settings.get("task"))
    return "rlhf" if settings.get("rlhf_type") else next(named, "sft")


def _plain(name: object) -> str:
    return str(name).replace("-", "_")


def _in_order(settings: Mapping[str, object], done: translate.Translation) -> dict[str, list[str]]:
    """For each key of the request the names that replace it; under "" the names added at the end."""
    names: dict[str, list[str]] = {}
    for name, value in settings.items():
        made = [new for new, origins in done.origin.items() if origins[0] == _plain(name)]
        kept = [new for new in made if new not in done.added]
        names[name] = [name] if value is None or name in OWN_KEYS else kept
    return {**names, "": list(done.added)}


def _write(settings: Any, names: dict[str, list[str]], values: Mapping[str, object], path: Path) -> None:
    as_json = path.suffix.lower() == ".json"
    if as_json or not hasattr(settings, "ca"):
        content = {new: values.get(new, settings.get(new)) for made in names.values() for new in made}
    else:
        content = settings  # keeps the comments
        content.update({new: values[new] for new in names.pop("")})
        for name, made in names.items():
            if made != [name] or values.get(name, content[name]) != content[name]:
                _replace(content, name, {new: values[new] for new in made})
    try:
        with whole_text(path) as file:
            if as_json:
                file.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
            else:
                from ruamel.yaml import YAML

                yaml = YAML()
                yaml.width = 1000  # do not fold values
                yaml.dump(content, file)
    except OSError as error:
        raise RequestError([Problem(f"cannot be written ({error.strerror})", file=str(path))]) from None


# --- comments of a YAML file --------------------------------------------------------------------------------


def _replace(content: Any, name: str, new: Mapping[str, object]) -> None:
    """Replace a setting by others and keep its comments; without others they move to the preceding setting."""
    keys = list(content)
    place, comment = keys.index(name), _take_comment(content, name)
    del content[name]
    for offset, (key, value) in enumerate(new.items()):
        content.insert(place + offset, key, _on_one_line(value))
    if new:
        first, last = next(iter(new)), list(new)[-1]
        beside, _, below = comment.partition("\n")
        _add_comment(content, first, beside and f"{beside}\n")
        _add_comment(content, last, below and f"\n{below}")
    elif place:
        _add_comment(content, keys[place - 1], comment, on_its_line=False)
    elif comment:
        _put_first(content, comment)


def _on_one_line(value: Any) -> Any:
    """The value in a form that a comment may follow."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if not isinstance(value, (list, dict)):
        return value
    one = CommentedSeq(value) if isinstance(value, list) else CommentedMap(value)
    one.fa.set_flow_style()
    return one


def _take_comment(content: Any, name: str) -> str:
    """The comments between a setting and the next one, including those inside a value of several lines."""
    value = content[name]
    texts = [_take_comment(value, key) for key in _places(value)]
    found = content.ca.items.pop(name, None) if hasattr(content, "ca") else None
    return "".join([_text(found), *texts])


def _places(value: Any) -> list[Any]:
    if not hasattr(value, "ca"):
        return []
    return list(range(len(value))) if isinstance(value, list) else list(value)


def _text(tokens: Any) -> str:
    """The text of nested comment tokens."""
    if isinstance(tokens, list):
        return "".join(map(_text, tokens))
    return str(tokens.value) if tokens is not None else ""


def _add_comment(content: Any, name: str, text: str, on_its_line: bool = True) -> None:
    """Append ``text`` to the comments of a setting: its first line on the same line as the setting, or below it."""
    if not text:
        return
    holder, key = content, name
    while _places(holder[key]) and not holder[key].fa.flow_style():  # several lines: after the last of them
        holder, key = holder[key], _places(holder[key])[-1]
    before = _text(holder.ca.items.pop(key, None))
    if before:
        text = before + text.removeprefix("\n")
    elif not on_its_line and not text.startswith("\n"):
        text = "\n" + text
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    token = CommentToken(text, CommentMark(0), None)
    holder.ca.items[key] = [token, None] if isinstance(holder, list) else [None, None, token, None]


def _put_first(content: Any, text: str) -> None:
    """Write ``text`` before the first setting."""
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    above = content.ca.comment or [None, []]
    above[1] = [*(above[1] or []), CommentToken(text.lstrip("\n"), CommentMark(0), None)]
    content.ca.comment = above
