"""Estimates of the tokens of a text, from the kinds of characters in it.

The model's own tokenizer (`tokenizers`, without torch) encodes a sample of the rows. The sample gives the tokens per
letter, per other ASCII character (digits, symbols of code) and per byte of all other scripts, with which all rows are
estimated at the speed of a scan.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from swift_toolkit.machine import packages
from swift_toolkit.machine.files import whole_text

SAMPLE_ROWS = 240
"""Number of rows that the tokenizer encodes."""

_SAMPLE_BYTES = 300_000
"""Maximum text that the tokenizer encodes, at about 3 MB per second."""

LONGEST_BYTES = 400_000
"""Maximum text of the longest rows that the tokenizer encodes."""

LONGEST_TEXT = 8000
"""Of a longer text, the tokenizer encodes only the beginning."""

_LETTERS = bytes([0x20, *range(0x41, 0x5B), *range(0x61, 0x7B)])
_ASCII = bytes(range(0x80))

KNOWN_TEXTS = (
    "The committee agreed that the new bridge should open in spring, although several members were worried about "
    "the cost. Nobody had expected the river to rise so quickly after a night of rain.",
    "委员会同意新桥应在春季开放，尽管有几位成员对费用感到担忧。没有人预料到一夜大雨之后河水会上涨得这么快，所以大家都很惊讶。",
    "Комитет согласился с тем, что новый мост должен открыться весной, хотя несколько членов беспокоились о стоимости.",
    "def total(rows: list[dict]) -> float:\n    return sum(row['price'] * row.get('count', 1) for row in rows)\n\n\n"
    'if __name__ == "__main__":\n    print(f"{total(load(\'rows.json\')):,.2f}")\n',
)
"""Short texts in scripts that the sample may not contain."""


@dataclass(frozen=True)
class Lengths:
    """Tokens per kind of character.

    Args:
        letter: tokens per ASCII letter or space.
        mark: tokens per other ASCII character.
        byte: tokens per UTF-8 byte of all other characters.
        message: tokens that the template adds to a message: role, start and end marks.
        row: tokens that it adds to a row, e.g. the system prompt of the run.
        is_measured: whether the numbers come from the model's tokenizer.
    """

    letter: float = 0.25
    mark: float = 0.25
    byte: float = 0.25
    message: float = 4.0
    row: float = 0.0
    is_measured: bool = False

    def of_texts(self, texts: Iterable[str]) -> int:
        """Estimate the tokens of a row.

        Args:
            texts: of its messages.
        """
        total, count = self.row, 0
        for text in texts:
            letters, marks, others = token_counts(text)
            total += letters * self.letter + marks * self.mark + others * self.byte
            count += 1
        return int(total + count * self.message)

    @property
    def lightest(self) -> float:
        """Bytes per token of the text with the most tokens per byte."""
        return 1 / max(self.letter, self.mark, self.byte, 0.01)


BY_BYTES = Lengths()
"""Four bytes per token: a rough mean of current tokenizers, used if that of the model is not available."""


def token_counts(text: str) -> tuple[int, int, int]:
    """Numbers of ASCII letters and spaces, of other ASCII characters, and of UTF-8 bytes of all other characters."""
    data = text.encode("utf-8", "replace")
    others = 0 if text.isascii() else len(data.translate(None, _ASCII))
    not_letters = len(data.translate(None, _LETTERS))
    return len(data) - not_letters, not_letters - others, others


class Tokenizer:
    """A model's tokenizer. It is loaded only for texts whose tokens are not in the cache of the last data check with
    this file; loading takes a quarter of a second for 150,000 tokens.

    Args:
        path: a file `tokenizer.json`.

    Raises:
        ValueError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache = _CountCache(path)
        self._known = self._cache.read()
        self._used: dict[str, int] = {}
        self._encode: Callable[..., Any] | None = None
        if not self._known:
            self._encode = _load(path)

    def count(self, text: str) -> int:
        """Count the tokens of a text."""
        name = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        tokens = self._known.get(name)
        if tokens is None:
            self._encode = self._encode or _load(self._path)
            tokens = self._known[name] = len(self._encode(text, add_special_tokens=False).ids)
        self._used[name] = tokens
        return tokens

    def keep(self) -> None:
        """Keep the counts for the next check of this data."""
        if self._encode is not None and len(self._used) <= _MOST_COUNTS:
            self._cache.write(self._used)

    def lengths(self, rows: Sequence[Sequence[str]], message: float) -> Lengths:
        """Measure the tokens per kind of character in this data.

        Args:
            rows: texts of some of them.
            message: tokens that the template adds to a message.
        """
        texts = _within([text[:LONGEST_TEXT] for row in rows for text in row if text])
        own = [(token_counts(text), self.count(text)) for text in texts]
        known = [(token_counts(text), self.count(text)) for text in KNOWN_TEXTS]
        weight = 0.02 * sum(tokens for _, tokens in own) / sum(tokens for _, tokens in known) or 1.0
        letter, mark, byte = _fitted([*((*one, 1.0) for one in own), *((*one, weight) for one in known)])
        return Lengths(letter, mark, byte, message, is_measured=True)

    def longest(self, rows: Sequence[tuple[int, tuple[str, ...]]], lengths: Lengths) -> int | None:
        """Measure the tokens of the longest of these rows.

        Args:
            rows: estimated tokens and texts of each row.
            lengths: the lengths used for the estimate.

        Returns:
            None if there are no rows, or if the longest rows are too long to encode.
        """
        most, left = None, LONGEST_BYTES
        for _, texts in sorted(rows, reverse=True):
            left -= sum(map(len, texts))
            if not texts or left < 0:
                break
            tokens = sum(map(self.count, texts)) + len(texts) * lengths.message + lengths.row
            most = max(most or 0, int(tokens))
        return most


