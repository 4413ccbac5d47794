"""Going through the rows of a file: many at once where they are certainly right, else one by one.

A part of a file gives a `Tally`; the tallies of all parts add up to what the file holds. Parts of one file
can be scanned by different processes (see `scan_parts`). Run as a module this file is such a process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain, repeat
from operator import attrgetter, itemgetter, rshift, sub
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol, cast

from swift_toolkit.dataset_checks import (
    BYTES_PER_TOKEN,
    INVISIBLE,
    MOJIBAKE,
    TINY_ANSWER,
    TOKENS_PER_MESSAGE,
    Rules,
    is_tiny,
    judge,
    row_tokens,
    text_of,
)
from swift_toolkit.dataset_files import DataFile, decode_line, lines_of, read_chunks, read_records
from swift_toolkit.dataset_flaws import Flaw, FlawError
from swift_toolkit.dataset_media import MEDIA_NAMES, MediaCheck
from swift_toolkit.dataset_rows import Layout, Row, layout_of
from swift_toolkit.dataset_shape import HEAD_BYTES, Shape

EXAMPLES = 5
"""Flaws kept of each kind."""

MAX_PRINTS = 1 << 20
"""Fingerprints of rows held at once, 8 bytes each; of larger data a half, a quarter, ... is compared."""

TOKEN_STEP = 16
"""Width of a bar of the histogram of tokens per row."""

PART_BYTES = 128 << 20
"""Size of the parts that processes take turns at; smaller data are scanned by this process alone."""

MAX_PROCESSES = 4
"""More would not keep to the memory that the whole scan may take."""

_ANSWERS_AT_ONCE = 100


class Found(NamedTuple):
    """A flaw and its place, counted from the beginning of the part."""

    flaw: Flaw
    line: int | None
    number: int | None


class Prints:
    """Fingerprints of rows, to find equal ones. If need be only a share of all values is kept.

    The share is chosen by value, so that equal rows are kept or left out together.
    """

    def __init__(self) -> None:
        self.values = array("q")
        self.rows = 0
        self.mask = 0

    def extend(self, values: Iterable[int], rows: int) -> None:
        self.rows += rows
        self.values.extend(values if not self.mask else (v for v in values if not v & self.mask))
        while len(self.values) > MAX_PRINTS:
            self._thin(self.mask << 1 | 1)

    def _thin(self, mask: int) -> None:
        if mask != self.mask:
            self.mask = mask
            self.values = array("q", (value for value in self.values if not value & mask))

    def add(self, other: Prints) -> None:
        mask = max(self.mask, other.mask)
        self._thin(mask)
        self.extend((value for value in other.values if not value & mask), other.rows)

    def repeats(self) -> tuple[int, list[tuple[int, int]]]:
        """How many rows repeat an earlier one (scaled up from the share), and where the first ones are.

        Returns:
            The number, and pairs of indices (earlier, later), none if only a share was kept.
        """
        values = self.values.tolist()
        seen = set(values)
        count = len(values) - len(seen)
        if not count or self.mask:
            return count * (self.mask + 1), []
        seen.clear()
        pairs: list[tuple[int, int]] = []
        for at, value in enumerate(values):
            if value in seen:
                pairs.append((values.index(value), at))
                if len(pairs) == EXAMPLES:
                    break
            seen.add(value)
        return count, pairs

    def common(self, other: Prints) -> tuple[int, list[tuple[int, int]]]:
        """How many rows of `other` are here too, and the first pairs (index here, index there), likewise."""
        mask = max(self.mask, other.mask)
        self._thin(mask)
        other._thin(mask)
        both = set(other.values).intersection(self.values)
        count = sum(map(both.__contains__, other.values)) if both else 0
        if mask:
            return count * (mask + 1), []
        places = [at for at, value in enumerate(other.values) if value in both][:EXAMPLES] if both else []
        return count, [(self.values.index(other.values[at]), at) for at in places]


@dataclass
class Tally:
    """What a part of a file holds. Parts add up in their order.

    Args:
        rows: rows looked at.
        bad: those with an error.
        lines: lines passed.
        size: bytes of the rows looked at.
        counts: kind of flaw -> how many.
        found: kind of flaw -> the first few.
        turns: messages in a row -> rows.
        tokens: estimated tokens of a row by `TOKEN_STEP` -> rows.
        answers: answer -> how often it was seen among `sampled` answers; only frequent ones.
        sampled: answers that were compared.
        prints: fingerprints of the rows.
        whole: the part was read to its end.
        cut: it could not be read to its end.
    """

    rows: int = 0
    bad: int = 0
    lines: int = 0
    size: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[Found]] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    sampled: int = 0
    prints: Prints = field(default_factory=Prints)
    whole: bool = True
    cut: bool = False

    def note(self, flaw: Flaw, line: int | None = None, number: int | None = None) -> None:
        self.counts[flaw.kind] += 1
        found = self.found.setdefault(flaw.kind, [])
        if len(found) < EXAMPLES:
            found.append(Found(flaw, line, number))

    def note_answers(self, answers: list[str]) -> None:
        """Count the most frequent of these answers, if a good share of them."""
        if answers:
            answer, times = Counter(answers).most_common(1)[0]
            self.sampled += len(answers)
            if times * 4 >= len(answers):
                self.answers[answer[:200]] += times

    def add(self, other: Tally, near: int | None = None) -> None:
        """Take in a further part.

        Args:
            other: the tally of that part.
            near: the byte it begins at, if its lines do not follow on ours; this then places its flaws.
        """
        for kind, founds in other.found.items():
            mine = self.found.setdefault(kind, [])
            for flaw, line, number in founds[: EXAMPLES - len(mine)]:
                if near is not None:
                    mine.append(Found(flaw._replace(what=f"near byte {near:,}: {flaw.what}"), None, None))
                    continue
                moved = None if line is None else line + self.lines
                mine.append(Found(flaw, moved, None if number is None else number + self.rows))
        for name in ("rows", "bad", "lines", "size", "sampled"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("counts", "turns", "tokens", "answers"):
            getattr(self, name).update(getattr(other, name))
        self.prints.add(other.prints)
        self.whole = self.whole and other.whole
        self.cut = self.cut or other.cut


class Sink(Protocol):
    """Takes every row of a scan, in order.

    Args:
        wants_rows: every row must come as messages, none as a line.
    """

    wants_rows: bool

    def lines(self, chunk: bytes) -> None:
        """Whole lines, whose rows have no flaw."""

    def row(self, value: Any, row: Row | None, flaws: list[Flaw], line: int | None, number: int) -> None:
        """One row: what was decoded, as messages, and what is wrong with it."""


@dataclass(frozen=True)
class Part:
    """Rows to scan.

    Args:
        file: the file.
        layout: its format.
        shape: its columns and types.
        rules: what the run asks of its rows.
        start: first byte, for a file of lines.
        end: lines from here on belong to the next part; None for the end of the file.
        copy_reason: why ms-swift is given a copy of the file; "" if it reads the file itself.
    """

    file: DataFile
    layout: Layout
    shape: Shape
    rules: Rules
    start: int = 0
    end: int | None = None
    copy_reason: str = ""


def head_of(file: DataFile) -> tuple[list[str], Shape]:
    """The columns and types of a file: by its first 10 MB, as ms-swift sees them; of an array by all of it.

    Raises:
        FlawError: the file cannot be read.
    """
    shape = Shape()
    if file.has_lines:
        _learn_from_lines(shape, file)
        return list(shape.fields), shape
    size = 0
    for record in read_records(file):
        if isinstance(record.value, dict):
            shape.add(record.value)
        size += record.size
        if size > HEAD_BYTES and not file.values:
            break
    return list(shape.fields), shape


def _learn_from_lines(shape: Shape, file: DataFile) -> None:
    import msgspec

    size = 0
    decode = None
    for chunk in read_chunks(file):
        try:
            known = decode is not None and decode(chunk) is not None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            known = False
        if not known:
            for line in lines_of(chunk):
                value = decode_line(line) if line and not line.isspace() else None
                if isinstance(value, dict):
                    shape.add(value)
            if not shape.may_be_dates:
                decode = msgspec.json.Decoder(shape.struct({}, whole=True)).decode_lines
        size += len(chunk)
        if size > HEAD_BYTES:
            return


def scan_part(part: Part, sink: Sink | None = None, deadline: float | None = None) -> Tally:
    """Judge every row of a part.

    Args:
        part: what to scan.
        sink: is given every row.
        deadline: time of `time.perf_counter` at which to stop early.
    """
    scan = _LineScan(part, sink) if part.file.has_lines else _RecordScan(part, sink)
    try:
        scan.run(deadline)
    except FlawError as error:
        scan.tally.cut = True
        scan.tally.note(error.flaw, None, scan.tally.rows + 1)
    return scan.finished()


class _RecordScan:
    """Rows one by one."""

    def __init__(self, part: Part, sink: Sink | None) -> None:
        self.part = part
        self.sink = sink
        self.tally = Tally()
        self.answers: list[str] = []
        self.media = MediaCheck()

    def run(self, deadline: float | None) -> None:
        for record in read_records(self.part.file):
            self.tally.size += record.size
            self.row(record.value, record.line)
            if deadline is not None and self.tally.rows % 64 == 0 and time.perf_counter() > deadline:
                self.tally.whole = False
                return

    def row(self, value: Any, line: int | None) -> None:
        """Judge one row in full."""
        tally = self.tally
        tally.rows += 1
        row, flaws = judge(value, self.part.layout, self.part.rules)
        if row is None:
            # an impossible print keeps the places of the others
            tally.prints.extend([hash((self.part.file.shown, self.part.start, tally.rows))], 1)
        else:
            if not MEDIA_NAMES.isdisjoint(row):
                flaws += self.media.flaws(row)
            self._measure(row)
        for flaw in flaws:
            tally.note(flaw, line, tally.rows)
        tally.bad += any(flaw.is_error for flaw in flaws)
        if self.sink is not None:
            self.sink.row(value, row, flaws, line, tally.rows)

    def _measure(self, row: Row) -> None:
        messages = row.pop("messages")
        texts = tuple(map(text_of, messages))
        print_ = hash(texts) if not row else hash((texts, repr(sorted(row.items()))))
        row["messages"] = messages
        self.tally.prints.extend([print_], 1)
        self.tally.turns[len(messages)] += 1
        self.tally.tokens[row_tokens(messages) // TOKEN_STEP] += 1
        if messages[-1]["role"] == "assistant":
            self.note_answers([texts[-1]])

    def note_answers(self, answers: list[str]) -> None:
        self.answers += answers
        if len(self.answers) >= _ANSWERS_AT_ONCE:
            self.tally.note_answers(self.answers)
            self.answers = []

    def finished(self) -> Tally:
        self.tally.note_answers(self.answers)
        return self.tally


class _LineScan(_RecordScan):
    """Rows of a file of lines, a block at a time as long as all are right."""

    def __init__(self, part: Part, sink: Sink | None) -> None:
        super().__init__(part, sink)
        self.block = None if sink is not None and sink.wants_rows else _BlockCheck.of(part)
        self.later_type: Any = None

    def run(self, deadline: float | None) -> None:
        at = self.part.start
        for chunk in read_chunks(self.part.file, self.part.start, self.part.end):
            if at > HEAD_BYTES and self.later_type is None:
                self.later_type = self.part.shape.struct({})  # columns and types are fixed by now
            at += len(chunk)
            self.tally.size += len(chunk)
            self._lines(chunk)
            if deadline is not None and time.perf_counter() > deadline:
                self.tally.whole = False
                return

    def _lines(self, chunk: bytes) -> None:
        """Take all at once, or find the lines that cannot be taken so by halving."""
        if self.block is not None and self.block.take(chunk, self):
            if self.sink is not None:
                self.sink.lines(chunk)
            return
        half = chunk.find(b"\n", len(chunk) // 2) + 1
        if self.block is None or not 0 < half < len(chunk):
            for line in lines_of(chunk):
                self._line(line)
        else:
            self._lines(chunk[:half])
            self._lines(chunk[half:])

    def _line(self, line: bytes) -> None:
        self.tally.lines += 1
        if not line or line.isspace():
            return
        value = decode_line(line)
        if self.later_type is not None and isinstance(value, dict):
            value = self._as_in_head(value)
        self.row(value, self.tally.lines)

    def _as_in_head(self, value: Row) -> Any:
        """The row, or a flaw if its columns or types are not those of the head of the file."""
        import msgspec

        try:
            msgspec.convert(value, self.later_type)
        except msgspec.ValidationError as error:
            unknown = re.search(r"unknown field `(.+?)`", str(error))
            place = re.search(r"at `\$\.(.+)`$", str(error))
            if unknown:
                return Flaw("late", f'"{unknown[1]}" does not occur in the first 10 MB of the file')
            return Flaw(
                "late", f'"{place[1] if place else ""}" changes its type after the first 10 MB of the file'
            )
        return value


_ROLES = Literal["system", "user", "human", "assistant", "gpt", "bot"]
_Texts = tuple[str, ...]
_last: Callable[[_Texts], str] = itemgetter(-1)
_FINE = 4  # bits of a length that its count of tokens does without
_TAGS = ("<image>", "<video>", "<audio>")
_MARKS = ("\ufffd", "\u200b", "\ufeff", "Ã", "â")
_UNSEEN = re.compile(rb"\xe2(?:\x80[\xaa-\xae]|\x81[\xa0\xa6-\xa9])")
_C1 = re.compile(rb"\xc2[\x80-\x9f]")
_CONTROL = re.compile(rb"\\(?:u00[01][0-9a-fA-F]|u007[fF]|u00[89][0-9a-fA-F])")


class _BlockCheck:
    """Tells of many rows at once whether `judge` would find nothing wrong with any of them.

    A subclass knows how rows of its family give their texts. It may say of right rows that they might be
    wrong, never the opposite.

    Args:
        part: what is scanned.
        replace: column -> the type it must have.
    """

    def __init__(self, part: Part, replace: dict[str, Any]) -> None:
        import msgspec

        self.decode = msgspec.json.Decoder(part.shape.struct(replace)).decode_lines
        self.errors = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
        self.rules = part.rules
        self.good: dict[tuple[str, ...], bool] = {}

    @staticmethod
    def of(part: Part) -> _BlockCheck | None:
        """The check for the format of this part, None if its rows must be looked at one by one."""
        used = {
            name: column for column, name in part.layout.rename.items() if column not in part.layout.unused
        }
        columns = list(part.shape.fields)
        if not all(column in columns for column in used.values()):
            return None
        places = {name: attrgetter(f"field_{columns.index(column)}") for name, column in used.items()}
        names = used.keys() - {"system"}
        if part.layout.family == "messages" and names == {"messages"}:
            return _MessageBlocks.for_messages(part, used, places)
        if names in ({"query", "response"}, {"instruction", "input", "response"}):
            return _TextBlocks(part, used, places)
        return None

    def texts_of(self, rows: list[Any]) -> list[_Texts] | None:
        """The texts of each row, system prompt first; None if roles or columns might be wrong."""
        raise NotImplementedError

    def take(self, chunk: bytes, scan: _RecordScan) -> bool:
        """Count the rows of a chunk if they are all right; otherwise count nothing and say so."""
        try:
            rows = self.decode(chunk)
        except self.errors:
            return False
        if len(rows) != chunk.count(b"\n") + (not chunk.endswith(b"\n")):
            return False  # a blank line, or rows that are not one to a line
        texts = self.texts_of(rows)
        if texts is None:
            return False
        contents = list(chain.from_iterable(texts))
        if not all(contents) or any(map(str.isspace, contents)):
            return False
        joined = "".join(contents)
        answers = list(map(_last, texts))
        short = {answer for answer in answers if len(answer) < TINY_ANSWER}
        if any(map(is_tiny, short)) or self._is_odd(chunk, joined):
            return False
        turns = Counter(map(len, texts))
        lengths = _lengths(contents, texts, turns)
        if self._may_be_too_long(max(lengths), max(turns), joined):
            return False
        tally = scan.tally
        tally.rows += len(rows)
        tally.lines += len(rows)
        tally.turns.update(turns)
        tally.prints.extend(map(hash, texts), len(texts))
        scan.note_answers(answers[:_ANSWERS_AT_ONCE])
        _count_tokens(tally, lengths, len(contents) / len(texts), joined)
        return True

    def roles_are_right(self, roles: tuple[str, ...]) -> bool:
        """Whether a row with these roles, and text in all of them, has no flaw."""
        if roles not in self.good:
            row = {"messages": [{"role": role, "content": "text"} for role in roles]}
            self.good[roles] = not judge(row, layout_of(["messages"]), self.rules)[1]
        return self.good[roles]

    def _is_odd(self, chunk: bytes, text: str) -> bool:
        """Whether the text holds what `judge` may warn of: damaged or invisible characters, tags of media."""
        if self.rules.multimodal and any(tag in text for tag in _TAGS):
            return True
        if text.isascii():
            return _CONTROL.search(chunk) is not None
        if chunk.isascii() or any(mark in text for mark in _MARKS):
            return bool("\ufffd" in text or MOJIBAKE.search(text) or INVISIBLE.search(text))
        return any(odd.search(chunk) for odd in (_UNSEEN, _C1, _CONTROL))

    def _may_be_too_long(self, longest: int, turns: int, text: str) -> bool:
        limit = self.rules.max_length
        if limit is None:
            return False
        width = 1 if text.isascii() else 3
        return longest * width // BYTES_PER_TOKEN + turns * TOKENS_PER_MESSAGE > limit


class _MessageBlocks(_BlockCheck):
    """Rows of plain messages, with or without a column for the system prompt."""

    def __init__(self, part: Part, column: str, message: Any, places: dict[str, Any]) -> None:
        super().__init__(part, {column: list[message]})
        self.messages_of = places["messages"]
        self.system_of = places.get("system")
        self.content_of: Callable[[Any], str] = attrgetter("content")
        self.role_of: Callable[[Any], str] = attrgetter("role")

    @classmethod
    def for_messages(cls, part: Part, used: dict[str, str], places: dict[str, Any]) -> _MessageBlocks | None:
        """The check, if all messages in the head of the file are of one plain kind."""
        import msgspec

        items = part.shape.fields[used["messages"]].items
        keys = next(iter(items.keys)) if items is not None and len(items.keys) == 1 else frozenset()
        for role, content in (("role", "content"), ("from", "value")):
            if keys == {role, content}:
                fields = [
                    ("role", _ROLES, msgspec.field(name=role)),
                    ("content", str, msgspec.field(name=content)),
                ]
                message = msgspec.defstruct("Message", fields, forbid_unknown_fields=True, gc=False)
                return cls(part, used["messages"], message, places)
        return None

    def texts_of(self, rows: list[Any]) -> list[_Texts] | None:
        talks = list(map(self.messages_of, rows))
        turns = set(map(len, talks))
        if 0 in turns:
            return None
        if len(turns) == 1:  # as most files are; faster than to go through each row
            messages = list(chain.from_iterable(talks))
            texts = _in_rows(list(map(self.content_of, messages)), *turns)
            roles = _in_rows(list(map(self.role_of, messages)), *turns)
        else:
            texts = list(map(tuple, map(partial(map, self.content_of), talks)))
            roles = list(map(tuple, map(partial(map, self.role_of), talks)))
        if self.system_of is not None:
            systems = list(map(self.system_of, rows))
            if not all(isinstance(system, str) for system in systems):
                return None
            texts = [(system, *text) for system, text in zip(systems, texts, strict=True)]
            roles = [("system", *role) for role in roles]
        return texts if all(map(self.roles_are_right, set(roles))) else None


def _in_rows(values: list[Any], width: int) -> list[tuple[Any, ...]]:
    return list(zip(*(values[at::width] for at in range(width)), strict=True))


class _TextBlocks(_BlockCheck):
    """Rows of a question and an answer, with or without a system prompt and Alpaca's input."""

    def __init__(self, part: Part, used: dict[str, str], places: dict[str, Any]) -> None:
        optional = str | None
        super().__init__(
            part, {column: optional if name == "input" else str for name, column in used.items()}
        )
        self.order = [places[name] for name in ("system", "query", "instruction", "response") if name in used]
        self.input_of = places.get("input")
        roles = ("system", "user", "assistant") if "system" in used else ("user", "assistant")
        self.right = self.roles_are_right(roles)

    def texts_of(self, rows: list[Any]) -> list[_Texts] | None:
        if not self.right:
            return None
        columns = [list(map(place, rows)) for place in self.order]
        if self.input_of is not None:
            inputs = map(self.input_of, rows)
            pairs = zip(columns[-2], inputs, strict=True)
            columns[-2] = ["\n".join(filter(None, pair)) if pair[1] else pair[0] for pair in pairs]
        return list(zip(*columns, strict=True))


