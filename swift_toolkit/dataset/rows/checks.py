"""Checks on a row: what each task needs, and what would make training delete or misread the row."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swift_toolkit.config.tasks import PAIR_LOSSES, TASKS, Task
from swift_toolkit.console.words import shown
from swift_toolkit.dataset.lengths import BY_BYTES, Lengths
from swift_toolkit.dataset.rows.elsewhere import layout_elsewhere, renaming
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError, json_kind
from swift_toolkit.dataset.rows.formats import (
    KNOWN_COLUMNS,
    MEDIA,
    MEDIA_COLUMNS,
    OTHER_COLUMNS,
    Layout,
    near_name,
)
from swift_toolkit.dataset.rows.marks import mark_flaws
from swift_toolkit.dataset.rows.messages import (
    MODEL_ROLES,
    TOOL_ANSWERS,
    Message,
    Row,
    lost_keys,
    other_format,
    parsed,
    read_messages,
    standard_row,
)
from swift_toolkit.dataset.rows.template import ANY_TEMPLATE, TemplateRules, template_flaws

TINY_ANSWER = 8
"""Answers shorter than this number of characters must contain a letter or a digit."""

INVISIBLE = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
_SPACES = str.maketrans("\n\r\t", "   ")
MOJIBAKE = re.compile("Ã[\x80-\xbf]|â€")


@dataclass(frozen=True)
class Rules:
    """The requirements of the run for its rows.

    Args:
        task: the training task, a row of `TASKS`.
        multimodal: the model takes images, videos or audios, so tags in the text always stand for media.
        num_labels: number of classes of a "seq_cls" run; None if the run does not set it.
        problem_type: ms-swift's `problem_type` of a "seq_cls" run.
        max_length: maximum length of a row in tokens; None for no limit.
        truncation: what happens to longer rows: ms-swift's `truncation_strategy`.
        columns: the run's own mapping of column names, ms-swift's `columns`.
        template: what the template cannot write.
        loss_type: the loss of embeddings; None for other tasks.
        lengths: estimates the tokens of a text.
        closely: also look at rows beyond the first for secrets and for duplicates that differ in spaces and case.
    """

    task: Task = TASKS["sft"]
    multimodal: bool = False
    num_labels: int | None = None
    problem_type: str | None = None
    max_length: int | None = None
    truncation: str = "delete"
    columns: Mapping[str, str] | None = None
    template: TemplateRules = ANY_TEMPLATE
    loss_type: str | None = None
    lengths: Lengths = BY_BYTES
    closely: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether a "seq_cls" run learns numbers, not classes."""
        return self.problem_type == "regression" or (self.problem_type is None and self.num_labels == 1)


_MEANT_ELSEWHERE = {
    ("context", "instruction"): (
        'In the Dolly format it is part of the question: set "columns": {"context": "input", "response": "output"}.'
    ),
}
"""Columns of other projects that ms-swift does not use, with a column that identifies the format, and advice."""

_THINKING = frozenset(
    "reasoning reasoning_content thinking thought thoughts think cot complex_cot chain_of_thought rationale "
    "thinking_trajectories".split()
)
"""Names that people give to the thinking before an answer."""

_AFTER_THINKING = (
    'If the model should think, put it at the start of the answer, with the marks of the template ("<think>...'
    '</think>").'
)


def misspelled_column(layout: Layout, rules: Rules) -> Flaw | None:
    """A flaw if an unused column is similar to one that would be used."""
    ours = {
        "rejected": rules.task.rows == "preference",
        "positive": rules.task.rows == "documents",
        "negative": rules.task.rows == "documents",
        "label": rules.task.has_label,
        **dict.fromkeys(
            "questions kinds options target question criteria".split(), rules.task.rows == "decision"
        ),
    }
    wanted = [name for name in OTHER_COLUMNS if ours.get(name.partition("_")[0], True)]
    used = set(layout.rename.values()) - set(layout.unused)
    absent = [name for name in (*wanted, *MEDIA_COLUMNS) if MEDIA_COLUMNS.get(name, name) not in used]
    for (column, beside), do in _MEANT_ELSEWHERE.items():
        if column in layout.unused and beside in layout.rename:
            return Flaw("near-column", f'column "{column}" is not used', do)
    for column in layout.unused:
        if column.lower() in _THINKING and rules.task.has_answers:
            return Flaw("near-column", f'column "{column}" is not used', _AFTER_THINKING)
        if column == "functions":
            return Flaw("near-column", 'column "functions" is not used', 'Rename it to "tools".')
    near = near_name([name for name in layout.unused if name not in KNOWN_COLUMNS], absent)
    if near is None:
        return None
    return Flaw("near-column", f'column "{near[0]}" is not used', f'Rename it if you meant "{near[1]}".')


