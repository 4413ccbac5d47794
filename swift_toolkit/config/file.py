"""Read one JSON or YAML file of settings, with the line of each setting.

JSON is read by the standard library, YAML 1.2 by ruamel.yaml's safe loader (in which ``1e-4`` is a number and ``no`` is
a string). Every error in the file itself is a RequestError that names the line.
"""

from __future__ import annotations

import codecs
import json
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_toolkit.console.words import did_you_mean_path
from swift_toolkit.problems import Problem, RequestError, first_line

EXTENSIONS = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}
Values = dict[str, Any]
"""Settings as a user gives them: names of any generation of ms-swift, and values that JSON can hold."""

_SCRIPTS = frozenset(".py .sh .bash .txt .bat .cmd .ps1 .ipynb .slurm .sbatch".split())

MAX_BYTES = 4 << 20  # larger files are probably data files given by mistake


@dataclass(frozen=True)
class ConfigFile:
    """The settings of one file.

    Args:
        path: the file, as the user spelled it.
        values: the value of every top-level key.
        lines: the line of each key, counted from 1.
    """

    path: str
    values: Values
    lines: dict[str, int]


def read_config_file(path: str | Path) -> ConfigFile:
    """Read the settings in ``path``.

    Raises:
        RequestError: the file is missing, is not UTF-8 JSON or YAML, is not an object, or gives a key twice.
    """
    name = str(path)
    text = _read_text(Path(path), name)
    read = _read_json if EXTENSIONS[Path(path).suffix.lower()] == "JSON" else _read_yaml
    values, keys = read(text, name)
    lines: dict[str, int] = {}
    twice = []
    for key, line in keys:
        if key in lines:
            first = f"first on line {lines[key]}"
            twice.append(Problem(f"is given twice ({first})", "Keep one of the two.", key, name, line))
        else:
            lines[key] = line
    if twice:
        raise RequestError(twice)
    return ConfigFile(name, values, lines)


def environment_in(path: str | Path) -> dict[str, str]:
    """The environment variables under the key ``ENV`` of a config file, which ms-swift's command line sets unless they
    are set already.

    Raises:
        RequestError: the file cannot be read.
    """
    if b"ENV" not in read_small(Path(path), str(path)):
        return {}
    return environment_of(read_config_file(path).values)


def environment_of(values: Values) -> dict[str, str]:
    """The environment variables among the values of a config file."""
    found = values.get("ENV")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _stop(what: str, do: str, name: str, line: int | None = None, key: str | None = None) -> RequestError:
    return RequestError([Problem(what, do, key, name, line)])


def _read_text(path: Path, name: str) -> str:
    raw = read_small(path, name)
    if path.suffix.lower() not in EXTENSIONS:
        is_script = path.suffix.lower() in _SCRIPTS
        do = "Use .json, .yaml or .yml" + (", or pass a script with --from-script." if is_script else ".")
        raise _stop("has an unknown extension", do, name)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _stop("is UTF-16 text", "Save it as UTF-8.", name)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8 text (byte 0x{raw[error.start]:02x})"
        raise _stop(what, "Save it as UTF-8.", name, line) from None
    if not text.strip():
        raise _stop("is empty", 'It needs at least "model" and "dataset".', name)
    return text


