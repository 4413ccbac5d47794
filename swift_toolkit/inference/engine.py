"""Controls ms-swift's inference engines from the command's process.

An engine runs in its own process (worker.py): its output goes to a log, a crash does not end the command, and its
memory is freed before the next engine is loaded.

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
from typing import IO

import msgspec

from swift_toolkit.inference import protocol
from swift_toolkit.inference.exchange import Answer, EngineOrder, Generation, Question, Side
from swift_toolkit.machine.failure import ENDED, child_failure
from swift_toolkit.machine.process import Child
from swift_toolkit.problems import RunError

DRAIN_SECONDS = 60.0
"""Seconds that an answer may take to stop, normally at its next token, before its engine is killed."""


class Engine:
    """A running engine. Use it in a ``with`` statement, which ends all its processes on exit.

    Args:
        order: the order with the model to load.
        log: file to which the output of the engine is appended.
        echo: stream to which the output is also written.
    """

    def __init__(self, order: EngineOrder, log: Path, echo: IO[str] | None = None) -> None:
        self.log = log
        self.closed = False
        self._child = start(log, order.environment, echo)
        self._events = self._child.events()
        self._ready: protocol.EngineReady | None = None
        self._send(
            protocol.Load(
                arguments=order.arguments,
                backend=order.backend,
                adapter=order.adapter,
                largest_batch=order.largest_batch,
            )
        )
        self.set_generation(order.generation)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and all processes it started."""
        if not self.closed:
            self.closed = True
            self._child.__exit__(None, None, None)

    def loading(self) -> Iterator[str]:
        """Yield the state until the engine is ready, ``importing`` or ``loading``, several times a second.

        Raises:
            RunError: the model cannot be loaded.
        """
        state = "importing"
        while self._ready is None:
            event = self._next()
            if isinstance(event, protocol.EngineReady):
                self._ready = event
            elif isinstance(event, protocol.EngineLoading):
                state = "loading"
            yield state

    @property
    def ready(self) -> protocol.EngineReady:
        """Wait until the model is loaded; return its description.

        Raises:
            RunError: the model cannot be loaded.
        """
        for _ in self.loading():
            pass
        assert self._ready is not None
        return self._ready

    def set_generation(self, generation: Generation) -> None:
        """Change the settings for all further answers."""
        self._send(protocol.Settings(generation=generation))

    def answers(self, questions: Iterable[Question], side: Side) -> Iterator[tuple[int, Answer] | None]:
        """Ask all questions; yield indices and answers as they complete, and None while there are none.

        Holds no more questions in memory than the engine considers when it groups questions of similar length.

        Raises:
            RunError: the engine ended unexpectedly.
        """
        window = self.ready.window
        waiting = iter(questions)
        open_questions = 0
        before = time.monotonic()
        try:
            while True:
                if open_questions <= window // 2 and (more := list(islice(waiting, window - open_questions))):
                    open_questions += len(more)
                    self._send(protocol.Ask(side=side, questions=[protocol.asked(one) for one in more]))
                if not open_questions:
                    return
                event = self._next()
                if not isinstance(event, protocol.Answered):
                    yield None
                    continue
                open_questions -= 1
                now = time.monotonic()
                yield event.index, _answer(event, event.text, now - before)
                before = now
        finally:
            if (
                open_questions
            ):  # the caller stopped early: the remaining events must not be read as later answers
                self.close()

    def stream(self, question: Question, side: Side) -> Iterator[str | Answer]:
        """Yield the pieces of an answer as they come, then the whole `Answer`. `stop` ends it early.

        Raises:
            RunError: the engine ended unexpectedly.
        """
        _ = self.ready
        self._send(protocol.Stream(side=side, question=protocol.asked(question)))
        text = ""
        event: protocol.EngineReport | None = None
        try:
            while not isinstance(event, protocol.Streamed):
                event = self._next()
                if isinstance(event, protocol.EnginePiece):
                    text += event.text
                    yield event.text
        finally:
            if not isinstance(event, protocol.Streamed) and not self.closed:  # the caller stopped early
                self._drain()
        yield _answer(event, None if event.error is not None else text)

    def _drain(self) -> None:
        """Stop the answer that is streaming and read the rest of it; kill the engine if it does not stop."""
        self.stop()
        deadline = time.monotonic() + DRAIN_SECONDS
        for event in self._events:
            if event is not None and event["event"] == "streamed":
                return
            if time.monotonic() > deadline:
                break
        self.close()

    def stop(self) -> None:
        """End the answer that is streaming at its next token."""
        self._send(protocol.Stop())

    def render(self, question: Question) -> str | None:
        """The prompt as the model sees it, None if it cannot be rendered."""
        _ = self.ready
        self._send(protocol.Render(question=protocol.asked(question)))
        while not isinstance(event := self._next(), protocol.Rendered):
            pass
        return event.text

    def _send(self, order: protocol.Load | protocol.AnyOrder) -> None:
        with suppress(BrokenPipeError):  # its last report, which is read next, gives the reason
            self._child.send(msgspec.to_builtins(order, enc_hook=str))

    def _next(self) -> protocol.EngineReport | None:
        """The next report, None if there is none yet.

        Raises:
            RunError: the engine failed or ended unexpectedly.
        """
        event = next(self._events, ENDED)
        if event is None:
            return None
        if event["event"] in ("ended", "failed"):
            raise self._failure(event)
        return msgspec.convert(event, protocol.EngineReport)  # type: ignore[no-any-return]

    def _failure(self, event: Mapping[str, object]) -> RunError:
        failure = child_failure(event, "ms-swift could not load the model", self._child, self.log)
        self.close()
        return failure


def start(log: Path, environment: Mapping[str, str], echo: IO[str] | None = None) -> Child:
    """Start the process of an engine, which then waits for its order; arguments as in `Engine`."""
    command = [sys.executable, "-m", "swift_toolkit.inference.worker"]
    return Child(command, log, environment=environment, echo=echo, listens=True)


def _answer(event: protocol.Answered, text: str | None, share: float = 0.0) -> Answer:
    return Answer(
        text=text,
        finish_reason=event.finish_reason,
        prompt_tokens=event.prompt_tokens,
        completion_tokens=event.completion_tokens,
        seconds=event.seconds,
        share=share,
        error=event.error,
    )
