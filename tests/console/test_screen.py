"""What others wrote reaches the terminal as text, never as a command to it."""

from __future__ import annotations

import io

import pytest

from swift_toolkit.console import screen
from swift_toolkit.inference.screen import AnswerBlock, print_answers
from swift_toolkit.problems import Problem

EVIL = "a\x1b]52;c;aGk=\x07b\x1b[2Jc\x9b2Jd\re\u202ef"
SHOWN = r"a\x1b]52;c;aGk=\x07b\x1b[2Jc\x9b2Jde\u202ef"


def test_control_characters_are_shown() -> None:
    assert screen.visible(EVIL) == SHOWN
    assert screen.visible("line\n\ttab é 你 😀") == "line\n\ttab é 你 😀"


def test_no_message_holds_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    screen.say(EVIL)
    screen.print_problems([Problem("is wrong", key=EVIL)])
    screen.print_facts([("name", EVIL)])
    said = capsys.readouterr().err
    assert said.count(SHOWN) == 3 and not set(said) & set("\x1b\x07\x9b\r\u202e")


def test_no_answer_holds_control_characters() -> None:
    shown = io.StringIO()
    print_answers(
        [AnswerBlock(EVIL, EVIL, {"": EVIL}), AnswerBlock("2", "q", {"": f"failed: {EVIL}"})], shown
    )
    assert shown.getvalue().count(SHOWN) == 4 and "\x1b" not in shown.getvalue()
