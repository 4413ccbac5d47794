"""Files that settings name, checked before a run starts: prompts, tokens, tables of data sets, settings as JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swift_toolkit.config import fields
from swift_toolkit.config.settings import Config
from swift_toolkit.console.words import shown, variable_advice
from swift_toolkit.machine import files as machine_files
from swift_toolkit.problems import Problem

_TEXTS = ("system", "new_special_tokens")
_OTHER_READERS = ("deepspeed", "fsdp", "teacher_deepspeed", "liger_kernel_config")
"""Arguments that take an object, but are checked elsewhere or are never a file."""
_WRITTEN = ("output_dir", "logging_dir")


def named_file_problems(config: Config) -> Iterator[Problem]:
    """Files that are missing or cannot be read, and directories that would get another name than is meant."""
    for name in _TEXTS:
        for path in _paths(config, name, ".txt"):
            if isinstance(read := file_text(path), Problem):
                yield config.problem(name, read.what, read.do)
            elif not read.strip():
                yield config.problem(name, f'names the file "{path}", which is empty')
    yield from _tables(config)
    yield from _objects(config)
    yield from _generation_config(config)
    for name in ("cached_dataset", "cached_val_dataset"):
        for path in config.get(name) or []:
            places = (path, path.rpartition("#")[0] or path)
            if not any(Path(place).expanduser().is_dir() for place in places):
                what = f'names the directory "{path}", which does not exist'
                yield config.problem(name, what, "Make it with: swift export --to_cached_dataset true")
    repository = config.get("local_repo_path")
    if repository and not Path(repository).is_dir():
        what = f'names the directory "{repository}", which does not exist'
        yield config.problem("local_repo_path", what, variable_advice(repository) or "Check the path.")
    for name in _WRITTEN:
        yield from _written(config, name)


_WINDOWS = re.compile(r"[A-Za-z]:[\\/].*|.*\\.*")


def _written(config: Config, name: str) -> Iterator[Problem]:
    """A directory that would be made under another name than is meant."""
    path = config.get(name)
    if path == "":
        yield config.problem(name, "is empty, which is the current directory", "Name a directory.")
    if not path or machine_files.exists(path):
        return
    do = variable_advice(path)
    if os.name == "posix" and _WINDOWS.fullmatch(path):
        do = "It is a path of Windows: write one of this machine, with /."
    if do:
        yield config.problem(name, f'is "{path}", which would be a directory of this very name', do)


def named_file_warnings(config: Config) -> Iterator[Problem]:
    """A text that looks like the name of a file, which ms-swift reads only if it ends in .txt."""
    text = config.get("system") or ""
    is_name = re.fullmatch(r"\S+\.(?:md|json|ya?ml|jinja2?|prompt|text)", text) is not None
    if is_name or ("." in text and not text.endswith(".txt") and machine_files.exists(text)):
        what = f'is the text "{text}" itself: ms-swift reads a file only if its name ends in .txt'
        yield config.problem("system", what, "Rename the file, or write the prompt here.")


def _paths(config: Config, name: str, suffix: str) -> Iterator[str]:
    """The files that a setting names: strings with an extension that ms-swift reads as a file."""
    value = config.get(name) or []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and one.endswith(suffix) and "\n" not in one:
            yield one


def _tables(config: Config) -> Iterator[Problem]:
    """Tables of data sets: files, or JSON (``register_dataset_info``)."""
    for text in _paths(config, "custom_dataset_info", ""):
        path = str(Path(text).expanduser())
        found = json_of(text if text.lstrip().startswith("[") else path)
        if isinstance(found, Problem):
            yield config.problem("custom_dataset_info", found.what, found.do)
        elif not isinstance(found, list):
            what = f'names the file "{text}", which does not hold a list of data sets'
            yield config.problem("custom_dataset_info", what)


def _objects(config: Config) -> Iterator[Problem]:
    for name, value in _given_as_text(config):
        found = json_of(value)
        if isinstance(found, Problem):
            yield config.problem(name, found.what, found.do)
        elif not isinstance(found, dict):
            yield config.problem(name, *not_an_object(value))


def objects_in_files(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """The content of each JSON file that is named instead of an object, with the name of its setting."""
    for name, value in _given_as_text(config):
        if isinstance(found := json_of(value), dict):
            yield name, found


def _given_as_text(config: Config) -> Iterator[tuple[str, str]]:
    """Arguments that are objects, given as the name of a JSON file (``json_parse_to_dict`` of ms-swift, which leaves
    some to transformers)."""
    for name, field in fields.fields(config.command, config.install).items():
        value = config.get(name)
        if field.kind == "dict" and name not in _OTHER_READERS and isinstance(value, str):
            is_name = name == "device_map" and not value.endswith(".json")  # of a strategy or a device
            if not is_name:
                yield name, value


def _generation_config(config: Config) -> Iterator[Problem]:
    """A file, a directory or a model of a hub, read when the trainer is made (``Seq2SeqTrainer``)."""
    value = config.get("generation_config")
    if not value:
        return
    path = Path(value) / "generation_config.json" if Path(value).is_dir() else Path(value)
    if path.suffix != ".json" and not machine_files.exists(value) and value.count("/") == 1:
        return
    found = json_of(str(path))
    if isinstance(found, Problem):
        yield config.problem("generation_config", found.what, found.do)
    elif not isinstance(found, dict):
        yield config.problem("generation_config", *not_an_object(str(path)))


def not_an_object(value: str) -> tuple[str, str]:
    """What is wrong with JSON that is something else, and what to do."""
    if machine_files.exists(value):
        return f'names the file "{value}", which does not hold an object', "Fix the file."
    return f"is {shown(value)}, which is not an object", 'Write {"name": value}, or the name of a JSON file.'


def file_text(path: str) -> str | Problem:
    """The text of a file, or why it cannot be read; a pipe is not waited for."""
    if Path(path).is_fifo():
        return Problem(f'names "{path}", which is not a regular file', "Write the content to a file.")
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        do = variable_advice(path) or "Check the path."
        if path.startswith("~"):
            do = f'ms-swift does not replace "~" here: write {Path(path).expanduser()}.'
        return Problem(f'names the file "{path}", which does not exist', do)
    except UnicodeDecodeError:
        return Problem(f'names the file "{path}", which is not UTF-8 text', "Save it as UTF-8.")
    except OSError as error:
        return Problem(f'names "{path}", which cannot be read ({error.strerror})', "Check the path.")


def json_of(value: str) -> Any:
    """What ms-swift reads for an object given as text: the content of a file of this name, else JSON; or the problem of
    a file that is missing or broken."""
    if not machine_files.exists(value):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    text = file_text(value)
    if isinstance(text, Problem):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return Problem(f'names the file "{value}", which is not valid JSON ({error})', "Fix the file.")
