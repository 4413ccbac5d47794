"""Files beside the weights: the tokenizer and processor files used in training, byte for byte, and what they lack: the
chat template, the system prompt and the end token of the training.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from swift_toolkit.console.words import shown
from swift_toolkit.machine.files import whole_text, write_json
from swift_toolkit.model.checkpoints.checkpoint import Checkpoint
from swift_toolkit.model.files import TOKENIZER_FILES, read_json
from swift_toolkit.model.loading import local
from swift_toolkit.serving.proof.exchange import ProofSide, end_ids

CARRIED = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
"""Files that transformers rewrites when it saves a model, sometimes in a form that older versions cannot read."""

TEMPLATE = "chat_template.jinja"


def source_of(checkpoint: Checkpoint) -> Path | None:
    """The directory of the tokenizer used in training: the checkpoint if it has one, else the base; None if neither is
    on this machine, or if only the merged model has the added tokens.
    """
    base = Path(local(checkpoint.base) or "") if checkpoint.base else None
    for place in (checkpoint.path, *([base] if base else [])):
        if any(True for name in TOKENIZER_FILES for _ in place.glob(name)):
            return place if place == checkpoint.path or not checkpoint.args.new_special_tokens else None
    return None


def carry_files(source: Path, model: Path) -> list[str]:
    """Replace the files that were rewritten in ``model`` with those of ``source``. Returns their names."""
    for name in present(model):
        (model / name).unlink()
    names = list(present(source))
    for name in names:
        shutil.copyfile(source / name, model / name)
    return names


def present(folder: Path) -> Iterator[str]:
    """The names of these files in ``folder``."""
    found = {file.name for pattern in CARRIED for file in folder.glob(pattern) if file.is_file()}
    yield from sorted(found)


def carry_chat(original: ProofSide, model: Path) -> list[str]:
    """Add to ``model`` the chat settings of the training that its files lack. Returns a sentence per addition."""
    notes = []
    chat = original.chat
    if chat is not None and chat.jinja:
        with whole_text(model / TEMPLATE) as out:
            out.write(chat.jinja)
        told = f", with the system prompt {shown(chat.system)}" if chat.system else ""
        notes.append(
            f"{TEMPLATE} is the template of the training{told}; the base's own renders different prompts"
        )
    if original.end is not None:
        notes += _carry_end(original.end, model / "generation_config.json")
    return notes


def _carry_end(end: tuple[str, int], file: Path) -> Iterator[str]:
    text, number = end
    config = read_json(file)[0] or {}
    ends = end_ids(config.get("eos_token_id"))
    if number not in ends:
        write_json(file, {**config, "eos_token_id": [*ends, number] if ends else number})
        yield f"{file.name} also ends answers at {shown(text)}, as in training"
