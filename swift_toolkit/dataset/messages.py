"""What a row is: every accepted format as messages.

The reading follows ms-swift's own preprocessors, so that a row read here is a row that ms-swift reads.
Nothing here opens a file.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from swift_toolkit.dataset.flaws import Flaw, FlawError, brief, kind_of
from swift_toolkit.dataset.formats import MEDIA, Family, Layout, layout_of

Row = dict[str, Any]
Message = dict[str, Any]


# A row as messages

USER_ROLES = frozenset({"user", "human"})
ASSISTANT_ROLES = frozenset({"assistant", "gpt", "bot"})
TOOL_ANSWERS = frozenset({"tool", "tool_response"})
STANDARD_ROLES = frozenset({"system", "user", "assistant", "tool_call", *TOOL_ANSWERS})
OTHER_ROLES = {
    **dict.fromkeys(USER_ROLES, "user"),
    **dict.fromkeys(ASSISTANT_ROLES, "assistant"),
    "function_call": "tool_call",
    "function-call": "tool_call",
    **dict.fromkeys(
        ("function_response", "function-response", "observation", "observations"), "tool_response"
    ),
}
_KEPT_KEYS = ("loss", "loss_scale")


def standard_row(row: Row, layout: Layout) -> Row:
    """The row with standard columns and `messages` as a list of {role, content}.

    Media given inside the content are moved to `images`, `videos` and `audios`, with their tags left in the
    text. Columns that are null are left out. The input is not changed.

    Raises:
        FlawError: it cannot be read.
    """
    rename = layout.rename
    out = {rename[name]: value for name, value in row.items() if value is not None and name in rename}
    for column in layout.unused:
        out.pop(layout.rename[column], None)
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
    raise FlawError("media-file", f'"{name}" is {kind_of(value)}, not a list of files')


def _from_messages(row: Row) -> Row:
    system = row.pop("system", None)
    row["messages"] = read_messages(row.get("messages"), row, system)
    if "rejected_messages" in row:
        row["rejected_messages"] = read_messages(row["rejected_messages"], {}, None, "rejected_messages")
    return row


def _from_texts(row: Row, family: Family) -> Row:
    response, query = row.pop("response", None), row.pop("query", None)
    if family == "alpaca":
        response = row.pop("output", response)
        parts = [row.pop("instruction", None), row.pop("input", None)]
        if not all(part is None or isinstance(part, str) for part in parts):
            raise FlawError("content", '"instruction" and "input" must be text')
        query = "\n".join(part for part in parts if part)
    if isinstance(response, list):
        if not response:
            raise FlawError("content", "the response is an empty list")
        response = response[0]  # as ms-swift does
    messages: list[Message] = []
    if (system := row.pop("system", None)) is not None:
        messages.append({"role": "system", "content": _text(system, "system")})
    for asked, answered in (*_history(row.pop("history", None)), (query, response)):
        if asked is not None:
            messages.append({"role": "user", "content": _text(asked, "user")})
        if answered is not None:
            messages.append({"role": "assistant", "content": _text(answered, "assistant")})
    if not messages:
        raise FlawError("messages", "row has neither question nor answer")
    row["messages"] = messages
    return row


def _history(history: Any) -> list[tuple[Any, Any]]:
    if isinstance(history, str):
        history = _literal(history, "history") if history.strip() else None
    if not history:
        return []
    if not isinstance(history, list) or not all(isinstance(h, (list, tuple)) and len(h) > 1 for h in history):
        raise FlawError("messages", '"history" must be a list of [question, answer] pairs')
    return [(pair[0], pair[1]) for pair in history]


def _from_preference(row: Row) -> Row:
    chosen, rejected = row.pop("chosen", None), row.pop("rejected", None)
    prompt, system = row.pop("prompt", None), row.pop("system", None)
    if chosen is None or rejected is None:
        missing = "chosen" if chosen is None else "rejected"
        raise FlawError("rejected", f'row has no "{missing}" answer')
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    before = [] if prompt is None else read_messages(prompt, row, None, "prompt")
    for name, column, value in (("chosen", "messages", chosen), ("rejected", "rejected_messages", rejected)):
        turns = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
        read = read_messages(turns, row if name == "chosen" else {}, None, name)
        if system is not None and (before or read)[0]["role"] != "system":
            read = [{"role": "system", "content": _text(system, "system")}, *before, *read]
        else:
            read = [*before, *read]
        row[column] = read
    return row


def _text(value: Any, role: str) -> str:
    if isinstance(value, str):
        return value
    raise FlawError("content", f'the text of "{role}" is {kind_of(value)}, not text')


def _literal(text: str, name: str) -> Any:
    """A list kept as text, in JSON or in Python's notation, as ms-swift reads it."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    raise FlawError("messages", f'"{name}" is text that does not hold a list')


