"""What deploy_model.py decides and refuses before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import deploy_model
from deploy_model import ModelDeployer
from swift_toolkit.config import rules
from swift_toolkit.problems import RequestError
from swift_toolkit.serving import access
from tests.adapters import make_adapter

KEY = "correct-horse-battery"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWIFT_API_KEY", raising=False)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_model, tmp_path_factory.mktemp("one") / "v0-20260101-000000/checkpoint-4", 1)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    status = deploy_model.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def plan(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    status, out, err = run(capsys, *words, "--port", 0, "--dry-run", "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_bfloat16_on_a_cpu_without_its_arithmetic(
    adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "cpu_computes_bfloat16", lambda: False)
    words = ["--checkpoint", adapter, "--port", 0, "--dry-run", "--torch_dtype", "bfloat16"]
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "is bfloat16, which takes about 18 times as long as float32 on this CPU. Use float32." in out


def refusals(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    status, _, err = run(capsys, *words, "--dry-run")
    assert status == 2
    return err


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=2))
    return path


# --- what is served -----------------------------------------------------------------------------------------


def test_an_adapter_is_served_beside_its_base(
    capsys: pytest.CaptureFixture[str], adapter: Path, tiny_model: Path
) -> None:
    found = plan(capsys, "--checkpoint", adapter.parent.parent)
    assert found["type"] == "lora"
    names = [(model["name"], model["kind"]) for model in found["models"]]
    assert names == [("tiny-llama", "base"), ("tiny-llama-lora", "lora")]
    assert found["models"][1]["system"] == "You are a helpful assistant."
    arguments = found["arguments"]
    assert f"--adapters=tiny-llama-lora={adapter}" in arguments
    assert f"--model={tiny_model}" in arguments
    assert {"--host=127.0.0.1", "--served_model_name=tiny-llama", "--verbose=false"} <= set(arguments)


@pytest.mark.parametrize(
    ("directory", "name"), [("_tuned", "tuned"), ("Qwen 2.5 (new)", "Qwen-2.5-new"), ("模型", "model")]
)
def test_a_directory_whose_name_is_no_name_of_a_model(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path, directory: str, name: str
) -> None:
    base = tmp_path / directory
    shutil.copytree(tiny_model, base)
    words = ("--model_type", "llama", "--template", "chatml")
    assert [model["name"] for model in plan(capsys, "--checkpoint", base, *words)["models"]] == [name]
    adapter = make_adapter(tiny_model, tmp_path / "a", 1)
    found = plan(capsys, "--checkpoint", adapter, "--base-model", base)
    assert [model["name"] for model in found["models"]] == [name, f"{name}-lora"]


@pytest.mark.parametrize("task", ["seq_cls", "reranker"])
def test_a_base_without_the_head_of_its_adapter_is_not_offered(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path, task: str
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "a", 1, task_type=task, num_labels=2)
    found = plan(capsys, "--checkpoint", adapter)
    assert [(model["name"], model["offered"]) for model in found["models"]] == [
        ("tiny-llama", False),
        ("tiny-llama-lora", True),
    ]
    classifier = tmp_path / "classifier"
    shutil.copytree(tiny_model, classifier)
    config = json.loads((classifier / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (classifier / "config.json").write_text(json.dumps(config))
    found = plan(capsys, "--checkpoint", adapter, "--base-model", classifier)
    assert found["models"][0]["offered"]


def test_the_served_name_is_the_adapters(capsys: pytest.CaptureFixture[str], adapter: Path) -> None:
    found = plan(capsys, "--checkpoint", adapter, "--served-model-name", "v1.5")
    assert [model["name"] for model in found["models"]] == ["tiny-llama", "v1.5"]


def test_a_full_model_has_one_name(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    found = plan(capsys, "--checkpoint", tiny_model, "--model_type", "llama", "--template", "chatml")
    assert (found["type"], [model["name"] for model in found["models"]]) == ("full", ["tiny-llama"])
    assert not any(word.startswith("--adapters") for word in found["arguments"])


def test_the_type_can_be_insisted_on(
    capsys: pytest.CaptureFixture[str], adapter: Path, tiny_model: Path
) -> None:
    assert plan(capsys, "--checkpoint", adapter, "--type", "lora")["type"] == "lora"
    assert refusals(capsys, "--checkpoint", adapter, "--port", 0, "--type", "full") == [
        f'"--type" is "full", but {adapter} holds an adapter. Use --type lora, or omit it.'
    ]
    assert refusals(capsys, "--checkpoint", tiny_model, "--port", 0, "--type", "lora") == [
        f'"--type" is "lora", but {tiny_model} holds a full model. Use --type full, or omit it.'
    ]
    assert refusals(capsys, "--checkpoint", adapter, "--port", 0, "--type", "lroa") == [
        '"--type" cannot be "lroa". Did you mean "lora"?'
    ]
    assert refusals(capsys, "--port", 0, "--type", "multi-lora") == [
        '"--type" is "multi-lora" without a list of adapters. '
        'Give a file with {"name": "adapter directory", ...}: --multi-lora-config FILE'
    ]


def test_several_adapters_on_one_base(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    one, two = (make_adapter(tiny_model, tmp_path / name, seed) for seed, name in enumerate(("a", "b")))
    file = write(tmp_path / "adapters.json", {"first": str(one), "second": str(two)})
    found = plan(capsys, "--multi-lora-config", file, "--served-model-name", "base")
    assert found["type"] == "multi-lora"
    assert [model["name"] for model in found["models"]] == ["base", "first", "second"]
    where = found["arguments"].index("--adapters")
    assert found["arguments"][where + 1 : where + 3] == [f"first={one}", f"second={two}"]


def test_every_mistake_of_a_list_of_adapters_is_told(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    make_adapter(tiny_model, tmp_path / "good", 1)
    broken = make_adapter(tiny_model, tmp_path / "broken", 2)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    content = {
        "a": str(tmp_path / "good"),
        "b": str(broken),
        "c": str(tmp_path / "gone"),
        "d": str(tiny_model),
    }
    file = write(tmp_path / "adapters.json", {**content, "e": 5})
    size = weights.stat().st_size
    said = refusals(capsys, "--multi-lora-config", file, "--port", 0)
    assert said == [
        f'{file}:3: "b" cannot be served: {weights} is cut short: it is {size:,} bytes, '
        f"its header says {size + 100:,}. Download it again.",
        f'{file}:4: "c" cannot be served: {tmp_path}/gone does not exist. {tmp_path} holds adapters.json, broken, good.',
        f'{file}:5: "d" is a full model, not an adapter. Serve it separately.',
        f'{file}:6: "e" must be the directory of an adapter.',
    ]


def test_a_list_of_adapters_in_the_wrong_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, content, said in (
        ("a.json", '["a"]', "holds a list, not an object"),
        ("a.yaml", "- a", "holds a list, not settings"),
        ("b.yaml", "# nothing", "is empty"),
        ("b.json", "{}", "does not list any adapter"),
    ):
        (tmp_path / name).write_text(content)
        assert refusals(capsys, "--multi-lora-config", tmp_path / name, "--port", 0) == [
            f'{tmp_path}/{name}: {said}. Write {{"name": "adapter directory", ...}}.'
        ]


def test_adapters_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    one = make_adapter(tiny_model, tmp_path / "a", 1)
    two = make_adapter(tiny_model, tmp_path / "b", 2, template="llama3")
    file = write(tmp_path / "adapters.json", {"tiny-llama": str(one), "two words": str(two)})
    assert refusals(capsys, "--multi-lora-config", file, "--port", 0) == [
        '"two words" is not a valid model name. '
        "Use at most 128 letters, digits and . _ : / -, starting with a letter or digit.",
        '"tiny-llama" is the name of both the base model and an adapter. Choose another name for the adapter.',
        "The adapters differ in their template: chatml for tiny-llama, llama3 for two words. Serve them separately.",
    ]


def test_a_path_that_ms_swift_would_cut(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    path = make_adapter(tiny_model, tmp_path / "lr=1e-4", 1)
    assert refusals(capsys, "--checkpoint", path, "--port", 0) == [
        f'{path} has a "=" in its path, which ms-swift reads as the end of the name. Rename the directory.'
    ]


def test_the_same_in_python(adapter: Path) -> None:
    deployer = ModelDeployer(adapter, port=0, max_new_tokens=8, served_model_name="mine")
    assert [model.name for model in deployer.deployment.models] == ["tiny-llama", "mine"]
    with pytest.raises(RequestError, match=r'"prot" is not a setting\. Did you mean "port"\?'):
        ModelDeployer(adapter, prot=0)


# --- where it listens and who may come in -------------------------------------------------------------------


def test_a_busy_port_is_known_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], adapter: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
        assert refusals(capsys, "--checkpoint", adapter, "--port", port) == [
            f'"--port" is {port}, which {name} (process {os.getpid()}) already uses. Choose another.'
        ]


def test_an_address_that_others_reach_needs_a_key(
    capsys: pytest.CaptureFixture[str], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--checkpoint", adapter, "--host", "0.0.0.0", "--port", 0)
    assert refusals(capsys, *words) == [
        '"--host" is "0.0.0.0", which other machines can reach, but there is no key. '
        "Set SWIFT_API_KEY or --api-key-file, or allow access without a key with --no-auth."
    ]
    assert plan(capsys, *words[:4], "--no-auth")["authentication"] is False
    monkeypatch.setenv("SWIFT_API_KEY", KEY)
    found = plan(capsys, *words[:4])
    assert found["authentication"] is True
    assert KEY not in json.dumps(found)
    assert refusals(capsys, *words, "--no-auth") == [
        '"--no-auth" cannot be used with a key. Remove it, or unset SWIFT_API_KEY and --api-key-file.'
    ]


def test_the_key_never_stands_on_the_command_line(capsys: pytest.CaptureFixture[str], adapter: Path) -> None:
    assert refusals(capsys, "--checkpoint", adapter, "--port", 0, "--api-key", KEY) == [
        '"--api_key" is a secret that others could read there. '
        "Set the environment variable SWIFT_API_KEY, or use --api-key-file."
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "does not contain a valid key. A key has at least 8 printable ASCII characters and no spaces."),
        (
            "two words here",
            "does not contain a valid key. A key has at least 8 printable ASCII characters and no spaces.",
        ),
        (None, "names {file}, which cannot be read: No such file or directory."),
    ],
)
def test_a_key_file_that_holds_no_key(
    capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    words = ("--checkpoint", adapter, "--port", 0, "--api-key-file", file)
    assert refusals(capsys, *words) == [f'"--api-key-file" {said.format(file=file)}']


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return certificate, key


def test_certificates_are_checked(capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    _, other = make_certificate(tmp_path, "two")
    words = ("--checkpoint", adapter)
    found = plan(capsys, *words, "--ssl-certfile", certificate, "--ssl-keyfile", key)
    assert found["url"].startswith("https://127.0.0.1:")
    words = (*words, "--port", 0)
    assert refusals(capsys, *words, "--ssl-certfile", certificate) == [
        '"--ssl_certfile" needs "ssl_keyfile". Give both, or neither.'
    ]
    assert refusals(capsys, *words, "--ssl-certfile", certificate, "--ssl-keyfile", other) == [
        f'"--ssl_keyfile" is not the key of the certificate in {certificate}.'
    ]
    assert refusals(capsys, *words, "--ssl-certfile", certificate, "--ssl-keyfile", tmp_path / "x") == [
        f'"--ssl_keyfile" names the file "{tmp_path}/x", which does not exist. Check the path.'
    ]


def test_all_mistakes_at_once(capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path) -> None:
    words = ("--checkpoint", tmp_path / "gone", "--prot", 1, "--port", 70000, "--max-tokens-limit", 0)
    said = refusals(capsys, *words, "--verbose-log", "--hub_token", "s3cret", "--allow-runtime-lora")
    assert said == [
        '"--prot" is not a setting. Did you mean "--port"?',
        '"--verbose_log" is not a setting. Did you mean "--verbose"?',
        '"--hub_token" is a secret, and ms-swift writes it in plain text to its log and args.json. '
        "Remove it and set the environment variable MODELSCOPE_API_TOKEN or HF_TOKEN.",
        '"--max-tokens-limit" must be at least 1, not 0.',
        '"--allow-runtime-lora" needs --adapter-dir. '
        "Name the directories from which adapters may be loaded: --adapter-dir DIR",
        f"{tmp_path}/gone does not exist. {tmp_path} holds nothing.",
        '"--allow-runtime-lora" needs a key. Set SWIFT_API_KEY or --api-key-file.',
        '"--port" is 70000; it must be from 0 (any free port) to 65535.',
    ]


def test_a_limit_that_is_no_number(capsys: pytest.CaptureFixture[str], adapter: Path) -> None:
    assert refusals(capsys, "--checkpoint", adapter, "--drain-seconds", "soon") == [
        '"--drain-seconds" must be a whole number, not "soon".'
    ]
    assert refusals(capsys, "--checkpoint", adapter, "--max-body-mb", "1G") == [
        '"--max-body-mb" must be a number, not "1G".'
    ]


def test_backends_that_are_not_there(capsys: pytest.CaptureFixture[str], adapter: Path) -> None:
    assert refusals(capsys, "--checkpoint", adapter, "--port", 0, "--infer-backend", "lmdeploy") == [
        '"--infer-backend" is "lmdeploy", which is not installed. Run: pip install lmdeploy'
    ]


def test_a_config_file_says_the_same(
    capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "deploy.json", {"adapters": [str(adapter)], "port": 0, "max_batch_size": 3})
    found = plan(capsys, "--config", file)
    assert "--max_batch_size=3" in found["arguments"]
    assert found["sources"]["max_batch_size"] == f"{file}:6"


def test_checking_imports_nothing_heavy(adapter: Path) -> None:
    script = (
        "import sys, deploy_model\n"
        f"status = deploy_model.main(['--checkpoint', {str(adapter)!r}, '--port', '0', '--dry-run'])\n"
        "heavy = {'torch', 'transformers', 'swift', 'fastapi', 'uvicorn', 'peft'} & set(sys.modules)\n"
        "sys.exit(status or bool(heavy))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_a_comparison_is_checked_and_a_dry_run_starts_nothing(
    capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path
) -> None:
    assert refusals(capsys, "--checkpoint", tmp_path / "none", "--against", "0") == [
        '"--against" is "0", which is not the URL of a server. Write it as http://127.0.0.1:8000/v1',
        f"{tmp_path / 'none'} does not exist. {tmp_path} holds nothing.",
    ]
    words = ["--checkpoint", str(adapter), "--against", "http://127.0.0.1:9/v1", "--dry-run", "--json"]
    assert deploy_model.main(words) == 0
    assert json.loads(capsys.readouterr().out)["server"] == "http://127.0.0.1:9/v1"


def test_a_wrong_base_does_not_hide_a_wrong_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = refusals(capsys, "--checkpoint", tmp_path / "none", "--base-model", "./no/base", "--lora_rnak", 8)
    assert [line.partition(" does not exist")[0] for line in lines if "does not exist" in line] == [
        str(tmp_path / "none"),
        '"--base-model" cannot be used: no/base',
    ]
    assert any("lora_rnak" in line for line in lines)


def test_two_adapters_of_one_name(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    one, two = (make_adapter(tiny_model, tmp_path / name, seed) for seed, name in enumerate("ab"))
    assert refusals(capsys, "--adapters", f"x={one}", f"x={two}", "--port", 0) == [
        '"--adapters" has several adapters with the name x. Choose another name: clients request an adapter by its name.'
    ]


def test_a_key_from_a_pipe(
    capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(access, "PIPE_SECONDS", 0.2)
    words = ("--checkpoint", adapter, "--api-key-file", pipe, "--port", 0)
    assert refusals(capsys, *words) == [
        f'"--api-key-file" names {pipe}, which cannot be read: nothing was written into this pipe within 0.2 s.'
    ]
    both = os.open(pipe, os.O_RDWR)
    os.write(both, b"a-key-from-a-program\n")
    monkeypatch.setattr(access, "PIPE_SECONDS", 10)
    threading.Timer(0.2, os.close, [both]).start()
    status, _, err = run(capsys, *words, "--dry-run")
    assert (status, err) == (0, [])
