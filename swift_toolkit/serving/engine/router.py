"""Passes checked requests to the model they name."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift_toolkit.inference.backend import BACKENDS
from swift_toolkit.inference.capacity import largest_batch, sequences_that_fit
from swift_toolkit.inference.stop_text import StopText
from swift_toolkit.machine import msswift
from swift_toolkit.model.checkpoints.old_adapter import as_peft
from swift_toolkit.serving.api.answer import Form, Usage, usage_of
from swift_toolkit.serving.api.fields import EMBEDDINGS
from swift_toolkit.serving.api.media import MediaStore
from swift_toolkit.serving.api.request import ApiError, ApiRequest, Conversation, Facts, Sampling
from swift_toolkit.serving.api.schema import AnswerBody, AnswerPiece
from swift_toolkit.serving.engine.batches import Batches
from swift_toolkit.serving.gateway import Exchange
from swift_toolkit.serving.models import ServedModel
from swift_toolkit.serving.order import ServingOrder

TEMPLATE_TOKENS = 1024
"""Upper bound of the tokens that a chat format and its system prompt add to a short text."""


class Router:
    """Passes checked requests to the engine with the right adapter and system prompt, and counts them.

    Args:
        server: ms-swift's SwiftDeploy, whose engine answers.
        order: the order of the server.
    """

    def __init__(self, server: Any, order: ServingOrder) -> None:
        self.api = msswift.serving_api()
        self.server, self.engine = server, server.infer_engine
        self.backend = BACKENDS[order.backend]
        served = [replace(one, path=as_peft(one.path)) for one in order.models]
        self.loaded = {one.name: one for one in served}
        self.aliases = {name: f"adapter{index}" for index, name in enumerate(self.loaded)}
        self.first = served[0].name
        self.running: Counter[str] = Counter()
        self.limits = order.limits
        self._media = MediaStore(Path(order.media_folder), order.limits)
        self._log_requests = order.log_requests
        msswift.keep_first_space()
        msswift.ignore_file_tags(server.template)
        msswift.encode_plain_texts(server.template)
        if self.backend.in_process:
            self._prepare_pt(order)
        self.facts = self._facts(order)

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The models that clients can request, by name."""
        return {name: one for name, one in self.loaded.items() if one.offered}

    def _prepare_pt(self, order: ServingOrder) -> None:
        tokens = min(self.engine.max_model_len or 8192, 2 * order.limits.max_tokens)
        model = self.engine.model
        self.engine.max_batch_size = order.max_batch_size or sequences_that_fit(
            model, tokens, largest_batch(model.device.type)
        )
        if self.engine.task_type != "causal_lm" and len(self.loaded) > 1:
            self.engine.max_batch_size = 1  # ms-swift gives PEFT one adapter name for a whole batch
        msswift.repair_generation(self.server.template)
        self._batches = Batches(self.engine, self.server.template)

    def _facts(self, order: ServingOrder) -> Facts:
        length, longest = self.engine.max_model_len, msswift.longest_token(self.engine.tokenizer)
        return Facts(
            backend=self.backend.name,
            task=self.engine.task_type or "causal_lm",
            multimodal=bool(self.engine.model_meta.is_multimodal),
            tools=msswift.has_agent_template(self.server.template),
            prompt_bytes=None if length is None else length * longest,
            default_tokens=order.default_tokens,
        )

    # --- requests -------------------------------------------------------------------------------------------

    async def answer(
        self, request: ApiRequest, one: Exchange
    ) -> AnswerBody | AsyncGenerator[AnswerPiece, None]:
        """Return the whole answer to a request or a generator of its pieces; errors are raised before the first piece.

        Raises:
            ApiError: the request cannot be answered.
        """
        if self._log_requests:
            self._log(one, [list(asked.messages) for asked in request.conversations])
        form = Form(request, with_tools=bool(request.conversations[0].tools))
        self.running[request.model] += 1
        try:
            if request.stream:
                pieces = self._stream(request, form, one)
                first = await anext(pieces)
                return self._counted(request.model, first, pieces)
            answers = await self._all(request)
        except BaseException:
            self.running[request.model] -= 1
            raise
        self.running[request.model] -= 1
        usage = usage_of(answers)
        one.prompt_tokens, one.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        made = form.vectors(answers) if request.path == EMBEDDINGS else form.whole(answers)
        if self._log_requests:
            self._log(one, made)
        return made

    async def _counted(
        self, model: str, first: AnswerPiece, pieces: AsyncGenerator[AnswerPiece, None]
    ) -> AsyncGenerator[AnswerPiece, None]:
        try:
            yield first
            async for piece in pieces:
                yield piece
        finally:
            self.running[model] -= 1
            await pieces.aclose()

    async def _all(self, request: ApiRequest) -> list[Any]:
        """The engine's answers to all conversations; if one fails, the others are cancelled."""
        tasks = [asyncio.ensure_future(self._whole(request, one)) for one in request.conversations]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _whole(self, request: ApiRequest, conversation: Conversation) -> Any:
        async with AsyncExitStack() as stack:
            asked = await self._prepared(conversation, stack)
            return await self.ask(request.model, asked, request.sampling)

    async def _stream(
        self, request: ApiRequest, form: Form, one: Exchange
    ) -> AsyncGenerator[AnswerPiece, None]:
        async with AsyncExitStack() as stack:
            asked = await self._prepared(request.conversations[0], stack)
            pieces = await self.ask(request.model, asked, request.sampling, stream=True)
            stop, usage, texts = StopText(request.sampling.stop), Usage(0, 0), []
            async for piece in pieces:
                usage = usage_of([piece]) if piece.usage else usage
                one.prompt_tokens, one.completion_tokens = usage.prompt_tokens, usage.completion_tokens
                if one.first_token is None:
                    one.first_token = one.seconds
                choice = piece.choices[0]
                content = getattr(choice.delta, "content", None) or ""
                text = stop.feed(content, last=choice.finish_reason is not None)
                reason = request.sampling.why_ended(choice.finish_reason, stop.found)
                texts.append(text)
                yield form.piece(choice, text, reason)
                if reason is not None:
                    break
            if self._log_requests:
                self._log(one, "".join(texts))
            if request.include_usage:
                yield form.last(usage)

    async def _prepared(self, conversation: Conversation, stack: AsyncExitStack) -> Any:
        """ms-swift's InferRequest of a conversation; its media files exist while ``stack`` is open."""
        paths = await stack.enter_async_context(self._media.files(conversation.media))
        media: dict[str, list[str]] = {}
        for one, path in zip(conversation.media, paths, strict=True):
            media.setdefault(f"{one.kind}s", []).append(str(path))
        optional = {
            "tools": list(conversation.tools) or None,
            "objects": conversation.objects,
            "chat_template_kwargs": conversation.chat_template_kwargs,
        }
        given = {name: value for name, value in optional.items() if value}
        known = self.api.InferRequest.__dataclass_fields__
        for name in given:
            if name not in known:  # ms-swift 3
                raise ApiError(400, f"{name} is not supported here: it needs ms-swift 4.", name)
        messages = [dict(one) for one in conversation.messages]
        asked = self.api.InferRequest(messages=messages, **media, **given)
        asked.plain = conversation.plain
        stack.callback(setattr, asked, "abandoned", True)  # the client has disconnected or has its answer
        return asked

    async def ask(
        self, name: str, asked: Any, sampling: Sampling, *, stream: bool = False, hook: Any = None
    ) -> Any:
        """Ask the engine.

        Args:
            name: name of the model.
            asked: ms-swift's InferRequest.
            sampling: sampling parameters.
            stream: return the answer piece by piece.
            hook: called by the engine's thread before the batch with this request.

        Raises:
            ApiError: the request cannot be answered; the message is written for the client.
        """
        model = self.loaded.get(name)
        if model is None:  # it has just been unloaded
            raise ApiError(404, f"The model {name} does not exist.", "model", "model_not_found")
        try:
            return await self._ask(model, asked, sampling, stream, hook)
        except Exception as error:
            if (
                said := as_api_error(error, has_media=bool(asked.images or asked.audios or asked.videos))
            ) is None:
                raise
            raise said from error

    async def _ask(self, model: ServedModel, asked: Any, sampling: Sampling, stream: bool, hook: Any) -> Any:
        if model.system and not asked.plain and asked.messages[0]["role"] != "system":
            asked.messages.insert(0, {"role": "system", "content": model.system})
        config = self._request_config(sampling, stream)
        await self._fit(asked, config)
        kwargs: dict[str, Any] = dict(self.server.infer_kwargs)
        if model.kind == "lora":
            kwargs["adapter_request"] = self.api.AdapterRequest(self.aliases[model.name], model.path)
            config.adapter = self.aliases[model.name]  # otherwise ms-swift 3 batches it with other adapters
        kwargs["pre_infer_hook"] = hook or msswift.sampling_hook(
            self.backend.name,
            min_p=sampling.min_p,
            min_tokens=sampling.min_tokens,
            ignore_eos=sampling.ignore_eos,
            stop=sampling.stop,
            seed=sampling.seed,
        )
        if self.backend.in_process:
            self._batches.came = time.monotonic()
        answer = await self.engine.infer_async(asked, config, **kwargs)
        if stream:
            pieces = aiter(answer)
            return _chained(_checked(await anext(pieces)), pieces)
        return _checked(answer)

    def _request_config(self, sampling: Sampling, stream: bool) -> Any:
        """ms-swift's RequestConfig, with the settings of the server as defaults."""
        known = self.api.RequestConfig.__dataclass_fields__
        asked = {name: getattr(sampling, name) for name in Sampling.__dataclass_fields__ if name in known}
        config = self.api.RequestConfig(**{**asked, "stop": list(sampling.stop), "stream": stream})
        self.server._set_request_config(config)
        # an attribute unknown to ms-swift still keeps requests with different values out of one batch
        config.more = (sampling.min_tokens, sampling.ignore_eos, sampling.min_p)
        if sampling.seed is not None and self.backend.in_process:
            config.alone = time.monotonic_ns()
        return config

    async def _fit(self, asked: Any, config: Any) -> None:
        """Limit the answer to the remaining context.

        ms-swift limits all answers of a batch to the context that the longest prompt leaves, and fails them all if
        nothing is left; a request whose answer must be limited therefore must not share a batch. Only prompts that
        may be too long are rendered for this: a token is at least one byte.
        """
        room = self.engine.max_model_len
        if not self.backend.in_process or room is None or self.engine.task_type != "causal_lm":
            return
        text = json.dumps(asked.messages, ensure_ascii=False, default=str)
        more = any(getattr(asked, name) for name in ("images", "audios", "videos", "tools"))
        size = len(text.encode("utf-8", "replace"))
        if not more and size + TEMPLATE_TOKENS + config.max_tokens <= room:
            return
        encoded = await asyncio.to_thread(self.server.template.encode, asked)
        length = len(encoded["input_ids"])
        if length >= room:
            raise _too_long(
                f"The prompt has {length:,} tokens; prompt and answer together may have at most {room:,}."
            )
        config.max_tokens = min(config.max_tokens, room - length)

    async def warm_up(self) -> None:
        """Ask every model for one token, so that adapters are loaded and errors appear now."""
        for name in self.loaded:
            await self.touch(name)

    async def touch(self, name: str, hook: Any = None) -> None:
        """Ask a model for one token."""
        asked = self.api.InferRequest(messages=[{"role": "user", "content": "Hi"}])
        asked.plain = False
        await self.ask(name, asked, Sampling(max_tokens=1, temperature=0.0), hook=hook)

    def _log(self, one: Exchange, said: object) -> None:
        print(f"{one.id} {json.dumps(said, ensure_ascii=False, default=str)}", flush=True)


