"""What a request to the OpenAI-compatible server says, and how a refusal is worded.

A request is checked before the engine sees it: what ms-swift would answer with a 500, would ignore or would read from
this machine's disk is a 4xx here, in the format that OpenAI's own clients turn into their typed errors
(https://platform.openai.com/docs/guides/error-codes). The texts of a message are joined here as ms-swift would join
them, so that what is checked is what the model gets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_toolkit.console.words import shown
from swift_toolkit.serving.api.fields import CHAT, COMPLETIONS, EMBEDDINGS, FieldFault, Number, field_faults
from swift_toolkit.serving.api.schema import JsonObject, Message

DEEPEST = 64
"""Levels of nesting in a body; JSON schemas of tools need about ten."""

LONGEST_PATH = 4096
"""Characters; no file name is longer (PATH_MAX), so that longer text without a scheme can only be base64."""

MOST_MEDIA = 32
"""Pictures, sounds and films of one request."""

MEDIA_KINDS = ("image", "audio", "video")
MEDIA_PARTS = ("image", "audio", "video", "image_url", "audio_url", "video_url")
ROLES = ("system", "developer", "user", "assistant", "tool", "tool_call", "tool_response")

FILE_TAGS = ("<img>", "<audio>")
"""Between one of them and its end, ms-swift, or the code of a model such as Qwen-VL, takes text for a file to open."""

LEAST_TEMPERATURE = 0.01
"""Below it, dividing by the temperature overflows: 0, which always takes the likeliest token, is what is meant."""


@dataclass(eq=False)
class ApiError(Exception):
    """A refusal, as a client sees it.

    Args:
        status: HTTP status.
        message: what is wrong, in whole sentences.
        param: the field of the request it is about.
        code: OpenAI's name for it, where it has one.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None

    def body(self) -> bytes:
        """The JSON of OpenAI's error format."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()  # ASCII: the text may hold half a character

    @property
    def type(self) -> str:
        """OpenAI's name for the kind of error."""
        if self.status >= 500:
            return "server_error"
        return {401: "authentication_error", 404: "not_found_error"}.get(self.status, "invalid_request_error")


def _refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        max_tokens: longest answer, in tokens; also the length where a request names none.
        max_body: bytes of a request, and of a picture that is fetched.
        media_dir: the only directory from which requests may name files; None for no files at all.
        urls: media are fetched from the public addresses that requests name.
        max_pixels: pixels of all pictures of a request together.
        max_seconds: of all sounds and films of a request together, as far as their headers state it.
    """

    max_tokens: int = 4096
    max_body: int = 16 << 20
    media_dir: str | None = None
    urls: bool = False
    max_pixels: int = 50_000_000
    max_seconds: float = 3600


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a request is checked against, apart from its limits: the model that is served.

    Args:
        backend: that generates.
        task: what the model was made for: ``causal_lm``, ``embedding``, ``seq_cls``, ...
        multimodal: it takes pictures, sounds or films.
        tools: its template has a form for functions and their results.
        prompt_bytes: no text with more bytes fits into the context; None if that is not known.
        default_tokens: longest answer where a request names none; None for the limit.
    """

    backend: str = "pt"
    task: str = "causal_lm"
    multimodal: bool = False
    tools: bool = True
    prompt_bytes: int | None = None
    default_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is generated; None leaves it to the model's own defaults. The names are those of OpenAI's
    fields, see fields.py.
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


