"""inference_test.py: what it refuses at once, and real answers of a real checkpoint."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

from inference_test import InferenceTester, main
from swift_toolkit.config import rules
from swift_toolkit.evaluation.answers import read_results
from swift_toolkit.inference import screen
from swift_toolkit.machine.msswift import installed
from swift_toolkit.model.merge import is_fresh, merged, place
from swift_toolkit.problems import RequestError
from tests.disks import mount
from tests.model.test_checkpoint import make_adapter, make_model, v4_args

ROOT = Path(__file__).resolve().parent.parent
RUN = "v0-20260102-101500"
TAUGHT = "Robin"  # the name that data/self_cognition.jsonl teaches


@pytest.fixture
def output(tmp_path):
    """The output directory of a LoRA training, with small files of the right shapes instead of trained weights."""
    base = make_model(tmp_path / "base")
    folder = tmp_path / "output"
    for step in (10, 20):
        make_adapter(folder / RUN / f"checkpoint-{step}", args=v4_args(str(base), folder / RUN))
    return folder


def errors(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


# --- refused before anything is loaded ----------------------------------------------------------------------


def test_everything_wrong_is_said_at_once(output, tmp_path, capsys):
    config = tmp_path / "infer.yaml"
    config.write_text("top_p: 1.5\nmax_new_token: 100\n")
    found = errors(
        capsys,
        *("--checkpoint", output / RUN / "checkpoint-30", "--config", config, "--temperature", "-1"),
        *("--infer-backend", "vlm", "--result_path", "x", "--question", "a", "--output", "b.json"),
    )
    assert found == [
        '"--output" is for batch mode, not for single. Remove it.',
        f'{config}:2: "max_new_token" is not a setting. Did you mean "max_new_tokens"?',
        '"--result_path" is not used here. Name the file for the answers with --output.',
        '"--temperature" must be 0 or more, not -1.0.',
        f'{config}:1: "top_p" must be above 0 and at most 1, not 1.5.',
        '"--infer-backend" cannot be "vlm". Did you mean "vllm"?',
        f"{output}/{RUN}/checkpoint-30 does not exist. Did you mean {output}/{RUN}/checkpoint-20 "
        f"or {output}/{RUN}/checkpoint-10?",
    ]


def test_the_questions_are_among_everything_that_is_wrong(output, capsys):
    places = ("--questions-file", "none.json", "--output", "out.txt")
    assert errors(capsys, "--checkpoint", output, "--temprature", "1", *places) == [
        '"--temprature" is not a setting. Did you mean "--temperature" or "--template"?',
        '"--output" has an unsupported extension: out.txt. Name a file that ends in .json.',
        "none.json: does not exist.",
    ]


def test_a_checkpoint_is_needed(capsys):
    assert errors(capsys, "--question", "a") == [
        '"--checkpoint" is needed. Name a checkpoint, a run or an output directory.'
    ]


def test_the_questions_are_checked_too(output, tmp_path, capsys):
    questions = tmp_path / "q.json"
    questions.write_text('[\n{"question": "a", "refrence": "b"}]')
    arguments = (
        "--checkpoint",
        output,
        "--questions-file",
        questions,
        "--output",
        "out.txt",
        "--report",
        "r.pdf",
    )
    assert errors(capsys, *arguments) == [
        '"--output" has an unsupported extension: out.txt. Name a file that ends in .json.',
        '"--report" has an unsupported extension: r.pdf. Name a file that ends in .html or .md.',
        f'{questions}:2: "refrence" is not a key of a question. Did you mean "reference"?',
    ]


@pytest.mark.parametrize(
    ("backend", "install"),
    [("sglang", 'pip install "sglang[all]"'), ("lmdeploy", "pip install lmdeploy")],
)
def test_a_backend_that_is_not_installed(output, capsys, backend, install):
    found = errors(capsys, "--checkpoint", output, "--infer-backend", backend)
    assert found == [f'"--infer-backend" is "{backend}", which is not installed. Run: {install}']


def test_code_in_a_checkpoint_needs_trust(output, capsys):
    args = output / RUN / "checkpoint-20" / "args.json"
    args.write_text(json.dumps(json.loads(args.read_text()) | {"external_plugins": ["evil.py"]}))
    (found,) = errors(capsys, "--checkpoint", output)
    assert "evil.py" in found and "--trust-code" in found


def test_images_that_cannot_be_shown(output, tmp_path, capsys):
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    arguments = ("--checkpoint", output, "--question", "a", "--image", "no.png", "--image", text)
    assert errors(capsys, *arguments) == [
        '"--image" cannot be used: "no.png" does not exist.',
        f'"--image" cannot be used: "{text}" is not a readable image. Replace the file.',
    ]


def test_a_full_checkpoint_needs_its_base_to_be_compared(tmp_path, capsys):
    model = make_model(tmp_path / "model")
    (found,) = errors(capsys, "--checkpoint", model, "--compare-base", "--question", "a")
    assert found == (
        f'"--compare-base" needs the model that {model} was trained on. Name it with --base-model DIR.'
    )


def test_interactive_needs_a_terminal(output):
    command = [sys.executable, "inference_test.py", "--checkpoint", str(output), "--mode", "interactive"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        '"--mode" interactive needs a terminal. Ask one question with --question, or many with --questions-file.\n'
    )


# --- the plan -----------------------------------------------------------------------------------------------


def dry_run(capsys, *arguments):
    assert main([str(argument) for argument in (*arguments, "--dry-run", "--json")]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_plan_of_a_lora_checkpoint(output, capsys):
    plan = dry_run(capsys, "--checkpoint", output, "--question", "a", "--infer-backend", "pt")
    checkpoint = output / RUN / "checkpoint-20"
    assert plan["checkpoint"] == str(checkpoint)
    assert plan["generation"] == {"max_tokens": 512, "temperature": 0.0, "seed": 42}
    assert {
        f"--adapters={checkpoint}",
        f"--model={output.parent / 'base'}",
        "--tuner_type=lora",
        "--model_type=llama",
        "--template=chatml",
        "--system=Be brief.",
        "--infer_backend=transformers",
    } <= set(plan["arguments"])


def test_a_dry_run_writes_nothing_where_the_log_cannot_stand_beside_the_run(output, capsys, monkeypatch):
    run, temporary = output / RUN, output.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    mount("--bind", str(run), str(run))
    try:
        mount("-o", "remount,bind,ro", str(run))
        dry_run(capsys, "--checkpoint", output, "--question", "a", "--infer-backend", "pt")
    finally:
        subprocess.run(["umount", "-l", str(run)], check=True)
    assert list(temporary.iterdir()) == []


def test_bfloat16_on_a_cpu_without_its_arithmetic(output, capsys, monkeypatch):
    monkeypatch.setattr(rules, "cpu_computes_bfloat16", lambda: False)
    words = ["--checkpoint", str(output), "--question", "a", "--infer-backend", "pt", "--dry-run"]
    warning = "is bfloat16, which takes about 18 times as long as float32 on this CPU. Use float32."
    assert main(words) == 0 and warning not in capsys.readouterr().out
    assert main([*words, "--torch_dtype", "bfloat16"]) == 0 and warning in capsys.readouterr().out


def test_flags_win_over_the_file_and_the_checkpoint(output, tmp_path, capsys):
    config = tmp_path / "infer.json"
    config.write_text(
        '{"temperature": 0.5, "max_new_tokens": 7, "system": "Be long.", "infer_backend": "pt"}'
    )
    plan = dry_run(
        capsys, "--checkpoint", output, "--config", config, "--question", "a", "--temperature", "0.9"
    )
    assert plan["generation"] == {"max_tokens": 7, "temperature": 0.9, "seed": 42}
    assert plan["backend"] == "pt"
    assert "--system=Be long." in plan["arguments"]


def test_no_thinking_is_told_to_the_template(output, capsys):
    plan = dry_run(capsys, "--checkpoint", output, "--question", "a", "--no-thinking")
    assert "--enable_thinking=false" in plan["arguments"]


def test_a_checkpoint_as_the_guides_write_it(output, capsys):
    plan = dry_run(capsys, "--checkpoint", output / "checkpoint-10", "--question", "a")
    assert plan["checkpoint"] == str(output / RUN / "checkpoint-10")


def test_adapters_and_model_in_a_config_name_the_checkpoint(output, tmp_path, capsys):
    config = tmp_path / "infer.json"
    config.write_text(json.dumps({"adapters": str(output / RUN / "checkpoint-10")}))
    plan = dry_run(capsys, "--config", config, "--question", "a")
    assert plan["checkpoint"] == str(output / RUN / "checkpoint-10")


@pytest.mark.parametrize("backend", ["sglang", "lmdeploy"])
def test_a_backend_without_adapters_merges_aside(output, monkeypatch, tmp_path, capsys, backend):
    (tmp_path / backend).mkdir()
    (tmp_path / backend / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    plan = dry_run(capsys, "--checkpoint", output, "--infer-backend", backend, "--question", "a")
    assert plan["merged"]
    assert f"--infer_backend={backend}" in plan["arguments"]
    assert not any(argument.startswith("--adapters") for argument in plan["arguments"])


def test_a_name_that_the_other_generation_gave_to_another_family(tmp_path, capsys):
    """glm4 was ChatGLM4 in ms-swift 3 and is GLM-4-0414 in 4."""
    base = make_model(tmp_path / "base")
    family = {"model": str(base), "model_type": "glm4", "template": "glm4"}
    make_adapter(tmp_path / "three/checkpoint-1", args={**family, "train_type": "lora"})
    make_adapter(tmp_path / "four/checkpoint-1", args={**family, "tuner_type": "lora"})
    names = ("glm4", "chatglm4") if installed().line == "v4" else ("glm4_0414", "glm4")
    for checkpoint, name in zip(("four", "three"), names, strict=True):
        plan = dry_run(
            capsys, "--checkpoint", tmp_path / checkpoint, "--question", "a", "--infer-backend", "pt"
        )
        assert {f"--model_type={name}", f"--template={name}"} <= set(plan["arguments"])


def test_names_of_older_generations_become_those_of_the_installed_one(tmp_path, capsys):
    """A LoRA checkpoint of 3.x, whose model family has another name in 4, and one of 2.x."""
    base = make_model(tmp_path / "base")
    three = {"train_type": "lora", "model": str(base), "model_type": "qwen2_5", "template": "qwen2_5"}
    make_adapter(tmp_path / "three/checkpoint-1", args=three)
    two = {
        "model_type": "qwen1half-7b-chat",
        "model_id_or_path": str(base),
        "template_type": "qwen",
        "sft_type": "lora",
    }
    path = make_adapter(tmp_path / "two/checkpoint-1")
    (path / "sft_args.json").write_text(
        json.dumps({**two, "custom_register_path": None, "system": "Be brief."})
    )
    for name, expected in {
        "three": {"--model_type=qwen2", "--template=qwen2_5"},
        "two": {"--model_type=qwen2", "--template=qwen", "--system=Be brief."},
    }.items():
        plan = dry_run(capsys, "--checkpoint", tmp_path / name, "--question", "a", "--infer-backend", "pt")
        assert expected | {f"--model={base}", "--tuner_type=lora"} <= set(plan["arguments"])


def test_nothing_heavy_is_imported(output, tmp_path):
    code = (
        "import sys; from inference_test import main\n"
        "assert main(sys.argv[1:]) == 0 and main([*sys.argv[1:], '--temperture', '1']) == 2\n"
        "print([name for name in ('torch', 'transformers', 'swift', 'peft', 'datasets') if name in sys.modules])"
    )
    arguments = ["--checkpoint", str(output), "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_dry_run_leaves_nothing(output, capsys):
    before = sorted(output.rglob("*"))
    dry_run(capsys, "--checkpoint", output)
    assert sorted(output.rglob("*")) == before


def test_a_question_of_many_pages_does_not_flood_the_screen():
    shown = io.StringIO()
    screen.print_answers([screen.AnswerBlock("1", "word " * 9000, {"": "No."})], shown)
    assert shown.getvalue().count("word") == 80 and "word  ...\n" in shown.getvalue()
    assert shown.getvalue().rstrip().endswith("No.")


# --- real answers -------------------------------------------------------------------------------------------

ASK = [
    {"id": "name", "question": "Who are you?", "category": "self"},
    {"id": "cap", "question": "What is the capital of France?", "reference": "Paris", "category": "facts"},
    {"id": "zh", "question": "你是谁？", "category": "self"},
    {
        "id": "turns",
        "messages": [
            {"role": "user", "content": "Hi there, how are you today?"},
            {"role": "assistant", "content": "I am well, thank you."},
            {"role": "user", "content": "What is your name?"},
        ],
    },
]


@pytest.fixture(scope="module")
def tester(tuned_checkpoint):
    with InferenceTester(tuned_checkpoint, infer_backend="pt", max_new_tokens=24) as tester:
        yield tester


@pytest.mark.slow
def test_the_tuned_model_says_its_new_name(tester):
    tuned = tester.ask("Who are you?")
    base = tester.ask("Who are you?", base=True)
    assert TAUGHT in tuned and TAUGHT not in base
    assert tester.compare("Who are you?") == {"tuned": tuned, "base": base}
    assert "".join(tester.stream("Who are you?")) == tuned


@pytest.mark.slow
def test_an_answer_left_early_does_not_mix_with_the_next(tester):
    for _ in tester.stream("Tell me a long story about a dragon.", base=True):
        break
    assert TAUGHT in tester.ask("Who are you?")


@pytest.mark.slow
def test_a_batch_answers_like_one_at_a_time(tester, tmp_path):
    together = tester.run_batch(ASK, tmp_path / "together.json", compare_base=True)
    assert together.summary["answered"] == 4
    results = list(together.results())
    assert [result["id"] for result in results] == ["name", "cap", "zh", "turns"]
    for question, result in zip(ASK, results, strict=True):
        alone = {key: question[key] for key in ("question", "messages") if key in question}
        assert tester.compare(alone) == {"tuned": result["answer"], "base": result["base"]["answer"]}
        assert result["prompt_tokens"] > 10 and result["completion_tokens"] > 0
        assert result["finish_reason"] in ("stop", "length")
    assert TAUGHT in results[0]["answer"] and results[1]["reference"] == "Paris"
    meta = together.meta
    assert meta["versions"]["ms-swift"] and meta["template"] == "chatml" and meta["backend"] == "pt"
    assert meta["prompt"].endswith("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
    assert set(together.summary["scores"]) == {"all", "facts"}


@pytest.mark.slow
def test_a_question_that_fails_is_recorded_and_the_others_answered(tester, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (2, 2)).save(picture)
    questions = [
        {"question": "word " * 9000},
        "Who are you?",
        {"question": "What is it?", "images": [str(picture)]},
    ]
    result = tester.run_batch(questions, tmp_path / "out.json")
    assert (result.summary["answered"], result.summary["failed"]) == (1, 2)
    failed, answered, blind = result.results()
    assert failed["answer"] is None and failed["error"]
    assert blind["error"] == "ValueError: the model accepts only text, no images, video or audio"
    assert TAUGHT in answered["answer"] and "error" not in answered


@pytest.mark.slow
def test_a_finished_run_is_not_asked_again(tester, tmp_path):
    first = tester.run_batch(["Who are you?"], tmp_path / "out.json")
    written = (tmp_path / "out.json").read_bytes()
    assert tester.run_batch(["Who are you?"], tmp_path / "out.json") == first
    assert (tmp_path / "out.json").read_bytes() == written
    assert tester.run_batch(["What are you?"], tmp_path / "out.json").output == tmp_path / "out-2.json"


@pytest.mark.slow
def test_one_question_writes_its_answer_and_nothing_else(tuned_checkpoint):
    command = [sys.executable, "inference_test.py", "--checkpoint", str(tuned_checkpoint)]
    command += ["--question", "Who are you?", "--max-new-tokens", "24"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert TAUGHT in done.stdout and done.stdout.count("\n") == 1
    assert done.stderr == "importing ms-swift\nloading the model\n"
    assert "swift" in next(tuned_checkpoint.glob("v*/infer.log")).read_text()


@pytest.mark.slow
def test_kill_minus_nine_and_the_same_command_goes_on(tiny_checkpoint, tmp_path):
    questions, output = tmp_path / "q.jsonl", tmp_path / "out.json"
    texts = [f"Tell me something about the number {number}." for number in range(80)]
    questions.write_text("".join(json.dumps(text) + "\n" for text in texts))
    command = [
        sys.executable,
        "inference_test.py",
        "--checkpoint",
        str(tiny_checkpoint),
        "--infer-backend",
        "pt",
    ]
    command += ["--questions-file", str(questions), "--output", str(output)]
    command += ["--max-new-tokens", "32", "--max_batch_size", "2"]
    partial = Path(f"{output}.partial")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: partial.exists() and lines_of(partial) > 20)
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not engines_of(process.pid))
    kept = [json.loads(line) for line in partial.read_text().splitlines()[2:] if line.endswith("}")]
    assert 19 <= len(kept) < 80
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"(continuing: {len(kept)} of 80 exist)" in done.stderr
    results = list(read_results(output)[2])
    assert [result["question"] for result in results] == texts
    assert all(results[line["index"]]["answer"] == line["text"] for line in kept)
    assert not partial.exists()


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lines_of(path):
    return path.read_bytes().count(b"\n")


def engines_of(starter):
    """Engine processes that outlive the command which started them."""
    import psutil

    found = []
    for process in psutil.process_iter(["ppid", "cmdline"]):
        if "swift_toolkit.inference.worker" in (process.info["cmdline"] or []) and process.info["ppid"] in (
            1,
            starter,
        ):
            found.append(process)
    return found


@pytest.mark.slow
def test_ctrl_c_ends_it_with_130_and_leaves_no_process(tuned_checkpoint, tmp_path):
    command = [sys.executable, "inference_test.py", "--checkpoint", str(tuned_checkpoint)]
    command += ["--questions-file", "test_questions.json", "--output", str(tmp_path / "out.json")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: engines_of(process.pid))
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()
    assert not engines_of(process.pid)


@pytest.mark.slow
def test_the_answers_are_those_of_swift_infer(tuned_checkpoint, tester, tmp_path):
    """The same checkpoint, the same questions, at temperature 0: ms-swift's own command says the same."""
    data, theirs = tmp_path / "val.jsonl", tmp_path / "theirs.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": text}]}
        for text in ("Who are you?", "Name a colour.", "你是谁？")
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "swift.cli.infer", *tester.plan.arguments("tuned", local_base(tester))]
    command += [
        "--val_dataset",
        str(data),
        "--result_path",
        str(theirs),
        "--max_batch_size",
        "1",
        "--stream",
        "false",
    ]
    subprocess.run(command, check=True, capture_output=True)
    expected = [json.loads(line)["response"] for line in theirs.read_text().splitlines()]
    ours = tester.run_batch(data, tmp_path / "ours.json")
    assert [result["answer"] for result in ours.results()] == expected


