"""A chat template (Jinja) that renders prompts as the training did.

The base's own template is kept if it does so. Often it does not: ms-swift trains with its own template, adds the system
prompt of the training to every conversation that has none, and omits the default system prompt of many models'
templates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from swift_toolkit.serving.proof.exchange import ChatFormat, Messages

_WITH_SYSTEM = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{%- set messages = [{'role': 'system', 'content': SYSTEM}] + messages -%}"
    "{%- endif -%}"
)

_FROM_FORMAT = """\
{%- set system = SYSTEM -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] -%}{%- set messages = messages[1:] -%}
{%- endif -%}
{%- if system -%}{{ SYSTEM_PREFIX }}{%- else -%}{{ PREFIX }}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ message['content'] }}{%- if loop.last -%}{{ SUFFIX }}{%- else -%}{{ CHAT_SEP }}{%- endif -%}
{%- else -%}
{{ PROMPT }}
{%- endif -%}
{%- endfor -%}"""


def candidates(chat: ChatFormat, own: str | None) -> Iterator[str]:
    """Yield templates that may render as the training did, the one closest to the base's ``own`` first."""
    if own and chat.system:
        yield _WITH_SYSTEM.replace("SYSTEM", json.dumps(chat.system, ensure_ascii=False)) + own
    yield jinja(chat)


def jinja(chat: ChatFormat) -> str:
    """The format as a Jinja template, without tools, images or thinking."""
    parts = {
        "SYSTEM_PREFIX": _around(chat.system_prefix or chat.prefix, "{{SYSTEM}}", "system"),
        "PREFIX": _quoted(chat.prefix),
        "SUFFIX": _quoted(chat.suffix),
        "CHAT_SEP": _quoted(chat.chat_sep or ""),
        "PROMPT": _around(chat.prompt, "{{QUERY}}", "message['content']"),
        "SYSTEM": _quoted(chat.system),
    }
    text = _FROM_FORMAT
    for name, value in parts.items():
        text = text.replace(f"{{{{ {name} }}}}", f"{{{{- {value} -}}}}")
    return text.replace("set system = SYSTEM", f"set system = {parts['SYSTEM']}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _around(text: str, placeholder: str, name: str) -> str:
    before, found, after = text.partition(placeholder)
    return f"{_quoted(before)} + {name} + {_quoted(after)}" if found else _quoted(text)


def probes(questions: tuple[Messages, ...]) -> Iterator[Messages]:
    """Conversations that distinguish templates: the questions, one with a system prompt, and one with two turns."""
    yield from questions
    first = {"role": "user", "content": "Hello"}
    yield [{"role": "system", "content": "You are brief."}, first]
    yield [first, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And now?"}]
