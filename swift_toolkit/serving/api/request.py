"""Parses and checks requests to the OpenAI-compatible server, and formats refusals.

A request is checked before the engine sees it: whatever ms-swift would answer with a 500, ignore, or read from this
machine's disk is refused with a 4xx, in the format that OpenAI's own clients turn into their typed errors
(https://platform.openai.com/docs/guides/error-codes). The text parts of a message are joined here as ms-swift would
join them, so that the checked text is the text that the model gets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_toolkit.config.tasks import RERANKERS
from swift_toolkit.console.words import shown
from swift_toolkit.serving.api.fields import CHAT, COMPLETIONS, EMBEDDINGS, FieldFault, Number, field_faults
from swift_toolkit.serving.api.schema import RequestBody, RequestMessage

DEEPEST = 64
"""Most levels of nesting in a body; JSON schemas of tools need about ten."""

LONGEST_PATH = 4096
"""Most characters of a path (PATH_MAX); longer text without a scheme can only be base64."""

MOST_VALUES = 1_000_000
"""Most commas and opening brackets of a body, which limits the objects that it becomes in memory."""

MOST_MESSAGES = 4096
"""Most messages of one request: rendering one takes about half a millisecond, even if it is empty."""

MOST_MEDIA = 32
"""Most images, audio and video of one request."""

MEDIA_KINDS = ("image", "audio", "video")
MEDIA_PARTS = ("image", "audio", "video", "image_url", "audio_url", "video_url")
ROLES = ("system", "developer", "user", "assistant", "tool", "tool_call", "tool_response")

FILE_TAGS = ("<img>", "<audio>")
"""ms-swift, or the code of a model such as Qwen-VL, opens the text between one of these tags and its end as a file."""

LEAST_TEMPERATURE = 0.01
"""Dividing by a lower temperature overflows; such values are treated as 0 (greedy decoding)."""


@dataclass(eq=False)
class ApiError(Exception):
    """A refusal as the client sees it.

    Args:
        status: HTTP status.
        message: the problem, in complete sentences.
        param: the field of the request that causes it.
        code: OpenAI's error code, if there is one.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None

    def body(self) -> bytes:
        """The JSON of OpenAI's error format."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()  # ASCII, as the text may contain a lone surrogate

    @property
    def type(self) -> str:
        """OpenAI's error type."""
        if self.status >= 500:
            return "server_error"
        return {401: "authentication_error", 404: "not_found_error"}.get(self.status, "invalid_request_error")


