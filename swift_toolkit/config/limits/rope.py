"""``rope_scaling``: a name, an object, or a JSON file with one, as ms-swift and transformers read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from swift_toolkit.config.named_files import json_of, not_an_object
from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.machine import files as machine_files
from swift_toolkit.problems import Problem

_NAMES = ("linear", "dynamic", "yarn")
"""Names that ms-swift accepts instead of an object (``_init_rope_scaling``)."""
_TYPES = ("default", *_NAMES, "longrope", "llama3", "proportional")
"""Types of transformers (``ROPE_INIT_FUNCTIONS``)."""
_KEYS = {"llama3": ("low_freq_factor", "high_freq_factor"), "longrope": ("short_factor", "long_factor")}
"""Keys that a type needs in addition to its factor."""


def write_for_transformers(config: Config) -> None:
    """Name the type in the way that the installed transformers reads."""
    scaling = _read(config)
    if not isinstance(scaling, dict) or not config.install.reads_rope_type or "rope_type" in scaling:
        return
    if (kind := scaling.get("type")) in _TYPES:
        rest = {key: value for key, value in scaling.items() if key != "type"}
        config.replace("rope_scaling", {"rope_type": kind, **rest})
        config.notices.append(f'rope_scaling: "rope_type" is "{kind}"; transformers 5 does not read "type"')


def rope_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with ``rope_scaling``."""
    value, scaling = config.get("rope_scaling"), _read(config)
    if isinstance(scaling, Problem):
        yield config.problem("rope_scaling", scaling.what, scaling.do)
    elif scaling is not None and not isinstance(scaling, dict):
        yield config.problem("rope_scaling", *not_an_object(str(value)))
    elif scaling:
        yield from _object_problems(config, scaling)


def _read(config: Config) -> Any:
    """The object that the setting means; None if it is not set, a Problem if it cannot be read."""
    value = config.get("rope_scaling")
    if value in _NAMES:
        return {"type": value}
    if not isinstance(value, str) or not value:
        return value
    found = json_of(value)
    if isinstance(found, Problem) and not machine_files.exists(value):
        return Problem(*not_one_of(value, _NAMES))
    return found


def _object_problems(config: Config, scaling: dict[str, object]) -> Iterator[Problem]:
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind is None:
        do = f'Add "rope_type", one of {", ".join(_TYPES)}.'
        yield config.problem("rope_scaling", 'has no "rope_type"', do)
    elif kind not in _TYPES:
        what, do = not_one_of(kind, _TYPES)
        yield config.problem("rope_scaling", f'has a "rope_type" that {what}', do)
    if isinstance(factor, bool) or not isinstance(factor, (int, float, type(None))):
        yield config.problem("rope_scaling", f'has "factor": {json.dumps(factor)}, which is not a number')
    elif factor is None and not config.get("max_model_len"):
        yield config.problem("rope_scaling", 'needs a "factor" or "max_model_len"', "Add one of them.")
    for key in _KEYS.get(str(kind), ()):
        if key not in scaling:
            yield config.problem("rope_scaling", f'has no "{key}", which "{kind}" needs', "Add it.")
