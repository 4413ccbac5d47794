"""A real run with a secret of every kind around it: none is in a file of the run or on the screen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import finetune_trainer

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
export MODELSCOPE_API_TOKEN=ms-planted-1
export WANDB_API_KEY=planted-2-of-wandb
MY_PASSWORD=planted-3-word
huggingface-cli login --token planted-4
wandb login $WANDB_API_KEY
notify-me $MY_PASSWORD
curl -H "Authorization: Bearer planted-5" https://me:planted-6@127.0.0.1/x?token=planted-7
SWANLAB_API_KEY=planted-8 swift sft --model {model} --model_type llama --template chatml \\
  --dataset {data} --train_type lora --max_steps 2 --per_device_train_batch_size 2 --hub_token your_token
"""


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_secret(tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(SCRIPT.format(model=tiny_model, data=ROOT / "data/self_cognition.jsonl"))
    output = tmp_path / "output"
    words = ["--from-script", str(script), "--output-dir", str(output), "--save-steps", "1"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_TOKEN": "hf_planted9planted9planted9planted9",
        "OPENAI_API_KEY": "planted-10",
        "MODELSCOPE_DOMAIN": "127.0.0.1:9",  # nobody listens: the login with the token fails, as without network
    }
    command = [sys.executable, str(ROOT / "finetune_trainer.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (log,) = output.glob("*/train.log")
    assert "The login at ModelScope failed" in log.read_text()
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {"result.json", "train.log", "args.json"} <= {path.name for path in files}
    for path in files:
        assert b"planted" not in path.read_bytes(), path
    assert "planted" not in done.stdout + done.stderr
    skipped = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert skipped == [
        "skipped: line 5: huggingface-cli login --token ***",
        "skipped: line 6: wandb login ***",
        "skipped: line 7: notify-me ***",
        "skipped: line 8: curl -H Authorization: Bearer ***",
    ]


def test_a_word_of_a_script_that_is_refused_shows_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.sh"
    script.write_text(
        "MY_PASSWORD=planted-3-word\nswift sft stray-$MY_PASSWORD --model a/b --dataset a.jsonl\n"
    )
    assert finetune_trainer.main(["--from-script", str(script)]) == 2
    shown = capsys.readouterr()
    assert '"stray-***" belongs to no setting' in shown.err
    assert "planted" not in shown.out + shown.err


@pytest.mark.parametrize(
    "settings",
    [
        {"hub_token": "planted-1"},
        {"swanlab_webhook_url": "https://planted/2"},
        {"model_kwargs": {"token": "planted-3"}},
        {"model_kwargs": '{"HF_TOKEN": "planted-4"}'},
        {"dataset": ["https://me:planted-5@host/a.jsonl"]},
        {"vllm_server_base_url": ["http://me:planted-6@host:8000"]},
        {"system": "https://host/x?api_key=planted-7"},
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_secret_in_a_setting_is_refused_and_not_shown(
    settings: dict[str, object], as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"model": "a/b", "dataset": "c/d", **settings}))
    words = [
        "--config",
        str(config),
        "--output-dir",
        str(tmp_path / "output"),
        *(["--json"] if as_json else []),
    ]
    assert finetune_trainer.main(words) == 2
    said = capsys.readouterr()
    assert "secret" in said.err
    assert "planted" not in said.err + said.out
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
