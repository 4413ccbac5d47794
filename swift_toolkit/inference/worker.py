"""The process that runs ms-swift's inference engine, controlled by engine.py.

It reads orders from stdin, one JSON object per line, and reports through process.Reporter, see protocol.py. All output
of ms-swift, torch and vLLM goes to the log.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import msgspec

from swift_toolkit.dataset.rows.formats import MEDIA
from swift_toolkit.inference import protocol
from swift_toolkit.inference.backend import BACKENDS, VLLM
from swift_toolkit.inference.capacity import largest_batch, sequences_that_fit
from swift_toolkit.inference.exchange import Side
from swift_toolkit.inference.protocol import Answered, EngineQuestion
from swift_toolkit.inference.stop_text import StopText, as_text, before_stop
from swift_toolkit.machine import threads
from swift_toolkit.machine.msswift import (
    inference_api,
    refuse_remote_code,
    repair_generation,
    stop_generating,
)
from swift_toolkit.machine.packages import versions
from swift_toolkit.machine.process import Reporter
from swift_toolkit.machine.spawned import end_with_parent
from swift_toolkit.model.checkpoints.old_adapter import as_peft, with_peft_adapters
from swift_toolkit.problems import first_line

_WINDOW = 8
"""Number of batches considered when grouping questions of similar length."""


def main(report: Reporter) -> int:
    """Serve one engine until stdin ends. Returns the exit status."""
    report.end_with_starter()
    orders = sys.stdin
    order = msgspec.convert(json.loads(orders.readline()), protocol.Load)
    report.end_when_a_thread_fails()
    try:
        served = Served(order, report)
        served.report(served.description())
        served.serve(orders)
    except (Exception, SystemExit) as error:  # an argument parser ends with SystemExit
        traceback.print_exc()
        report("failed", type=type(error).__name__, message=str(error))
        return 1
    return 0


class Served:
    """A loaded engine and its questions.

    Args:
        order: the order with the model to load.
        reporter: receives the answers.
    """

    def __init__(self, order: protocol.Load, reporter: Reporter) -> None:
        self._reporter = reporter
        self.backend = BACKENDS[order.backend]
        if self.backend.in_process:
            threads.spin_while_alone()
        self.swift = inference_api()
        self.report(protocol.EngineLoading())
        # with a result file named, ms-swift creates no directories next to the model; nothing is written to it
        words = [*with_peft_adapters(order.arguments), f"--result_path={os.devnull}"]
        self.engine = self.swift.SwiftInfer(words).infer_engine
        self.engine.max_batch_size = 0  # no limit in the engine: batches are made here
        self.template = (
            self.engine.template if hasattr(self.engine, "template") else self.engine.default_template
        )
        self.adapter = as_peft(order.adapter) if order.adapter else None
        self.generates: bool = self.template.task_type == "causal_lm"
        self.sees: bool = self.engine.model_meta.is_multimodal
        device = self.engine.model.device.type if self.backend.in_process else "cuda"
        self.largest_batch: int = order.largest_batch or largest_batch(device)
        self.config: Any = None
        self.seed = 0
        self.stopped = threading.Event()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        if self.backend.in_process:
            repair_generation(self.template)
            stop_generating(self.template, lambda: self.stopped.is_set)

    def report(self, report: protocol.EngineReport) -> None:
        """Send a report to the parent process."""
        self._reporter(**msgspec.to_builtins(report, enc_hook=str))

    def description(self) -> protocol.EngineReady:
        """The description of the loaded engine for the parent process."""
        meta = self.template.template_meta
        thinks = bool(getattr(meta, "is_thinking", False) or getattr(meta, "non_thinking_prefix", ""))
        return protocol.EngineReady(
            template=meta.template_type,
            system=meta.default_system,
            dtype=str(self.engine.model_info.torch_dtype).removeprefix("torch."),
            max_model_len=self.engine.max_model_len,
            thinks=thinks,
            largest_batch=self.largest_batch,
            window=_WINDOW * self.largest_batch,
            versions=versions(self.backend.module),
        )

    def serve(self, orders: Any) -> None:
        """Execute the orders in the lines of ``orders`` until they end."""
        inbox: queue.SimpleQueue[protocol.AnyOrder | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(orders, inbox), daemon=True).start()
        pool: list[_Job] = []
        while True:
            while not pool or not inbox.empty():
                order = inbox.get()
                if order is None:
                    return
                pool += self._take(order)
            batch = _next_batch(pool, self._fits)
            for answer in self._answers(batch):
                self.report(answer)

    def _listen(self, orders: Any, inbox: queue.SimpleQueue[protocol.AnyOrder | None]) -> None:
        for line in orders:
            order = msgspec.convert(json.loads(line), protocol.AnyOrder)
            if isinstance(order, protocol.Stop):
                self.stopped.set()
            else:
                inbox.put(order)
        inbox.put(None)

    def _take(self, order: protocol.AnyOrder) -> list[_Job]:
        """Execute an order; return the questions that remain to be asked in batches."""
        if isinstance(order, protocol.Settings):
            self.seed = order.generation.seed or 0
            given = order.generation.given()
            self.config = self.swift.RequestConfig(**{name: given[name] for name in given if name != "seed"})
        elif isinstance(order, protocol.Render):
            self._render(order.question)
        elif isinstance(order, protocol.Stream):
            self.stopped.clear()
            self._in_loop(self._stream(order.question, order.side)).result()
        elif isinstance(order, protocol.Ask):
            return self._ask(order)
        return []

    def _ask(self, order: protocol.Ask) -> list[_Job]:
        if self.backend.in_process:
            self.stopped.clear()
            return list(self._measured(order.questions, order.side))
        for question in order.questions:
            self._in_loop(self._one(question, order.side))
        return []

    # --- one question ---------------------------------------------------------------------------------------

    def _request(self, question: EngineQuestion) -> Any:
        """The question in ms-swift's format; refuse media for a text model, which ms-swift would silently ignore."""
        if not self.sees and any(question.extra.get(kind) for kind in MEDIA):
            raise ValueError("the model accepts only text, no images, video or audio")
        return self.swift.InferRequest(messages=list(question.messages), **question.extra)

    def _render(self, question: EngineQuestion) -> None:
        try:
            tokens = self.template.encode(self._request(question))["input_ids"]
            self.report(protocol.Rendered(text=self.template.safe_decode(tokens)))
        except Exception:  # the answer to a question that cannot be rendered will contain the error
            self.report(protocol.Rendered(text=None))

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def _asking(self, index: int, side: Side, stream: bool = False) -> dict[str, Any]:
        """The arguments to ask the question at ``index``: the settings and, on vLLM, the adapter."""
        settings = {**vars(self.config), "stream": stream}
        if self.config.temperature != 0 and not self.backend.in_process:
            settings["seed"] = self.seed + index
        asking = {"request_config": self.swift.RequestConfig(**settings)}
        if self.backend.adapter_requests and self.adapter is not None and side != "base":
            asking["adapter_request"] = self.swift.AdapterRequest("tuned", self.adapter)
        if self.backend is VLLM and not stream:
            asking["pre_infer_hook"] = _whole_answers
        return asking

    def _as(self, side: Side) -> AbstractContextManager[Any]:
        """A context in which pt's model runs as tuned, or with its adapter off."""
        if self.backend.in_process and side == "base" and self.adapter is not None:
            off: AbstractContextManager[Any] = self.engine.model.disable_adapter()
            return off
        return nullcontext()

    async def _one(self, question: EngineQuestion, side: Side) -> None:
        began = time.monotonic()
        try:
            asking = self._asking(question.index, side)
            response = await self.engine.infer_async(self._request(question), **asking)
            answer = self._answer(question, response, began)
        except Exception as error:
            answer = _failed(question, error, began)
        self.report(answer)

    async def _stream(self, question: EngineQuestion, side: Side) -> None:
        began = time.monotonic()
        try:
            self._reseed(question.index)
            stream = self._stream_text if self.generates else self._stream_class
            with self._as(side):
                answer = self._answer(question, await stream(question, side), began)
        except Exception as error:
            answer = _failed(question, error, began)
        self.report(protocol.Streamed(**msgspec.structs.asdict(answer)))

    async def _stream_text(self, question: EngineQuestion, side: Side) -> Any:
        """Report an answer as it is generated; returns its last piece."""
        stop, last = StopText(self.config.stop or []), None
        asking = self._asking(question.index, side, stream=True)
        pieces = await self.engine.infer_async(self._request(question), **asking)
        async for piece in pieces:
            last = piece
            self._report_piece(stop.feed(piece.choices[0].delta.content or ""))
            if self.stopped.is_set() and not self.backend.in_process:  # in-process generation stops by itself
                await pieces.aclose()
                break
        self._report_piece(stop.feed("", last=True))
        return last

    async def _stream_class(self, question: EngineQuestion, side: Side) -> Any:
        """Report a class or score, which comes in one piece."""
        asking = self._asking(question.index, side)
        whole = await self.engine.infer_async(self._request(question), **asking)
        self._report_piece(self._text(whole.choices[0]))
        return whole

    def _report_piece(self, text: str | None) -> None:
        if text:
            self.report(protocol.EnginePiece(text=text))

    # --- batches of pt --------------------------------------------------------------------------------------

    def _measured(self, questions: Sequence[EngineQuestion], side: Side) -> Iterator[_Job]:
        """Yield the questions with their prompt lengths; answer those that cannot be rendered with the error."""
        for question in questions:
            began = time.monotonic()
            try:
                length = len(self.template.encode(self._request(question))["input_ids"])
            except Exception as error:
                self.report(_failed(question, error, began))
                continue
            yield _Job(question, side, length)

    def _fits(self, longest: int) -> int:
        """The number of questions that can be asked together when the longest prompt has ``longest`` tokens.

        If the longest prompt leaves less context than ``max_tokens``, or no limit is set, it is asked alone: ms-swift
        limits all answers of a batch to the context that the longest prompt leaves.
        """
        room, wanted = self.engine.max_model_len, self.config.max_tokens
        if wanted is None or (room and longest + wanted > room):
            return 1
        return sequences_that_fit(self.engine.model, longest + wanted, self.largest_batch)

    def _reseed(self, index: int) -> None:
        """Make the sampling of this question (and its batch) independent of earlier questions."""
        if self.config.temperature != 0:
            import torch

            torch.manual_seed(self.seed + index)

    def _answers(self, batch: Sequence[_Job]) -> Iterator[Answered]:
        """Ask a batch; if it fails, ask its halves, down to the question that causes the failure."""
        import torch

        began = time.monotonic()
        try:
            self._reseed(min(job.question.index for job in batch))
            with self._as(batch[0].side):
                requests = [self._request(job.question) for job in batch]
                responses = self.engine.infer(requests, self.config, use_tqdm=False)
        except Exception as error:
            failed = _failed(batch[0].question, error, began)
            if len(batch) == 1:
                yield failed
                return
            if isinstance(error, torch.OutOfMemoryError):
                self.largest_batch = max(1, len(batch) // 2)
                torch.cuda.empty_cache()
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                yield from self._answers(half)
            return
        for job, response in zip(batch, responses, strict=True):
            yield self._answer(job.question, response, began)

    def _answer(self, question: EngineQuestion, response: Any, began: float) -> Answered:
        """The report of an answer; the text of a streamed answer has already been reported."""
        choice = response.choices[0]
        return Answered(
            index=question.index,
            text=self._text(choice) if hasattr(choice, "message") else None,
            finish_reason=choice.finish_reason,
            prompt_tokens=response.usage.prompt_tokens,
            completion_tokens=response.usage.completion_tokens,
            seconds=time.monotonic() - began,
        )

    def _text(self, choice: Any) -> str:
        return before_stop(as_text(choice.message.content), self.config.stop or [])


def _whole_answers(asked: dict[str, Any]) -> dict[str, Any]:
    """Make vLLM return an answer once, when it is complete, instead of at every token."""
    from vllm.sampling_params import RequestOutputKind

    asked["generation_config"].output_kind = RequestOutputKind.FINAL_ONLY
    return asked


@dataclass(frozen=True)
class _Job:
    """A question waiting for a batch: its side, and the length of its prompt in tokens."""

    question: EngineQuestion
    side: Side
    length: int


def _next_batch(pool: list[_Job], fits: Callable[[int], int]) -> list[_Job]:
    """Remove the longest questions of one side from ``pool``, as many as ``fits`` allows, and return them."""
    pool.sort(key=lambda job: (job.side, job.length, -job.question.index))
    last = pool[-1]
    size = fits(last.length)
    batch = [job for job in pool[-size:] if job.side == last.side]
    del pool[-len(batch) :]
    return batch[::-1]


def _failed(question: EngineQuestion, error: Exception, began: float) -> Answered:
    """The answer to a failed question: the error in one line; the full error goes to the log."""
    traceback.print_exception(error)
    first, kind = first_line(str(error)), type(error).__name__
    said = f"{kind}: {first}" if first else kind
    return Answered(index=question.index, error=said, seconds=time.monotonic() - began)


if __name__ == "__main__":
    report = Reporter()
    report.exit(main(report))
elif __name__ == "__mp_main__":  # vLLM's engine, spawned by this process
    end_with_parent()
    refuse_remote_code()
