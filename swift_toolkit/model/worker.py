"""The process in which ms-swift's own export runs: started and fed by merge.py.

It reads one JSON object from stdin, ``{"export": [...]}`` with an argument list for ms-swift's ExportArguments parser,
and reports ``exported`` or ``failed`` through process.Reporter.
"""

from __future__ import annotations

import json
import sys
import traceback

from swift_toolkit.machine.msswift import export_function
from swift_toolkit.machine.process import Reporter
from swift_toolkit.model.checkpoints.old_adapter import with_peft_adapters


def main(report: Reporter) -> int:
    """Carry out one export. Returns the exit status."""
    report.end_with_starter()
    order = json.loads(sys.stdin.readline())
    try:
        export_function()(with_peft_adapters(order["export"]))
    except (Exception, SystemExit) as error:  # an argument parser ends with SystemExit
        traceback.print_exc()
        report("failed", type=type(error).__name__, message=str(error))
        return 1
    report("exported")
    return 0


if __name__ == "__main__":
    report = Reporter()
    report.exit(main(report))
