"""The door to ms-swift's server: the process in which one deployment runs.

Started by deploy_model.py through process.py, which writes the order, the API key included, to its stdin. It builds
ms-swift's own ``SwiftDeploy`` from an argument list, puts `gateway.Gateway` in front of its FastAPI app and serves it
with uvicorn on a socket that it has held since before anything was loaded. SIGTERM lets running answers end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from swift_toolkit.inference import plan as inference_plan
from swift_toolkit.inference.worker import largest_batch, sequences_that_fit
from swift_toolkit.machine.process import Reporter, end_with_parent
from swift_toolkit.model.old_adapter import as_peft, with_peft_adapters
from swift_toolkit.problems import RequestError
from swift_toolkit.serving import plan as serving_plan
from swift_toolkit.serving.gateway import Action, Exchange, Gateway, Policy, exchange
from swift_toolkit.serving.metrics import Metrics
from swift_toolkit.serving.plan import Limits, ServedModel
from swift_toolkit.serving.request import ApiError

TEMPLATE_TOKENS = 1024
"""More tokens than a chat format and its system prompt add to a short text."""


def main(report: Reporter) -> int:
    """Serve what the first line of stdin orders. Returns the exit status."""
    report.end_with_starter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter decides what Ctrl-C means
    order = json.loads(sys.stdin.readline())
    os.environ.pop(serving_plan.KEY_VARIABLE, None)  # engines start processes of their own
    if not order["log_requests"]:
        os.environ.pop("SWIFT_DEBUG", None)  # makes ms-swift log prompts
    _end_when_a_thread_fails(report)
    try:
        listening = serving_plan.listening_socket(order["host"], order["port"])
        report("importing")
        server = _make_server(order, report)
        desk = Desk(server, order)
        asyncio.run(_serve(desk, order, listening, report))
    except (Exception, SystemExit) as error:  # an argument parser ends with SystemExit
        traceback.print_exc()
        report("failed", type=type(error).__name__, message=str(error))
        return 1
    return 0


def _end_when_a_thread_fails(report: Reporter) -> None:
    """A thread of the engine that dies leaves requests unanswered for good: end, and say so."""

    def ended(failure: threading.ExceptHookArgs) -> None:
        traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
        report("failed", type=failure.exc_type.__name__, message=str(failure.exc_value))
        report.exit(1)

    threading.excepthook = ended


def _swift() -> SimpleNamespace:
    """What is used of ms-swift, under its names of 4.x."""
    try:
        from swift.llm import AdapterRequest, DeployArguments, InferRequest, RequestConfig  # ms-swift 3
        from swift.llm.infer.deploy import SwiftDeploy
    except ModuleNotFoundError:
        from swift import AdapterRequest, DeployArguments, InferRequest, RequestConfig
        from swift.pipelines.infer.deploy import SwiftDeploy
    from swift.utils import parse_args

    return SimpleNamespace(
        AdapterRequest=AdapterRequest,
        DeployArguments=DeployArguments,
        InferRequest=InferRequest,
        RequestConfig=RequestConfig,
        SwiftDeploy=SwiftDeploy,
        parse_args=parse_args,
    )


def _make_server(order: Mapping[str, Any], report: Reporter) -> Any:
    """ms-swift's server with its engine loaded, not serving yet."""
    # a second line behind api_request; of nothing but a folder that cannot be there, no file is allowed
    os.environ["SWIFT_MEDIA_ALLOWED_DIRS"] = order["limits"]["media_dir"] or f"{os.devnull}/none"
    swift = _swift()
    report("loading")
    # a file for results that is named makes no folders beside the model; nothing is written to it
    words = [*with_peft_adapters(order["arguments"]), f"--result_path={os.devnull}"]
    arguments, unknown = swift.parse_args(swift.DeployArguments, words)
    if unknown:
        raise ValueError(f"ms-swift does not know {' '.join(unknown)}")
    if arguments.adapter_mapping:
        arguments.system = order["system"]  # read from the first adapter, it would be every model's
    arguments.result_path = None
    if order["backend"] == "vllm":
        _set_lora_slots(arguments, order)
    server = swift.SwiftDeploy(arguments)
    server.jsonl_writer = None
    server.infer_engine.strict = False  # a request that cannot be rendered fails alone, not its whole batch
    return server


