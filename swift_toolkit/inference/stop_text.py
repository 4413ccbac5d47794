"""Answers that end before the text that stops them, as OpenAI and vLLM have it; ms-swift's own engine keeps it."""

from __future__ import annotations

from collections.abc import Sequence


def as_text(content: object) -> str:
    """An answer as text; a classifier's is the number of a class, several of them, or a score."""
    if isinstance(content, (list, tuple)):
        return ", ".join(map(as_text, content))
    return f"{content:.6g}" if isinstance(content, float) else str(content)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of ``stops`` in it."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


class StopText:
    """The same for an answer that comes piece by piece: what may be the beginning of a stop text is held back.

    Args:
        stops: the texts that end the answer; the empty one ends nothing.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._stopped = False

    def feed(self, piece: str, last: bool = False) -> str:
        """What can be shown now.

        Args:
            piece: what was generated since the last call.
            last: nothing more comes.
        """
        if self._stopped:
            return ""
        text = self._held + piece
        shown = before_stop(text, self._stops)
        if shown != text:
            self._stopped, self._held = True, ""
            return shown
        keep = 0 if last else self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_beginning(self, text: str) -> int:
        """How many characters at the end of ``text`` may begin a stop text."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        ends = (length for length in range(longest, 0, -1) if self._begins(text[len(text) - length :]))
        return next(ends, 0)

    def _begins(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
