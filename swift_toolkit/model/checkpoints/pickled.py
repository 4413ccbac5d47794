"""Whether a file that torch wrote (``.pt``, ``.pth``) is complete, and whether reading it would run code.

Such a file is a zip archive of uncompressed entries: one pickle, and the bytes of each tensor; see
https://docs.pytorch.org/docs/stable/notes/serialization.html. This module only lists the operations of the pickle and
never unpickles it.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from swift_toolkit.model.files import AGAIN, Fault

_TORCH = r"torch (\w*(Storage|Tensor)|Size|device|(float|bfloat|int|uint|complex|q?u?int|bits|per_)\w*|bool)"
_OF_TORCH = (
    r"torch\._utils _rebuild_\w+|torch\._tensor _rebuild_\w+|torch\.nn\.parameter Parameter"
    r"|torch\.storage \w+Storage|torch\.serialization _get_layout|torch\.(cuda|sparse)[\w.]* \w+(Storage|Tensor)"
)
_OF_PYTHON = (
    r"collections (OrderedDict|Counter|defaultdict)|_codecs encode"
    r"|(builtins|__builtin__) (set|bytearray|complex)"
)
_OF_NUMPY = (
    r"numpy(\._core|\.core)?\.multiarray (_reconstruct|scalar)|numpy (ndarray|dtype)|numpy\.dtypes \w+"
)
_OF_DEEPSPEED = r"deepspeed\.[\w.]+ \w+"

HARMLESS = re.compile("|".join((_TORCH, _OF_TORCH, _OF_PYTHON, _OF_NUMPY, _OF_DEEPSPEED)))
"""What a training state may import: what ``torch.load(weights_only=True)`` accepts, numpy arrays, which transformers
accepts too, and DeepSpeed's own classes."""

_BY_STACK = ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")  # torch neither writes nor reads these


def fault(file: Path, every_byte: bool = False) -> Fault | None:
    """What is wrong with ``file``; None if nothing is.

    Args:
        file: a file that ``torch.save`` wrote.
        every_byte: compare the checksum of every entry, which reads the whole file (about 1 GiB/s from memory);
            otherwise only its directory, the header of every entry and the pickle are checked.
    """
    if file.stat().st_size == 0:
        return f"{file} is empty", AGAIN
    with file.open("rb") as content:
        if content.read(1) == b"\x80":  # torch before 1.6 wrote pickles, whose length is unknown
            content.seek(0)
            return _code_fault(file, set(_of_old_torch(content)))
    try:
        with zipfile.ZipFile(file) as archive:
            return _entries_fault(file, archive, every_byte)
    except (zipfile.BadZipFile, ValueError, EOFError, OverflowError, NotImplementedError) as error:
        size = file.stat().st_size
        return f"{file} is cut short or damaged: {size:,} bytes, {str(error).splitlines()[0]}", AGAIN


def is_cut_short(file: Path) -> bool:
    """Whether ``file`` is empty or has lost its end; its contents are not checked."""
    with file.open("rb") as content:
        return content.read(1) != b"\x80" and not zipfile.is_zipfile(file)


def _entries_fault(file: Path, archive: zipfile.ZipFile, every_byte: bool) -> Fault | None:
    pickles = []
    for entry in archive.infolist():
        is_pickle = entry.filename.endswith("data.pkl")
        with archive.open(entry) as content:
            if is_pickle:
                pickles.append(content.read())
            while every_byte and content.read(1 << 20):
                pass  # zipfile compares the checksum at the end
    if not pickles:
        return f"{file} is damaged: it holds no data.pkl", AGAIN
    return _code_fault(file, {name for pickled in pickles for name in globals_of(pickled)})


def _code_fault(file: Path, names: set[str]) -> Fault | None:
    unsafe = sorted(name for name in names if not HARMLESS.fullmatch(name))
    if not unsafe:
        return None
    named = ", ".join(name.replace(" ", ".") for name in unsafe[:3])
    what = f"{file} would run code when it is read: {named}"
    return what, "Do not use it unless you wrote it yourself."


_OLD_PICKLES = 5
"""Pickles at the beginning of a file: its mark, its version, the system, the content and the keys of the storages."""


def _of_old_torch(content: IO[bytes]) -> Iterator[str]:
    for _ in range(_OLD_PICKLES):
        try:
            yield from globals_of(content)
        except (ValueError, UnicodeDecodeError):  # the end of the pickles, or damaged
            return


def globals_of(pickled: bytes | IO[bytes]) -> Iterator[str]:
    """The ``module name`` pairs that a pickle names; a file is read up to its end.

    Raises:
        ValueError: it is damaged.
    """
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL":
            yield str(argument)
        elif operation.name in _BY_STACK:
            yield f"pickle {operation.name}"
