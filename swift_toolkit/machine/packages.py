"""The versions of the installed packages."""

from __future__ import annotations

from importlib import import_module, metadata


def engine_versions(module: str = "") -> dict[str, str]:
    """The versions of ms-swift, what it stands on, and ``module``, the package of another engine."""
    versions = {name: metadata.version(name) for name in ("ms-swift", "torch", "transformers", "peft")}
    if module:
        versions[module] = import_module(module).__version__  # its distribution may have another name
    return versions