def judge(value: Any, layout: Layout, rules: Rules) -> tuple[Row | None, list[Flaw]]:
    """Convert a decoded row to messages and find all its flaws, except those of media files.

    Args:
        value: the decoded row, or the flaw found by the reader.
        layout: the format of the file.
        rules: the requirements of the run.

    Returns:
        The standard row (see `standard_row`), or None if it cannot be read; and its flaws.
    """
    if isinstance(value, Flaw):
        return None, [value]
    if not isinstance(value, dict):
        return None, [Flaw("not-a-row", f"row is {json_kind(value)}, not an object")]
    if (foreign := _of_another_project(value, layout, rules)) is not None:
        return None, [foreign]
    try:
        row = standard_row(value, layout)
    except FlawError as error:
        other = other_format(value, layout) if error.flaw.kind == "messages" else None
        return None, [other or _as_meant(error.flaw, value, layout, rules)]
    if rules.task.rows == "documents" and _is_of_before(row):
        return row, [_OF_BEFORE]
    flaws = [*_flaws_of(row, rules), *lost_keys(value, layout)]
    clean = not any(flaw.is_error for flaw in flaws)
    if not clean:
        flaws = list(dict.fromkeys(_as_meant(flaw, value, layout, rules) for flaw in flaws))
    if clean and rules.task.keeps_negatives and _lacks(row, "negative_messages", layout):
        what = 'row has no "negative_messages", unlike other rows of the file, so ms-swift would delete it'
        flaws.append(Flaw("pairs", what, "Write an empty list: []."))
    if clean and _lacks(row, "rejected_response", layout):
        what = 'row has no "rejected_response", unlike other rows of the file, so ms-swift would delete it'
        flaws.append(Flaw("rejected", what, "Add it, or move such rows to a separate file."))
    return row, flaws


def usable(value: Any, layout: Layout, rules: Rules) -> Row | None:
    """The standard row of a decoded row; None if it cannot be read or has an error. Arguments as for `judge`."""
    row, flaws = judge(value, layout, rules)
    return None if any(flaw.is_error for flaw in flaws) else row


def _lacks(row: Row, name: str, layout: Layout) -> bool:
    """Whether a row lacks a column that other rows of the file have."""
    return name not in row and name in layout.names


def _of_another_project(row: Row, layout: Layout, rules: Rules) -> Flaw | None:
    """A flaw if the row is in a format that ms-swift misreads."""
    if rules.task.rows == "judged" and layout.rename.get("kto_tag") == "kto_tag" and "label" not in row:
        return Flaw("label", '"label" is missing', 'Set "columns": {"kto_tag": "label"}.')
    if "preferred_output" in row:
        do = 'Write the messages of "input" and "preferred_output" as "messages", those of "input" and '
        do += '"non_preferred_output" as "rejected_messages".'
        return Flaw("columns", "row is in the format of OpenAI's preference fine-tuning", do)
    chosen = row.get("chosen")
    if isinstance(chosen, str) and chosen.lstrip().startswith("Human:") and "\n\nAssistant:" in chosen:
        do = 'Write the turns as "messages" and "rejected_messages", each {"role": ..., "content": ...}.'
        return Flaw("columns", "row has its turns as a single text (HH-RLHF)", do)
    return None


_OF_LAYOUT = frozenset("messages role content no-question no-answer rejected pairs".split())
"""Kinds of error that a row in the layout of another project has."""


