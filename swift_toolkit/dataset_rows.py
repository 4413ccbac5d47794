"""What a row is: every accepted format as messages, and what each task needs of it.

The reading of a row follows ms-swift's own preprocessors, so that a row without a flaw is kept and trained
on, and a row with an error would be deleted, would train nothing, or would train something else than it says.
Nothing here reads a file.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

Task = Literal[
    "sft", "pt", "dpo", "orpo", "simpo", "cpo", "rm", "kto", "ppo", "grpo", "gkd",
    "seq_cls", "embedding", "reranker", "generative_reranker",
]  # fmt: skip
TASKS: tuple[str, ...] = get_args(Task)

Severity = Literal["error", "warning"]
Row = dict[str, Any]
Message = dict[str, Any]

PREFERENCE_TASKS = frozenset({"dpo", "orpo", "simpo", "cpo", "rm"})
PROMPT_TASKS = frozenset({"ppo", "grpo"})
RANKING_TASKS = frozenset({"embedding", "reranker", "generative_reranker"})
ANSWER_TASKS = PREFERENCE_TASKS | {"sft", "kto", "gkd"}


class Kind(NamedTuple):
    """A kind of flaw: how bad it is, its heading in the report, and what to do about it."""

    severity: Severity
    title: str
    do: str


KINDS: dict[str, Kind] = {
    # the file
    "no-file": Kind("error", "file not found", ""),
    "unreadable": Kind("error", "file cannot be read", ""),
    "empty-file": Kind("error", "no rows", "Put at least one row into it."),
    "broken": Kind("error", "broken syntax", ""),
    "encoding": Kind("error", "not UTF-8", "Save the file as UTF-8."),
    "not-a-row": Kind("error", "not a row", 'Each row must be an object such as {"messages": [...]}.'),
    "columns": Kind("error", "columns", ""),
    "late-column": Kind(
        "error",
        "columns that appear late",
        "Move a row that has it to the top of the file, or shuffle the file.",
    ),
    "mixed-formats": Kind("error", "mixed formats in one file", "Put each format into a file of its own."),
    # the conversation
    "messages": Kind("error", "messages of the wrong shape", ""),
    "role": Kind("error", "unknown role", ""),
    "content": Kind("error", "empty or non-text content", ""),
    "order": Kind("error", "roles out of order", ""),
    "no-answer": Kind("error", "no answer", ""),
    "no-question": Kind("error", "no question", ""),
    # the task
    "rejected": Kind("error", "rejected answer missing or useless", ""),
    "label": Kind("error", "label missing or wrong", ""),
    "pairs": Kind("error", "positive or negative messages missing", ""),
    # media
    "media-file": Kind("error", "media missing or unreadable", ""),
    "media-count": Kind("error", "tags and media do not match", ""),
    "objects": Kind("error", "objects of the wrong shape", ""),
    "tools": Kind("error", "tools of the wrong shape", ""),
    # worth a look
    "same-role": Kind(
        "warning", "same role twice in a row", "ms-swift joins the two texts with nothing between them."
    ),
    "tiny-answer": Kind("warning", "near-empty answers", "Check that the answer is meant."),
    "too-long": Kind(
        "warning", "longer than max_length", "Raise max_length, shorten the row, or set truncation_strategy."
    ),
    "replacement": Kind(
        "warning",
        "replacement characters",
        "The text was damaged by a wrong encoding; save it again from its source.",
    ),
    "invisible": Kind("warning", "invisible control characters", "Remove them unless they are meant."),
    "duplicate": Kind("warning", "exact duplicates", "Remove the copies, unless they are meant as weight."),
    "leak": Kind("warning", "validation rows that are also trained on", "Remove them from one of the two."),
    "same-answer": Kind("warning", "one answer dominates", "The model will learn to give it to everything."),
    "near-name": Kind("warning", "a local file has a similar name", ""),
}


class Flaw(NamedTuple):
    """One thing wrong with a row: a kind of `KINDS` and the sentence without its full stop.

    Args:
        kind: key of `KINDS`.
        what: what is wrong, without a full stop.
        do: what to do, where the kind has no fixed advice.
    """

    kind: str
    what: str
    do: str = ""

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def advice(self) -> str:
        return self.do or KINDS[self.kind].do


class RowError(Exception):
    """A row that cannot be read as messages."""

    def __init__(self, kind: str, what: str, do: str = "") -> None:
        super().__init__(what)
        self.flaw = Flaw(kind, what, do)


@dataclass(frozen=True)
class Rules:
    """What the run asks of its rows.

    Args:
        task: what is trained.
        multimodal: the model takes images, videos or audios, so tags in the text always mean media.
        num_labels: number of classes of a `seq_cls` run; None where the run does not say.
        max_length: longest row in tokens; None for no limit.
        columns: the run's own mapping of column names, ms-swift's `columns`.
    """

    task: str = "sft"
    multimodal: bool = False
    num_labels: int | None = None
    problem_type: str | None = None
    max_length: int | None = None
    columns: Mapping[str, str] | None = None


# Which format a file is in

MESSAGE_COLUMNS = ("messages", "conversation", "conversations")
SYSTEM_COLUMNS = ("system", "system_prompt")
QUERY_COLUMNS = ("query", "prompt", "input", "instruction", "question", "problem")
RESPONSE_COLUMNS = (
    "response", "answer", "output", "targets", "target", "answer_key", "answers", "solution",
    "text", "completion", "content",
)  # fmt: skip
MEDIA_COLUMNS = {"images": "images", "image": "images", "videos": "videos", "video": "videos",
                 "audios": "audios", "audio": "audios"}  # fmt: skip
OTHER_COLUMNS = (
    "rejected_response", "rejected_messages", "rejected_images", "rejected_videos", "rejected_audios",
    "rejected_tools", "rejected_objects", "positive_messages", "positive_images", "positive_videos",
    "positive_audios", "negative_messages", "negative_images", "negative_videos", "negative_audios",
    "label", "channel", "margin", "tools", "objects", "history", "solution", "teacher_prompt",
    "chat_template_kwargs",
)  # fmt: skip
PREFERENCE_COLUMNS = ("chosen", "rejected")


@dataclass(frozen=True)
class Layout:
    """How the columns of one file become messages.

    Args:
        name: what the report calls the format.
        family: which of ms-swift's preprocessors reads it; "preference" is chosen/rejected, which ms-swift
            reads only as a converted copy.
        rename: column in the file -> standard column.
        unused: columns that training does not look at.
    """

    name: str
    family: Literal["messages", "alpaca", "response", "preference"]
    rename: Mapping[str, str]
    unused: tuple[str, ...] = ()


def layout_of(columns: Collection[str], rules: Rules = Rules()) -> Layout:
    """The format of a file with these columns, chosen as ms-swift's AutoPreprocessor chooses.

    Raises:
        RowError: no known format, or columns of which ms-swift would use neither.
    """
    named = dict(rules.columns or {})
    names = [named.get(column, column) for column in columns]
    given = {new: old for old, new in named.items() if old in columns}
    if "messages" not in names and set(PREFERENCE_COLUMNS) <= set(names):
        return _preference_layout(names, given)
    if any(column in names for column in MESSAGE_COLUMNS):
        family: Literal["messages", "alpaca", "response"] = "messages"
        wanted = dict.fromkeys(MESSAGE_COLUMNS, "messages") | dict.fromkeys(SYSTEM_COLUMNS, "system")
    else:
        family = "alpaca" if "instruction" in names and "input" in names else "response"
        wanted = dict.fromkeys(SYSTEM_COLUMNS, "system") | dict.fromkeys(QUERY_COLUMNS, "query")
        wanted |= dict.fromkeys(RESPONSE_COLUMNS, "response")
    rename, clashes = _renamed(names, wanted | MEDIA_COLUMNS)
    _refuse_clashes(clashes, family, names)
    rename = {given.get(name, name): rename.get(name, name) for name in names}
    layout = Layout(_format_name(family, names), family, rename)
    _refuse_unknown(layout, columns)
    known = {*OTHER_COLUMNS, *MEDIA_COLUMNS, "messages", "system", "query", "response"}
    if family == "alpaca":
        known |= {"instruction", "input", "output"}
    unused = tuple(name for name in columns if rename.get(name, name) not in known)
    return Layout(layout.name, family, rename, unused)


def _renamed(names: Sequence[str], wanted: Mapping[str, str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """ms-swift renames without regard to case, and renames none of several columns that claim one name."""
    claims: dict[str, list[str]] = {}
    by_lower = {name.lower(): name for name in names}
    for lower, standard in wanted.items():
        if lower in by_lower:
            claims.setdefault(standard, []).append(by_lower[lower])
    rename = {claim[0]: standard for standard, claim in claims.items() if len(claim) == 1}
    clashes = {s: claim for s, claim in claims.items() if len(claim) > 1 and s not in claim}
    return rename, clashes


def _refuse_clashes(clashes: Mapping[str, list[str]], family: str, names: Sequence[str]) -> None:
    for standard, claim in clashes.items():
        if family == "alpaca" and standard == "query":
            continue  # instruction and input are read by their own names
        if family == "alpaca" and standard == "response" and "output" in names:
            continue
        quoted = " and ".join(f'"{name}"' for name in claim)
        raise RowError(
            "columns",
            f'columns {quoted} could each be "{standard}", and ms-swift then uses none of them',
            f'Keep one of them, or rename it to "{standard}".',
        )


def _preference_layout(names: Sequence[str], given: Mapping[str, str]) -> Layout:
    prompts = [name for name in names if name in QUERY_COLUMNS]
    if len(prompts) > 1:
        quoted = " and ".join(f'"{name}"' for name in prompts)
        raise RowError(
            "columns", f"columns {quoted} could each be the prompt", 'Keep one of them as "prompt".'
        )
    rename = {given.get(name, name): MEDIA_COLUMNS.get(name, name) for name in names}
    rename |= {given.get(name, name): "prompt" for name in prompts}
    known = {"chosen", "rejected", "prompt", "system", "tools", "margin", "label", *MEDIA_COLUMNS.values()}
    unused = tuple(name for name in rename if rename[name] not in known)
    return Layout("chosen/rejected", "preference", rename, unused)


def _format_name(family: str, names: Collection[str]) -> str:
    if family == "messages":
        return next(name for name in MESSAGE_COLUMNS if name in names)
    if family == "alpaca":
        return "instruction/input/output"
    lower = {name.lower() for name in names}
    query = next((name for name in QUERY_COLUMNS if name in lower), "")
    response = next((name for name in RESPONSE_COLUMNS if name in lower), "")
    return "/".join(filter(None, (query, response)))


def _refuse_unknown(layout: Layout, columns: Collection[str]) -> None:
    from difflib import get_close_matches

    standard = set(layout.rename.values())
    if not standard & {"messages", "query", "response", "instruction", "input", "output"}:
        shown = ", ".join(f'"{name}"' for name in list(columns)[:8])
        raise RowError(
            "columns",
            f"no known format has the columns {shown}",
            'Use "messages", "query" and "response", or "instruction", "input" and "output".'
            + _did_you_mean(columns, (*MESSAGE_COLUMNS, *QUERY_COLUMNS, *RESPONSE_COLUMNS)),
        )
    candidates = (*OTHER_COLUMNS, *MEDIA_COLUMNS, *SYSTEM_COLUMNS, *MESSAGE_COLUMNS)
    for column in columns:
        name = layout.rename.get(column, column)
        if name in candidates or name in standard & {*QUERY_COLUMNS, *RESPONSE_COLUMNS}:
            continue
        near = get_close_matches(name, candidates, n=1, cutoff=0.85)
        if near and near[0] not in standard and MEDIA_COLUMNS.get(near[0]) not in standard:
            raise RowError(
                "columns",
                f'column "{column}" is not used by any format',
                f'Did you mean "{near[0]}"? Rename or remove it.',
            )


def _did_you_mean(names: Iterable[str], known: Sequence[str]) -> str:
    from difflib import get_close_matches

    for name in names:
        near = get_close_matches(name.lower(), known, n=1, cutoff=0.75)
        if near:
            return f' Did you mean "{near[0]}" for "{name}"?'
    return ""


# A row as messages

USER_ROLES = frozenset({"user", "human"})
ASSISTANT_ROLES = frozenset({"assistant", "gpt", "bot"})
STANDARD_ROLES = frozenset({"system", "user", "assistant", "tool_call", "tool_response", "tool"})
ROLE_NAMES = (*sorted(USER_ROLES), *sorted(ASSISTANT_ROLES), "system", "tool", "tool_call", "tool_response",
              "function_call", "function_response", "observation")  # fmt: skip
TOOL_ANSWERS = frozenset({"tool", "tool_response"})
MEDIA = ("images", "videos", "audios")
_MESSAGE_KEYS = ("loss", "loss_scale")


def standard_row(row: Row, layout: Layout) -> Row:
    """The row with standard columns and `messages` as a list of {role, content}.

    Media given inside the content are moved to `images`, `videos` and `audios`, with their tags left in the
    text. The input is not changed.

    Raises:
        RowError: it cannot be read.
    """
    out: Row = {}
    for column, value in row.items():
        name = layout.rename.get(column)
        if name is not None and value is not None:
            out.setdefault(name, value)
    for name in MEDIA:
        if name in out:
            out[name] = _media_list(out[name], name)
    if layout.family == "preference":
        return _from_preference(out)
    if layout.family == "messages":
        return _from_messages(out)
    return _from_texts(out, layout.family)


def _from_messages(row: Row) -> Row:
    system = row.pop("system", None)
    row["messages"] = read_messages(row.get("messages"), row, system)
    if "rejected_messages" in row:
        row["rejected_messages"] = read_messages(row["rejected_messages"], {}, None, "rejected_messages")
    return row


def _from_texts(row: Row, family: str) -> Row:
    if family == "alpaca":
        response = row.pop("output", None)
        response = row.pop("response", None) if response is None else response
        row.pop("query", None)
        parts = [row.pop("instruction", None), row.pop("input", None)]
        if any(part is not None and not isinstance(part, str) for part in parts):
            raise RowError("content", '"instruction" and "input" must be text')
        query: Any = "\n".join(part for part in parts if part)
    else:
        response, query = row.pop("response", None), row.pop("query", None)
    if isinstance(response, list):
        if not response:
            raise RowError("content", "the response is an empty list")
        response = response[0]  # ms-swift takes the first
    messages: list[Message] = []
    if (system := row.pop("system", None)) is not None:
        messages.append({"role": "system", "content": _text(system, "system")})
    for asked, answered in [*_history(row.pop("history", None)), (query, response)]:
        if asked is not None:
            messages.append({"role": "user", "content": _text(asked, "user")})
        if answered is not None:
            messages.append({"role": "assistant", "content": _text(answered, "assistant")})
    row["messages"] = messages
    return row


def _history(history: Any) -> list[tuple[Any, Any]]:
    if isinstance(history, str):
        history = _literal(history, "history") if history.strip() else None
    if not history:
        return []
    if not isinstance(history, list) or not all(
        isinstance(h, (list, tuple)) and len(h) >= 2 for h in history
    ):
        raise RowError("messages", '"history" must be a list of [question, answer] pairs')
    return [(pair[0], pair[1]) for pair in history]


def _from_preference(row: Row) -> Row:
    chosen, rejected, prompt = row.pop("chosen", None), row.pop("rejected", None), row.pop("prompt", None)
    system = row.pop("system", None)
    if chosen is None or rejected is None:
        missing = "chosen" if chosen is None else "rejected"
        raise RowError("rejected", f'"{missing}" is empty')
    before = []
    if isinstance(prompt, str):
        before = [{"role": "user", "content": prompt}]
    elif prompt is not None:
        before = read_messages(prompt, row, None, "prompt")
    for name, value in (("messages", chosen), ("rejected_messages", rejected)):
        turns = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
        shown = "chosen" if name == "messages" else "rejected"
        row[name] = read_messages([*before, *turns] if isinstance(turns, list) else turns, row, system, shown)
    return row


def _text(value: Any, role: str) -> str:
    if isinstance(value, str):
        return value
    raise RowError("content", f'the text of "{role}" is {_kind_of(value)}, not text')


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, (list, tuple)) else "an object"


def _literal(text: str, name: str) -> Any:
    """A list kept as text, in JSON or in Python's notation, as ms-swift reads it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise RowError("messages", f'"{name}" is text that does not hold a list') from None


