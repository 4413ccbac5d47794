"""Code of a checkpoint never runs without --trust-code, and is not needed where transformers has its own."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import deploy_model
import finetune_trainer
import inference_test
from tests.adapters import make_adapter

ROOT = Path(__file__).resolve().parents[2]
FINE = ["--dataset", str(ROOT / "data/self_cognition.jsonl"), "--train_type", "lora"]
NAMES = ["--model_type", "llama", "--template", "chatml"]
EVIL = """
import os, pathlib
pathlib.Path(os.environ["RAN"]).touch()
from transformers import LlamaConfig
class Config(LlamaConfig):
    model_type = "{name}"
"""


def brings_code(model: Path, path: Path, file: str, name: str, **more: object) -> Path:
    """A copy of a model whose ``file`` names Python code."""
    shutil.copytree(model, path)
    content = json.loads((path / file).read_text()) if (path / file).exists() else {}
    content |= {"auto_map": {name: "evil.Config"}, **more}
    (path / file).write_text(json.dumps(content))
    (path / "evil.py").write_text(EVIL.format(name=content.get("model_type", "llama")))
    return path


def refused(capsys: pytest.CaptureFixture[str], command: str, model: Path, *words: str) -> str:
    main, given = {
        "train": (finetune_trainer.main, ["--model", str(model), *NAMES, *FINE, *words]),
        "ask": (inference_test.main, ["--checkpoint", str(model), *NAMES, "--question", "Hi", *words]),
        "serve": (deploy_model.main, ["--checkpoint", str(model), *NAMES, "--port", "0", *words]),
    }[command]
    assert main(given) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "ask", "serve"])
@pytest.mark.parametrize(
    ("file", "name", "more"),
    [
        ("config.json", "AutoConfig", {"model_type": "unheard_of"}),
        ("config.json", "AutoModelForCausalLM", {"architectures": ["UnheardOfForCausalLM"]}),
        ("tokenizer_config.json", "AutoTokenizer", {"tokenizer_class": "UnheardOfTokenizer"}),
        ("processor_config.json", "AutoProcessor", {"processor_class": "UnheardOfProcessor"}),
        ("preprocessor_config.json", "AutoImageProcessor", {}),
        ("generation_config.json", "AutoConfig", {}),
    ],
)
def test_code_that_is_needed_is_refused_at_once(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    file: str,
    name: str,
    more: dict,
) -> None:
    model = brings_code(tiny_model, tmp_path / "model", file, name, **more)
    said = refused(capsys, command, model)
    assert (
        f'{model}/{file}: "auto_map" names Python code that is run when the model is loaded: evil.py. '
        "Read that code; if you trust it, add --trust-code." in said
    )


def test_a_preview_is_refused_too(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = brings_code(tiny_model, tmp_path / "model", "config.json", "AutoConfig", model_type="unheard_of")
    assert "evil.py" in refused(capsys, "train", model, "--preview", "1")


@pytest.mark.parametrize("command", ["ask", "serve"])
def test_code_of_the_base_of_an_adapter(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    base = brings_code(tiny_model, tmp_path / "base", "config.json", "AutoConfig", model_type="unheard_of")
    path = make_adapter(base, tmp_path / "adapter", 1)
    assert f"{base}/config.json" in refused(capsys, command, path)


def test_the_plan_names_the_files(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = brings_code(tiny_model, tmp_path / "model", "config.json", "AutoConfig")
    words = ["--checkpoint", str(model), *NAMES, "--question", "Hi", "--dry-run"]
    assert inference_test.main(words) == 0
    assert "does not run evil.py: transformers has its own code for this model" in capsys.readouterr().out
    assert inference_test.main([*words, "--trust-code"]) == 0
    assert "runs evil.py" in capsys.readouterr().out
    assert finetune_trainer.main(["--model", str(model), *NAMES, *FINE, "--dry-run"]) == 0
    assert "does not run evil.py" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True])
def test_a_model_that_transformers_knows_is_asked_without_its_code(
    tiny_model: Path, tmp_path: Path, trusted: bool
) -> None:
    model = brings_code(tiny_model, tmp_path / "model", "config.json", "AutoConfig")
    words = ["--checkpoint", str(model), *NAMES, "--question", "Hi", "--max-new-tokens", "2"]
    words += ["--infer-backend", "pt", *(["--trust-code"] if trusted else [])]
    environment = {**os.environ, "RAN": str(tmp_path / "ran"), "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, str(ROOT / "inference_test.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert trusted or done.returncode == 0, done.stderr
    assert (tmp_path / "ran").exists() == trusted


def test_transformers_runs_no_code_that_nobody_trusts(tiny_model: Path, tmp_path: Path) -> None:
    """What cannot be seen before it is fetched, such as a model on a hub, fails where it is loaded."""
    model = brings_code(tiny_model, tmp_path / "model", "config.json", "AutoConfig", model_type="unheard_of")
    code = """
from swift_toolkit.machine.msswift import refuse_remote_code
refuse_remote_code()
from transformers import AutoConfig
try:
    AutoConfig.from_pretrained({model!r}, trust_remote_code=True)
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "RAN": str(tmp_path / "ran"), "HF_HOME": str(tmp_path / "hf")}
    environment.pop("SWIFT_TOOLKIT_TRUST_CODE", None)
    command = [sys.executable, "-c", code.format(model=str(model))]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{model} holds Python code that must run to load it" in done.stdout
    assert "--trust-code" in done.stdout and not (tmp_path / "ran").exists()


class _Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("true",)


@pytest.mark.parametrize("command", ["train", "ask", "serve"])
def test_weights_that_are_a_pickle_with_code(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").unlink()
    with zipfile.ZipFile(model / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Evil(), protocol=2))
    said = refused(capsys, command, model)
    assert f"{model}/pytorch_model.bin would run code when it is read: posix.system" in said
