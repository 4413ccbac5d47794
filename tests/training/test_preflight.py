"""What is looked at before anything heavy starts, beyond what the modules it asks are tested for."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.request import load_config
from swift_toolkit.machine.msswift import installed
from swift_toolkit.training import preflight

Usage = namedtuple("Usage", "total used free")


def problems(**settings: Any) -> list[str]:
    config = load_config({"model": "Qwen/Qwen2.5-7B-Instruct", "dataset": "a/b", **settings})
    return [str(problem) for problem in preflight.file_problems(config)]


def test_a_hub_model_is_left_to_ms_swift() -> None:
    assert problems() == []


def test_a_missing_model_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "llama-tiny").mkdir()
    assert problems(model=str(tmp_path / "llama-tniy")) == [
        f'"model" names the directory "{tmp_path}/llama-tniy", which does not exist. '
        f'Did you mean "{tmp_path}/llama-tiny"?'
    ]
    assert problems(model="SmolLM2") == [
        '"model" names the directory "SmolLM2", which does not exist. '
        "Check the path, or name a hub model as owner/name."
    ]


def test_hugging_face_has_models_without_an_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(model="gpt2", use_hf=True) == []
    assert problems(model="gpt2", use_hf=False) != []
    Path("my-model").mkdir()
    assert problems(model="my-modle", use_hf=True) == [
        '"model" names the directory "my-modle", which does not exist. Did you mean "my-model"?'
    ]


def test_an_unknown_builtin() -> None:
    assert problems(model="builtin/SmolLM3") == [
        '"model" "builtin/SmolLM3" is not an embedded model. Available: "builtin/SmolLM2-135M-Instruct".'
    ]


def test_files_and_checkpoints_that_settings_name(tmp_path: Path) -> None:
    assert problems(adapters=["./no/adapter"], resume_from_checkpoint=str(tmp_path)) == [
        '"adapters" names the directory "./no/adapter", which does not exist. Check the path.',
        f'"resume_from_checkpoint" cannot be used: "{tmp_path}" has no trainer_state.json to resume from. '
        "Name a checkpoint-N directory of a training run.",
    ]


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("")
    assert problems(output_dir=str(tmp_path / "output/mine")) == [
        f'"output_dir" "{tmp_path}/output" is a file, not a directory. Choose another path.'
    ]


def test_an_output_without_the_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: False)  # root may write anywhere
    assert problems(output_dir=str(tmp_path)) == [
        f'"output_dir" cannot write to "{tmp_path}": permission denied. Choose another directory, or change its permissions.'
    ]


def test_a_disk_too_full_for_the_checkpoints(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (tiny_model / "model.safetensors").stat().st_size
    free = 10 * weights  # three full checkpoints of weights and two optimizer states
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, free))

    fixed = {"model": str(tiny_model), "model_type": "llama", "template": "chatml", "dataset": "a/b"}

    def said(steps: int | None = 100, resumed: bool = False, **settings: Any) -> list[str]:
        config = load_config({**fixed, "output_dir": str(tmp_path), "save_steps": 10, **settings})
        return [str(problem) for problem in preflight.disk_problems(config, steps, resumed)]

    assert said() == []  # an adapter is small
    assert said(train_type="full") == [
        f'"output_dir" has {free / (1 << 30):.1f} GiB free, and 10 checkpoints take about '
        f'{30 * weights / (1 << 30):.1f} GiB. Free some space, choose another disk, or set "save_total_limit" to at most 2.'
    ]
    assert said(train_type="full", save_total_limit=2) == []
    assert said(train_type="full", save_total_limit=3) != []
    assert said(train_type="full", save_steps=0.5) == []  # twice in the run
    assert said(train_type="full", save_only_model=True) == []
    assert said(train_type="full", steps=None) == []  # only one is known of
    free = weights
    lora = load_config({**fixed, "output_dir": str(tmp_path), "save_steps": 10, "train_type": "lora"})
    assert list(preflight.disk_problems(lora, 1000, False)) == []  # an adapter's size is only estimated
    (warning,) = preflight.disk_warnings(lora, 1000, False)
    assert "and 100 checkpoints take about " in str(warning)
    free = 10 * weights
    assert said(train_type="full", resumed=True) == []  # the others are there already
    free = weights
    assert said(train_type="full", steps=5) == [
        f'"output_dir" has {free / (1 << 30):.1f} GiB free, and one checkpoint takes about '
        f"{3 * weights / (1 << 30):.1f} GiB. Free some space, or choose another disk."
    ]


def test_packed_and_hub_data_are_not_searched_for_media(tmp_path: Path) -> None:
    assert problems(preset="multimodal") == []
    (tmp_path / "a.jsonl").write_text('{"messages": [], "images": []}')
    assert problems(preset="multimodal", dataset=f"{tmp_path}/a.jsonl#10") == []


@pytest.mark.skipif(installed().line != "v4", reason="ms-swift 4 has the task")
def test_the_task_decision_needs_a_model_made_for_it() -> None:
    settings = {"task": "decision", "loss_type": "scoring"}
    (problem,) = problems(**settings)
    assert problem == (
        '"task" is "decision", which only models of the types jev, clef, omnijev, generic_decision support. '
        'Add "model_type" and "template", e.g. "generic_decision" for any text model.'
    )
    assert problems(**settings, model_type="generic_decision", template="generic_decision") == []
    assert problems(**settings, model="Cloudflare/clef") == []
    assert len(problems(**settings, model_type="llama")) == 1


@pytest.mark.skipif(installed().line != "v4", reason="ms-swift 4 has the task")
def test_the_task_decision_needs_rows_with_questions(tmp_path: Path) -> None:
    settings = {"task": "decision", "loss_type": "scoring", "model": "Cloudflare/clef"}
    row = {"messages": [{"role": "user", "content": "a=1"}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row))
    more = {
        "questions": ["1?"],
        "kinds": ["noul"],
        "options": [["false", "true"]],
        "target_probs": [[0.0, 1.0]],
    }
    (tmp_path / "good.jsonl").write_text(json.dumps(row | more))
    reports = [
        preflight.check_data(load_config({**settings, "dataset": str(tmp_path / name)}))
        for name in ("chat.jsonl", "good.jsonl")
    ]
    assert [str(problem) for problem in reports[0].problems] == [
        f'{tmp_path}/chat.jsonl: no column contains the questions of the task "decision". '
        'Add "questions", "kinds", "options" and "target_probs"; see ms-swift\'s ScoringPreprocessor.'
    ]
    assert (reports[1].problems, reports[1].files[0].unused) == ([], [])


def test_an_upload_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODELSCOPE_API_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "USE_HF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert problems(push_to_hub=False) == []
    assert problems(push_to_hub=True) == [
        '"push_to_hub" needs a token of ModelScope. Set the environment variable MODELSCOPE_API_TOKEN.'
    ]
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "given")
    assert problems(push_to_hub=True) == []
    (of_hf,) = problems(push_to_hub=True, use_hf=True)
    assert of_hf.startswith('"push_to_hub" needs a token of Hugging Face.')
    (tmp_path / "token").write_text("given")
    assert problems(push_to_hub=True, use_hf=True) == []
