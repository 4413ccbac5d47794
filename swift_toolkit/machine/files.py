"""What was read out of the source of installed packages, kept in the user's cache until one of the files changes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")


def kept(
    stem: str, place: str, read: Callable[[], tuple[Any, Iterable[Path]]], decode: Callable[[Any], T]
) -> T:
    """What ``read`` says, from the cache where that is possible. A cache that cannot be written does not matter.

    Args:
        stem: begins the name of the cache file.
        place: where the packages are: other installations have caches of their own.
        read: reads the source; returns plain data for JSON, and the files it came from.
        decode: makes the result of the data.
    """
    import platformdirs

    cache = platformdirs.user_cache_path("swift-toolkit") / f"{stem}-{zlib.crc32(place.encode()):08x}.json"
    try:
        content = json.loads(cache.read_bytes())
        if all(Path(path).stat().st_mtime_ns == time for path, time in content["files"].items()):
            return decode(content["found"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # not there yet, damaged, or of another version of this toolkit
    found, files = read()
    _write(cache, {"files": {str(path): path.stat().st_mtime_ns for path in files}, "found": found})
    return decode(found)


def exists(path: object) -> bool:
    """Whether there is such a file or directory; a text that cannot be a path names none."""
    try:
        return Path(str(path)).exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def _write(cache: Path, content: Any) -> None:
    unfinished = cache.with_name(f"{cache.name}.{os.getpid()}")
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        unfinished.replace(cache)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when all is written, or not at all."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as out:
            yield out
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` whole or not at all."""
    beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    text = json.dumps(content, ensure_ascii=False, indent=2, default=str)
    try:
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
