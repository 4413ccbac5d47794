"""Every field of an OpenAI request, and what each backend does with it: apply it or refuse it.

python -m swift_toolkit.serving.api.fields > docs/openai_fields.md
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swift_toolkit.console.words import did_you_mean, shown
from swift_toolkit.inference.backend import BACKENDS
from swift_toolkit.serving.api.schema import RequestBody

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"

ENDPOINTS = {CHAT: "chat", COMPLETIONS: "completions", EMBEDDINGS: "embeddings"}
FIELD_BACKENDS = tuple(BACKENDS)
NOWHERE: tuple[str, ...] = ()

Check = Callable[[Any], str | None]
"""Returns the problem with a value, as the end of a sentence that begins with the field name; None if it is valid."""


@dataclass(frozen=True)
class Number:
    """A check: a number within bounds.

    Args:
        low: the minimum.
        high: the maximum.
        whole: it must be an integer.
        above_low: ``low`` itself is not allowed.
    """

    low: float
    high: float = float("inf")
    whole: bool = False
    above_low: bool = False

    def __call__(self, value: Any) -> str | None:
        """The problem with ``value``, None if it is valid."""
        kinds = (int,) if self.whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high
        if fits and not (self.above_low and value == self.low):
            return None
        return f"must be {self}, not {shown(value)}"

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.high == float("inf"):
            return f"{kind} {'above' if self.above_low else 'of at least'} {self.low:g}"
        if self.above_low:
            return f"{kind} above {self.low:g} and at most {self.high:g}"
        return f"{kind} from {self.low:g} to {self.high:g}"


def boolean(value: Any) -> str | None:
    """A check: true or false."""
    return None if isinstance(value, bool) else f"must be true or false, not {shown(value)}"


def stop_texts(value: Any) -> str | None:
    """A check: a string or a list of strings."""
    texts = [value] if isinstance(value, str) else value
    fits = isinstance(texts, list) and len(texts) <= 16 and all(isinstance(one, str) and one for one in texts)
    return None if fits else "must be a string or a list of at most 16 strings"


def text(value: Any) -> str | None:
    """A check: a string."""
    return None if isinstance(value, str) else f"must be a string, not {shown(value)}"


def mapping(value: Any) -> str | None:
    """A check: an object."""
    return None if isinstance(value, dict) else f"must be an object, not {shown(value)}"


def stream_options(value: Any) -> str | None:
    """A check: ``{"include_usage": bool}``."""
    fits = isinstance(value, dict) and value.keys() <= {"include_usage", "include_obfuscation"}
    if fits and not value.get("include_obfuscation") and isinstance(value.get("include_usage", False), bool):
        return None
    return 'must be {"include_usage": true} or {"include_usage": false}'


def tools(value: Any) -> str | None:
    """A check: a list of functions."""
    fits = isinstance(value, list) and all(map(_is_function, value))
    return None if fits else "must be a list of functions that have names"


def _is_function(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    return isinstance(function.get("parameters", {}), dict)


def one_of(*choices: str) -> Check:
    """A check: one of several strings."""
    listed = " or ".join(map(json.dumps, choices))
    return lambda value: None if value in choices else f"must be {listed}"


def anything(value: Any) -> str | None:
    """A check that accepts every value, because a later check validates it."""
    return None


@dataclass(frozen=True)
class RequestField:
    """One field of a request.

    Args:
        name: name of the field.
        endpoints: endpoints that have it: ``chat``, ``completions``, ``embeddings``.
        backends: backends that apply it; the others refuse it.
        check: the check of its value.
        neutral: values without effect, which every backend accepts; null is always one.
        note: further information for the documentation.
    """

    name: str
    endpoints: tuple[str, ...]
    backends: tuple[str, ...] = FIELD_BACKENDS
    check: Check = anything
    neutral: tuple[Any, ...] = ()
    note: str = ""


_TEXT = ("chat", "completions")
_ALL = ("chat", "completions", "embeddings")
_MEDIA_NOTE = "ms-swift's own list, separate from the messages; only for a model that accepts such media"

FIELDS = (
    RequestField("model", _ALL, note="one of the models that `GET /v1/models` lists"),
    RequestField("messages", ("chat",),
          note="messages from `system` and `developer` are only allowed at the beginning; they are joined"),
    RequestField("prompt", ("completions",),
          note="a string or a list of strings; the answer continues it, without a chat template"),
    RequestField("input", ("embeddings",),
          note="a string or a list of strings; only for a model that was trained for embeddings"),
    RequestField("encoding_format", ("embeddings",), check=one_of("float", "base64")),
    RequestField("max_tokens", _TEXT, check=Number(1, whole=True), note="at most `--max-tokens-limit`"),
    RequestField("max_completion_tokens", ("chat",), check=Number(1, whole=True),
          note="the newer name of `max_tokens`; it takes precedence"),
    RequestField("temperature", _TEXT, check=Number(0, 2), note="below 0.01 it means 0: greedy decoding"),
    RequestField("top_p", _TEXT, check=Number(0, 1, above_low=True)),
    RequestField("top_k", _TEXT, check=Number(-1, whole=True)),
    RequestField("min_p", _TEXT, ("pt", "vllm"), Number(0, 1), (0,)),
    RequestField("repetition_penalty", _TEXT, check=Number(0.1, 10)),
    RequestField("presence_penalty", _TEXT, ("vllm", "sglang"), Number(-2, 2), (0,)),
    RequestField("frequency_penalty", _TEXT, ("vllm", "sglang"), Number(-2, 2), (0,)),
    RequestField("length_penalty", _TEXT, ("pt",), Number(-10, 10), (1,), "with `num_beams`"),
    RequestField("num_beams", _TEXT, ("pt",), Number(1, 16, whole=True), (1,), "not with `stream`"),
    RequestField("n", _TEXT, ("pt", "vllm"), Number(1, 16, whole=True), (1,),
          "above 1 not with `stream`, nor with temperature 0"),
    RequestField("best_of", ("completions",), NOWHERE, neutral=(1,)),
    RequestField("seed", _TEXT, ("pt", "vllm"), Number(-(2**63), 2**63 - 1, whole=True),
          note="pt does not batch such a request with others"),
    RequestField("stop", _TEXT, check=stop_texts, neutral=([],),
          note="up to 16 strings; the answer ends before the first of them"),
    RequestField("stop_token_ids", _TEXT, NOWHERE, neutral=([],)),
    RequestField("include_stop_str_in_output", _TEXT, NOWHERE, neutral=(False,)),
    RequestField("min_tokens", _TEXT, ("pt", "vllm"), Number(0, whole=True), (0,)),
    RequestField("ignore_eos", _TEXT, ("pt", "vllm"), boolean, (False,)),
    RequestField("skip_special_tokens", _TEXT, NOWHERE, neutral=(True,)),
    RequestField("stream", _TEXT, check=boolean),
    RequestField("stream_options", _TEXT, check=stream_options,
          note="`include_usage` adds a last event with the usage; only with `stream`"),
    RequestField("logprobs", _TEXT, ("pt", "vllm", "lmdeploy"), neutral=(False,),
          note="true or false for a chat; for a completion a number from 0 to 20"),
    RequestField("top_logprobs", ("chat",), ("pt", "vllm", "lmdeploy"), Number(0, 20, whole=True), (0,),
          "only with `logprobs`"),
    RequestField("echo", ("completions",), NOWHERE, neutral=(False,)),
    RequestField("suffix", ("completions",), NOWHERE, neutral=("",)),
    RequestField("logit_bias", _TEXT, NOWHERE, neutral=({},)),
    RequestField("response_format", _TEXT, NOWHERE, neutral=({"type": "text"},)),
    RequestField("structured_outputs_regex", _TEXT, ("vllm",), text,
          note="ms-swift's own: the answer matches the regular expression"),
    RequestField("guided_json", _TEXT, NOWHERE),
    RequestField("guided_regex", _TEXT, NOWHERE),
    RequestField("guided_choice", _TEXT, NOWHERE, neutral=([],)),
    RequestField("guided_grammar", _TEXT, NOWHERE),
    RequestField("guided_decoding_backend", _TEXT, NOWHERE),
    RequestField("structured_outputs", _TEXT, NOWHERE),
    RequestField("tools", ("chat",), check=tools, neutral=([],)),
    RequestField("tool_choice", ("chat",), check=one_of("none", "auto"), note="a call cannot be forced"),
    RequestField("parallel_tool_calls", ("chat",), NOWHERE, neutral=(True,)),
    RequestField("functions", ("chat",), NOWHERE, neutral=([],), note="use `tools`"),
    RequestField("function_call", ("chat",), NOWHERE, neutral=("none", "auto"), note="use `tool_choice`"),
    RequestField("chat_template_kwargs", ("chat",), check=mapping, neutral=({},), note="such as `enable_thinking`"),
    RequestField("images", _ALL, note=_MEDIA_NOTE, neutral=([],)),
    RequestField("audios", _ALL, note=_MEDIA_NOTE, neutral=([],)),
    RequestField("videos", _ALL, note=_MEDIA_NOTE, neutral=([],)),
    RequestField("objects", ("chat",), check=mapping, neutral=({}, []),
          note="ms-swift's own: boxes and references for grounding"),
    RequestField("modalities", ("chat",), NOWHERE, neutral=(["text"],)),
    RequestField("audio", ("chat",), NOWHERE),
    RequestField("prediction", ("chat",), NOWHERE),
    RequestField("reasoning_effort", ("chat",), NOWHERE),
    RequestField("verbosity", ("chat",), NOWHERE),
    RequestField("web_search_options", ("chat",), NOWHERE),
    RequestField("dimensions", ("embeddings",), NOWHERE),
    RequestField("store", ("chat",), NOWHERE, neutral=(False,)),
    RequestField("user", _ALL, note="no effect on the answer"),
    RequestField("metadata", ("chat",), note="no effect on the answer"),
    RequestField("service_tier", _TEXT, NOWHERE, neutral=("auto", "default")),
    RequestField("safety_identifier", ("chat",), note="no effect on the answer"),
    RequestField("prompt_cache_key", ("chat",), note="no effect on the answer"),
)  # fmt: skip


FieldFault = tuple[str, str]
"""A field and a complete sentence about it."""


def field_faults(request: RequestBody, path: str, backend: str) -> Iterator[FieldFault]:
    """Check the fields of a request one by one and yield the problems.

    Args:
        request: the body, without fields that are null.
        path: the endpoint, e.g. ``/v1/completions``.
        backend: the backend that answers.
    """
    known = {one.name: one for one in FIELDS if ENDPOINTS[path] in one.endpoints}
    for name, value in request.items():
        one = known.get(name)
        if one is None:
            yield name, _unknown(name, path, known)
        elif _is_neutral(value, one):
            continue
        elif backend not in one.backends:
            only = f": only with {' and '.join(one.backends)}" if one.backends else ""
            yield name, f"{name} is not supported here{only}."
        elif fault := one.check(value):
            yield name, f"{name} {fault}."


def _is_neutral(value: Any, one: RequestField) -> bool:
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in one.neutral
    )


def _unknown(name: str, path: str, known: Mapping[str, RequestField]) -> str:
    return f"{shown(name)} is not a field of {path}. {did_you_mean(name, known)}".rstrip()


# --- the documentation --------------------------------------------------------------------------------------

_TITLE = """\
# Fields of a request

How the server handles every field of OpenAI's requests, and those of vLLM and ms-swift that clients send. **yes**: the
field is applied; **-**: it is refused with status 400 unless its value has no effect. `null` never has an effect.
Fields that are not in the table are refused too. Generated from `swift_toolkit/serving/api/fields.py` by
`python -m swift_toolkit.serving.api.fields`.
"""


def as_markdown() -> str:
    """The table of all fields."""
    head = ["field", "endpoints", *FIELD_BACKENDS, "no effect", ""]
    lines = [head, ["---"] * len(head), *map(_row, FIELDS)]
    return _TITLE + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _row(one: RequestField) -> list[str]:
    applied = ["yes" if backend in one.backends else "-" for backend in FIELD_BACKENDS]
    neutral = ", ".join(f"`{json.dumps(value)}`" for value in one.neutral)
    value = f"{one.check}" if isinstance(one.check, Number) else ""
    return [
        f"`{one.name}`",
        ", ".join(one.endpoints),
        *applied,
        neutral,
        "; ".join(filter(None, (value, one.note))),
    ]


if __name__ == "__main__":
    print(as_markdown(), end="")
