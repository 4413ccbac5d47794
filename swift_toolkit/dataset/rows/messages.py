"""Converts rows of every accepted format to messages.

The conversion follows ms-swift's own preprocessors, so that a row that is valid here is valid in ms-swift.
Nothing here opens a file.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swift_toolkit.console.words import did_you_mean, shown
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError, json_kind
from swift_toolkit.dataset.rows.formats import MEDIA, MEDIA_COLUMNS, Family, Layout, layout_of

Row = dict[str, Any]
"""A JSON object of a user's data file, with unchecked keys and values."""

Message = Row


# A row as messages

USER_ROLES = frozenset({"user", "human"})
ASSISTANT_ROLES = frozenset({"assistant", "gpt", "bot"})
TOOL_ANSWERS = frozenset({"tool", "tool_response"})
MODEL_ROLES = frozenset({"assistant", "tool_call"})
STANDARD_ROLES = frozenset({"system", "user", *MODEL_ROLES, *TOOL_ANSWERS})
OTHER_ROLES = {
    **dict.fromkeys(USER_ROLES, "user"),
    **dict.fromkeys(ASSISTANT_ROLES, "assistant"),
    "function_call": "tool_call",
    "function-call": "tool_call",
    **dict.fromkeys(
        ("function_response", "function-response", "observation", "observations"), "tool_response"
    ),
}
_MEANT_ROLES = {
    **dict.fromkeys(("developer", "instruction"), "system"),
    **dict.fromkeys(("prompter", "customer", "question", "用户", "问"), "user"),
    **dict.fromkeys(("model", "ai", "chatbot", "chatgpt", "agent", "answer", "助手", "答"), "assistant"),
    **dict.fromkeys(
        ("function", "ipython", "tool_result", "function_result", "environment"), "tool_response"
    ),
}
"""Roles of other projects that ms-swift does not know -> its own."""

THOUGHT = 'Put it at the start of the content, with the marks of the template ("<think>...</think>").'

_KEPT_KEYS = ("loss", "loss_scale")

LOSS_KEYS = ("weight", "train", "trainable", "loss_mask")
"""Keys of a message with which other tools say whether it is learned; in ms-swift it is "loss"."""

LOST_KEYS = {
    "reasoning_content": THOUGHT, "reasoning": THOUGHT, "thinking": THOUGHT, "thought": THOUGHT,
    "function_call": 'Write a message with the role "tool_call".',
    "refusal": 'Write it as the "content" if it should be learned.',
    "tools": 'Move them to the column "tools" of the row.',
    **{name: f'Move them to the column "{media}" of the row.' for name, media in MEDIA_COLUMNS.items()},
}  # fmt: skip
"""Meaningful keys of a message that ms-swift drops silently -> advice."""

_HARMLESS_KEYS = frozenset(
    {"role", "content", "from", "value", *_KEPT_KEYS, *LOSS_KEYS, "tool_calls", "tool_call_id"}
)
"""Keys that are used, or that say what the order of the messages says, too."""


def standard_row(row: Row, layout: Layout) -> Row:
    """Convert a row to standard columns, with `messages` as a list of {role, content}.

    Media inside the content are moved to `images`, `videos` and `audios`; their tags remain in the text. Null columns
    are dropped. The input is not changed.

    Raises:
        FlawError: the row cannot be converted.
    """
    kept = layout.kept
    out = {kept[name]: value for name, value in row.items() if value is not None and name in kept}
    for name in MEDIA:
        if name in out:
            out[name] = _media_list(out[name], name)
    if layout.family == "preference":
        return _from_preference(out)
    if layout.family == "messages":
        return _from_messages(out)
    return _from_texts(out, layout.family)


def _media_list(value: Any, name: str) -> list[Any]:
    if isinstance(value, (str, dict, bytes)):
        return [value]
    if isinstance(value, list):
        return value
    raise FlawError("media-file", f'"{name}" is {json_kind(value)}, not a list of files')


def _from_messages(row: Row) -> Row:
    system = row.pop("system", None)
    talk = read_messages(row.get("messages"), system)
    row |= talk.media_beside(row)
    row["messages"] = talk.messages
    if "rejected_messages" in row:
        row["rejected_messages"] = read_messages(row["rejected_messages"], None, "rejected_messages").messages
    return row


