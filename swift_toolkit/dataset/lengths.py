"""How many tokens a text has, estimated from what it is made of.

The model's own tokenizer takes a sample of the rows (`tokenizers`, without torch). From these follows how many tokens
letters, other ASCII characters (digits, the signs of code) and the bytes of all other scripts make, and by that all
rows are measured at the speed of a scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_ROWS = 240
"""Rows that the tokenizer is given."""

_SAMPLE_BYTES = 300_000
"""Most text that the tokenizer is given; it takes about 3 MB in a second."""

LONGEST_BYTES = 400_000
"""Most text of the longest rows that the tokenizer is given."""

LONGEST_TEXT = 8000
"""Of a longer text the tokenizer is given the beginning."""

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
"""Short texts in scripts that the sample may lack."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of what texts are made of.

    Args:
        letter: of an ASCII letter or a space.
        mark: of another ASCII character.
        byte: of a byte of UTF-8 of all other characters.
        message: what the template adds to a message: role, begin and end marks.
        row: what it adds to a row, e.g. the system prompt of the run.
        is_measured: they come from the model's tokenizer.
    """

    letter: float = 0.25
    mark: float = 0.25
    byte: float = 0.25
    message: float = 4.0
    row: float = 0.0
    is_measured: bool = False

    def of_texts(self, texts: Iterable[str]) -> int:
        """Tokens of a row.

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
        """Bytes of the text with the most tokens to a byte."""
        return 1 / max(self.letter, self.mark, self.byte, 0.01)


BY_BYTES = Lengths()
"""Four bytes a token: a rough mean of today's tokenizers, where that of the model is not available."""


def token_counts(text: str) -> tuple[int, int, int]:
    """ASCII letters and spaces, other ASCII characters, bytes of all others in UTF-8."""
    data = text.encode("utf-8", "replace")
    others = 0 if text.isascii() else len(data.translate(None, _ASCII))
    not_letters = len(data.translate(None, _LETTERS))
    return len(data) - not_letters, not_letters - others, others


class Tokenizer:
    """A model's tokenizer.

    Args:
        path: a file `tokenizer.json`.

    Raises:
        ValueError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self._encode = tokenizers.Tokenizer.from_file(str(path)).encode
        except Exception as error:  # the library raises Exception itself
            raise ValueError(str(error)) from None

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._encode(text, add_special_tokens=False).ids)

    def lengths(self, rows: Sequence[Sequence[str]], message: float) -> Lengths:
        """What rows of these data are made of.

        Args:
            rows: texts of some of them.
            message: what the template adds to a message.
        """
        texts = _within([text[:LONGEST_TEXT] for row in rows for text in row if text])
        own = [(token_counts(text), self.count(text)) for text in texts]
        known = [(token_counts(text), self.count(text)) for text in KNOWN_TEXTS]
        weight = 0.02 * sum(tokens for _, tokens in own) / sum(tokens for _, tokens in known) or 1.0
        letter, mark, byte = _fitted([*((*one, 1.0) for one in own), *((*one, weight) for one in known)])
        return Lengths(letter, mark, byte, message, is_measured=True)

    def longest(self, rows: Sequence[tuple[int, tuple[str, ...]]], lengths: Lengths) -> int | None:
        """Tokens of the longest of these rows.

        Args:
            rows: an estimate of the tokens, and the texts.
            lengths: by which they were estimated.

        Returns:
            None where there are none, or the longest of them are too long to be looked at.
        """
        most, left = None, LONGEST_BYTES
        for _, texts in sorted(rows, reverse=True):
            left -= sum(map(len, texts))
            if not texts or left < 0:
                break
            tokens = sum(map(self.count, texts)) + len(texts) * lengths.message + lengths.row
            most = max(most or 0, int(tokens))
        return most


def _within(texts: Sequence[str]) -> list[str]:
    """Some of these texts, evenly, as many as the tokenizer is given."""
    out, size = [], 0
    for text in texts[:: max(len(texts) // (2 * SAMPLE_ROWS), 1)]:
        out.append(text)
        size += len(text)
        if size > _SAMPLE_BYTES:
            break
    return out


Sample = tuple[tuple[int, int, int], int, float]


def _fitted(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Least squares of the relative errors, none of the three below a hundredth."""
    left = [[0.0] * 3 for _ in range(3)]
    right = [0.0] * 3
    for parts, tokens, weight in samples:
        share = weight / max(tokens, 20)  # an error in a long text counts more, but not by its square
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
    """The solution of the equations for these unknowns, by elimination."""
    rows = [[left[at][to] for to in free] + [right[at]] for at in free]
    size = len(free)
    for at in range(size):
        rows[at][at] += 1e-9
        for below in range(size):
            if below != at:
                factor = rows[below][at] / rows[at][at]
                rows[below] = [a - factor * b for a, b in zip(rows[below], rows[at], strict=True)]
    return [rows[at][size] / rows[at][at] for at in range(size)]
