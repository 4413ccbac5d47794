"""Check that the images, videos and audios of a row exist and that its images can be opened."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from swift_toolkit.console.words import shown
from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.rows.formats import MEDIA
from swift_toolkit.dataset.rows.messages import Row

MEDIA_NAMES = frozenset({*MEDIA, *(f"rejected_{name}" for name in MEDIA)})

SPEAKS_OF_MEDIA = re.compile(rb"\b(images?|videos?|audios?)\b")
"""Occurs in uncompressed files whose rows have images, videos or sound."""

_NOT_A_PATH = 2000
"""Longer texts are treated as base64, as in ms-swift (`_check_path`)."""

_REMEMBERED = 1 << 15


class MediaCheck:
    """Checks the media of rows; each file is checked once, as far as memory allows."""

    def __init__(self) -> None:
        self._file_flaw = lru_cache(_REMEMBERED)(file_flaw)

    def flaws(self, row: Row) -> Iterator[Flaw]:
        """Every missing or damaged medium of a standard row. URLs are not fetched."""
        for name in sorted(MEDIA_NAMES & row.keys()):
            value = row[name]
            for item in value if isinstance(value, list) else [value]:
                if flaw := self._item_flaw(item, name):
                    yield flaw

    def _item_flaw(self, item: Any, name: str) -> Flaw | None:
        is_image = name.endswith("images")
        if isinstance(item, dict):
            item = item.get("bytes") or item.get("path")
        if isinstance(item, bytes):
            return _image_flaw(io.BytesIO(item), "an image") if is_image else None
        if not isinstance(item, str) or not item.strip():
            return Flaw("media-file", f'"{name}" contains {shown(item)}, not a file', "Use a path or a URL.")
        item = item.strip()
        if item.startswith(("http://", "https://", "data:")) or len(item) > _NOT_A_PATH:
            return None
        return self._file_flaw(item, is_image)


def file_flaw(path: str, is_image: bool) -> Flaw | None:
    """The problem of a media file, judged by its first bytes."""
    file = Path(path)
    if not file.exists():  # ms-swift also looks here
        file = Path(os.environ.get("ROOT_IMAGE_DIR", ""), path).expanduser()
    if not file.exists():
        where = "Relative paths start at the working directory; set ROOT_IMAGE_DIR to change that."
        do = "Correct the path." if Path(path).is_absolute() else where
        return Flaw("media-file", f'"{path}" does not exist', do)
    try:
        with file.open("rb") as stream:
            if is_image:
                return _image_flaw(stream, f'"{path}"')
            return None if stream.read(1) else Flaw("media-file", f'"{path}" is empty', "Replace the file.")
    except OSError as error:
        return Flaw("media-file", f'"{path}" cannot be read: {os.strerror(error.errno or 0).lower()}')


def _image_flaw(stream: IO[bytes], shown: str) -> Flaw | None:
    """The problem of an image; only the header is read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(stream):
            return None
    except UnidentifiedImageError:
        return Flaw("media-file", f"{shown} is not a readable image", "Replace the file.")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        what = f"{shown} has a damaged header: {str(error).rstrip('.')}"
        return Flaw("media-file", what, "Replace the file.")


def image_flaw(image: str) -> Flaw | None:
    """The problem of an image for a question; a URL is not checked."""
    path = Path(image).expanduser()
    if "://" in image:
        return None
    return file_flaw(str(path), True) if path.is_file() else Flaw("media-file", f'"{image}" does not exist')
