"""Ctrl-C while a command is still importing its modules: it ends with status 130, as later, and without a traceback."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def quit_on_ctrl_c() -> None:
    """Make Ctrl-C end this process at once with status 130, until `raise_on_ctrl_c`. A process that ignores Ctrl-C, as
    under nohup, still ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def raise_on_ctrl_c() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(signum: int, frame: object) -> NoReturn:
    os._exit(130)
