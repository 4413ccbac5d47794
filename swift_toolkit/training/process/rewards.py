"""Try the reward functions on a few rows before the model is loaded: do they run and distinguish answers?"""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from swift_toolkit.dataset.audit.exact import rows_with_values
from swift_toolkit.dataset.rows.checks import text_of
from swift_toolkit.dataset.rows.messages import ASSISTANT_ROLES
from swift_toolkit.machine import msswift
from swift_toolkit.problems import Problem, first_line
from swift_toolkit.training.process import events
from swift_toolkit.training.process.events import RunEvent

_ROWS = 8
"""Number of rows on which reward functions are tried."""

_SOLUTIONS = ("solution", "answer", "target", "ground_truth", "response", "output")
_WIDTH = 300  # characters of an error


@dataclass(frozen=True)
class _Row:
    """A row as it is passed to a reward function.

    Args:
        place: file and line.
        columns: the columns other than the messages.
        prompt: the messages before the answer.
        own: the answer in the row; "" if it has none.
    """

    place: str
    columns: dict[str, object]
    prompt: list[Any]
    own: str

    def inputs(self, completion: str) -> dict[str, object]:
        """The columns that ms-swift passes to a reward function for this row."""
        answer = {"role": "assistant", "content": completion}
        rest = {
            "finish_reason": "stop",
            "is_truncated": False,
            "response_token_ids": list(completion.encode()),
        }
        return {**self.columns, **rest, "messages": [*self.prompt, answer]}


def try_rewards(report: Callable[[RunEvent], None], order: events.AuditOrder) -> None:
    """Run the reward functions on a few rows before the model is loaded, and report their scores."""

    def look(args: Any, _: Callable[[], Any]) -> None:
        msswift.limit_ppo(args)
        names = getattr(args, "reward_funcs", None) or []
        rows = list(islice(_rows(order), _ROWS)) if names else []
        for name in names if rows else ():
            if (tried := _tried(str(name), rows, args)) is not None:
                report(tried)

    msswift.before_the_model(look)


def _rows(order: events.AuditOrder) -> Iterator[_Row]:
    for place, row, value in rows_with_values(order.data, order.rules):
        messages = list(row["messages"])
        answer = text_of(messages.pop()) if messages[-1]["role"] in ASSISTANT_ROLES else ""
        columns = {name: one for name, one in {**value, **row}.items() if name != "messages"}
        own = next((str(columns[name]) for name in _SOLUTIONS if columns.get(name) not in (None, "")), "")
        yield _Row(str(place), columns, messages, answer or own)


def _tried(name: str, rows: Sequence[_Row], args: Any) -> events.RewardTried | None:
    """A reward function's scores for the rows' own answers, if they have any, and for an answer that says nothing."""
    try:
        if (function := msswift.reward_function(name, args)) is None:
            return None
        own = _scores(function, rows, [row.own for row in rows]) if all(row.own for row in rows) else []
        other = _scores(function, rows, [events.NO_ANSWER] * len(rows))
    except Exception as error:
        traceback.print_exc()
        what = f'"{name}" fails on the first {len(rows)} rows (from {rows[0].place})'
        reason = f"{type(error).__name__}: {first_line(error)}"[:_WIDTH]
        do = "Correct the function, or the columns that it reads. Full log: train.log."
        return events.RewardTried(
            name=name, error=Problem(f"{what}: {reason.rstrip('.')}", do, key="reward_funcs")
        )
    return events.RewardTried(name=name, own=own, other=other)


def _scores(function: Any, rows: Sequence[_Row], completions: Sequence[str]) -> list[float]:
    """The finite scores among those of some answers.

    Raises:
        ValueError: the function does not return one score per answer.
    """
    inputs = [row.inputs(completion) for row, completion in zip(rows, completions, strict=True)]
    names = dict.fromkeys(name for one in inputs for name in one)
    columns = {name: [one.get(name) for one in inputs] for name in names}
    found = function(list(completions), **columns, trainer_state=msswift.trainer_state())
    if inspect.isawaitable(found):
        found = asyncio.run(_wait_for(found))
    found = list(found)
    if len(found) != len(completions):
        raise ValueError(f"it returns {len(found)} scores for {len(completions)} answers")
    scores = [float(score) for score in found if score is not None]
    return [score for score in scores if math.isfinite(score)]


async def _wait_for(found: Any) -> Any:
    return await found
