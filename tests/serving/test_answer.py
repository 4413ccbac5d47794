"""Answers in OpenAI's format."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_toolkit.inference.stop_text import StopText
from swift_toolkit.serving.api.answer import Form, Usage, text_logprobs
from swift_toolkit.serving.api.fields import CHAT, COMPLETIONS, EMBEDDINGS
from swift_toolkit.serving.api.request import ApiRequest, Sampling

LETTERS = st.text("ab", max_size=12)


@given(LETTERS, st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.lists(st.integers(0, 12)))
def test_a_text_ends_before_the_stop_text_that_is_complete_first_however_it_comes(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    places = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    stop = StopText(stops)
    shown = "".join(stop.feed(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces))
    found = [(place + len(one), place) for one in stops if (place := text.find(one)) >= 0]
    assert shown == (text[: min(found)[1]] if found else text)
    assert stop.found == bool(found)


def test_nothing_is_held_back_that_no_stop_text_can_begin_with() -> None:
    stop = StopText(["END"])
    assert [stop.feed(piece) for piece in ("Go E", "N", "d", " on EN", "D.", "more")] == [
        "Go ",
        "",
        "ENd",
        " on ",
        "",
        "",
    ]
    assert stop.found


def form(path: str, **more: Any) -> Form:
    request = ApiRequest(path=path, model="one", conversations=(), sampling=Sampling(stop=("END",)), **more)
    return Form(request, with_tools=False, id="x", created=5)


def answer(text: str, logprobs: Any = None, calls: Any = None) -> Any:
    message = SimpleNamespace(content=text, tool_calls=calls)
    choice = SimpleNamespace(message=message, finish_reason="length", logprobs=logprobs)
    return SimpleNamespace(choices=[choice], usage=SimpleNamespace(prompt_tokens=3, completion_tokens=2))


def test_a_chat() -> None:
    assert form(CHAT).whole([answer("Hi ENDless")]) == {
        "id": "chatcmpl-x",
        "object": "chat.completion",
        "created": 5,
        "model": "one",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi "},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_completions_are_numbered_through() -> None:
    made = form(COMPLETIONS).whole([answer("a"), answer("b")])
    assert [(one["index"], one["text"]) for one in made["choices"]] == [(0, "a"), (1, "b")]
    assert (made["object"], made["usage"]["total_tokens"]) == ("text_completion", 10)


def test_usage_is_only_sent_where_it_is_asked_for() -> None:
    choice = SimpleNamespace(delta=SimpleNamespace(content="a", tool_calls=None), logprobs=None)
    assert "usage" not in form(CHAT, stream=True).piece(choice, "a", None)
    asked = form(CHAT, stream=True, include_usage=True)
    assert asked.piece(choice, "a", None)["usage"] is None
    last = asked.last(Usage(3, 2))
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5)


def test_log_probabilities_of_a_completion() -> None:
    tokens = [
        {"token": text, "logprob": -1.0, "top_logprobs": [{"token": text, "logprob": -1.0}]}
        for text in ("Hi", " E")
    ]
    assert text_logprobs({"content": tokens}, "Hi", "stop") == {
        "tokens": ["Hi"],
        "token_logprobs": [-1.0],
        "top_logprobs": [{"Hi": -1.0}],
        "text_offset": [0],
    }
    assert text_logprobs(None, "Hi", None) is None


@pytest.mark.parametrize(("packed", "expected"), [(False, [0.5, -1.0]), (True, "AAAAPwAAgL8=")])
def test_embeddings(packed: bool, expected: Any) -> None:
    vector = SimpleNamespace(
        data=[SimpleNamespace(embedding=[0.5, -1.0])],
        usage=SimpleNamespace(prompt_tokens=3, completion_tokens=0),
    )
    made = form(EMBEDDINGS, base64=packed).vectors([vector, vector])
    assert [one["embedding"] for one in made["data"]] == [expected, expected]
    assert made["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert json.dumps(made)


@pytest.mark.parametrize(
    ("content", "text"),
    [(2, "2"), ([0, 2], "0, 2"), ([0.93456789], "0.934568"), (-1.5, "-1.5"), (None, None)],
)
def test_classes_and_scores_are_text(content: Any, text: str | None) -> None:
    (choice,) = form(CHAT).whole([answer(content)])["choices"]
    assert choice["message"]["content"] == text  # type: ignore[typeddict-item]


def test_the_log_probabilities_of_classes_are_kept() -> None:
    classes = {"content": [{"index": 1, "logprob": -0.5}, {"index": 0, "logprob": -0.9}]}
    (choice,) = form(CHAT).whole([answer(1, logprobs=classes)])["choices"]  # type: ignore[arg-type]
    assert choice["logprobs"] == classes
