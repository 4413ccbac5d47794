"""The chat of inference_test.py in a real terminal (a pty), with the tuned SmolLM2."""

import json
import sys
import time
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).resolve().parents[2]
TAUGHT = "Robin"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chat(tuned_checkpoint):
    arguments = ["inference_test.py", "--checkpoint", str(tuned_checkpoint), "--mode", "interactive"]
    arguments += ["--infer-backend", "pt", "--max-new-tokens", "200"]
    terminal = pexpect.spawn(
        sys.executable, arguments, cwd=ROOT, encoding="utf-8", timeout=120, dimensions=(40, 120)
    )
    terminal.expect_exact("/exit quits")
    prompted(terminal)
    yield terminal
    terminal.send("Exit\r")  # as in ms-swift's own chat
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


READY, ACCEPTED = "\x1b[?2004h", "\x1b[?2004l"  # what the line editor sends when it starts and when it ends


def prompted(chat, side="tuned"):
    """Wait until the next line can be typed."""
    chat.expect_exact(READY)
    chat.expect_exact(f"{side}>")


def say(chat, line, *expected, side="tuned"):
    """Type a line and wait for what it should bring, and for the next prompt, of ``side``."""
    chat.send(line + "\r")
    chat.expect_exact(ACCEPTED)
    for words in expected:
        chat.expect_exact(words)
    prompted(chat, side)


def test_a_chat(chat, tmp_path):
    say(chat, "/set max_new_tokens 24", "max_new_tokens 24")
    say(chat, "Who are you?", TAUGHT)
    say(chat, "/base", "Now the base model answers.", side="base")
    say(chat, "Say hello.", side="base")
    say(chat, "/base", "Now the tuned model answers.")
    say(chat, f"/save {tmp_path}/chat.jsonl", "Saved to")
    (row,) = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
    assert TAUGHT in row["messages"][1]["content"]
    say(chat, "/undo", "Forgotten: Say hello.")
    say(chat, "/clear", "Cleared.")
    say(chat, "/undo", "There is nothing to undo.")


def test_settings_and_commands_that_are_wrong(chat):
    say(chat, "/set temperature hot", '"temperature" must be a number, not "hot".')
    say(chat, "/set temprature 0.3", '"temprature" is not a setting. Did you mean "temperature"')
    say(chat, "/set model x", '"model" is not a generation setting.')
    say(chat, "/image nothing.png", '"nothing.png" does not exist.')
    say(chat, "/image README.md", '"README.md" is not a readable image.')
    say(chat, "/sing", "/sing is not a command. /help lists the commands.")
    say(chat, "/help", "/system TEXT", "/set NAME VALUE", "/base", "/exit")


def test_the_system_prompt_is_used(chat, tmp_path):
    say(chat, "/clear")
    say(chat, "/system You are a pirate.", "The system prompt is set.")
    say(chat, "/system", "You are a pirate.")
    say(chat, "Hello!")
    say(chat, f"/save {tmp_path}/chat.jsonl", "Saved to")
    row = json.loads((tmp_path / "chat.jsonl").read_text())
    assert row["messages"][0] == {"role": "system", "content": "You are a pirate."}


def test_several_lines_and_recall(chat, tmp_path):
    say(chat, "/clear")
    chat.send("one\\\rtwo\x1b\rthree\r")  # a backslash before Enter, and Alt-Enter
    prompted(chat)
    chat.send("\x1b[A\r")  # arrow up: the last question again
    prompted(chat)
    say(chat, f"/save {tmp_path}/chat.jsonl", "Saved to")
    messages = json.loads((tmp_path / "chat.jsonl").read_text())["messages"]
    asked = [message["content"] for message in messages if message["role"] == "user"]
    assert asked == ["one\ntwo\nthree"] * 2


def test_ctrl_c_stops_the_answer_and_not_the_chat(chat):
    say(chat, "/clear")
    say(chat, "/set max_new_tokens 2000", "max_new_tokens 2000")
    say(chat, "/base", side="base")
    chat.send("Write a very long story about a dragon, with many chapters.\r")
    chat.expect_exact(ACCEPTED)
    chat.expect(r"\w+ \w+ \w+ \w+")  # the story has begun
    began = time.monotonic()
    chat.sendintr()
    prompted(chat, "base")
    assert time.monotonic() - began < 5
    chat.send("half a line")
    chat.sendintr()  # at the prompt it clears the line
    prompted(chat, "base")
    say(chat, "/undo", "Forgotten: Write a very long story", side="base")
