"""Decodes many rows of JSON at once, if all are of the expected type."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

_PROBE = 1 << 14


class RowDecoder:
    """Decodes rows of one type.

    Args:
        row: the msgspec type of a row.
        only_texts: whether all values in a row are texts, or lists and objects of texts.
    """

    def __init__(self, row: Any, only_texts: bool) -> None:
        self.row = row
        self.only_texts = only_texts

    def lines(self, data: bytes) -> list[Any] | None:
        """The rows of a text with one row per line; None if any is of another type."""
        return self._decoded(self._escaped_lines if self.is_left_to_orjson(data) else self._lines, data)

    def array(self, data: bytes | bytearray) -> list[Any] | None:
        """The rows of an array; None if any is of another type."""
        return self._decoded(self._escaped_array if self.is_left_to_orjson(data) else self._array, data)

    def is_left_to_orjson(self, data: bytes | bytearray) -> bool:
        """Whether orjson reads these rows, which decodes \\u escapes three times as fast as msgspec.

        They agree on texts; on numbers they do not, so rows with other values are left to msgspec.
        """
        return self.only_texts and _is_escaped(data)

    def _decoded(self, decode: Any, data: bytes | bytearray) -> list[Any] | None:
        try:
            rows: list[Any] = decode(data)
        except self._errors:
            return None
        return rows

    @cached_property
    def _errors(self) -> tuple[type[Exception], ...]:
        import msgspec

        return msgspec.DecodeError, UnicodeDecodeError, RecursionError, json.JSONDecodeError

    @cached_property
    def _lines(self) -> Any:
        import msgspec

        return msgspec.json.Decoder(self.row).decode_lines

    @cached_property
    def _array(self) -> Any:
        import msgspec

        return msgspec.json.Decoder(list[self.row]).decode  # type: ignore[name-defined]

    def _escaped_lines(self, data: bytes | bytearray) -> list[Any]:
        """The rows, decoded as one array, which is faster than line by line.

        A 0 is added between lines. Within a row it is an error, so every line is a row if there are as many.
        """
        import orjson

        array = data.replace(b"\n", b",\n0,\n")
        values = orjson.loads(b"".join((b"[", array, b"0]" if data.endswith(b"\n") else b",0,0]")))
        return self._converted(values[:-1:2])

    def _escaped_array(self, data: bytes | bytearray) -> list[Any]:
        import orjson

        return self._converted(orjson.loads(data))

    def _converted(self, values: list[Any]) -> list[Any]:
        import msgspec

        rows: list[Any] = msgspec.convert(values, list[self.row])  # type: ignore[name-defined]
        return rows


def _is_escaped(data: bytes | bytearray) -> bool:
    """Whether more than a sixth of these bytes belong to \\u escapes; with fewer, msgspec is faster."""
    some = data[:_PROBE]
    return some.count(b"\\u") * 6 > len(some) // 6
