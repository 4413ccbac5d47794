"""Entries of `dataset` and `val_dataset`: a file, a folder of shards or a hub ID, and the number of rows to use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from swift_toolkit.console.words import near_path, shown
from swift_toolkit.dataset.reading.files import data_suffix
from swift_toolkit.dataset.rows.flaws import FlawError

_OTHER_SPLIT = re.compile(r"(?:^|[^a-z])(test|eval|evaluation|valid|validation|val|dev)(?:[^a-z]|$)")


MOST_FILES = 20_000
"""Maximum number of files in a folder that is searched for data."""


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of `dataset` or `val_dataset`.

    Args:
        text: as the user wrote it.
        path: the path or hub ID in it.
        kind: "file", "folder", "missing" (a path that does not exist) or "hub".
        sample: N of "#N", the number of rows to take; None for all.
        near: a local file with a similar name, if there is one.
    """

    text: str
    path: str
    kind: Literal["file", "folder", "missing", "hub"]
    sample: int | None = None
    near: Path | None = None

    @classmethod
    def parse(cls, text: str) -> DatasetSpec:
        """Parse "path#N", "owner/name:subset#N", "HF::owner/name" or "MS::owner/name".

        Raises:
            FlawError: N is not a positive whole number.
        """
        path, sample = text, None
        if not Path(text).expanduser().exists() and "#" in text:
            path, _, count = text.rpartition("#")
            if not count.isdecimal() or int(count) == 0:
                what = f"{shown('#' + count)} is not a number of rows"
                raise FlawError("no-file", what, 'Write a number such as "#500".')
            sample = int(count)
        local = Path(path).expanduser()
        if local.exists():
            return cls(text, path, "folder" if local.is_dir() else "file", sample)
        if (inner := _file_in(path)) is not None:
            return cls(text, inner, "file", sample)
        near = near_path(local)
        looks_local = path.startswith(("./", "../", "/", "~")) or "$" in path or data_suffix(path) is not None
        if "::" not in path and (looks_local or path.partition(":")[0].count("/") > 1):
            return cls(text, path, "missing", sample, near)
        return cls(text, path, "hub", sample, near)

    def local_files(self) -> list[Path]:
        """The `files`; none if the data is on a hub or missing.

        Raises:
            FlawError: as `files`.
        """
        return self.files() if self.kind in {"file", "folder"} else []

    def files(self) -> list[Path]:
        """The file, or the training files of a folder, which `datasets` recognises by their names.

        Raises:
            FlawError: the folder is not a folder of data files.
        """
        path = Path(self.path).expanduser()
        if self.kind == "file":
            return [path]
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            part = '["train"]' if (path / "dataset_dict.json").is_file() else ""
            do = f'Write it as JSON Lines: datasets.load_from_disk("{self.path}"){part}.to_json("train.jsonl").'
            raise FlawError("unreadable", "was written by save_to_disk, which ms-swift does not read", do)
        names = sorted(file.relative_to(path) for file in _walk(path) if data_suffix(file) is not None)
        names = [name for name in names if not any(part.startswith((".", "__")) for part in name.parts)]
        train = [name for name in names if "train" in str(name).lower()]
        other = [name for name in names if not _OTHER_SPLIT.search(str(name).lower())]
        return [path / name for name in train or other]


def _file_in(path: str) -> str | None:
    """The existing file in "HF::file" or "file:subset", of which ms-swift uses only the file.

    Raises:
        FlawError: there is something else than a hub before "::", which ms-swift ignores.
    """
    hub, mark, rest = path.rpartition("::")
    if mark and hub.lower() not in ("hf", "ms"):
        do = 'Write "HF::" or "MS::" for a hub, and each data set as a word of its own.'
        raise FlawError("no-file", f"{shown(hub + mark)} is not a hub", do)
    found = next(
        (one for one in (rest, rest.partition(":")[0]) if one and Path(one).expanduser().is_file()), None
    )
    return found if found != path else None


def missing_hint(path: str) -> str:
    """What to do about a path that does not exist, "" if nothing special is known."""
    words = path.split()
    if "://" in path:
        return "Download it, and name the file."
    if any(mark in path for mark in "*?[") and any(Path().glob(path) if not path.startswith("/") else ()):
        return "Patterns are not expanded here: remove the quotes, or name the folder."
    if len(words) > 1 and all(Path(word).expanduser().exists() for word in words):
        return f"Write each as a word of its own: {' '.join(words)}."
    return ""


def _walk(path: Path) -> Iterator[Path]:
    """All files below a folder.

    Raises:
        FlawError: there are more than `MOST_FILES`.
    """
    seen = 0
    for folder, _, names in os.walk(path):
        seen += len(names) + 1
        if seen > MOST_FILES:
            what = f"contains more than {MOST_FILES:,} files"
            raise FlawError(
                "unreadable", what, "Name a folder that contains only the data, or list the files."
            )
        yield from (Path(folder) / name for name in names)
