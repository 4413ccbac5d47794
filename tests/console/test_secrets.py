"""Secrets are found by the name they stand under or by their form, and not shown."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from swift_toolkit.console import screen
from swift_toolkit.console.command_line import run_command
from swift_toolkit.console.secrets import masked, masked_words, places
from swift_toolkit.problems import Problem, RequestError

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"token": "abcdef12"}, ['under "token"']),
        ('{"HF_TOKEN": "abcdef12"}', ['under "HF_TOKEN"']),
        ({"a": {"api-key": "abcdef12"}}, ['under "api-key"']),
        ({"anything": [TOKEN]}, ['under "anything"']),
        ("http://user:word@host:8000/v1", ["in a URL"]),
        (["https://host/a.jsonl?token=abc"], ["in a URL"]),
        ({"pad_token": "<|im_end|>", "eos_token": "[END]", "max_token": "1024"}, []),
        (["ACTION_BEGIN", "<tool>"], []),
        ("https://host:8000/a@b", []),
        ("a: b@c", []),
        ({"token": True, "secret": None, "password": 5}, []),
        ("{not JSON", []),
    ],
)
def test_places(value: Any, found: list[str]) -> None:
    assert [str(one) for one in places(value)] == found


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"huggingface-cli login --token {TOKEN}", "huggingface-cli login --token ***"),
        ("wandb login --relogin 0123456789abcdef", "wandb login --relogin ***"),
        ("curl -H 'Authorization: Bearer xyz' https://u:p@h/x", "curl -H Authorization: Bearer *** https://u:***@h/x"),
        ("env API_KEY=abc python x.py --api-key=q --max-tokens 5", "env API_KEY=*** python x.py --api-key=*** --max-tokens 5"),
        ("git clone a/b --branch main", "git clone a/b --branch main"),
    ],
)  # fmt: skip
def test_words_of_a_command(line: str, shown: str) -> None:
    assert " ".join(masked_words(shlex.split(line))) == shown


def test_messages(capsys: pytest.CaptureFixture[str]) -> None:
    screen.say(f"x {TOKEN} y")
    screen.print_problems([Problem('is "https://user:word@host/a"')])
    assert capsys.readouterr().err == 'x *** y\nis "https://user:***@host/a".\n'
    assert masked("nothing of a secret: https://host/a?b=c") == "nothing of a secret: https://host/a?b=c"


def test_problems_as_json_stay_json(capsys: pytest.CaptureFixture[str]) -> None:
    def command(words: list[str]) -> int:
        raise RequestError([Problem('is "https://host/a?token=abc"', 'Not "https://u:p@h".', "a?token=b")])

    assert run_command(command, ["--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    said = [problem[name] for name in ("what", "do", "key")]
    assert said == ['is "https://host/a?token=***"', 'Not "https://u:***@h".', "a?token=***"]


@pytest.mark.parametrize(
    "secret", [TOKEN, "xoxb-123456789012-abcdef", "AKIA" + "A1" * 8, "AIza" + "aB3_x" * 7]
)
def test_tables(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_facts([("system", f"x {secret}")])
    assert capsys.readouterr().err == "system  x ***\n"