def _as_meant(flaw: Flaw, row: Row, layout: Layout, rules: Rules) -> Flaw:
    """The flaw, or what it comes from: a layout that ms-swift does not read, or columns with other names."""
    if flaw.kind not in _OF_LAYOUT or layout.kept.keys() & _READ_ALONE:
        return flaw
    if (found := layout_elsewhere(row)) is not None:
        return Flaw(flaw.kind, f"row is in the format of {found[0]}", found[1])
    if (
        flaw.kind in ("no-question", "no-answer", "rejected")
        and layout.family in ("response", "preference")
        and layout.unused
    ):
        return flaw._replace(do=renaming(row, rules.task.rows) or flaw.do)
    return flaw


_READ_ALONE = frozenset({"messages", "positive_messages", "rejected_response"})
"""Columns that belong to a layout of ms-swift, whatever else the file has."""


_OF_BEFORE = Flaw(
    "pairs",
    "row is in the format of ms-swift before 3.8: query, response, rejected_response",
    'Write the query as "messages", the response as "positive_messages": [[{"role": "assistant", "content": ...}]] '
    'and each rejected response in the same way as "negative_messages".',
)


def _is_of_before(row: Row) -> bool:
    return "rejected_response" in row and "positive_messages" not in row


def _flaws_of(row: Row, rules: Rules) -> Iterator[Flaw]:
    messages = row["messages"]
    clean = True
    for flaw in _conversation_flaws(messages, "", rules.task.has_answers):
        clean = clean and not flaw.is_error
        yield flaw
    if clean:
        yield from _task_flaws(row, rules)
    if rules.multimodal or not row.keys().isdisjoint(MEDIA):
        yield from _media_flaws(row)
    if "objects" in row:
        yield from _object_flaws(row)
    if "tools" in row:
        yield from _tool_flaws(row["tools"])
    yield from template_flaws(row, rules.template, rules.task.has_answers)
    yield from _value_flaws(row)
    yield from _text_flaws(messages)
    if rules.task.rows != "text":
        texts = [(message["role"], text_of(message)) for message in messages]
        yield from mark_flaws(texts, rules.task.has_answers)


def _conversation_flaws(messages: list[Message], where: str, chat: bool) -> Iterator[Flaw]:
    """Empty content and roles out of order, up to the first error.

    Args:
        where: name of the list, used before "message", e.g. "rejected ".
        chat: a question must come before an answer.
    """
    before = ""
    for at, message in enumerate(messages, 1):
        flaw = _message_flaw(message, at, where) or _order_flaw(message["role"], before, at, where)
        if flaw is not None:
            yield flaw
            if flaw.is_error:
                return
        before = message["role"]
    turns = {message["role"] for message in messages} - {"system"}
    if not turns:
        yield Flaw("no-answer", f"row has only a {where}system message")
    elif chat and "user" not in turns:
        do = 'Add the question, or train on plain text with "pt".'
        yield Flaw("no-question", f'row has no question: no {where}message is from "user"', do)


def _message_flaw(message: Message, at: int, where: str) -> Flaw | None:
    role, content = message["role"], message["content"]
    if isinstance(content, str) and not content.strip() and role not in {"system", *TOOL_ANSWERS}:
        return Flaw("content", f'the content of {where}message {at} ("{role}") is empty')
    if role == "tool_call" and not _is_call(content):
        return Flaw("tools", f'{where}message {at} ("tool_call") is not {{"name": ..., "arguments": ...}}')
    return None


def _order_flaw(role: str, before: str, at: int, where: str) -> Flaw | None:
    if role == "system" and at > 1:
        return Flaw("order", f'{where}message {at} is from "system", which must be the first')
    if role in TOOL_ANSWERS and before in {"", "system"}:
        return Flaw("order", f'{where}message {at} is from "{role}" with nothing before it')
    if role == "user" and before in TOOL_ANSWERS:
        return Flaw(
            "order", f'{where}message {at} is from "user", but a tool\'s answer needs "assistant" after it'
        )
    if role == before and role in {"user", "assistant"}:
        return Flaw("same-role", f'{where}messages {at - 1} and {at} are both from "{role}"')
    return None


def _is_call(content: Any) -> bool:
    content = parsed(content)
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        return False
    arguments = content.get("arguments")
    return parsed(content.get("parameters") if arguments is None else arguments) is not None


