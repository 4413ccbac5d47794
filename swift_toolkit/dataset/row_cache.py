"""Cache of rows that ms-swift has converted and measured, for later runs with the same data and settings.

ms-swift reads a data set into Arrow files, converts every row, and encodes it once to count its tokens and to drop rows
that are too long. With ``load_from_cache_file`` it finds these results again by the fingerprints of `datasets`. Those
cover the rows, the template and its tokenizer, but a file only by its path and time, and code only by its name. Here
every combination of data and settings has its own folder, named by a key of everything that its rows depend on: see
`key_of`. The copy of a data set that a run makes in its own directory is kept in the folder, too, and read from there:
each run makes another, with the same rows.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from swift_toolkit.machine import packages
from swift_toolkit.machine.files import blocks, size_of, whole_file, written_beside

FORMAT = "1"
"""Part of every key; increase it when this toolkit changes the conversion of rows."""

MOST_BYTES = 20 << 30
"""Maximum size of the whole cache in bytes; beyond it, the least recently used entries are removed."""

COPIES, SPARE_BYTES = 6, 256 << 20
"""An entry is created only if the disk has room for this many times the data, and a margin."""

_READ_BYTES = 4 << 30
"""Files larger than this are identified by size, times and inode instead of their content."""

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"})

_SETTINGS = (
    "task_type", "rlhf_type", "num_labels", "problem_type", "seed", "new_special_tokens", "model_type", "max_length",
    "packing", "padding_free", "train_type", "tuner_type",
)  # fmt: skip
"""Settings that rows may depend on, in addition to all of ms-swift's DataArguments and TemplateArguments."""

_NO_MATTER = frozenset({"dataset_num_proc", "load_from_cache_file", "packing_num_proc", "download_mode"})

_VARIABLES = ("RANDOM_DATASET_RESPONSE", "ROOT_IMAGE_DIR", "MAX_POSITIVE_SAMPLES", "MAX_NEGATIVE_SAMPLES")
"""Environment variables that ms-swift reads when it processes rows."""

_PACKAGES = ("ms-swift", "datasets", "transformers", "tokenizers", "pyarrow")


# The key of an entry


def key_of(arguments: Any, template: Any) -> str | None:
    """The key of the entry for these rows.

    It covers the content of the data files, all settings of data and template, the tokenizer in memory, the small files
    of the model, the user's own code (plugins, code of a model) and the versions of the libraries.

    Args:
        arguments: ms-swift's parsed arguments.
        template: ms-swift's template with its tokenizer.

    Returns:
        None if some of that cannot be determined: data on a hub, streams, images and sound.
    """
    files = data_files(_entries(arguments))
    others = arguments.streaming or getattr(arguments, "cached_dataset", None)
    if files is None or others or arguments.model_meta.is_multimodal:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(arguments, template, files):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _entries(arguments: Any) -> list[str]:
    return [
        *arguments.dataset,
        *arguments.val_dataset,
        *(getattr(arguments, "chord_sft_dataset", None) or ()),
    ]


def data_files(entries: Iterable[str]) -> list[Path] | None:
    """All files of the data sets; None if one is not on this machine."""
    out: list[Path] = []
    for entry in entries:
        path = Path(entry).expanduser()
        if not path.exists():
            path = Path(entry.rpartition("#")[0] or entry).expanduser()
        if not path.exists():
            return None
        out += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return out


def _parts(arguments: Any, template: Any, files: Iterable[Path]) -> Iterator[bytes]:
    yield FORMAT.encode()
    for name in _PACKAGES:
        if version := packages.version(name):
            yield f"{name}=={version}".encode()
    yield _as_bytes({name: os.environ.get(name) for name in _VARIABLES})
    yield _as_bytes(
        {name: getattr(arguments, name, None) for name in _setting_names(arguments)} | _known(arguments)
    )
    for file in files:
        if not _is_copy(file, arguments):
            yield str(file.absolute()).encode()
        yield identity(file)
    yield from _tokenizer_parts(arguments, template)
    for file in own_code():
        yield file.name.encode()
        yield file.read_bytes()


def _is_copy(file: Path, arguments: Any) -> bool:
    """Whether a run has made this file, in its own directory."""
    return file.is_file() and file.resolve().is_relative_to(Path(arguments.output_dir).resolve())


def _known(arguments: Any, folder: Path | None = None) -> dict[str, list[str]]:
    """The data sets of a run, with the copies that it made replaced by those in the entry.

    Args:
        arguments: ms-swift's parsed arguments.
        folder: the directory of the entry, to which copies are added that it does not have; None only names them.
    """
    out: dict[str, list[str]] = {}
    for split in ("dataset", "val_dataset"):
        out[split] = []
        for at, entry in enumerate(getattr(arguments, split)):
            (file, *others) = data_files([entry]) or [Path(entry)]
            if not others and _is_copy(file, arguments):
                kept = Path(folder or "") / f"{split}-{at}{file.suffix}"
                if folder is not None:
                    _keep(file, kept)
                entry = f"{kept}{entry.removeprefix(str(file))}"
            out[split].append(entry)
    return out


def _keep(file: Path, kept: Path) -> None:
    """Add a data set to an entry unless it is there; its time is part of what `datasets` looks up.

    It is no link, because the user may change a file in the directory of a run.
    """
    if not kept.exists():
        with written_beside(kept) as beside:
            shutil.copy2(file, beside)


def _setting_names(arguments: Any) -> list[str]:
    mixins = [
        cls for cls in type(arguments).__mro__ if cls.__name__ in ("DataArguments", "TemplateArguments")
    ]
    found = {field.name for cls in mixins for field in fields(cls)}
    return sorted((found | set(_SETTINGS)) - _NO_MATTER)


