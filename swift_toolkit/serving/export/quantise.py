"""Runs llama.cpp's quantiser through its library in a separate process, like the command ``llama-quantize``.

    python -m swift_toolkit.serving.export.quantise [IN.gguf OUT.gguf NUMBER]

NUMBER is a value of ``enum llama_ftype``; without arguments, only the library is loaded. It comes with llama-cpp-python
or llama-cpp-py-sync.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from swift_toolkit.machine import packages

Quantise = Callable[[str, str, int], int]
"""Quantises a 16-bit GGUF file to another of a type. Returns the library's status, 0 for success."""


def library() -> Quantise:
    """Load the library.

    Raises:
        ImportError, OSError, RuntimeError: it is not installed, or does not fit this system.
    """
    return _of_llama_cpp_python() if packages.is_installed("llama_cpp") else _of_llama_cpp_py_sync()


def _of_llama_cpp_python() -> Quantise:
    import llama_cpp

    def quantise(source: str, target: str, ftype: int) -> int:
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = ftype
        return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), settings))

    return quantise


def _of_llama_cpp_py_sync() -> Quantise:
    from llama_cpp_py_sync import _cffi_bindings as bindings

    lib, ffi = bindings.get_lib(), bindings.get_ffi()

    def quantise(source: str, target: str, ftype: int) -> int:
        settings = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
        settings.ftype = ftype
        return int(lib.llama_model_quantize(source.encode(), target.encode(), settings))

    return quantise


if __name__ == "__main__":
    run = library()
    if len(sys.argv) > 1:
        sys.exit(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