def _from_texts(row: Row, family: Family) -> Row:
    response, query = row.pop("response", None), row.pop("query", None)
    if family == "alpaca":
        response = row.pop("output", response)
        query = _instruction(row)
    if isinstance(response, list):
        if not response:
            raise FlawError("content", "the response is an empty list")
        response = response[0]  # as ms-swift does
    if _is_parts(query):
        talk = Talk()
        query = _joined_parts(query, 1, talk)
        row |= talk.media_beside(row)
    _refuse_conversations(row, query, response)
    messages: list[Message] = []
    if (system := row.pop("system", None)) is not None:
        messages.append({"role": "system", "content": _text(system, "system")})
    messages += _turns_of_history(row.pop("history", None))
    for role, text in (("user", query), ("assistant", response)):
        if text is not None:
            messages.append({"role": role, "content": _text(text, role)})
    if not messages:
        raise FlawError("messages", "row has neither a question nor an answer")
    row["messages"] = messages
    return row


def _is_parts(query: Any) -> bool:
    """Whether a question is a list of typed parts, ``{"type": "text", "text": ...}``, not of messages."""
    is_list = isinstance(query, list) and all(isinstance(part, dict) for part in query)
    return is_list and any("type" in part for part in query) and not _has_roles(query)


def _has_roles(turns: list[Message]) -> bool:
    return any("role" in turn or "from" in turn for turn in turns)


def _instruction(row: Row) -> str:
    parts = [row.pop("instruction", None), row.pop("input", None)]
    if not all(part is None or isinstance(part, str) for part in parts):
        raise FlawError("content", '"instruction" and "input" must be text')
    return "\n".join(part for part in parts if part)


def _refuse_conversations(row: Row, query: Any, response: Any) -> None:
    """Reject a question that is a list of messages, the form of prompts in TRL and verl."""
    is_list = isinstance(query, list) and all(isinstance(turn, dict) for turn in query)
    if not is_list or not _has_roles(query):
        return
    if isinstance(response, (list, dict)):
        do = 'Combine them into one list "messages".'
        raise FlawError("messages", "the question and the answer are lists of messages", do)
    do = 'Rename the column to "messages", or set "columns": {"prompt": "messages"}.'
    if isinstance(row.get("reward_model"), dict):
        do += ' Move "ground_truth" of "reward_model" to a column "solution".'
    raise FlawError("messages", "the question is a list of messages", do)


def _turns_of_history(history: Any) -> list[Message]:
    roles = ("user", "assistant")
    return [
        {"role": role, "content": _text(text, role)}
        for pair in _history(history)
        for role, text in zip(roles, pair, strict=True)
        if text is not None
    ]


def _history(history: Any) -> list[tuple[Any, Any]]:
    if isinstance(history, str):
        history = _literal(history, "history") if history.strip() else None
    if not history:
        return []
    if not isinstance(history, list) or not all(isinstance(h, (list, tuple)) and len(h) > 1 for h in history):
        do = 'Or write all turns as one list "messages".'
        raise FlawError("messages", '"history" must be a list of [question, answer] pairs', do)
    return [(pair[0], pair[1]) for pair in history]


def _from_preference(row: Row) -> Row:
    chosen, rejected = row.pop("chosen", None), row.pop("rejected", None)
    if chosen is None or rejected is None:
        missing = "chosen" if chosen is None else "rejected"
        raise FlawError("rejected", f'row has no "{missing}" answer')
    before = _before_answers(row)
    system = row.pop("system", None)
    for name, column, value in (("chosen", "messages", chosen), ("rejected", "rejected_messages", rejected)):
        talk = read_messages(_turns_of(value), None, name)
        if column == "messages":
            row |= talk.media_beside(row)
        read = _after(before, talk.messages)
        if system is not None and read[0]["role"] != "system":
            read = [{"role": "system", "content": _text(system, "system")}, *read]
        row[column] = read
    return row


def _before_answers(row: Row) -> list[Message]:
    """The conversation before the answers that are compared."""
    prompt, history = row.pop("prompt", None), row.pop("history", None)
    if "instruction" in row or "input" in row:
        prompt = _instruction(row)
    if isinstance(prompt, str):
        return [*_turns_of_history(history), {"role": "user", "content": prompt}]
    if prompt is None:
        return []
    talk = read_messages(prompt, None, "prompt")
    row |= talk.media_beside(row)
    messages = talk.messages
    while len(messages) > 1 and messages[-1]["role"] == "assistant":
        messages = messages[:-1]  # the prompt already includes an answer, which is compared
    return messages


