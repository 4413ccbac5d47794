"""The backends: one class each, and nothing else asks for their names."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import pytest

import deploy_model
import inference_test
from swift_toolkit.inference.backend import BACKENDS, backend_problems

FILES = [Path("inference_test.py"), Path("deploy_model.py"), *sorted(Path("swift_toolkit").rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=Path.as_posix)
def test_nothing_compares_the_name_of_a_backend(file: Path) -> None:
    names = {"vllm", "sglang", "lmdeploy"}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            compared = {
                one.value
                for one in ast.walk(node)
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
            assert not compared & names, f"{file}:{node.lineno}"


def test_a_name_for_a_backend_that_ms_swift_has() -> None:
    assert not list(backend_problems("transformers")) and not list(backend_problems("auto"))
    (problem,) = backend_problems("transformer")
    assert str(problem) == '"--infer-backend" cannot be "transformer". Did you mean "transformers"?'


@pytest.mark.parametrize("script", [deploy_model, inference_test], ids=["deploy_model", "inference_test"])
def test_the_help_names_every_backend(script: ModuleType) -> None:
    action = script.make_parser()._option_string_actions["--infer-backend"]
    assert set(re.findall("[a-z]+", str(action.help))) >= BACKENDS.keys()


def test_each_backend_is_under_its_own_name() -> None:
    assert list(BACKENDS) == ["pt", "vllm", "sglang", "lmdeploy"]
    assert all(name == backend.name for name, backend in BACKENDS.items())
