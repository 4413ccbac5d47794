"""Situations from daily work with ms-swift, each a folder of ``tests/cases`` with what must happen.

``case.json`` in the folder is an object:

    runs     a list of {"command", "status", "says", "never", "line"}: the arguments of ``python``, the exit status, texts
             that stdout or stderr contain, texts that they do not contain, and the only line of ms-swift ("v3" or "v4")
             that the run is for; runs follow one another in the same copy of the folder
    marks    names of pytest marks such as "slow" or "swift4"

Commands begin with one of the three scripts, which run in this process (in a separate one if the case is marked
slow), or with ``_tools/NAME.py``. The copy of the folder also contains everything from ``tests/cases/_files``.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.machine.msswift import installed

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "tests/cases"
FOLDERS = sorted(path.parent for path in CASES.glob("*/case.json"))


def case_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "case.json").read_text(encoding="utf-8"))


def marked(folder: Path) -> Any:
    marks = [getattr(pytest.mark, name) for name in case_of(folder).get("marks", [])]
    return pytest.param(folder, marks=marks, id=folder.name)


@pytest.mark.parametrize("folder", [marked(folder) for folder in FOLDERS])
def test_case(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case, place = case_of(folder), tmp_path / "case"
    shutil.copytree(folder, place)
    shutil.copytree(CASES / "_files", place, dirs_exist_ok=True)
    monkeypatch.chdir(place)
    runs = [run for run in case["runs"] if run.get("line") in (None, installed().line)]
    for run in runs:
        script, *words = shlex.split(run["command"])
        aside = script.startswith("_tools/") or "slow" in case.get("marks", [])
        status, said = (_in_a_process if aside else _here)(script, words, monkeypatch, capfd)
        assert status == run.get("status", 0), said
        missing = [text for text in run.get("says", []) if text not in said]
        assert not missing, f"{missing} not in:\n{said}"
        wrong = [text for text in (*run.get("never", []), "Traceback", "Unexpected ") if text in said]
        assert not wrong, f"{wrong} in:\n{said}"


def _here(
    script: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit status and output of a script called in this process."""
    main = importlib.import_module(script.removesuffix(".py")).main
    with monkeypatch.context() as context:
        before = dict(os.environ)
        context.setattr(sys, "argv", [script, *words])
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
        finally:
            os.environ.clear()
            os.environ.update(before)
    captured = capfd.readouterr()
    return status, captured.out + captured.err


def _in_a_process(
    script: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit status and output of a script or tool in a process of its own."""
    path = (CASES if script.startswith("_tools/") else ROOT) / script
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(path), *words], capture_output=True, text=True, env=environment, timeout=300
    )
    return done.returncode, done.stdout + done.stderr