def _refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Args:
        max_tokens: longest answer, in tokens; also the default for requests without a limit.
        max_body: largest body of a request, and largest fetched file, in bytes.
        media_dir: the only directory whose files requests may name; None for no files.
        urls: fetch media from the public addresses that requests name.
        max_pixels: most pixels of all images of a request together.
        max_seconds: longest audio and video of a request together, in seconds, see `duration.Cost`.
        max_video_pixels: most pixels of all frames of a request's videos that a model sees.
    """

    max_tokens: int = 4096
    max_body: int = 16 << 20
    media_dir: str | None = None
    urls: bool = False
    max_pixels: int = 50_000_000
    max_seconds: float = 3600
    max_video_pixels: int = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The properties of the served model that requests are checked against.

    Args:
        backend: the backend that generates.
        task: task type of the model: ``causal_lm``, ``embedding``, ``seq_cls``, ...
        multimodal: it accepts images, audio or video.
        tools: its template supports functions and their results.
        prompt_bytes: no prompt with more bytes fits into the context; None if that is not known.
        default_tokens: longest answer to requests without a limit, in tokens; None for ``Limits.max_tokens``.
    """

    backend: str = "pt"
    task: str = "causal_lm"
    multimodal: bool = False
    tools: bool = True
    prompt_bytes: int | None = None
    default_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters; None leaves one to the model's own defaults. The names are those of OpenAI's fields, see
    fields.py.
    """

    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    length_penalty: float = 1.0
    num_beams: int = 1
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int | None = None
    structured_outputs_regex: str | None = None

    def why_ended(self, reason: str | None, found: bool) -> str | None:
        """The finish reason of an answer.

        Args:
            reason: the backend's.
            found: whether a stop text was found; with ``ignore_eos`` nothing else stops an answer but its length.
        """
        if found:
            return "stop"
        return "length" if self.ignore_eos and reason == "stop" else reason


@dataclass(frozen=True)
class Media:
    """An image, audio or video of a request.

    Args:
        kind: ``image``, ``audio`` or ``video``.
        source: a ``data:`` URI, base64, an http(s) URL, or a file in the allowed directory.
        where: the field it comes from, for messages.
    """

    kind: str
    source: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation that the model answers.

    Args:
        messages: messages with role and text, with ms-swift's tags in place of media.
        media: in the order of the tags.
        tools: functions that the model may call.
        objects: boxes and references for grounding.
        chat_template_kwargs: arguments of the chat template.
        plain: the only message is a text to continue, without a chat template.
    """

    messages: tuple[RequestMessage, ...]
    media: tuple[Media, ...] = ()
    tools: tuple[RequestBody, ...] = ()
    objects: RequestBody | None = None
    chat_template_kwargs: RequestBody | None = None
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class ApiRequest:
    """A checked request.

    Args:
        path: its endpoint.
        model: the requested model.
        conversations: one for a chat; one per text for completions and embeddings.
        sampling: sampling parameters.
        stream: send the answer piece by piece.
        include_usage: end a stream with the usage.
        base64: send embeddings as base64 of 32-bit floats.
    """

    path: str
    model: str
    conversations: tuple[Conversation, ...]
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False
    base64: bool = False


# --- the body -----------------------------------------------------------------------------------------------


