"""Random input to every part: each test runs a short part with the others, and all of it with ``make fuzz``.

FUZZ=all runs all, FUZZ_SEED=N chooses other inputs. A failure names the number of its input, which ``draw`` makes again.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEED = os.environ.get("FUZZ_SEED", "0")
LONGEST = 5.0
"""Seconds of processor time; nothing here takes longer."""


def numbers(short: int, whole: int) -> range:
    """The numbers of the inputs of a test; FUZZ_ONLY=A:B chooses some."""
    if only := os.environ.get("FUZZ_ONLY"):
        return range(*map(int, only.split(":")))
    return range(whole if os.environ.get("FUZZ") == "all" else short)


def draw(name: str, number: int) -> random.Random:
    """What makes the input ``number`` of a test."""
    return random.Random(f"{SEED}/{name}/{number}")


TEXTS = (
    "", " ", "a", "A b", "1", "-1", "0", "1e-4", "nan", "inf", "true", "null", "auto", "none", "all", "1,2", "50%", "²",
    "\0", "\n", "\x1b[2J", "\ud800", "é", "🙂", "﻿", "‮", "--", "-", "...", "…", "—x", "$HOME", "$(ls)", "`ls`", "{}", "[]",
    "{", "{{ 7*7 }}", "%s", "~", "~nouser/x", "/", "/etc", "/dev/null", "/proc/self/mem", ".", "..", "a/b", "a/b/c", "#5",
    "x" * 300, "x" * 5000, "x\0y", "file://x", "http://127.0.0.1:9/x", "name=path", "=", "lora", "full", "qlora", "v0",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (0, 1, -1, 2, 3, 64, 0.0, 0.5, -0.0, 1e-300, 1e308, 2**31, 2**63, 10**30, 10**400)


def value(draw: random.Random, depth: int = 2) -> Any:
    """Any value of JSON, most of them plain."""
    kind = draw.random()
    if depth and kind < 0.1:
        return [value(draw, depth - 1) for _ in range(draw.randrange(4))]
    if depth and kind < 0.2:
        return {draw.choice(TEXTS): value(draw, depth - 1) for _ in range(draw.randrange(4))}
    return draw.choice((*TEXTS, *NUMBERS, None, True, False))


def damaged(draw: random.Random, data: bytes) -> bytes:
    """``data`` with bytes cut, changed, doubled or put in."""
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + draw.randbytes(draw.choice((1, 4))) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + data[at // 2 :]
        elif kind == 3:
            data = (
                data[:at]
                + draw.choice((b"\0", b"\xff", b'"', b"{", b"]", b",", b"\n", b"\r", b": "))
                + data[at:]
            )
        else:
            data = data[:at] + data[at + draw.randrange(1, 20) :]
    return data


_written: list[str] | None = None


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if _written is None:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        _written.append(
            str(Path(os.fsdecode(arguments[0])).absolute()) if not isinstance(arguments[0], int) else ""
        )


sys.addaudithook(_notice)


@contextmanager
def writes_only_below(*folders: Path) -> Iterator[None]:
    """Assert that this process opens nothing for writing but below ``folders``, and what Python itself keeps."""
    global _written
    _written = written = []
    try:
        yield
    finally:
        _written = None
    own = [
        f"{tempfile.gettempdir()}/{start}swift-toolkit-" for start in ("", ".new-")
    ]  # what it needs for a moment
    cache = str(Path.home() / ".cache/swift-toolkit")
    allowed = (
        "/dev/",
        "/proc/self",
        cache,
        *own,
        *(f"{one}/" for one in folders),
        *(str(one) for one in folders),
    )
    others = [one for one in written if one and not one.startswith(allowed) and "__pycache__" not in one]
    assert others == [], others[:5]
