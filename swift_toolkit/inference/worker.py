"""The process in which ms-swift's inference engine lives: started, fed and read by engine.py.

It reads one JSON object a line from stdin and reports through process.Reporter; everything that ms-swift,
torch and vLLM print goes to the log. The first line is the order: ``{"arguments": [...], "backend": ...,
"adapter": ...}`` with an argument list for ms-swift's own InferArguments parser. Then:

    {"do": "ask", "side": "tuned", "questions": [{"index": 0, "messages": [...], "extra": {...}}, ...]}
    {"do": "stream", "side": "tuned", "question": {...}}
    {"do": "stop"}                         # the answer that is streaming
    {"do": "render", "question": {...}}    # the prompt as the model sees it
    {"do": "generation", ...}              # other settings from here on
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
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from swift_toolkit.dataset.rows.formats import MEDIA
from swift_toolkit.inference.backend import BACKENDS, VLLM
from swift_toolkit.inference.capacity import largest_batch, sequences_that_fit
from swift_toolkit.inference.stop_text import StopText, as_text, before_stop
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

WINDOW = 8
"""How many batches of questions are looked at to put like lengths together."""


def main(report: Reporter) -> int:
    """Serve one engine until stdin ends. Returns the exit status."""
    report.end_with_starter()
    orders = sys.stdin
    order = json.loads(orders.readline())
    report.end_when_a_thread_fails()
    try:
        served = Served(order, report)
        report("ready", **served.description())
        served.serve(orders)
    except (Exception, SystemExit) as error:  # an argument parser ends with SystemExit
        traceback.print_exc()
        report("failed", type=type(error).__name__, message=str(error))
        return 1
    return 0


class Served:
    """One loaded engine and what is asked of it.

    Args:
        order: the first line, see the module.
        report: where answers go.
    """

    def __init__(self, order: dict[str, Any], report: Reporter) -> None:
        self.report = report
        self.backend = BACKENDS[order["backend"]]
        self.swift = inference_api()
        report("loading")
        # a file for results that is named makes no folders beside the model; nothing is written to it
        words = [*with_peft_adapters(order["arguments"]), f"--result_path={os.devnull}"]
        self.engine = self.swift.SwiftInfer(words).infer_engine
        self.engine.max_batch_size = 0  # no limit of its own: batches are made here
        self.template = (
            self.engine.template if hasattr(self.engine, "template") else self.engine.default_template
        )
        self.adapter = as_peft(order["adapter"]) if order.get("adapter") else None
        self.generates: bool = self.template.task_type == "causal_lm"
        self.sees: bool = self.engine.model_meta.is_multimodal
        device = self.engine.model.device.type if self.backend.in_process else "cuda"
        self.largest_batch: int = order.get("largest_batch") or largest_batch(device)
        self.config: Any = None
        self.seed = 0
        self.stopped = threading.Event()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        if self.backend.in_process:
            repair_generation(self.template)
            stop_generating(self.template, lambda: self.stopped.is_set)

    def description(self) -> dict[str, Any]:
        """What the starter wants to know of the loaded engine."""
        meta = self.template.template_meta
        thinks = bool(getattr(meta, "is_thinking", False) or getattr(meta, "non_thinking_prefix", ""))
        return {
            "template": meta.template_type,
            "system": meta.default_system,
            "dtype": str(self.engine.model_info.torch_dtype).removeprefix("torch."),
            "max_model_len": self.engine.max_model_len,
            "thinks": thinks,
            "largest_batch": self.largest_batch,
            "window": WINDOW * self.largest_batch,
            "versions": versions(self.backend.module),
        }

    def serve(self, orders: Any) -> None:
        """Do what the lines of ``orders`` say, until they end."""
        inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(orders, inbox), daemon=True).start()
        pool: list[_Job] = []
        while True:
            while not pool or not inbox.empty():
                order = inbox.get()
                if order is None:
                    return
                pool += self._take(order)
            batch = _next_batch(pool, self._fits)
            for job, answer in self._answers(batch):
                self.report("answer", index=job.index, **answer)

    def _listen(self, orders: Any, inbox: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        for line in orders:
            order = json.loads(line)
            if order["do"] == "stop":
                self.stopped.set()
            else:
                inbox.put(order)
        inbox.put(None)

    def _take(self, order: dict[str, Any]) -> list[_Job]:
        """Carry out an order; what is left to do in batches is returned."""
        if order["do"] == "generation":
            self.seed = order["settings"].pop("seed", 0)
            self.config = self.swift.RequestConfig(**order["settings"])
        elif order["do"] == "render":
            self._render(order["question"])
        elif order["do"] == "stream":
            self.stopped.clear()
            self._in_loop(self._stream(order["question"], order["side"])).result()
        elif self.backend.in_process:
            self.stopped.clear()
            return list(self._measured(order["questions"], order["side"]))
        else:
            for question in order["questions"]:
                self._in_loop(self._one(question, order["side"]))
        return []

    # --- one question ---------------------------------------------------------------------------------------

    def _request(self, question: dict[str, Any]) -> Any:
        """The question as ms-swift takes it, which passes over what a text model cannot see in silence."""
        if not self.sees and any(question["extra"].get(kind) for kind in MEDIA):
            raise ValueError("the model takes text alone, no images, videos or audios")
        return self.swift.InferRequest(messages=question["messages"], **question["extra"])

    def _render(self, question: dict[str, Any]) -> None:
        try:
            tokens = self.template.encode(self._request(question))["input_ids"]
            self.report("rendered", text=self.template.safe_decode(tokens))
        except Exception as error:  # a question that cannot be asked: its own answer will say so
            self.report("rendered", text=None, error=_in_words(error))

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def _asking(self, index: int, side: str, stream: bool = False) -> dict[str, Any]:
        """How the question at ``index`` is put to an engine: the settings and, on vLLM, the adapter."""
        settings = {**vars(self.config), "stream": stream}
        if self.config.temperature != 0 and not self.backend.in_process:
            settings["seed"] = self.seed + index
        asking = {"request_config": self.swift.RequestConfig(**settings)}
        if self.backend.adapter_requests and self.adapter is not None and side != "base":
            asking["adapter_request"] = self.swift.AdapterRequest("tuned", self.adapter)
        if self.backend is VLLM and not stream:
            asking["pre_infer_hook"] = _whole_answers
        return asking

    def _as(self, side: str) -> AbstractContextManager[Any]:
        """The model of pt as tuned, or with its adapter off."""
        if self.backend.in_process and side == "base" and self.adapter is not None:
            off: AbstractContextManager[Any] = self.engine.model.disable_adapter()
            return off
        return nullcontext()

    async def _one(self, question: dict[str, Any], side: str) -> None:
        began = time.monotonic()
        try:
            response = await self.engine.infer_async(
                self._request(question), **self._asking(question["index"], side)
            )
            answer = self._answer(response, time.monotonic() - began)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": _in_words(error), "seconds": time.monotonic() - began}
        self.report("answer", index=question["index"], **answer)

    async def _stream(self, question: dict[str, Any], side: str) -> None:
        began = time.monotonic()
        try:
            self._reseed(question["index"])
            with self._as(side):
                last = await (
                    self._stream_text(question, side)
                    if self.generates
                    else self._stream_class(question, side)
                )
            answer = self._answer(last, time.monotonic() - began)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": _in_words(error), "seconds": time.monotonic() - began}
        self.report("streamed", index=question["index"], **answer)

    async def _stream_text(self, question: dict[str, Any], side: str) -> Any:
        """Report an answer as it is made; returns its last piece."""
        stop, last = StopText(self.config.stop or []), None
        asking = self._asking(question["index"], side, stream=True)
        pieces = await self.engine.infer_async(self._request(question), **asking)
        async for piece in pieces:
            last = piece
            self._report_piece(stop.feed(piece.choices[0].delta.content or ""))
            if self.stopped.is_set() and not self.backend.in_process:  # else it is stopped where it generates
                await pieces.aclose()
                break
        self._report_piece(stop.feed("", last=True))
        return last

    async def _stream_class(self, question: dict[str, Any], side: str) -> Any:
        """Report the class or score that comes at once."""
        whole = await self.engine.infer_async(
            self._request(question), **self._asking(question["index"], side)
        )
        self._report_piece(self._answer(whole, 0)["text"])
        return whole

    def _report_piece(self, text: str | None) -> None:
        if text:
            self.report("piece", text=text)

    # --- batches of pt --------------------------------------------------------------------------------------

    def _measured(self, questions: list[dict[str, Any]], side: str) -> Iterator[_Job]:
        """The questions with the lengths of their prompts; what cannot be rendered is answered with its error."""
        for question in questions:
            began = time.monotonic()
            try:
                length = len(self.template.encode(self._request(question))["input_ids"])
            except Exception as error:
                traceback.print_exc()
                seconds = time.monotonic() - began
                self.report("answer", index=question["index"], error=_in_words(error), seconds=seconds)
                continue
            yield _Job(question, side, length)

    def _fits(self, longest: int) -> int:
        """How many questions can be asked together when the longest prompt has ``longest`` tokens.

        Where the longest prompt leaves no room for ``max_tokens``, or no limit is set, it is asked alone:
        ms-swift gives all that are asked together the room that the longest prompt leaves.
        """
        room, wanted = self.engine.max_model_len, self.config.max_tokens
        if wanted is None or (room and longest + wanted > room):
            return 1
        return sequences_that_fit(self.engine.model, longest + wanted, self.largest_batch)

    def _reseed(self, index: int) -> None:
        """Make the draws of this question (and those asked with it) independent of what was asked before."""
        if self.config.temperature != 0:
            import torch

            torch.manual_seed(self.seed + index)

    def _answers(self, batch: list[_Job]) -> Iterator[tuple[_Job, dict[str, Any]]]:
        """Ask a batch; if it fails, its halves, down to the question that is to blame."""
        import torch

        began = time.monotonic()
        try:
            self._reseed(min(job.index for job in batch))
            with self._as(batch[0].side):
                responses = self.engine.infer(
                    [self._request(job.question) for job in batch], self.config, use_tqdm=False
                )
        except Exception as error:
            traceback.print_exc()
            seconds = time.monotonic() - began
            if len(batch) == 1:
                yield batch[0], {"error": _in_words(error), "seconds": seconds}
                return
            if isinstance(error, torch.OutOfMemoryError):
                self.largest_batch = max(1, len(batch) // 2)
                torch.cuda.empty_cache()
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                yield from self._answers(half)
            return
        seconds = time.monotonic() - began
        for job, response in zip(batch, responses, strict=True):
            yield job, self._answer(response, seconds)

    def _answer(self, response: Any, seconds: float) -> dict[str, Any]:
        """What is reported of an answer; the text of a streamed one was reported before."""
        choice = response.choices[0]
        text = (
            before_stop(as_text(choice.message.content), self.config.stop or [])
            if hasattr(choice, "message")
            else None
        )
        return {
            "text": text,
            "finish_reason": choice.finish_reason,
            "prompt_tokens": response.usage.prompt_tokens,
            "completion_tokens": response.usage.completion_tokens,
            "seconds": seconds,
        }


def _whole_answers(asked: dict[str, Any]) -> dict[str, Any]:
    """Let vLLM hand over an answer once, at its end, and not at every token."""
    from vllm.sampling_params import RequestOutputKind

    asked["generation_config"].output_kind = RequestOutputKind.FINAL_ONLY
    return asked


class _Job:
    """A question in line: its side and the length of its prompt in tokens."""

    def __init__(self, question: dict[str, Any], side: str, length: int) -> None:
        self.question, self.side, self.length = question, side, length
        self.index: int = question["index"]


def _next_batch(pool: list[_Job], fits: Any) -> list[_Job]:
    """Take the longest questions out of ``pool``, as many as ``fits``, all of one side."""
    pool.sort(key=lambda job: (job.side, job.length, -job.index))
    last = pool[-1]
    size = fits(last.length)
    batch = [job for job in pool[-size:] if job.side == last.side]
    del pool[-len(batch) :]
    return batch[::-1]


def _in_words(error: Exception) -> str:
    """An error as one line for a result."""
    first = first_line(str(error))
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


if __name__ == "__main__":
    report = Reporter()
    report.exit(main(report))
elif __name__ == "__mp_main__":  # vLLM's engine, spawned by this process
    end_with_parent()
    refuse_remote_code()