def _turns_of(value: Any) -> Any:
    """An answer as a list of turns."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return [value] if isinstance(value, dict) else value


def _after(before: list[Message], read: list[Message]) -> list[Message]:
    """A conversation with its prompt, unless it already starts with the prompt."""
    bare = [message for message in before if message["role"] != "system"]
    own = [message for message in read if message["role"] != "system"]
    if before and bare == own[: len(bare)]:
        return read if read[0]["role"] == "system" else [*before, *own[len(bare) :]]
    return [*before, *read]


def _text(value: Any, role: str) -> str:
    if isinstance(value, str):
        return value
    raise FlawError("content", f'the text of "{role}" is {json_kind(value)}, not text')


def parsed(value: Any) -> Any:
    """A value stored as text, in JSON or Python syntax, parsed as in ms-swift: None if it is neither."""
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(value)
    with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(value)
    return None


def _literal(text: str, name: str) -> Any:
    """A list stored as text."""
    if (value := parsed(text)) is not None:
        return value
    raise FlawError("messages", f'"{name}" is text that is not a list')


@dataclass
class Talk:
    """A conversation.

    Args:
        messages: its turns as {role, content}.
        media: column -> images, videos or audios found inside it, in order.
        unnamed: column -> the first message with a medium without an address, which stands for the row's next one.
    """

    messages: list[Message] = field(default_factory=list)
    media: dict[str, list[Any]] = field(default_factory=dict)
    unnamed: dict[str, int] = field(default_factory=dict)

    def add_media(self, name: str, item: Any) -> None:
        self.media.setdefault(name, []).append(item)

    def media_beside(self, row: Row) -> Row:
        """The media of the conversation, if the row itself has none of that kind.

        Raises:
            FlawError: the row has some, or lacks the media that the conversation mentions without an address.
        """
        for name, at in self.unnamed.items():
            if not row.get(name):
                raise FlawError("content", f"the {name[:-1]} in message {at} has no address")
        for name in self.media:
            if row.get(name):
                what = f'row has {name} within the messages and in "{name}"'
                raise FlawError("media-count", what, "Keep them in one place.")
        return self.media


def read_messages(
    value: Any, system: Any = None, name: str = "messages", *, standard_only: bool = False
) -> Talk:
    """Convert any list of turns to [{role, content}], with the media found inside.

    Args:
        value: the list, or a list as text.
        system: system prompt of the row, or None.
        name: name of the list in messages to the user.
        standard_only: ms-swift uses this list unchanged, so only "role", "content" and standard roles are allowed.

    Raises:
        FlawError: the value is not a list of turns.
    """
    turns = _list_of_turns(value, name, standard_only)
    talk = Talk()
    if _is_pairs(turns[0]):
        talk.messages = list(_from_pairs(turns))
    else:
        for at, message in enumerate(_split_blocks(_split_calls(turns), talk), 1):
            talk.messages.append(_standard_message(message, at, talk, standard_only))
    if system is not None and talk.messages[0]["role"] != "system":
        talk.messages.insert(0, {"role": "system", "content": _text(system, "system")})
    return talk


def _list_of_turns(value: Any, name: str, standard_only: bool) -> list[Message]:
    if isinstance(value, str) and not standard_only:
        value = _literal(value, name)
    if value is None:
        raise FlawError("messages", f'"{name}" is missing or null')
    if not isinstance(value, list):
        raise FlawError("messages", f'"{name}" is {json_kind(value)}, not a list of messages')
    if not value:
        raise FlawError("messages", f'"{name}" is empty')
    for at, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise FlawError("messages", f'message {at} of "{name}" is {json_kind(message)}, not an object')
    return value


def _is_pairs(message: Message) -> bool:
    keys = message.keys()
    return not keys & {"role", "from", "content", "value"} and bool(keys & (USER_ROLES | ASSISTANT_ROLES))


def _from_pairs(value: list[Message]) -> Iterator[Message]:
    """[{"human": question, "assistant": answer}, ...]"""
    for at, pair in enumerate(value, 1):
        for role, names in (("user", USER_ROLES), ("assistant", ASSISTANT_ROLES)):
            found = [pair[name] for name in pair.keys() & names]
            if len(found) != 1:
                raise FlawError("messages", f"message {at} must have one question and one answer")
            yield {"role": role, "content": _text(found[0], role)}


def _split_calls(value: list[Message]) -> Iterator[Message]:
    """Convert OpenAI's `tool_calls` to separate tool_call messages."""
    for at, message in enumerate(value, 1):
        calls = message.get("tool_calls")
        if not calls or message.get("role") != "assistant":
            yield message
            continue
        if message.get("content"):
            yield {key: message[key] for key in ("role", "content", *_KEPT_KEYS) if key in message}
        for call in calls if isinstance(calls, list) else [calls]:
            function = call.get("function", call) if isinstance(call, dict) else None
            if not isinstance(function, dict) or "name" not in function:
                raise FlawError("tools", f'a tool call of message {at} has no "name"')
            arguments = function.get("arguments", {})
            if isinstance(arguments, str):
                with contextlib.suppress(ValueError):  # ms-swift keeps such text unchanged
                    arguments = json.loads(arguments)
            yield {"role": "tool_call", "content": {"name": function["name"], "arguments": arguments}}


