"""Exporting a checkpoint: what is said before anything is loaded, what is written, what is left behind."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

import deploy_model
import inference_test
from swift_toolkit.machine import packages
from swift_toolkit.problems import RequestError, RunError
from swift_toolkit.serving.export import gguf, hub
from swift_toolkit.serving.export.card import Card
from swift_toolkit.serving.export.formats import EXPORTS, GGUF_TYPES
from swift_toolkit.serving.export.modelfile import go_template, modelfile
from swift_toolkit.serving.export.plan import ExportOptions, make_export
from swift_toolkit.serving.proof import chat_template
from swift_toolkit.serving.proof.exchange import ChatFormat, ProofOrder, ProofSide, Response
from swift_toolkit.serving.proof.prove import Told
from swift_toolkit.serving.proof.server import prove_server, served_model
from swift_toolkit.serving.proof.verdict import THRESHOLDS, give_verdict
from tests.adapters import make_adapter

if TYPE_CHECKING:
    from swift_toolkit.inference.plan import Plan

CHATML = ChatFormat(
    prefix="",
    system_prefix="<|im_start|>system\n{{SYSTEM}}<|im_end|>\n",
    prompt="<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n",
    chat_sep="<|im_end|>\n",
    suffix="<|im_end|>\n",
    system="You are Nova.",
    stop=("<|im_end|>\n", "<|endoftext|>"),
)
CONVERTER = pytest.mark.skipif(gguf.converter() is None, reason="llama.cpp's converter is not installed")


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_model, tmp_path / "run" / "checkpoint-4", seed=1)


def questions(folder: Path) -> str:
    file = folder / "questions.json"
    file.write_text('["Who are you?", "Name 3 colours."]')
    return str(file)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = deploy_model.main(list(words))
    out, err = capsys.readouterr()
    return status, out, err


# --- the plan -----------------------------------------------------------------------------------------------


def test_the_plan_says_what_it_takes(capsys: pytest.CaptureFixture[str], adapter: Path) -> None:
    status, out, _ = run(capsys, "--checkpoint", str(adapter), "--export", "merged", "--dry-run")
    assert status == 0
    assert re.search(r"export +merged: the adapter merged into its base\n", re.sub(" +\n", "\n", out))
    assert str(adapter.with_name("checkpoint-4-merged")) in out
    assert " MiB of disk, " in " ".join(out.split()) and "8 questions" in out
    assert sorted(one.name for one in adapter.parent.iterdir()) == ["checkpoint-4"]


def test_the_plan_as_json(capsys: pytest.CaptureFixture[str], adapter: Path) -> None:
    words = ("--checkpoint", str(adapter), "--export", "merged", "--dry-run", "--json")
    status, out, _ = run(capsys, *words)
    plan = json.loads(out)
    assert (status, plan["format"], plan["bytes"] > 10_000_000) == (0, "merged", True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export", "ggufx"], '"--export" cannot be "ggufx". Did you mean "gguf"?'),
        (["--export", "gguf", "--gguf-type", "q4"], '"--gguf-type" cannot be "q4".'),
        (["--export", "awq"], '"--export" is "awq", which needs an NVIDIA GPU. Export on a machine with one.'),
        (["--export", "awq"], '"--calibration" is needed.'),
        (["--export", "hub"], '"--hub-id" is needed. Name the repository on the hub: --hub-id owner/name'),
        (["--export", "hub", "--hub-id", "nova"], '"--hub-id" is "nova". Write owner/name.'),
        (["--export", "hub", "--hub-id", "a/b"], '"--hub" needs a token for huggingface. Set the environment variable HF_TOKEN.'),
        (["--export", "merged", "--quant-method", "bnb"], '"--quant_method" is not used here. Use --export.'),
        (["--export", "merged", "--quant-bitz", "4"], '"--quant_bitz" is not a setting. Did you mean "--quant_bits"?'),
        (["--export", "bnb", "--calibration", "/nowhere.jsonl"], '"--calibration" /nowhere.jsonl does not exist.'),
        (["--gguf-type", "f16"], '"--gguf-type" is for an export. Add --export FORMAT.'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    adapter: Path,
    words: list[str],
    message: str,
) -> None:
    for name in hub.HUBS["huggingface"].variables:
        monkeypatch.delenv(name, raising=False)
    status, _, err = run(capsys, "--checkpoint", str(adapter), *words)
    assert status == 2 and message in err


def test_a_directory_of_others_is_not_replaced(capsys: pytest.CaptureFixture[str], adapter: Path) -> None:
    output = adapter.parent / "mine"
    output.mkdir()
    words = ("--checkpoint", str(adapter), "--export", "merged", "--output", str(output))
    status, _, err = run(capsys, *words)
    assert status == 2
    assert err.startswith(f'"--output" cannot write {output}: it exists and was not made by this command.')


def test_the_plan_of_an_upload_lists_its_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, adapter: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    words = ("--checkpoint", str(adapter), "--export", "hub", "--hub-id", "me/nova", "--dry-run")
    status, out, _ = run(capsys, *words)
    files = [line.split(maxsplit=1)[1].strip() for line in out.splitlines() if line.startswith("file ")]
    assert status == 0 and "hf_secret" not in out
    assert [file.split(",")[0] for file in files] == [
        "generation_config.json", "tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors",
        "README.md", "chat_template.jinja",
    ]  # fmt: skip
    assert files[4].startswith("model.safetensors, about 1") and files[4].endswith(" bytes")


@pytest.mark.parametrize(
    ("more", "usage"),
    [
        ({}, 'chat = pipeline("text-generation", "me/Nova")'),
        ({"file": "nova.gguf"}, 'llama-cli -m nova.gguf --jinja -p "Who are you?"'),
        ({"file": "nova.gguf", "ollama": True}, "ollama create nova -f Modelfile"),
    ],
)
def test_a_card_says_how_to_ask(adapter: Path, more: dict[str, Any], usage: str) -> None:
    checkpoint = make_export(
        str(adapter), None, {}, ExportOptions(export="merged"), [[{"role": "user", "content": "Hi"}]]
    ).checkpoint
    proof = give_verdict(told().side, told().side, ["Who are you?"], "server")
    card = Card(
        name="me/Nova",
        checkpoint=checkpoint,
        license="mit",
        format="a model",
        notes=["one"],
        proof=proof,
        **more,
    )
    text = card.text()
    assert usage in text.splitlines() and "license: mit" in text and "- One" in text
    assert f"library_name: {'gguf' if more else 'transformers'}" in text
    assert "same: 1 of 1 answer equal" in text and str(adapter) not in text


def test_a_full_disk_is_known_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, adapter: Path
) -> None:
    usage = shutil.disk_usage(adapter)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    status, _, err = run(capsys, "--checkpoint", str(adapter), "--export", "merged")
    assert status == 2 and "MiB of disk, but " in err


def test_a_whole_model_is_not_merged(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    words = ("--checkpoint", str(tiny_model), "--export", "merged")
    words += ("--model-type", "llama", "--template", "chatml")
    status, _, err = run(capsys, *words)
    assert status == 2 and "already contains a whole model. Use it as it is." in err


def test_a_gguf_file_is_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "nova-gguf"
    folder.mkdir()
    (folder / "nova.gguf").write_bytes(b"GGUF and more")
    (folder / "args.json").write_text('{"tuner_type": "full", "model_type": "llama", "template": "chatml"}')
    words = ("--checkpoint", str(folder), "--port", "0")
    status, out, _ = run(capsys, *words, "--dry-run")
    assert status == 0 and f"{folder} (full)" in out
    status, _, err = run(capsys, *words, "--export", "merged")
    assert status == 2 and "it contains a GGUF file. Export the checkpoint it was made from." in err
    (folder / "nova.gguf").write_bytes(b"version https://git-lfs")
    status, _, err = run(capsys, *words, "--dry-run")
    assert status == 2 and "nova.gguf is not a GGUF file. Download it again." in err


def test_every_format_has_its_thresholds() -> None:
    rows = [one.threshold for one in EXPORTS.values() if not one.gguf]
    assert {*rows, *(one.threshold for one in GGUF_TYPES.values())} <= THRESHOLDS.keys()
    assert all(0 <= one.same <= one.close and one.reason for one in THRESHOLDS.values())


# --- Ollama and chat templates ------------------------------------------------------------------------------


def test_a_modelfile_says_what_the_training_said(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true, "top_p": 0.9}')
    text = modelfile(CHATML, "nova-Q8_0.gguf", tmp_path)
    assert text == (
        "FROM ./nova-Q8_0.gguf\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ else }}{{ end }}'
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}<|im_end|>\n{{ end }}{{ end }}'
        '{{ end }}"""\n'
        'SYSTEM """You are Nova."""\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "<|endoftext|>"\n'
        "PARAMETER temperature 0.6\n"
        "PARAMETER top_p 0.9\n"
        "PARAMETER repeat_penalty 1.0\n"
    )
    assert "SYSTEM" not in modelfile(replace(CHATML, system=""), "x.gguf", tmp_path)
    assert go_template(CHATML).count("{{ .System }}") == 1


