"""``--resume``: what is refused before anything starts, and real runs that are killed and go on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer import FineTuner
from swift_toolkit.machine.msswift import installed
from swift_toolkit.problems import RequestError
from swift_toolkit.training import resume
from tests.training_checkpoints import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
DATA = str(ROOT / "data/self_cognition.jsonl")


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    fixed = {"model": str(tiny_model), "model_type": "llama", "template": "chatml", "train_type": "lora"}
    return {**fixed, "dataset": DATA, "output_dir": str(tmp_path / "out"), "max_steps": 4}


@pytest.fixture
def run(settings: dict[str, Any]) -> Path:
    """A run of ``settings`` that was killed after its checkpoint at step 2."""
    run = Path(settings["output_dir"]) / "v0-20260101-000000"
    write_checkpoint(run / "checkpoint-2")
    resume.requested(FineTuner(settings).plan).write(run)
    return run


def refused(settings: dict[str, Any], **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        FineTuner(settings, **{"resume": True, **options})
    return str(caught.value)


def test_it_goes_on_where_it_was(settings: dict[str, Any], run: Path) -> None:
    plan = FineTuner(settings, resume=True, save_steps=1).describe()
    assert plan["arguments"]["resume_from_checkpoint"] == str(run / "checkpoint-2")
    assert plan["arguments"]["output_dir"] == str(run)
    assert plan["resume"] == [
        f"Resuming from {run}/checkpoint-2, step 2.",
        'Changed since then, with no effect on what is learned: "save_steps" not set → 1.',
    ]


def test_streamed_rows_are_processed_again(settings: dict[str, Any], run: Path) -> None:
    settings["streaming"] = True
    resume.requested(FineTuner(settings).plan).write(run)
    assert FineTuner(settings, resume=True).describe()["resume"] == [
        f"Resuming from {run}/checkpoint-2, step 2.",
        'With "streaming", ms-swift processes the earlier rows again; otherwise they are skipped at once.',
    ]


def test_nothing_to_resume_is_no_error(settings: dict[str, Any]) -> None:
    plan = FineTuner(settings, resume=True).describe()
    assert "resume_from_checkpoint" not in plan["arguments"]
    assert plan["resume"] == [
        f"Nothing to resume in {settings['output_dir']}: the run starts from the beginning."
    ]


def test_a_place_that_is_named_must_hold_a_run(settings: dict[str, Any], tmp_path: Path) -> None:
    assert refused(settings, resume=tmp_path) == (
        f'"--resume" {tmp_path} has no run to resume. '
        "Name a run directory (vN-<time>), a checkpoint-N in it, or an output directory with runs."
    )


def test_a_finished_run(settings: dict[str, Any], run: Path) -> None:
    assert refused(settings, max_steps=2) == (
        f'{run}/checkpoint-2 is at step 2 of 2: the run is finished. To train longer, raise "max_steps".'
    )
    shutil.rmtree(run / "checkpoint-2")
    write_checkpoint(run / "checkpoint-2", max_steps=2, num_train_epochs=1)
    del settings["max_steps"]
    assert 'To train longer, raise "num_train_epochs".' in refused(settings, num_train_epochs=1)
    FineTuner(settings, num_train_epochs=2, resume=True)


def test_what_is_learned_changed(settings: dict[str, Any], run: Path, tmp_path: Path) -> None:
    assert refused(settings, learning_rate=1e-3) == (
        f'settings that affect what is learned changed since {run}/checkpoint-2: "learning_rate" 0.0001 → 0.001. '
        "Undo the change, or add --force to resume with it. To start a new run, omit --resume."
    )
    FineTuner(settings, learning_rate=1e-3, resume=True, force=True)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(Path(DATA).read_text(encoding="utf-8").splitlines(keepends=True)[:80]))
    assert "the data of train" in refused(settings, dataset=str(other))
    assert "the data of train" in refused(settings, dataset=f"{DATA}#40")
    shutil.copy(DATA, other)
    FineTuner(settings, dataset=str(other), resume=True)  # the same rows at another place


def test_another_tuner_or_rank(settings: dict[str, Any], run: Path) -> None:
    assert refused(settings, train_type="full", force=True) == (
        f'"train_type" is "full", but {run}/checkpoint-2 was trained with "lora". Set it to "lora".'
    )
    assert refused(settings, lora_rank=64, force=True) == (
        f'"lora_rank" is 64 and has no effect: {run}/checkpoint-2 was trained with 8. Set it to 8, or remove it.'
    )


def test_a_checkpoint_of_another_generation_of_ms_swift(settings: dict[str, Any], run: Path) -> None:
    shutil.rmtree(run / "checkpoint-2")
    other = {"train_type": "lora"} if installed().line == "v4" else {"swift_version": "4.6.0"}
    checkpoint = write_checkpoint(run / "checkpoint-2", **other)
    number = 3 if installed().line == "v4" else 4
    assert refused(settings) == (
        f"ms-swift {installed().version} cannot load the optimizer state in {checkpoint}, "
        f"which ms-swift {number} wrote. Resume with ms-swift {number}, or start a new training from its weights only: "
        'set "resume_only_model" to true together with "resume_from_checkpoint".'
    )


def test_another_base(settings: dict[str, Any], run: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    FineTuner(settings, model=str(other), resume=True)  # the same model at another place
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 1}))
    assert refused(settings, model=str(other), force=True) == (
        f'"model" is not the model that {run}/checkpoint-2 was trained from, "{tiny_model}". Set it back.'
    )


def test_other_processes_under_deepspeed(settings: dict[str, Any], run: Path) -> None:
    shutil.rmtree(run / "checkpoint-2")
    checkpoint = write_checkpoint(
        run / "checkpoint-2", processes=2, deepspeed={"zero_optimization": {"stage": 2}}
    )
    (checkpoint / "latest").write_text("global_step2")
    (checkpoint / "global_step2").mkdir()
    for name in ("mp_rank_00_model", "zero_pp_rank_0_mp_rank_00_optim", "zero_pp_rank_1_mp_rank_00_optim"):
        shutil.copy(checkpoint / "optimizer.pt", checkpoint / f"global_step2/{name}_states.pt")
    message = (
        f"{checkpoint} was written by DeepSpeed with 2 processes, but this run has 1. Use --nproc-per-node 2"
    )
    assert message in refused(settings)


def test_a_checkpoint_that_is_named_in_the_settings(settings: dict[str, Any], run: Path) -> None:
    """``resume_from_checkpoint`` goes through the same checks; a new run begins there."""
    plan = FineTuner(settings, resume_from_checkpoint=str(run / "checkpoint-2")).describe()
    assert Path(plan["arguments"]["output_dir"]).name.startswith("v1-")
    named = str(run / "checkpoint-2")
    assert "settings that affect what is learned changed" in refused(
        settings, resume=False, resume_from_checkpoint=named, learning_rate=1e-3
    )
    assert refused(settings, resume_from_checkpoint=named, resume_only_model=True) == (
        '"resume_from_checkpoint" names a checkpoint, but --resume finds it automatically. Remove one of them.\n'
        '"resume_only_model" skips the optimizer state, which --resume needs. Remove one of them.'
    )
    (run / "checkpoint-2/optimizer.pt").write_bytes((run / "checkpoint-2/optimizer.pt").read_bytes()[:500])
    message = refused(settings, resume=False, resume_from_checkpoint=named)
    assert f'"resume_from_checkpoint" cannot be used: {named}/optimizer.pt is cut short or damaged' in message


def test_looking_at_all_of_it_is_quick(settings: dict[str, Any], run: Path) -> None:
    """Neither torch nor ms-swift is imported to decide where a run goes on."""
    code = "import json, sys; from finetune_trainer import FineTuner\n"
    code += "FineTuner(json.loads(sys.argv[1]), resume=True).describe()\n"
    code += "print(sorted({'torch', 'swift', 'transformers'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(settings)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_killed_runs_go_on_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    """Killed at start-up, in a save and in an evaluation; the benchmark has more kills, and other trainings."""
    command = [sys.executable, str(ROOT / "benchmarks/resume.py"), "--runs", "1", "--model", str(tiny_model)]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r'"failed": 0', done.stdout)
