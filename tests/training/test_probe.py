"""One real step with the longest rows before the run."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.request import load_config
from swift_toolkit.config.settings import Config
from swift_toolkit.training import preflight, probe
from swift_toolkit.training.process.launch import Cluster
from tests.test_finetune_trainer import ROOT, flags, losses, run, tiny


def rows(path: Path, *lengths: int) -> str:
    """A file with answers of so many words."""
    content = [
        {"messages": [{"role": "user", "content": "Tell."}, {"role": "assistant", "content": f"w{n} " * n}]}
        for n in lengths
    ]
    path.write_text("\n".join(map(json.dumps, content)) + "\n")
    return str(path)


def prepared(folder: Path, processes: int = 1, **settings: Any) -> tuple[Config, list[int], list[int]]:
    """The settings of the step, and the words of the answers in its training and validation data."""
    request = load_config({"model": "Qwen/Qwen2.5-7B", **settings})
    made = probe.prepare_probe(request, preflight.check_data(request), folder / "probe", processes)

    def words(name: str) -> list[int]:
        files = [Path(path) for path in made.get(name, [])]
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [len(line["messages"][-1]["content"].split()) for line in lines]

    return made, words("dataset"), words("val_dataset")


def test_the_longest_rows_of_both_splits_are_taken(tmp_path: Path) -> None:
    data, val = rows(tmp_path / "train.jsonl", 3, 50, 7, 90, 20), rows(tmp_path / "val.jsonl", 5, 300, 8)
    made, train_words, val_words = prepared(
        tmp_path, dataset=data, val_dataset=val, per_device_train_batch_size=2, gradient_accumulation_steps=1
    )
    assert (train_words, val_words) == ([90, 50], [300])
    assert (made.get("max_steps"), made.get("save_strategy"), made.get("eval_steps")) == (1, "no", 1)
    assert made.get("output_dir") == str(tmp_path / "probe")


def test_a_step_of_several_processes_and_with_accumulation_has_rows_enough(tmp_path: Path) -> None:
    data = rows(tmp_path / "train.jsonl", 3, 50, 7)
    made, train_words, val_words = prepared(
        tmp_path, 2, dataset=data, gradient_accumulation_steps=16, num_train_epochs=9
    )
    assert train_words == [50, 7, 3, 50]  # two processes, two of the sixteen accumulations
    assert made.get("gradient_accumulation_steps") == 2
    assert val_words == []
    assert not {"eval_steps", "num_train_epochs"} & set(made.settings)


def test_rows_that_are_split_off_are_validated_with(tmp_path: Path) -> None:
    data = rows(tmp_path / "train.jsonl", 3, 50, 7)
    made, _, val_words = prepared(tmp_path, dataset=data, split_dataset_ratio=0.1)
    assert val_words == [50]
    assert made.get("split_dataset_ratio") == 0
    _, _, without = prepared(tmp_path, dataset=data, split_dataset_ratio=0.1, eval_strategy="no")
    assert without == []


def test_what_cannot_be_tried() -> None:
    request = load_config({"model": "Qwen/Qwen2.5-7B", "dataset": "owner/data"})
    found = [
        str(problem) for problem in probe.probe_problems(preflight.check_data(request), Cluster(nodes=2))
    ]
    assert found == [
        '"--probe" cannot find the longest rows of "owner/data", which is not on this machine. Download it.',
        '"--probe" works on one machine only. Try the run on one machine first.',
    ]


@pytest.mark.slow
def test_a_run_that_fits_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    data, val = rows(tmp_path / "train.jsonl", *range(5, 25)), rows(tmp_path / "val.jsonl", 60)
    done = run(
        *flags(tiny(tiny_model, tmp_path / "out", dataset=data, val_dataset=val, max_steps=2)), "--probe"
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr
    assert "Running one step with the longest rows." in said
    (line,) = [line for line in said.splitlines() if line.startswith("The longest rows took ")]
    assert line.endswith(": fits.")
    (directory,) = (tmp_path / "out").glob("v0-*")
    assert not (directory / "probe").exists()
    assert len(losses(directory)) == 2


@pytest.mark.slow
def test_a_run_that_does_not_fit_stops_with_advice(tiny_model: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "train.jsonl", 20_000, 20_001, 20_002)
    settings = tiny(
        tiny_model, tmp_path / "out", dataset=data, per_device_train_batch_size=3, max_length=8000
    )
    command = [*flags({**settings, "truncation_strategy": "right"}), "--probe"]
    # Of addresses: ms-swift takes 3 to 4 GiB, and the logits 24000 × 49152 × 4 bytes, several times.
    limit = 8 << 30
    done = subprocess.run(
        [sys.executable, str(ROOT / "finetune_trainer.py"), *command],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 1
    said = done.stderr[done.stderr.index("One step with the longest rows failed: ") :].splitlines()
    assert "allocate memory" in said[0]
    assert said[1] == "Out of memory? In this order, try:"
    assert said[2].startswith("  --per_device_train_batch_size 1 --gradient_accumulation_steps 3 (about ")
    (directory,) = (tmp_path / "out").glob("v0-*")
    assert (directory / "probe/train.log").is_file()
    assert not list(directory.glob("checkpoint-*"))