def parse_request(body: bytes) -> RequestBody:
    """Parse the JSON object in ``body``.

    Raises:
        ApiError: the body is not a valid JSON object.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise _refuse(f"The body of the request has more than {MOST_VALUES:,} commas and brackets.")
    try:
        value = json.loads(body)
    except json.JSONDecodeError as error:
        place = f" (line {error.lineno}, column {error.colno})"
        raise _refuse(f"The body of the request is not valid JSON{place}.") from None
    except (ValueError, RecursionError):
        raise _refuse("The body of the request is not valid JSON.") from None
    if not isinstance(value, dict):
        raise _refuse("The body of the request must be a JSON object.")
    if _is_deeper(value, DEEPEST):
        raise _refuse(f"The body of the request is nested more than {DEEPEST} levels deep.")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    there = [value]
    for _ in range(levels):
        there = [inner for outer in there for inner in _inside(outer)]
        if not there:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def check_model(request: RequestBody, names: Iterable[str]) -> str:
    """Return the requested model.

    Raises:
        ApiError: no model is named, or it is not served.
    """
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise _refuse("model is missing. GET /v1/models lists the available models.", "model")
    if model not in names:
        raise no_such_model(model, names)
    return model


def no_such_model(model: str, names: Iterable[str]) -> ApiError:
    """The refusal for a model that is not served."""
    message = f"The model {shown(model)} does not exist. Available models: {', '.join(names)}."
    return ApiError(404, message, "model", "model_not_found")


def check_fields(
    path: str, body: RequestBody, names: Iterable[str], limits: Limits, facts: Facts
) -> ApiRequest:
    """Check a request to one of the endpoints.

    Args:
        path: the endpoint.
        body: the JSON object of the request.
        names: the served models.
        limits: limits of one request.
        facts: properties of the served model.

    Raises:
        ApiError: the request is refused.
    """
    asked = {name: value for name, value in body.items() if value is not None}
    model = check_model(asked, names)
    _raise_first(_task_faults(path, facts))
    conversations = _CONVERSATIONS[path](asked, limits, facts)
    _raise_first(field_faults(asked, path, facts.backend))
    _raise_first(_combination_faults(asked))
    _raise_first(_generation_faults(asked, facts))
    for one in conversations:
        _check_conversation(one, facts)
    return ApiRequest(
        path=path,
        model=model,
        conversations=conversations,
        sampling=_sampling(asked, limits, facts),
        stream=bool(asked.get("stream")),
        include_usage=bool(asked.get("stream_options", {}).get("include_usage")),
        base64=asked.get("encoding_format") == "base64",
    )


def _raise_first(faults: Iterator[FieldFault]) -> None:
    for name, message in faults:
        raise _refuse(message, name or None)


def _task_faults(path: str, facts: Facts) -> Iterator[FieldFault]:
    if path == EMBEDDINGS and facts.task != "embedding":
        yield "model", "This model was not trained to make embeddings."
    if path != EMBEDDINGS and facts.task == "embedding":
        yield "model", f"This model only makes embeddings: use {EMBEDDINGS}."
    if path == COMPLETIONS and facts.task not in ("causal_lm", "embedding"):
        yield "model", f"This model does not generate text: use {CHAT}."


def _generation_faults(request: RequestBody, facts: Facts) -> Iterator[FieldFault]:
    """Yield fields that only text that is generated can have."""
    if facts.task == "causal_lm":
        return
    for name in ("stream", "n", "num_beams", "tools"):
        value = request.get(name)
        if value and (value is True or value != 1):
            yield name, f"{name} is not supported here: this model does not generate text."


def _combination_faults(request: RequestBody) -> Iterator[FieldFault]:
    """Yield problems with combinations of fields."""
    beams, stream, n = request.get("num_beams", 1), request.get("stream"), request.get("n", 1)
    if stream and n != 1:
        yield "n", "n must be 1 with stream."
    if stream and beams != 1:
        yield "num_beams", "num_beams must be 1 with stream."
    if n > 1 and beams == 1 and request.get("temperature", 1) < LEAST_TEMPERATURE:
        yield "n", "n above 1 needs a temperature above 0: without it all answers are the same."
    if n > 1 and beams == 1 and "temperature" not in request:
        yield "n", "n above 1 needs a temperature above 0: without it all answers are the same."
    if "stream_options" in request and not stream:
        yield "stream_options", "stream_options needs stream to be true."
    if request.get("top_logprobs") and not request.get("logprobs"):
        yield "top_logprobs", "top_logprobs needs logprobs to be true."
    if stream and len(request["prompt"] if isinstance(request.get("prompt"), list) else [""]) != 1:
        yield "prompt", "prompt must be a single string with stream."


# --- conversations ------------------------------------------------------------------------------------------


def _chat(request: RequestBody, limits: Limits, facts: Facts) -> tuple[Conversation, ...]:
    given = request.get("messages")
    if not isinstance(given, list) or not given:
        raise _refuse("messages must be a list of at least one message.", "messages")
    if len(given) > MOST_MESSAGES:
        message = f"A request may have at most {MOST_MESSAGES:,} messages, not {len(given):,}."
        raise _refuse(message, "messages")
    read = [_message(message, f"messages[{index}]") for index, message in enumerate(given)]
    messages = _with_one_system([message for message, _ in read])
    _raise_first(_last_message_faults(messages[-1]["role"], facts))
    parts, listed = [one for _, media in read for one in media], [*_listed_media(request)]
    if parts and listed:
        raise _refuse("Media must be either parts of messages or separate lists, not both.", listed[0].where)
    _check_all_media([*parts, *listed], limits, facts)
    offers_tools = request.get("tool_choice") != "none"
    conversation = Conversation(
        messages=tuple(messages),
        media=(*parts, *listed),
        tools=_tools(request) if offers_tools else (),
        objects=request.get("objects") or None,
        chat_template_kwargs=_template_switches(request),
    )
    return (conversation,)


def _last_message_faults(role: str, facts: Facts) -> Iterator[FieldFault]:
    """Who may speak last: not the model itself, unless it scores what was said."""
    if facts.task in RERANKERS and role != "assistant":
        yield "messages", "A reranker scores a document: it must be the last message, from assistant."
    elif role == "system" or (role == "assistant" and facts.task == "causal_lm"):
        yield "messages", f'The last message must not be from "{role}".'


def _tools(request: RequestBody) -> tuple[RequestBody, ...]:
    given = request.get("tools")
    return tuple(one for one in given if isinstance(one, dict)) if isinstance(given, list) else ()


_RESERVED = frozenset(
    ("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
     "max_pixels", "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
     "tokenizer_kwargs", "tools", "truncation")
)  # fmt: skip
"""Arguments of transformers' apply_chat_template that are not passed to the template."""