@dataclass(frozen=True)
class Media:
    """A picture, a sound or a film of a request.

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
    """What the model is to answer.

    Args:
        messages: role and text each, with ms-swift's tags where media belong.
        media: in the order of the tags.
        tools: functions that the model may call.
        objects: boxes and references of grounding.
        chat_template_kwargs: switches of the chat template.
        plain: the one message is a text to go on from, without a chat template.
    """

    messages: tuple[Message, ...]
    media: tuple[Media, ...] = ()
    tools: tuple[JsonObject, ...] = ()
    objects: JsonObject | None = None
    chat_template_kwargs: JsonObject | None = None
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class ApiRequest:
    """A checked request.

    Args:
        path: its endpoint.
        model: that is asked.
        conversations: one; of completions and embeddings one for each text.
        sampling: how the answer is generated.
        stream: the answer is sent piece by piece.
        include_usage: a stream ends with the usage.
        base64: embeddings are sent as base64 of 32-bit floats.
    """

    path: str
    model: str
    conversations: tuple[Conversation, ...]
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False
    base64: bool = False


# --- the body -----------------------------------------------------------------------------------------------


def parse(body: bytes) -> JsonObject:
    """The JSON object in ``body``.

    Raises:
        ApiError: there is none.
    """
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


def check_model(request: JsonObject, names: Iterable[str]) -> str:
    """The model that is asked for.

    Raises:
        ApiError: none is named, or it is not served.
    """
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise _refuse("model is missing: name one of those that GET /v1/models lists.", "model")
    if model not in names:
        raise no_such_model(model, names)
    return model


def no_such_model(model: str, names: Iterable[str]) -> ApiError:
    """The refusal of a name that is not served."""
    message = f"The model {shown(model)} does not exist. This server has {', '.join(names)}."
    return ApiError(404, message, "model", "model_not_found")


def check_request(
    path: str, body: JsonObject, names: Iterable[str], limits: Limits, facts: Facts
) -> ApiRequest:
    """What a request to one of the endpoints asks.

    Args:
        path: the endpoint.
        body: the JSON object that was sent.
        names: the models that are served.
        limits: of one request.
        facts: of the model that is served.

    Raises:
        ApiError: it cannot be answered.
    """
    asked = {name: value for name, value in body.items() if value is not None}
    model = check_model(asked, names)
    _raise_first(_task_faults(path, facts))
    conversations = _CONVERSATIONS[path](asked, limits, facts)
    _raise_first(field_faults(asked, path, facts.backend))
    _raise_first(_combination_faults(asked))
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
        yield "model", "This model has no embeddings: it was not trained for them."
    if path != EMBEDDINGS and facts.task == "embedding":
        yield "model", f"This model only makes embeddings: ask {EMBEDDINGS}."
    if path == COMPLETIONS and facts.task not in ("causal_lm", "embedding"):
        yield "model", f"This model does not generate text: ask {CHAT}."


def _combination_faults(request: JsonObject) -> Iterator[FieldFault]:
    """Fields that do not go together."""
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
        yield "prompt", "prompt must be one text with stream."


# --- what is asked ------------------------------------------------------------------------------------------


def _chat(request: JsonObject, limits: Limits, facts: Facts) -> tuple[Conversation, ...]:
    given = request.get("messages")
    if not isinstance(given, list) or not given:
        raise _refuse("messages must be a list of at least one message.", "messages")
    read = [_message(message, f"messages[{index}]") for index, message in enumerate(given)]
    messages = _with_one_system([message for message, _ in read])
    if messages[-1]["role"] in ("assistant", "system"):
        raise _refuse(f'The last message must not be from "{messages[-1]["role"]}".', "messages")
    parts, listed = [one for _, media in read for one in media], [*_listed_media(request)]
    if parts and listed:
        raise _refuse("Media must be either parts of messages or lists beside them.", listed[0].where)
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


def _tools(request: JsonObject) -> tuple[JsonObject, ...]:
    given = request.get("tools")
    return tuple(one for one in given if isinstance(one, dict)) if isinstance(given, list) else ()


_RESERVED = frozenset(
    ("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
     "max_pixels", "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
     "tokenizer_kwargs", "tools", "truncation")
)  # fmt: skip
"""Arguments of transformers' apply_chat_template that are not switches of a template."""


def _template_switches(request: JsonObject) -> JsonObject | None:
    given = request.get("chat_template_kwargs")
    if not given or not isinstance(given, dict):
        return None
    for name, value in given.items():
        where = f"chat_template_kwargs.{name}"
        if name in _RESERVED:
            raise _refuse(f"{where} is not supported.", where)
        if not isinstance(value, str | int | float):
            raise _refuse(f"{where} must be text, a number, true or false.", where)
    return given


