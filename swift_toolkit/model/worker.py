"""The process that runs ms-swift's own export (started by merge.py) or unpacks a GGUF file (started by gguf.py).

It reads one JSON object from stdin, ``{"export": [...]}`` with an argument list for ms-swift's ExportArguments parser
or ``{"unpack": FILE, "output": DIRECTORY}``, and reports ``exported`` or ``failed`` through process.Reporter.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from pathlib import Path

from swift_toolkit.machine.msswift import export_function
from swift_toolkit.machine.process import Reporter
from swift_toolkit.model.checkpoints.old_adapter import with_peft_adapters
from swift_toolkit.model.gguf_reader import read_once


def main(report: Reporter) -> int:
    """Carry out one export. Returns the exit status."""
    report.end_with_starter()
    order = json.loads(sys.stdin.readline())
    try:
        if "unpack" in order:
            unpack(Path(order["unpack"]), Path(order["output"]))
        else:
            export_function()(with_peft_adapters(order["export"]))
    except (Exception, SystemExit) as error:  # an argument parser raises SystemExit
        traceback.print_exc()
        report("failed", type=type(error).__name__, message=str(error))
        return 1
    report("exported")
    return 0


def unpack(file: Path, output: Path) -> None:
    """Write the model and tokenizer of a GGUF file in the layout of transformers, with an args.json."""
    import transformers

    whole = {}
    if hasattr(transformers, "GgufConfig"):  # since transformers 5 the weights stay packed by default
        whole = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    folder, name = str(file.parent), file.name
    with read_once():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, **whole)
        model.save_pretrained(output)
        transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(output)
    recorded = file.with_name("args.json")
    if recorded.is_file():
        shutil.copyfile(recorded, output / recorded.name)


if __name__ == "__main__":
    report = Reporter()
    report.exit(main(report))