def read_messages(
    value: Any, row: Row, system: Any, name: str = "messages", *, standard_only: bool = False
) -> list[Message]:
    """Any list of turns as [{role, content}], media found inside moved to `row`.

    Args:
        value: the list, or the text of one.
        row: takes the media.
        system: system prompt of the row, or None.
        name: what messages to the user call the list.
        standard_only: ms-swift takes this list as it is: only "role", "content" and standard roles will do.

    Raises:
        FlawError: it is not a list of turns.
    """
    if isinstance(value, str) and not standard_only:
        value = _literal(value, name)
    if value is None:
        raise FlawError("messages", f'"{name}" is missing or null')
    if not isinstance(value, list):
        raise FlawError("messages", f'"{name}" is {kind_of(value)}, not a list of messages')
    if not value:
        raise FlawError("messages", f'"{name}" is empty')
    for at, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise FlawError("messages", f'message {at} of "{name}" is {kind_of(message)}, not an object')
    if _is_pairs(value[0]):
        messages = list(_from_pairs(value))
    else:
        messages = [
            _standard_message(message, at, row, standard_only)
            for at, message in enumerate(_split_blocks(_split_calls(value), row), 1)
        ]
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _text(system, "system")})
    return messages


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
    """OpenAI's `tool_calls` as tool_call messages of their own."""
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
                with contextlib.suppress(ValueError):  # ms-swift keeps such text as it is
                    arguments = json.loads(arguments)
            yield {"role": "tool_call", "content": {"name": function["name"], "arguments": arguments}}


def _split_blocks(value: Iterable[Message], row: Row) -> Iterator[Message]:
    """Anthropic's blocks: calls and results as messages of their own, images moved to the row."""
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
                row["images"] = [*row.get("images", ()), _block_image(block, at)]
            elif kind in {"tool_use", "tool_result"}:
                if text:
                    yield {"role": message.get("role"), "content": text}
                text = ""
                yield _block_call(block, at)
            else:
                raise FlawError("content", f"a part of message {at} has the unknown type {brief(kind)}")
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


def _standard_message(message: Message, at: int, row: Row, standard_only: bool) -> Message:
    if message.keys() == {"role", "content"}:
        role, content = message["role"], message["content"]
        if isinstance(content, str) and isinstance(role, str) and role in STANDARD_ROLES:
            return message  # as most are
    role = _one_of(message, ("role",) if standard_only else ("role", "from"), "role", at)
    content = _one_of(message, ("content",) if standard_only else ("content", "value"), "content", at)
    out = {"role": _standard_role(role, at, standard_only)}
    out["content"] = _standard_content(content, out["role"], at, row)
    out.update((key, message[key]) for key in _KEPT_KEYS if message.get(key) is not None)
    return out


def _one_of(message: Message, keys: tuple[str, ...], kind: str, at: int) -> Any:
    """The value of the one key of these that the message has."""
    found = [key for key in keys if key in message]
    if len(found) > 1:
        quoted = " and ".join(f'"{key}"' for key in found)
        raise FlawError("messages", f"message {at} has both {quoted}", "Keep one of them.")
    if not found:
        raise FlawError(kind, f'message {at} has no "{keys[0]}"')
    return message[found[0]]


def _standard_role(role: Any, at: int, standard_only: bool) -> str:
    if not isinstance(role, str):
        raise FlawError("role", f"the role of message {at} is {kind_of(role)}")
    if role in STANDARD_ROLES:
        return role
    if role in OTHER_ROLES and not standard_only:
        return OTHER_ROLES[role]
    raise FlawError(
        "role", f"message {at} has the unknown role {brief(role)}", _role_advice(role, standard_only)
    )


def _role_advice(role: str, standard_only: bool) -> str:
    if role in OTHER_ROLES and standard_only:
        return f'Here ms-swift takes only "{OTHER_ROLES[role]}".'
    near = get_close_matches(role.strip().lower(), (*STANDARD_ROLES, *OTHER_ROLES), 1, 0.7)
    if near:
        return f'Did you mean "{near[0]}"?'
    return 'Use "system", "user", "assistant", "tool_call" or "tool_response".'


def _standard_content(content: Any, role: str, at: int, row: Row) -> Any:
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
            return _joined_parts(content, at, row)
    raise FlawError("content", f'the content of message {at} ("{role}") is {kind_of(content)}, not text')


def _joined_parts(parts: list[Message], at: int, row: Row) -> str:
    """OpenAI's list of typed parts as one text with tags, its media moved to the row."""
    text = ""
    for part in parts:
        kind = part.get("type")
        value = part.get(kind) if isinstance(kind, str) else None
        if kind == "text":
            text += _text(value, "text part")
            continue
        name = kind.removesuffix("_url") if isinstance(kind, str) else ""
        if f"{name}s" not in MEDIA:
            raise FlawError("content", f"a part of message {at} has the unknown type {brief(kind)}")
        if isinstance(value, dict):
            value = value.get("url")
        if not isinstance(value, str) or not value:
            raise FlawError("content", f"the {name} in message {at} has no address")
        text += f"<{name}>"
        row[f"{name}s"] = [*row.get(f"{name}s", ()), value]
    return text


def other_format(row: Row, layout: Layout) -> Flaw | None:
    """Whether the row is in a known format of its own that is not the file's."""
    with contextlib.suppress(FlawError):
        other = layout_of([name for name, value in row.items() if value is not None])
        if other.family != layout.family and {other.family, layout.family} != {"response", "alpaca"}:
            what = f"row is in the format {other.name} and the file in {layout.name}"
            return Flaw("mixed-formats", what)
    return None
