"""finetune_trainer.py as its users meet it: the command line without a model, and real training."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import finetune_trainer
from finetune_trainer import FineTuner
from swift_toolkit.config.request import load_config
from swift_toolkit.problems import RequestError

ROOT = Path(__file__).resolve().parent.parent
DATA = str(ROOT / "data/self_cognition.jsonl")
HEAVY = {"torch", "transformers", "swift", "datasets", "peft", "accelerate", "numpy"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, str(ROOT / "finetune_trainer.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600
    )


# --- without a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--config", "configs/quickstart.json", "--dry-run"], 0),
        (["--config", "configs/quickstart.json", "--dry-run", "--json"], 0),
        (["--config", "configs/quickstart.json", "--verify-data"], 0),
        (["--config", "configs/quickstart.json", "--lora_rnak", "8"], 2),
    ],
)
def test_nothing_heavy_is_imported(arguments: list[str], status: int) -> None:
    code = (
        "import sys, finetune_trainer\n"
        "try: status = finetune_trainer.main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), status, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"[] {status}", done.stderr


def test_help_names_every_own_flag_and_shows_examples() -> None:
    done = run("--help")
    assert done.returncode == 0
    for flag in (
        "--config",
        "--dry-run",
        "--verify-data",
        "--json",
        "--verbose",
        "--debug",
        "--quiet-notices",
    ):
        assert flag in done.stdout
    assert "python finetune_trainer.py --config configs/quickstart.json" in done.stdout
    assert "exit status: 0 done" in done.stdout


def test_no_arguments_show_the_help_and_are_an_error() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: finetune_trainer.py" in done.stderr


@pytest.mark.parametrize(
    "config", sorted(path.name for path in (ROOT / "configs").iterdir() if path.is_file())
)
def test_every_shipped_config_passes_dry_run(config: str) -> None:
    done = run("--config", f"configs/{config}", "--dry-run", "--json")
    if config == "ppo.json" and done.returncode == 2:  # it needs the reward model that rm.json trains
        assert [line.partition(" names ")[0] for line in done.stderr.splitlines()] == [
            'configs/ppo.json:5: "reward_model"'
        ]
        return
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    parts = {
        "preset",
        "ms_swift",
        "arguments",
        "sources",
        "notices",
        "warnings",
        "code",
        "data",
        "memory",
        "launch",
        "padding",
        "suggestions",
        "resume",
    }
    assert set(plan) == parts
    assert set(plan["arguments"]) == set(plan["sources"])


def test_dry_run_touches_nothing_and_shows_each_source(tmp_path: Path) -> None:
    output = tmp_path / "output"
    done = run(
        "--config", "configs/quickstart.json", "--output_dir", str(output), "--lora-rank=16", "--dry-run"
    )
    assert done.returncode == 0
    assert not output.exists()
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "lora_rank 16 command line" in lines
    assert "lora_alpha 32 configs/quickstart.json:11" in lines
    assert "steps 28" in lines
    assert any(line.startswith("use_cpu true automatic: ") for line in lines)


def test_the_plan_as_json() -> None:
    done = run(
        "--config", "configs/quickstart.json", "--dry-run", "--json", "--target_modules", "q_proj", "v_proj"
    )
    plan = json.loads(done.stdout)
    assert plan["preset"] == "lora"
    assert plan["arguments"]["target_modules"] == ["q_proj", "v_proj"]
    assert plan["sources"]["target_modules"] == "command line"
    assert plan["arguments"]["check_model"] is False
    assert plan["data"]["train_rows"] == 84
    assert plan["launch"]["effective_batch_size"] == 4
    assert plan["memory"]["verdict"] == "fits"
    assert plan["memory"]["rows"]["seen"] is True
    assert 1 << 30 < plan["memory"]["estimate"] < plan["memory"]["device"]
    assert plan["launch"]["command"] == [sys.executable, "-m", "swift_toolkit.training.process.worker"]


def test_every_problem_at_once_with_status_2(tmp_path: Path) -> None:
    config = tmp_path / "bad.json"
    config.write_text(
        '{"model": "./no/such/model",\n"dataset": "data/self_cognitoin.jsonl",\n"lora_rnak": 8}'
    )
    done = run("--config", str(config), "--num_train_epochs", "0", "--output_dir", "/dev/null/x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f'{config}:3: "lora_rnak" is not a setting. Did you mean "lora_rank"?',
        '"--num_train_epochs" is 0; it must be greater than 0.',
        f'{config}:1: "model" names the directory "./no/such/model", which does not exist. '
        "Check the path, or name a hub model as owner/name.",
        '"--output_dir" "/dev/null" is a file, not a directory. Choose another path.',
        'data/self_cognitoin.jsonl: no such file. Did you mean "data/self_cognition.jsonl"?',
    ]


def test_problems_as_json() -> None:
    done = run("--config", "configs/quickstart.json", "--lora_rnak", "8", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "problems": [
            {
                "what": "is not a setting",
                "do": 'Did you mean "--lora_rank"?',
                "key": "--lora_rnak",
                "file": None,
                "line": None,
            }
        ]
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config"], "argument --config: expected one argument. See finetune_trainer.py --help."),
        (["stray"], '"stray" is not expected here. See finetune_trainer.py --help.'),
        (["--model", "a/b", "--model", "c/d"], '"--model" is given twice. Write it once: --model ... ...'),
        (["--config", "no.json"], "no.json: no such file. Check the path."),
        (["--config", "a.json", "--config", "b.json"], '"--config" is given twice. Keep one of the two.'),
    ],
)
def test_a_wrong_command_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == message


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct"}')
    done = run("--model", str(tmp_path), "--dataset", DATA)
    assert done.returncode == 2
    assert done.stderr.startswith('"--model" ')
    assert "adapter" in done.stderr
    assert "Qwen/Qwen2.5-7B-Instruct" in done.stderr


def test_a_traceback_only_on_request() -> None:
    quiet = run("--config", "configs/quickstart.json", "--lora_rnak", "8")
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in run("--config", "configs/quickstart.json", "--lora_rnak", "8", "--debug").stderr
    assert (
        "Traceback" in run("--config", "configs/quickstart.json", "--lora_rnak", "8", SWIFT_DEBUG="1").stderr
    )


def test_verify_data_in_python(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook", "--not-ours"])
    report = FineTuner("configs/quickstart.json").verify_data()
    assert report.ok
    assert report.train_rows == 84
    assert "data/self_cognition.jsonl: messages, 84 rows" in capsys.readouterr().out


def test_the_public_names() -> None:
    assert finetune_trainer.__all__ == ["FineTuner", "Interrupted", "TrainingResult", "main", "make_parser"]
    assert all(hasattr(finetune_trainer, name) for name in finetune_trainer.__all__)


def test_python_reports_problems_as_an_exception() -> None:
    with pytest.raises(RequestError) as caught:
        FineTuner({"model": "a/b"}, lora_rnak=8)
    assert str(caught.value) == (
        '"lora_rnak" is not a setting. Did you mean "lora_rank"?\n'
        '"dataset" is missing. Give a data file or data set, e.g. "data/train.jsonl".'
    )


# --- real training ------------------------------------------------------------------------------------------


def tiny(model: Path, output: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a run of seconds."""
    return {
        "model": str(model),
        "model_type": "llama",
        "template": "chatml",
        "train_type": "lora",
        "torch_dtype": "float32",
        "dataset": DATA,
        "output_dir": str(output),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",  # ms-swift's pictures of the curves take a fifth of such a run
        **settings,
    }


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def losses(run_directory: Path) -> list[Any]:
    lines = (run_directory / "logging.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def leftovers(run_directory: Path) -> list[str]:
    """Training processes that still work for ``run_directory``."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(run_directory).encode() in environ.read_bytes():
                found.append(environ.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_run_and_a_second_one(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = tiny(tiny_model, tmp_path)
    del settings["report_to"]
    done = run(*flags(settings))
    assert done.returncode == 0, done.stderr
    (first,) = tmp_path.glob("v0-*")
    assert done.stdout.splitlines()[0].startswith("Trained 4 steps in ")
    assert f"--checkpoint {first}/checkpoint-4" in done.stdout
    assert "step 4/4 · loss " in done.stderr
    assert "{'loss'" in (first / "train.log").read_text()
    assert "{'loss'" not in done.stderr
    content = json.loads((first / "result.json").read_text())
    assert content["status"] == "done"
    assert content["steps"] == 4
    assert content["last_checkpoint"] == str(first / "checkpoint-4")
    assert content["metrics"]["final_loss"] == pytest.approx(losses(first)[-1])
    assert content["metrics"]["best_loss"] == pytest.approx(min(losses(first)))
    assert content["config"]["lora_rank" if "lora_rank" in content["config"] else "max_steps"] == 4
    assert content["versions"]["ms-swift"].startswith(("4.", "3."))
    assert content["error"] is None
    assert content["alarms"] == []
    assert (content["planned"]["steps"], content["measured"]["steps"], content["seed"]) == (4, 4, 42)
    assert (content["devices"]["kind"], content["devices"]["processes"]) == ("cpu", 1)
    assert content["command"][:3] == ["finetune_trainer.py", "--model", str(tiny_model)]
    assert "bytes, " in content["fingerprints"]["train"][0]
    given = json.loads((first / "settings.json").read_text())
    assert {name: given[name] for name in ("model", "max_steps", "output_dir")} == {
        "model": str(tiny_model),
        "max_steps": 4,
        "output_dir": str(tmp_path),
    }
    report = (first / "report.html").read_text()
    assert "Done, step 4 of 4" in report and len(report) < 500_000
    assert not (first / "logs").exists()
    assert (tmp_path / "last").resolve() == first / "checkpoint-4"
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}

    tuner = FineTuner(settings, max_steps=2, split_dataset_ratio=0.1, eval_steps=1, report_to="none")
    result = tuner.run_training(verbose=True)
    assert "{'loss'" in capfd.readouterr().err
    assert result.status == "done"
    assert result.run_directory.name.startswith("v1-")
    assert result.last_checkpoint == result.run_directory / "checkpoint-2"
    assert result.best_checkpoint == result.run_directory / "checkpoint-2"
    assert (tmp_path / "last").resolve() == result.last_checkpoint
    assert (tmp_path / "best").resolve() == result.best_checkpoint
    assert result.metrics["eval_loss"] > 0
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


@pytest.mark.slow
def test_losses_are_those_of_ms_swift_itself(tiny_model: Path, tmp_path: Path) -> None:
    epochs = {"dataset": f"{DATA}#6", "max_steps": 8}  # of three steps each
    ours = FineTuner(tiny(tiny_model, tmp_path / "ours", **epochs)).run_training()
    raw = tiny(tiny_model, tmp_path / "raw", check_model=False, **epochs)
    raw["tuner_type"] = raw.pop("train_type")
    raw["gradient_checkpointing"] = True  # ms-swift's default, which the toolkit turns off here
    code = "import gc, sys; gc.disable(); from swift import sft_main; gc.enable(); sft_main(sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, *flags(raw)], check=True, capture_output=True)
    (raw_run,) = (tmp_path / "raw").glob("v0-*")
    assert losses(ours.run_directory) == pytest.approx(losses(raw_run), abs=1e-5)
    assert len(losses(raw_run)) == 8


class Started:
    """A training on the command line that has reached its third step."""

    def __init__(self, settings: dict[str, Any], **environment: str) -> None:
        command = [sys.executable, str(ROOT / "finetune_trainer.py"), *flags(settings)]
        self.output = Path(settings["output_dir"])
        self.errors = self.output.with_suffix(".err")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, **environment}
            )
        deadline = time.monotonic() + 300
        while "step 3/" not in self.errors.read_text():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        in_place = settings.get("add_version") == "false"
        (self.run_directory,) = [self.output] if in_place else self.output.glob("v*-*")

    def wait(self) -> int:
        return self.process.wait(timeout=120)


@pytest.fixture
def started(tiny_model: Path, tmp_path: Path) -> Iterator[Started]:
    run = Started(tiny(tiny_model, tmp_path / "out", max_steps=5000, save_steps=1000))
    yield run
    run.process.kill()


@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_can_go_on(started: Started, tiny_model: Path) -> None:
    started.process.send_signal(signal.SIGINT)
    assert started.wait() == 130
    errors = started.errors.read_text()
    content = json.loads((started.run_directory / "result.json").read_text())
    assert content["status"] == "stopped"
    step = content["steps"]
    checkpoint = started.run_directory / f"checkpoint-{step}"
    assert f"Interrupted at step {step}." in errors
    assert f"Last checkpoint: {checkpoint}. To resume from it:" in errors
    assert "Traceback" not in errors
    assert not leftovers(started.run_directory)

    command = shlex.split(errors.strip().splitlines()[-1])
    assert command[:2] == ["python", "finetune_trainer.py"]
    command[command.index("--max_steps") + 1] = str(step + 2)
    resumed = run(*command[2:], "--json")
    assert resumed.returncode == 0, resumed.stderr
    result = json.loads(resumed.stdout)
    assert result["steps"] == step + 2
    assert result["run_directory"] == str(started.run_directory)
    assert len(losses(started.run_directory)) == step + 2
    assert (
        f'Changed since then, with no effect on what is learned: "max_steps" 5000 → {step + 2}.'
        in resumed.stderr
    )
    assert f"Resuming from {checkpoint}, step {step}." in " ".join(resumed.stderr.split())


@pytest.mark.slow
def test_a_stop_that_may_take_no_time(tiny_model: Path, tmp_path: Path) -> None:
    settings = tiny(tiny_model, tmp_path / "out", max_steps=5000, save_steps=1000)
    started = Started({**settings, "stop_grace": 0})
    started.process.send_signal(signal.SIGINT)
    assert started.wait() == 130
    content = json.loads((started.run_directory / "result.json").read_text())
    assert content["status"] == "interrupted"
    assert not list(started.run_directory.glob("checkpoint-*/trainer_state.json"))
    assert "No checkpoint was saved yet. To start again:" in started.errors.read_text()
    assert not leftovers(started.run_directory)


@pytest.mark.slow
def test_two_processes_stop_together(tiny_model: Path, tmp_path: Path) -> None:
    started = Started(tiny(tiny_model, tmp_path / "out", max_steps=5000, save_steps=1000), NPROC_PER_NODE="2")
    started.process.send_signal(signal.SIGINT)
    assert started.wait() == 130
    content = json.loads((started.run_directory / "result.json").read_text())
    assert content["status"] == "stopped"
    assert content["config"]["ddp_backend"] == "gloo"
    assert (started.run_directory / f"checkpoint-{content['steps']}").is_dir()
    assert not leftovers(started.run_directory)


def training_process(started: Started) -> int:
    """The process that trains, not those it started."""
    (pid,) = [int(pid) for pid in leftovers(started.run_directory) if os.getpgid(int(pid)) == int(pid)]
    return pid


@pytest.mark.slow
def test_sigterm_to_the_training_process_alone_is_no_success(started: Started) -> None:
    os.kill(training_process(started), signal.SIGTERM)
    assert started.wait() == 143
    content = json.loads((started.run_directory / "result.json").read_text())
    assert content["status"] == "stopped"
    step = content["steps"]
    said = started.errors.read_text().splitlines()
    assert f"Interrupted at step {step}." in said
    assert f"Last checkpoint: {started.run_directory}/checkpoint-{step}. To resume from it:" in said
    assert said[-1].endswith(" --resume")
    assert "Trained" not in started.errors.read_text()


@pytest.mark.slow
def test_a_training_that_the_system_kills(started: Started) -> None:
    os.kill(training_process(started), signal.SIGKILL)
    assert started.wait() == 1
    said = [line.partition(" (about")[0] for line in started.errors.read_text().splitlines()]
    assert said[-3:] == [
        "Training failed: the system killed the training process, most likely because memory ran out. "
        f"Full log: {started.run_directory}/train.log",
        "Out of memory? In this order, try:",
        "  --per_device_train_batch_size 1 --gradient_accumulation_steps 2",
    ]
    assert json.loads((started.run_directory / "result.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_a_killed_trainer_leaves_no_process_behind(started: Started) -> None:
    assert leftovers(started.run_directory)
    started.process.kill()
    deadline = time.monotonic() + 30
    while leftovers(started.run_directory) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not leftovers(started.run_directory)


@pytest.mark.slow
def test_a_run_that_fails_says_why(tiny_model: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text('raise ValueError("the plugin cannot go on")\n')
    done = run(*flags(tiny(tiny_model, tmp_path, external_plugins=str(plugin))))
    assert done.returncode == 1, done.stderr
    (directory,) = tmp_path.glob("v0-*")
    assert done.stderr.splitlines()[-1].startswith("Training failed: ValueError: ")
    assert done.stderr.splitlines()[-1].endswith(f"Full log: {directory}/train.log")
    assert "Traceback" not in done.stderr
    assert "Traceback" in (directory / "train.log").read_text()
    content = json.loads((directory / "result.json").read_text())
    assert content["status"] == "failed"
    assert content["error"].startswith("Training failed: ValueError: the plugin cannot go on")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["lora_sft.json", "qlora_sft.json", "full_sft.json"])
def test_the_shipped_configs_train(config: str, tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    settings = {"model": str(tiny_model), "model_type": "llama", "template": "chatml", "dataset": DATA}
    settings |= {
        "output_dir": str(tmp_path),
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
        "report_to": "none",
    }
    result = FineTuner(f"configs/{config}", **settings).run_training()
    assert (result.status, result.steps) == ("done", 2)
    assert result.last_checkpoint is not None
    if config.startswith("full"):
        before = load_file(tiny_model / "model.safetensors")
        after = load_file(result.last_checkpoint / "model.safetensors")
        assert after.keys() == before.keys()
        assert any((after[name] != before[name]).any() for name in after)
        return
    trained = load_file(result.last_checkpoint / "adapter_model.safetensors")
    learned = [weight.any() for name, weight in trained.items() if "lora_B" in name]
    assert len(learned) == 14 and all(learned)  # seven linear layers in each of two


def test_the_yaml_config_is_the_json_one() -> None:
    json_file, yaml_file = (load_config(f"configs/lora_sft.{kind}") for kind in ("json", "yaml"))
    assert {name: one.value for name, one in yaml_file.settings.items()} == {
        name: one.value for name, one in json_file.settings.items()
    }
    assert (yaml_file.preset, yaml_file.task, yaml_file.command) == (
        json_file.preset,
        json_file.task,
        json_file.command,
    )


@pytest.mark.slow
def test_the_multimodal_config_trains_on_pictures(tiny_llava: Path, tmp_path: Path) -> None:
    settings = {
        "model": str(tiny_llava / "model"),
        "model_type": "llava1_5_hf",
        "template": "llava1_5_hf",
        "dataset": str(tiny_llava / "train.jsonl"),
        "output_dir": str(tmp_path),
        "split_dataset_ratio": 0.2,
        "report_to": "none",
    }
    result = FineTuner("configs/multimodal_sft.json", **settings, max_steps=2).run_training()
    assert (result.status, result.steps) == ("done", 2)
    assert result.metrics["eval_loss"] > 0
    assert (result.run_directory / "checkpoint-2/adapter_model.safetensors").exists()


@pytest.mark.slow
def test_the_shipped_boxes_are_learned(tiny_llava: Path, tmp_path: Path) -> None:
    """``<ref-object>`` and ``<bbox>`` become text, and the loss on them falls."""
    given = {"model": str(tiny_llava / "model"), "model_type": "llava1_5_hf", "template": "llava1_5_hf"}
    given |= {"preset": "multimodal", "dataset": "data/grounding.jsonl", "output_dir": str(tmp_path)}
    small = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
    }
    result = FineTuner(given | small, train_type="full", learning_rate=3e-3, max_steps=40).run_training()
    lines = (result.run_directory / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [log["loss"] for log in map(json.loads, lines) if "loss" in log]
    assert result.status == "done" and losses[-1] < losses[0] * 0.7, losses


def test_multimodal_data_needs_media() -> None:
    done = run("--config", "configs/multimodal_sft.json", "--dataset", DATA, "--dry-run")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        '"--dataset" has no images, videos or audios, which the preset "multimodal" expects. '
        'Add them to the rows, or set "preset" to "lora".'
    )


# --- data ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_data(tmp_path: Path) -> Path:
    """Nine good rows and one without an answer."""
    path = tmp_path / "mine.jsonl"
    rows = Path(DATA).read_text(encoding="utf-8").splitlines()[:9]
    path.write_text(
        "\n".join([*rows, '{"messages": [{"role": "user", "content": "And?"}]}']) + "\n", encoding="utf-8"
    )
    return path


def test_verify_data_shows_all_and_writes_a_page(bad_data: Path, tmp_path: Path) -> None:
    page = tmp_path / "data.html"
    done = run(
        "--config",
        "configs/quickstart.json",
        "--dataset",
        str(bad_data),
        "--verify-data",
        "--report",
        str(page),
    )
    assert done.returncode == 2
    assert done.stdout.splitlines()[0] == f"{bad_data}: messages, 10 rows, 1 bad"
    assert (
        f'  {bad_data}:10: row has no answer: the last message must be from "assistant".'
        in done.stdout.splitlines()
    )
    assert "tokens per row (estimated)" in done.stdout
    assert re.fullmatch(r"1 error, no warnings, \d+\.\d s", done.stdout.splitlines()[-1])
    assert "row has no answer" in page.read_text(encoding="utf-8")


def test_convert_writes_messages(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,response\nWho?,Robin\n")
    out = tmp_path / "a.jsonl"
    done = run(
        "--config", "configs/quickstart.json", "--dataset", str(tmp_path / "a.csv"), "--convert", str(out)
    )
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    (row,) = map(json.loads, out.read_text().splitlines())
    assert [message["content"] for message in row["messages"]] == ["Who?", "Robin"]


def test_a_dry_run_says_that_too_many_rows_are_bad(bad_data: Path) -> None:
    asked = ("--config", "configs/quickstart.json", "--dataset", str(bad_data), "--dry-run")
    done = run(*asked, "--skip-bad-rows", "10%")
    assert done.returncode == 0
    assert "9 rows, 1 bad (messages)" in done.stdout
    done = run(*asked, "--skip-bad-rows", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "1 of 10 rows is bad; at most 0 may be skipped. Fix them, or allow more."
    )
    done = run(*asked, "--skip-bad-rows", "few")
    assert done.returncode == 2
    assert done.stderr == '"--skip-bad-rows" is "few". Write a number of rows, or a share such as "5%".\n'


def test_flags_that_cannot_be_followed(tmp_path: Path) -> None:
    asked = ("--config", "configs/quickstart.json")
    done = run(
        *asked,
        "--report",
        str(tmp_path),
        "--convert",
        str(tmp_path / "no/a.jsonl"),
        "--exact",
        "--preview",
        "0",
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f'"--report" names "{tmp_path}", which is a directory. Give a file.',
        f'"--convert" names "{tmp_path}/no/a.jsonl", whose directory does not exist. Create it first, or give another path.',
        '"--report" needs --verify-data. Add that, or remove this.',
        '"--exact" needs --verify-data. Add that, or remove this.',
        '"--preview" is 0; it must be at least 1.',
    ]
    done = run(*asked, "--convert", DATA)
    assert (done.returncode, done.stderr) == (
        2,
        '"--convert" names a file that is an input. Give another one.\n',
    )


@pytest.mark.slow
def test_bad_rows_are_left_out_on_request_and_counted(
    bad_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = tiny(tiny_model, tmp_path / "out", dataset=str(bad_data), max_steps=2)
    assert run(*flags(settings)).returncode == 2
    done = run(*flags(settings), "--skip-bad-rows", "1")
    assert done.returncode == 0, done.stderr
    assert "Skipping 1 bad row, listed with reasons in" in done.stderr
    (directory,) = (tmp_path / "out").glob("v0-*")
    given = json.loads((directory / "result.json").read_text())["data"]["given"]
    assert given["rows_left_out"] == 1
    assert "And?" in (directory / "data/rejected.jsonl").read_text()
    assert len((directory / "data/mine.jsonl").read_text(encoding="utf-8").splitlines()) == 9