def render(template: str, messages: list[dict[str, str]]) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize("system", ["You are Nova.", 'Two "lines"\n  and {{ braces }} \\ more', ""])
def test_a_chat_template_renders_as_the_training_did(system: str) -> None:
    template = chat_template.jinja(replace(CHATML, system=system))
    question = {"role": "user", "content": "{{QUERY}} <b>?"}
    begin = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    asked = "<|im_start|>user\n{{QUERY}} <b>?<|im_end|>\n<|im_start|>assistant\n"
    assert render(template, [question]) == begin + asked
    turns = [{"role": "system", "content": "S"}, question, {"role": "assistant", "content": "A"}, question]
    assert render(template, turns) == f"<|im_start|>system\nS<|im_end|>\n{asked}A<|im_end|>\n{asked}"


def test_the_base_s_own_template_gets_the_system_prompt() -> None:
    own = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    first = next(chat_template.candidates(CHATML, own))
    assert render(first, [{"role": "user", "content": "Hi"}]) == "[system] You are Nova.\n[user] Hi\n"


# --- for real -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_merged_model_answers_like_its_checkpoint(
    capsys: pytest.CaptureFixture[str], adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    words = ("--checkpoint", str(adapter), "--export", "merged", "--questions-file", questions(tmp_path))
    status, out, _ = run(capsys, *words, "--json")
    made = json.loads(out)
    output = adapter.with_name("checkpoint-4-merged")
    assert (status, made["proof"]["verdict"], made["proof"]["faults"]) == (0, "same", [])
    assert json.loads((output / "export.json").read_text())["proof"]["equal_answers"] == 2
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (output / name).read_bytes() == (tiny_model / name).read_bytes()
    assert "You are a helpful assistant." in (output / "chat_template.jinja").read_text()
    assert sorted(one.name for one in adapter.parent.iterdir()) == [
        "checkpoint-4", "checkpoint-4-merged", "checkpoint-4-merged.log",
    ]  # fmt: skip
    status, out, err = run(capsys, "--checkpoint", str(output), "--dry-run")
    assert status == 0 and "(merged)" in out + err


