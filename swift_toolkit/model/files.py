"""What kind of model a directory holds, and whether it is complete.

Reads names, sizes, JSON files and the headers of safetensors files, never weights, so any model takes milliseconds.
The safetensors format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import codecs
import json
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from swift_toolkit.console.words import listed, nearest, variable_advice
from swift_toolkit.machine import packages
from swift_toolkit.problems import Problem

JsonObject = dict[str, Any]
"""A JSON object in a file that ms-swift, transformers or PEFT wrote."""

CheckpointKind = Literal["lora", "full", "merged"]
Fault = tuple[str, str]  # what is wrong, what to do

SINGLE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ARGS_FILES = ("args.json", "sft_args.json")  # ms-swift 3 and 4; 1 and 2
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "tiktoken.model",
    "tokenization_*.py",
)
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
GGUF_MAGIC = b"GGUF"
LFS_POINTER = b"version https://git-lfs"
AGAIN = "Download it again."


def checkpoint_kind(path: Path) -> CheckpointKind | None:
    """The kind of model in the directory ``path``, judged by its files; None if there is no model.

    Returns:
        ``lora`` for an adapter of any kind, ``full`` for a model or a GGUF file, ``merged`` for a model that an
        adapter was merged into: ms-swift leaves the adapter's own args.json next to the merged weights.
    """
    if adapter_root(path) is not None:
        return "lora"
    if gguf_in(path) is not None:
        return "full"
    if not is_model(path):
        return None
    args, _ = read_json(
        next((path / name for name in ARGS_FILES if (path / name).is_file()), path / ARGS_FILES[0])
    )
    tuner = tuner_type(args or {})
    return "merged" if tuner not in (None, "full") else "full"


def is_model(path: Path) -> bool:
    """Whether ``path`` is a directory with the files of a model: a config.json and weights, complete or not."""
    return (path / "config.json").is_file() and bool(weight_files(path))


def gguf_in(path: Path) -> Path | None:
    """The GGUF file in the directory ``path`` if it is the only model file there, else None."""
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = list(path.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def gguf_problems(file: Path) -> list[Problem]:
    """Why a GGUF file cannot be queried or served."""
    with file.open("rb") as content:
        if content.read(4) != GGUF_MAGIC:
            return [Problem(f"{file} is not a GGUF file", AGAIN)]
    missing = packages.not_installed(["gguf"])
    return [Problem(f"{file} needs the package gguf", packages.install("gguf"))] if missing else []


def adapter_root(path: Path) -> Path | None:
    """The directory with the adapter's files: ``path``, its ``default`` or its ``reft``; None if there are none."""
    for root in (path, path / "default"):
        if any((root / name).is_file() for name in ("adapter_config.json", *ADAPTER_WEIGHTS)):
            return root
    return path / "reft" if (path / "reft").is_dir() else None


def tuner_type(args: JsonObject) -> str | None:
    """How the model was trained, as recorded by ms-swift 1 to 4; None if it is not recorded."""
    return next(
        (args[key] for key in ("tuner_type", "train_type", "sft_type") if isinstance(args.get(key), str)),
        None,
    )


def model_problems(
    path: Path, key: str | None = None, file: str | None = None, line: int | None = None
) -> list[Problem]:
    """Every reason why the local directory ``path`` cannot be used as a model to train, query or serve.

    Args:
        path: the directory, shown as given.
        key, file, line: the setting that names it, for the messages.
    """
    return _problems(_model_faults, path, key, file, line)


def adapter_problems(
    path: Path, key: str | None = None, file: str | None = None, line: int | None = None
) -> list[Problem]:
    """Every reason why the local directory ``path`` cannot be used as an adapter; see `model_problems`."""
    return _problems(_adapter_faults, path, key, file, line)