RUNTIME_SLOTS = 4
"""How many adapters more than at the start vLLM can hold ready where they may be loaded while serving."""


def _set_lora_slots(arguments: Any, order: Mapping[str, Any]) -> None:
    """Give vLLM room for the adapters that may come, and one slot that stays empty.

    On a CPU its kernels (``vllm/lora/ops/torch_ops/lora_ops.py``) index the adapters with -1 for a request without
    one: in a batch with others, the base model would answer as the adapter in the last slot. Slots are filled from
    the first on.
    """
    make = arguments.get_vllm_engine_kwargs
    slots = len(arguments.adapter_mapping) + 1 + (RUNTIME_SLOTS if order["allow_runtime_lora"] else 0)
    arguments.get_vllm_engine_kwargs = lambda: {**make(), "max_loras": slots}


class Desk:
    """Takes checked requests to the engine: under the right adapter, with its system prompt, and counted.

    Args:
        server: ms-swift's server; its ``infer_async`` is replaced by `ask`.
        order: see `Deployment.order`.
    """

    def __init__(self, server: Any, order: Mapping[str, Any]) -> None:
        self.swift = _swift()
        self.server, self.engine = server, server.infer_engine
        self.backend: str = order["backend"]
        served = [ServedModel(**{**one, "path": as_peft(one["path"])}) for one in order["models"]]
        self.models = {one.name: one for one in served}
        self.limits = Limits(**order["limits"])
        self.first = next(iter(self.models))
        self.running: Counter[str] = Counter()  # requests on their way, see Gateway
        self._changing = asyncio.Lock()
        self._aliases = {name: f"adapter{index}" for index, name in enumerate(self.models)}
        self._made = len(self.models)
        server.infer_async = self.ask
        if self.backend == "pt":
            self.engine.max_batch_size = order["max_batch_size"] or _batch_size(self.engine, self.limits)
            if self.engine.task_type != "causal_lm" and len(self.models) > 1:
                self.engine.max_batch_size = 1  # ms-swift gives PEFT one adapter name for a whole batch
            _mend_generation(server.template)
            self._batches = _Batches(self.engine, server.template)

    async def ask(
        self, infer_request: Any, request_config: Any, *, adapter_request: Any = None, **kwargs: Any
    ) -> Any:
        """What ms-swift's server calls instead of its engine's own ``infer_async``."""
        name = adapter_request.name if adapter_request is not None else self.first
        one = exchange.get(Exchange(""))
        try:
            model = self.models.get(name)
            if model is None:  # it was unloaded a moment ago
                raise ApiError(404, f"There is no model {name} here.", "model", "model_not_found")
            self._set_system(infer_request, model)
            await self._make_room(infer_request, request_config)
            if model.kind == "lora":
                kwargs["adapter_request"] = self.swift.AdapterRequest(self._aliases[name], model.path)
                request_config.adapter = self._aliases[name]  # else ms-swift 3 batches it with other adapters
            if self.backend == "pt":
                self._batches.came = time.monotonic()
            answer = await self.engine.infer_async(infer_request, request_config, **kwargs)
            if not request_config.stream:
                return _noted(answer, name, one)
            pieces = aiter(answer)
            first = _noted(await anext(pieces), name, one)  # what is wrong shows before the response begins
            return self._stream(first, pieces, infer_request, name, one)
        except asyncio.CancelledError:
            infer_request.abandoned = True
            raise
        except Exception as error:
            one.error = _as_api_error(error)
            raise

    async def _stream(
        self, first: Any, pieces: AsyncIterator[Any], infer_request: Any, name: str, one: Exchange
    ) -> AsyncIterator[Any]:
        try:
            one.first_token = one.seconds
            yield first
            async for piece in pieces:
                yield _noted(piece, name, one)
        except Exception as error:
            one.error = _as_api_error(error)
            raise
        finally:
            infer_request.abandoned = True  # the client has gone, or has its answer

    def _set_system(self, infer_request: Any, model: ServedModel) -> None:
        if model.system and infer_request.messages[0]["role"] != "system":
            infer_request.messages.insert(0, {"role": "system", "content": model.system})

    async def _make_room(self, infer_request: Any, request_config: Any) -> None:
        """Shorten the answer to what the context leaves.

        Of a batch ms-swift shortens all answers to what the longest prompt leaves, and fails all if that is
        nothing; so what cannot have its whole answer must not share a batch with others. Only prompts that may be
        too long are rendered for this: a token is at least a byte.
        """
        room = self.engine.max_model_len
        if self.backend != "pt" or room is None or request_config.max_tokens is None:
            return
        text = json.dumps(infer_request.messages, ensure_ascii=False, default=str)
        more = any(getattr(infer_request, name) for name in ("images", "audios", "videos", "tools"))
        if not more and len(text.encode()) + TEMPLATE_TOKENS + request_config.max_tokens <= room:
            return
        encoded = await asyncio.to_thread(self.server.template.encode, infer_request)
        length = len(encoded["input_ids"])
        if length >= room:
            raise _too_long(f"The prompt has {length} tokens; prompt and answer together may have {room}.")
        request_config.max_tokens = min(request_config.max_tokens, room - length)

    async def warm_up(self) -> None:
        """Ask every model for one token: adapters are loaded now, and what is broken is found out now."""
        for name in self.models:
            await self._touch(name)

    async def _touch(self, name: str, **kwargs: Any) -> None:
        model = self.models[name]
        request = self.swift.InferRequest(messages=[{"role": "user", "content": "Hi"}])
        config = self.swift.RequestConfig(max_tokens=1, temperature=0)
        adapter = self.swift.AdapterRequest(name, model.path) if model.kind == "lora" else None
        await self.ask(request, config, adapter_request=adapter, **kwargs)

    # --- adapters while serving -----------------------------------------------------------------------------

    async def load(self, body: Mapping[str, Any]) -> str:
        """``POST /v1/load_lora_adapter``, with ``lora_name`` and ``lora_path``."""
        name, path = _texts(body, "lora_name", "lora_path")
        if not serving_plan.NAME.fullmatch(name):
            raise ApiError(400, "lora_name may have letters, digits and . _ : / - only.", "lora_name")
        async with self._changing:
            if name in self.models:
                raise ApiError(400, f"There is a model {name} already.", "lora_name")
            if self.backend == "vllm" and len(self.models) >= self.engine.max_loras:  # the base has no slot
                raise ApiError(400, f"There is no room for more than {len(self.models) - 1} adapters.")
            model = await asyncio.to_thread(self._adapter, name, path)
            self.models[name], self._aliases[name] = model, f"adapter{self._made}"
            self._made += 1
            try:
                await self._touch(name)
            except Exception as error:
                del self.models[name]
                raise replace(_as_api_error(error), param="lora_path") from error
            self.server.args.adapter_mapping[name] = model.path
        return f"Success: LoRA adapter '{name}' added successfully."

    def _adapter(self, name: str, path: str) -> ServedModel:
        try:
            checkpoint = serving_plan.read_adapter(path)
        except RequestError as error:
            raise ApiError(400, str(error), "lora_path") from None
        highest = self.server.args.vllm_max_lora_rank
        if self.backend == "vllm" and not inference_plan.serves_adapter("vllm", checkpoint):
            raise ApiError(400, f"vLLM takes plain LoRA only, which {path} is not.", "lora_path")
        if self.backend == "vllm" and (checkpoint.lora_rank or 0) > highest:  # vLLM's engine would die of it
            what = f"{path} has rank {checkpoint.lora_rank}, and the server was started for {highest} at most"
            raise ApiError(400, f"{what}: start it with --vllm_max_lora_rank.", "lora_path")
        base = self.models[self.first]
        if os.path.realpath(str(checkpoint.base)) != os.path.realpath(base.path):
            raise ApiError(
                400, f"{path} was trained from {checkpoint.base}, not from {base.path}.", "lora_path"
            )
        peft = as_peft(str(checkpoint.path))
        return ServedModel(name, "lora", peft, checkpoint.base, checkpoint.system, checkpoint.lora_rank)

    async def unload(self, body: Mapping[str, Any]) -> str:
        """``POST /v1/unload_lora_adapter``, with ``lora_name``; answers on their way are finished first."""
        (name,) = _texts(body, "lora_name")
        async with self._changing:
            if name == self.first or name not in self.models:
                raise ApiError(404, f"There is no adapter {name} here.", "lora_name")
            self.server.args.adapter_mapping.pop(name)
            del self.models[name]
            while self.running[name]:
                await asyncio.sleep(0.05)
            alias = self._aliases.pop(name)
            if self.backend == "vllm":
                await self.engine.engine.remove_lora(self.engine._adapters_pool[alias].lora_int_id)
            else:
                await self._touch(self.first, pre_infer_hook=self._dropping(alias))
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _dropping(self, alias: str) -> Any:
        """A hook that drops the adapter's weights in the thread that generates, between two batches."""

        def drop(kwargs: dict[str, Any]) -> dict[str, Any]:
            if self.engine._adapters_pool.pop(alias, None) is not None:
                self.engine.model.delete_adapter(alias)
            return kwargs

        return drop