def _task_flaws(row: Row, rules: Rules) -> Iterator[Flaw]:
    task = rules.task
    if task.rows == "text" and any(message["role"] in TOOL_ANSWERS for message in row["messages"]):
        yield Flaw("order", "row has a tool's answer, which ms-swift does not accept in pretraining")
    if task.has_answers:
        yield from _answer_flaws(row["messages"], rules)
    if task.rows == "preference" or "rejected_response" in row or "rejected_messages" in row:
        yield from _rejected_flaws(row)
    if task.rows == "prompt" and all(message["role"] != "user" for message in row["messages"]):
        yield Flaw("no-question", 'row has no question: no message is from "user"')
    if task.rows == "answer" and row.get("label") is False:
        yield Flaw("bad-answer", f'the row has "label" false, but "{task.name}" learns its answer')
    if task.rows == "judged" and not _is_yes_or_no(row.get("label")):
        what = f"is {shown(row['label'])}" if "label" in row else "is missing"
        do = "It must be true for a good answer and false for a bad one."
        yield Flaw("label", f'"label" {what}', do)
    elif task.rows == "class":
        yield from _class_flaws(row, rules)
    elif task.rows == "documents":
        yield from _pair_flaws(row, rules)


def _answer_flaws(messages: list[Message], rules: Rules) -> Iterator[Flaw]:
    answers = [message for message in messages if message["role"] in MODEL_ROLES]
    if messages[-1]["role"] not in MODEL_ROLES:
        if not answers or rules.task.rows != "answer":
            yield Flaw("no-answer", 'row has no answer: the last message must be from "assistant"')
            return
        yield Flaw("unanswered", f"message {len(messages)}, the last one, has no answer")
    if all("loss" in message and message["loss"] in (False, 0) for message in answers):
        yield Flaw("no-answer", 'no answer is learned: every one has "loss" false')
    content = answers[-1]["content"]
    if isinstance(content, str) and is_tiny(content):
        yield Flaw("tiny-answer", f"the answer is only {shown(content)}")
    if rules.max_length is not None:
        tokens = row_tokens(messages, rules.lengths)
        if tokens > rules.max_length:
            what = f"row has about {tokens} tokens, more than max_length {rules.max_length}"
            yield Flaw("too-long", what, _WHEN_CUT.get(rules.truncation, ""))


_WHEN_CUT = {
    "left": "Its beginning is cut off; raise max_length, or shorten it.",
    "right": "Its end is cut off, so the model does not learn to stop there; raise max_length, or shorten it.",
    "split": "It is split.",
}
"""What ``truncation_strategy`` does to rows that are too long, and advice."""


def is_tiny(answer: str) -> bool:
    """Whether an answer is nearly empty: a few characters without a letter or a digit."""
    return len(answer) < TINY_ANSWER and not any(map(str.isalnum, answer))


def row_tokens(messages: list[Message], lengths: Lengths) -> int:
    """Estimated number of tokens of a row."""
    return lengths.of_texts(map(text_of, messages))


def text_of(message: Message) -> str:
    """The content as text; a tool call as JSON, like in ms-swift."""
    content = message["content"]
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)


def _rejected_flaws(row: Row) -> Iterator[Flaw]:
    response, messages = row.get("rejected_response"), row.get("rejected_messages")
    if response is None and messages is None:
        yield Flaw("rejected", 'row has no rejected answer: add "rejected_response" or "rejected_messages"')
    if messages is not None:
        yield from _rejected_messages_flaws(messages, row)
    if isinstance(response, list):
        yield from _rejected_list_flaws(response, row)
    elif response is not None and not isinstance(response, str):
        yield Flaw("rejected", f'"rejected_response" is {json_kind(response)}, not text')
    elif response is not None and not response.strip():
        yield Flaw("rejected", '"rejected_response" is empty')
    elif response is not None and response == row["messages"][-1]["content"]:
        yield Flaw("rejected", "the rejected answer is the same as the chosen one")


def _rejected_messages_flaws(messages: Any, row: Row) -> Iterator[Flaw]:
    try:
        messages = read_messages(messages, None, "rejected_messages", standard_only=True).messages
    except FlawError as error:
        yield error.flaw
        return
    yield from _conversation_flaws(messages, "rejected ", True)
    if messages[-1]["role"] not in MODEL_ROLES:
        yield Flaw("rejected", 'the last rejected message must be from "assistant"')
    if messages == row["messages"]:
        yield Flaw("rejected", "the rejected messages are the same as the chosen ones")


