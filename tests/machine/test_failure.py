"""The reason that is shown is the first cause, not what followed from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from swift_toolkit.machine import failure

SUMMARY = """
============================================================
swift_toolkit.training.process.worker FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-24_13:00:01
  host      : a
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 99) (SIGTERM)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 99
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-24_13:00:00
  host      : a
  rank      : 3 (local_rank: 3)
  exitcode  : -{number} (pid: 100) ({name})
  error_file: <N/A>
  traceback : Signal
============================================================
"""
LOST = "Connection closed by peer [127.0.0.1]:4711"


def error(rank: int, message: str, time: float = 0.0, of: int = 4, cause: str | None = None) -> SimpleNamespace:  # fmt: skip
    return SimpleNamespace(rank=rank, of=of, time=time, type="RuntimeError", message=message, cause=cause)


@pytest.mark.parametrize(
    ("errors", "status", "log", "words", "memory"),
    [
        ([], 1, "", "the training process ended with status 1", False),
        ([], -9, "", "the system killed the training process, most likely because memory ran out", True),
        ([], -11, "", "the training process ended with SIGSEGV", False),
        ([error(0, "bad\nmore", of=1)], 1, "", "RuntimeError: bad", False),
        ([error(0, "CUDA out of memory. Tried", of=1)], 1, "", "RuntimeError: CUDA out of memory. Tried", True),
        ([error(0, "DefaultCPUAllocator: can't allocate memory: you tried", of=1)], 1, "",
         "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", True),
        ([error(0, LOST, 1.0), error(2, "bad", 2.0)], 1, "", "rank 2: RuntimeError: bad", False),
        ([error(2, "worse", 2.0), error(1, "bad", 1.0)], 1, "", "rank 1: RuntimeError: bad", False),
        ([error(0, LOST)], 1, "", f"rank 0: RuntimeError: {LOST}", False),
        ([error(0, LOST)], 1, SUMMARY.format(number=9, name="SIGKILL"),
         "the system killed the process of rank 3, most likely because memory ran out", True),
        ([], 1, SUMMARY.format(number=6, name="SIGABRT"), "the process of rank 3 ended with SIGABRT", False),
        ([error(0, LOST, cause="node 1 (b) has gone")], 1, SUMMARY.format(number=9, name="SIGKILL"), "node 1 (b) has gone", False),
        ([error(0, "bad")], -9, "", "rank 0: RuntimeError: bad", False),
    ],
)  # fmt: skip
def test_the_first_cause(
    errors: list[SimpleNamespace], status: int, log: str, words: str, memory: bool, tmp_path: Path
) -> None:
    (tmp_path / "train.log").write_text("x" * 10 + log)
    assert failure.reason(errors, status, tmp_path / "train.log") == (words, memory)


def test_the_first_error_of_an_engine_counts(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    where = "ERROR 11-25 02:51:49 [multiproc_executor.py:1063]"
    log.write_text(
        "(EngineCore pid=7) INFO 11-25 02:51:40 [core.py:107] Initializing a V1 LLM engine\n"
        f"(Worker pid=8) {where} Traceback (most recent call last):\n"
        f'(Worker pid=8) {where}   File "worker.py", line 1056, in worker_busy_loop\n'
        f"(Worker pid=8) {where} RuntimeError: Unsupported CPU attention configuration: head_dim=16\n"
        "(EngineCore pid=7) ERROR 11-25 02:51:49 [core.py:1512] EngineCore encountered a fatal error.\n"
        "(EngineCore pid=7) ERROR 11-25 02:51:49 [core.py:1512] RuntimeError: Worker failed, see above\n"
    )
    assert failure.engine_error(log) == "RuntimeError: Unsupported CPU attention configuration: head_dim=16"
    log.write_text("ValueError: of something else\n")
    assert failure.engine_error(log) is None
