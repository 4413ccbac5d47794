"""Random command lines and configs, in this process: a status of the contract, a message, bounded time."""

from __future__ import annotations

import heapq
import json
import os
import resource
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

LONGEST_WAIT = 60.0
"""Seconds until a command hangs, whether it computes or waits; the machine may be busy."""

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
    times: list[tuple[float, int, str]] = []
    failures = []
    environment = dict(os.environ)
    for number in numbers(250, 10_000):
        script, words = commands.make(draw("commands", number))
        began, wall = processor_time(), time.monotonic()
        try:
            with writes_only_below(commands.folder):
                status = MAINS[script](words)
        except SystemExit as end:  # --help
            status = end.code
        except Exception as error:
            status = f"{type(error).__name__}: {error}"[:300]
        seconds, waited = processor_time() - began, time.monotonic() - wall
        times.append((seconds, number, " ".join([script, *words])[:300]))
        statuses[status] += 1
        said = capsys.readouterr()
        flaw = _flaw(status, seconds, said.out, said.err, "--json" in words)
        if flaw := flaw or (f"{waited:.0f} s" if waited > LONGEST_WAIT else ""):
            failures.append((number, script, words, flaw))
            with capsys.disabled():
                print("\nFAILED", *failures[-1], sep="\n  ", flush=True)
        os.environ.clear()
        os.environ.update(environment)
    with capsys.disabled():
        print(
            f"\n{len(times)} commands, {dict(statuses)}, {sum(one[0] for one in times):.0f} s; the slowest:"
        )
        for one in heapq.nlargest(3, times):
            print("  {:.2f} s: {}: {!r}".format(*one))
    assert failures == []


def processor_time() -> float:
    """Seconds of processor time of this process and of those that it started."""
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + of_children.ru_utime + of_children.ru_stime


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
