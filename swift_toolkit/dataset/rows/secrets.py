"""Keys and passwords that texts should not contain."""

from __future__ import annotations

import re

from swift_toolkit.console.secrets import KINDS

_FORMS = {name: re.compile(form) for name, (_, form) in KINDS.items()}
_PARTS = {name: part for name, (part, _) in KINDS.items()}
_SHOWN = 6


def secret_in(text: str) -> str:
    """A description of the likely secret in a text, with only its beginning shown; "" if there is none."""
    has_mark = "_" in text  # most prose has none, which saves half of the searches
    for name, part in _PARTS.items():
        if ("_" not in part or has_mark) and (found := _found(name, part, text)):
            return f'{name.partition(" (")[0]} ("{found[0][:_SHOWN]}...")'
    return ""


def _found(name: str, part: str, text: str) -> re.Match[str] | None:
    """The first secret of a kind, tried at each place of its fixed first part: "sk-" is also in "task-"."""
    at = text.find(part)
    while at >= 0:
        if found := _FORMS[name].match(text, at):
            return found
        at = text.find(part, at + 1)
    return None