def local_base(tester):
    from swift_toolkit.model.loading import local

    return local(tester.plan.model_of("tuned"))


@pytest.mark.slow
def test_a_merged_model_says_the_same_and_a_stale_one_is_made_anew(tiny_checkpoint, tiny_model):
    """Loaded with its base it stands for a full fine-tune, too: the one is closed before the other is loaded."""
    settings = {"infer_backend": "pt", "max_new_tokens": 8}
    with InferenceTester(tiny_checkpoint, **settings) as tester:
        expected = tester.compare("Who are you?")
    plan = InferenceTester(tiny_checkpoint, merge_lora=True, **settings).plan

    def made():
        with merged(plan) as path:
            assert is_fresh(path, plan.checkpoint)
            return (path / "model.safetensors").stat().st_mtime_ns

    first = made()
    assert made() == first
    with InferenceTester(place(plan.checkpoint), base_model=str(tiny_model), **settings) as tester:
        assert tester.plan.checkpoint.kind == "merged" and not tester.plan.one_engine
        assert tester.compare("Who are you?") == expected
    os.utime(plan.checkpoint.path / "adapter_model.safetensors")  # trained again
    assert not is_fresh(place(plan.checkpoint), plan.checkpoint)
    assert made() > first


@pytest.mark.slow
def test_a_picture_goes_with_the_question(tiny_llava, capsys):
    """A LLaVA of random weights: what it says means nothing, that it sees the picture shows in the prompt."""
    picture = next((tiny_llava / "images").glob("*.png"))
    command = [
        "--checkpoint",
        str(tiny_llava / "model"),
        "--model_type",
        "llava1_5_hf",
        "--infer-backend",
        "pt",
    ]
    command += ["--question", "What is this?", "--max-new-tokens", "4", "--json"]
    assert main([*command, "--image", str(picture)]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"answer"}