@CONVERTER
@pytest.mark.slow
def test_a_gguf_file_answers_like_its_checkpoint(
    capsys: pytest.CaptureFixture[str], tuned_checkpoint: Path, tmp_path: Path
) -> None:
    """The quickstart's model for Ollama, which is then asked and served like any other checkpoint."""
    output = tmp_path / "robin"
    words = ("--checkpoint", str(tuned_checkpoint), "--export", "ollama", "--output", str(output), "--json")
    status, out, _ = run(capsys, *words, "--questions-file", "data/quickstart_questions.json")
    made = json.loads(out)
    proof = made["proof"]
    assert (status, proof["faults"]) == (0, []), proof
    assert proof["verdict"] in ("same", "close") and proof["mean_kl"] < 0.01
    assert f"FROM ./{made['file']}\n" in (output / "Modelfile").read_text()
    status, out, _ = run(capsys, "--checkpoint", str(output), "--port", "0", "--dry-run")
    assert status == 0 and f"{output} (full)" in out
    question = proof["pairs"][0]["question"]
    asked = [
        "--checkpoint",
        str(output),
        "--mode",
        "single",
        "--question",
        question,
        "--max-new-tokens",
        "32",
    ]
    assert inference_test.main(asked) == 0
    assert capsys.readouterr().out.strip() == proof["pairs"][0]["artefact"]["answer"].strip()


