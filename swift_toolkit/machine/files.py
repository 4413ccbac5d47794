"""Files that are written atomically, and a cache of what was read from installed packages."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

_T = TypeVar("_T")


def kept(
    stem: str, place: str, read: Callable[[], tuple[Any, Iterable[Path]]], decode: Callable[[Any], _T]
) -> _T:
    """The result of ``read``, from the cache if possible. A cache that cannot be written is ignored.

    Args:
        stem: the start of the cache file's name.
        place: where the packages are installed; each installation has its own cache.
        read: reads the source; returns plain data for JSON, and the files it came from.
        decode: builds the result from the data.
    """
    import platformdirs

    cache = platformdirs.user_cache_path("swift-toolkit") / f"{stem}-{zlib.crc32(place.encode()):08x}.json"
    try:
        content = json.loads(cache.read_bytes())
        if all(Path(path).stat().st_mtime_ns == time for path, time in content["files"].items()):
            return decode(content["found"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # missing, damaged, or from another version of this toolkit
    found, files = read()
    content = {"files": {str(path): path.stat().st_mtime_ns for path in files}, "found": found}
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with whole_text(cache) as file:
            json.dump(content, file)
    return decode(found)


def exists(path: object) -> bool:
    """Whether such a file or directory exists; False for a string that cannot be a path."""
    try:
        return Path(str(path)).exists()
    except (OSError, ValueError):  # too long, or contains a NUL
        return False


def size_of(directory: Path) -> int:
    """Total bytes of all files in and below ``directory``."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file in blocks of 1 MiB, so that memory does not grow with its size."""
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            yield block


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path for a new file or directory that is renamed to ``path`` if the block succeeds, and removed otherwise.

    If ``path`` is a link, its target is replaced. A new file takes over the permissions of the file it replaces; a
    directory is not replaced: the caller removes the old one.

    Raises:
        OSError: the file system refuses; ``path`` is unchanged.
    """
    target = path.resolve()
    beside = target.with_name(f".{target.name[:50]}.{os.urandom(4).hex()}.part")
    try:
        yield beside
        if target.is_file():
            shutil.copymode(target, beside)
        beside.replace(target)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only once it is complete. A device or pipe is written directly."""
    if path.exists() and not path.is_file():
        with path.open("wb") as out:
            yield out
        return
    with written_beside(path) as beside, beside.open("xb") as out:
        yield out


@contextlib.contextmanager
def whole_text(path: Path) -> Iterator[IO[str]]:
    """`whole_file` for text, written as UTF-8."""
    with whole_file(path) as out, io.TextIOWrapper(out, encoding="utf-8") as text:
        yield text


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` atomically; values that JSON does not know are written as strings."""
    with whole_text(path) as out:
        out.write(json.dumps(content, ensure_ascii=False, indent=2, default=str) + "\n")
