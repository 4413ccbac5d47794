"""Keys and passwords that texts should not contain."""

from __future__ import annotations

import re

_KINDS = {
    "a private key": ("-----BEGIN", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "a key of OpenAI or Anthropic": ("sk-", r"\bsk-(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{24,}"),
    "a key of AWS": ("AKIA", r"\bAKIA[0-9A-Z]{16}\b"),
    **{
        f"a token of GitHub (gh{letter})": (f"gh{letter}_", rf"\bgh{letter}_[A-Za-z0-9]{{36}}\b")
        for letter in "pousr"
    },
    "a token of GitHub": ("github_pat_", r"\bgithub_pat_\w{60,}"),
    "a token of Slack": ("xox", r"\bxox[abprs]-[0-9A-Za-z-]{12,}"),
    "a key of Google": ("AIza", r"\bAIza[\w-]{35}(?![\w-])"),
    "a token of Hugging Face": ("hf_", r"\bhf_[A-Za-z]{34}\b"),
}
"""Name of a kind of secret -> a part that is quick to search for, and its pattern."""

_FORMS = {name: re.compile(form) for name, (_, form) in _KINDS.items()}
_PARTS = {name: part for name, (part, _) in _KINDS.items()}
_SHOWN = 6


def secret_in(text: str) -> str:
    """A description of the likely secret in a text, with only its beginning shown; "" if there is none."""
    has_mark = "_" in text  # most prose has none, which saves half of the searches
    for name, part in _PARTS.items():
        if ("_" not in part or has_mark) and part in text and (found := _FORMS[name].search(text)):
            return f'{name.partition(" (")[0]} ("{found[0][:_SHOWN]}...")'
    return ""
