"""Texts with the marks of chat templates, with several turns, with half a thinking block, or with what stands for a
missing value."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from operator import itemgetter, methodcaller
from typing import Any, NamedTuple

from swift_toolkit.dataset.rows.flaws import Flaw

MARKS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|begin_of_text|start_header_id|end_header_id|eot_id|eom_id|user|assistant|system"
    r"|end|im_sep|im_user|im_assistant|im_system|im_middle|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN"
    r"|eot|header_start|header_end|start|message|channel|return|observation|image|image_pad|video_pad|audio_pad"
    r"|vision_start|vision_end|vision_pad)\|>"
    r"|\[/?INST\]|<<SYS>>|<(?:start|end)_of_turn>|<start_of_image>|\[gMASK\]"
    r"|<｜(?:User|Assistant|(?:begin|end)▁of▁sentence|tool▁\w+)｜>"
    r"|<\[?_?(?:Bot|Human)\]?>"
)
"""Marks with which the templates of popular models separate turns, or stand for media."""

_BEGINNINGS = re.compile(r"<(?:[|_｜\[BH]|<SYS|start_of_|end_of_turn)")
"""The beginnings of all marks except [INST] and [gMASK]; a pattern with a fixed first character is fast."""

_AT_ENDS = re.compile(r"\A\s*(<s>|<bos>)|(</s>|<eos>)\s*\Z")
"""Marks that are HTML, or a subject of the text, anywhere but at its ends."""

_FILLER = re.compile(r"(?:\A|\n)(nan|<noinput>|<nooutput>|#N/A|#REF!|#VALUE!|\[object Object\])\Z")
"""What programs write for a missing value."""

_FILLER_ENDS = ("nan", "put>", "#N/A", "#REF!", "#VALUE!", "Object]")
_LAST_CHARACTERS = frozenset(end[-1] for end in _FILLER_ENDS)
_ENDS_A_FILLER = bytes(chr(byte) in _LAST_CHARACTERS for byte in range(256))
_FILLER_ENDS_IN_UTF8 = tuple(map(str.encode, _FILLER_ENDS))
_last: Callable[[str], str] = itemgetter(slice(-1, None))
_OPEN, _CLOSE = "<think>", "</think>"


class Sign(NamedTuple):
    """A pattern in UTF-8 that begins with a certain byte, and has one of a few others beside it.

    Args:
        first: the byte.
        beside: the bytes of which one follows it; if `is_end`, of which one precedes it.
        form: the pattern.
        is_end: whether the pattern looks behind the byte.
    """

    first: bytes
    beside: bytes
    form: re.Pattern[bytes]
    is_end: bool = False


_SIGNS = Sign(
    b"<",
    b"<|_[BHse/bt\xef",
    re.compile("<(?:[|_\\[BH]|｜|<SYS|start_of_|end_of_turn|/?s>|bos>|/?eos>|/?think>)".encode()),
)
"""The beginnings of everything in angle brackets of which `mark_flaws` finds something."""

_BRACKETS = Sign(b"]", b"TK", re.compile(rb"\](?:(?<=INST\])|(?<=\[gMASK\]))"), is_end=True)
"""The ends of [INST], [/INST] and [gMASK]: one search instead of two."""

_FEW = 256
"""A byte that occurs more often in a block is not rare."""

TURNS_WITHIN = 1 << 16
"""Turns in one text are looked for in the first bytes of a block of rows; files that have them have them everywhere."""

_TURN_SIGNS = (b"ssistant:", "ssistant：".encode(), b"ssistant\\uff1a", b"ssistant\\uFF1A")


def may_hold_marks(text: str) -> bool:
    """Whether `MARKS` may match; cheaper than a search."""
    return ("<" in text and _BEGINNINGS.search(text) is not None) or (
        "]" in text and ("INST]" in text or "[gMASK]" in text)
    )


def may_hold_signs(data: bytes | bytearray) -> bool:
    """Whether `mark_flaws` may find something other than a filler in UTF-8; cheaper than `may_be_marked`."""
    if occurs(_SIGNS, data) or occurs(_BRACKETS, data):
        return True
    some = data[:TURNS_WITHIN]
    return b"ssistant" in some and any(sign in some for sign in _TURN_SIGNS)


def occurs(sign: Sign, data: bytes | bytearray) -> bool:
    """Whether a sign occurs anywhere; ten times as fast as a search if its first byte is rare."""
    first, _, form, _ = sign
    at = data.find(first)
    for _ in range(_FEW):
        if at < 0 or form.match(data, at):
            return at >= 0
        at = data.find(first, at + 1)
    if at >= 0 and (numpy := sys.modules.get("numpy")):
        return any(form.match(data, place) for place in _places(numpy, sign, data))
    return at >= 0 and form.search(data, at) is not None


def _places(numpy: Any, sign: Sign, data: bytes | bytearray) -> list[int]:
    """Where a sign may begin, by its first byte and the one beside it; three times as fast as a search."""
    values = numpy.frombuffer(data, numpy.uint8)
    places = numpy.flatnonzero(values == ord(sign.first))
    wanted = numpy.zeros(256, numpy.bool_)
    wanted[list(sign.beside)] = True
    found: list[int] = places[wanted[values.take(places + (-1 if sign.is_end else 1), mode="clip")]].tolist()
    return found


def may_end_in_filler(texts: Sequence[Any], lasts: bytes | None = None) -> bool:
    """Whether `mark_flaws` may find a filler in one of the texts.

    Args:
        texts: any number of texts: as str, or as bytes in UTF-8.
        lasts: the last byte of each of them, if they are bytes.
    """
    if lasts is None:
        some = compress(texts, map(_LAST_CHARACTERS.__contains__, map(_last, texts)))
        return any(map(methodcaller("endswith", _FILLER_ENDS), some))
    some = compress(texts, lasts.translate(_ENDS_A_FILLER))
    return any(map(methodcaller("endswith", _FILLER_ENDS_IN_UTF8), some))


def may_be_marked(texts: list[str], joined: str, answers: bool) -> bool:
    """Whether `mark_flaws` may find something other than a filler in one of the texts; cheaper than a search in each.

    Args:
        texts: any number of texts.
        joined: the same as one text.
        answers: whether some may be answers to learn.
    """
    if may_hold_marks(joined) and MARKS.search(joined):
        return True
    if any(sign in joined[:TURNS_WITHIN] for sign in ("ssistant:", "ssistant：")):
        return True
    if any(mark in joined for mark in ("<s>", "</s>", "<bos>", "<eos>")):
        return True
    return answers and "think>" in joined and any(map(_is_half_thought, texts))


def mark_flaws(texts: list[tuple[str, str]], learns: bool) -> Iterator[Flaw]:
    """The first text of a row with a mark, with several turns, with half a thinking block, and with a filler.

    Args:
        texts: role and content of each message.
        learns: whether answers are learned.
    """
    finders = {"marks": _mark, "turns": _turns, "filler": _filler} | (
        {"half-thinking": _half} if learns else {}
    )
    for kind, find in finders.items():
        for at, (role, content) in enumerate(texts, 1):
            if content and (what := find(role, content)):
                yield Flaw(kind, f"message {at} {what}")
                break


def _mark(role: str, text: str) -> str:
    found = MARKS.search(text) if may_hold_marks(text) else None
    if found is not None:
        return f'contains "{found[0]}", a mark of chat templates'
    found = _AT_ENDS.search(text) if ">" in text else None
    if found is None:
        return ""
    return (
        f'begins with "{found[1]}", a mark of chat templates'
        if found[1]
        else f'ends with "{found[2]}", a mark of chat templates'
    )


_TURNS = re.compile(r"\s*(?:#+ *)?((?:Human|User)[:：])(?s:.*?)\n\s*(?:#+ *)?(Assistant[:：])")


def _turns(role: str, text: str) -> str:
    """A conversation written into one text, as in BELLE's multi-turn data."""
    found = _TURNS.match(text) if "ssistant" in text else None
    return f'holds several turns ("{found[1]}", "{found[2]}")' if found else ""


def _filler(role: str, text: str) -> str:
    found = _FILLER.search(text)
    return f'ends with "{found[1]}", which programs write for a missing value' if found else ""


def _is_half_thought(text: str) -> bool:
    return text.count(_OPEN) != text.count(_CLOSE)


def _half(role: str, text: str) -> str:
    if role != "assistant" or not _is_half_thought(text):
        return ""
    has, lacks = (_OPEN, _CLOSE) if text.count(_OPEN) > text.count(_CLOSE) else (_CLOSE, _OPEN)
    return f'has "{has}" without "{lacks}"'
