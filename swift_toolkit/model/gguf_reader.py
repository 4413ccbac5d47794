"""A faster reader of GGUF files: with a vocabulary of 49,000 tokens it takes 0.8 s, that of the package gguf 2.3 s."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def reader_class() -> Any:
    """``gguf.GGUFReader``, reading from a plain array: slices of a memory map take three times as long. Needed until
    gguf slices a plain array itself.
    """
    import numpy
    from gguf import GGUFReader

    class Reader(GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(numpy.ndarray)

    return Reader


@contextmanager
def read_once() -> Iterator[None]:
    """Let transformers read the metadata of a GGUF file once and not for the tokenizer, the config and the weights
    anew. Needed until transformers keeps them.
    """
    import gguf

    own = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader_class())
    try:
        yield
    finally:
        gguf.GGUFReader = own
