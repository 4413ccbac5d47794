"""What the server refuses before the engine sees it, and in which words."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swift_toolkit.serving.api import fields
from swift_toolkit.serving.api import request as api_request
from swift_toolkit.serving.api.fields import CHAT, COMPLETIONS, EMBEDDINGS
from swift_toolkit.serving.api.request import ApiError, ApiRequest, Conversation, Facts, Limits
from tests.clock import processor_seconds
from tests.serving import heeded

LIMITS = Limits(max_tokens=100)
HELLO = [{"role": "user", "content": "Hello"}]
SEES = Facts(multimodal=True)
NAMES = ["one", "two"]


def check(path: str, limits: Limits = LIMITS, facts: Facts = SEES, **body: Any) -> ApiRequest:
    return api_request.check_fields(path, {"model": "one", **body}, NAMES, limits, facts)


def chat(limits: Limits = LIMITS, facts: Facts = SEES, **body: Any) -> Conversation:
    return check(CHAT, limits, facts, **{"messages": HELLO, **body}).conversations[0]


def refusal(path: str = CHAT, facts: Facts = SEES, **body: Any) -> tuple[str, str | None]:
    body = {"messages": HELLO, **body} if path == CHAT else body
    with pytest.raises(ApiError) as caught:
        check(path, facts=facts, **body)
    assert caught.value.status == 400
    return caught.value.message, caught.value.param


def test_an_error_is_in_the_format_of_openai() -> None:
    error = ApiError(404, "There is no model.", "model", "model_not_found")
    assert json.loads(error.body()) == {
        "error": {
            "message": "There is no model.",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


DEEP = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{bad", "The body of the request is not valid JSON (line 1, column 2)."),
        (b"", "The body of the request is not valid JSON (line 1, column 1)."),
        (b'{"a": "\xff"}', "The body of the request is not valid JSON."),
        (b"[1]", "The body of the request must be a JSON object."),
        (b"[" * 100_000, "The body of the request is not valid JSON."),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}",
         "The body of the request is nested more than 64 levels deep."),
        (b'{"a": ' + b"9" * 10_000 + b"}", "The body of the request is not valid JSON."),
    ],
)  # fmt: skip
def test_a_body_that_is_not_a_request(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        api_request.parse_request(body)
    assert caught.value.message == message


def test_the_model_must_be_there() -> None:
    assert api_request.check_model({"model": "one"}, NAMES) == "one"
    with pytest.raises(ApiError) as caught:
        api_request.check_model({"model": "c"}, NAMES)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert caught.value.message == 'The model "c" does not exist. Available models: one, two.'


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"messages": []}, "messages must be a list of at least one message.", "messages"),
        ({"messages": "hi"}, "messages must be a list of at least one message.", "messages"),
        ({"messages": ["hi"]}, "messages[0] must be an object with role and content.", "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be a string or a list of parts.",
         "messages[0].content"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]},
         'The last message must not be from "assistant".', "messages"),
        ({"messages": [{"role": "system", "content": "Hi"}]}, 'The last message must not be from "system".', "messages"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "ho"}, {"role": "system", "content": "B"}, *HELLO]},
         "messages[2].role is system; only the first messages may be from system.",
         "messages[2].role"),
        ({"messages": [{"role": "user", "content": "a\ud800"}]},
         "The text contains a lone surrogate (half a character), which no model can read.", "messages"),
        ({"max_tokens": -5}, "max_tokens must be a whole number of at least 1, not -5.", "max_tokens"),
        ({"max_tokens": 101}, "max_tokens is 101; this server generates at most 100 tokens.", "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens must be a whole number of at least 1, not true.",
         "max_completion_tokens"),
        ({"temperature": 3}, "temperature must be a number from 0 to 2, not 3.", "temperature"),
        ({"temperature": float("nan")}, "temperature must be a number from 0 to 2, not NaN.", "temperature"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty must be a number from 0.1 to 10, not 1e-300.",
         "repetition_penalty"),
        ({"top_p": 0}, "top_p must be a number above 0 and at most 1, not 0.", "top_p"),
        ({"n": 2, "stream": True}, "n must be 1 with stream.", "n"),
        ({"n": 2}, "n above 1 needs a temperature above 0: without it all answers are the same.", "n"),
        ({"n": 2, "temperature": 0}, "n above 1 needs a temperature above 0: without it all answers are the same.", "n"),
        ({"stream": "yes"}, 'stream must be true or false, not "yes".', "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options needs stream to be true.", "stream_options"),
        ({"stop": [1]}, "stop must be a string or a list of at most 16 strings.", "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported here.", "response_format"),
        ({"guided_json": {"type": "object"}}, "guided_json is not supported here.", "guided_json"),
        ({"presence_penalty": 1}, "presence_penalty is not supported here: only with vllm and sglang.",
         "presence_penalty"),
        ({"logit_bias": {"1": 2}}, "logit_bias is not supported here.", "logit_bias"),
        ({"tools": [{}]}, "tools must be a list of functions that have names.", "tools"),
        ({**DEEP, "tool_choice": "required"}, 'tool_choice must be "none" or "auto".',
         "tool_choice"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs to be true.", "top_logprobs"),
        ({"temprature": 1}, '"temprature" is not a field of /v1/chat/completions. Did you mean "temperature"?', "temprature"),
        ({"min_tokens": 200}, "min_tokens must be at most max_tokens, which is 100.", "min_tokens"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs.chat_template is not supported.",
         "chat_template_kwargs.chat_template"),
        ({"images": ["/etc/passwd"]},
         "images names a local file, which this server does not read. Send a data: URI.", "images"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered(body: dict[str, Any], message: str, param: str) -> None:
    assert refusal(**body) == (message, param)


def test_what_the_model_cannot_do() -> None:
    picture = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}
    ]
    text = Facts()
    assert refusal(facts=text, messages=picture) == (
        "This model only accepts text, not image input.",
        "messages[0].content[0].image_url",
    )
    assert refusal(EMBEDDINGS, text, input="x")[0] == "This model was not trained to make embeddings."
    vectors = Facts(task="embedding")
    assert refusal(facts=vectors)[0] == "This model only makes embeddings: use /v1/embeddings."
    assert refusal(COMPLETIONS, Facts(task="seq_cls"), prompt="x")[0] == (
        "This model does not generate text: use /v1/chat/completions."
    )
    assert len(check(EMBEDDINGS, facts=vectors, input=["a", "b"]).conversations) == 2


def test_a_prompt_that_cannot_fit_is_refused_by_its_length() -> None:
    facts = Facts(prompt_bytes=1000)
    assert chat(facts=facts, messages=[{"role": "user", "content": "x" * 1000}])
    assert refusal(facts=facts, messages=[{"role": "user", "content": "é" * 501}]) == (
        "The prompt is too long: it has 1,002 bytes; the context holds at most 1,000.",
        "messages",
    )


def test_a_field_that_asks_for_nothing_is_taken_everywhere() -> None:
    for one in fields.FIELDS:
        for path, endpoint in fields.ENDPOINTS.items():
            if endpoint not in one.endpoints or one.name in ("model", "messages", "prompt", "input"):
                continue
            for value in one.neutral:
                for backend in fields.FIELD_BACKENDS:
                    assert not list(fields.field_faults({one.name: value}, path, backend)), one.name


def test_the_documentation_says_what_the_table_says() -> None:
    written = Path(__file__).resolve().parents[2] / "docs/openai_fields.md"
    assert written.read_text(encoding="utf-8") == fields.as_markdown(), (
        "run python -m swift_toolkit.serving.api.fields"
    )


# --- what is asked ------------------------------------------------------------------------------------------


def test_the_request_is_put_as_ms_swift_takes_it() -> None:
    parts = [
        {"type": "text", "text": "Hi "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
    ]
    request = check(
        CHAT,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": parts},
        ],
        stop="END",
        max_completion_tokens=7,
        temperature=None,
    )
    (conversation,) = request.conversations
    assert conversation.messages == (
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Hi <image>"},
    )
    assert [one.source for one in conversation.media] == ["data:image/png;base64,AA"]
    assert (request.sampling.stop, request.sampling.max_tokens) == (("END",), 7)
    assert request.sampling.temperature is None


def test_a_completion_is_a_text_to_go_on_from() -> None:
    request = check(COMPLETIONS, prompt=["Once", "Twice"], logprobs=2)
    assert [one.messages[0]["content"] for one in request.conversations] == ["Once", "Twice"]
    assert all(one.plain for one in request.conversations)
    assert (request.sampling.logprobs, request.sampling.top_logprobs) == (True, 2)
    assert refusal(COMPLETIONS, prompt=[[1, 2]])[0] == (
        "prompt must be a non-empty string or a list of non-empty strings."
    )
    assert refusal(COMPLETIONS, prompt="x", echo=True)[0] == "echo is not supported here."


def test_tools_are_not_shown_to_a_model_that_must_not_call() -> None:
    assert chat(**DEEP).tools
    assert not chat(**DEEP, tool_choice="none").tools


def test_an_answer_is_bounded_where_the_request_does_not_say() -> None:
    def tokens(default: int | None) -> int:
        return check(CHAT, facts=Facts(default_tokens=default), messages=HELLO).sampling.max_tokens

    assert (tokens(None), tokens(20), tokens(2000)) == (100, 20, 100)


def test_a_temperature_that_would_overflow_is_zero() -> None:
    assert check(CHAT, messages=HELLO, temperature=1e-300).sampling.temperature == 0
    assert check(CHAT, messages=HELLO, temperature=0.01).sampling.temperature == 0.01


# --- media --------------------------------------------------------------------------------------------------


def image(path: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": path}}]}]


def test_files_are_read_only_from_the_allowed_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret.png"
    inside.mkdir()
    outside.write_bytes(b"x")
    (inside / "link.png").symlink_to(outside)
    (inside / "a.png").write_bytes(b"x")
    limits = Limits(media_dir=str(inside))
    with pytest.raises(ApiError, match=r"image_url names .*/b\.png, which is not a file\."):
        chat(limits, messages=image(str(inside / "b.png")))
    assert chat(limits, messages=image(str(inside / "a.png")))
    for path in (
        str(outside),
        str(inside / "../secret.png"),
        str(inside / "link.png"),
        "file:///etc/passwd",
        "~nobody/a.png",
        "a\0b",
        "",
    ):
        with pytest.raises(ApiError):
            chat(limits, messages=image(path))
    with pytest.raises(ApiError):  # short enough to be a path
        chat(images=[base64.b64encode(b"picture").decode()])
    assert chat(images=[base64.b64encode(bytes(4000)).decode()])


def test_urls_are_refused_unless_they_are_allowed() -> None:
    assert chat(Limits(urls=True), messages=image("https://x/y.png"))
    with pytest.raises(ApiError, match=r"is a URL, which this server does not fetch\. Send a data: URI\."):
        chat(messages=image("https://x/y.png"))


TAGS = ("<img>/private/a.png</img>", "<audio>/private/a.wav</audio>", "<img>a\nb</img>")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(TAGS), st.lists(st.integers(0, 30), max_size=4), st.sampled_from(("parts", "messages"))
)
def test_a_tag_that_names_a_file_is_refused_however_it_is_cut(tag: str, places: list[int], how: str) -> None:
    """What ms-swift sees after it has joined the parts of a message, or messages of one role, is what counts."""
    cuts = [0, *sorted(places), len(tag)]
    pieces = [tag[start:end] for start, end in itertools.pairwise(cuts)]
    messages: list[dict[str, Any]] = [{"role": "user", "content": piece} for piece in pieces]
    if how == "parts":
        messages = [{"role": "user", "content": [{"type": "text", "text": piece} for piece in pieces]}]
    assert refusal(messages=messages)[0] == (
        "The text contains <img>...</img> or <audio>...</audio>, which names a file. Send media as parts."
    )
    assert chat(facts=Facts(), messages=messages)  # to a model that only reads text it is text


@pytest.mark.parametrize(
    "text", ["<img>" * 400_000, "<img></img>" * 200_000, "</img>" * 400_000 + "<img>", "<audio>x" * 200_000]
)
def test_many_tags_take_no_time(text: str) -> None:
    def ask() -> None:
        try:
            chat(messages=[{"role": "user", "content": text}])
        except ApiError as error:
            assert error.status == 400

    assert processor_seconds(ask) < 2  # with the square of the length it would be minutes


def test_much_space_takes_no_time() -> None:
    def ask() -> None:
        with pytest.raises(ApiError):
            chat(images=["A" + " " * 2_000_000 + "!"])

    assert processor_seconds(ask) < 2


def test_media_come_from_the_user_and_in_one_way() -> None:
    parts = [{"type": "image", "image": "data:image/png;base64,AA"}]
    messages = [{"role": "assistant", "content": parts}, *HELLO]
    assert (
        refusal(messages=messages)[0]
        == "messages[0] is from assistant; only messages from user may contain media."
    )
    assert refusal(messages=image("data:image/png;base64,AA"), images=["data:image/png;base64,AA"])[0] == (
        "Media must be either parts of messages or separate lists, not both."
    )


# --- anything -----------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELD_NAMES = [one.name for one in fields.FIELDS if one.name != "model"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(
    st.dictionaries(st.sampled_from(FIELD_NAMES) | st.text(max_size=8), JSON),
    st.sampled_from(fields.FIELD_BACKENDS),
)
def test_any_request_is_taken_or_refused(body: dict[str, Any], backend: str) -> None:
    for path in fields.ENDPOINTS:
        facts = Facts(
            backend=backend, task="embedding" if path == EMBEDDINGS else "causal_lm", multimodal=True
        )
        for more in ({}, {"messages": HELLO}, {"prompt": "x"}, {"input": "x"}):
            try:
                check(path, facts=facts, **{**body, **more})  # type: ignore[arg-type]
            except ApiError as error:
                assert error.status in (400, 404)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "type", "tool_calls"]), JSON | st.just("user"))
    )
)
def test_any_messages_are_taken_or_refused(messages: list[Any]) -> None:
    try:
        chat(messages=messages)
    except ApiError as error:
        assert error.status == 400


def test_every_field_is_checked_on_a_running_server() -> None:
    """See `tests.serving.heeded`, which the tests of the server use for each backend."""
    for one in fields.FIELDS:
        if one.endpoints == ("embeddings",):
            continue
        if {"pt", "vllm"} & {*one.backends}:
            assert one.name in heeded.CHECKS.keys() | heeded.ELSEWHERE
        if {"pt", "vllm"} - {*one.backends}:
            assert one.name in heeded.REFUSED


CLASSIFIER, RERANKER = Facts(task="seq_cls"), Facts(task="generative_reranker")
ANSWERED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("facts", "body", "message"),
    [
        (Facts(), {"messages": ANSWERED}, 'The last message must not be from "assistant".'),
        (CLASSIFIER, {"messages": ANSWERED}, ""),
        (CLASSIFIER, {"messages": ANSWERED[:1]}, ""),
        (RERANKER, {"messages": ANSWERED}, ""),
        (RERANKER, {"messages": ANSWERED[:1]}, "A reranker scores a document: it must be the last message, from assistant."),
        (CLASSIFIER, {"messages": ANSWERED, "stream": True}, "stream is not supported here: this model does not generate text."),
        (CLASSIFIER, {"messages": ANSWERED, "n": 2, "temperature": 1}, "n is not supported here: this model does not generate text."),
        (CLASSIFIER, {"messages": ANSWERED, "stream": False, "n": 1, "max_tokens": 4}, ""),
    ],
)  # fmt: skip
def test_what_scores_and_classifiers_take(facts: Facts, body: dict[str, Any], message: str) -> None:
    asked = {"model": "one", **body}
    if not message:
        api_request.check_fields(CHAT, asked, ["one"], Limits(), facts)
        return
    with pytest.raises(ApiError) as caught:
        api_request.check_fields(CHAT, asked, ["one"], Limits(), facts)
    assert caught.value.message == message


def test_whole_numbers_become_floats_where_transformers_wants_them() -> None:
    body = {"model": "one", "messages": ANSWERED[:1], "repetition_penalty": 2, "top_p": 1, "min_p": 0}
    sampling = api_request.check_fields(CHAT, body, ["one"], Limits(), Facts()).sampling
    found = (sampling.repetition_penalty, sampling.top_p, sampling.min_p)
    assert found == (2, 1, 0) and all(isinstance(one, float) for one in found)