def _texts(body: Mapping[str, Any], *names: str) -> list[str]:
    for name in names:
        if not isinstance(body.get(name), str) or not body[name]:
            raise ApiError(400, f"{name} is missing.", name)
    return [body[name] for name in names]


def _noted(answer: Any, name: str, one: Exchange) -> Any:
    """``answer`` under the name that was asked for; its tokens are noted.

    Raises:
        Exception: ``answer`` is one, as ms-swift 3 hands back what it could not render.
    """
    if isinstance(answer, Exception):
        raise answer
    answer.model = name
    usage = getattr(answer, "usage", None)
    if usage is not None:
        one.prompt_tokens, one.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    return answer


def _too_long(message: str) -> ApiError:
    return ApiError(400, message, "messages", "context_length_exceeded")


_OF_THE_REQUEST = (ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError)
"""What ms-swift raises when a request cannot be rendered; generating raises RuntimeErrors."""


def _as_api_error(error: Exception) -> ApiError:
    """What the engine says, as a client should see it."""
    if isinstance(error, ApiError):
        return error
    name, text = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
    if name == "MaxLengthError" or "leaves no room" in text or "maximum context length" in text:
        return _too_long(f"The prompt is too long: {text}")
    if name == "UnidentifiedImageError":
        return ApiError(
            400, "A picture of the request is in no format that is known, or not whole.", "messages"
        )
    if name == "EngineDeadError":
        return ApiError(503, "The engine has died, and the server ends.")
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        return ApiError(503, "The server has not enough memory for this request.")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, _OF_THE_REQUEST) or "TemplateError" in kinds:  # jinja2's, of a chat template
        return ApiError(400, text or name)
    return ApiError(500, f"The model failed to answer ({name}); the server's log says more.")


