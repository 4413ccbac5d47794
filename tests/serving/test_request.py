"""What the server refuses before ms-swift sees it, and in which words."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swift_toolkit.serving import request as serving_request
from swift_toolkit.serving.request import ApiError, Limits

LIMITS = Limits(max_tokens=100)
HELLO = [{"role": "user", "content": "Hello"}]


def chat(limits: Limits = LIMITS, default: int | None = None, **request: Any) -> dict[str, Any]:
    return serving_request.check_chat({"messages": HELLO, **request}, limits, default)


def refusal(**request: Any) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as caught:
        chat(**request)
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


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{bad", "The body of the request is not valid JSON (line 1, column 2)."),
        (b"", "The body of the request is not valid JSON (line 1, column 1)."),
        (b'{"a": "\xff"}', "The body of the request is not valid JSON."),
        (b"[1]", "The body of the request must be a JSON object."),
        (b"[" * 100_000, "The body of the request is not valid JSON."),
    ],
)
def test_a_body_that_is_no_request(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        serving_request.parse(body)
    assert caught.value.message == message


def test_the_model_must_be_there() -> None:
    assert serving_request.check_model({"model": "a"}, ["a", "b"]) == "a"
    with pytest.raises(ApiError) as caught:
        serving_request.check_model({"model": "c"}, ["a", "b"])
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert caught.value.message == 'There is no model "c" here. There is a, b.'


@pytest.mark.parametrize(
    ("request_", "message", "param"),
    [
        ({"messages": []}, "messages must be a list of at least one message.", "messages"),
        ({"messages": "hi"}, "messages must be a list of at least one message.", "messages"),
        ({"messages": ["hi"]}, "messages[0] must be an object with role and content.", "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be text, or a list of parts.",
         "messages[0].content"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]},
         'The last message must not be from "assistant".', "messages"),
        ({"max_tokens": -5}, "max_tokens must be a whole number from 1 on, not -5.", "max_tokens"),
        ({"max_tokens": 101}, "max_tokens is 101; this server answers with 100 tokens at most.", "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens must be a whole number from 1 on, not true.",
         "max_completion_tokens"),
        ({"temperature": 3}, "temperature must be a number from 0 to 2, not 3.", "temperature"),
        ({"temperature": float("nan")}, "temperature must be a number from 0 to 2, not NaN.", "temperature"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty must be a number from 0.1 to 10, not 1e-300.",
         "repetition_penalty"),
        ({"top_p": 0}, "top_p must be a number above 0 and at most 1, not 0.", "top_p"),
        ({"n": 2, "stream": True}, "n must be 1 with stream.", "n"),
        ({"n": 2}, "n above 1 needs a temperature above 0: without it all answers are the same.", "n"),
        ({"stream": "yes"}, 'stream must be true or false, not "yes".', "stream"),
        ({"stop": [1]}, "stop must be a text or a list of at most 16 texts.", "stop"),
        ({"response_format": {"type": "json_object"}},
         'response_format can only be {"type": "text"} here.', "response_format"),
        ({"tools": [{}]}, "tools must be a list of functions with names.", "tools"),
        ({"images": ["/etc/passwd"]},
         "images names a local file, which this server does not read. Send a data: URI.", "images"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered(request_: dict[str, Any], message: str, param: str) -> None:
    assert refusal(**request_) == (message, param)


def test_the_request_is_put_as_ms_swift_takes_it() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    checked = chat(
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
        stop="END",
        max_completion_tokens=7,
        temperature=None,
    )
    assert checked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (checked["stop"], checked["max_tokens"]) == (["END"], 7)
    assert "temperature" not in checked and "max_completion_tokens" not in checked


def test_an_answer_is_bounded_where_the_request_does_not_say() -> None:
    assert chat()["max_tokens"] == 100
    assert chat(default=20)["max_tokens"] == 20
    assert chat(default=2000)["max_tokens"] == 100


def test_a_temperature_that_would_overflow_is_zero() -> None:
    assert chat(temperature=1e-300)["temperature"] == 0
    assert chat(temperature=0.01)["temperature"] == 0.01


def image(path: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": path}}]}]


def test_files_are_read_from_the_allowed_folder_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret.png"
    inside.mkdir()
    outside.write_bytes(b"x")
    (inside / "link.png").symlink_to(outside)
    (inside / "a.png").write_bytes(b"x")
    limits = Limits(media_dir=str(inside))
    with pytest.raises(ApiError, match=r"image_url names .*/b\.png, which is no file\."):
        chat(limits, messages=image(str(inside / "b.png")))
    assert chat(limits, messages=image(str(inside / "a.png")))
    for path in (
        str(outside),
        str(inside / "../secret.png"),
        str(inside / "link.png"),
        "file:///etc/passwd",
        "",
    ):
        with pytest.raises(ApiError):
            chat(limits, messages=image(path))
    with pytest.raises(ApiError):  # ms-swift takes this for the name of a file
        chat(messages=[{"role": "user", "content": f"See <img>{outside}</img>"}])
    with pytest.raises(ApiError):  # short enough to be a path
        chat(images=[base64.b64encode(b"picture").decode()])
    assert chat(images=[base64.b64encode(bytes(4000)).decode()])


def test_urls_are_refused_where_ms_swift_would_fetch_any() -> None:
    assert chat(messages=image("https://x/y.png"))
    with pytest.raises(ApiError, match=r"is a URL, which this server does not fetch\. Send a data: URI\."):
        chat(Limits(urls=False), messages=image("https://x/y.png"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "messages",
    "prompt",
    "input",
    "max_tokens",
    "stream",
    "tools",
    "tool_choice",
    "images",
    *serving_request.NUMBERS,
]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "stop", "logprobs", "response_format", "max_completion_tokens"]), JSON
    )
)
def test_any_request_is_taken_or_refused(request_: dict[str, Any]) -> None:
    for check in (
        serving_request.check_chat,
        serving_request.check_completion,
        serving_request.check_embedding,
    ):
        try:
            check(request_, LIMITS, None)
        except ApiError as error:
            assert error.status == 400


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
