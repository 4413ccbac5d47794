"""Files written whole or not at all, and what was read out of installed packages, kept in the user's cache."""

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
    content = {"files": {str(path): path.stat().st_mtime_ns for path in files}, "found": found}
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with whole_text(cache) as file:
            json.dump(content, file)
    return decode(found)


def exists(path: object) -> bool:
    """Whether there is such a file or directory; a text that cannot be a path names none."""
    try:
        return Path(str(path)).exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path for a new file or directory that takes the name ``path`` when the block ends well, and is gone otherwise.

    Where ``path`` is a link, what it points to is replaced. A file that is replaced leaves its permissions to the new
    one; a directory is not replaced: the caller removes the old one.

    Raises:
        OSError: the file system refuses; ``path`` is as it was.
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
    """A file that appears under its name when all is written, or not at all. A device or pipe is written as it is."""
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
    """Write ``content`` whole or not at all; what JSON does not know is written as text."""
    with whole_text(path) as out:
        out.write(json.dumps(content, ensure_ascii=False, indent=2, default=str) + "\n")
