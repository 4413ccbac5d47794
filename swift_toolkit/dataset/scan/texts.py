"""Extracts the texts of many plain rows at once: of messages, or of a question and an answer.

Rows that may not be plain (an additional key of a message, a null, a new column) are reported as unknown and read one
by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, repeat
from operator import attrgetter, itemgetter
from typing import Any, Literal

from swift_toolkit.dataset.reading.tables import Cells, in_utf8
from swift_toolkit.dataset.rows.formats import Layout
from swift_toolkit.dataset.scan.decoder import RowDecoder
from swift_toolkit.dataset.scan.shape import Shape
from swift_toolkit.dataset.scan.talks import TableTalks, Talks

_ROLES = Literal["system", "user", "human", "assistant", "gpt", "bot"]
_KEYS = (("role", "content"), ("from", "value"))
_PAIRS = ({"query", "response"}, {"instruction", "input", "response"}, {"query"}, {"response"})
"""Columns of rows of plain texts, other than the system prompt."""

_ROLE_OF = {"system": "system", "query": "user", "instruction": "user", "response": "assistant"}


_ESCAPES = re.compile(rb"\\[ubf/]")
"""With these, JSON may spell what `judge` warns about."""


Columns = Mapping[str, Sequence[Any]]
"""Values of the rows by the standard name of the column."""


class PlainTexts:
    """Extracts the texts of rows of one file.

    Args:
        layout: the format of the file.
        shape: its columns and types.
        as_utf8: see `Part`; JSON is read as str in any case.
    """

    def __init__(self, layout: Layout, shape: Shape, as_utf8: bool = False) -> None:
        self.shape, self.as_utf8 = shape, as_utf8
        self.used = {name: column for column, name in layout.used[1].items()}
        names = self.used.keys() - {"system"}
        known = not shape.is_typeless and all(column in shape.fields for column in self.used.values())
        self.has_messages = layout.family == "messages" and names == {"messages"}
        self.keys = self._message_keys() if known and self.has_messages else None
        self.known = known and (self.keys is not None or names in _PAIRS)
        self._order = [name for name in ("system", "query", "instruction", "response") if name in self.used]
        self._roles = tuple(_ROLE_OF[name] for name in self._order)
        is_pairs = known and self.keys is None
        self._is_texts_in_order = is_pairs and [*shape.fields] == [self.used[name] for name in self._order]

    def _message_keys(self) -> tuple[str, str] | None:
        """The two keys that all messages in the head of the file have, if they have no others."""
        place = self.shape.fields[self.used["messages"]]
        items = place.items
        keys = next(iter(items.keys)) if items is not None and len(items.keys) == 1 else frozenset()
        return next((pair for pair in _KEYS if keys == set(pair)), None)

    # JSON

    @cached_property
    def decoder(self) -> RowDecoder:
        """Decodes rows in which all used values are texts."""
        optional = str | None
        if self.keys is not None:
            types: dict[str, object] = {self.used["messages"]: list[self._message]}  # type: ignore[name-defined]
        else:
            types = {column: optional if name == "input" else str for name, column in self.used.items()}
        return RowDecoder(self.shape.struct(types), self.shape.is_only_texts)

    @cached_property
    def _message(self) -> Any:
        import msgspec

        role, content = self.keys or ("", "")
        fields = [("role", _ROLES, msgspec.field(name=role)), ("content", str, msgspec.field(name=content))]
        return msgspec.defstruct("Message", fields, forbid_unknown_fields=True, gc=False)

    def of_lines(self, data: bytes) -> Talks | None:
        """The texts of rows with one row per line; None if any of them is not plain."""
        return self._of_json(self.decoder.lines(data), data)

    def of_array(self, data: bytes | bytearray) -> Talks | None:
        """The texts of the items of an array; None if any of them is not plain."""
        return self._of_json(self.decoder.array(data), data)

    def _of_json(self, rows: list[Any] | None, data: bytes | bytearray) -> Talks | None:
        if rows is None:
            return None
        escaped = b"\\" in data and _ESCAPES.search(data) is not None
        raw = None if escaped else data
        if self._is_texts_in_order:
            import msgspec

            return Talks(list(map(msgspec.structs.astuple, rows)), {self._roles}, raw, True)
        places = list(self.shape.fields)
        columns = {
            name: list(map(attrgetter(f"field_{places.index(column)}"), rows))
            for name, column in self.used.items()
        }
        if self.keys is None:
            talks = self._of_pairs(columns)
        else:
            talks = self._of_messages(columns, attrgetter("role"), attrgetter("content"))
        return talks and replace(talks, data=raw, is_json=True)

    # Columns

    def of_columns(
        self, columns: Columns, data: bytes | None = None, measured: Mapping[str, Cells] | None = None
    ) -> Talks | None:
        """The texts of rows given as columns; None if any of them is not plain.

        Args:
            columns: column in the file -> values, all as str or all as bytes; messages as text are decoded.
            data: the bytes from which they were read, with all texts of the cells unescaped.
            measured: the same columns, if they have been measured.
        """
        if measured and self.keys is None and "input" not in self.used:
            cells = [measured[self.used[name]] for name in self._order]
            rows = list(zip(*(column.texts for column in cells), strict=True))
            return TableTalks(rows, {self._roles}, data, in_utf8=True, columns=cells)
        named = {name: columns[column] for name, column in self.used.items()}
        if self.keys is None:
            return self._of_pairs(named, data)
        if not all(isinstance(cell, str | bytes) for cell in named["messages"]):
            return None
        import msgspec

        decode = msgspec.json.Decoder(list[self._message]).decode  # type: ignore[name-defined]
        try:
            named["messages"] = list(map(decode, named["messages"]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if "system" in named:
            named["system"] = [cell.decode() if isinstance(cell, bytes) else cell for cell in named["system"]]
        return self._of_messages(named, attrgetter("role"), attrgetter("content"))

    def of_batch(self, batch: Any) -> Talks | None:
        """The texts of a batch of Arrow columns; None if any row is not plain."""
        import pyarrow

        data: list[bytes | memoryview] = []
        columns: dict[str, Sequence[Any]] = {}
        for name, column in self.used.items():
            values = batch.column(batch.schema.get_field_index(column))
            if name == "messages":
                found = self._lists(values)
            elif values.type in (pyarrow.string(), pyarrow.large_string()):
                found = self._values(values)
            else:
                return None
            if found is None:
                return None
            columns[name] = found
            data.append(_utf8(self._parts(values)[1] if name == "messages" else values))
        if self.keys is None:
            return self._of_pairs(columns, b"".join(data))
        talks = self._of_messages(columns, itemgetter(0), itemgetter(1))
        return talks and replace(talks, data=b"".join(data))

    def _values(self, array: Any) -> list[Any] | None:
        """The texts of an Arrow array; None if they are left as bytes, and are not UTF-8."""
        import pyarrow

        if not self.as_utf8:
            values: list[Any] = array.to_pylist()
            return values
        try:
            array.validate(full=True)
        except pyarrow.ArrowInvalid:
            return None
        return in_utf8(array)

    def _lists(self, values: Any) -> list[list[tuple[str, Any]]] | None:
        """The messages of each row as (role, content); None if one is missing or has another form."""
        import pyarrow

        types, text = pyarrow.types, (pyarrow.string(), pyarrow.large_string())
        if not (types.is_list(values.type) or types.is_large_list(values.type)) or values.null_count:
            return None
        items = values.flatten()
        if not types.is_struct(items.type) or {field.name for field in items.type} != set(self.keys or ()):
            return None
        parts = self._parts(values)
        if items.null_count or any(part.null_count or part.type not in text for part in parts):
            return None
        if not set(parts[0].unique().to_pylist()) <= set(_ROLES.__args__):  # type: ignore[attr-defined]
            return None
        contents = self._values(parts[1])
        if contents is None:
            return None
        pairs = iter(zip(parts[0].to_pylist(), contents, strict=True))
        return [[next(pairs) for _ in range(size)] for size in values.value_lengths().to_pylist()]

    def _parts(self, lists: Any) -> list[Any]:
        """The roles and the contents of all messages."""
        items = lists.flatten()
        return [items.field(items.type.get_field_index(key)) for key in self.keys or ()]

    # Both

    def _of_messages(
        self, columns: Columns, role_of: Callable[[Any], str], content_of: Callable[[Any], Any]
    ) -> Talks | None:
        talks = columns["messages"]
        turns = set(map(len, talks))
        if 0 in turns:
            return None
        if len(turns) == 1:  # the case for most files; faster than iterating over each row
            messages = list(chain.from_iterable(talks))
            texts = list(in_rows(list(map(content_of, messages)), *turns))
            roles = set(in_rows(list(map(role_of, messages)), *turns))
        else:
            texts = list(map(tuple, map(partial(map, content_of), talks)))
            roles = set(map(tuple, map(partial(map, role_of), talks)))
        kind = _kind(texts[0] if texts else ())
        if "system" in columns:
            systems = columns["system"]
            if not all(isinstance(system, kind) for system in systems):
                return None
            texts = [(system, *text) for system, text in zip(systems, texts, strict=True)]
            roles = {("system", *role) for role in roles}
        return Talks(texts, roles, in_utf8=kind is bytes)

    def _of_pairs(self, columns: Columns, data: bytes | None = None) -> Talks | None:
        parts = [list(columns[name]) for name in self._order]
        kind = _kind(parts[0])
        if not all(all(map(isinstance, part, repeat(kind))) for part in parts):
            return None
        if "input" in columns:
            between: Any = b"\n" if kind is bytes else "\n"
            pairs = zip(parts[-2], columns["input"], strict=True)
            parts[-2] = [between.join(filter(None, pair)) if pair[1] else pair[0] for pair in pairs]
        return Talks(list(zip(*parts, strict=True)), {self._roles}, data, in_utf8=kind is bytes)


def _kind(texts: Sequence[Any]) -> type:
    """Whether texts are str, or bytes in UTF-8; the first of them tells."""
    return bytes if texts and isinstance(texts[0], bytes) else str


def _utf8(texts: Any) -> bytes | memoryview:
    """The texts of an Arrow array, one after another."""
    import pyarrow

    _, offsets, data = texts.buffers()
    if data is None:
        return b""
    bounds = memoryview(offsets).cast("i" if texts.type == pyarrow.string() else "q")
    return memoryview(data)[bounds[texts.offset] : bounds[texts.offset + len(texts)]]


def in_rows(values: list[Any], width: int) -> Iterator[tuple[Any, ...]]:
    """Split values into rows of equal width."""
    return zip(*(values[at::width] for at in range(width)), strict=True)