def _load(path: Path) -> Callable[..., Any]:
    import tokenizers

    try:
        encode: Callable[..., Any] = tokenizers.Tokenizer.from_file(str(path)).encode
    except Exception as error:  # the library raises Exception itself
        raise ValueError(str(error)) from None
    return encode


_MOST_COUNTS = 5000
"""Maximum number of texts whose tokens are kept."""

_MOST_CACHES = 64
"""Maximum number of files with kept tokens; of two tokenizers with the same file, the last one is kept."""


class _CountCache:
    """A file with the tokens of the texts of the last check with a tokenizer, named by hashes of the texts.

    It holds for one file as it is: a file that is changed or replaced has another time of change, even if its size and
    its time of modification are the same.

    Args:
        path: the tokenizer.
    """

    def __init__(self, path: Path) -> None:
        import platformdirs

        self._of = [packages.version("tokenizers"), *_identity(path)]
        place = zlib.crc32(os.fsencode(path.absolute())) % _MOST_CACHES
        self._file = platformdirs.user_cache_path("swift-toolkit") / f"tokens-{place}.json"

    def read(self) -> dict[str, int]:
        """The tokens by hash; empty if there are none for the tokenizer as it is."""
        try:
            content = json.loads(self._file.read_bytes())
            found: dict[str, int] = content["tokens"] if content["of"] == self._of else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}  # missing or damaged
        return found if isinstance(found, dict) and {*map(type, found.values())} <= {int} else {}

    def write(self, tokens: Mapping[str, int]) -> None:
        """Replace what is kept. A cache that cannot be written is ignored."""
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with whole_text(self._file) as out:
                json.dump({"of": self._of, "tokens": tokens}, out)


def _identity(path: Path) -> tuple[str | int, ...]:
    """What changes if a file does; its time of change cannot be set by programs."""
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(str(error)) from None
    return str(path.absolute()), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _within(texts: Sequence[str]) -> list[str]:
    """An even sample of these texts, as many as the tokenizer encodes."""
    out, size = [], 0
    for text in texts[:: max(len(texts) // (2 * SAMPLE_ROWS), 1)]:
        out.append(text)
        size += len(text)
        if size > _SAMPLE_BYTES:
            break
    return out


Sample = tuple[tuple[int, int, int], int, float]


def _fitted(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Least-squares fit of the relative errors, with each of the three at least 0.01."""
    left = [[0.0] * 3 for _ in range(3)]
    right = [0.0] * 3
    for parts, tokens, weight in samples:
        share = weight / max(tokens, 20)  # a long text counts more, but not by its square
        for at in range(3):
            right[at] += share * parts[at] * tokens
            for to in range(3):
                left[at][to] += share * parts[at] * parts[to]
    free = [at for at in range(3) if left[at][at]]
    while True:
        found = dict(zip(free, _solved(left, right, free), strict=True))
        low = [at for at, value in found.items() if value < 0.01]
        if not low:
            letter, mark, byte = (found.get(at, 0.01) for at in range(3))
            return letter, mark, byte
        free = [at for at in free if at not in low]


def _solved(left: Sequence[Sequence[float]], right: Sequence[float], free: Sequence[int]) -> list[float]:
    """Solve the equations for these unknowns by elimination."""
    rows = [[left[at][to] for to in free] + [right[at]] for at in free]
    size = len(free)
    for at in range(size):
        rows[at][at] += 1e-9
        for below in range(size):
            if below != at:
                factor = rows[below][at] / rows[at][at]
                rows[below] = [a - factor * b for a, b in zip(rows[below], rows[at], strict=True)]
    return [rows[at][size] / rows[at][at] for at in range(size)]
