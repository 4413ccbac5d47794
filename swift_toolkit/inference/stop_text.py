"""Ends answers before the stop text, like OpenAI and vLLM; ms-swift's own engine keeps the stop text."""

from __future__ import annotations

from collections.abc import Sequence


def as_text(content: object) -> str:
    """An answer as text; a classifier's answer is one or several class numbers, or a score."""
    if isinstance(content, (list, tuple)):
        return ", ".join(map(as_text, content))
    return f"{content:.6g}" if isinstance(content, float) else str(content)


class StopText:
    """Ends a text, whole or in pieces, before the stop text that is complete first.

    Args:
        stops: the stop texts; an empty one ends nothing.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def feed(self, piece: str, last: bool = False) -> str:
        """Add a piece and return the text that may be shown; ``last``: no further piece follows."""
        if self.found:
            return ""
        text = self._held + piece
        ends = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The part of a whole text before the stop text that is complete first."""
    return StopText(stops).feed(text, last=True)
