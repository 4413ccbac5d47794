"""Lines and JSON: one row per line, the items of an array, or consecutive objects over several lines."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from swift_toolkit.dataset.reading.streams import BLOCK_BYTES, MAX_ROW_BYTES, Chunk, Record
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError

CUT_OFF = "row is truncated"

JsonRows = list[tuple[int, bytes]]
"""Rows as JSON without line breaks, each with the line on which it starts, counted from 1."""

# One row per line


def line_chunks(stream: IO[bytes], start: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """Whole lines of a file.

    Args:
        stream: the file.
        start: first byte; the line that contains it belongs to the previous part. Only for uncompressed files.
        end: lines that start at this byte or later are not read.

    Raises:
        FlawError: a line is longer than `MAX_ROW_BYTES`.
    """
    at = start
    if start:
        stream.seek(start - 1)
        at += len(stream.readline(MAX_ROW_BYTES)) - 1
    while end is None or at < end:
        size = BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - at)
        data = stream.read(size)
        if not data:
            return
        if not data.endswith(b"\n"):
            data += stream.readline(MAX_ROW_BYTES)
            if len(data) > MAX_ROW_BYTES and not data.endswith(b"\n"):
                raise FlawError("broken", f"a row is longer than {MAX_ROW_BYTES >> 20} MB", "Split it.")
        begins, at = at == 0, at + len(data)
        yield Chunk(data.removeprefix(codecs.BOM_UTF8) if begins else data)


def lines_of(data: bytes) -> list[bytes]:
    """The lines of a chunk without line endings."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def rows_of_lines(data: bytes) -> JsonRows:
    """The lines that are not blank."""
    if not data or data.isspace():
        return []
    return [(at, line) for at, line in enumerate(lines_of(data), 1) if line and not line.isspace()]


def texts_of_lines(data: bytes) -> list[tuple[int, str]]:
    """The lines of a plain text that are not blank.

    Raises:
        UnicodeDecodeError: one is not UTF-8.
    """
    texts = ((at, line.decode().rstrip("\r")) for at, line in rows_of_lines(data))
    return [(at, text) for at, text in texts if text.strip()]


# The items of an array

_VALUE_MARKS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_NEXT_ITEM = re.compile(rb'\s*,\s*\{\s*"(?:[^"\\]|\\.)*"')
_OPEN, _CLOSE, _COMMA, _QUOTE = b"[{", b"]}", b","[0], b'"'[0]


