"""Rows in the layouts of other projects, right and with mistakes, from a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from swift_toolkit.config.tasks import TaskName

Row = dict[str, Any]


def _user(text: str) -> Row:
    return {"role": "user", "content": text}


def _assistant(text: str | None, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def _turns(*turns: tuple[str, str]) -> list[Row]:
    return [{"from": who, "value": text} for who, text in turns]


_BAD = "No idea at all."
_CALL = {"name": "weather", "arguments": {"city": "Rome"}}
_TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}},
}
_CALLS = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]

LAYOUTS: dict[str, tuple[TaskName, Callable[[str, str], Row]]] = {
    "OpenAI": (
        "sft",
        lambda q, a: {"messages": [{"role": "system", "content": "Be brief."}, _user(q), _assistant(a)]},
    ),
    "OpenAI, weights": (
        "sft",
        lambda q, a: {
            "messages": [_user(q), _assistant(_BAD, weight=0), _user("Sure?"), _assistant(a, weight=1)]
        },
    ),
    "OpenAI, tools": (
        "sft",
        lambda q, a: {
            "messages": [
                _user(q),
                _assistant(None, tool_calls=_CALLS),
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
                _assistant(a),
            ],
            "tools": [_TOOL],
        },
    ),
    "ShareGPT": ("sft", lambda q, a: {"conversations": _turns(("human", q), ("gpt", a)), "id": "x"}),
    "ShareGPT, weights": (
        "sft",
        lambda q, a: {
            "conversations": [
                {"from": "human", "value": q, "weight": 0.0},
                {"from": "gpt", "value": a, "weight": 1.0},
            ]
        },
    ),
    "LLaMA-Factory, tools": (
        "sft",
        lambda q, a: {
            "conversations": _turns(
                ("human", q), ("function_call", json.dumps(_CALL)), ("observation", "sunny"), ("gpt", a)
            ),
            "tools": json.dumps([_TOOL]),
        },
    ),
    "Alpaca": ("sft", lambda q, a: {"instruction": q, "input": "", "output": a}),
    "Alpaca, history": (
        "sft",
        lambda q, a: {"instruction": q, "input": "in", "output": a, "system": "s", "history": [["a", "b"]]},
    ),
    "LLaMA-Factory, preference": (
        "dpo",
        lambda q, a: {
            "conversations": _turns(("human", q)),
            "chosen": {"from": "gpt", "value": a},
            "rejected": {"from": "gpt", "value": _BAD},
        },
    ),
    "LLaMA-Factory, Alpaca preference": (
        "dpo",
        lambda q, a: {"instruction": q, "input": "in", "chosen": a, "rejected": _BAD},
    ),
    "LLaMA-Factory, KTO": (
        "kto",
        lambda q, a: {"conversations": _turns(("human", q), ("gpt", a)), "label": len(a) % 2 == 0},
    ),
    "TRL": ("sft", lambda q, a: {"prompt": q, "completion": a}),
    "TRL, conversations": ("sft", lambda q, a: {"prompt": [_user(q)], "completion": [_assistant(a)]}),
    "TRL, preference": ("dpo", lambda q, a: {"prompt": q, "chosen": a, "rejected": _BAD}),
    "TRL, explicit": (
        "dpo",
        lambda q, a: {"prompt": [_user(q)], "chosen": [_assistant(a)], "rejected": [_assistant(_BAD)]},
    ),
    "TRL, implicit": (
        "dpo",
        lambda q, a: {"chosen": [_user(q), _assistant(a)], "rejected": [_user(q), _assistant(_BAD)]},
    ),
    "TRL, unpaired": ("kto", lambda q, a: {"prompt": q, "completion": a, "label": len(a) % 2 == 0}),
    "UltraFeedback": (
        "dpo",
        lambda q, a: {
            "prompt": q,
            "prompt_id": "p",
            "chosen": [_user(q), _assistant(a)],
            "rejected": [_user(q), _assistant(_BAD)],
            "messages": [_user(q), _assistant(a)],
            "score_chosen": 8.0,
        },
    ),
    "Dolly": ("sft", lambda q, a: {"instruction": q, "context": "", "response": a, "category": "open_qa"}),
    "MATH": ("sft", lambda q, a: {"problem": q, "level": "Level 1", "type": "Algebra", "solution": a}),
    "GSM8K": ("sft", lambda q, a: {"question": q, "answer": a}),
    "ms-swift": ("sft", lambda q, a: {"query": q, "response": a, "history": [["a", "b"]], "system": "s"}),
    "question of parts": (
        "sft",
        lambda q, a: {"query": [{"type": "text", "text": q}, {"type": "text", "text": " "}], "response": a},
    ),
    "question of parts, unpaired": (
        "kto",
        lambda q, a: {"query": [{"type": "text", "text": q}], "response": a, "label": len(a) % 2 == 0},
    ),
    "text": ("pt", lambda q, a: {"text": f"{q} {a}"}),
}
"""Layout -> task, and what makes a row of a question and an answer. verl's is refused as a whole, as is OpenAI's
preference layout (``tests/cases/layouts_of_other_projects``)."""


def file_of(name: str, count: int, seed: int) -> list[Row]:
    """Rows of one layout, some of them spoiled, with a channel by which a row is known.

    Args:
        name: the layout.
        count: how many rows.
        seed: of the questions and the mistakes.
    """
    dice = random.Random(f"{name} {seed}")
    rows = []
    for at in range(count):
        row = LAYOUTS[name][1](
            f"What is {dice.randrange(1000)} plus {at}?", f"It is {dice.randrange(1000)}, number {at}."
        )
        rows.append(
            (_spoiled(row, dice) if at > 1 and dice.random() < 0.3 else row) | {"channel": f"row {at}"}
        )
    return rows


_SPOILS: list[Any] = ["", " ", None, 5, [], {}, True]


def _spoiled(row: Row, dice: random.Random) -> Row:
    """The row with one value lost, emptied or of another type, at any depth."""
    new = copy.deepcopy(row)
    place: Any = new
    while True:
        key = dice.choice(list(place)) if isinstance(place, dict) else dice.randrange(len(place))
        below = place[key]
        if isinstance(below, (dict, list)) and below and dice.random() < 0.8:
            place = below
            continue
        if dice.random() < 0.3:
            del place[key]
        else:
            place[key] = dice.choice(_SPOILS)
        return new