def _template_switches(request: RequestBody) -> RequestBody | None:
    given = request.get("chat_template_kwargs")
    if not given or not isinstance(given, dict):
        return None
    for name, value in given.items():
        where = f"chat_template_kwargs.{name}"
        if name in _RESERVED:
            raise _refuse(f"{where} is not supported.", where)
        if not isinstance(value, str | int | float):
            raise _refuse(f"{where} must be a string, a number, true or false.", where)
    return given


def _completions(request: RequestBody, limits: Limits, facts: Facts) -> tuple[Conversation, ...]:
    texts = _texts(request, "prompt")
    media = [*_listed_media(request)]
    _check_all_media(media, limits, facts)
    return tuple(
        Conversation(messages=({"role": "user", "content": one},), media=(*media,), plain=True)
        for one in texts
    )


def _embeddings(request: RequestBody, limits: Limits, facts: Facts) -> tuple[Conversation, ...]:
    texts = _texts(request, "input")
    media = [*_listed_media(request)]
    _check_all_media(media, limits, facts)
    return tuple(Conversation(messages=({"role": "user", "content": one},), media=(*media,)) for one in texts)


_CONVERSATIONS: dict[str, Callable[[RequestBody, Limits, Facts], tuple[Conversation, ...]]] = {
    CHAT: _chat,
    COMPLETIONS: _completions,
    EMBEDDINGS: _embeddings,
}

MOST_TEXTS = 128
"""Most prompts or inputs of one request."""


def _texts(request: RequestBody, name: str) -> list[str]:
    given = request.get(name)
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(one, str) and one for one in texts):
        raise _refuse(f"{name} must be a non-empty string or a list of non-empty strings.", name)
    if len(texts) > MOST_TEXTS:
        raise _refuse(f"{name} has {len(texts):,} strings; a request may have at most {MOST_TEXTS}.", name)
    return [str(one) for one in texts]


# --- messages -----------------------------------------------------------------------------------------------


def _message(message: Any, where: str) -> tuple[RequestMessage, list[Media]]:
    """Convert one message to ms-swift's format, with its parts joined; also return its media."""
    if not isinstance(message, dict):
        raise _refuse(f"{where} must be an object with role and content.", where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise _refuse(f"{where}.role must be one of {', '.join(ROLES)}.", f"{where}.role")
    checked: RequestMessage = {"role": "system" if role == "developer" else role, "content": ""}
    _add_calls(checked, message, where)
    if content is None and "tool_calls" in checked:
        return checked, []
    if isinstance(content, str):
        checked["content"] = content
        return checked, []
    if not isinstance(content, list) or not content:
        raise _refuse(f"{where}.content must be a string or a list of parts.", f"{where}.content")
    parts = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    media = [one for one in parts if isinstance(one, Media)]
    if media and role != "user":
        raise _refuse(f"{where} is from {role}; only messages from user may contain media.", media[0].where)
    checked["content"] = "".join(f"<{one.kind}>" if isinstance(one, Media) else one for one in parts)
    return checked, media


def _add_calls(checked: RequestMessage, message: RequestBody, where: str) -> None:
    """Copy the fields of a message that describe function calls."""
    if isinstance(message.get("tool_call_id"), str):
        checked["tool_call_id"] = message["tool_call_id"]
    calls = message.get("tool_calls")
    if calls and message.get("role") == "assistant":
        if not isinstance(calls, list) or not all(map(_is_call, calls)):
            raise _refuse(f"{where}.tool_calls must be a list of function calls.", f"{where}.tool_calls")
        checked["tool_calls"] = calls


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments", ""), str | dict)
    )


