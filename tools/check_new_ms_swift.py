#!/usr/bin/env python3
"""What a new version of ms-swift contains that this toolkit does not know. ms-swift is not imported.

    pip download --no-deps ms-swift==4.7.0
    python tools/check_new_ms_swift.py ms_swift-4.7.0-py3-none-any.whl
    python tools/check_new_ms_swift.py .venv/lib/python3.11/site-packages

Compares its source with the tables of tasks, renamed arguments, registries and columns and with the ms-swift installed
here, and its requirements with constraints.txt. Each difference is one line, under the file to change.
Exit status: 0 everything is known, 1 something is not, 2 no ms-swift was found.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from swift_toolkit.config import tasks  # noqa: E402
from swift_toolkit.config.fields import Field, fields, read_fields  # noqa: E402
from swift_toolkit.config.names import registries, renames  # noqa: E402
from swift_toolkit.dataset.rows.formats import DECISION_COLUMNS, OTHER_COLUMNS  # noqa: E402
from swift_toolkit.machine import msswift, packages  # noqa: E402
from swift_toolkit.machine.msswift import COMMANDS, Command, SwiftInstall  # noqa: E402
from swift_toolkit.model import registry  # noqa: E402
from swift_toolkit.problems import RequestError  # noqa: E402

_NOT_ROWS = frozenset("messages images videos audios tools objects".split())
"""Columns that are known under several names."""


class Finding(NamedTuple):
    """One thing that the toolkit does not know.

    Args:
        file: the file to change.
        what: one line.
    """

    file: str
    what: str


@dataclass(frozen=True)
class Versions:
    """Two versions of ms-swift to compare.

    Args:
        new: the version to check.
        requires: its requirements, one per line.
        known: the installed version; None if it is from another generation.
    """

    new: SwiftInstall
    requires: Sequence[str]
    known: SwiftInstall | None

    @cached_property
    def arguments(self) -> dict[Command, dict[str, Field]]:
        """The arguments of every command of the new version."""
        return {command: {one.name: one for one in read_fields(command, self.new)[0]} for command in COMMANDS}

    @cached_property
    def known_arguments(self) -> dict[Command, dict[str, Field]]:
        """The arguments of every command of the installed version."""
        return {command: fields(command, self.known) for command in COMMANDS} if self.known else {}

    @cached_property
    def other_transformers(self) -> packages.Misfit | None:
        """The transformers whose arguments were read, if the new version does not accept it."""
        if (self.new.location.parent / "transformers").is_dir():
            return None
        here = {"transformers": packages.version("transformers") or ""}
        return next(packages.misfits(self.requires, {name: one for name, one in here.items() if one}), None)

    def findings(self) -> Iterator[Finding]:
        """Everything that the toolkit does not know."""
        yield from self._tasks()
        yield from self._renames()
        yield from self._arguments()
        yield from self._registries()
        yield from self._models()
        yield from self._columns()
        yield from self._requirements()

    def _tasks(self) -> Iterator[Finding]:
        of_setting = {"rlhf_type": "rlhf", "task_type": "sft"}
        for setting, command in of_setting.items():
            field = self.arguments[command].get(setting)
            ours = {task.setting[1] for task in tasks.TASKS.values() if task.setting[0] == setting}
            for name in field.choices or () if field else ():
                if name not in ours:
                    yield Finding("swift_toolkit/config/tasks.py", f'{setting} "{name}" is not a task')
            if field is None or not field.choices:
                yield Finding("swift_toolkit/config/tasks.py", f"{setting} no longer lists values")

    def _renames(self) -> Iterator[Finding]:
        """Rows of the table whose new name does not exist."""
        for (command, old), row in renames.rename_rows().items():
            name = row.names[self.new.line]
            if self.other_transformers and command in tasks.TRAINING_COMMANDS:
                continue  # it may be an argument of transformers
            if name and name != old and name not in self.arguments[command]:
                what = f'{command}: "{old}" would become "{name}", which does not exist'
                yield Finding("swift_toolkit/config/names/renames.json", what)

    def _arguments(self) -> Iterator[Finding]:
        table = "swift_toolkit/config/names/renames.json"
        changed: dict[str, list[str]] = {}
        for command, known in self.known_arguments.items():
            new = self.arguments[command]
            for name in known.keys() - new.keys():
                if renames.current_name(name, command, self.new.line) == name:
                    changed.setdefault(f'"{name}" was removed and has no row', []).append(command)
            for name in new.keys() - known.keys():
                changed.setdefault(f'"{name}" is new', []).append(command)
            for name in new.keys() & known.keys():
                if text := _difference(known[name], new[name]):
                    changed.setdefault(f'"{name}" {text}', []).append(command)
        yield from (
            Finding(table, f"{what} ({', '.join(commands)})") for what, commands in sorted(changed.items())
        )

    def _registries(self) -> Iterator[Finding]:
        file = "swift_toolkit/config/names/registries.py"
        new, _ = registries.read_registries(self.new)
        expected = {setting for setting, _, _ in registries.registry_places(self.new.line)}
        yield from (
            Finding(file, f"the table of {setting} has moved") for setting in expected - new.names.keys()
        )

    def _models(self) -> Iterator[Finding]:
        new, _ = registry.read_registry(self.new)
        if not new.types or not new.templates:
            what = f"found {len(new.types)} model types and {len(new.templates)} templates"
            yield Finding("swift_toolkit/model/registry.py", f"{what}: they have moved")

    def _columns(self) -> Iterator[Finding]:
        names = standard_columns(self.new)
        if not names:
            yield Finding("swift_toolkit/machine/msswift.py", "the standard columns have moved")
        for name in sorted(names - _NOT_ROWS - {*OTHER_COLUMNS, *DECISION_COLUMNS}):
            yield Finding("swift_toolkit/dataset/rows/formats.py", f'column "{name}" is not known')

    def _requirements(self) -> Iterator[Finding]:
        pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
        if self.known is None:
            return
        for misfit in packages.misfits(self.requires, pins):
            what = f"{misfit.name}=={misfit.version} is pinned, but it needs {misfit.name}{misfit.wanted}"
            yield Finding("constraints.txt", what)


def _difference(known: Field, new: Field) -> str:
    if known.choices and set(known.choices) != set(new.choices or ()):
        gone, more = set(known.choices) - set(new.choices or ()), set(new.choices or ()) - set(known.choices)
        parts = [f"takes the new {_quoted(more)}" if more else "", f"lost {_quoted(gone)}" if gone else ""]
        return " and ".join(filter(None, parts)) if new.choices else "now takes any value"
    if (known.kind, known.is_list) != (new.kind, new.is_list):
        return f"is now {_kind(new)} and was {_kind(known)}"
    return ""


def _kind(field: Field) -> str:
    return f"a list of {field.kind}" if field.is_list else field.kind


def _quoted(names: set[object] | set[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(map(str, names)))


def standard_columns(install: SwiftInstall) -> set[str]:
    """The columns of a row that ms-swift keeps: ``RowPreprocessor.standard_keys``, read from its source."""
    file = install.location / install.sources.columns
    if not file.is_file():
        return set()
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        targets = [getattr(one, "id", "") for one in node.targets] if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.Assign) and {"standard_keys", "_pair_keys"} & set(targets):
            texts = [one.value for one in ast.walk(node.value) if isinstance(one, ast.Constant)]
            found |= {text for text in texts if isinstance(text, str) and text != "_"}
    return found - {"rejected", "positive", "negative"}


# --- where it is ----------------------------------------------------------------------------------------------


def find(place: Path) -> tuple[SwiftInstall, list[str]]:
    """The ms-swift in a directory (the package itself or its parent), and its requirements.

    Raises:
        RequestError: there is no ms-swift.
    """
    package = place if (place / "version.py").is_file() else place / "swift"
    install = msswift.installed_in(package)
    records = [*package.parent.glob("ms_swift-*.dist-info/METADATA")]
    return install, packages.requirements(records[0]) if records else []


class Comparison(NamedTuple):
    """What the toolkit does not know about a version, and what could not be compared."""

    findings: list[Finding]
    notice: str = ""


def compare(place: Path) -> Comparison:
    """Compare the ms-swift in ``place``, a wheel or a directory, with the toolkit."""
    if place.is_file():
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(place) as wheel:
                wheel.extractall(
                    folder, [one for one in wheel.namelist() if one.endswith((".py", "/METADATA"))]
                )
            return compare(Path(folder))
    new, requires = find(place)
    try:
        here = msswift.installed()
    except RequestError:
        here = None
    known = here if here is not None and here.line == new.line else None
    versions = Versions(new, requires, known)
    notice = ""
    if other := versions.other_transformers:
        notice = f"transformers {other.version} is installed, but ms-swift {new.version} needs "
        notice += f"transformers{other.wanted}: renamed "
        notice += "arguments of training were not compared"
    return Comparison(list(versions.findings()), notice)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the toolkit does not know. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "place", type=Path, help="a wheel of ms-swift, or the directory in which it is installed"
    )
    place = parser.parse_args(argv).place
    try:
        found, notice = compare(place)
    except (RequestError, zipfile.BadZipFile) as error:
        print(f"{place}: {error}", file=sys.stderr)
        return 2
    for file in dict.fromkeys(one.file for one in found):
        print(file, *(f"  {one.what}" for one in found if one.file == file), sep="\n")
    if notice:
        print(notice, file=sys.stderr)
    print(f"{len(found)} to check" if found else "everything is known", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