def _split_blocks(value: Iterable[Message], talk: Talk) -> Iterator[Message]:
    """Convert Anthropic's blocks: calls and results become separate messages; images are collected."""
    for at, message in enumerate(value, 1):
        blocks = message.get("content")
        if not isinstance(blocks, list) or not any(map(_is_block, blocks)):
            yield message
            continue
        text = ""
        for block in blocks:
            kind = block.get("type") if isinstance(block, dict) else None
            if kind == "text":
                text += _text(block.get("text"), "text block")
            elif kind == "image":
                text += "<image>"
                talk.add_media("images", _block_image(block, at))
            elif kind in {"tool_use", "tool_result"}:
                if text:
                    yield {"role": message.get("role"), "content": text}
                text = ""
                yield _block_call(block, at)
            else:
                raise FlawError("content", f"a part of message {at} has the unknown type {shown(kind)}")
        if text:
            yield {"role": message.get("role"), "content": text}


def _is_block(block: Any) -> bool:
    return isinstance(block, dict) and (block.get("type") in {"tool_use", "tool_result"} or "source" in block)


def _block_image(block: Message, at: int) -> str:
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "url" and source.get("url"):
        return str(source["url"])
    if isinstance(source, dict) and source.get("type") == "base64" and source.get("data"):
        return f"data:{source.get('media_type')};base64,{source['data']}"
    raise FlawError("content", f'an image of message {at} has no usable "source"')


def _block_call(block: Message, at: int) -> Message:
    if block["type"] == "tool_result":
        content = block.get("content", "")
        if isinstance(content, list):
            content = "".join(_text(part.get("text"), "tool_result") for part in content)
        return {"role": "tool_response", "content": content}
    if "name" not in block:
        raise FlawError("tools", f'a tool call of message {at} has no "name"')
    return {"role": "tool_call", "content": {"name": block["name"], "arguments": block.get("input", {})}}


def _standard_message(message: Message, at: int, talk: Talk, standard_only: bool) -> Message:
    if message.keys() == {"role", "content"}:
        role, content = message["role"], message["content"]
        if isinstance(content, str) and isinstance(role, str) and role in STANDARD_ROLES:
            return message  # the usual case
    role = _one_of(message, ("role",) if standard_only else ("role", "from"), "role", at)
    content = _one_of(message, ("content",) if standard_only else ("content", "value"), "content", at)
    out: Message = {"role": _standard_role(role, at, standard_only)}
    if content is None and message.get("function_call"):
        do = 'Write it as {"role": "tool_call", "content": {"name": ..., "arguments": ...}}.'
        raise FlawError("content", f'message {at} has only a "function_call"', do)
    out["content"] = _standard_content(content, out["role"], at, talk)
    out.update((key, message[key]) for key in _KEPT_KEYS if message.get(key) is not None)
    key = next((key for key in LOSS_KEYS if message.get(key) is not None), None)
    if key is not None and out["role"] == "assistant":
        out.setdefault("loss", _loss(message[key], key, at))
    return out


def _loss(value: Any, key: str, at: int) -> bool:
    """Whether a message is learned, from the corresponding keys of other tools."""
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    do = 'Write "loss": true or false, or "loss_scale" for a weight.'
    raise FlawError("value", f'"{key}" of message {at} is {shown(value)}, neither 0 nor 1', do)


def _one_of(message: Message, keys: tuple[str, ...], kind: str, at: int) -> Any:
    """The value of the only one of these keys that the message has."""
    found = [key for key in keys if key in message]
    if len(found) > 1:
        quoted = " and ".join(f'"{key}"' for key in found)
        raise FlawError("messages", f"message {at} has both {quoted}", "Keep one of them.")
    if not found:
        raise FlawError(kind, f'message {at} has no "{keys[0]}"')
    return message[found[0]]