def _part(part: Any, where: str) -> str | Media:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise _refuse(f"{where}.text must be a string.", where)
        return str(part["text"])
    if kind not in MEDIA_PARTS:
        raise _refuse(f"{where}.type must be one of text, {', '.join(MEDIA_PARTS)}.", where)
    value = part.get(kind)
    source = value.get("url") if isinstance(value, dict) else value
    return Media(kind.removesuffix("_url"), _text_or_nothing(source), f"{where}.{kind}")


def _text_or_nothing(value: Any) -> str:
    """``value`` if it is a string, else an empty one, which the check of sources refuses."""
    return value if isinstance(value, str) else ""


def _with_one_system(messages: Sequence[RequestMessage]) -> list[RequestMessage]:
    """Join the system messages at the beginning into one."""
    roles = [one["role"] for one in messages]
    count = next((index for index, role in enumerate(roles) if role != "system"), len(roles))
    if "system" in roles[count:]:
        where = f"messages[{roles.index('system', count)}].role"
        raise _refuse(f"{where} is system; only the first messages may be from system.", where)
    if count == 0:
        return list(messages)
    joined = "\n\n".join(one["content"] for one in messages[:count])
    return [{"role": "system", "content": joined}, *messages[count:]]


def _check_conversation(conversation: Conversation, facts: Facts) -> None:
    """Check all messages together."""
    uses_tools = conversation.tools or any(one["role"].startswith("tool") for one in conversation.messages)
    if uses_tools and not facts.tools:
        message = "The template of this model does not support tools. Start the server with --agent_template."
        raise _refuse(message, "tools")
    text = "".join(str(one["content"]) for one in conversation.messages)
    calls = [one["tool_calls"] for one in conversation.messages if "tool_calls" in one]
    rendered = (calls, conversation.tools, conversation.chat_template_kwargs)
    _check_text(text, sum(map(len, _strings(rendered))), facts)


def _strings(value: object) -> Iterator[str]:
    """All strings in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _check_text(text: str, rendered: int, facts: Facts) -> None:
    """Check the concatenated text of all messages, in linear time; ``rendered`` characters are added to it."""
    try:
        size = len(text.encode()) + rendered
    except UnicodeEncodeError:
        message = "The text contains a lone surrogate (half a character), which no model can read."
        raise _refuse(message, "messages") from None
    if facts.prompt_bytes is not None and size > facts.prompt_bytes:
        most = f"the context holds at most {facts.prompt_bytes:,}"
        message = f"The prompt is too long: it has {size:,} bytes; {most}."
        raise _refuse(message, "messages", "context_length_exceeded")
    if facts.multimodal and _names_a_file(text):
        message = (
            "The text contains <img>...</img> or <audio>...</audio>, which names a file. Send media as parts."
        )
        raise _refuse(message, "messages")


def _names_a_file(text: str) -> bool:
    """Whether there is any text between one of the tags and its end tag."""
    for tag in FILE_TAGS:
        start = text.find(tag)
        if start >= 0 and text.rfind(tag.replace("<", "</")) > start + len(tag):
            return True
    return False


# --- media --------------------------------------------------------------------------------------------------


def _listed_media(request: RequestBody) -> Iterator[Media]:
    """The media in ms-swift's own lists, separate from the messages."""
    for kind in MEDIA_KINDS:
        values = request.get(f"{kind}s") or []
        for value in values if isinstance(values, list) else [values]:
            yield Media(kind, _text_or_nothing(value), f"{kind}s")