def read_messages(value: Any, row: Row, system: Any, name: str = "messages") -> list[Message]:
    """Any list of turns as [{role, content}], media moved to `row`.

    Args:
        value: the list, or the text of one.
        row: the row that takes media found inside the content.
        system: system prompt of the row, or None.
        name: what messages call the list.

    Raises:
        RowError: it is not a list of turns.
    """
    if isinstance(value, str):
        value = _literal(value, name)
    if value is None:
        raise RowError("messages", f'"{name}" is missing or null')
    if not isinstance(value, list):
        raise RowError("messages", f'"{name}" is {_kind_of(value)}, not a list of messages')
    if not value:
        raise RowError("messages", f'"{name}" is empty')
    for at, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise RowError("messages", f'message {at} of "{name}" is {_kind_of(message)}, not an object')
    if _is_pairs(value[0]):
        messages = _from_pairs(value)
    else:
        messages = []
        for at, message in enumerate(_split_calls(value), 1):
            messages.append(_standard_message(message, at, row))
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _text(system, "system")})
    return messages


def _is_pairs(message: Message) -> bool:
    keys = message.keys()
    return not keys & {"role", "from", "content", "value"} and bool(keys & (USER_ROLES | ASSISTANT_ROLES))


def _from_pairs(value: list[Message]) -> list[Message]:
    """[{"human": question, "assistant": answer}, ...]"""
    messages = []
    for at, pair in enumerate(value, 1):
        for role, names in (("user", USER_ROLES), ("assistant", ASSISTANT_ROLES)):
            found = [pair[name] for name in pair.keys() & names]
            if len(found) != 1:
                raise RowError("messages", f"message {at} must have one question and one answer")
            messages.append({"role": role, "content": found[0]})
    return messages


