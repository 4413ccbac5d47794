"""Text that messages share: suggestions, shortened values, lists and counted nouns."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ALIKE = 0.75
"""Minimum similarity of a misspelled name to a known one, as measured by difflib."""

LONG_WORD = 24
"""Words of at most this many characters are not cut."""

LONGEST_NAME = 1000
"""Longer names are compared with no other; the time for it grows with their length."""

WIDTH = 60
"""Maximum length of a value in a message, in characters."""


def nearest(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The known names that ``name`` may stand for, the likeliest first: those that start with it as a whole word, else
    those with a similar spelling. Case is ignored, and ``-`` equals ``_``."""
    if len(name) > LONGEST_NAME:
        return []
    plain: dict[str, str] = {}
    for word in known:
        plain.setdefault(_plain(word), word)
    word = _plain(name)
    longer = [full for full in plain if word and full.startswith(f"{word}_")]
    near = longer or difflib.get_close_matches(word, plain, n=most, cutoff=ALIKE)
    return [plain[found] for found in near[:most]]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A question with the known name most similar to ``name``; ``otherwise`` if there is none."""
    near = nearest(name, known)
    return f'Did you mean "{near[0]}"?' if near else otherwise


def near_path(path: Path, suffixes: Sequence[str] = ()) -> Path | None:
    """The file or directory next to ``path``, which does not exist, with the most similar name; with ``suffixes`` only
    files that end in one of them."""
    try:
        there = [entry for entry in path.parent.iterdir() if entry.name[0] != "." and entry.exists()]
    except OSError:
        return None
    wanted = [entry for entry in there if not suffixes or entry.suffix.lower() in suffixes]
    names = {entry.stem: entry for entry in wanted} | {entry.name: entry for entry in wanted}
    near = nearest(path.name, names)
    return names[near[0]] if near else None


_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")


def variable_advice(path: str | Path) -> str:
    """What to do about a path with a variable of a shell, such as ``$HOME``; "" if it has none."""
    found = _VARIABLE.search(str(path))
    if found is None:
        return ""
    meant = _VARIABLE.sub(lambda one: os.environ.get(one[1] or one[2], one[0]), str(path))
    known = f" {meant}" if _VARIABLE.search(meant) is None else ""
    return f"Only a shell replaces {found[0]}: write the path itself{known and ','}{known}."


def did_you_mean_path(path: Path, otherwise: str = "", suffixes: Sequence[str] = ()) -> str:
    """`did_you_mean` for a path that does not exist."""
    if advice := variable_advice(path):
        return advice
    near = near_path(path, suffixes)
    return f'Did you mean "{near}"?' if near else otherwise


def short(text: str, width: int = WIDTH) -> str:
    """``text`` cut to a width, between two words if possible, with dots at the cut."""
    if len(text) <= width:
        return text
    head = text[: width - 3]
    words, _, rest = head.rpartition(" ")
    return f"{words if words and len(rest) <= LONG_WORD else head}..."


def shown(value: object) -> str:
    """A value as JSON, cut to `WIDTH` characters; a string keeps its quotes."""
    if isinstance(value, str):
        return _json(short(value))
    return short(_json(value))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first names and how many more there are: ``a, b, c and 4 more``."""
    words = list(names)
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more:,} more" if more > 0 else "")


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and its noun: ``1 row``, ``1,500 rows``."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
