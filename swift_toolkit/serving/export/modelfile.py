"""Writes a Modelfile for Ollama: the chat format of the training as a Go template, its system prompt and stop words.

https://github.com/ollama/ollama/blob/main/docs/modelfile.md. ms-swift's own export writes ``repeat_penalty None``, a
stop word that contains a line break, and no system prompt.
"""

from __future__ import annotations

import json
from pathlib import Path

from swift_toolkit.model.files import read_json
from swift_toolkit.serving.proof.exchange import ChatFormat

PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repeat_penalty",
    "min_p": "min_p",
}
"""Keys of generation_config.json -> parameters of Ollama."""


def modelfile(chat: ChatFormat, gguf: str, model: Path) -> str:
    """The text of the Modelfile.

    Args:
        chat: the chat format of the training.
        gguf: name of the GGUF file in the same directory.
        model: the model directory, for its generation_config.json and context length.
    """
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{go_template(chat)}"""']
    if chat.system:
        lines.append(f'SYSTEM """{chat.system}"""')
    stops = [word for one in chat.stop if (word := one.strip("\n"))]
    lines += [f"PARAMETER stop {json.dumps(one, ensure_ascii=False)}" for one in stops]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(model)]
    return "\n".join(lines) + "\n"


def _parameters(model: Path) -> list[tuple[str, object]]:
    told = read_json(model / "generation_config.json")[0] or {}
    found: list[tuple[str, object]] = [
        (theirs, told[ours])
        for ours, theirs in PARAMETERS.items()
        if isinstance(told.get(ours), (int, float))
    ]
    if not told.get("do_sample") and "temperature" not in told:
        found.append(("temperature", 0))
    if "repetition_penalty" not in told:
        found.append(("repeat_penalty", 1.0))  # Ollama's default is 1.1
    return found


def go_template(chat: ChatFormat) -> str:
    """The format for Ollama's template engine, which provides .System and .Messages."""
    system = (chat.system_prefix or chat.prefix).replace("{{SYSTEM}}", "{{ .System }}")
    question = chat.prompt.replace("{{QUERY}}", "{{ .Content }}")
    begin = f"{{{{ if .System }}}}{system}{{{{ else }}}}{chat.prefix}{{{{ end }}}}"
    last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    answer = f"{{{{ .Content }}}}{{{{ if not $last }}}}{chat.chat_sep or ''}{{{{ end }}}}"
    turns = (
        f"{{{{ range $i, $_ := .Messages }}}}{last}"
        f'{{{{ if eq .Role "user" }}}}{question}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}{{{{ end }}}}'
    )
    return begin + turns