def _check_all_media(media: Sequence[Media], limits: Limits, facts: Facts) -> None:
    if media and not facts.multimodal:
        raise _refuse(f"This model only accepts text, not {media[0].kind} input.", media[0].where)
    if len(media) > MOST_MEDIA:
        raise _refuse(f"A request may have at most {MOST_MEDIA} media files.", media[0].where)
    for one in media:
        check_source(one.source, one.where, limits)


def check_source(value: str, where: str, limits: Limits) -> None:
    """Check the source of an image, audio or video: a data: URI, base64, a URL, or the allowed directory.

    Raises:
        ApiError: the source is not allowed.
    """
    if not value.strip():
        raise _refuse(f"{where} must be a data: URI.", where)
    if re.match(r"data:[\w/+.-]*;base64,", value, re.IGNORECASE):
        return
    if re.match(r"https?://", value, re.IGNORECASE):
        if not limits.urls:
            raise _refuse(f"{where} is a URL, which this server does not fetch. Send a data: URI.", where)
        return
    if is_base64(value):
        return
    if limits.media_dir is not None and _is_inside(value, Path(limits.media_dir)):
        if not Path(value).is_file():
            raise _refuse(f"{where} names {value}, which is not a file.", where)
        return
    raise _refuse(f"{where} names a local file, which this server does not read. Send a data: URI.", where)


def is_base64(value: str) -> bool:
    """Whether a source without a scheme can only be base64."""
    if len(value) <= LONGEST_PATH:
        return False
    return re.fullmatch(r"[A-Za-z0-9+/\s]+", value.rstrip().rstrip("=")) is not None


def _is_inside(path: str, folder: Path) -> bool:
    try:
        return Path(path).resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError):
        return False


# --- sampling -----------------------------------------------------------------------------------------------


def _sampling(request: RequestBody, limits: Limits, facts: Facts) -> Sampling:
    names = Sampling.__dataclass_fields__.keys() - {"max_tokens", "stop", "logprobs", "top_logprobs"}
    given = {name: request[name] for name in names if name in request}
    for name in given.keys() & {"temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"}:
        given[name] = float(given[name])  # transformers refuses a penalty that is a whole number
    if given.get("temperature", 1) < LEAST_TEMPERATURE:
        given["temperature"] = 0.0
    stop = request.get("stop", [])
    logprobs, top_logprobs = _logprobs(request)
    tokens = _max_tokens(request, limits, facts)
    if given.get("min_tokens", 0) > tokens:
        raise _refuse(f"min_tokens must be at most max_tokens, which is {tokens}.", "min_tokens")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return Sampling(max_tokens=tokens, stop=stops, logprobs=logprobs, top_logprobs=top_logprobs, **given)


def _logprobs(request: RequestBody) -> tuple[bool, int | None]:
    """Whether to return log probabilities, and how many per token. OpenAI uses a number in completions, and a boolean
    and a number in chats.
    """
    given = request.get("logprobs", False)
    if isinstance(given, bool):
        return given, request.get("top_logprobs")
    fault = Number(0, 20, whole=True)(given)
    if fault or "prompt" not in request:
        raise _refuse(f"logprobs {fault or 'must be true or false'}.", "logprobs")
    return True, int(given)


def _max_tokens(request: RequestBody, limits: Limits, facts: Facts) -> int:
    """The longest answer requested, in tokens; the newer field name takes precedence, as in OpenAI's API."""
    name = "max_completion_tokens" if "max_completion_tokens" in request else "max_tokens"
    asked = request.get(name)
    if asked is None:
        return min(facts.default_tokens or limits.max_tokens, limits.max_tokens)
    if asked > limits.max_tokens:
        raise _refuse(f"{name} is {asked}; this server generates at most {limits.max_tokens} tokens.", name)
    return int(asked)
