"""Write a request of any ms-swift generation as a config file in today's names.

The order of the keys stays, and so do the comments of a YAML file. Values are those that the request gave; what the
vocabulary adds or drops is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swift_toolkit import swift_fields, vocabulary
from swift_toolkit.config import OWN_KEYS, typed_value
from swift_toolkit.config_file import EXTENSIONS
from swift_toolkit.problems import Problem, RequestError
from swift_toolkit.swift_fields import Command


def upgrade(source: str | Path | Mapping[str, Any], target: str | Path) -> list[str]:
    """Write the settings of ``source`` to ``target`` in the names of the installed ms-swift.

    Args:
        source: a config file, or settings.
        target: a .json, .yaml or .yml file that does not exist yet.

    Returns:
        One line for each name that changed or was left out.

    Raises:
        RequestError: a name or a value is not known or has no successor, or the target exists or cannot be written.
    """
    path = Path(target)
    if path.suffix.lower() not in EXTENSIONS:
        raise RequestError(
            [Problem("has an unknown extension", "Use .json, .yaml or .yml.", file=str(target))]
        )
    if path.exists():
        raise RequestError([Problem("exists already", "Name a new file.", file=str(target))])
    settings = _settings(source)
    file = None if isinstance(source, Mapping) else str(source)
    done = _translated(settings, file)
    names = _in_order(settings, done)
    _write(settings, names, done.values, path)
    return [*done.notices, *(f"{name}: {text}" for name, text in done.warnings)]


def _settings(source: str | Path | Mapping[str, Any]) -> Any:
    """The settings; of a YAML file with its comments."""
    if isinstance(source, Mapping):
        return dict(source)
    from swift_toolkit.config_file import read_config_file

    read = read_config_file(source)  # says what is wrong with the file
    if Path(source).suffix.lower() == ".json":
        return read.values
    from ruamel.yaml import YAML

    return YAML().load(Path(source).read_text(encoding="utf-8-sig"))


def _translated(settings: Mapping[str, Any], file: str | None) -> vocabulary.Translation:
    """The settings in today's names, each value in the type its argument takes."""
    install = swift_fields.installed()
    command: Command = "rlhf" if settings.get("rlhf_type") else settings.get("task") or "sft"
    fields = swift_fields.fields(command, install)
    given = {
        _plain(name): value for name, value in settings.items() if value is not None and name not in OWN_KEYS
    }
    done = vocabulary.translate(given, command, install.line, fields)
    problems = [Problem(what, do, name, file) for name, what, do in done.errors]
    problems += [
        Problem("is not a setting", "Correct or remove it first.", name, file) for name in done.unknown
    ]
    for name, value in done.values.items():
        try:
            done.values[name] = typed_value(fields[name], value) if isinstance(value, str) else value
        except ValueError as error:
            what, do = error.args
            problems.append(Problem(what, do, name, file))
    if problems:
        raise RequestError(problems)
    return done


def _plain(name: object) -> str:
    return str(name).replace("-", "_")


def _in_order(settings: Mapping[str, Any], done: vocabulary.Translation) -> dict[str, list[str]]:
    """For each key of the request the names that come in its place."""
    names: dict[str, list[str]] = {}
    for name, value in settings.items():
        made = [new for new, origins in done.origin.items() if origins[0] == _plain(name)]
        names[name] = [name] if value is None or name in OWN_KEYS else made
    return names


def _write(settings: Any, names: Mapping[str, list[str]], values: Mapping[str, Any], path: Path) -> None:
    as_json = path.suffix.lower() == ".json"
    if as_json or not hasattr(settings, "ca"):
        content = {new: values.get(new, settings.get(new)) for made in names.values() for new in made}
    else:
        content = settings  # keeps the comments
        for name, made in names.items():
            if made == [name]:
                content[name] = values.get(name, content[name])
                continue
            place, comment = list(content).index(name), content.ca.items.pop(name, None)
            del content[name]
            for offset, new in enumerate(made):
                content.insert(place + offset, new, values[new])
            if comment is not None and made:
                content.ca.items[made[-1]] = comment
    try:
        with path.open("w", encoding="utf-8") as file:
            if as_json:
                file.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
            else:
                from ruamel.yaml import YAML

                yaml = YAML()
                yaml.width = 1000  # no value is folded
                yaml.dump(content, file)
    except OSError as error:
        raise RequestError([Problem(f"cannot be written ({error.strerror})", file=str(path))]) from None
