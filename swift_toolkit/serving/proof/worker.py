"""The process that asks one side: the checkpoint through ms-swift, or the artefact without it.

It reads one `ProofOrder` as JSON from stdin and reports one ``asked`` or ``failed`` event. An artefact is run as other
users would run it, with its own tokenizer, chat template and stop tokens: in transformers, or in llama.cpp if that is
installed and the artefact is a GGUF file.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from swift_toolkit.machine.process import Reporter
from swift_toolkit.serving.proof.exchange import ProofOrder
from swift_toolkit.serving.proof.sides import LlamaCpp, Original, Reader, Transformers


def reader_of(order: ProofOrder) -> Reader:
    """Create the reader for the side in ``order``."""
    if order.arguments:
        return Original(order)
    if Path(order.path).suffix == ".gguf" and LlamaCpp.is_installed():
        try:
            return LlamaCpp(order)
        except (ImportError, OSError, RuntimeError):  # its library does not fit this system
            traceback.print_exc()
    return Transformers(order)


def main(report: Reporter) -> int:
    """Ask one side. Returns the exit status."""
    import msgspec

    report.end_with_starter()
    try:
        order = msgspec.json.decode(sys.stdin.readline(), type=ProofOrder)
        side = reader_of(order).side()
    except (Exception, SystemExit) as error:  # an argument parser ends with SystemExit
        traceback.print_exc()
        report("failed", type=type(error).__name__, message=str(error))
        return 1
    report("asked", side=msgspec.to_builtins(side))
    return 0


if __name__ == "__main__":
    report = Reporter()
    report.exit(main(report))