def _as_bytes(values: dict[str, object]) -> bytes:
    return json.dumps(values, sort_keys=True, default=repr).encode()


def _tokenizer_parts(arguments: Any, template: Any) -> Iterator[bytes]:
    tokenizer = template.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        yield backend.to_str().encode()
    yield repr((len(tokenizer), getattr(tokenizer, "chat_template", None))).encode()
    for file in sorted(Path(arguments.model_dir).iterdir()):
        if file.is_file() and file.suffix not in _WEIGHTS:
            yield file.name.encode()
            yield identity(file)


def identity(file: Path) -> bytes:
    """Identification of a file: its content, or size, times and inode of a very large file."""
    state = file.stat()
    if state.st_size > _READ_BYTES:
        return repr((state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)).encode()
    digest = _fast_hash()
    for block in blocks(file):
        digest.update(block)
    return bytes(digest.digest())


def _fast_hash() -> Any:
    try:
        import xxhash  # comes with `datasets`; ten times as fast
    except ImportError:
        return hashlib.blake2b(digest_size=16)
    return xxhash.xxh3_128()


def own_code() -> list[Path]:
    """The files of all imported modules that belong neither to Python nor to an installed package."""
    paths = [*sysconfig.get_paths().values(), str(Path(__file__).parents[1])]
    paths += [path for path in sys.path if "site-packages" in path or "dist-packages" in path]
    installed = tuple(f"{Path(path).resolve()}{os.sep}" for path in paths)
    real = functools.cache(lambda folder: f"{Path(folder).resolve()}{os.sep}")
    found = [file.rpartition(os.sep) for module in list(sys.modules.values()) if (file := _file_of(module))]
    files = {Path(real(folder), name) for folder, _, name in found if not real(folder).startswith(installed)}
    return sorted(filter(Path.is_file, files))


def _file_of(module: object) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) and file.endswith(".py") else None


# The entries


def root() -> Path:
    """The directory of all entries."""
    from platformdirs import user_cache_path

    return user_cache_path("swift-toolkit") / "rows"


@dataclass(frozen=True)
class Entry:
    """The cached rows of one combination of data and settings.

    Args:
        path: its directory.
        size: its size in bytes.
        used: when a run last started using it, in seconds since the epoch.
    """

    path: Path
    size: int
    used: float


def entries() -> list[Entry]:
    """All entries, most recently used first."""
    found = []
    with suppress(OSError):
        for path in root().iterdir():
            if path.is_dir():
                with suppress(OSError):  # it is being removed
                    found.append(Entry(path, size_of(path), _lock_of(path).stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def size() -> int:
    """Size of the whole cache in bytes."""
    return sum(entry.size for entry in entries())


def clear(entry: Entry) -> bool:
    """Remove an entry unless a run is using it. Returns whether it was removed."""
    with suppress(OSError), _lock_of(entry.path).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path)
        _lock_of(entry.path).unlink()
        return True
    return False


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


SKIPPED = "skipped.jsonl"
"""The file of an entry with the reasons why rows were skipped during encoding."""


class RowKeeper:
    """The entry that this process uses; it is locked against removal while the process runs."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._lock: Any = None

    def open(self, arguments: Any, template: Any) -> Path | None:
        """The directory for the rows of a run; None if they cannot be cached, with the reason in the log.

        The data sets of ``arguments`` that are copies made by the run become those of the entry.
        """
        self.folder = None
        key = key_of(arguments, template)
        if key is None:
            return None
        folder = root() / key
        try:
            if not folder.is_dir():
                if _missing_bytes(arguments):
                    print(f"rows are not cached: not enough free space on the disk of {root()}", flush=True)
                    return None
                _shrink()
            folder.mkdir(parents=True, exist_ok=True)
            self._hold(folder)
            for split, entries_ in _known(arguments, folder).items():
                setattr(arguments, split, entries_)
        except OSError as error:
            print(f"rows are not cached: {error}", flush=True)
            return None
        self.folder = folder
        return folder

    def _hold(self, folder: Path) -> None:
        self._lock = _lock_of(folder).open("a")
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        os.utime(self._lock.fileno())
        folder.mkdir(exist_ok=True)  # it may have been removed before it was locked

    def drop(self) -> None:
        """Remove the entry of this process, because the disk is too full for it."""
        folder, self.folder = self.folder, None
        with suppress(OSError):  # another run uses it too
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder or "")

    def note_skipped(self, lost: Path) -> None:
        """Store the reasons why rows were skipped, or restore them from the run that encoded the rows.

        Args:
            lost: a file with one reason per line, as JSON; empty or missing if this run encoded no row.
        """
        if self.folder is None:
            return
        kept, new = self.folder / SKIPPED, lost.read_bytes() if lost.exists() else b""
        with suppress(OSError):
            if new or kept.exists():
                with whole_file(kept if new else lost) as out:
                    out.write(new or kept.read_bytes())


def _missing_bytes(arguments: Any) -> int:
    """Number of bytes that the disk lacks for an entry of this data."""
    size = sum(file.stat().st_size for file in data_files(_entries(arguments)) or ())
    root().mkdir(parents=True, exist_ok=True)
    return max(0, COPIES * size + SPARE_BYTES - shutil.disk_usage(root()).free)


def _shrink() -> None:
    """Remove entries until the cache is at most `MOST_BYTES`."""
    total = 0
    for entry in entries():
        total += entry.size
        if total > MOST_BYTES and time.time() - entry.used > 60:
            clear(entry)
