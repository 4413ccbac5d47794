"""The versions of the installed packages."""

from __future__ import annotations

from importlib import import_module, metadata


def engine_versions(backend: str) -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("ms-swift", "torch", "transformers", "peft")}
    if backend != "pt":
        versions[backend] = import_module(backend).__version__  # its distribution may have another name
    return versions
