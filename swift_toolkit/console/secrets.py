"""Secrets in user input: where they are, and how to hide them.

They are recognised by the name of their key, such as ``HF_TOKEN`` or ``api-key``, or by their form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

HIDDEN = "***"
"""Shown in place of a secret."""

SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key|credentials?|auth(?:orization)?)$",
    re.IGNORECASE,
)
"""Endings of the names of keys, variables or options that hold a secret."""

_VALUE = re.compile(r"(?=.*[A-Za-z])[\w.\-+/=:~]{6,}")  # not a number, not a special token such as <|im_end|>

KINDS = {
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
"""Name of a kind of secret -> a part that is quick to search for, and its exact form, for long texts."""

_LIKELY = r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[\w-]{20,})\b"  # on the screen
_KNOWN = re.compile("|".join((_LIKELY, *(form for _, form in KINDS.values()))))
_HEXADECIMAL = re.compile(r"\b[0-9a-f]{32,}\b")
_IN_URL = re.compile(
    r"""(?P<user>\b[a-z][a-z0-9+.-]*://[^\s/@:'"]*:)[^\s/@'"]+(?=@)
    |(?P<name>[?&](?:[\w-]*token|api_?key|password|sig|signature|x-amz-signature|x-amz-credential)=)[^\s&'"]+""",
    re.IGNORECASE | re.VERBOSE,
)
_HEADER = re.compile(r"(authorization:\s*(?:(?:basic|bearer|token)\s+)?)[^\s'\"]+", re.IGNORECASE)


@dataclass(frozen=True)
class SecretPlace:
    """The place of a secret in the value of a setting: in a URL, or under ``key``."""

    key: str
    in_url: bool = False

    def __str__(self) -> str:
        return "in a URL" if self.in_url else f'under "{self.key}"'


def places(value: object, key: str = "") -> Iterator[SecretPlace]:
    """The places of secrets in the value of a setting.

    Args:
        value: the value; a string that holds a JSON object is searched too.
        key: the key of the value, if it is part of another one.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _object(value)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from places(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from places(inner, key)
    elif isinstance(value, str):
        named = SECRET_NAME.search(key) is not None and _VALUE.fullmatch(value) is not None
        if named or (key and _KNOWN.search(value)):
            yield SecretPlace(key)
        elif _IN_URL.search(value):
            yield SecretPlace(key, in_url=True)


def _object(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def masked(text: str) -> str:
    """``text`` without the secrets that are recognised by their form."""
    text = _IN_URL.sub(lambda found: f"{found['user'] or found['name']}{HIDDEN}", text)
    return _KNOWN.sub(HIDDEN, _HEADER.sub(rf"\1{HIDDEN}", text))


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command without secrets: the values of options and variables named like secrets, and the words
    after ``login``.
    """
    shown: list[str] = []
    hides = False
    for word in words:
        if hides and not word.startswith("-"):
            shown.append(HIDDEN)
            hides = False
            continue
        name, equals, _ = word.partition("=")
        is_secret = SECRET_NAME.search(name.lstrip("-")) is not None
        hides = hides or word == "login" or (is_secret and word.startswith("-") and not equals)
        shown.append(f"{name}={HIDDEN}" if is_secret and equals else _HEXADECIMAL.sub(HIDDEN, masked(word)))
    return shown
