"""Runs llama.cpp's quantiser through its library in a separate process, like the command ``llama-quantize``.

    python -m swift_toolkit.serving.export.quantise IN.gguf OUT.gguf NUMBER

NUMBER is a value of ``enum llama_ftype``. The library comes with llama-cpp-python or llama-cpp-py-sync.
"""

from __future__ import annotations

import sys

from swift_toolkit.machine import packages


def quantise(source: str, target: str, ftype: int) -> int:
    """Quantise a 16-bit GGUF file. Returns the library's status, 0 for success."""
    if packages.is_installed("llama_cpp"):
        import llama_cpp

        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = ftype
        return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), params))
    from llama_cpp_py_sync import _cffi_bindings as bindings

    lib, ffi = bindings.get_lib(), bindings.get_ffi()
    settings = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    settings.ftype = ftype
    return int(lib.llama_model_quantize(source.encode(), target.encode(), settings))


if __name__ == "__main__":
    sys.exit(quantise(sys.argv[1], sys.argv[2], int(sys.argv[3])))