def _completions(request: JsonObject, limits: Limits, facts: Facts) -> tuple[Conversation, ...]:
    texts = _texts(request, "prompt")
    media = [*_listed_media(request)]
    _check_all_media(media, limits, facts)
    return tuple(
        Conversation(messages=({"role": "user", "content": one},), media=(*media,), plain=True)
        for one in texts
    )


def _embeddings(request: JsonObject, limits: Limits, facts: Facts) -> tuple[Conversation, ...]:
    texts = _texts(request, "input")
    media = [*_listed_media(request)]
    _check_all_media(media, limits, facts)
    return tuple(Conversation(messages=({"role": "user", "content": one},), media=(*media,)) for one in texts)


_CONVERSATIONS: dict[str, Callable[[JsonObject, Limits, Facts], tuple[Conversation, ...]]] = {
    CHAT: _chat,
    COMPLETIONS: _completions,
    EMBEDDINGS: _embeddings,
}

MOST_TEXTS = 128
"""Prompts or inputs of one request."""


def _texts(request: JsonObject, name: str) -> list[str]:
    given = request.get(name)
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(one, str) and one for one in texts):
        raise _refuse(f"{name} must be a text that is not empty, or a list of such texts.", name)
    if len(texts) > MOST_TEXTS:
        raise _refuse(f"{name} has {len(texts):,} texts; at most {MOST_TEXTS} are answered together.", name)
    return [str(one) for one in texts]


# --- messages -----------------------------------------------------------------------------------------------


