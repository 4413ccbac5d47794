"""Plugins of a request that ms-swift cannot import: it does so before anything else, after its own import."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from swift_toolkit.config.settings import Config
from swift_toolkit.console.words import did_you_mean_path
from swift_toolkit.machine import packages
from swift_toolkit.problems import Problem

_OF_VERSION_3 = ("swift.llm", "swift.plugin")
_ENDINGS = (".py", ".pyc", ".so")


def plugin_problems(config: Config) -> Iterator[Problem]:
    """Plugins that are missing, are not Python, or import what is not there."""
    for name in ("external_plugins", "custom_register_path"):
        for file in config.get(name) or []:
            path = Path(file).expanduser()
            if not path.is_file():
                do = did_you_mean_path(path, "Check the path.")
                yield config.problem(name, f'names the file "{file}", which does not exist', do)
            elif path.suffix not in _ENDINGS:
                do = "Name a file that ends in .py."
                yield config.problem(name, f'names the file "{file}", which is not a Python module', do)
            elif path.suffix == ".py":
                for what, do in _source_problems(config, path):
                    yield config.problem(name, f'names the file "{file}", {what}', do)


def _source_problems(config: Config, path: Path) -> Iterator[tuple[str, str]]:
    """What is wrong with the source of a plugin, and what to do."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        yield f"which is not valid Python: line {error.lineno}: {error.msg}", "Fix it."
        return
    except (OSError, ValueError):
        return
    for module, line in _imported(tree):
        if not _exists(config, module, path.parent):
            lacks = (
                f"ms-swift {config.install.version} does not have"
                if _is_swift(module)
                else "is not installed"
            )
            yield f'whose line {line} imports "{module}", which {lacks}', _advice(config, module)


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The modules that are imported in any case, each with its line."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno


def _exists(config: Config, module: str, folder: Path) -> bool:
    root, _, rest = module.partition(".")
    if _is_swift(module):
        place = config.install.location.joinpath(*rest.split(".")) if rest else config.install.location
        return place.is_dir() or place.with_suffix(".py").is_file()
    beside = [place for base in (folder, Path.cwd()) for place in (base / root, base / f"{root}.py")]
    return root in sys.stdlib_module_names or any(map(Path.exists, beside)) or packages.is_installed(root)


def _is_swift(module: str) -> bool:
    return module.partition(".")[0] == "swift"


def _advice(config: Config, module: str) -> str:
    if module.startswith(_OF_VERSION_3) and config.install.line == "v4":
        return "It is a module of ms-swift 3; ms-swift 4 has swift.rewards, swift.loss, swift.optimizers and others."
    if _is_swift(module):
        return "Change the plugin, or install the ms-swift that it was written for."
    return packages.install(module.partition(".")[0])
