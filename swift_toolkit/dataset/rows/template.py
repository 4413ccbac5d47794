"""What the chat template of a run cannot write, and the rows that lose text to it or are rejected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.rows.messages import MODEL_ROLES, TOOL_ANSWERS

TOOL_ROLES = frozenset({"tool_call", *TOOL_ANSWERS})


@dataclass(frozen=True, kw_only=True)
class TemplateRules:
    """The limits of a chat template.

    Args:
        name: how messages name it.
        system: what happens to the system prompt of a row.
        tools: what happens to its tools.
        rounds: whether it writes all rounds of a conversation; otherwise only the last one is used.
        thinking: the mark with which every answer begins, "" if it has none or answers without thinking, too.
        instead: what the advice for rows that need more says after "or".
        for_tools: advice for rows with tools.
    """

    name: str = ""
    system: Literal["used", "dropped", "refused"] = "used"
    tools: Literal["used", "dropped", "refused"] = "used"
    rounds: bool = True
    thinking: str = ""
    instead: str = "choose another template"
    for_tools: str = 'Add "agent_template", e.g. "hermes".'

    def lost(self, what: str) -> Flaw:
        """The flaw of a row that loses text."""
        return Flaw("lost-text", what, f"The model is trained without it; {self.instead}.")


ANY_TEMPLATE = TemplateRules()
"""A template without limits, or one that is not known."""


def template_flaws(row: Mapping[str, Any], template: TemplateRules, learns: bool) -> Iterator[Flaw]:
    """What the template of the run drops or rejects in a standard row.

    Args:
        row: a row as `standard_row` makes it.
        template: the template of the run.
        learns: whether the last answer is learned.
    """
    if not template.name:
        return
    messages = row["messages"]
    if template.tools == "refused" and _uses_tools(row):
        what = f"the row has tools, but {template.name} has no format for them"
        yield Flaw("tools", what, _EMPTY_TEXT if _is_empty_text(row.get("tools")) else template.for_tools)
    elif template.tools == "dropped" and any(message["role"] in TOOL_ANSWERS for message in messages):
        what = f"the row has a tool's answer, but {template.name} has no format for it"
        yield Flaw("tools", what, template.for_tools)
    elif template.tools == "dropped" and row.get("tools"):
        yield template.lost(f"{template.name} drops the tools of the row")
    if messages[0]["role"] == "system" and template.system == "refused":
        what = f"the row has a system prompt, but {template.name} has no place for it"
        yield Flaw("template", what, f"Write it into the question, or {template.instead}.")
    elif messages[0]["role"] == "system" and template.system == "dropped":
        yield template.lost(f"{template.name} drops the system prompt of the row")
    if not template.rounds and (count := _rounds(messages)) > 1:
        yield template.lost(f"the row has {count} rounds, of which {template.name} keeps only the last")
    last = messages[-1]
    if (
        learns
        and template.thinking
        and last["role"] == "assistant"
        and template.thinking not in str(last["content"])
    ):
        what = f'the answer has no "{template.thinking}", with which {template.name} begins every answer when asked'
        yield Flaw("no-thinking", what)


_EMPTY_TEXT = 'Write an empty list, not text that contains one: "tools": [].'


def _is_empty_text(tools: object) -> bool:
    """Whether this is a text that stands for no tools, which ms-swift takes for tools."""
    return isinstance(tools, str) and tools.strip() in ("[]", "{}", "null", "None")


def _uses_tools(row: Mapping[str, Any]) -> bool:
    """Whether the template must format tools, their calls or answers."""
    return bool(row.get("tools")) or any(message["role"] in TOOL_ROLES for message in row["messages"])


def _rounds(messages: Sequence[Mapping[str, Any]]) -> int:
    """Number of rounds as the template counts them: a question or a tool's answers, and what follows."""
    asks = [message["role"] not in MODEL_ROLES for message in messages if message["role"] != "system"]
    starts = sum(now and not before for before, now in zip([False, *asks], asks, strict=False))
    return starts + (bool(asks) and not asks[0])