def _message(message: Any, where: str) -> tuple[Message, list[Media]]:
    """One message as ms-swift takes it, its parts joined, and its media."""
    if not isinstance(message, dict):
        raise _refuse(f"{where} must be an object with role and content.", where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise _refuse(f"{where}.role must be one of {', '.join(ROLES)}.", f"{where}.role")
    checked: Message = {"role": "system" if role == "developer" else role, "content": ""}
    _add_calls(checked, message, where)
    if content is None and "tool_calls" in checked:
        return checked, []
    if isinstance(content, str):
        checked["content"] = content
        return checked, []
    if not isinstance(content, list) or not content:
        raise _refuse(f"{where}.content must be text, or a list of parts.", f"{where}.content")
    parts = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    media = [one for one in parts if isinstance(one, Media)]
    if media and role != "user":
        raise _refuse(f"{where} is from {role}; only messages from user may hold media.", media[0].where)
    checked["content"] = "".join(f"<{one.kind}>" if isinstance(one, Media) else one for one in parts)
    return checked, media


def _add_calls(checked: Message, message: JsonObject, where: str) -> None:
    """Take over the fields of a message that say which function was called."""
    if isinstance(message.get("tool_call_id"), str):
        checked["tool_call_id"] = message["tool_call_id"]
    calls = message.get("tool_calls")
    if calls and message.get("role") == "assistant":
        if not isinstance(calls, list) or not all(map(_is_call, calls)):
            raise _refuse(f"{where}.tool_calls must be a list of calls of functions.", f"{where}.tool_calls")
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
            raise _refuse(f"{where}.text must be text.", where)
        return str(part["text"])
    if kind not in MEDIA_PARTS:
        raise _refuse(f"{where}.type must be one of text, {', '.join(MEDIA_PARTS)}.", where)
    value = part.get(kind)
    source = value.get("url") if isinstance(value, dict) else value
    return Media(kind.removesuffix("_url"), _text_or_nothing(source), f"{where}.{kind}")


def _text_or_nothing(value: Any) -> str:
    """``value`` if it is text; the check of sources refuses what is empty."""
    return value if isinstance(value, str) else ""


def _with_one_system(messages: Sequence[Message]) -> list[Message]:
    """The messages with those of the system at the beginning joined into one."""
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
    """What is true of all messages together."""
    uses_tools = conversation.tools or any(one["role"].startswith("tool") for one in conversation.messages)
    if uses_tools and not facts.tools:
        message = "The template of this model has no form for tools. Start the server with --agent_template."
        raise _refuse(message, "tools")
    _check_text("".join(str(one["content"]) for one in conversation.messages), facts)


def _check_text(text: str, facts: Facts) -> None:
    """What is true of the texts of all messages, one after the other; in time that grows with their length."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        message = "The text holds half a character (a lone surrogate), which no model reads."
        raise _refuse(message, "messages") from None
    if facts.prompt_bytes is not None and size > facts.prompt_bytes:
        most = f"the context holds at most {facts.prompt_bytes:,}"
        message = f"The prompt is too long: it has {size:,} bytes, and {most}."
        raise _refuse(message, "messages", "context_length_exceeded")
    if facts.multimodal and _names_a_file(text):
        message = (
            "The text holds <img>...</img> or <audio>...</audio>, which names a file. Send media as parts."
        )
        raise _refuse(message, "messages")


def _names_a_file(text: str) -> bool:
    """Whether there is something between one of the tags and its end, however far away."""
    for tag in FILE_TAGS:
        start = text.find(tag)
        if start >= 0 and text.rfind(tag.replace("<", "</")) > start + len(tag):
            return True
    return False


# --- media --------------------------------------------------------------------------------------------------


def _listed_media(request: JsonObject) -> Iterator[Media]:
    """The media in ms-swift's own lists beside the messages."""
    for kind in MEDIA_KINDS:
        values = request.get(f"{kind}s") or []
        for value in values if isinstance(values, list) else [values]:
            yield Media(kind, _text_or_nothing(value), f"{kind}s")


def _check_all_media(media: Sequence[Media], limits: Limits, facts: Facts) -> None:
    if media and not facts.multimodal:
        raise _refuse(f"This model only takes text, not {media[0].kind}s.", media[0].where)
    if len(media) > MOST_MEDIA:
        raise _refuse(f"A request may have at most {MOST_MEDIA} media.", media[0].where)
    for one in media:
        check_source(one.source, one.where, limits)


def check_source(value: str, where: str, limits: Limits) -> None:
    """Check where a picture, sound or film comes from: a data: URI, base64, a URL, or the allowed directory.

    Raises:
        ApiError: it may not come from there.
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


def _sampling(request: JsonObject, limits: Limits, facts: Facts) -> Sampling:
    names = Sampling.__dataclass_fields__.keys() - {"max_tokens", "stop", "logprobs", "top_logprobs"}
    given = {name: request[name] for name in names if name in request}
    if given.get("temperature", 1) < LEAST_TEMPERATURE:
        given["temperature"] = 0.0
    stop = request.get("stop", [])
    logprobs, top_logprobs = _logprobs(request)
    tokens = _max_tokens(request, limits, facts)
    if given.get("min_tokens", 0) > tokens:
        raise _refuse(f"min_tokens must be at most max_tokens, which is {tokens}.", "min_tokens")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return Sampling(max_tokens=tokens, stop=stops, logprobs=logprobs, top_logprobs=top_logprobs, **given)


def _logprobs(request: JsonObject) -> tuple[bool, int | None]:
    """Whether, and how many of each token; OpenAI has a number in completions, a switch and a number in chats."""
    given = request.get("logprobs", False)
    if isinstance(given, bool):
        return given, request.get("top_logprobs")
    fault = Number(0, 20, whole=True)(given)
    if fault or "prompt" not in request:
        raise _refuse(f"logprobs {fault or 'must be true or false'}.", "logprobs")
    return True, int(given)


def _max_tokens(request: JsonObject, limits: Limits, facts: Facts) -> int:
    """The longest answer that is asked for; the newer name of the field wins, as at OpenAI."""
    name = "max_completion_tokens" if "max_completion_tokens" in request else "max_tokens"
    asked = request.get(name)
    if asked is None:
        return min(facts.default_tokens or limits.max_tokens, limits.max_tokens)
    if asked > limits.max_tokens:
        raise _refuse(
            f"{name} is {asked}; this server answers with at most {limits.max_tokens} tokens.", name
        )
    return int(asked)