def _standard_role(role: Any, at: int, standard_only: bool) -> str:
    if not isinstance(role, str):
        raise FlawError("role", f"the role of message {at} is {json_kind(role)}")
    if role in STANDARD_ROLES:
        return role
    if role in OTHER_ROLES and not standard_only:
        return OTHER_ROLES[role]
    raise FlawError(
        "role", f"message {at} has the unknown role {shown(role)}", _role_advice(role, standard_only)
    )


def _role_advice(role: str, standard_only: bool) -> str:
    if role in OTHER_ROLES and standard_only:
        return f'ms-swift accepts only "{OTHER_ROLES[role]}" here.'
    if meant := _MEANT_ROLES.get(role.strip().lower()):
        return f'Use "{meant}".'
    use = 'Use "system", "user", "assistant", "tool_call" or "tool_response".'
    return did_you_mean(role.strip(), (*STANDARD_ROLES, *OTHER_ROLES), use)


def _standard_content(content: Any, role: str, at: int, talk: Talk) -> Any:
    if isinstance(content, str):
        return content
    if role == "tool_call" and isinstance(content, dict):
        return content
    if role in TOOL_ANSWERS and isinstance(content, (dict, int, float)):
        return content
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        if role in TOOL_ANSWERS:
            return content
        if role in {"user", "assistant"}:
            return _joined_parts(content, at, talk)
    raise FlawError("content", f'the content of message {at} ("{role}") is {json_kind(content)}, not text')


def _joined_parts(parts: list[Message], at: int, talk: Talk) -> str:
    """Convert a list of typed parts to one text with tags, and collect its media; a part without an address stands
    for the next medium of the row.
    """
    text = ""
    for part in parts:
        kind = part.get("type")
        value = part.get(kind) if isinstance(kind, str) else None
        if kind == "text":
            text += _text(value, "text part")
            continue
        if kind is None:
            do = 'Write the text itself as "content", or {"type": "text", "text": ...}.'
            raise FlawError("content", f'a part of message {at} has no "type"', do)
        name = kind.removesuffix("_url") if isinstance(kind, str) else ""
        if f"{name}s" not in MEDIA:
            raise FlawError("content", f"a part of message {at} has the unknown type {shown(kind)}")
        if isinstance(value, dict):
            value = value.get("url")
        if value is not None and (not isinstance(value, str) or not value):
            raise FlawError("content", f"the {name} in message {at} has no address")
        text += f"<{name}>"
        if value is None:
            talk.unnamed.setdefault(f"{name}s", at)
        else:
            talk.add_media(f"{name}s", value)
    return text


_TALK_COLUMNS = ("messages", "rejected_messages", "prompt", "chosen", "rejected")


def lost_keys(row: Row, layout: Layout) -> Iterator[Flaw]:
    """Meaningful keys of messages, and answers, that neither ms-swift nor a copy keeps; each is reported once.

    Args:
        row: the row as in the file.
        layout: the format of the file.
    """
    said: set[str] = set()
    for column, value in row.items():
        if layout.rename.get(column) in ("response", "output") and isinstance(value, list) and len(value) > 1:
            what = f"the row has {len(value)} answers, of which only the first is used"
            yield Flaw("lost-text", what, "Write a row for each, or a preference.")
        turns = value if layout.rename.get(column) in _TALK_COLUMNS else None
        for at, message in enumerate(turns if isinstance(turns, list) else (), 1):
            if not isinstance(message, dict):
                continue
            for key in message.keys() & LOST_KEYS.keys() - said:
                if message[key]:
                    said.add(key)
                    yield Flaw("lost-key", f'message {at} has "{key}", which ms-swift drops', LOST_KEYS[key])


def unused_keys(layout: Layout, shape_of: Mapping[str, Collection[str]]) -> list[str]:
    """Keys of messages that training does not use, as "messages[].key".

    Args:
        layout: the format of the file.
        shape_of: column -> keys of its objects.
    """
    known = _HARMLESS_KEYS | LOST_KEYS.keys() | USER_ROLES | ASSISTANT_ROLES
    columns = [column for column, name in layout.rename.items() if name in _TALK_COLUMNS]
    return [f"{column}[].{key}" for column in columns for key in shape_of.get(column, ()) if key not in known]


def other_format(row: Row, layout: Layout) -> Flaw | None:
    """A flaw if the row is in a known format that is not the file's."""
    with contextlib.suppress(FlawError):
        other = layout_of([name for name, value in row.items() if value is not None])
        if other.family != layout.family and {other.family, layout.family} != {"response", "alpaca"}:
            what = f"row is in the format {other.name}, but the file is in {layout.name}"
            return Flaw("mixed-formats", what)
    return None
