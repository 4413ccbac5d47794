"""The command's side of ms-swift's inference engines.

An engine runs in its own process (worker.py): its output goes to a log, a crash does not end the command, and its
memory is free before the next engine is loaded.

    with Engine(order, log) as engine:
        for index, answer in engine.answers(questions, "tuned"):
            ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from swift_toolkit.inference.exchange import Answer, EngineOrder, Question, Side
from swift_toolkit.machine.failure import ENDED, child_failure
from swift_toolkit.machine.process import Child
from swift_toolkit.problems import RunError

DRAIN_SECONDS = 60.0
"""How long an answer may take to stop, which it does at its next token, before its engine is ended."""


class Engine:
    """A running engine. Use it in a ``with`` statement: on leaving, nothing of it is left running.

    Args:
        order: what to load.
        log: file to which all that the engine prints is appended.
        echo: also write that here.
    """

    def __init__(self, order: EngineOrder, log: Path, echo: IO[str] | None = None) -> None:
        self.log = log
        self.closed = False
        self._child = start(log, order.environment, echo)
        self._events = self._child.events()
        self._ready: dict[str, Any] | None = None
        first = {"arguments": order.arguments, "backend": order.backend, "adapter": order.adapter}
        self._send({**first, "largest_batch": order.largest_batch})
        self.set_generation(order.generation)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and everything it started."""
        if not self.closed:
            self.closed = True
            self._child.__exit__(None, None, None)

    def loading(self) -> Iterator[str]:
        """What is going on until the engine is ready: ``importing``, ``loading``, several times a second.

        Raises:
            RunError: it cannot be loaded.
        """
        state = "importing"
        while self._ready is None:
            event = next(self._events, ENDED)
            if event is not None and event["event"] == "ready":
                self._ready = event
            elif event is not None and event["event"] == "loading":
                state = "loading"
            elif event is not None:
                raise self._failure(event)
            yield state

    @property
    def ready(self) -> dict[str, Any]:
        """What was loaded: ``template``, ``system``, ``dtype``, ``max_model_len``, ``versions`` and more.

        Waits until it is.

        Raises:
            RunError: it cannot be loaded.
        """
        for _ in self.loading():
            pass
        assert self._ready is not None
        return self._ready

    def set_generation(self, settings: Mapping[str, Any]) -> None:
        """Use other settings from here on: RequestConfig's fields, and ``seed``."""
        self._send({"do": "generation", "settings": dict(settings)})

    def answers(self, questions: Iterable[Question], side: Side) -> Iterator[tuple[int, Answer] | None]:
        """Ask all the questions; their indices and answers as they come, and None while there is none.

        Never more questions are held than the engine looks at to put like lengths together.

        Raises:
            RunError: the engine ended.
        """
        window: int = self.ready["window"]
        waiting = iter(questions)
        asked = 0
        before = time.monotonic()
        try:
            while True:
                if asked <= window // 2 and (more := list(islice(waiting, window - asked))):
                    asked += len(more)
                    self._send({"do": "ask", "side": side, "questions": [_as_json(one) for one in more]})
                if not asked:
                    return
                event = self._next()
                if event is None:
                    yield None
                    continue
                asked -= 1
                now = time.monotonic()
                yield event["index"], _as_answer({**event, "share": now - before})
                before = now
        finally:
            if asked:  # left before the end: what is still to come must not be taken for other answers
                self.close()

    def stream(self, question: Question, side: Side) -> Iterator[str | Answer]:
        """The pieces of an answer as they come, then the whole `Answer`. `stop` ends it early.

        Raises:
            RunError: the engine ended.
        """
        _ = self.ready
        self._send({"do": "stream", "side": side, "question": _as_json(question)})
        text = ""
        event: dict[str, Any] = {"event": "asked"}
        try:
            while event["event"] != "streamed":
                event = self._next() or {"event": "waiting"}
                if event["event"] == "piece":
                    text += event["text"]
                    yield event["text"]
        finally:
            if event["event"] != "streamed" and not self.closed:  # left before the end
                self._drain()
        yield _as_answer({**event, "text": None if event.get("error") is not None else text})

    def _drain(self) -> None:
        """Stop the answer that is streaming and read the rest of it; end an engine that does not stop."""
        self.stop()
        deadline = time.monotonic() + DRAIN_SECONDS
        for event in self._events:
            if event is not None and event["event"] == "streamed":
                return
            if time.monotonic() > deadline:
                break
        self.close()

    def stop(self) -> None:
        """Let the answer that is streaming end at its next token."""
        self._send({"do": "stop"})

    def render(self, question: Question) -> str | None:
        """The prompt as the model sees it, None if it cannot be made."""
        _ = self.ready
        self._send({"do": "render", "question": _as_json(question)})
        while (event := self._next()) is None:
            pass
        text: str | None = event["text"]
        return text

    def _send(self, message: Mapping[str, Any]) -> None:
        with suppress(BrokenPipeError):  # what it reported before it ended says more, and is read next
            self._child.send(message)

    def _next(self) -> dict[str, Any] | None:
        event = next(self._events, ENDED)
        if event is not None and event["event"] in ("ended", "failed"):
            raise self._failure(event)
        return event

    def _failure(self, event: Mapping[str, Any]) -> RunError:
        failure = child_failure(event, "ms-swift could not load the model", self._child, self.log)
        self.close()
        return failure


def start(log: Path, environment: Mapping[str, str], echo: IO[str] | None = None) -> Child:
    """Start the process of an engine, which waits for its order; arguments as in `Engine`."""
    command = [sys.executable, "-m", "swift_toolkit.inference.worker"]
    return Child(command, log, environment=environment, echo=echo, listens=True)


def _as_json(question: Question) -> dict[str, Any]:
    return {"index": question.index, "messages": list(question.messages), "extra": dict(question.extra)}


def _as_answer(event: Mapping[str, Any]) -> Answer:
    fields = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "seconds", "share", "error")
    return Answer(**{"text": None, **{name: event[name] for name in fields if name in event}})
