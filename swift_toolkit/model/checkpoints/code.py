"""Python code in a checkpoint, and pickles that run code, found before any of it runs.

Hugging Face's configuration files name Python files under ``auto_map``; ms-swift loads every model with
``trust_remote_code``, which runs them. If transformers has its own code for the model, the checkpoint's code is not
needed, and `swift_toolkit.machine.msswift.refuse_remote_code` prevents it from running.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_toolkit.machine.msswift import package_of
from swift_toolkit.model.checkpoints import pickled
from swift_toolkit.model.files import JsonObject, is_pointer, read_json
from swift_toolkit.problems import Problem

TRUST = "Read that code; if you trust it, add --trust-code."

CONFIG_FILES = {
    "config.json": "architectures",
    "tokenizer_config.json": "tokenizer_class",
    "processor_config.json": "processor_class",
    "preprocessor_config.json": "image_processor_type",
    "image_processor_config.json": "image_processor_type",
    "video_preprocessor_config.json": "video_processor_type",
    "feature_extractor_config.json": "feature_extractor_type",
    "generation_config.json": "",
}
"""File -> the key that names the class that transformers uses in place of the checkpoint's."""

ARGS_KEYS = ("external_plugins", "custom_register_path")
"""Arguments in a checkpoint's args.json that ms-swift imports as Python files."""

CUSTOM_GENERATE = "custom_generate/generate.py"


@dataclass(frozen=True)
class Code:
    """Python code that a file of a checkpoint names.

    Args:
        named_in: that file.
        key: the key in that file.
        files: the Python files, as written there.
        needed: whether the checkpoint cannot be loaded without them; otherwise transformers has its own code.
    """

    named_in: Path
    key: str
    files: tuple[str, ...]
    needed: bool

    def problem(self) -> Problem:
        """That the code would run when the checkpoint is loaded."""
        what = f"names Python code that is run when the model is loaded: {', '.join(self.files)}"
        return Problem(what, TRUST, self.key, str(self.named_in))


def code_problems(directories: Sequence[Path], with_args: bool = True) -> Iterator[Problem]:
    """The untrusted code in these directories that would have to run.

    Args:
        directories: a checkpoint and its base, first the one whose args.json is read; anything that is not a directory
            (an id on a hub) is skipped.
        with_args: whether ms-swift reads that args.json.
    """
    yield from (code.problem() for code in code_in(directories, with_args) if code.needed)


def code_in(directories: Sequence[Path], with_args: bool = True) -> Iterator[Code]:
    """The Python code that the files in these directories name; for the arguments see `code_problems`."""
    args = next((one / "args.json" for one in directories if (one / "args.json").is_file()), None)
    if args is not None and with_args:
        yield from _in_args(args)
    for directory in directories:
        if directory.is_dir():
            yield from _in_directory(directory)


def code_phrase(codes: Iterable[Code], trusted: bool) -> str | None:
    """What a plan says about the code, None if there is none."""
    found = list(codes)
    names = ", ".join(dict.fromkeys(name for code in found for name in code.files))
    if not found:
        return None
    return (
        f"runs {names}" if trusted else f"does not run {names}: transformers has its own code for this model"
    )


def _in_args(file: Path) -> Iterator[Code]:
    args = read_json(file)[0] or {}
    for key in ARGS_KEYS:
        value = args.get(key)
        if value:
            yield Code(file, key, tuple(map(str, value if isinstance(value, list) else [value])), True)


def _in_directory(directory: Path) -> Iterator[Code]:
    for name, key in CONFIG_FILES.items():
        content = read_json(directory / name)[0] or {}
        files = tuple(dict.fromkeys(_python_files(content.get("auto_map"))))
        if files:
            yield Code(directory / name, "auto_map", files, not _has_own(content, key))
    if (directory / CUSTOM_GENERATE).is_file():
        yield Code(directory / CUSTOM_GENERATE, "generate", (CUSTOM_GENERATE,), True)


def _python_files(auto_map: Any) -> Iterator[str]:
    """The files of ``{"AutoModel": "modeling_x.Y", "AutoTokenizer": [None, "owner/name--tokenization_x.Z"]}``."""
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    for value in values:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, str) and one:
                yield one.rpartition(".")[0].replace("--", ": ") + ".py"


def _has_own(content: JsonObject, key: str) -> bool:
    """Whether transformers has classes for the model in a configuration file."""
    named = content.get(key) if key else None
    names = named if isinstance(named, list) else [named]
    if key == "architectures":
        names = [*names, content.get("model_type")]
    return all(isinstance(name, str) and name and _is_known(name) for name in names)


def _is_known(name: str) -> bool:
    """Whether transformers' tables of its own models contain this model type or class."""
    package = package_of("transformers")
    folder = package / "models/auto" if package else Path()
    quoted = re.compile(rf"""["']{re.escape(name.removesuffix("Fast"))}(?:Fast)?["']""")
    if name in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return True
    return any(quoted.search(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*auto*.py")))


# --- pickles ------------------------------------------------------------------------------------------------

_PICKLED_WEIGHTS = (
    "pytorch_model*.bin",
    "adapter_model.bin",
    "value_head.bin",
    "*/adapter_model.bin",
    "reft/**/*.bin",
)


def pickle_problems(directories: Iterable[Path]) -> Iterator[Problem]:
    """Pickled weights that would run code when loaded, or are damaged."""
    for directory in directories:
        for file in sorted(
            {one for name in _PICKLED_WEIGHTS for one in directory.glob(name) if one.is_file()}
        ):
            if not is_pointer(file) and file.stat().st_size and (fault := pickled.fault(file)) is not None:
                yield Problem(*fault)
