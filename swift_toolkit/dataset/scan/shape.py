"""The columns and types that ms-swift infers from the beginning of a JSON Lines file.

Its reader (`datasets` 4.8, packaged_modules/json) determines the types of all columns from the first 10 MB. A later row
with an additional column or another type makes the whole file fail or, worse, turns the texts of other rows into quoted
JSON. A `Shape` learns from the head which form later rows must have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from swift_toolkit.dataset.rows.flaws import FlawError

HEAD_BYTES = 10 << 20
"""Number of bytes that its reader inspects (`JsonConfig.chunksize`)."""

MAX_DEPTH = 60
"""Maximum nesting that pyarrow's JSON reader accepts, by experiment (64 fails)."""

MAX_FIELDS = 500
"""Maximum number of columns, or keys of an object, for which a decoder type is built; each one takes time."""

DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:?\d\d(:?\d\d(\.\d+)?)?)?)?(Z|[+-]\d\d(:?\d\d)?)?")


_REFUSED = re.compile(r'["\\\x00-\x1f]')


class Shape:
    """Everything seen at one place of the rows: kinds of values, keys of objects, items of lists."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.kinds: set[type] = set()
        self.keys: set[frozenset[str]] = set()
        self.fields: dict[str, Shape] = {}
        self.items: Shape | None = None
        self.only_dates = True

    def add(self, value: Any) -> None:
        """Learn from a value.

        Raises:
            FlawError: it is nested more deeply than `MAX_DEPTH`.
        """
        if value is None:
            return
        self.kinds.add(type(value))
        if isinstance(value, str):
            self.only_dates = self.only_dates and DATE.fullmatch(value) is not None
        elif isinstance(value, dict):
            self.keys.add(frozenset(value))
            for name, inner in value.items():
                if name not in self.fields:
                    self.fields[name] = self._inner()
                self.fields[name].add(inner)
        elif isinstance(value, list):
            if self.items is None:
                self.items = self._inner()
            for inner in value:
                self.items.add(inner)

    def merge(self, other: Shape) -> None:
        """Merge what another shape has learned."""
        self.kinds |= other.kinds
        self.keys |= other.keys
        self.only_dates = self.only_dates and other.only_dates
        for name, field in other.fields.items():
            self.fields.setdefault(name, Shape(self.depth + 1)).merge(field)
        if other.items is not None:
            self.items = self.items or Shape(self.depth + 1)
            self.items.merge(other.items)

    def _inner(self) -> Shape:
        if self.depth >= MAX_DEPTH:
            what = f"a row is nested more than {MAX_DEPTH} levels deep"
            raise FlawError("broken", what, "Write the inner part as text.")
        return Shape(self.depth + 1)

    def example(self) -> Any:
        """A value of this form, without texts."""
        if dict in self.kinds:
            return {name: shape.example() for name, shape in self.fields.items()}
        if list in self.kinds:
            return [] if self.items is None else [self.items.example()]
        return next((kind() for kind in self.kinds), None)

    @property
    def is_typeless(self) -> bool:
        """Whether no type can be built from its fields: there are too many, or msgspec rejects a name."""
        return len(self.fields) > MAX_FIELDS or any(map(_REFUSED.search, self.fields))

    @property
    def is_dates(self) -> bool:
        """Whether every value is a text that is parsed as a date, which pyarrow converts to a number."""
        return self.kinds == {str} and self.only_dates

    @property
    def may_be_dates(self) -> bool:
        """Whether that is true of a column so far."""
        return any(field.is_dates for field in self.fields.values())

    @property
    def has_dates(self) -> bool:
        """Whether that is true here or at an inner place."""
        return self.is_dates or any(shape.has_dates for shape in self._inside())

    @property
    def mixes_texts(self) -> bool:
        """Whether both texts and other values occur here or at an inner place.

        Such a place may be stored as JSON and decoded again, which turns a text like "42" into a number.
        """
        if len(self.kinds) > 1 and str in self.kinds:
            return True
        return any(shape.mixes_texts for shape in self._inside())

    @property
    def is_only_texts(self) -> bool:
        """Whether all values are texts, or lists and objects of texts."""
        return self.kinds <= {str, list, dict} and all(shape.is_only_texts for shape in self._inside())

    def _inside(self) -> list[Shape]:
        return [*self.fields.values(), *([self.items] if self.items else [])]

    @property
    def kind(self) -> Any:
        """The type that `datasets` assigns to this place, for comparison; None if all values are null."""
        names = {kind.__name__ for kind in self.kinds}
        if names == {"int", "float"}:
            return "float"
        if names == {"list"}:
            return "list", self.items.kind if self.items else None
        if names == {"dict"} and len(self.keys) == 1 and self.fields:
            return "dict", frozenset((name, field.kind) for name, field in self.fields.items())
        if names == {"dict"} or len(names) > 1:
            return "json"
        return names.pop() if names else None

    def type(self, whole: bool) -> Any:
        """The msgspec type that a later value must have; `Any` where the reader keeps plain JSON.

        Args:
            whole: whether an inner object must have all its fields.
        """
        if not self.kinds:
            return None
        present = self._present_type(whole)
        return Any if present is Any else present | None

    def _present_type(self, whole: bool) -> Any:
        if self.kinds <= {int, float}:
            return float if float in self.kinds else int
        if len(self.kinds) > 1:
            return Any
        if self.items is not None:
            item = self.items.type(whole)
            return list[item]  # type: ignore[valid-type]
        if self.kinds == {dict}:
            if self.is_typeless:
                return Any
            # objects with different keys, or with none, are kept as JSON
            return Any if len(self.keys) > 1 or not self.fields else self.struct({}, whole)
        return next(iter(self.kinds))

    def struct(self, replace: Mapping[str, object], whole: bool = False) -> Any:
        """A msgspec Struct with exactly the fields seen.

        Args:
            replace: field -> type to use instead of the one seen; such a field must be present.
            whole: whether an inner object must have all its fields; a column need not.
        """
        import msgspec

        fields: list[Any] = []
        for at, (name, shape) in enumerate(self.fields.items()):
            kind = replace.get(name, shape.type(whole))
            needed = name in replace or (whole and self.depth > 0)
            given = {"name": name} if needed else {"name": name, "default": None}
            fields.append((f"field_{at}", kind, msgspec.field(**given)))
        return msgspec.defstruct("Row", fields, forbid_unknown_fields=True, kw_only=True, gc=False)
