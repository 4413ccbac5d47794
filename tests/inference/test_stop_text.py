"""Answers end before the stop text, however they are cut into pieces."""

from __future__ import annotations

import random

import pytest

from swift_toolkit.inference.stop_text import StopText, before_stop

CASES = [
    ("I'm glad to meet you", ["glad"], "I'm "),
    ("I'm glad to make your acquaintance", ["i"], "I'm glad to make your acqua"),
    ("aaab", ["aab"], "a"),
    ("one two", ["three", ""], "one two"),
    ("stop", ["stop"], ""),
    ("ab", ["bc"], "ab"),
    ("x\n\ny", ["\n\n", "y"], "x"),
]


@pytest.mark.parametrize(("text", "stops", "expected"), CASES)
def test_an_answer_ends_before_the_stop_text(text: str, stops: list[str], expected: str) -> None:
    assert before_stop(text, stops) == expected
    for seed in range(50):
        draw, stop, shown, rest = random.Random(seed), StopText(stops), "", text
        while rest:
            length = draw.randint(1, 4)
            shown += stop.feed(rest[:length])
            rest = rest[length:]
            assert expected.startswith(shown)
        assert shown + stop.feed("", last=True) == expected
