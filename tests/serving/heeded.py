"""Whether a running server applies or refuses every field of a request, as the table of fields says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from swift_toolkit.serving.api.fields import ENDPOINTS, FIELDS, RequestField

PATHS = {name: path for path, name in ENDPOINTS.items()}
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
"""Every request has a connection of its own, but the certificates are read once, which takes 30 ms."""
QUESTION = [{"role": "user", "content": "What is your name?"}]
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        url: its base URL.
        key: the API key.
        model: the model to ask.
    """

    url: str
    key: str
    model: str

    def post(self, endpoint: str, **fields: Any) -> httpx.Response:
        """The response to a request with these fields, greedy and short unless they say otherwise."""
        asked: dict[str, Any] = {"model": self.model}
        asked |= {
            "chat": {"messages": QUESTION, "max_tokens": 12, "temperature": 0},
            "completions": {"prompt": "My name is", "max_tokens": 12, "temperature": 0},
            "embeddings": {"input": "Hi"},
        }[endpoint]
        url = self.url.removesuffix("/v1") + PATHS[endpoint]
        headers = {"Authorization": f"Bearer {self.key}"}
        body = {name: value for name, value in {**asked, **fields}.items() if value is not ...}
        return CLIENT.post(url, json=body, headers=headers, timeout=300)

    def answer(self, endpoint: str, **fields: Any) -> Any:
        """The answer to such a request."""
        response = self.post(endpoint, **fields)
        assert response.status_code == 200, (fields, response.text)
        return response.json()

    def text(self, endpoint: str, **fields: Any) -> str:
        """The text of the answer."""
        choice = self.answer(endpoint, **fields)["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])

    def tokens(self, endpoint: str, **fields: Any) -> int:
        """The length of the answer."""
        return int(self.answer(endpoint, **fields)["usage"]["completion_tokens"])


Check = Callable[[Server, str], object]


def _same_as_greedy(**fields: Any) -> Check:
    """With these fields only the most likely token is left, whatever the temperature."""

    def check(server: Server, where: str) -> bool:
        drawn = {server.text(where, temperature=1.9, seed=seed) for seed in (1, 2)}
        only = {server.text(where, temperature=1.9, seed=seed, **fields) for seed in (1, 2)}
        return only == {server.text(where)} != drawn

    return check


def _same(**fields: Any) -> Check:
    return lambda server, where: server.text(where, **fields) == server.text(where)


def _another(**fields: Any) -> Check:
    def check(server: Server, where: str) -> bool:
        long: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
        return server.text(where, **long, **fields) != server.text(where, **long)

    return check


def _seed(server: Server, where: str) -> bool:
    def drawn(seed: int) -> str:
        return server.text(where, temperature=1.5, seed=seed)

    return drawn(5) == drawn(5) != drawn(6)


def _temperature(server: Server, where: str) -> bool:
    return len({server.text(where, temperature=1.9, seed=seed) for seed in range(4)}) > 1


def _stop(server: Server, where: str) -> bool:
    whole = server.text(where)
    stop = whole[len(whole) // 2 :][:2]
    choice = server.answer(where, stop=[stop])["choices"][0]
    cut = choice["message"]["content"] if "message" in choice else choice["text"]
    return bool(cut == whole[: whole.index(stop)] and choice["finish_reason"] == "stop")


def _events(server: Server, where: str, **fields: Any) -> list[Any]:
    response = server.post(where, stream=True, **fields)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def _stream(server: Server, where: str) -> bool:
    choices = [event["choices"][0] for event in _events(server, where)]
    pieces = [one["delta"].get("content") or "" if "delta" in one else one["text"] for one in choices]
    return "".join(pieces) == server.text(where)


def _stream_options(server: Server, where: str) -> bool:
    *others, last = _events(server, where, stream_options={"include_usage": True})
    return not any(one.get("usage") for one in others) and last["usage"]["completion_tokens"] > 1


def _logprobs(server: Server, where: str) -> bool:
    asked: dict[str, Any] = (
        {"logprobs": 2} if where == "completions" else {"logprobs": True, "top_logprobs": 2}
    )
    found = server.answer(where, **asked)["choices"][0]["logprobs"]
    tops = (
        found["top_logprobs"] if where == "completions" else [one["top_logprobs"] for one in found["content"]]
    )
    return len(tops) > 1 and all(1 <= len(top) <= 3 for top in tops)  # two tokens may have the same text


def _tools(server: Server, where: str) -> bool:
    def length(**fields: Any) -> int:
        return int(server.answer(where, **fields)["usage"]["prompt_tokens"])

    refusal = server.post(where, tools=[TOOL])
    if refusal.status_code == 400 and refusal.json()["error"]["param"] == "tools":
        return "does not support tools" in refusal.text  # as the template of this model says
    plain = length()
    return length(tools=[TOOL]) > plain + 5 and length(tools=[TOOL], tool_choice="none") == plain


def _max_tokens(name: str) -> Check:
    return lambda server, where: server.tokens(where, ignore_eos=True, **{name: 5}) == 5


def _digits(server: Server, where: str) -> bool:
    return re.fullmatch("[0-9]{3}", server.text(where, structured_outputs_regex="[0-9]{3}")) is not None


CHECKS: dict[str, Check] = {
    "model": lambda server, where: server.post(where, model="other").status_code == 404,
    "messages": lambda server, where: server.text(where, messages=[{"role": "user", "content": "Count."}]),
    "prompt": lambda server, where: len(server.answer(where, prompt=["a", "b"])["choices"]) == 2,
    "max_tokens": _max_tokens("max_tokens"),
    "max_completion_tokens": _max_tokens("max_completion_tokens"),
    "temperature": _temperature,
    "top_p": _same_as_greedy(top_p=0.0001),
    "top_k": _same_as_greedy(top_k=1),
    "min_p": _same_as_greedy(min_p=1),
    "repetition_penalty": _another(repetition_penalty=5),
    "presence_penalty": _another(presence_penalty=2),
    "frequency_penalty": _another(frequency_penalty=2),
    "length_penalty": lambda server, where: server.text(where, num_beams=3, length_penalty=-5, max_tokens=30),
    "num_beams": lambda server, where: server.text(where, num_beams=3),
    "n": lambda server, where: len(server.answer(where, n=3, temperature=1.5)["choices"]) == 3,
    "seed": _seed,
    "stop": _stop,
    "min_tokens": lambda server, where: server.tokens(where, max_tokens=40, min_tokens=38) >= 38,
    "ignore_eos": lambda server, where: server.tokens(where, max_tokens=60, ignore_eos=True) == 60,
    "stream": _stream,
    "stream_options": _stream_options,
    "logprobs": _logprobs,
    "top_logprobs": _logprobs,
    "structured_outputs_regex": _digits,
    "tools": _tools,
    "tool_choice": _tools,
    "chat_template_kwargs": _same(chat_template_kwargs={"enable_thinking": False}),
    "objects": _same(objects={}),
    "user": _same(user="u"),
    "metadata": _same(metadata={"a": "b"}),
    "safety_identifier": _same(safety_identifier="s"),
    "prompt_cache_key": _same(prompt_cache_key="k"),
}
"""How to see that a field has its effect."""

ELSEWHERE = {
    "input": "needs a model for embeddings",
    "encoding_format": "needs a model for embeddings",
    "images": "needs a multimodal model",
    "audios": "needs a multimodal model",
    "videos": "needs a multimodal model",
}
"""Fields that a text model cannot apply."""

REFUSED: dict[str, Any] = {
    "min_p": 0.5, "presence_penalty": 1, "frequency_penalty": 1, "length_penalty": 2, "num_beams": 2, "n": 2,
    "best_of": 2, "seed": 1, "stop_token_ids": [1], "include_stop_str_in_output": True, "min_tokens": 1,
    "ignore_eos": True, "skip_special_tokens": False, "logprobs": True, "top_logprobs": 1, "echo": True, "suffix": "x",
    "logit_bias": {"5": 1}, "response_format": {"type": "json_object"}, "structured_outputs_regex": "a",
    "guided_json": {}, "guided_regex": "a", "guided_choice": ["a"], "guided_grammar": "a",
    "guided_decoding_backend": "a", "structured_outputs": {"choice": ["a"]}, "parallel_tool_calls": False,
    "functions": [{"name": "f"}], "function_call": {"name": "f"}, "modalities": ["audio"], "audio": {"voice": "a"},
    "prediction": {"type": "content"}, "reasoning_effort": "low", "verbosity": "low", "web_search_options": {},
    "store": True, "service_tier": "flex",
}  # fmt: skip
"""A value with an effect for each field that some backend refuses."""


TWICE = ("max_tokens", "stop", "stream", "logprobs")
"""Fields that are applied in a way of their own to completions; the others are checked once."""


def faults(server: Server, backend: str) -> Iterator[str]:
    """Where the server does something else than the table says."""
    for one in FIELDS:
        for where in one.endpoints if one.name in TWICE else one.endpoints[:1]:
            if where == "embeddings" or one.name in ELSEWHERE:
                continue
            if backend in one.backends:
                if not CHECKS[one.name](server, where):
                    yield f"{one.name} of {where} has no effect"
            else:
                yield from _not_refused(server, one, where)


def _not_refused(server: Server, one: RequestField, where: str) -> Iterator[str]:
    response = server.post(where, **{one.name: REFUSED[one.name]})
    if response.status_code != 400 or response.json()["error"]["param"] != one.name:
        yield f"{one.name} of {where} is not refused: {response.text}"
    for neutral in one.neutral:
        if (response := server.post(where, **{one.name: neutral})).status_code != 200:
            yield f"{one.name} = {neutral} of {where} is refused: {response.text}"
