"""Random command lines and configs, in this process: a status of the contract, a message, bounded time."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import pytest

import deploy_model
import finetune_trainer
import inference_test
from tests.adapters import make_adapter
from tests.fuzz import LONGEST, draw, numbers, writes_only_below
from tests.fuzz.commands import Commands

MAINS = {
    "finetune_trainer.py": finetune_trainer.main,
    "inference_test.py": inference_test.main,
    "deploy_model.py": deploy_model.main,
}


@pytest.fixture
def commands(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    for name in ("swift_toolkit.training.run.train", "swift_toolkit.training.run.take_part"):
        monkeypatch.setattr(name, _started)
    monkeypatch.setattr("swift_toolkit.inference.engine.Engine.__init__", _started)
    monkeypatch.setattr("swift_toolkit.serving.server.Server.start", _started)
    monkeypatch.delenv("SWIFT_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return Commands(tmp_path, tiny_model, make_adapter(tiny_model, tmp_path / "checkpoint-1", 1))


def _started(*_: object, **__: object) -> NoReturn:
    raise AssertionError("something was started")


def test_commands(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    statuses: Counter[Any] = Counter()
    slowest = (0.0, 0)
    failures = []
    environment = dict(os.environ)
    for number in numbers(250, 10_000):
        script, words = commands.make(draw("commands", number))
        began = time.process_time()
        try:
            with writes_only_below(commands.folder):
                status = MAINS[script](words)
        except SystemExit as end:  # --help
            status = end.code
        except Exception as error:
            status = f"{type(error).__name__}: {error}"[:300]
        seconds = time.process_time() - began
        slowest = max(slowest, (seconds, number))
        statuses[status] += 1
        said = capsys.readouterr()
        if flaw := _flaw(status, seconds, said.out, said.err, "--json" in words):
            failures.append((number, script, words, flaw))
        os.environ.clear()
        os.environ.update(environment)
    with capsys.disabled():
        for failure in failures[:20]:
            print("\nFAILED", *failure, sep="\n  ")
        print(f"\n{sum(statuses.values())} commands, {dict(statuses)}, slowest {slowest[0]:.2f} s")
    assert failures == []


def _flaw(status: object, seconds: float, out: str, err: str, as_json: bool) -> str:
    if status not in (0, 2):
        return f"status {status}: {err[-600:]}"
    if "Traceback" in err or "Unexpected" in err:
        return err[-600:]
    if status == 2 and not err:
        return "no message"
    if seconds > LONGEST:
        return f"{seconds:.1f} s"
    if as_json and out and not out.startswith("usage"):
        try:
            json.loads(out)
        except ValueError:
            return f"not JSON: {out[:300]}"
    return ""