def read_small(path: Path, name: str) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`.

    Args:
        path: the file.
        name: its name in messages.

    Raises:
        RequestError: it does not exist, or cannot be read.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _stop("is a directory", "Give a .json, .yaml or .yml file.", name)
        if not stat.S_ISREG(status.st_mode):
            raise _stop("is not a regular file", "Give a .json, .yaml or .yml file.", name)
        if status.st_size > MAX_BYTES:
            raise _stop("is over 4 MiB, too large for a config", "Is it a data file?", name)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _stop("no such file", _near_files(path), name) from None
    except OSError as error:
        raise _stop(f"cannot be read ({error.strerror})", "", name) from None
    except ValueError:
        raise _stop("no such file", "A path cannot contain NUL characters.", name) from None


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f'There is no directory "{path.parent}" either.'
    return did_you_mean_path(path, "Check the path.", tuple(EXTENSIONS))


# --- JSON ---------------------------------------------------------------------------------------------------


def _read_json(text: str, name: str) -> tuple[Values, list[tuple[str, int]]]:
    def constant(token: str) -> Any:
        raise _stop(f"{token} is not a JSON value", "Use a number or null.", name, _line_of(text, token))

    try:
        values = json.loads(text, parse_constant=constant, object_pairs_hook=_unique_pairs)
    except json.JSONDecodeError as error:
        raise _json_error(text, error, name) from None
    except RecursionError:
        raise _stop("is nested too deeply", "Settings cannot be nested.", name) from None
    except ValueError:  # Python rejects numbers of more than 4,300 digits
        raise _stop("holds a number that is too long", "", name) from None
    except _TwiceInsideError as error:
        raise _stop(
            "is given twice in one object", "Keep one of the two.", name, error.line(text), error.key
        ) from None
    if not isinstance(values, _Pairs):
        found = "a list" if isinstance(values, list) else f"the value {json.dumps(values)}"
        raise _stop(f"holds {found}, not an object", 'Write {"model": ..., "dataset": ...}.', name)
    return dict(values.pairs), list(_json_keys(text))


class _TwiceInsideError(Exception):
    """A key is given twice in an object below the top level."""

    def __init__(self, key: str) -> None:
        self.key = key

    def line(self, text: str) -> int:
        quoted = json.dumps(self.key, ensure_ascii=False)
        return _line_of(text, quoted, text.find(quoted) + 1)


class _Pairs(Values):
    """A JSON object that keeps its pairs, so that duplicate keys are not lost."""

    pairs: list[tuple[str, Any]]


def _unique_pairs(pairs: list[tuple[str, Any]]) -> _Pairs:
    for _, value in pairs:
        for inside in value if isinstance(value, list) else [value]:
            if isinstance(inside, _Pairs) and len(inside) < len(inside.pairs):
                counts = Counter(key for key, _ in inside.pairs)
                raise _TwiceInsideError(next(key for key, count in counts.items() if count > 1))
    result = _Pairs(pairs)
    result.pairs = pairs
    return result


def _json_keys(text: str) -> Iterator[tuple[str, int]]:
    """The top-level keys of a valid JSON object and their lines, in order."""
    decoder = json.JSONDecoder()
    position = text.index("{") + 1
    line, counted = 1, 0
    while True:
        start = _skip(text, position, " \t\r\n,")
        if text[start] == "}":
            return
        key, end = decoder.raw_decode(text, start)
        line, counted = line + text.count("\n", counted, start), start
        yield key, line
        _, position = decoder.raw_decode(text, _skip(text, end, " \t\r\n:"))


def _skip(text: str, position: int, characters: str) -> int:
    while text[position] in characters:
        position += 1
    return position


def _line_of(text: str, token: str, start: int = 0) -> int:
    return text.count("\n", 0, max(text.find(token, start), 0)) + 1


def _json_error(text: str, error: json.JSONDecodeError, name: str) -> RequestError:
    """A readable message for this JSON error."""
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    line = error.lineno
    if after.startswith(("//", "#", "/*")):
        return _stop("JSON does not allow comments", "Remove it, or save the file as .yaml.", name, line)
    if before.endswith(",") and after[:1] in ("}", "]"):
        line = before.count("\n") + 1
        return _stop(f'has a comma before the closing "{after[0]}"', "Remove the comma.", name, line)
    if after.startswith(",") and after[1:].lstrip()[:1] in ("}", "]"):  # the position in Python 3.13
        return _stop(
            f'has a comma before the closing "{after[1:].lstrip()[0]}"', "Remove the comma.", name, line
        )
    if after.startswith("'"):
        return _stop("JSON uses double quotes, not single quotes", 'Use ".', name, line)
    if after.startswith(("True", "False", "None")):
        return _stop("JSON writes true, false and null", "Use these, in lower case.", name, line)
    if not after:
        return _stop("ends too early", "A closing bracket or quote is missing.", name, line)
    if error.msg.startswith("Expecting ',' delimiter"):
        line = before.count("\n") + 1
        return _stop("lacks a comma after this line's value", "Add the comma.", name, line)
    if error.msg.startswith("Extra data"):
        return _stop("continues after the end of the object", "Remove the rest.", name, line)
    return _stop(f"is not valid JSON ({error.msg[:1].lower()}{error.msg[1:]})", "", name, line)


# --- YAML ---------------------------------------------------------------------------------------------------


def _read_yaml(text: str, name: str) -> tuple[Values, list[tuple[str, int]]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.composer import Composer
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.nodes import MappingNode

    class Plain(Composer):
        """Nodes without tags and aliases."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            _refuse_yaml_extras(self.parser.peek_event(), name)
            return super().compose_node(parent, index)

    loader = YAML(typ="safe", pure=True)
    loader.Composer = Plain
    loader.allow_duplicate_keys = True  # reported here, with both lines
    try:
        constructor, _ = loader.get_constructor_parser(text)
        root = constructor.composer.get_single_node()
        _refuse_repeats_inside(root, name)
        if root is None:
            raise _stop("is empty", 'It needs at least "model" and "dataset".', name)
        if not isinstance(root, MappingNode):
            found = "a list" if root.id == "sequence" else "a single value"
            raise _stop(f"holds {found}, not settings", 'Write "model: ..." and "dataset: ..." lines.', name)
        keys = [_yaml_key(key, name) for key, _ in root.value]
        values = [constructor.construct_object(value, deep=True) for _, value in root.value]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise _stop(f"is not valid YAML ({error.problem or error.context})", "", name, line) from None
    except RecursionError:
        raise _stop("is nested too deeply", "Settings cannot be nested.", name) from None
    except (YAMLError, ValueError, TypeError) as error:
        raise _stop(f"is not valid YAML ({first_line(error)})", "", name) from None
    return dict(zip((key for key, _ in keys), values, strict=True)), keys


def _yaml_key(node: Any, name: str) -> tuple[str, int]:
    """The text of a key, and its line."""
    line = node.start_mark.line + 1
    if node.id != "scalar":
        raise _stop("has a key that is not a name", "Use plain names.", name, line)
    return str(node.value), line


def _refuse_yaml_extras(event: Any, name: str) -> None:
    """Reject tags (they request code) and aliases (they can grow without bound)."""
    line = event.start_mark.line + 1
    tag = getattr(event, "tag", None)
    if tag is not None:
        raise _stop(f'uses the YAML tag "{tag}"', "Only plain values are supported: remove it.", name, line)
    if type(event).__name__ == "AliasEvent":
        raise _stop(f'uses the YAML alias "*{event.anchor}"', "Write the value itself.", name, line)


def _refuse_repeats_inside(root: Any, name: str) -> None:
    """Reject a key that is given twice in an object below the top level."""
    below = [value for _, value in root.value] if root is not None and root.id == "mapping" else []
    while below:
        node = below.pop()
        if node.id == "scalar":
            continue
        if node.id == "sequence":
            below.extend(node.value)
            continue
        seen = set()
        for key, value in node.value:
            if key.id == "scalar" and key.value in seen:
                line = key.start_mark.line + 1
                raise _stop("is given twice in one object", "Keep one of the two.", name, line, key.value)
            seen.add(key.value if key.id == "scalar" else None)
            below.append(value)