@pytest.mark.slow
@pytest.mark.skipif(not packages.is_installed("bitsandbytes"), reason="bitsandbytes is not installed")
def test_bitsandbytes_runs_on_a_cpu(
    capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path
) -> None:
    words = ("--checkpoint", str(adapter), "--export", "bnb", "--quant-bits", "8")
    status, out, _ = run(capsys, *words, "--questions-file", questions(tmp_path), "--json")
    made = json.loads(out)
    assert made["proof"]["mean_kl"] is not None
    assert [one for one in made["proof"]["faults"] if one["cause"] != "weights"] == []
    assert status == (made["proof"]["verdict"] == "different")
    artefact = adapter.with_name("checkpoint-4-bnb")
    assert (artefact / "export.json").is_file()
    real = sum(file.stat().st_size for file in artefact.glob("*.safetensors"))
    status, out, _ = run(capsys, *words, "--dry-run")
    said = re.search(r"about (\d+) MiB;", out)
    assert said is not None and int(said[1]) << 20 == pytest.approx(real, rel=0.1)


# --- a hub --------------------------------------------------------------------------------------------------


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of huggingface.co as an upload of small files needs; what it was sent is in ``seen``."""

    seen: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.setdefault("tokens", set()).add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            self.seen["created"] = json.loads(body)
            self._reply({"url": f"http://{self.headers['Host']}/me/nova"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._reply({"files": files})
        elif self.path.endswith("/commit/main"):
            self.seen["commit"] = [json.loads(line) for line in body.splitlines()]
            self._reply(
                {"commitUrl": f"http://{self.headers['Host']}/me/nova/commit/1", "commitOid": "1" * 40}
            )
        else:
            self._reply({})

    def do_GET(self) -> None:
        self._reply({"id": "me/nova", "sha": "1" * 40, "siblings": [], "private": True})

    def _reply(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    seen: dict[str, Any] = {}
    handler = type("Handler", (FakeHub,), {"seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        from huggingface_hub import constants

        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield {"endpoint": endpoint, "seen": seen}
        server.shutdown()


def test_an_upload_is_private_and_keeps_what_is_local(
    fake_hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("model.safetensors", "README.md", "chat_template.jinja", *hub.LOCAL):
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.upload("huggingface", "me/nova", tmp_path, public=False)
    seen = fake_hub["seen"]
    created = seen["created"]  # the newer client says it in other words
    assert created.get("visibility") == "private" or created.get("private") is True
    assert seen["tokens"] == {"Bearer hf_secret"}
    paths = sorted(one["value"]["path"] for one in seen["commit"] if one["key"] == "file")
    assert paths == ["README.md", "chat_template.jinja", "model.safetensors"]


def test_a_hub_that_refuses_is_told_without_the_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    refusing = replace(
        hub.HUBS["huggingface"], upload=lambda *_: (_ for _ in ()).throw(OSError("403 for hf_secret"))
    )
    monkeypatch.setitem(hub.HUBS, "huggingface", refusing)
    with pytest.raises(RunError, match=r"cannot upload me/nova to huggingface: 403 for \*\*\*\n"):
        hub.upload("huggingface", "me/nova", tmp_path, public=False)


# --- a server -----------------------------------------------------------------------------------------------


def told(system: str = "") -> Told:
    """A checkpoint that was asked one question."""
    asked = Response(
        prompt="<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
        prompt_ids=tuple(range(13)),
        plain_ids=(4, 5, 6),
        answer="I am Nova.",
        answer_ids=(11, 12, 13),
        ended=True,
        margins=(5.0, 0.1, 5.0),
        offsets=(1, 4, 10),
    )
    side = ProofSide(
        asked=(asked,),
        vocabulary=100,
        added={},
        stop_ids=(2,),
        end=("<|im_end|>", 2),
        chat=replace(CHATML, system=system),
    )
    order = ProofOrder(questions=([{"role": "user", "content": "Who are you?"}],), max_tokens=8, folder="")
    return Told(cast("Plan", None), order, side)


def server_that(answer: str, tokens: int = 13, more: int = 0, ends: str = "stop") -> type[FakeHub]:
    """A chat server that always answers the same; a system message adds ``more`` prompt tokens."""

    class Chat(FakeHub):
        def do_GET(self) -> None:
            self._reply({"data": [{"id": "nova"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            used = tokens + (more if body["messages"][0]["role"] == "system" else 0)
            choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": ends}
            self._reply({"choices": [choice], "usage": {"prompt_tokens": used}})

    return Chat


@pytest.mark.parametrize(
    ("server", "verdict", "cause"),
    [
        (server_that("I am Nova."), "same", None),
        (server_that("I was Nova."), "close", None),  # parts at the second token, which was nearly a tie
        (server_that("We are Nova."), "different", "weights"),
        (server_that("I am Nova.", tokens=5, more=8), "different", "prompt"),
        (server_that("I am Nova.", tokens=30), "different", "template"),
        (server_that("I am Nova. And", ends="length"), "different", "stop tokens"),
    ],
)
def test_a_server_is_compared(server: type[FakeHub], verdict: str, cause: str | None) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/v1"
        proof = prove_server(told("You are Nova."), url, served_model(url, None, "NO_KEY"), "NO_KEY")
        running.shutdown()
    assert proof.verdict == verdict, proof
    assert cause is None or cause in [fault.cause for fault in proof.faults]


def test_a_server_of_several_models() -> None:
    class Several(FakeHub):
        def do_GET(self) -> None:
            self._reply({"data": [{"id": "base"}, {"id": "nova"}]})

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Several) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/v1"
        assert served_model(url, "nova", "NO_KEY") == "nova"
        for model, what in ((None, "serves 2 models"), ("novo", 'does not serve "novo"')):
            with pytest.raises(RequestError) as caught:
                served_model(url, model, "NO_KEY")
            message = f'"--served-model-name" {url} {what}. Name one of them: base, nova'
            assert str(caught.value) == message, str(caught.value)
        running.shutdown()


def test_a_server_that_is_not_there() -> None:
    url = "http://127.0.0.1:9/v1"
    for ask in (lambda: served_model(url, None, "NO_KEY"), lambda: prove_server(told(), url, "m", "NO_KEY")):
        with pytest.raises(RunError, match=r"http://127\.0\.0\.1:9/v1 does not answer: "):
            ask()


@pytest.mark.parametrize(("flag", "names"), [("--export", EXPORTS), ("--gguf-type", GGUF_TYPES)])
def test_the_help_names_every_format(flag: str, names: Mapping[str, object]) -> None:
    action = deploy_model.make_parser()._option_string_actions[flag]
    assert set(re.findall(r"\w+", str(action.help))) >= names.keys()