def _split_calls(value: list[Message]) -> list[Message]:
    """OpenAI's `tool_calls` as tool_call messages of their own."""
    out = []
    for at, message in enumerate(value, 1):
        calls = message.get("tool_calls")
        if not calls or message.get("role") != "assistant":
            out.append(message)
            continue
        if message.get("content"):
            out.append({key: message[key] for key in ("role", "content", *_MESSAGE_KEYS) if key in message})
        for call in calls if isinstance(calls, list) else [calls]:
            function = call.get("function", call) if isinstance(call, dict) else None
            if not isinstance(function, dict) or "name" not in function:
                raise RowError("messages", f'a tool call of message {at} has no "name"')
            arguments = function.get("arguments", {})
            if isinstance(arguments, str):
                with contextlib.suppress(ValueError):  # ms-swift keeps such text as it is
                    arguments = json.loads(arguments)
            out.append({"role": "tool_call", "content": {"name": function["name"], "arguments": arguments}})
    return out


def _standard_message(message: Message, at: int, row: Row) -> Message:
    roles = [message[key] for key in ("role", "from") if key in message]
    if not roles:
        raise RowError("role", f'message {at} has no "role"')
    if len(roles) > 1:
        raise RowError("messages", f'message {at} has both "role" and "from"', "Keep one of them.")
    contents = [message[key] for key in ("content", "value") if key in message]
    if not contents:
        raise RowError("content", f'message {at} has no "content"')
    if len(contents) > 1:
        raise RowError("messages", f'message {at} has both "content" and "value"', "Keep one of them.")
    role = _standard_role(roles[0], at)
    out = {"role": role, "content": _standard_content(contents[0], role, at, row)}
    out.update((key, message[key]) for key in _MESSAGE_KEYS if message.get(key) is not None)
    return out


