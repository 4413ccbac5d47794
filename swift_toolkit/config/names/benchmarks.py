"""The benchmarks that the installed EvalScope registers, read from its source: the names that `eval_dataset` takes.

Training with ``eval_use_evalscope`` logs a warning for an unknown name at each evaluation and goes on without a score;
this module finds the name before the model is loaded.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from swift_toolkit.config.names.registries import plugins_of
from swift_toolkit.config.settings import Config
from swift_toolkit.console.words import did_you_mean, shown
from swift_toolkit.machine import files as machine_files
from swift_toolkit.machine.msswift import package_of
from swift_toolkit.problems import Problem


def benchmark_names(package: Path | None = None) -> tuple[str, ...]:
    """The names of all benchmarks, sorted; empty if EvalScope is not installed or its source does not show them.

    Args:
        package: the directory of the package ``evalscope``; by default the installed one.
    """
    package = package or package_of("evalscope")
    if package is None:
        return ()

    def read() -> tuple[Any, list[Path]]:
        files = [Path(__file__), package / "constants.py", package / "benchmarks", *_adapters(package)]
        return list(_names(package)), [file for file in files if file.exists()]

    return machine_files.kept("evalscope", str(package), read, tuple)


def benchmark_problems(config: Config) -> Iterator[Problem]:
    """Names in a training request's ``eval_dataset`` that EvalScope would not find."""
    extra = config.get("extra_eval_args")
    is_replaced = isinstance(extra, dict) and not extra.keys().isdisjoint(("datasets", "eval_backend"))
    asked = config.get("eval_dataset") if config.get("eval_use_evalscope") else None
    if not asked or is_replaced or plugins_of(config).mention("register_benchmark", "BENCHMARK_REGISTRY"):
        return
    names = benchmark_names()
    for name in asked if names else []:
        if name not in names:
            yield config.problem("eval_dataset", f"cannot be {shown(name)}", _do(name, names))


def unknown_benchmarks(asked: object, backend: object) -> Iterator[str]:
    """One line for each name in the ``eval_dataset`` of a ``swift eval`` command that it would reject.

    ``swift eval`` ignores the case of letters. The names of the backends other than "Native" are not known here.
    """
    names = benchmark_names() if backend in (None, "Native") else ()
    known = {name.lower() for name in names}
    for name in asked if isinstance(asked, list) else [asked]:
        if known and isinstance(name, str) and name.lower() not in known:
            yield f"eval_dataset cannot be {shown(name)}. {_do(name, names)}"


def _do(name: object, names: tuple[str, ...]) -> str:
    return did_you_mean(str(name), names, f"Use one of EvalScope's {len(names)} benchmarks.")


def _adapters(package: Path) -> list[Path]:
    """The modules that register benchmarks: EvalScope imports all files with such a name."""
    return sorted((package / "benchmarks").glob("*/**/*_adapter.py"))


def _names(package: Path) -> tuple[str, ...]:
    index: set[str] = set()
    with suppress(OSError, ValueError):  # only newer versions have one
        index |= set(json.loads((package / "benchmarks/_index.json").read_bytes()))
    nodes = [node for file in _adapters(package) for node in _registered(ast.parse(file.read_bytes()))]
    names = [node.value if isinstance(node, ast.Constant) else _constant(package, node) for node in nodes]
    found = index | {str(name) for name in names if name is not None}
    return tuple(sorted(found)) if index or None not in names else ()


def _registered(tree: ast.Module) -> Iterator[ast.expr]:
    """The expressions of the names: ``@register_benchmark(BenchmarkMeta(name=...))``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BenchmarkMeta":
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "name")


def _constant(package: Path, name: ast.expr) -> str | None:
    """The value of ``Class.NAME``, where the class is one of EvalScope's constants."""
    file = package / "constants.py"
    if not isinstance(name, ast.Attribute) or not isinstance(name.value, ast.Name) or not file.is_file():
        return None
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == name.value.id:
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name.attr:
                    return str(ast.literal_eval(line.value))
    return None
