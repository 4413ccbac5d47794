"""``python -m swift_toolkit runs``: the state of each run, and what could be removed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit import __main__
from swift_toolkit.config.request import load_config
from swift_toolkit.runs import lock, resume, table
from tests.training_checkpoints import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
GIVEN = {"model": "/models/tiny", "tuner_type": "lora", "dataset": "/data/a.jsonl"}


def make_run(directory: Path, step: int = 0, max_steps: int = 4, status: str | None = None) -> Path:
    """A run that came to ``step`` and saved there."""
    directory.mkdir(parents=True)
    resume.StoredRequest(None, GIVEN, (), {}, "m", 1, 16).write(directory)
    if step:
        write_checkpoint(directory / f"checkpoint-{step}")
        lines = [{"loss": 1 / at, "global_step/max_steps": f"{at}/{max_steps}"} for at in range(1, step + 1)]
        (directory / "logging.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status:
        (directory / "result.json").write_text(json.dumps({"status": status, "error": None}))
    return directory


@pytest.fixture
def output(tmp_path: Path) -> Path:
    make_run(tmp_path / "a/v0-20260101-000000", 4, status="done")
    make_run(tmp_path / "a/v1-20260102-000000", 2)
    make_run(tmp_path / "b/v0-20260103-000000", 2, status="failed")
    make_run(tmp_path / "b/v1-20260104-000000")
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert __main__.main(["runs", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_run_with_its_state(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock.held(output / "b/v1-20260104-000000", str):
        runs = listed(capsys, output)["runs"]
    assert [(run["directory"], run["state"], run["resumable"], run["step"]) for run in runs] == [
        (f"{output}/b/v1-20260104-000000", "running", False, 0),
        (f"{output}/b/v0-20260103-000000", "failed", True, 2),
        (f"{output}/a/v1-20260102-000000", "killed", True, 2),
        (f"{output}/a/v0-20260101-000000", "done", False, 4),
    ]
    assert runs[1] | {"error": "out of memory"} == {
        "directory": f"{output}/b/v0-20260103-000000",
        "started": "2026-01-03 00:00:00",
        "state": "failed",
        "resumable": True,
        "model": "/models/tiny",
        "task": "sft",
        "tuner": "lora",
        "data": "/data/a.jsonl",
        "step": 2,
        "max_steps": 4,
        "best_loss": 0.5,
        "error": "out of memory",
        "faults": [],
    }


def test_the_table(output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(output)  # a long path would be wrapped
    assert __main__.main(["runs", "."]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["started", "run", "model", "task", "data", "steps", "best", "loss", "state"]
    assert [line[-2:] for line in lines[1:]] == [
        ["0", "killed"],
        ["failed,", "resumable"],
        ["killed,", "resumable"],
        ["0.2500", "done"],
    ]


def test_one_run(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = listed(capsys, output / "a/v1-20260102-000000")["runs"]
    assert run["state"] == "killed"


def test_a_run_whose_optimizer_is_gone_cannot_go_on(output: Path) -> None:
    (output / "a/v1-20260102-000000/checkpoint-2/optimizer.pt").unlink()
    assert not table.read_run(output / "a/v1-20260102-000000").resumable


def test_what_nothing_needs_goes_only_with_yes(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = write_checkpoint(output / "a/v1-20260102-000000/checkpoint-3")
    (torn / "trainer_state.json").unlink()
    aside = output / "a/v0-20260101-000000/damaged-checkpoint-3"
    shutil.copytree(torn, aside)
    never = output / "b/v1-20260104-000000"
    found = listed(capsys, "clean", output)
    assert [(one["path"], one["why"]) for one in found["found"]] == [
        (str(never), "killed without a checkpoint"),
        (str(torn), "its save was interrupted"),
        (str(aside), "damaged, and the run was resumed from an earlier one"),
    ]
    assert found["bytes"] > 10_000
    assert all(path.exists() for path in (never, torn, aside))
    assert listed(capsys, "clean", output, "--yes")["removed"]
    assert not any(path.exists() for path in (never, torn, aside))
    assert (output / "a/v1-20260102-000000/checkpoint-2").exists()


BROKEN = {
    "cut short": '{"status": "do',
    "empty": "",
    "no object": "[1, 2]",
    "of another type": '{"status": 5, "given": "x", "settings": [], "facts": {"a": 1}, "pid": "x", "started": {}}',
    "no text": "\udcff\udcfe",
}
FILES = "result.json request.json plan.json args.json .lock logging.jsonl measured.jsonl"


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", FILES.split())
def test_a_broken_record_is_named(
    output: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    run, other = output / "a/v1-20260102-000000", output / "a/v0-20260101-000000"
    (run / name).write_text(content, errors="surrogateescape")
    for words in (
        [output],
        ["show", run],
        ["compare", run, other, "--report", output / "c.html"],
        ["clean", output],
        ["show", run, "--report", output / "r.html"],
    ):
        assert __main__.main(["runs", *map(str, words)]) == 0
        said = capsys.readouterr().err
        if name in ("result.json", "request.json") and words == [output]:
            assert said.startswith(f"warning: {run / name} ")
            assert len(said.splitlines()) == 1
    found = listed(capsys, output)
    assert len(found["runs"]) == 4
    assert found["runs"][2]["state"] == ("unknown" if name == "result.json" else "killed")


@pytest.mark.parametrize("name", ["request.json", "logging.jsonl", "checkpoint-2/args.json"])
def test_a_record_without_one_of_its_files(
    output: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = output / "a/v1-20260102-000000"
    (run / name).unlink()
    for words in ([output], ["show", run], ["compare", run, output / "b"], ["clean", output]):
        assert __main__.main(["runs", *map(str, words)]) == 0


def test_a_run_that_goes_while_it_is_listed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = output / "b/v1-20260104-000000"
    read = table.read_progress

    def removed(directory: Path) -> object:
        if directory == gone:
            shutil.rmtree(gone)
            directory.stat()
        return read(directory)

    monkeypatch.setattr(table, "read_progress", removed)
    listing = table.runs_below(output)
    assert len(listing.runs) == 3
    assert listing.faults == (f"{gone} cannot be read: No such file or directory",)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["runs", str(tmp_path / "no")]) == 2
    assert __main__.main(["runs", str(tmp_path), "--yes"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/no is not a directory. Name the output directory of runs.",
        '"--yes" needs the action clean. Remove it, or use: runs clean --yes.',
    ]
    assert __main__.main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"No run below {tmp_path}.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnus"], '"rnus" is not a command. Did you mean "runs"?'),
        (["doctor"], '"doctor" is not a command. The commands are runs, cache.'),
        (["cache", "--claer"], '"--claer" is not a flag. Did you mean "--clear"?'),
        (
            ["cache", "all"],
            '"all" is not expected here. See python -m swift_toolkit cache --help.',
        ),
        (["runs", "--jsn"], '"--jsn" is not a flag. Did you mean "--json"?'),
        (["runs", "shwo"], 'shwo is not a directory. Did you mean "show"?'),
        (
            ["runs", "cmopare", "a", "b"],
            'only one directory can be listed; given: 3. Did you mean "compare"?',
        ),
        (["runs", "claen", "--yes"], '"--yes" needs the action clean. Did you mean "clean"?'),
        (["runs", "show", "lora"], 'lora is not a run. Did you mean "output/lora"?'),
        (["runs", "show", "output/loar"], 'output/loar is not a run. Did you mean "output/lora"?'),
    ],
)
def test_misspelled_words(
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(output)
    shutil.move(output / "a", output / "output/lora")
    assert __main__.main(words) == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([]) == 2
    assert "runs      list the training runs" in capsys.readouterr().err


def test_it_is_a_module_that_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "swift_toolkit", "runs", "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: python -m swift_toolkit runs" in done.stdout


@pytest.mark.parametrize("task", ["sft", "pt", "dpo", "grpo", "seq_cls", "embedding"])
def test_the_task_of_a_run_is_listed(task: str, tmp_path: Path) -> None:
    name = {"sft": "lora_sft"}.get(task, task)
    config = load_config(ROOT / f"configs/{name}.json")
    resume.request_of(config, {}, 1, 16).write(tmp_path)
    assert table.read_run(tmp_path).cells()[3] == f"{task} lora"
