"""What a request to the OpenAI-compatible server may hold, and how a refusal is worded.

The checks are done before ms-swift sees a request: what it would answer with a 500, would quietly ignore or would
read from this machine's disk is a 4xx here, in the format that OpenAI's own clients turn into their typed errors
(https://platform.openai.com/docs/guides/error-codes).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_toolkit.console.words import shown

LONGEST_PATH = 4096
"""Characters; no file name is longer (PATH_MAX), so that longer text without a scheme can only be base64."""

MEDIA_LISTS = ("images", "audios", "videos")  # ms-swift's own, beside the messages
MEDIA_PARTS = ("image", "audio", "video", "image_url", "audio_url", "video_url")
ROLES = ("system", "developer", "user", "assistant", "tool", "tool_call", "tool_response")
IMAGE_IN_TEXT = re.compile(r"<img>(.+?)</img>")  # which ms-swift takes for the name of a file


@dataclass(frozen=True)
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


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises:
        ApiError: there is none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        place = (
            f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        )
        raise _refuse(f"The body of the request is not valid JSON{place}.") from None
    if not isinstance(value, dict):
        raise _refuse("The body of the request must be a JSON object.")
    return value


def check_model(request: Mapping[str, Any], names: Iterable[str]) -> str:
    """The model that is asked for.

    Raises:
        ApiError: none is named, or it is not served.
    """
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise _refuse("model is missing: name one of those that GET /v1/models lists.", "model")
    if model not in names:
        there = ", ".join(names)
        raise ApiError(
            404, f"There is no model {shown(model)} here. There is {there}.", "model", "model_not_found"
        )
    return model


def check_chat(request: Mapping[str, Any], limits: Limits, default_tokens: int | None) -> dict[str, Any]:
    """A request to /v1/chat/completions as ms-swift takes it.

    Raises:
        ApiError: it cannot be answered.
    """
    checked = dict(request)
    messages = checked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _refuse("messages must be a list of at least one message.", "messages")
    checked["messages"] = [_message(message, index, limits) for index, message in enumerate(messages)]
    if messages[-1]["role"] == "assistant":
        raise _refuse('The last message must not be from "assistant".', "messages")
    _check_tools(checked)
    _check_media_lists(checked, limits)
    return _with_settings(checked, limits, default_tokens)


def check_completion(
    request: Mapping[str, Any], limits: Limits, default_tokens: int | None
) -> dict[str, Any]:
    """A request to /v1/completions as ms-swift takes it.

    Raises:
        ApiError: it cannot be answered.
    """
    checked = dict(request)
    prompt = checked.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        checked["prompt"] = prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise _refuse("prompt must be one text that is not empty.", "prompt")
    _check_text(prompt, "prompt", limits)
    for name in ("echo", "suffix", "best_of"):
        if checked.get(name) not in (None, False, 1):
            raise _refuse(f"{name} is not supported.", name)
    if isinstance(checked.get("logprobs"), int) and not isinstance(checked["logprobs"], bool):
        checked["top_logprobs"], checked["logprobs"] = checked["logprobs"], True
    _check_media_lists(checked, limits)
    return _with_settings(checked, limits, default_tokens)


def check_embedding(request: Mapping[str, Any], limits: Limits, default_tokens: int | None) -> dict[str, Any]:
    """A request to /v1/embeddings as ms-swift takes it.

    Raises:
        ApiError: it cannot be answered.
    """
    checked = dict(request)
    given = checked.get("input")
    if isinstance(given, list) and len(given) == 1:
        checked["input"] = given = given[0]
    if not isinstance(given, str) or not given:
        raise _refuse("input must be one text that is not empty.", "input")
    _check_text(given, "input", limits)
    _check_media_lists(checked, limits)
    return checked


# --- messages -----------------------------------------------------------------------------------------------


def _message(message: Any, index: int, limits: Limits) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise _refuse(f"{where} must be an object with role and content.", where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise _refuse(f"{where}.role must be one of {', '.join(ROLES)}.", f"{where}.role")
    checked = {**message, "role": "system" if role == "developer" else role}
    if content is None and role == "assistant" and message.get("tool_calls"):
        checked["content"] = ""
    elif isinstance(content, list) and content:
        checked["content"] = [_part(part, f"{where}.content[{i}]", limits) for i, part in enumerate(content)]
    elif isinstance(content, str):
        _check_text(content, f"{where}.content", limits)
    else:
        raise _refuse(f"{where}.content must be text, or a list of parts.", f"{where}.content")
    return checked


def _part(part: Any, where: str, limits: Limits) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise _refuse(f"{where}.text must be text.", where)
        _check_text(part["text"], where, limits)
        return dict(part)
    if kind not in MEDIA_PARTS:
        raise _refuse(f"{where}.type must be one of text, {', '.join(MEDIA_PARTS)}.", where)
    value = part.get(kind)
    url = value.get("url") if isinstance(value, dict) else value
    _check_media(url, f"{where}.{kind}", limits)
    return {"type": kind, kind: {"url": url}} if kind.endswith("_url") else {"type": kind, kind: url}


def _check_text(text: str, where: str, limits: Limits) -> None:
    """Text is harmless but for the tag that makes ms-swift open a file."""
    for path in IMAGE_IN_TEXT.findall(text):
        _check_media(path, where, limits)


def _check_media_lists(request: dict[str, Any], limits: Limits) -> None:
    for name in MEDIA_LISTS:
        values = request.get(name)
        if values in (None, []):
            request.pop(name, None)
            continue
        for value in values if isinstance(values, list) else [values]:
            _check_media(value, name, limits)


def _check_media(value: Any, where: str, limits: Limits) -> None:
    """An image, a sound or a film comes as a URL, as a data URI, or from the folder that is allowed."""
    if not isinstance(value, str) or not value.strip():
        raise _refuse(f"{where} must be an http(s) URL or a data: URI.", where)
    if re.match(r"data:[\w/+.-]*;base64,", value, re.IGNORECASE):
        return
    if re.match(r"https?://", value, re.IGNORECASE):
        if not limits.urls:
            raise _refuse(f"{where} is a URL, which this server does not fetch. Send a data: URI.", where)
        return
    if len(value) > LONGEST_PATH and re.fullmatch(r"[A-Za-z0-9+/\s]+=*\s*", value):
        return
    if limits.media_dir is not None and _is_inside(value, Path(limits.media_dir)):
        if not Path(value).is_file():
            raise _refuse(f"{where} names {value}, which is no file.", where)
        return
    raise _refuse(f"{where} names a local file, which this server does not read. Send a data: URI.", where)


def _is_inside(path: str, folder: Path) -> bool:
    try:
        return Path(path).resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError):
        return False


def _check_tools(request: Mapping[str, Any]) -> None:
    tools, choice = request.get("tools"), request.get("tool_choice")
    if tools is not None and not (isinstance(tools, list) and all(map(_is_function, tools))):
        raise _refuse("tools must be a list of functions with names.", "tools")
    names = [tool["function"]["name"] for tool in tools or []]
    if isinstance(choice, dict) and not (_is_function(choice) and choice["function"]["name"] in names):
        raise _refuse("tool_choice must name one of the tools.", "tool_choice")


def _is_function(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


# --- settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Number:
    """What a number in a request may be: whole or not, and from where to where."""

    whole: bool
    low: float
    high: float
    above_low: bool = False

    def fault(self, value: Any) -> str | None:
        """What ``value`` must be and is not."""
        kinds = (int,) if self.whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high
        if fits and not (self.above_low and value == self.low):
            return None
        kind = "a whole number" if self.whole else "a number"
        start = f"above {self.low:g}" if self.above_low else f"from {self.low:g}"
        end = (
            "on"
            if self.high == float("inf")
            else f"{'and at most' if self.above_low else 'to'} {self.high:g}"
        )
        return f"must be {kind} {start} {end}, not {shown(value)}"


NUMBERS = {
    "temperature": _Number(False, 0, 2),
    "top_p": _Number(False, 0, 1, above_low=True),
    "min_p": _Number(False, 0, 1),
    "top_k": _Number(True, -1, float("inf")),
    "repetition_penalty": _Number(False, 0.1, 10),
    "presence_penalty": _Number(False, -2, 2),
    "frequency_penalty": _Number(False, -2, 2),
    "length_penalty": _Number(False, -10, 10),
    "n": _Number(True, 1, 16),
    "num_beams": _Number(True, 1, 16),
    "top_logprobs": _Number(True, 0, 20),
    "prompt_logprobs": _Number(True, 0, 20),
    "seed": _Number(True, -(2**63), 2**63 - 1),
}
"""The fields of ms-swift's RequestConfig, bounded as in OpenAI's reference where it has them."""


LEAST_TEMPERATURE = 0.01
"""Below it, dividing by the temperature overflows: 0, which always takes the likeliest token, is what is meant."""


def _with_settings(request: dict[str, Any], limits: Limits, default_tokens: int | None) -> dict[str, Any]:
    request["max_tokens"] = _tokens(request, limits, default_tokens)
    for name, number in NUMBERS.items():
        if request.get(name) is None:
            request.pop(name, None)
        elif fault := number.fault(request[name]):
            raise _refuse(f"{name} {fault}.", name)
    if request.get("temperature", 1) < LEAST_TEMPERATURE:
        request["temperature"] = 0
    for name in ("stream", "logprobs"):
        if request.get(name) is None:
            request.pop(name, None)
        elif not isinstance(request[name], bool):
            raise _refuse(f"{name} must be true or false, not {shown(request[name])}.", name)
    _check_stop(request)
    for fault_of in _UNANSWERABLE:
        for name, message in fault_of(request):
            raise _refuse(message, name)
    return request


def _tokens(request: dict[str, Any], limits: Limits, default: int | None) -> int:
    """The longest answer that is asked for; the newer name of the field wins, as at OpenAI."""
    newer = request.pop("max_completion_tokens", None)
    name, asked = (
        ("max_completion_tokens", newer) if newer is not None else ("max_tokens", request.get("max_tokens"))
    )
    if asked is None:
        return min(default or limits.max_tokens, limits.max_tokens)
    if fault := _Number(True, 1, float("inf")).fault(asked):
        raise _refuse(f"{name} {fault}.", name)
    if asked > limits.max_tokens:
        raise _refuse(
            f"{name} is {asked}; this server answers with {limits.max_tokens} tokens at most.", name
        )
    return int(asked)


def _check_stop(request: dict[str, Any]) -> None:
    stop = request.get("stop")
    if stop is None:
        request.pop("stop", None)
        return
    words = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(words, list)
        or not all(isinstance(word, str) and word for word in words)
        or len(words) > 16
    ):
        raise _refuse("stop must be a text or a list of at most 16 texts.", "stop")
    request["stop"] = words


Faults = Iterator[tuple[str, str]]


def _streams_of_many(request: Mapping[str, Any]) -> Faults:
    if request.get("stream") and request.get("n", 1) != 1:
        yield "n", "n must be 1 with stream."
    if request.get("stream") and request.get("num_beams", 1) != 1:
        yield "num_beams", "num_beams must be 1 with stream."


def _several_alike(request: Mapping[str, Any]) -> Faults:
    if request.get("n", 1) > 1 and request.get("num_beams", 1) == 1 and not request.get("temperature"):
        yield "n", "n above 1 needs a temperature above 0: without it all answers are the same."


def _ignored(request: Mapping[str, Any]) -> Faults:
    """What ms-swift would take and not heed."""
    form = request.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        yield "response_format", 'response_format can only be {"type": "text"} here.'
    if request.get("logit_bias"):
        yield "logit_bias", "logit_bias is not supported."


_UNANSWERABLE: tuple[Callable[[Mapping[str, Any]], Faults], ...] = (
    _streams_of_many,
    _several_alike,
    _ignored,
)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        max_tokens: longest answer, in tokens; also the length where a request names none.
        max_body: bytes of a request.
        media_dir: the only directory from which requests may name files; None for no files at all.
        urls: whether pictures are fetched from where requests say. ms-swift 3 would fetch from this machine and its
            network too.
    """

    max_tokens: int = 4096
    max_body: int = 16 << 20
    media_dir: str | None = None
    urls: bool = True