def _lengths(contents: list[str], texts: list[_Texts], turns: Counter[int]) -> list[int]:
    """Characters of each row."""
    sizes = list(map(len, contents))
    if len(turns) == 1:
        return list(map(sum, _in_rows(sizes, *turns)))
    so_far = [0, *accumulate(sizes)]
    bounds = [so_far[end] for end in accumulate(map(len, texts), initial=0)]
    return list(map(sub, bounds[1:], bounds))


def _count_tokens(tally: Tally, lengths: list[int], turns: float, text: str) -> None:
    """Count rows by tokens, to within the step of the histogram.

    Args:
        tally: what to add to.
        lengths: characters of each row.
        turns: messages in a row, on average.
        text: of all rows, from whose beginning the bytes of a character are taken.
    """
    sample = text[:20_000]
    width = len(sample.encode()) / len(sample) / BYTES_PER_TOKEN
    for length, rows in Counter(map(rshift, lengths, repeat(_FINE))).items():
        tokens = ((length << _FINE) + (1 << _FINE) / 2) * width + TOKENS_PER_MESSAGE * turns
        tally.tokens[int(tokens) // TOKEN_STEP] += rows


# Several processes


def scan_parts(parts: Sequence[Part]) -> Iterator[Tally]:
    """The tallies of these parts in order, scanned by one process for each core."""
    import pickle

    waiting = deque(parts)
    running: deque[subprocess.Popen[bytes]] = deque()
    try:
        while waiting or running:
            while waiting and len(running) < min(os.cpu_count() or 1, MAX_PROCESSES):
                running.append(_start(waiting.popleft()))
            process = running[0]
            result, _ = process.communicate()
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, process.args)
            running.popleft()
            yield pickle.loads(result)
    finally:
        for process in running:
            process.kill()
            process.wait()


def _start(part: Part) -> subprocess.Popen[bytes]:
    import pickle

    command, environment = apart()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    with cast("IO[bytes]", process.stdin) as stdin:
        pickle.dump((scan_part, (part,), {}), stdin)
    process.stdin = None
    return process


def apart() -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process that is given a function and its arguments.

    It reads a pickled (function, arguments, keywords) and writes the pickled result.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    # equal rows must have equal hashes in all processes
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": path}
    return [sys.executable, "-m", "swift_toolkit.dataset_scan"], environment


if __name__ == "__main__":
    import pickle
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the starter too, which has the word
    function, arguments, keywords = pickle.load(sys.stdin.buffer)
    pickle.dump(function(*arguments, **keywords), sys.stdout.buffer)