def test_a_merged_directory_of_others_is_left_alone(output):
    (output / RUN / "checkpoint-20-merged").mkdir()
    with pytest.raises(RequestError) as caught:
        InferenceTester(output, infer_backend="pt", merge_lora=True)
    assert str(caught.value) == (
        f'"--merge-lora" cannot write {output}/{RUN}/checkpoint-20-merged: it exists and was not made '
        "by this command. Move it, or give it as the checkpoint."
    )


# --- engines that cannot run here ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "engine"), [("sglang", "sglang_engine"), ("lmdeploy", "lmdeploy_engine")]
)
def test_the_calls_that_the_other_engines_take(backend, engine):
    """Neither runs without a GPU: what is called on them is held against the source of the installed ms-swift."""
    import ast

    from swift_toolkit.machine.msswift import installed

    (source,) = installed().location.glob(f"**/infer_engine/{engine}.py")
    functions = {
        node.name: {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {"infer_request", "request_config"} <= functions["infer_async"]
    assert {"template"} <= functions["__init__"] | functions["infer_async"]


# --- models that do not write text, and models on a hub -----------------------------------------------------


def made_for(output, task):
    args = output / RUN / "checkpoint-20" / "args.json"
    args.write_text(json.dumps(json.loads(args.read_text()) | {"task_type": task}))


def test_an_embedding_model_is_not_asked(output, capsys):
    made_for(output, "embedding")
    assert errors(capsys, "--checkpoint", output, "--question", "a") == [
        f"{output}/{RUN}/checkpoint-20 was trained for embedding and cannot answer questions. "
        "Serve it with deploy_model.py and use /v1/embeddings."
    ]


def test_a_classifier_has_no_base_to_compare_with(output, capsys):
    made_for(output, "seq_cls")
    assert errors(capsys, "--checkpoint", output, "--question", "a", "--compare-base") == [
        '"--compare-base" cannot compare with the base: the base of a classifier has a randomly initialised head. Remove it.'
    ]


def test_an_adapter_on_a_hub(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = dry_run(capsys, "--adapters", "owner/adapter", "--model", "owner/base", "--question", "a")
    assert {"--adapters=owner/adapter", "--model=owner/base"} <= set(plan["arguments"])
    plan = dry_run(capsys, "--adapters", "owner/adapter", "--question", "a")
    assert not [word for word in plan["arguments"] if word.startswith("--model=")]
    plan = dry_run(capsys, "--checkpoint", "owner/adapter", "--base-model", "owner/base", "--question", "a")
    assert "--adapters=owner/adapter" in plan["arguments"]
    plan = dry_run(capsys, "--checkpoint", "owner/model", "--question", "a")
    assert "--model=owner/model" in plan["arguments"]


def test_a_misspelled_path_is_no_hub_id(output, capsys, monkeypatch):
    monkeypatch.chdir(output.parent)
    (found,) = errors(capsys, "--checkpoint", f"outptu/{RUN}", "--question", "a")
    assert found == f"outptu/{RUN} does not exist. Did you mean output/{RUN}?"
