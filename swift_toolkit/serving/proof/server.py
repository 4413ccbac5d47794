"""Compares with a running server that supports OpenAI's chat completions."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swift_toolkit.console.words import listed, shown
from swift_toolkit.problems import Problem, RequestError, RunError, first_line
from swift_toolkit.serving.proof.exchange import Deviation, Messages, ProofSide, Response, shared_length
from swift_toolkit.serving.proof.prove import Told
from swift_toolkit.serving.proof.verdict import Proof, give_verdict

_SECONDS = 300
"""Seconds that an answer may take."""


def prove_server(told: Told, url: str, model: str, key_variable: str) -> Proof:
    """Ask a server the same questions as the checkpoint and judge the answers.

    Args:
        told: the answers of the checkpoint.
        url: base URL of the server, ``http://host:port/v1``.
        model: the model name to request, see `served_model`.
        key_variable: environment variable that may contain the API key.

    Raises:
        RunError: the server does not answer.
    """
    server = _Server(url, os.environ.get(key_variable))
    asked = tuple(
        _asked(server, model, messages, one, told.order.max_tokens)
        for messages, one in zip(told.order.questions, told.side.asked, strict=True)
    )
    side = ProofSide(
        asked=asked,
        vocabulary=told.side.vocabulary,
        added={},
        stop_ids=_stop_ids(told.side, asked),
        read_by=f"{model} at {url}",
    )
    seen = [*_prompt_faults(server, model, told, asked)]
    matching = replace(
        side, asked=tuple(_same_prompt(*pair) for pair in zip(told.side.asked, asked, strict=True))
    )
    return give_verdict(told.side, matching, told.questions, "server", seen)


def served_model(url: str, model: str | None, key_variable: str) -> str:
    """The name of the model to request: ``model``, or the only one that the server at ``url`` has.

    Raises:
        RequestError: the server does not serve this model, or serves several and none is named.
        RunError: the server does not answer.
    """
    names = _Server(url, os.environ.get(key_variable)).models()
    if not names:
        raise RunError(f"{url} does not serve any model.")
    if model in names or (model is None and len(names) == 1):
        return model or names[0]
    what = f"serves {len(names)} models" if model is None else f"does not serve {shown(model)}"
    do = f"Name one of them: {listed(names)}"
    raise RequestError([Problem(f"{url} {what}", do, "--served-model-name")])


class _Server:
    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._key = url.rstrip("/"), key

    def models(self) -> list[str]:
        """The names that requests may ask for."""
        return [str(one["id"]) for one in self._json("/models", None).get("data") or []]

    def answer(self, model: str, messages: Messages, max_tokens: int) -> Any:
        """Request an answer; return the response of the server."""
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        return self._json("/chat/completions", body)

    def _json(self, path: str, body: object) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            said = first_line(error.read(500).decode("utf-8", "replace"))
            raise RunError(f"{self._url}{path} returned status {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self._url} does not answer: {getattr(error, 'reason', error)}") from None


def _asked(server: _Server, model: str, messages: Messages, told: Response, max_tokens: int) -> Response:
    reply = server.answer(model, messages, max_tokens)
    choice = reply["choices"][0]
    text = choice["message"]["content"] or ""
    return Response(
        prompt="",
        prompt_ids=(-1,) * int((reply.get("usage") or {}).get("prompt_tokens") or 0),
        plain_ids=told.plain_ids,
        answer=text,
        answer_ids=_as_tokens(text, told),
        ended=choice.get("finish_reason") == "stop",
    )


def _as_tokens(text: str, told: Response) -> tuple[int, ...]:
    """The checkpoint's own tokens as far as the texts agree, then one that is not in its vocabulary."""
    if text.strip() == told.answer.strip():
        return told.answer_ids
    alike = shared_length(text, told.answer)
    shared = sum(end <= alike for end in told.offsets)
    return (*told.answer_ids[:shared], -1)


def _same_prompt(told: Response, asked: Response) -> Response:
    """Assume that the prompts are equal: a server only returns their number of tokens, see `_prompt_faults`."""
    return replace(asked, prompt=told.prompt, prompt_ids=told.prompt_ids)


def _prompt_faults(server: _Server, model: str, told: Told, asked: Sequence[Response]) -> list[Deviation]:
    """Find problems from the numbers of prompt tokens."""
    for messages, one, other in zip(told.order.questions, told.side.asked, asked, strict=True):
        here, there = len(one.prompt_ids), len(other.prompt_ids)
        if not there or here == there:
            continue
        system = told.side.chat.system if told.side.chat else ""
        if system and messages[0]["role"] != "system":
            more = [{"role": "system", "content": system}, *messages]
            if (server.answer(model, more, 1).get("usage") or {}).get("prompt_tokens") == here:
                return [Deviation("prompt", "the server does not add the system prompt of the training")]
        return [Deviation("template", f"a prompt has {there} tokens on the server, but {here} in training")]
    return []


def _stop_ids(told: ProofSide, asked: Sequence[Response]) -> tuple[int, ...]:
    """The checkpoint's stop tokens; none if the server ended none of the answers that the checkpoint ended."""
    ended = [other.ended for one, other in zip(told.asked, asked, strict=True) if one.ended]
    return told.stop_ids if not ended or any(ended) else ()
