"""What ``$(...)`` prints for programs that compute from their words alone: ``echo 0,1 | tr ',' ' '``.

Nothing is run, and no file is read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\0": "\0", "\\\\": "\\"}
_CLASSES = {"[:upper:]": "A-Z", "[:lower:]": "a-z"}
_FORMAT = re.compile(r"%(?P<how>-?0?\d*)(?P<kind>[sdi])|%%")
_MOST = 1000
"""Numbers that ``seq`` prints at most here."""


def output_of(command: str) -> str | None:
    """What a pipeline prints, without newlines at the end; None if it cannot be told from the words alone."""
    if re.search(r"[$`*?]", re.sub(r"'[^']*'", "", command)):
        return None
    try:
        reader = shlex.shlex(command, posix=True, punctuation_chars="|;&<>()")
        reader.whitespace_split = True
        reader.commenters = ""
        words = list(reader)
    except ValueError:
        return None
    text: str | None = ""
    for number, stage in enumerate(_stages(words)):
        text = _printed(stage, text or "", is_first=number == 0)
        if text is None:
            return None
    return (text or "").rstrip("\n") if words else None


def _stages(words: Iterable[str]) -> Iterator[list[str]]:
    stage: list[str] = []
    for word in words:
        if word == "|":
            yield stage
            stage = []
        else:
            stage.append(word)
    yield stage


def _printed(stage: list[str], text: str, is_first: bool) -> str | None:
    """The output of one program; None if it is not known here."""
    if not stage or any(re.fullmatch(r"[|;&<>()]+", word) for word in stage):
        return None
    name, *rest = stage
    try:
        if is_first:
            return _SOURCES[name](rest) if name in _SOURCES else _path(name, rest)
        return _FILTERS[name](rest, text) if name in _FILTERS else None
    except (ValueError, IndexError, TypeError):
        return None


# --- programs that print -------------------------------------------------------------------------------------


def _echo(words: list[str]) -> str:
    shown = words[1:] if words[:1] == ["-n"] else words
    if shown and shown[0].startswith("-"):
        raise ValueError
    return f"{' '.join(shown)}\n"


def formatted(words: list[str]) -> str:
    """What ``printf`` prints: its format, again while there are words.

    Raises:
        ValueError: the format is not known here.
    """
    pattern, *left = words
    pattern = re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), pattern)
    slots = [found for found in _FORMAT.finditer(pattern) if found["kind"]]
    if "%" in _FORMAT.sub("", pattern):
        raise ValueError(f"not a format known here: {pattern!r}")
    shown = ""
    while True:
        here, left = left[: len(slots)], left[len(slots) :]
        given = iter([*here, *[""] * (len(slots) - len(here))])
        shown += _FORMAT.sub(lambda found: _filled(found, given), pattern)  # noqa: B023
        if not left or not slots:
            return shown


def _filled(found: re.Match[str], given: Iterator[str]) -> str:
    if not found["kind"]:
        return "%"
    word = next(given)
    value = word if found["kind"] == "s" else int(word or "0")
    return f"%{found['how']}{found['kind']}" % value


def _seq(words: list[str]) -> str:
    between = "\n"
    if words and words[0].startswith("-s"):
        between = words[0][2:] or words[1]
        words = words[1 if words[0][2:] else 2 :]
    numbers = [int(word) for word in words]
    first, step, last = {1: (1, 1), 2: (numbers[0], 1), 3: tuple(numbers[:2])}[len(numbers)] + (numbers[-1],)
    return between.join(map(str, range(first, last + (1 if step > 0 else -1), step)[:_MOST])) + "\n"


_SOURCES: dict[str, Callable[[list[str]], str]] = {"echo": _echo, "printf": formatted, "seq": _seq}


def _path(name: str, words: list[str]) -> str | None:
    """What a program prints that names a file or a part of its path."""
    rest = [word for word in words if word not in ("-v", "-p", "--", "-f", "-m", "-e")]
    if name in ("which", "command", "type") and len(rest) == 1:
        return rest[0]
    if name in ("realpath", "readlink") and len(rest) == 1:
        return str(Path(rest[0]).absolute())
    if name == "basename" and len(rest) in (1, 2):
        return Path(rest[0]).name.removesuffix(rest[1] if len(rest) == 2 else "")
    return str(Path(rest[0]).parent) if name == "dirname" and len(rest) == 1 else None


# --- programs that change what they read ---------------------------------------------------------------------


def _tr(words: list[str], text: str) -> str:
    deletes = words[0] == "-d"
    old = _letters(words[1 if deletes else 0])
    new = "" if deletes else _letters(words[1])
    table = {ord(one): new[min(place, len(new) - 1)] if new else None for place, one in enumerate(old)}
    return text.translate(table)


def _letters(word: str) -> str:
    word = _ESCAPES.get(word, _CLASSES.get(word, word))
    return re.sub(r"(.)-(.)", lambda found: "".join(map(chr, range(ord(found[1]), ord(found[2]) + 1))), word)


def _option(words: list[str], name: str) -> str:
    """The value of ``-d,`` or ``-d ,``."""
    place = next(place for place, word in enumerate(words) if word.startswith(name))
    return words[place][len(name) :] or words[place + 1]


def _cut(words: list[str], text: str) -> str:
    between, field = _option(words, "-d"), int(_option(words, "-f"))
    parts = [line.split(between) for line in text.splitlines()]
    return "".join(f"{one[0] if len(one) == 1 else one[field - 1]}\n" for one in parts)


def _paste(words: list[str], text: str) -> str:
    joined = "".join(words).replace("-s", "-").removesuffix("-")
    return joined.partition("d")[2][:1].join(text.splitlines()) + "\n"


def _wc(words: list[str], text: str) -> str:
    return {"-l": str(text.count("\n")), "-w": str(len(text.split()))}[words[0]]


def _awk(words: list[str], text: str) -> str:
    between = _option(words, "-F") if words[0].startswith("-F") else None
    found = re.fullmatch(r"\s*\{\s*print\s+(?:(NF)|\$(NF|\d+))\s*;?\s*\}\s*", words[-1])
    if found is None:
        raise ValueError
    lines = [line.split(between) for line in text.splitlines()]
    place = None if found[1] else -1 if found[2] == "NF" else int(found[2]) - 1
    return "".join(f"{len(one) if place is None else one[place]}\n" for one in lines)


def _sed(words: list[str], text: str) -> str:
    (command,) = words
    name, old, new, how = re.split(re.escape(command[1]), command)
    if name != "s" or how not in ("", "g") or re.search(r"[.*^$\[\]\\&]", old + new):
        raise ValueError
    return "".join(f"{line.replace(old, new, -1 if how else 1)}\n" for line in text.splitlines())


def _head(words: list[str], text: str) -> str:
    count = int("".join(words).lstrip("-n") or "10")
    return "".join(f"{line}\n" for line in text.splitlines()[:count])


_FILTERS: dict[str, Callable[[list[str], str], str]] = {
    "tr": _tr, "cut": _cut, "paste": _paste, "wc": _wc, "awk": _awk, "sed": _sed, "head": _head,
}  # fmt: skip
