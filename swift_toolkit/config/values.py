"""Values from files and flags, converted to the types of ms-swift's arguments."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from swift_toolkit.config.fields import Field
from swift_toolkit.config.settings import word_of
from swift_toolkit.console.words import did_you_mean, shown

_WORDS_FOR_BOOL = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


_ALSO_BOOL = ("init_weights", "fsdp")
"""Strings that may mean ``true`` or ``false``."""
_ALSO_OBJECT = ("fsdp", "teacher_deepspeed", "rope_scaling", "reft_args")
"""Strings that ms-swift reads as JSON."""


def typed_value(field: Field, value: Any) -> Any:
    """``value`` in the type of ``field``.

    Strings from a command line are read like the values of a file: ``"8"`` is 8 for a number, ``"true"`` is True for a
    switch, ``'["a", "b"]'`` is a list.

    Raises:
        ValueError: with two arguments, what is wrong and what to do.
    """
    if field.is_list:
        return _typed_list(field, value)
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"takes one value, not {len(value)}", "")
        value = value[0]
    return _typed_one(field, value)


def _typed_list(field: Field, value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        values = list(value)
    elif isinstance(value, str) and value.lstrip().startswith("["):
        values = _json(value, list, "a list")
    else:
        values = [value]
    if not values:
        raise ValueError("is an empty list", "Give at least one, or remove it.")
    if field.kind == "str" and "" in values:
        raise ValueError(
            "is empty" if len(values) == 1 else "has an empty entry", "Give a value, or remove it."
        )
    return [_typed_one(field, one) for one in values]


def _typed_one(field: Field, value: Any) -> Any:
    if isinstance(value, bool) and field.kind == "str" and not field.choices and field.name not in _ALSO_BOOL:
        do = "--resume finds the newest checkpoint." if field.name == "resume_from_checkpoint" else ""
        raise ValueError(f"must be text, not {shown(value)}", do)
    is_object = isinstance(value, dict) or str(value).lstrip().startswith("{")
    if is_object and field.name in _ALSO_OBJECT:
        return _dict(value)
    if isinstance(value, str) and not value.strip() and field.kind != "str":
        raise ValueError("is empty", "Give a value, or remove it.")
    if field.choices is None:
        return _KINDS[field.kind](value)
    for choice in field.choices:  # "8" from a command line is the 8 of a Literal[4, 8]
        if word_of(choice) == word_of(value):
            return choice
    raise ValueError(*not_one_of(value, field.choices))


def not_one_of(value: Any, choices: Iterable[Any]) -> tuple[str, str]:
    """What is wrong with a value that is not among the ``choices``, and what to do."""
    words = [str(choice) for choice in choices]
    bare = str(value).removesuffix("_with_warmup")
    if bare != value and bare in words:  # a scheduler by the name of its function in transformers
        return f"cannot be {shown(value)}", f'Use "{bare}", with "warmup_ratio" or "warmup_steps".'
    return f"cannot be {shown(value)}", did_you_mean(str(value), words, f"Use one of {', '.join(words)}.")


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("0", "1"):
        return word == "1"
    if word not in _WORDS_FOR_BOOL:
        raise ValueError(f"must be true or false, not {shown(value)}", "")
    return _WORDS_FOR_BOOL[word]


def _int(value: Any) -> int:
    number = _float(value)
    if number != int(number):
        raise ValueError(f"must be a whole number, not {shown(value)}", "")
    return int(number)


def _float(value: Any) -> float:
    """A number; a whole number given as such stays an int, so that it is shown as it was written."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"must be a number, not {shown(value)}", _number_meant(str(value).strip()))
    whole = isinstance(value, int) or (isinstance(value, str) and value.strip().isdigit())
    return int(value) if whole else number


_DASHES = str.maketrans("‐‑‒–—−－", "-------")


def _number_meant(text: str) -> str:
    """The advice for a number as people and pages write it: ``1e−4`` with a long dash, ``1×10^-4``, ``1,000``, ``5%``,
    and DeepSpeed's ``auto``; "" for other text."""
    if text.lower() == "auto":
        return "Remove it: the value is then chosen."
    plain = re.sub(r"\s*[×x*]\s*10\s*\^?\s*\{?(-?\d+)\}?", r"e\1", text.translate(_DASHES))
    plain = plain.replace(",", "") if re.fullmatch(r"\d{1,3}(?:,\d{3})+", plain) else plain
    try:
        number = float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
    except ValueError:
        return ""
    return f"Write {number:g}." if math.isfinite(number) else ""


def _str(value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise ValueError(f"must be text, not {shown(value)}", "")
    text = word_of(value)
    if "\0" in text or not _is_text(text):
        raise ValueError(
            "contains characters that are not valid text (NUL or a lone surrogate)", "Remove them."
        )
    return text


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _dict(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return _json(value, dict, "an object")
    if isinstance(value, (list, bool)):
        raise ValueError(f"must be an object or text, not {shown(value)}", "")
    return value if isinstance(value, dict) else str(value)


def _json(text: str, kind: type, called: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        try:
            value = ast.literal_eval(text)  # ms-swift also reads {'a': True}
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            what = f"is not valid JSON ({error.msg[:1].lower()}{error.msg[1:]})"
            raise ValueError(what, "") from None
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON", "") from None
    if not isinstance(value, kind):
        raise ValueError(f"must be {called}", "")
    return value


_KINDS: dict[str, Callable[[Any], Any]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _str,
    "dict": _dict,
}
