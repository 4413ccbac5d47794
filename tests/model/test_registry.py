"""The registry read from source, held against the installed ms-swift's own, and what follows for local models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.request import load_config
from swift_toolkit.machine import msswift
from swift_toolkit.model import registry as model_registry
from swift_toolkit.model.registry import ModelType


@pytest.fixture(scope="module")
def registry() -> model_registry.Registry:
    return model_registry.registry(msswift.installed())


@pytest.mark.slow
def test_the_registry_is_ms_swifts_own(registry: model_registry.Registry) -> None:
    msswift.template_api()  # imports ms-swift in half the time
    if msswift.installed().line == "v4":
        from swift.model.model_meta import MODEL_MAPPING
        from swift.template.register import TEMPLATE_MAPPING
    else:
        from swift.llm.model.register import MODEL_MAPPING
        from swift.llm.template.register import TEMPLATE_MAPPING
    expected = {}
    for name, meta in MODEL_MAPPING.items():
        models: dict[str, str] = {}
        for group in meta.model_groups:
            for model in group.models:
                ids = [one for one in (model.ms_model_id, model.hf_model_id) if one]
                template = getattr(group, "template", None) or ""
                models |= {one.rsplit("/", 1)[-1].lower(): template for one in ids}
        architectures = tuple(one for one in meta.architectures if one != "null")
        template = "" if meta.template in (None, "dummy") else meta.template
        expected[name] = ModelType(name, architectures, template, models, meta.task_type or "")
    found = {
        name: replace(one, template="" if one.template == "dummy" else one.template)
        for name, one in registry.types.items()
    }
    assert found == expected
    assert registry.templates >= set(TEMPLATE_MAPPING)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct"),
        ("/models/Qwen2.5-7B-Instruct/", "qwen2.5-7b-instruct"),
        ("/cache/Qwen/Qwen2___5-7B-Instruct", "qwen2.5-7b-instruct"),
        ("/hf/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/a09a35", "qwen2.5-7b-instruct"),
    ],
)
def test_the_name_of_a_model(path: str, name: str) -> None:
    assert model_registry.model_name(path) == name


def told(**settings: Any) -> list[str]:
    config = load_config({"dataset": "a/b", **settings})
    return [str(problem) for problem in model_registry.model_type_problems(config)]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A directory of a Llama whose name says nothing."""
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return path


def test_an_architecture_of_several_types(llama: Path) -> None:
    (problem,) = told(model=str(llama))
    assert problem.startswith(
        '"model" is a LlamaForCausalLM, which belongs to several model types of ms-swift. Add "model_type": '
    )
    assert "llama" in problem
    assert problem.endswith(', and "template".')
    assert told(model=str(llama), model_type="llama", template="llama3") == []


@pytest.mark.parametrize("name", ["teacher_model", "reward_model"])
def test_another_model_of_an_architecture_of_several_types(name: str, llama: Path) -> None:
    given = {"model": "a/b", "task": "gkd" if name == "teacher_model" else "ppo", name: str(llama)}
    (problem,) = told(**given)
    assert problem.startswith(
        f'"{name}" is a LlamaForCausalLM, which belongs to several model types of ms-swift.'
    )
    assert f'Add "{name}_type": ' in problem
    assert told(**given, **{f"{name}_type": "llama"}) == []
    (llama / "args.json").write_text("{}")  # written by a training, and read by ms-swift
    assert told(**given) == []


@pytest.mark.swift4
def test_a_type_with_several_templates(llama: Path) -> None:
    (problem,) = told(model=str(llama), model_type="llama")
    assert problem.startswith(
        '"template" is needed: models of type "llama" have several templates. Add it: llama, '
    )


def test_a_known_name_says_both(llama: Path) -> None:
    known = llama.with_name("Meta-Llama-3-8B-Instruct")
    llama.rename(known)
    assert told(model=str(known)) == []


def test_what_training_left_says_both(llama: Path) -> None:
    (llama / "args.json").write_text("{}")
    assert told(model=str(llama)) == []


def test_misspelled_names() -> None:
    assert told(model="a/b", model_type="llamma", template="chatmll") == [
        '"model_type" is "llamma", which this ms-swift does not know. Did you mean "llama"?',
        '"template" is "chatmll", which this ms-swift does not know. Did you mean "chatml"?',
    ]


def test_plugins_may_register_more(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    module = {"v4": "swift.model", "v3": "swift.llm"}[msswift.installed().line]
    for source in (f"from {module} import register_model\nregister_model(META)", "import beside"):
        (tmp_path / "beside.py").touch()
        plugin.write_text(source)
        assert told(model="a/b", model_type="mine", external_plugins=str(plugin)) == []
    plugin.write_text("import json")
    (problem,) = told(model="a/b", model_type="mine", external_plugins=str(plugin))
    assert '"model_type" is "mine", which this ms-swift does not know' in problem


def test_a_model_of_a_hub_is_left_to_ms_swift() -> None:
    assert told(model="someone/something") == []