def _problems(
    check: Callable[[Path], list[Fault]], path: Path, key: str | None, file: str | None, line: int | None
) -> list[Problem]:
    try:
        faults = check(path)
    except OSError as error:
        faults = [(f"{error.filename or path} cannot be read: {error.strerror}", "")]
    prefix = "cannot be used: " if key is not None else ""
    return [Problem(prefix + what, do, key, file, line) for what, do in faults]


def missing(path: Path) -> Fault:
    """The fault of a path that does not exist, with similar names that do."""
    there = path.parent
    while not there.is_dir():
        there = there.parent
    name, *rest = path.parts[len(there.parts) :] or [""]
    names = sorted(entry.name for entry in there.iterdir() if name and not entry.name.startswith("."))
    if advice := variable_advice(path):
        return f"{path} does not exist", advice
    near = [there / found for found in nearest(name, names, most=3)]
    if near:
        whole = [found.joinpath(*rest) for found in near]
        near = [found for found in whole if found.exists()] or near
        return f"{path} does not exist", f"Did you mean {' or '.join(map(str, near))}?"
    where = "The current directory" if there == Path() else there
    return f"{path} does not exist", f"{where} holds {listed(names, most=5) or 'nothing'}."


def read_json(path: Path) -> tuple[JsonObject | None, Fault | None]:
    """The JSON object in ``path``, and what is wrong with the file. Only one with a byte order mark gives both."""
    try:
        if path.stat().st_size == 0:
            return None, (f"{path} is empty", AGAIN)
        content = path.read_bytes()
    except FileNotFoundError:
        return None, (f"{path} does not exist", AGAIN)
    except OSError as error:
        return None, (f"{path} cannot be read: {error.strerror}", "")
    if content.startswith(LFS_POINTER):
        return None, None  # reported once for the whole directory
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return None, (f"{path} is not valid JSON: {error}", AGAIN)
    if not isinstance(value, dict):
        return None, (f"{path} does not hold a JSON object", AGAIN)
    if content.startswith(codecs.BOM_UTF8):
        what = f"{path} begins with a byte order mark, which transformers and PEFT do not accept"
        return value, (what, "Save it as UTF-8 without BOM.")
    return value, None


def _model_faults(path: Path) -> list[Fault]:
    if not path.exists():
        return [missing(path)]
    if not path.is_dir():
        return [(f"{path} is a file", "Give the directory that holds config.json.")]
    if adapter_root(path) is not None:
        return [_adapter_as_model(path)]
    if not (path / "config.json").exists() and not any(file.parent == path for file in weight_files(path)):
        return [
            (f"{path} holds no model: it has neither config.json nor weights", _where_the_models_are(path))
        ]
    faults = _pointer_faults(path)
    _, fault = read_json(path / "config.json")
    if fault is not None:
        faults.append(fault)
    return faults + _tokenizer_faults(path) + _weight_faults(path)


def _adapter_faults(path: Path) -> list[Fault]:
    if not path.exists():
        return [missing(path)]
    root = adapter_root(path)
    if root is None:
        return [(f"{path} holds no adapter: it has no adapter_config.json", _where_the_models_are(path))]
    if root.name == "reft":
        files = list(root.rglob("*.bin"))
        return _files_faults(files) if files else [(f"{root} holds no weights", AGAIN)]
    faults = _pointer_faults(root)
    _, fault = read_json(root / "adapter_config.json")
    if fault is not None:
        faults.append(fault)
    files = [root / name for name in ADAPTER_WEIGHTS if (root / name).exists()][:1]
    if not files:
        faults.append(_no_adapter_weights(root))
    return faults + _files_faults(files)


def _no_adapter_weights(root: Path) -> Fault:
    """The fault of an adapter without its file of weights; names what is there instead."""
    link = next((file for name in ADAPTER_WEIGHTS if (file := root / name).is_symlink()), None)
    if link is not None:
        return f"{link} is a link to {link.readlink()}, which does not exist", AGAIN
    what = f"{root} has no weights: neither {' nor '.join(ADAPTER_WEIGHTS)} is there"
    others = sorted(file.name for kind in ("*.safetensors", "*.bin") for file in root.glob(kind))
    others = [name for name in others if name != "training_args.bin"]
    if len(others) > 1:
        return f"{what}, but {listed(others)}", f"PEFT loads one file: merge them into {ADAPTER_WEIGHTS[0]}."
    if others:
        suffix = Path(others[0]).suffix
        name = next(name for name in ADAPTER_WEIGHTS if name.endswith(suffix))
        return f"{what}, but {others[0]}", f"If these are the adapter's weights, rename it to {name}."
    return what, AGAIN


