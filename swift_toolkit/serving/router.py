"""Passes checked requests on to the model they name, and loads adapters at run time."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from swift_toolkit.inference.backend import BACKENDS
from swift_toolkit.machine.msswift import repair_generation, serving_api
from swift_toolkit.model.old_adapter import as_peft
from swift_toolkit.problems import RequestError, first_line
from swift_toolkit.serving import models
from swift_toolkit.serving.gateway import Exchange, exchange
from swift_toolkit.serving.models import ServedModel
from swift_toolkit.serving.order import Order
from swift_toolkit.serving.patches import Batches, batch_size
from swift_toolkit.serving.request import ApiError

TEMPLATE_TOKENS = 1024
"""More tokens than a chat format and its system prompt add to a short text."""


class Router:
    """Passes checked requests on to the engine: under the right adapter, with its system prompt, and counted.

    Args:
        server: ms-swift's server; its ``infer_async`` is replaced by `ask`.
        order: what is served.
    """

    def __init__(self, server: Any, order: Order) -> None:
        self.swift = serving_api()
        self.server, self.engine = server, server.infer_engine
        self.backend = BACKENDS[order.backend]
        served = [replace(one, path=as_peft(one.path)) for one in order.models]
        self.models = {one.name: one for one in served}
        self.limits = order.limits
        self.first = next(iter(self.models))
        self.running: Counter[str] = Counter()  # requests on their way, see Gateway
        self._changing = asyncio.Lock()
        self._aliases = {name: f"adapter{index}" for index, name in enumerate(self.models)}
        self._made = len(self.models)
        server.infer_async = self.ask
        if self.backend.in_process:
            self.engine.max_batch_size = order.max_batch_size or batch_size(self.engine, self.limits)
            if self.engine.task_type != "causal_lm" and len(self.models) > 1:
                self.engine.max_batch_size = 1  # ms-swift gives PEFT one adapter name for a whole batch
            repair_generation(server.template)
            self._batches = Batches(self.engine, server.template)

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
            if self.backend.in_process:
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
        if not self.backend.in_process or room is None or request_config.max_tokens is None:
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
        if not models.NAME.fullmatch(name):
            raise ApiError(400, "lora_name may only have letters, digits and . _ : / -.", "lora_name")
        async with self._changing:
            if name in self.models:
                raise ApiError(400, f"There is a model {name} already.", "lora_name")
            most = self.backend.most_adapters(self.engine)
            if most is not None and len(self.models) > most:  # the base, which is one of them, has no slot
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
            checkpoint = models.read_adapter(path)
        except RequestError as error:
            raise ApiError(400, str(error), "lora_path") from None
        highest = self.backend.highest_rank(self.server.args)
        if not self.backend.serves_adapter(checkpoint):
            raise ApiError(400, f"vLLM takes plain LoRA only, which {path} is not.", "lora_path")
        if highest is not None and (checkpoint.lora_rank or 0) > highest:  # vLLM's engine would die of it
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
            if not self.backend.in_process:
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
    name, text = type(error).__name__, first_line(str(error))
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
