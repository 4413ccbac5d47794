"""Random command lines and configs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deploy_model
import finetune_trainer
import inference_test
from swift_toolkit.config import fields as config_fields
from swift_toolkit.config.settings import OWN_KEYS
from swift_toolkit.console.command_line import Parser
from swift_toolkit.machine.msswift import Command, installed
from tests.fuzz import TEXTS, damaged, value

SCRIPTS: dict[str, tuple[Command, Callable[[], Parser]]] = {
    "finetune_trainer.py": ("sft", finetune_trainer.make_parser),
    "inference_test.py": ("infer", inference_test.make_parser),
    "deploy_model.py": ("deploy", deploy_model.make_parser),
}
_LEFT_OUT = {"-h", "--debug", "--preview", "--exact"}
"""Flags that show tracebacks on purpose, or import ms-swift."""

LINES = (
    "swift sft --model a/b --dataset c.jsonl",
    "NPROC_PER_NODE=2 swift rlhf --rlhf_type dpo --model a --dataset b \\\n --lora_rank 8",
    "torchrun --nproc_per_node 2 swift/cli/sft.py --model a --dataset b",
    "swift infer --adapters a --stream true",
    "swift deploy --model a --port 0",
    "A=(1 2)\nfor i in 1 2; do\n swift sft --model $i ${A[@]} \ndone",
    "export X=$(date)\nswift pt --model a --dataset $X/b#5 > log 2>&1 &",
)


class Commands:
    """Makes command lines for files in a folder.

    Args:
        folder: where their files go.
        model: a model directory.
        checkpoint: a checkpoint directory.
    """

    def __init__(self, folder: Path, model: Path, checkpoint: Path) -> None:
        self.folder, self.model, self.checkpoint = folder, model, checkpoint
        self.data = folder / "data.jsonl"
        rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 5
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        install = installed()
        self._fields = {
            script: config_fields.fields(command, install) for script, (command, _) in SCRIPTS.items()
        }
        self._names = {script: [*fields, *OWN_KEYS] for script, fields in self._fields.items()}
        self._flags = {
            script: [
                (action.option_strings[0], action.nargs)
                for action in make()._actions
                if action.option_strings and not _LEFT_OUT & {*action.option_strings}
            ]
            for script, (_, make) in SCRIPTS.items()
        }

    def make(self, draw: random.Random) -> tuple[str, list[str]]:
        """A script and its words; nothing is started by them."""
        script = draw.choice(("finetune_trainer.py",) * 3 + ("inference_test.py", "deploy_model.py"))
        words = [*self._target(draw, script), "--dry-run"]
        if draw.random() < 0.6:
            words += ["--config", str(self._config(draw, script))]
        if draw.random() < 0.1:
            words += [draw.choice(("--from-command", "--from-script")), self._line(draw)]
        for _ in range(draw.choice((0, 0, 0, 1, 1, 3))):
            words += self._flag(draw, script)
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            name = self._name(draw, script)
            values = [self._value(draw, script, name) for _ in range(draw.choice((0, 1, 1, 1, 1, 2)))]
            words += [f"--{name}", *map(_word, values)] if name not in ("debug", "preview", "exact") else []
        if draw.random() < 0.2:
            words.append("--json")
        if draw.random() < 0.1:
            draw.shuffle(words)
        return script, [*words, "--dry-run"]

    def _target(self, draw: random.Random, script: str) -> list[str]:
        if draw.random() < 0.15:
            return []
        if script == "finetune_trainer.py":
            model = draw.choice((str(self.model), "a/b", "HuggingFaceTB/SmolLM2-135M-Instruct"))
            words = ["--model", model, "--dataset", draw.choice((str(self.data), "c/d"))]
            return [
                *words,
                *(("--model_type", "llama", "--template", "chatml") if draw.random() < 0.7 else ()),
            ]
        return ["--checkpoint", draw.choice((str(self.checkpoint), str(self.model), "a/b"))]

    def _name(self, draw: random.Random, script: str) -> str:
        name = draw.choice(self._names[script])
        kind = draw.random()
        if kind < 0.1:
            return name.replace("_", "-")
        if kind < 0.2:
            at = draw.randrange(len(name))
            return name[:at] + draw.choice("aqz_") + name[at + draw.randrange(2) :]
        return name if kind < 0.97 else draw.choice(TEXTS)

    def _value(self, draw: random.Random, script: str, name: str) -> Any:
        """What ms-swift itself takes, or anything."""
        field = self._fields[script].get(name)
        if field is not None and field.default_value is not None and draw.random() < 0.5:
            return field.default_value
        return value(draw)

    def _flag(self, draw: random.Random, script: str) -> list[str]:
        flag, nargs = draw.choice(self._flags[script])
        if flag in ("--upgrade", "--report", "--convert", "--output") and draw.random() < 0.7:
            return [flag, str(self.folder / f"out{draw.choice(('.yaml', '.json', '.html', '.md', ''))}")]
        return [flag] if nargs == 0 and draw.random() < 0.9 else [flag, _word(value(draw))]

    def _line(self, draw: random.Random) -> str:
        text = draw.choice(LINES)
        if draw.random() < 0.5:
            text = damaged(draw, text.encode()).decode("utf-8", "replace")
        if draw.random() < 0.5:
            return text.replace("\0", "")
        file = self.folder / "run.sh"
        file.write_bytes(text.encode())
        return str(file)

    def _config(self, draw: random.Random, script: str) -> Path:
        settings: Any = {
            (name := self._name(draw, script)): self._value(draw, script, name)
            for _ in range(draw.choice((0, 0, 1, 1, 2, 5)))
        }
        if draw.random() < 0.5:
            settings = {"model": str(self.model), "dataset": str(self.data), **settings}
        if draw.random() < 0.03:
            settings = value(draw)
        text = json.dumps(settings, indent=draw.choice((None, 1)), ensure_ascii=draw.random() < 0.5)
        file = self.folder / draw.choice(("c.json", "c.yaml", "c.yml", "c", "c.txt"))
        data = text.encode("utf-8", "surrogatepass")
        if file.suffix in (".yaml", ".yml") and isinstance(settings, dict) and draw.random() < 0.5:
            data = "".join(f"{key}: {one}\n" for key, one in settings.items()).encode("utf-8", "replace")
        file.write_bytes(damaged(draw, data) if draw.random() < 0.25 else data)
        return file


def _word(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given)
