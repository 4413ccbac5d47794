"""What goes to the process that asks a model for the proof, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Cause = Literal["prompt", "weights", "tokenizer", "template", "stop tokens"]

POSITIONS = 16
"""Tokens of each answer at which the distributions of the next token are compared, the first one included. Later ones
repeat what the first have shown; a vocabulary of 150,000 takes 0.6 MB a position."""


@dataclass(frozen=True)
class Deviation:
    """One reason why an artefact answers otherwise than its checkpoint.

    Args:
        cause: the part that is to blame.
        what: what is wrong with it, a sentence without its full stop.
    """

    cause: Cause
    what: str


@dataclass(frozen=True, kw_only=True)
class Response:
    """What one side made of one question.

    Args:
        prompt: the prompt as the model sees it.
        prompt_ids: its tokens.
        plain_ids: the tokens of the last message alone, without any template.
        answer: the greedy answer.
        answer_ids: its tokens, without the one that ends it.
        ended: whether the model ended it; else the limit did.
        kl: of the next token at the first positions of the original's answer, in nats, measured against the
            original; of the original itself nothing.
        gap: how far the original preferred its own token to the artefact's where the answers part, in nats; None where
            they do not.
        margins: of the original: how far it preferred each of the first tokens to the next best one, in nats.
        offsets: of the original: where each token of the answer ends in its text.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    plain_ids: tuple[int, ...]
    answer: str
    answer_ids: tuple[int, ...]
    ended: bool
    kl: tuple[float, ...] = ()
    gap: float | None = None
    margins: tuple[float, ...] = ()
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """The chat format of the training, as text; the fields are those of ms-swift's TemplateMeta.

    Args:
        prefix: what a conversation without a system prompt begins with.
        system_prefix: the same with one, ``{{SYSTEM}}`` in its place; None where the format has none.
        prompt: a question, ``{{QUERY}}`` in its place, and how the answer begins.
        chat_sep: what follows an answer before the next question; None where there is only one.
        suffix: what follows the last answer.
        system: the system prompt of a conversation that brings none, "" for none.
        stop: the texts that end an answer.
        tokenizer_template: whether the chat template of the tokenizer renders every prompt as the training did.
        jinja: a chat template that does, where that of the tokenizer does not; "" where none was found.
    """

    prefix: str
    system_prefix: str | None
    prompt: str
    chat_sep: str | None
    suffix: str
    system: str
    stop: tuple[str, ...]
    tokenizer_template: bool = True
    jinja: str = ""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A model that was asked.

    Args:
        asked: what it made of each question.
        vocabulary: how many tokens it knows.
        added: the tokens beside the vocabulary's own, and their numbers.
        stop_ids: the tokens that end its answers.
        end: of the original: the text and number of the token that training taught to end an answer.
        dtype: of its weights as they are stored.
        chat: of the original: its chat format.
        faults: what was seen in the files of an artefact.
        read_by: the program that read it.
    """

    asked: tuple[Response, ...]
    vocabulary: int
    added: Mapping[str, int]
    stop_ids: tuple[int, ...]
    end: tuple[str, int] | None = None
    dtype: str = ""
    chat: ChatFormat | None = None
    faults: tuple[Deviation, ...] = ()
    read_by: str = "transformers"


Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a process is to ask.

    Args:
        questions: the messages of each.
        max_tokens: of an answer.
        folder: where the distributions of the original are written or read.
        arguments: for ms-swift's InferArguments: the original. Empty for an artefact.
        path: of the artefact, a directory or a GGUF file.
        original: what the original answered.
        base: directory of the base of a merged artefact, "" for none.
        adapter: directory of the adapter that was merged into it, "" for none.
        device: ``cpu``, ``cuda``, ...
    """

    questions: tuple[Messages, ...]
    max_tokens: int
    folder: str
    arguments: tuple[str, ...] = ()
    path: str = ""
    original: Side | None = None
    base: str = ""
    adapter: str = ""
    device: str = "cpu"
