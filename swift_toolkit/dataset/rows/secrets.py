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
        if ("_" not in part or has_mark) and part in text and (found := _FORMS[name].search(text)):
            return f'{name.partition(" (")[0]} ("{found[0][:_SHOWN]}...")'
    return ""
