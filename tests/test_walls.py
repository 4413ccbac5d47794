"""The two walls: few doors to ms-swift, and none of it imported with a module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ENGINES = {"swift", "torch", "transformers", "peft", "datasets", "accelerate", "vllm", "unsloth"}
DOORS = {
    "swift_toolkit/dataset/preview.py",
    "swift_toolkit/inference/capacity.py",
    "swift_toolkit/inference/worker.py",
    "swift_toolkit/machine/cpu.py",
    "swift_toolkit/machine/msswift.py",
    "swift_toolkit/machine/threads.py",
    "swift_toolkit/model/checkpoints/old_adapter.py",
    "swift_toolkit/model/worker.py",
    "swift_toolkit/serving/proof/sides.py",
    "swift_toolkit/training/process/hooks.py",
    "swift_toolkit/training/process/worker.py",
}
RENAMERS = {  # all but the first rename folders, links, checkpoints and damaged files
    "swift_toolkit/machine/files.py",
    "swift_toolkit/machine/scratch.py",
    "swift_toolkit/evaluation/answers.py",
    "swift_toolkit/model/merge.py",
    "swift_toolkit/runs/directory.py",
    "swift_toolkit/runs/resume.py",
    "swift_toolkit/serving/export/run.py",
}
SCRIPTS = ["finetune_trainer.py", "inference_test.py", "deploy_model.py"]
FILES = [*map(Path, SCRIPTS), *sorted(Path("swift_toolkit").rglob("*.py"))]


def imports(tree: ast.AST) -> set[str]:
    """The packages that the code below ``tree`` imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=Path.as_posix)
def test_only_the_doors_import_an_engine_and_only_inside_functions(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if file.as_posix() not in DOORS:
        assert not imports(tree) & ENGINES
    outside = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert not imports(ast.Module(outside, [])) & ENGINES


def test_the_package_does_not_import_the_scripts() -> None:
    scripts = {name.removesuffix(".py") for name in SCRIPTS}
    for file in Path("swift_toolkit").rglob("*.py"):
        assert not imports(ast.parse(file.read_text(encoding="utf-8"))) & scripts, file


def test_importing_a_module_imports_no_engine() -> None:
    modules = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in FILES]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    print(*[(name, engine) for engine in {ENGINES!r} & set(sys.modules)], end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def own_way_of_writing(node: ast.AST) -> bool:
    """Whether it is a call such as ``path.write_text(text)``, ``os.replace(a, b)`` or ``beside.replace(path)``."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
    name, arguments = node.func.attr, len(node.args) + len(node.keywords)
    return name in ("write_text", "write_bytes", "rename") or (
        name == "replace" and (of_os or arguments == 1)
    )


@pytest.mark.parametrize("file", FILES, ids=Path.as_posix)
def test_files_are_written_whole_by_one_helper(file: Path) -> None:
    if file.as_posix() not in RENAMERS:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert [node.lineno for node in ast.walk(tree) if own_way_of_writing(node)] == []  # type: ignore[attr-defined]