# --- the engine pt ------------------------------------------------------------------------------------------


def _batch_size(engine: Any, limits: Limits) -> int:
    """How many requests pt answers together, each as long as a whole context."""
    tokens = min(engine.max_model_len or 8192, 2 * limits.max_tokens)
    return sequences_that_fit(engine.model, tokens, largest_batch(engine.model.device.type))


GATHER_SECONDS = 0.004
"""How long nothing more must have come before a batch begins; ms-swift itself waits 5 ms on average."""

GATHER_AT_MOST = 0.05
"""How long a request may wait for others."""


class _Batches:
    """Makes ms-swift answer together what comes together, and not answer those who have gone.

    Its worker looks every 10 ms and begins with what is there: of 32 requests it may see three, and the others wait
    until those are answered. An answer that nobody waits for any more it would write to the end.

    Args:
        engine: whose worker takes requests from ``_queue`` into ``_task_pool`` and from there a batch.
        template: what generates for it.
    """

    def __init__(self, engine: Any, template: Any) -> None:
        self.came = 0.0  # when the last request came
        self._engine = engine
        self._batch: list[Any] = []
        self._fetch, self._prepare = engine._fetch_infer_requests, template.prepare_generate_kwargs
        engine._fetch_infer_requests, template.prepare_generate_kwargs = self._next, self._stoppable

    def _next(self) -> Any:
        waiting = self._engine._queue
        with waiting.not_empty:
            while not self._engine._task_pool and not waiting._qsize():
                waiting.not_empty.wait()
        deadline = time.monotonic() + GATHER_AT_MOST
        while (rest := min(self.came + GATHER_SECONDS, deadline) - time.monotonic()) > 0:
            time.sleep(rest)
        kwargs, queues = self._fetch()
        wanted = [
            (one, queue)
            for one, queue in zip(kwargs["infer_requests"], queues, strict=True)
            if not _gone(one)
        ]
        self._batch = [one for one, _ in wanted]
        return ({**kwargs, "infer_requests": self._batch}, [queue for _, queue in wanted]) if wanted else None

    def _stoppable(self, generate_kwargs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        import torch

        batch, prepared = self._batch, self._prepare(generate_kwargs, **kwargs)
        prepared["stopping_criteria"].append(
            lambda ids, scores, **_: torch.full((len(ids),), all(map(_gone, batch)), device=ids.device)
        )
        return dict(prepared)


def _gone(infer_request: Any) -> bool:
    return getattr(infer_request, "abandoned", False)


def _mend_generation(template: Any) -> None:
    """Make ms-swift generate for batches under an adapter, and end a stream whose generation failed.

    It names the adapter once for a whole batch, where PEFT wants it for every sequence; and of a generation that
    failed it would wait for tokens for ever.
    """
    generate = template.generate

    def mended(model: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("adapter_names"):
            config = kwargs["generation_config"]
            times = len(kwargs["attention_mask"]) * max(config.num_return_sequences, config.num_beams)
            kwargs["adapter_names"] = kwargs["adapter_names"] * times
        try:
            return generate(model, *args, **kwargs)
        except Exception as error:
            if "streamer" not in kwargs:
                raise
            traceback.print_exc()
            kwargs["streamer"].put(_Failed(error))
            return None

    template.generate = mended


class _Failed:
    """Stands in the stream where tokens should be, and raises when it is looked at."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @property
    def ndim(self) -> int:
        """Of tokens, 1 or 2."""
        raise self._error


# --- HTTP ---------------------------------------------------------------------------------------------------


async def _serve(desk: Desk, order: Mapping[str, Any], listening: Any, report: Reporter) -> None:
    """Serve until SIGTERM, then let running answers end."""
    import uvicorn

    await desk.warm_up()
    page = Path(__file__).with_name("chat_page.html").read_bytes() if order["chat"] else None
    policy = Policy(order["key"], desk.limits, order["default_tokens"], page)
    actions: dict[str, Action] = {}
    if order["allow_runtime_lora"]:
        actions = {"/v1/load_lora_adapter": desk.load, "/v1/unload_lora_adapter": desk.unload}
    gateway = Gateway(desk.server.app, policy, desk.models, desk.running, Metrics(_log), actions)

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            batch = getattr(desk.engine, "max_batch_size", None) if desk.backend == "pt" else None
            report("ready", port=listening.getsockname()[1], pid=os.getpid(), max_batch_size=batch)

        def capture_signals(self) -> Any:  # uvicorn would die of the signal after a clean end
            return nullcontext()

    server = Server(
        uvicorn.Config(
            gateway,
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            ssl_certfile=order["ssl_certfile"],
            ssl_keyfile=order["ssl_keyfile"],
            timeout_graceful_shutdown=order["drain_seconds"],
        )
    )

    def stop() -> None:
        server.should_exit = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    serving = asyncio.create_task(server.serve([listening]))
    while not serving.done():
        await asyncio.wait([serving], timeout=1)
        if desk.backend == "vllm" and desk.engine.engine.errored and not server.should_exit:
            raise RuntimeError("the engine of vLLM has died")
    serving.result()
    # the engine's thread, still at an answer that was cut short, finds no loop any more
    threading.excepthook = lambda _: None


def _log(one: Exchange) -> None:
    """One line for a request: never what it said."""
    tokens = f" {one.prompt_tokens}+{one.completion_tokens} tokens" if one.completion_tokens else ""
    what = f"{one.status} {one.path} {one.model or '-'}"
    print(f"{time.strftime('%H:%M:%S')} {what} {one.seconds:.3f} s{tokens}", flush=True)


if __name__ == "__main__":
    report = Reporter()
    report.exit(main(report))
elif __name__ == "__mp_main__":  # vLLM's engine, spawned by this process
    end_with_parent()