async def _chained(first: Any, pieces: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    yield first
    async for piece in pieces:
        try:
            yield _checked(piece)
        except Exception as error:
            if (said := as_api_error(error)) is None:
                raise
            raise said from error


def _checked(answer: Any) -> Any:
    """Return ``answer``.

    Raises:
        Exception: ``answer`` is an exception; ms-swift 3 returns rendering errors this way.
    """
    if isinstance(answer, Exception):
        raise answer
    return answer


def _too_long(message: str) -> ApiError:
    return ApiError(400, message, "messages", "context_length_exceeded")


_OF_THE_REQUEST = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OSError,
    RecursionError,
)
"""Exceptions that ms-swift raises when a request cannot be rendered; generating raises RuntimeErrors."""


def as_api_error(error: Exception, has_media: bool = True) -> ApiError | None:
    """Translate an error of the engine for the client; None for a failure that the request did not cause.

    If a request has media, ms-swift's messages may name files of this machine and are not passed to the client.
    """
    if isinstance(error, ApiError):
        return error
    name, text = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
    if name == "MaxLengthError" or "leaves no room" in text or "maximum context length" in text:
        return _too_long(f"The prompt is too long: {text}")
    if name == "UnidentifiedImageError":
        return ApiError(400, "An image in the request is truncated or not in a known format.", "messages")
    if name == "EngineDeadError":
        return ApiError(503, "The engine has died, and the server is shutting down.")
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        return ApiError(503, "The server does not have enough memory for this request.")
    if "query_role" in text or "response_role" in text or "roles must alternate" in text:
        order = "after an optional system message, messages from user (or tool) and assistant must alternate"
        return ApiError(400, f"The model does not support this order of messages: {order}.", "messages")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, _OF_THE_REQUEST) or "TemplateError" in kinds:  # jinja2's, of a chat template
        what = name if has_media or not text else text
        return ApiError(
            400, f"The request cannot be rendered with the model's template: {what.rstrip('.')}.", "messages"
        )
    return None
