"""Training scripts in the style of the guide of ms-swift 1: each runs today, and what ``--upgrade`` makes of it, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swift_toolkit.config import requirements
from swift_toolkit.config.request import read_request
from swift_toolkit.config.scripts.script import from_command
from swift_toolkit.config.scripts.upgrade import upgrade
from swift_toolkit.problems import Problem

SCRIPTS = sorted((Path(__file__).parent / "scripts_of_version_1").glob("*.sh"))
NEEDS = {"04_lora_ddp_ds.sh": "deepspeed", "05_qlora.sh": "bitsandbytes", "13_base_ddp.sh": "flash-attn"}
"""Packages that a script needs and that may not be installed."""
LONGLORA = 'is "longlora", which ms-swift cannot train with transformers 4.48 or later'


def test_there_are_thirteen() -> None:
    assert len(SCRIPTS) == 13


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_accepted_and_its_upgrade_is_the_same_request(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "val.jsonl"):
        Path(name).write_text('{"query": "a?", "response": "b"}\n')
    command = from_command(script.read_text(encoding="utf-8"), file=str(script))
    assert not [line for line in command.left_out if "not known" in line]
    config, problems = read_request(command.values, overrides_from="command line")
    assert not [problem for problem in problems if not _is_expected(problem, script)]
    assert not any("is not a setting" in notice for notice in config.notices)

    upgrade(command.values, tmp_path / "new.yaml")
    again, problems = read_request(tmp_path / "new.yaml")
    assert not [problem for problem in problems if not _is_expected(problem, script)]
    assert {name: setting.value for name, setting in again.settings.items()} == {
        name: setting.value for name, setting in config.settings.items()
    }
    assert not [notice for notice in again.notices if "→" in notice]


def _is_expected(problem: Problem, script: Path) -> bool:
    package = NEEDS.get(script.name)
    if script.stem == "08_longlora" and problem.what == LONGLORA:
        return True
    return package is not None and f"needs the package {package}" in problem.what


@pytest.mark.parametrize(
    ("name", "said", "unsaid"),
    [
        ("01_lora", "lora_target_modules: was the query, key and value layers", "learning_rate 2e-5"),
        ("07_full_mp_ddp", "learning_rate 2e-5 before 1.6", "target_modules the query"),
        ("12_ia3", "truncation_strategy left before 1.4", "target_modules the query"),
    ],
)
def test_defaults_that_changed_the_result_are_said(name: str, said: str, unsaid: str) -> None:
    text = (Path(__file__).parent / f"scripts_of_version_1/{name}.sh").read_text(encoding="utf-8")
    config, _ = read_request(from_command(text).values)
    notices = "\n".join(config.notices)
    assert said in notices
    assert unsaid not in notices


@pytest.mark.parametrize(("version", "trains"), [("4.47.1", True), ("4.48.0", False), ("5.19.0", False)])
def test_longlora_is_refused_where_its_attention_fails(version: str, trains: bool) -> None:
    config, _ = read_request({"model": "m/m", "dataset": "d/d", "train_type": "longlora"})
    config.install = replace(config.install, transformers_version=version)
    found = [problem.what for problem in requirements.excludes(config)]
    assert found == ([] if trains else [LONGLORA])


def test_requests_of_today_hear_of_no_old_defaults() -> None:
    config, _ = read_request({"model": "m/m", "dataset": "d/d", "train_type": "full"})
    assert not any("different" in notice for notice in config.notices)