def _adapter_as_model(path: Path) -> Fault:
    config, _ = read_json((adapter_root(path) or path) / "adapter_config.json")
    base = (config or {}).get("base_model_name_or_path")
    model = f"its base model, {base}," if base else "its base model"
    return (
        f"{path} is an adapter, not a whole model",
        f'Set "model" to {model} and "adapters" to this directory; to go on with its training, '
        f'"resume_from_checkpoint" instead of "adapters".',
    )


def _where_the_models_are(path: Path) -> str:
    """Advice for a path that is one level too high."""
    below = sorted(child for child in path.iterdir() if child.is_dir() and checkpoint_kind(child) is not None)
    if not below:
        return "Give the directory that holds config.json and the weights."
    return f"Did you mean {' or '.join(map(str, below[:3]))}?"


def _pointer_faults(directory: Path) -> list[Fault]:
    """Files that git left as pointers because git-lfs was not installed when the repository was cloned."""
    names = [file.name for file in sorted(directory.iterdir()) if file.is_file() and is_pointer(file)]
    if not names:
        return []
    verb = "is a git-LFS pointer" if len(names) == 1 else "are git-LFS pointers"
    return [(f"{directory}: {listed(names)} {verb}, not the content", f"Run: git -C {directory} lfs pull")]


def is_pointer(file: Path) -> bool:
    """Whether ``file`` is a git-lfs pointer instead of a large file."""
    if file.stat().st_size > 1024:
        return False
    with file.open("rb") as content:
        return content.read(len(LFS_POINTER)) == LFS_POINTER


def _tokenizer_faults(path: Path) -> list[Fault]:
    files = [
        file for pattern in TOKENIZER_FILES for file in (*path.glob(pattern), *path.glob(f"*/{pattern}"))
    ]
    if not files:
        return [(f"{path} has no tokenizer ({', '.join(TOKENIZER_FILES[:3])} or similar)", AGAIN)]
    faults = [(f"{file} is empty", AGAIN) for file in files if file.stat().st_size == 0]
    whole = path / "tokenizer.json"
    if whole in files and whole.stat().st_size and not is_pointer(whole) and not _ends_with(whole, b"}"):
        faults.append((f"{whole} is cut short", AGAIN))
    return faults


def _ends_with(file: Path, end: bytes) -> bool:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - 64))
        return content.read().rstrip().endswith(end)


def weight_files(path: Path) -> list[Path]:
    """The weights that would be loaded from ``path``: those of the index, else the single file, else any there are."""
    for name in (SINGLE_WEIGHTS[0], WEIGHT_INDEXES[0], SINGLE_WEIGHTS[1], WEIGHT_INDEXES[1]):
        if (path / name).is_file():
            return [path / name]
    found = [
        file
        for pattern in ("*.safetensors", "*.bin")
        for file in (*path.glob(pattern), *path.glob(f"*/{pattern}"))
    ]
    return sorted(file for file in found if file.name != "training_args.bin" and file.is_file())


def _weight_faults(path: Path) -> list[Fault]:
    files = weight_files(path)
    if not files:
        return [(f"{path} has no weights ({', '.join(SINGLE_WEIGHTS)} or similar)", AGAIN)]
    if files[0].name in WEIGHT_INDEXES:
        return _index_faults(files[0])
    if any("-of-" in file.name and file.parent == path for file in files):
        index = WEIGHT_INDEXES[0] if files[0].suffix == ".safetensors" else WEIGHT_INDEXES[1]
        return [
            (f"{path} has weights in several files, but {index}, which lists them, does not exist", AGAIN)
        ]
    return _files_faults(files)