class ItemChunks:
    """Cuts an array into chunks of whole items; each starts with the "[" or "," before its first item.

    The bytes between the first two items usually show where one item ends and the next one starts: an unescaped quote
    after a brace cannot be inside a string. A chunk that was cut there is decoded once and discarded; if it does not
    hold whole items, its brackets are counted.

    Args:
        stream: the file, or a section of it that starts with the "[" or "," before an item.
        between: the bytes between two items, see `between_items`; b"" to find them in the file.
        trusting: do not decode the chunks, because the caller does, and raises `CutError` if one is not whole.
        ends: whether the stream ends with the end of the file.
    """

    def __init__(
        self, stream: IO[bytes], between: bytes = b"", trusting: bool = False, ends: bool = True
    ) -> None:
        import msgspec

        self.stream = stream
        self.between = between
        self.trusting = trusting
        self.ends = ends
        self.decode = msgspec.json.Decoder(list[msgspec.Raw]).decode
        self.errors = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

    def chunks(self) -> Iterator[Chunk]:
        """The whole array, and what follows it."""
        data = self.stream.read(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
        self.between = between_items(data)
        size = BLOCK_BYTES
        while data:
            end = self.last_item(data)
            if end:
                yield Chunk(data[:end])
                data, size = data[end:], BLOCK_BYTES
            elif len(data) > MAX_ROW_BYTES:
                break
            more = self.stream.read(min(size, MAX_ROW_BYTES + BLOCK_BYTES - len(data)))
            if not more:
                break
            data, size = data + more, max(size, len(data))
        if data:
            yield Chunk(data, last=self.ends)

    def last_item(self, data: bytes) -> int:
        """The position before the last item that starts in these bytes; 0 if unknown."""
        at = data.rfind(self.between) if self.between else -1
        if at > 0:
            end = data.index(b",", at)
            if self.trusting or self._is_whole(data[:end]):
                return end
        return last_comma(data)

    def _is_whole(self, data: bytes) -> bool:
        try:
            self.decode(as_array(data, False))
        except self.errors:
            return False
        return True


def between_items(data: bytes) -> bytes:
    """The bytes between the items of an array: from the brace that ends one item to the first key of the next.

    Args:
        data: the beginning of the array, or b"" if there is none.
    """
    begin = data.find(b"{")
    depth = 0
    for mark in _VALUE_MARKS.finditer(data, begin) if begin >= 0 else ():
        depth += (data[mark.start()] in _OPEN) - (data[mark.start()] in _CLOSE)
        if not depth:
            found = _NEXT_ITEM.match(data, mark.end())
            return b"}" + found[0] if found else b""
    return b""


def item_bounds(path: Path, step: int) -> Iterator[int]:
    """Positions between the items of an array, about `step` bytes apart: most likely, as for `ItemChunks`."""
    with path.open("rb") as stream:
        between = between_items(stream.read(BLOCK_BYTES))
        at = step
        while between:
            stream.seek(at)
            data = stream.read(min(BLOCK_BYTES, step))
            if not data:
                return
            if (found := data.find(between)) >= 0:
                yield at + data.index(b",", found)
            at += step


def last_comma(data: bytes) -> int:
    """Position of the last comma between two items; 0 if there is none.

    Args:
        data: starts with the "[" or "," before an item.
    """
    depth = last = 0
    first = len(data) - len(data.lstrip()) + 1
    for mark in _VALUE_MARKS.finditer(data, first):
        char = data[mark.start()]
        if char == _COMMA:
            last = last if depth else mark.start()
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
            if depth < 0:
                break
        elif mark.end() - mark.start() == 1:
            break  # a string that continues after these bytes
    return last


def as_array(data: bytes, last: bool) -> bytearray:
    """A chunk of items as a complete array."""
    out = bytearray(data)
    at = len(data) - len(data.lstrip())
    out[at : at + 1] = b"["
    if not last:
        out += b"]"
    return out


def rows_of_items(chunk: Chunk) -> JsonRows | None:
    """The items of a chunk as lines; None if it does not hold whole items."""
    import msgspec

    try:
        items = msgspec.json.decode(as_array(*chunk), type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    out: JsonRows = []
    line, at = 1, 0
    for item in map(bytes, items):
        place = chunk.data.find(item, at)
        line += chunk.data.count(b"\n", at, place)
        out.append((line, item.replace(b"\n", b" ").replace(b"\r", b" ")))
        at = place + len(item)
        line += item.count(b"\n")
    return out


def records_of_items(chunk: Chunk) -> Iterator[Record]:
    """The items of a broken chunk, one by one up to the broken place."""
    body = chunk.data.lstrip()
    blank = chunk.data[: len(chunk.data) - len(body)]
    text = io.TextIOWrapper(io.BytesIO(blank + b"[" + body[1:]), "utf-8", newline="")
    yield from ValueReader(text, whole=chunk.last).records()


# A value


def decode_line(data: bytes) -> Any:
    """Decode one JSON value, or return the flaw that says why it cannot be decoded."""
    import msgspec

    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return explain_json(data)


def explain_json(data: bytes) -> Flaw:
    """Why these bytes are not a single JSON value that ms-swift can read."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return Flaw("encoding", f"row is not UTF-8 at byte {error.start + 1}")
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return TOO_DEEP
    except json.JSONDecodeError as error:
        return _explain_syntax(text, error)
    except ValueError as error:
        return _odd_number(error)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        what = "text contains half of a surrogate pair (\\ud800 to \\udfff)"
        return Flaw("broken", what, "Write the complete character.")
    return TOO_LARGE


TOO_LARGE = Flaw("broken", "row contains a number that is too large")
TOO_DEEP = Flaw("broken", "row is nested too deeply", "Write the inner part as text.")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not valid JSON; write null")


def _odd_number(error: ValueError) -> Flaw:
    """Handle a number that the decoder rejects: `_refuse_constant`'s message, or Python's limit of digits."""
    return Flaw("broken", str(error)) if str(error).endswith("write null") else TOO_LARGE


def _explain_syntax(text: str, error: json.JSONDecodeError) -> Flaw:
    column = error.colno
    rest = text[error.pos :].lstrip()
    if error.msg == "Extra data":
        if rest.startswith("{"):
            return Flaw("broken", f"a second row starts at column {column}", "Put each row on its own line.")
        if rest.startswith(","):
            return Flaw(
                "broken", "a comma follows the row", "Remove it: JSON Lines has no commas between rows."
            )
        return Flaw("broken", f"unexpected text after the row at column {column}", "Remove it.")
    if error.msg.startswith("Invalid control character"):
        at = text[error.pos]
        names = {"\t": "tab, write \\t", "\x00": "NUL character", "\n": "line break, write \\n", "\r": "\\r"}
        return Flaw("broken", f"text contains a raw {names.get(at, f'control character (code {ord(at)})')}")
    if error.msg.startswith("Unterminated string") or not rest:
        return Flaw("broken", CUT_OFF, "Each row must be complete and on one line.")
    if not text[: error.pos].strip():
        return Flaw("broken", "row is not valid JSON")
    return Flaw("broken", f"broken JSON at column {column}: {error.msg[0].lower() + error.msg[1:]}")


_SPACE = re.compile(r"[ \t\r\n]*")


class ValueReader:
    """Decodes the items of an array, or objects, one after another, keeping one block of text in memory.

    Args:
        stream: the text.
        whole: whether it is the whole array, not a chunk that ends after an item.
    """

    def __init__(self, stream: IO[str], whole: bool = True) -> None:
        self.stream = stream
        self.whole = whole
        self.text = ""
        self.at = 0
        self.line = 1
        self.decoder = json.JSONDecoder(parse_constant=_refuse_constant)

    def records(self) -> Iterator[Record]:
        in_array = self._next_mark() == "["
        self.at += in_array
        number = 0
        while (mark := self._next_mark()) and not (in_array and mark == "]"):
            number += 1
            if in_array and number > 1:
                if mark != ",":
                    what = "a comma is missing before this row"
                    yield Record(number, self.line, Flaw("broken", what), 0, cut=True)
                    return
                self.at += 1
                if self._next_mark() == "]":
                    what = "a comma follows the last row"
                    yield Record(number, self.line, Flaw("broken", what, "Remove it."), 0, cut=True)
                    return
            line = self.line
            value, size, goes_on = self._value()
            yield Record(number, line, value, size, cut=not goes_on)
            if not goes_on:
                return
        if in_array and self.whole:
            yield from self._end(number)

    def _end(self, number: int) -> Iterator[Record]:
        if not self._next_mark():
            what = 'the array is truncated: its "]" is missing'
            yield Record(number + 1, self.line, Flaw("broken", what), 0, cut=True)
            return
        self.at += 1
        if self._next_mark():
            flaw = Flaw("broken", "unexpected text after the array", "Remove it.")
            yield Record(number + 1, self.line, flaw, 0, cut=True)

    def _more(self, size: int) -> bool:
        block = self.stream.read(size)
        if not block:
            return False
        self.text = self.text[self.at :] + block
        self.at = 0
        return True

    def _next_mark(self) -> str:
        """The next character that is not a space; "" at the end."""
        while True:
            start, self.at = self.at, cast("re.Match[str]", _SPACE.match(self.text, self.at)).end()
            self.line += self.text.count("\n", start, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more(BLOCK_BYTES):
                return ""

    def _value(self) -> tuple[Any, int, bool]:
        """The item that starts here, its length, and whether it is possible to continue after it."""
        while True:
            held = len(self.text) - self.at
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if held > MAX_ROW_BYTES:
                    what = f"row is longer than {MAX_ROW_BYTES >> 20} MB"
                    return Flaw("broken", what, "Split it."), 0, False
                if self._more(max(held, BLOCK_BYTES)):
                    continue
                return self._explain(error), 0, False
            except RecursionError:
                return TOO_DEEP, 0, False
            except ValueError as error:
                return _odd_number(error), 0, False
            if end == len(self.text) and self._more(BLOCK_BYTES):
                continue  # a number may continue in the next block
            raw = self.text[self.at : end]
            self.line += raw.count("\n")
            self.at = end
            return _whole_characters(value, raw), len(raw), True

    def _explain(self, error: json.JSONDecodeError) -> Flaw:
        flaw = _explain_syntax(self.text, error)
        if not flaw.what.startswith("broken JSON"):
            return flaw
        below = self.text.count("\n", self.at, error.pos)
        where = f"on line {below + 1} of the row"
        return Flaw("broken", f"broken JSON {where}: {flaw.what.partition(': ')[2]}") if below else flaw


def _whole_characters(value: Any, raw: str) -> Any:
    """The value, or a flaw if its escapes leave half of a surrogate pair."""
    if "\\u" not in raw:
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return explain_json(raw.encode())
    return value