def _standard_role(role: Any, at: int) -> str:
    if isinstance(role, str):
        if role in STANDARD_ROLES:
            return role
        if role in USER_ROLES:
            return "user"
        if role in ASSISTANT_ROLES:
            return "assistant"
        if role.replace("-", "_") == "function_call":
            return "tool_call"
        if role.replace("-", "_") in {"function_response", "observation", "observations"}:
            return "tool_response"
        raise RowError("role", f'message {at} has the unknown role "{role[:40]}"', _role_advice(role))
    raise RowError("role", f"the role of message {at} is {_kind_of(role)}")


def _role_advice(role: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(role.strip().lower(), ROLE_NAMES, n=1, cutoff=0.7)
    if near:
        return f'Did you mean "{near[0]}"?'
    return 'Use "system", "user", "assistant", "tool_call" or "tool_response".'


def _standard_content(content: Any, role: str, at: int, row: Row) -> Any:
    if isinstance(content, str):
        return content
    if role in {"tool_call", *TOOL_ANSWERS} and isinstance(content, (dict, list)):
        return content
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        return _joined_parts(content, at, row)
    raise RowError("content", f'the content of message {at} ("{role}") is {_kind_of(content)}, not text')


def _joined_parts(parts: list[Any], at: int, row: Row) -> str:
    """OpenAI's list of typed parts as one text with tags, its media moved to the row."""
    text = ""
    for part in parts:
        kind = part.get("type")
        value = part.get(kind) if isinstance(kind, str) else None
        if kind == "text" and isinstance(value, str):
            text += value
            continue
        name = kind[: -len("_url")] if isinstance(kind, str) and kind.endswith("_url") else kind
        if name not in {"image", "video", "audio"}:
            raise RowError("content", f"a part of message {at} has the unknown type {json.dumps(kind)[:40]}")
        text += f"<{name}>"
        if isinstance(value, dict):
            value = value.get("url")
        if value:
            row[f"{name}s"] = [*row.get(f"{name}s", ()), value]
    return text


def _media_list(value: Any, name: str) -> list[Any]:
    if isinstance(value, (str, dict, bytes)):
        return [value]
    if isinstance(value, list):
        return value
    raise RowError("media-file", f'"{name}" is {_kind_of(value)}, not a list of files')


# What is wrong with it

BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 text per token, a rough mean of today's tokenizers: English 4 to 4.6, Chinese 4 to 5."""

_Check = Callable[[Row, Rules], Iterable[Flaw]]


def flaws_of(row: Row, rules: Rules) -> list[Flaw]:
    """Everything wrong with a standard row (see `standard_row`), media files themselves aside."""
    found = list(_conversation_flaws(row["messages"], "", rules.task not in {"pt"} | RANKING_TASKS))
    if not found:
        found += _task_flaws(row, rules)
    found += _media_flaws(row, rules)
    found += _object_flaws(row)
    return found


def _conversation_flaws(messages: list[Message], where: str, chat: bool) -> Iterable[Flaw]:
    """Empty content and roles out of order.

    Args:
        where: which list it is, put before "message", e.g. "rejected ".
        chat: a question must come before an answer.
    """
    before = ""
    for at, message in enumerate(messages, 1):
        role, content = message["role"], message["content"]
        if isinstance(content, str) and not content.strip() and role != "system":
            yield Flaw("content", f'the content of {where}message {at} ("{role}") is empty')
        if role == "system" and at > 1:
            yield Flaw("order", f'{where}message {at} is from "system", which may only be the first')
        elif role in TOOL_ANSWERS and before not in {"assistant", "tool_call", "user", *TOOL_ANSWERS}:
            yield Flaw("order", f'{where}message {at} is from "{role}" with no call before it')
        elif role == before and role in {"user", "assistant"}:
            yield Flaw("same-role", f'{where}messages {at - 1} and {at} are both from "{role}"')
        before = role
    turns = [message["role"] for message in messages if message["role"] != "system"]
    if not turns:
        yield Flaw("no-answer", f"row has only a {where}system message")
    elif chat and turns[0] in {"assistant", "tool_call"} and "user" not in turns:
        yield Flaw(
            "no-question",
            f'row has no question: no {where}message is from "user"',
            'Add the question, or train on plain text with "pt".',
        )


def _task_flaws(row: Row, rules: Rules) -> Iterable[Flaw]:
    task = rules.task
    if task in ANSWER_TASKS:
        yield from _answer_flaws(row["messages"], rules)
    if task in PREFERENCE_TASKS or "rejected_response" in row or "rejected_messages" in row:
        yield from _rejected_flaws(row)
    if task in PROMPT_TASKS and all(message["role"] != "user" for message in row["messages"]):
        yield Flaw("no-question", 'row has no question: no message is from "user"')
    if task == "kto":
        yield from _kto_flaws(row)
    elif task == "seq_cls":
        yield from _class_flaws(row, rules)
    elif task in RANKING_TASKS:
        yield from _pair_flaws(row, task)


def _answer_flaws(messages: list[Message], rules: Rules) -> Iterable[Flaw]:
    last = messages[-1]
    if last["role"] not in {"assistant", "tool_call"}:
        yield Flaw("no-answer", 'row has no answer: the last message must be from "assistant"')
        return
    content = last["content"]
    if isinstance(content, str) and len(content) < 8 and not any(map(str.isalnum, content)):
        yield Flaw("tiny-answer", f"the answer is only {json.dumps(content, ensure_ascii=False)}")
    if rules.max_length is not None:
        tokens = row_tokens(messages)
        if tokens > rules.max_length:
            yield Flaw("too-long", f"row has about {tokens} tokens, more than max_length {rules.max_length}")


def row_tokens(messages: list[Message]) -> int:
    """Estimated tokens: UTF-8 bytes by `BYTES_PER_TOKEN`, and four a message for the template."""
    total = 0
    for message in messages:
        content = message["content"]
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        total += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return total // BYTES_PER_TOKEN + 4 * len(messages)


def _rejected_flaws(row: Row) -> Iterable[Flaw]:
    response, messages = row.get("rejected_response"), row.get("rejected_messages")
    if response is None and messages is None:
        yield Flaw("rejected", 'row has no rejected answer: add "rejected_response" or "rejected_messages"')
        return
    chosen = row["messages"][-1]
    if messages is not None:
        yield from _conversation_flaws(messages, "rejected ", True)
        if messages[-1]["role"] not in {"assistant", "tool_call"}:
            yield Flaw("rejected", 'the last rejected message must be from "assistant"')
        if messages == row["messages"]:
            yield Flaw("rejected", "the rejected messages are the same as the chosen ones")
    if response is None:
        return
    if isinstance(response, list):
        yield from _rejected_list_flaws(response)
    elif not isinstance(response, str):
        yield Flaw("rejected", f'"rejected_response" is {_kind_of(response)}, not text')
    elif not response.strip():
        yield Flaw("rejected", '"rejected_response" is empty')
    elif response == chosen["content"]:
        yield Flaw("rejected", "the rejected answer is the same as the chosen one")


def _rejected_list_flaws(response: list[Any]) -> Iterable[Flaw]:
    try:
        turns = read_messages(response, {}, None, "rejected_response")
    except RowError as error:
        yield error.flaw
        return
    if any(turn["role"] == "user" for turn in turns):
        yield Flaw(
            "rejected", 'a message of "rejected_response" is from "user"', "It may only hold the answer."
        )
    yield from _conversation_flaws(turns, "rejected ", False)


def _kto_flaws(row: Row) -> Iterable[Flaw]:
    label = row.get("label")
    if not isinstance(label, bool) and label not in (0, 1):
        shown = "is missing" if label is None else f"is {json.dumps(label)[:40]}"
        yield Flaw("label", f'"label" {shown}', "It must be true for a good answer and false for a bad one.")


def _class_flaws(row: Row, rules: Rules) -> Iterable[Flaw]:
    label, classes = row.get("label"), rules.num_labels
    if rules.problem_type == "regression" or (classes == 1 and isinstance(label, float)):
        if not isinstance(label, (int, float)):
            yield Flaw("label", f'"label" is {_kind_of(label)}, not a number')
        return
    labels = label if isinstance(label, list) else [label]
    if label is None:
        yield Flaw("label", '"label" is missing', "Add the class, a whole number from 0.")
        return
    for value in labels:
        if not isinstance(value, int) or isinstance(value, bool):
            yield Flaw(
                "label", f'"label" is {json.dumps(value)[:40]}, not a whole number', "Number classes from 0."
            )
        elif value < 0 or (classes is not None and value >= classes):
            upto = f"0 to {classes - 1}" if classes is not None else "0 and up"
            yield Flaw("label", f'"label" {value} is outside {upto}', "Correct it, or raise num_labels.")


def _pair_flaws(row: Row, task: str) -> Iterable[Flaw]:
    """Embedding wants one positive list of messages, rerankers positives and negatives."""
    label = row.get("label")
    if label is not None and not isinstance(label, (int, float)):
        yield Flaw("label", f'"label" is {_kind_of(label)}, not a number')
    for name in ("positive_messages", "negative_messages"):
        value = row.get(name)
        if not value:
            if name == "positive_messages" or task != "embedding":
                yield Flaw("pairs", f'"{name}" is missing', "Add it: a list of lists of messages.")
            continue
        if not isinstance(value, list) or not all(isinstance(turns, list) for turns in value):
            yield Flaw("pairs", f'"{name}" must be a list of lists of messages', "Put each list into a list.")
            continue
        for turns in value:
            try:
                yield from _conversation_flaws(read_messages(turns, {}, None, name), f"{name} ", False)
            except RowError as error:
                yield error.flaw


def _media_flaws(row: Row, rules: Rules) -> Iterable[Flaw]:
    if not rules.multimodal and not any(row.get(name) for name in MEDIA):
        return
    texts = [message["content"] for message in row["messages"] if isinstance(message["content"], str)]
    for name in MEDIA:
        tag, media = f"<{name[:-1]}>", row.get(name) or ()
        tags = sum(text.count(tag) for text in texts)
        if tags > len(media) or 0 < tags < len(media):
            yield Flaw(
                "media-count",
                f"the text has {tags} {tag} and the row {len(media)} of {name}",
                f"Give each of {name} one {tag}.",
            )


def _object_flaws(row: Row) -> Iterable[Flaw]:
    objects = row.get("objects")
    if objects is None:
        return
    if not isinstance(objects, dict) or not isinstance(objects.get("bbox"), list):
        yield Flaw("objects", '"objects" must hold "bbox", a list of boxes')
        return
    for box in objects["bbox"]:
        if not isinstance(box, list) or len(box) not in (2, 4) or not all(_is_number(x) for x in box):
            shown = json.dumps(box)[:40]
            yield Flaw("objects", f"the box {shown} is neither [x, y] nor [x1, y1, x2, y2]")
    texts = [message["content"] for message in row["messages"] if isinstance(message["content"], str)]
    for name, tag in (("ref", "<ref-object>"), ("bbox", "<bbox>")):
        given = objects.get(name) or []
        tags = sum(text.count(tag) for text in texts)
        if tags != len(given):
            yield Flaw("objects", f'the text has {tags} {tag} and "objects" {len(given)} of {name}')


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