def _index_faults(index: Path) -> list[Fault]:
    content, fault = read_json(index)
    if content is None:
        return [fault] if fault is not None else []
    weights = content.get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        return [(f'{index} has no "weight_map"', AGAIN)]
    shards = {name: index.with_name(name) for name in sorted(set(weights.values()))}
    absent = [name for name, file in shards.items() if not file.is_file()]
    faults = []
    if absent:
        faults.append(
            (f"{index.parent} lacks {len(absent)} of its {len(shards)} weight files: {listed(absent)}", AGAIN)
        )
    return faults + _files_faults(file for name, file in shards.items() if name not in absent)


def _files_faults(files: Iterable[Path]) -> list[Fault]:
    return [fault for file in files if (fault := _file_fault(file)) is not None]


def _file_fault(file: Path) -> Fault | None:
    size = file.stat().st_size
    if size == 0:
        return f"{file} is empty", AGAIN
    if is_pointer(file):
        return None  # reported once for the whole directory
    if file.suffix == ".safetensors":
        return _safetensors_fault(file, size)
    with file.open("rb") as content:
        is_zip = content.read(2) == b"PK"  # torch's format; older files are a bare pickle of unknown length
    if is_zip and not zipfile.is_zipfile(file):
        return f"{file} is cut short: it is {size:,} bytes and has no end", AGAIN
    return None


def _safetensors_fault(file: Path, size: int) -> Fault | None:
    header = safetensors_header(file)
    if header is None:
        return f"{file} is not a safetensors file: its header cannot be read", AGAIN
    expected = header.start + max(
        (tensor["data_offsets"][1] for tensor in header.tensors.values()), default=0
    )
    if size < expected:
        return f"{file} is cut short: it is {size:,} bytes, its header says {expected:,}", AGAIN
    if size > expected:
        return f"{file} is damaged: it is {size:,} bytes, its header says {expected:,}", AGAIN
    return None


class StoredTensor(TypedDict):
    """The header's entry for one weight; the offsets are in bytes, from the first weight."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Header(NamedTuple):
    """The header of a safetensors file.

    Args:
        start: where the weights begin, in bytes.
        tensors: each weight by its name; none if the file ends inside its header.
    """

    start: int
    tensors: dict[str, StoredTensor]


def safetensors_header(file: Path) -> Header | None:
    """The header of ``file``; None if it is not valid."""
    with file.open("rb") as content:
        encoded = content.read(8)
        length = struct.unpack("<Q", encoded)[0] if len(encoded) == 8 else MAX_HEADER + 1
        if length > MAX_HEADER:
            return None
        encoded = content.read(length)
    if len(encoded) < length:
        return Header(8 + length, {})
    try:
        tensors = json.loads(encoded)
        tensors.pop("__metadata__", None)
        if all(_is_entry(tensor) for tensor in tensors.values()):
            return Header(8 + length, tensors)
    except (ValueError, AttributeError, TypeError, KeyError):
        pass
    return None


def _is_entry(tensor: StoredTensor) -> bool:
    """Whether this is a valid header entry of one weight."""
    start, end = tensor["data_offsets"]
    return (
        isinstance(start, int)
        and isinstance(end, int)
        and isinstance(tensor["dtype"], str)
        and all(isinstance(size, int) for size in tensor["shape"])
    )


NO_OWNERS = frozenset("out output outputs checkpoint checkpoints ckpt ckpts models adapters weights".split())
"""First parts of paths that name a directory, not the owner of a hub model."""


def looks_local(name: str) -> bool:
    """Whether a model name is a path on this machine and not a hub id (``owner/name``)."""
    path = Path(name).expanduser()
    return (
        path.exists()
        or name.startswith((".", "/", "~"))
        or name.count("/") != 1
        or not {"\\", "$"}.isdisjoint(name)
    )