def _rejected_list_flaws(response: list[Any], row: Row) -> Iterator[Flaw]:
    try:
        turns = read_messages(response, None, "rejected_response", standard_only=True).messages
    except FlawError as error:
        yield error.flaw
        return
    if any(turn["role"] in {"user", "system"} for turn in turns):
        yield Flaw(
            "rejected", '"rejected_response" must contain only the answer', "Remove its other messages."
        )
    if list(map(text_of, turns)) == list(map(text_of, row["messages"][-len(turns) :])):
        yield Flaw("rejected", "the rejected answer is the same as the chosen one")
    yield from _conversation_flaws(turns, "rejected ", False)


def _is_yes_or_no(label: Any) -> bool:
    return isinstance(label, (bool, int, float)) and label in (0, 1)


def _class_flaws(row: Row, rules: Rules) -> Iterator[Flaw]:
    label = row.get("label")
    if label is None:
        yield Flaw("label", '"label" is missing', "Add the class, a whole number from 0.")
    elif rules.is_regression:
        yield from _target_flaws(label, rules.num_labels or 1)
    elif isinstance(label, list) and rules.problem_type != "multi_label_classification":
        yield Flaw("label", f'"label" is {shown(label)}, not one class')
    else:
        for value in label if isinstance(label, list) else [label]:
            yield from _class_flaw(value, rules)


def _target_flaws(label: Any, count: int) -> Iterator[Flaw]:
    """What is wrong with the number, or the numbers, that a regression learns."""
    values = label if isinstance(label, list) else [label]
    wrong = [value for value in values if not isinstance(value, (int, float))]
    if wrong:
        yield Flaw("label", f'"label" is {shown(wrong[0])}, not a number')
    elif len(values) != count:
        yield Flaw("label", f'"label" has {len(values)} values, but num_labels is {count}')


def _class_flaw(value: Any, rules: Rules) -> Iterator[Flaw]:
    number, classes = _whole(value, rules.problem_type == "multi_label_classification"), rules.num_labels
    if number is None:
        yield Flaw("label", f'"label" is {shown(value)}, not a whole number', "Number the classes from 0.")
    elif number < 0 or (classes is not None and number >= classes):
        allowed = "negative" if classes is None else f"outside 0 to {classes - 1}"
        yield Flaw("label", f'"label" {number} is {allowed}', "Correct it, or set num_labels.")


def _whole(value: Any, as_index: bool) -> int | None:
    """A class as in ms-swift: it converts one class with int(), but uses each of several as an index.

    Fractions, which int() cuts off, are not classes here.
    """
    if as_index:
        return value if type(value) is int else None
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _pair_flaws(row: Row, rules: Rules) -> Iterator[Flaw]:
    """The documents of a query: at least one that fits; ``negative_messages`` may be empty."""
    if "label" in row and not _is_number(row["label"]):
        yield Flaw("label", f'"label" is {shown(row["label"])}, not a number')
    for name in ("positive_messages", "negative_messages"):
        value = row.get(name)
        if value is None or value == []:
            if name == "positive_messages":
                yield Flaw("pairs", f'"{name}" is missing', "Add it, a list of lists of messages.")
            elif rules.task.has_negatives:
                yield _NOTHING_TO_COMPARE
        elif not isinstance(value, list) or not all(isinstance(turns, list) for turns in value):
            do = f'Put brackets around it: "{name}": [[{{"role": ...}}]].'
            yield Flaw("pairs", f'"{name}" is not a list of lists of messages', do)
        else:
            for turns in value:
                yield from _pair_list_flaws(turns, name)
    if rules.loss_type is not None:
        yield from _loss_flaws(row, rules.loss_type)


_NOTHING_TO_COMPARE = Flaw("no-negatives", "the row has no documents that do not match")


