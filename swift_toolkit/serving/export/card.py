"""The README.md of an exported model, which is also its model card on a hub; made from the record of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.console.words import counted, shown
from swift_toolkit.machine.files import blocks
from swift_toolkit.model.checkpoints.checkpoint import Checkpoint
from swift_toolkit.model.files import JsonObject, read_json
from swift_toolkit.runs.record import RESULT
from swift_toolkit.serving.proof.verdict import Proof

SETTINGS = (
    "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps lora_rank"
    " lora_alpha max_length torch_dtype seed"
).split()

SHOWN_METRICS = "final_loss best_loss train_loss eval_loss token_acc eval_token_acc".split()


@dataclass(frozen=True, kw_only=True)
class Card:
    """The content of a model card.

    Args:
        name: name of the model.
        checkpoint: the exported checkpoint.
        license: licence of the base, None if it does not state one.
        format: description of the format.
        notes: additions to the files of the training.
        proof: comparison of its answers with those of the checkpoint.
        file: name of the GGUF file, None for a model in the layout of transformers.
        ollama: whether there is a Modelfile.
    """

    name: str
    checkpoint: Checkpoint
    license: str | None
    format: str
    notes: Sequence[str]
    proof: Proof
    file: str | None = None
    ollama: bool = False

    def text(self) -> str:
        """The card as Markdown."""
        return "\n".join(
            [*self._head(), *self._origin(), *self._training(), *self._parity(), *self._asking()]
        )

    def _head(self) -> Iterator[str]:
        base = self.checkpoint.base
        yield "---"
        if self.license:
            yield f"license: {self.license}"
        if base and not Path(base).is_absolute() and not base.startswith("builtin/"):
            yield f"base_model: {base}"
        yield from (
            f"library_name: {'gguf' if self.file else 'transformers'}",
            "pipeline_tag: text-generation",
            "tags: [ms-swift, swift-toolkit]",
            "---",
        )
        yield f"\n# {self.name}\n"

    def _origin(self) -> Iterator[str]:
        checkpoint = self.checkpoint
        yield f"{self.format[0].upper()}{self.format[1:]}, fine-tuned with ms-swift.\n"
        yield f"- Base: {_shown_base(checkpoint.base)}"
        yield f"- Licence of the base: {self.license or 'not stated; see its own card'}"
        where = "in the file" if self.file else "`chat_template.jinja` or `tokenizer_config.json`"
        yield f"- Chat format: {checkpoint.template or 'that of the tokenizer'} ({where})"
        system = shown(checkpoint.system) if checkpoint.system else "none"
        yield f"- System prompt of the training: {system} (the default of the chat template)"
        yield from (f"- {_sentence(note)}" for note in self.notes)

    def _training(self) -> Iterator[str]:
        record = run_record(self.checkpoint)
        args = record.get("config") or {}
        yield "\n## Training\n"
        yield f"- Method: {self.checkpoint.tuner_type or self.checkpoint.kind}"
        yield from _data(record)
        settings = [f"{name} {args[name]}" for name in SETTINGS if args.get(name) not in (None, -1)]
        if settings:
            yield f"- Settings: {', '.join(settings)}"
        metrics = record.get("metrics")
        if isinstance(metrics, dict) and metrics:
            shown_metrics = (f"{name} {metrics[name]:.4g}" for name in SHOWN_METRICS if name in metrics)
            yield f"- Metrics: {', '.join(shown_metrics)}"

    def _parity(self) -> Iterator[str]:
        yield "\n## Comparison with the checkpoint\n"
        yield f"{self.proof.verdict}: {self.proof.why}. Details: `export.json`."

    def _asking(self) -> Iterator[str]:
        yield "\n## Usage\n"
        if self.ollama:
            name = self.name.rpartition("/")[2].lower()
            commands = [f"ollama create {name} -f Modelfile", f'ollama run {name} "Who are you?"']
            yield from ("```bash", *commands, "```\n")
        elif self.file:
            yield from ("```bash", f'llama-cli -m {self.file} --jinja -p "Who are you?"', "```\n")
        else:
            yield _PYTHON.format(name=self.name)


_PYTHON = """\
```python
from transformers import pipeline

chat = pipeline("text-generation", "{name}")
messages = [{{"role": "user", "content": "Who are you?"}}]
print(chat(messages, max_new_tokens=64, do_sample=False)[0]["generated_text"][-1]["content"])
```
"""


def _sentence(note: str) -> str:
    """A note with a capital letter, unless it begins with the name of a file."""
    return note if "." in note.split()[0] else note[0].upper() + note[1:]


def _shown_base(base: str | None) -> str:
    """The base without the directories of the machine it was on."""
    if base is None:
        return "not known"
    return Path(base).name if Path(base).is_absolute() else base


def run_record(checkpoint: Checkpoint) -> JsonObject:
    """The result.json of the run that made the checkpoint; empty if there is none."""
    return read_json(checkpoint.path.parent / RESULT)[0] or {}


def _data(record: JsonObject) -> Iterator[str]:
    """The training files with their rows, and the SHA-256 of those that have not changed."""
    for file in (record.get("data") or {}).get("files") or []:
        path = Path(str(file.get("path")))
        unchanged = path.is_file() and path.stat().st_size == file.get("bytes")
        mark = f", SHA-256 {_sha256(path)}" if unchanged else ""
        yield f"- Data: {path.name}, {counted(int(file.get('rows') or 0), 'row')}{mark}"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    for block in blocks(file):
        digest.update(block)
    return digest.hexdigest()
