"""Rows as tokens and labels, encoded by ms-swift's own template."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from swift_toolkit.dataset.rows.messages import Row

IGNORED = -100
"""Label of a token that is not learned (torch's `ignore_index`)."""


class Encoded(NamedTuple):
    """One sequence of a row.

    Args:
        name: which of the row's sequences it is, e.g. "chosen"; empty if there is only one.
        tokens: its tokens.
        labels: for each token its own ID, or `IGNORED`; None if the task learns no tokens.
    """

    name: str
    tokens: list[int]
    labels: list[int] | None

    @property
    def learned(self) -> int:
        """The number of tokens that count for the loss."""
        return len(self.labels) - self.labels.count(IGNORED) if self.labels else 0


def encode_row(template: Any, row: Row) -> list[Encoded]:
    """The sequences of a row, encoded by ``template``. ms-swift skips the row on any exception of the template."""
    encoded = template.encode(dict(row), return_length=True)
    pieces = encoded if isinstance(encoded, list) else [encoded]  # truncation_strategy "split"
    return [sequence for piece in pieces for sequence in _sequences(piece)]


def _sequences(encoded: Any) -> Iterator[Encoded]:
    for key, tokens in encoded.items():
        if not key.endswith("input_ids") or not len(tokens):
            continue
        prefix = key.removesuffix("input_ids")
        labels = encoded.get(f"{prefix}labels")
        name = prefix.rstrip("_")
        for at, ids in enumerate(tokens if isinstance(tokens[0], list) else [tokens]):
            marks = labels if isinstance(labels, list) and len(labels) == len(ids) else None
            yield Encoded(name if not at else f"{name} {at + 1}".strip(), list(ids), marks)


@contextlib.contextmanager
def unlimited(template: Any) -> Iterator[None]:
    """Make ``template`` encode rows of any length without truncation."""
    limit, template.max_length = template.max_length, None
    try:
        yield
    finally:
        template.max_length = limit