def _loss_flaws(row: Row, loss: str) -> Iterator[Flaw]:
    """What a loss of embeddings does not use as the row means it (``_embedding_encode`` and ``loss/embedding.py``)."""
    positive, negative = row.get("positive_messages"), row.get("negative_messages")
    if isinstance(positive, list) and len(positive) > 1:
        what = f'the row has {len(positive)} lists in "positive_messages", of which only the first is used'
        yield Flaw("lost-text", what, "Write each as a row of its own.")
    if negative and loss in PAIR_LOSSES:
        what = f'the row has "negative_messages", but the loss "{loss}" compares two texts'
        yield Flaw(
            "pairs",
            what,
            'Use "infonce", or write each negative as "positive_messages" of a row with label 0.',
        )
    if loss == "infonce" and row.get("label") == 0:
        what = '"label" is 0, but the loss "infonce" takes the texts of a row for ones that fit'
        yield Flaw("label", what, f"Remove the row, or use one of {', '.join(PAIR_LOSSES)}.")


def _pair_list_flaws(turns: list[Any], name: str) -> Iterator[Flaw]:
    try:
        messages = read_messages(turns, None, name, standard_only=True).messages
    except FlawError as error:
        yield error.flaw
    else:
        yield from _conversation_flaws(messages, f"{name} ", False)


def _media_flaws(row: Row) -> Iterator[Flaw]:
    for name in MEDIA:
        tag, media = f"<{name[:-1]}>", row.get(name) or ()
        tags = _count(tag, row)
        if tags > len(media) or 0 < tags < len(media):  # without any tag, ms-swift puts them first
            do = f"Write one {tag} for each of {name}."
            yield Flaw("media-count", f"the text has {tags} {tag} and the row {len(media)} {name}", do)


def _count(tag: str, row: Row) -> int:
    return sum(text_of(message).count(tag) for message in row["messages"])


def _object_flaws(row: Row) -> Iterator[Flaw]:
    objects = row["objects"]
    if not isinstance(objects, dict) or not isinstance(objects.get("bbox"), list):
        yield Flaw("objects", '"objects" must contain "bbox", a list of boxes')
        return
    for box in objects["bbox"]:
        if not isinstance(box, list) or len(box) not in (2, 4) or not all(map(_is_number, box)):
            yield Flaw("objects", f"the box {shown(box)} is neither [x, y] nor [x1, y1, x2, y2]")
    for name, tag in (("ref", "<ref-object>"), ("bbox", "<bbox>")):
        given, tags = len(objects.get(name) or ()), _count(tag, row)
        if tags != given:
            yield Flaw("objects", f'the text has {tags} {tag} and "objects" {given} of "{name}"')


def _tool_flaws(tools: Any) -> Iterator[Flaw]:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            yield Flaw("tools", '"tools" is text that is not JSON')
            return
    for at, tool in enumerate(tools if isinstance(tools, list) else [tools], 1):
        if not _is_tool(tool):
            yield Flaw("tools", f'tool {at} is not an object with a "name"')


def _is_tool(tool: Any) -> bool:
    if isinstance(tool, str):
        try:
            tool = json.loads(tool)
        except (ValueError, RecursionError):
            return False
    tool = tool.get("function", tool) if isinstance(tool, dict) else None
    return isinstance(tool, dict) and isinstance(tool.get("name", tool.get("name_for_model")), str)


def _value_flaws(row: Row) -> Iterator[Flaw]:
    if "margin" in row and not _is_numeric(row["margin"]):
        yield Flaw("value", f'"margin" is {shown(row["margin"])}, not a number')
    if not isinstance(row.get("chat_template_kwargs", {}), dict):
        yield Flaw(
            "value", f'"chat_template_kwargs" is {json_kind(row["chat_template_kwargs"])}, not an object'
        )


def _is_numeric(value: Any) -> bool:
    """Whether float() takes the value."""
    with contextlib.suppress(ValueError):
        return isinstance(value, (int, float)) or (isinstance(value, str) and float(value) is not None)
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text_flaws(messages: list[Message]) -> Iterator[Flaw]:
    """Signs of damaged text, each reported once per row."""
    text = "\n".join(map(text_of, messages))
    if not text.isascii():
        if "\ufffd" in text:
            yield Flaw("replacement", "the text contains U+FFFD, which replaces lost characters")
        if ("Ã" in text or "â€" in text) and (found := MOJIBAKE.search(text)):
            yield Flaw("mojibake", f'the text contains "{found[0]}"')
    if not text.translate(_SPACES).isprintable() and (found := INVISIBLE.search(text)):
        yield Flaw("invisible", f"the text contains the invisible character U+{ord(found[0]):04X}")
