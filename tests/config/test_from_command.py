"""Lines and scripts that start ms-swift, given to the scripts that test and serve."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deploy_model
import inference_test
from swift_toolkit.machine.msswift import installed
from tests.adapters import make_adapter

PYTORCH = "transformers" if installed().line == "v4" else "pt"
BACKEND = [f'infer_backend "pt" → infer_backend "{PYTORCH}"'] if PYTORCH != "pt" else []
QUESTIONS = "data/quickstart_questions.json"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two adapters, ``one`` and ``two``, on the tiny model."""
    monkeypatch.delenv("SWIFT_API_KEY", raising=False)
    for seed, name in enumerate(("one", "two")):
        make_adapter(tiny_model, tmp_path / name, seed)
    return tmp_path


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, list[str]]]:
    """Runs a script with --dry-run --json; what it would do and what it said."""

    def run(main: Callable[[list[str]], int], *words: str) -> tuple[Any, list[str]]:
        assert main([*words, "--dry-run", "--json"]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err.splitlines()

    return run


def test_infer_asks_what_the_line_names(folder: Path, planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_PIXELS", raising=False)
    line = (
        f"MAX_PIXELS=1003520 swift infer --adapters {folder}/one --infer_backend pt --stream true "
        f"--max_new_tokens 32 --do_sample false --load_args true --val_dataset {QUESTIONS} "
        f"--result_path out.jsonl 2>&1 | tee infer.log"
    )
    plan, said = planned(inference_test.main, "--from-command", line)
    assert plan["checkpoint"] == f"{folder}/one" and plan["questions"] == QUESTIONS
    assert plan["generation"] == {"max_tokens": 32, "temperature": 0, "seed": 42}
    assert said == [
        "skipped: line 1: tee infer.log",
        *BACKEND,
        'do_sample "false" → temperature 0',
        "skipped: stream: single questions and chats stream, batches do not.",
        "skipped: load_args: the checkpoint's own settings are always read.",
        "result_path → --output out.json",
    ]
    import os

    assert os.environ.pop("MAX_PIXELS") == "1003520"


def test_flags_win_over_the_line(folder: Path, planned: Any) -> None:
    line = f"swift infer --adapters {folder}/one --val_dataset {QUESTIONS} --max_new_tokens 32 --top_k 5"
    words = ("--max-new-tokens", "8", "--questions-file", "test_questions.json", "--quiet-notices")
    plan, said = planned(inference_test.main, "--from-command", line, *words)
    assert plan["generation"] == {"max_tokens": 8, "temperature": 0, "top_k": 5, "seed": 42}
    assert plan["questions"] == "test_questions.json" and said == []


def test_infer_of_older_generations(folder: Path, planned: Any, tmp_path: Path) -> None:
    script = tmp_path / "infer.sh"
    script.write_text(
        f"# ms-swift 2\nswift infer \\\n  --ckpt_dir {folder}/one \\\n  --load_dataset_config true --max_length 512\n"
    )
    plan, said = planned(inference_test.main, "--from-script", str(script), "--question", "Who are you?")
    assert plan["checkpoint"] == f"{folder}/one"
    assert "ckpt_dir → adapters" in said
    assert "load_dataset_config → load_data_args" in said


def test_infer_without_data_is_a_chat(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inference_test.main(["--from-command", f"swift infer --adapters {folder}/one"]) == 2
    assert capsys.readouterr().err == (
        '"--mode" interactive needs a terminal. Ask one question with --question, or many with --questions-file.\n'
    )


def test_deploy_serves_what_the_line_names(folder: Path, tiny_model: Path, planned: Any) -> None:
    line = (
        f"swift deploy --model {tiny_model} --adapters a={folder}/one b={folder}/two --infer_backend pt "
        "--temperature 0.3 --port 0 --stream true --verbose false --result_path log.jsonl"
    )
    plan, said = planned(deploy_model.main, "--from-command", line)
    assert plan["type"] == "multi-lora"
    assert [(one["name"], one["path"]) for one in plan["models"][1:]] == [
        ("a", f"{folder}/one"),
        ("b", f"{folder}/two"),
    ]
    assert "--temperature=0.3" in plan["arguments"] and "--port=0" in plan["arguments"]
    assert said == [
        *BACKEND,
        "skipped: result_path.",
        "skipped: stream.",
        "skipped: verbose. Use --log-requests.",
    ]


def test_deploy_of_older_generations(folder: Path, planned: Any) -> None:
    line = f"swift deploy --ckpt_dir {folder}/one --port 0 --max_num_seqs 4 --gpu_memory_utilization 0.5"
    plan, said = planned(deploy_model.main, "--from-command", line)
    assert [model["kind"] for model in plan["models"]] == ["base", "lora"]
    assert "--vllm_gpu_memory_utilization=0.5" in plan["arguments"]
    assert "gpu_memory_utilization → vllm_gpu_memory_utilization" in said


@pytest.mark.parametrize("script", [inference_test, deploy_model])
def test_a_model_on_a_hub_is_left_to_ms_swift(script: Any, planned: Any) -> None:
    verb = "infer" if script is inference_test else "deploy"
    line = f"swift {verb} --model nobody/No-Such-7B --port 0 --val_dataset {QUESTIONS}"
    line = line.replace("--port 0 ", "") if verb == "infer" else line
    plan, _ = planned(script.main, "--from-command", line)
    assert "--model=nobody/No-Such-7B" in plan["arguments"]


@pytest.mark.parametrize("script", [inference_test, deploy_model])
def test_a_checkpoint_is_no_model_of_a_hub(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--model", "old/checkpoint-20-merged", "--dry-run"]) == 2
    assert "old/checkpoint-20-merged does not exist." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (
            inference_test,
            ["--from-command", "swift sft --model a"],
            '"swift sft --model a" is a command for another script. Pass it to finetune_trainer.py.',
        ),
        (
            deploy_model,
            ["--from-command", "python -m swift.cli.infer --model a"],
            '"python -m swift.cli.infer --model a" is a command for another script. Pass it to inference_test.py.',
        ),
        (
            deploy_model,
            ["--from-command", "swift app --model a"],
            '"swift app --model a" is a command that cannot be run here. Here: deploy_model.py --checkpoint DIR --chat serves a chat page.',
        ),
        (
            inference_test,
            [
                "--from-command",
                "python -m swift.cli.export --ckpt_dir a-merged --quant_seqlen 64 --use_merge_kit true",
            ],
            '"python -m swift.cli.export --ckpt_dir a-merged..." is a command that cannot be run here. '
            f"With ms-swift {installed().version}: swift export --model a-merged --max_length 64 "
            "(use_merge_kit has no successor in ms-swift and is skipped.)",
        ),
        (
            deploy_model,
            ["--from-command", "swift deploy --model a --api_key secret"],
            '"--api_key" is a secret that others could read there. '
            "Set the environment variable SWIFT_API_KEY, or use --api-key-file.",
        ),
        (
            deploy_model,
            ["--from-command", "swift deploy --adapters a=x y"],
            '"--adapters" has several adapters, but not all of them have a name. '
            "Write name=DIR for each: clients request an adapter by its name.",
        ),
        (
            inference_test,
            ["--from-command", "swift infer --adapters x y"],
            '"--adapters" names several adapters. Name only one.',
        ),
        (
            inference_test,
            ["--from-script", "no.sh", "--config", "a.json"],
            "--config and --from-script cannot be used together. Keep one of them.",
        ),
    ],
)
def test_what_cannot_be_run(
    script: Any, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(words) == 2
    assert message in capsys.readouterr().err.splitlines()
