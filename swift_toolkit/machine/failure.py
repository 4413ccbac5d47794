"""Why a run or a server ended: the first cause, from the reports of its processes and their exit status."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from swift_toolkit.machine.process import Child, ChildReport
from swift_toolkit.problems import RunError, first_line

TAIL_BYTES = 1 << 17  # at the end of the log, searched for torch.distributed.run's summary


class FailedProcess(Protocol):
    """The report of a failed training process; ``cause`` is set if another process ended the run."""

    @property
    def rank(self) -> int: ...
    @property
    def of(self) -> int: ...
    @property
    def time(self) -> float: ...
    @property
    def type(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def cause(self) -> str | None: ...


def reason(errors: Sequence[FailedProcess], exit_status: int, log: Path) -> tuple[str, bool]:
    """One line saying what ended the run, and whether memory ran out.

    A cause on another node comes first, then a killed process, then the first error that is not merely a broken
    connection to another process.

    Args:
        errors: the reports of the processes that failed.
        exit_status: of the process that was started; a negative value is the number of a signal.
        log: the output of that process.
    """
    causes = [error.cause for error in errors if error.cause]
    if causes:
        return causes[0], _lacks_memory(causes[0])
    rank, number = killed(log) if exit_status > 0 else (None, -exit_status)
    if number and not (errors and rank is None):
        whose = "the training process" if rank is None else f"the process of rank {rank}"
        if number == signal.SIGKILL:
            return f"the system killed {whose}, most likely because memory ran out", True
        return f"{whose} ended with {signal.Signals(number).name}", False
    if not errors:
        return f"the training process ended with status {exit_status}", False
    in_order = sorted(errors, key=lambda error: error.time)
    first = next((error for error in in_order if not LOST.search(error.message)), in_order[0])
    words = f"{first.type}: {first.message}".strip(": ")
    line = first_line(words)
    return (f"rank {first.rank}: {line}" if first.of > 1 else line), _lacks_memory(words)


def _lacks_memory(words: str) -> bool:
    low = words.lower()
    return (
        "out of memory" in low or "outofmemory" in low or "can't allocate memory" in low
    )  # the last one is a CPU's


_SUMMARY = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s*exitcode\s*: (-?\d+) \(pid: \d+\)")


def killed(log: Path) -> tuple[int | None, int]:
    """The first rank that a signal ended and the signal's number, from torch.distributed.run's summary; None and 0 if
    there is none, or if the log is missing."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None, 0
    for rank, status in _SUMMARY.findall(text):
        if int(status) < 0 and -int(status) != signal.SIGTERM:
            return int(rank), -int(status)
    return None, 0


_ENGINE_ERROR = re.compile(
    r"^\((?:EngineCore|Worker)[^)]*\) ERROR .*?\] (\w+(?:Error|Exception): .+)$", re.MULTILINE
)


def engine_error(log: Path) -> str | None:
    """The first error of vLLM's processes in ``log``; the server itself only reports that there was one."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
        found = _ENGINE_ERROR.search(file.read().decode("utf-8", "replace"))
    return found.group(1) if found else None


ENDED: ChildReport = {"event": "ended"}


def child_failure(event: Mapping[str, object], what: str, child: Child, log: Path) -> RunError:
    where = f"Full log: {log}"
    if event["event"] == "failed":
        return RunError(f"{what}: {event['type']}: {first_line(str(event['message']))}\n{where}")
    status = child.process.wait()
    if status == -9:
        return RunError(f"The engine was killed, most likely because memory ran out. {where}")
    return RunError(f"The engine ended unexpectedly with status {status}. {where}")


LOST = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|socket|remote (process|error)|ncclRemoteError"
    r"|timed out|unhandled system error",
    re.IGNORECASE,
)
"""Parts of the errors that gloo, NCCL and the store raise when another process has ended."""
