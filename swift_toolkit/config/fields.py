"""The arguments of the installed ms-swift, read from its source without importing it.

Importing ms-swift to inspect its argument classes takes 8 to 12 s, reading the twenty source files that define them
about 0.1 s, and reading the cached result a few milliseconds.

    fields("sft")["lora_rank"]  # Field(name="lora_rank", kind="int", ..., default="8")

``python -m swift_toolkit.config.fields sft`` imports ms-swift and prints the arguments of its own parser as JSON. It is
the fallback for sources that cannot be followed, and the reference for the tests.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from enum import EnumMeta
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from swift_toolkit.machine import files as machine_files
from swift_toolkit.machine.msswift import (
    INSTALL,
    Command,
    SwiftInstall,
    argument_parser,
    arguments_class,
    installed,
    package_of,
)
from swift_toolkit.problems import Problem, RequestError


@dataclass(frozen=True)
class Field:
    """One argument, as ms-swift's argument parser takes it.

    Args:
        name: exact name.
        kind: the type of one value: ``bool``, ``int``, ``float``, ``str``, or ``dict`` (a JSON object or string).
            For a union it is the type that the parser converts to: ``str | bool`` is a bool, while
            ``str | list[str] | None`` is one string. With choices it is the type of the first one
            (``quant_bits``, which takes 4 and ``float8``, is an int).
        is_list: takes one or more values.
        optional: None is allowed.
        choices: the only values allowed; None if any value is. None itself is never listed, see ``optional``.
        default: source text of the default, see `default_value`.
    """

    name: str
    kind: str
    is_list: bool = False
    optional: bool = False
    choices: tuple[str | int | bool, ...] | None = None
    default: str = ""

    @property
    def default_value(self) -> Any:
        """The value that ms-swift uses if none is given; None if ms-swift decides it during the run."""
        if self.default in ("list", "dict"):
            return [] if self.default == "list" else {}
        try:
            return ast.literal_eval(self.default)
        except (ValueError, SyntaxError):
            return None


@cache
def default(name: str, command: Command, install: SwiftInstall) -> Any:
    """The default value of an argument of ``command``; None if the command has no such argument."""
    found = _declared(command, install).get(name)
    return found.default_value if found else None


@cache
def _declared(command: Command, install: SwiftInstall) -> dict[str, Field]:
    return fields(command, install)


def fields(command: Command, install: SwiftInstall | None = None) -> dict[str, Field]:
    """The arguments of one command of ms-swift by name, in the order of their declaration.

    Raises:
        RequestError: ms-swift is not installed, or can be neither read nor imported.
    """
    install = install or installed()

    def read() -> tuple[list[Any], list[Path]]:
        try:
            found, files = read_fields(command, install)
        except UnresolvedError:
            found, files = _ask_another_process(command, install), []
        return [astuple(field) for field in found], [*files, Path(__file__)]

    stem, place = f"fields-{install.version}-{command}", f"{install.location} {install.transformers_version}"
    return {field.name: field for field in machine_files.kept(stem, place, read, _fields_from_json)}


def read_fields(command: Command, install: SwiftInstall) -> tuple[list[Field], list[Path]]:
    """The arguments of one command, read from the source of ``install``, and the files they were read from.

    Raises:
        UnresolvedError: a class in it cannot be followed to its definition.
    """
    source = _Source(install)
    return source.fields(*arguments_class(command, install.line)), source.files()


def _fields_from_json(rows: list[list[Any]]) -> list[Field]:
    return [
        Field(name, kind, is_list, optional, choices and tuple(choices), default)
        for name, kind, is_list, optional, choices, default in rows
    ]


# ------------------------------------------------------------------------------------------ the source


class UnresolvedError(Exception):
    """A name in the source that cannot be followed to its definition."""


class _Module:
    """The classes and imports of one source file, including those inside top-level if, try and with blocks."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.file = file
        self.classes: dict[str, ast.ClassDef] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        self._collect(ast.parse(file.read_bytes()).body)

    def _collect(self, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                self.classes.setdefault(node.name, node)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.imports.setdefault(alias.asname or alias.name, (self._absolute(node), alias.name))
            elif isinstance(node, (ast.If, ast.Try, ast.With)):
                self._collect(node.body)
                self._collect(getattr(node, "orelse", []))

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The module that an import statement names, without leading dots."""
        parts = self.name.split(".") if node.level else []
        up = node.level - (self.file.name == "__init__.py")
        return ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])


class _Source:
    """Follows class names through imports and bases, and reads the fields of the dataclasses it finds."""

    def __init__(self, install: SwiftInstall) -> None:
        self._install = install
        self._modules: dict[str, _Module] = {}
        self._stand_ins: dict[str, type] = {}

    def files(self) -> list[Path]:
        """The files read so far."""
        return [module.file for module in self._modules.values()]

    def fields(self, module: str, name: str) -> list[Field]:
        """The fields of a dataclass that are arguments, including inherited ones, in the order of their declaration."""
        found: dict[str, Field | None] = {}
        for cls in reversed(self._stand_in(*self._find(module, name)).__mro__[:-1]):
            for key, field in self._own_fields(vars(cls)["module"], vars(cls)["node"]):
                inherited = found.get(key)
                if field and inherited and field.kind == "str" and not field.choices:
                    # redeclared as a plain string, but the base class still converts it to its enum
                    field = replace(field, choices=inherited.choices)
                found[key] = field
        return [field for field in found.values() if field]

    def _stand_in(self, module: _Module, node: ast.ClassDef) -> type:
        """An empty class with the same ancestors, so that Python itself orders them."""
        key = f"{module.name}.{node.name}"
        if key not in self._stand_ins:
            bases = [_name(base) for base in node.bases if not _is_standard(module, _name(base))]
            ancestors = tuple(self._stand_in(*self._find(module.name, base)) for base in bases)
            self._stand_ins[key] = type(node.name, ancestors, {"module": module, "node": node})
        return self._stand_ins[key]

    def _own_fields(self, module: _Module, node: ast.ClassDef) -> Iterator[tuple[str, Field | None]]:
        """Name and field of each declaration in a dataclass itself; None if it is not an argument."""
        if not any(_name(decorator) == "dataclass" for decorator in node.decorator_list):
            return
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                name = line.target.id
                default, is_argument, listed = _declaration(line.value)
                if not is_argument or _name(line.annotation) in ("ClassVar", "InitVar"):
                    yield name, None
                    continue
                kind, is_list, optional, choices = self._type(module, line.annotation)
                yield name, Field(name, kind, is_list, optional, choices or listed, default)

    def _type(self, module: _Module, annotation: ast.expr) -> tuple[str, bool, bool, tuple[Any, ...] | None]:
        """Kind, is_list, optional and choices of an annotation, by the rules of HfArgumentParser."""
        members = {_name(member): member for member in _members(annotation)}
        optional = members.pop("None", None) is not None
        if optional and len(members) > 1:
            return "dict" if members.keys() & {"dict", "Dict"} else "str", False, True, None
        name, member = next((item for item in members.items() if item[0] != "str"), ("str", annotation))
        if name in ("list", "List") and isinstance(member, ast.Subscript):
            kind, _, _, choices = self._type(module, member.slice)
            return kind, True, optional, choices
        if name == "Literal" and isinstance(member, ast.Subscript):
            literals = member.slice.elts if isinstance(member.slice, ast.Tuple) else [member.slice]
            values = [ast.literal_eval(literal) for literal in literals]
            choices = tuple(value for value in values if value is not None)
            return type(choices[0]).__name__, False, optional or None in values, choices
        if name in ("bool", "int", "float", "str", "dict", "Dict"):
            return name.lower(), False, optional, None
        return "str", False, optional, self._enum_values(module, name)

    def _enum_values(self, module: _Module, name: str) -> tuple[Any, ...] | None:
        """The values of a class if it is an enum, else None."""
        if _is_standard(module, name):
            return None
        _, node = self._find(module.name, name)
        if not any(_name(base).endswith("Enum") for base in node.bases):
            return None
        return tuple(ast.literal_eval(line.value) for line in node.body if isinstance(line, ast.Assign))

    def _find(self, module_name: str, name: str) -> tuple[_Module, ast.ClassDef]:
        """The class that a name refers to in a module, and the module that defines it."""
        module = self._module(module_name)
        if name in module.classes:
            return module, module.classes[name]
        if name in module.imports:
            return self._find(*module.imports[name])
        raise UnresolvedError(f"{name} in {module_name}")

    def _module(self, name: str) -> _Module:
        if name not in self._modules:
            root, *parts = name.split(".")
            beside = self._install.location.parent / root
            package = beside if beside.is_dir() else package_of(root)
            if package is None:
                raise UnresolvedError(name)
            path = package.joinpath(*parts)
            self._modules[name] = _Module(
                name, path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            )
        return self._modules[name]


def _is_standard(module: _Module, name: str) -> bool:
    """Whether a name in a module is a builtin or imported from the standard library."""
    origin = module.imports.get(name, ("builtins", ""))[0]
    return name not in module.classes and origin.split(".")[0] in sys.stdlib_module_names


def _members(annotation: ast.expr) -> Iterator[ast.expr]:
    """The members of ``Union[A, B]``, ``Optional[A]`` or ``A | B``; any other annotation is its own only member."""
    if isinstance(annotation, ast.BinOp):
        parts = [annotation.left, annotation.right]
    elif isinstance(annotation, ast.Subscript) and _name(annotation) in ("Optional", "Union"):
        inner = annotation.slice
        parts = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
        parts += [ast.Constant(None)] if _name(annotation) == "Optional" else []
    else:
        yield annotation
        return
    for part in parts:
        yield from _members(part)


def _name(node: ast.expr) -> str:
    """The last component of an expression: ``field`` of ``dataclasses.field(default=1)``."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)


def _declaration(value: ast.expr | None) -> tuple[str, bool, tuple[Any, ...] | None]:
    """The right-hand side of a field: its default, whether the constructor takes it, its choices if listed."""
    if not isinstance(value, ast.Call) or _name(value) != "field":
        return ast.unparse(value) if value else "", True, None
    keywords = {keyword.arg: keyword.value for keyword in value.keywords}
    default = keywords.get("default") or keywords.get("default_factory")
    if isinstance(default, ast.Lambda):
        default = default.body
    init = ast.literal_eval(keywords.get("init", ast.Constant(True)))
    choices = None
    metadata = keywords.get("metadata")
    if isinstance(metadata, ast.Dict):
        for key, listed in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(listed, ast.List) and ast.literal_eval(key or ast.Constant(None)) == "choices":
                choices = tuple(ast.literal_eval(listed))
    return ast.unparse(default) if default else "", init, choices


# ------------------------------------------------------------------------------------------ the parser itself


def _ask_another_process(command: Command, install: SwiftInstall) -> list[Field]:
    """The fields as a second Python process finds them by importing ms-swift, in about 10 s."""
    run = subprocess.run(
        [sys.executable, "-m", __name__, command],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        reason = run.stderr.strip().splitlines()[-1]
        raise RequestError([Problem(f"ms-swift {install.version} cannot be imported: {reason}", INSTALL)])
    return _fields_from_json(json.loads(run.stdout.splitlines()[-1]))


def _fields_by_import(command: Command) -> Iterator[Field]:
    """The fields of ms-swift's own argument parser. Imports ms-swift."""
    cls, parser = argument_parser(command)
    actions = {action.dest: action for action in reversed(parser._actions)}
    for name, hint in get_type_hints(cls).items():
        if name not in actions:
            continue
        action, members = actions[name], get_args(hint)
        convert: Any = action.type
        is_enum = isinstance(convert, EnumMeta)
        values = [item.value for item in convert.__members__.values()] if is_enum else action.choices
        choices = tuple(value for value in values if value is not None) if values else None
        if dict in (*members, *map(get_origin, members)):
            kind = "dict"
        elif choices:
            kind = type(choices[0]).__name__
        else:
            kind = {"string_to_bool": "bool", "int": "int", "float": "float"}.get(convert.__name__, "str")
        optional = not {None, type(None)}.isdisjoint(members)
        yield Field(name, kind, action.nargs == "+", optional, choices, repr(action.default))


if __name__ == "__main__":
    print(json.dumps([astuple(field) for field in _fields_by_import(sys.argv[1])]))  # type: ignore[arg-type]
