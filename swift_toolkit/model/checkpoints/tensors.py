"""The weights in safetensors files and in files that torch wrote, described by their headers.

No weights are loaded and nothing in a pickle is run: only the calls that build a tensor are understood.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.model.files import safetensors_header

SAMPLED_VALUES = 256
"""How many values of a tensor are checked for NaN and infinity."""

_EXPONENTS = {"BF16": 0x7F80, "F16": 0x7C00, "F8_E5M2": 0x7C}
"""The exponent bits of infinity and NaN."""

_SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
FLOATS = frozenset(_SIZES)
"""safetensors' names of the types of floating-point numbers."""


@dataclass(frozen=True)
class Tensor:
    """One weight in a file.

    Args:
        shape: its size in each dimension.
        dtype: safetensors' name of the type, e.g. ``BF16``; "" if it is not a floating-point number in torch's file.
        file: the file that holds it.
        start: its first byte in the file.
        length: its size in bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    length: int

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape))

    def is_finite(self) -> bool:
        """Whether the first values are numbers, neither NaN nor infinite."""
        if self.dtype not in FLOATS:
            return True
        size = _SIZES[self.dtype]
        with self.file.open("rb") as file:
            file.seek(self.start)
            content = file.read(min(self.length, SAMPLED_VALUES * size))
        values = memoryview(content[: len(content) // size * size])
        if size >= 4:
            return all(map(math.isfinite, values.cast("d" if size == 8 else "f")))
        whole = values.cast("H" if size == 2 else "B")
        if self.dtype == "F8_E4M3":  # without infinity; only all bits set are NaN
            return all(value & 0x7F != 0x7F for value in whole)
        exponent = _EXPONENTS[self.dtype]
        return all(value & exponent != exponent for value in whole)


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Every weight of the model in the directory ``path``, by name; none if it is not a directory."""
    if not path.is_dir():
        return {}
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    return {name: one for file in files for name, one in (tensors_of(file) or {}).items()}


def tensors_of(file: Path) -> dict[str, Tensor] | None:
    """Every weight in ``file``, by name; None if that cannot be read."""
    if file.suffix == ".safetensors":
        header = safetensors_header(file)
        return None if header is None else {
            name: Tensor(
                tuple(one["shape"]),
                one["dtype"],
                file,
                header.start + one["data_offsets"][0],
                one["data_offsets"][1] - one["data_offsets"][0],
            )
            for name, one in header.tensors.items()
        }  # fmt: skip
    try:
        return _of_torch(file)
    except (zipfile.BadZipFile, pickle.UnpicklingError, OSError, ValueError, LookupError, TypeError):
        return None
    except (AttributeError, EOFError, struct.error):
        return None


# --- torch's files ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Storage:
    """Values in the archive: their type, and the name of the entry that holds them."""

    dtype: str
    key: str


@dataclass(frozen=True)
class _View:
    """A tensor in the pickle: values of a storage, from an offset on."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def _of_torch(file: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        with archive.open(entries["data.pkl"]) as content:
            state = _Reader(content).load()
    views = {name: one for name, one in state.items() if isinstance(name, str) and isinstance(one, _View)}
    starts = {key: _start(file, entry) for key, entry in entries.items() if key.startswith("data/")}
    return {name: _tensor(file, one, starts) for name, one in views.items()}


def _start(file: Path, entry: zipfile.ZipInfo) -> int:
    """The first byte of the content of an entry, which torch does not compress."""
    with file.open("rb") as content:
        content.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", content.read(4))
    return int(entry.header_offset + 30 + name + extra)


def _tensor(file: Path, view: _View, starts: Mapping[str, int]) -> Tensor:
    size = _SIZES.get(view.storage.dtype, 1)
    start = starts[f"data/{view.storage.key}"] + view.offset * size
    return Tensor(view.shape, view.storage.dtype, file, start, math.prod(view.shape) * size)


class _Dict(dict[object, object]):
    """A dictionary that can have attributes, as torch's state_dict does."""


_STORAGES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}  # fmt: skip


class _Reader(pickle.Unpickler):
    """Reads the pickle of a state_dict; whatever is not part of one is an error."""

    def find_class(self, module: str, name: str) -> object:
        """Our own function or value for the one that the pickle names."""
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _STORAGES.get(name, "")
        if module == "torch" and name.islower():
            return _DTYPES.get(name, "")
        known = {
            ("collections", "OrderedDict"): _Dict,
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("torch._utils", "_rebuild_tensor_v3"): _typed_view,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: tuple[str, str, str, str, int]) -> _Storage:
        """The storage that the pickle refers to."""
        return _Storage(pid[1], pid[2])


def _view(storage: _Storage, offset: int, shape: Sequence[int], *_: object) -> _View:
    return _View(storage, offset, tuple(shape))


def _typed_view(
    storage: _Storage, offset: int, shape: Sequence[int], stride: object, grad: object, hooks: object,
    dtype: str, *_: object,
) -> _View:  # fmt: skip
    return _View(_Storage(dtype, storage.key), offset, tuple(shape))


def _parameter(view: _View, *_: object) -> _View:
    return view
