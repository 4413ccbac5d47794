"""The live line of a training run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import IO

from swift_toolkit.console.screen import LiveLine, bar_and_words, duration, gib
from swift_toolkit.training.process import events
from swift_toolkit.training.process.events import RunEvent

WARM_UP = 2
"""Steps that are excluded from the time per step: the first ones also allocate memory and choose kernels."""


_NOTES: dict[type[RunEvent], str] = {
    events.Importing: "importing ms-swift",
    events.Loading: "loading the model and the data",
    events.Waiting: "waiting for the data check",
}


_MEASURES = """
loss      loss                loss {:.4f}
reward    reward              reward {:.3f}
reward    objective/scores    score {:.3f}
margin    rewards/margins     margin {:.3f}
margin    margin              margin {:.3f}
accuracy  rewards/accuracies  accuracy {:.0%}
accuracy  accuracy            accuracy {:.0%}
"""
"""The metric, its name in ms-swift's logs, and its format."""
_ORDER = ("loss", "reward", "margin", "accuracy")
_OTHERS = (
    ("eval", "eval_loss", "eval loss {:.4f}"),
    ("rate", "learning_rate", "lr {:.2e}"),
    ("rate", "lr", "lr {:.2e}"),
)


def measured(logs: Mapping[str, float]) -> dict[str, str]:
    """The metrics that show whether a model learns: the loss, or the rewards where the loss says little (that of GRPO
    is about 0 at every step)."""
    rows = [row.split(maxsplit=2) for row in _MEASURES.strip().splitlines()]
    words = {name: pattern.format(logs[key]) for name, key, pattern in rows if key in logs}
    if "reward" in words:
        words.pop("loss", None)
    return words


class TrainingLine(LiveLine):
    """The live line of a training run. Use it as a context manager.

    Args:
        file: the output stream; a terminal gets a bar, any other file a plain line for every log of the run.
        row_tokens: approximate number of tokens of a row; None if unknown.
    """

    def __init__(self, file: IO[str] | None = None, row_tokens: int | None = None) -> None:
        super().__init__("starting", file, *bar_and_words())
        self._step, self._total, self._first = 0, 0, 0
        self._warm: float | None = None
        self._row_tokens, self._batch = row_tokens, 0
        self._words: dict[str, str] = {}

    def say(self, sentence: str) -> None:
        """Print a permanent line."""
        if self._live:
            self._progress.console.print(sentence, markup=False)
        else:
            print(sentence, file=self._file, flush=True)

    def show(self, event: RunEvent) -> None:
        """Show one event."""
        if sentence := _NOTES.get(type(event)):
            self.note(sentence)
        match event:
            case events.Begin():
                self._first, self._total, self._batch = event.step, event.max_steps, event.batch
                self._step, self._warm = self._first, None
                self._progress.update(self._task, description="training", total=self._total)
            case events.Step():
                self._stepped(event.step)
            case events.Evaluating():
                self._progress.update(self._task, description="evaluating")
            case events.Log():
                self._log(event)
            case events.Audited():
                for sentence in event.sentences():
                    self.say(sentence)
            case events.RewardTried(error=None):
                self.say(event.sentence())

    def _stepped(self, step: int) -> None:
        self._step = step
        if step - self._first == WARM_UP:
            self._warm = time.monotonic()
        self._progress.update(self._task, completed=step, description="training", words=self.words())

    def _log(self, event: events.Log) -> None:
        logs = event.logs
        self._step = max(self._step, event.step)  # PPO logs a step before reporting it
        self._words |= measured(logs)
        for name, key, pattern in _OTHERS:
            if key in logs:
                self._words[name] = pattern.format(logs[key])
        self._words["memory"] = gib(event.memory)
        if self._live:
            self._progress.update(self._task, words=self.words())
        elif measured(logs) or "eval_loss" in logs:
            print(self.words(), file=self._file, flush=True)

    def words(self) -> str:
        """The line without its bar: step, losses, learning rate, speed, remaining time (once measured), memory."""
        parts = [f"step {self._step}/{self._total}"]
        parts += [self._words[name] for name in (*_ORDER, "eval", "rate") if name in self._words]
        done = self._step - self._first - WARM_UP
        if self._warm is not None and done > 0:
            pace = (time.monotonic() - self._warm) / done
            parts.append(f"{pace:.2f} s/step")
            if self._row_tokens:
                parts.append(f"about {self._row_tokens * self._batch / max(pace, 0.001):,.0f} tokens/s")
            parts.append(f"{duration(pace * (self._total - self._step))} left")
        elif self._step < self._total:
            parts.append("time left unknown")
        if "memory" in self._words:
            parts.append(self._words["memory"])
        return " · ".join(parts)


class NodeLine(TrainingLine):
    """The live line of a process that joins a run which rank 0 shows."""

    def show(self, event: RunEvent) -> None:
        """Show which run this process has joined."""
        if isinstance(event, events.Agreed):
            self.note(f"joined the run in {event.directory}")
