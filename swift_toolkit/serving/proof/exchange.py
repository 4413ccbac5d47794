"""The order sent to the process that asks one side, and the result it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

Cause = Literal["prompt", "weights", "tokenizer", "template", "stop tokens"]

POSITIONS = 16
"""Positions of each answer, from the first on, at which the next-token distributions are compared. Later positions add
little information; a vocabulary of 150,000 takes 0.6 MB per position."""


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """The number of leading elements that two sequences have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def end_ids(eos_token_id: int | Sequence[int] | None) -> list[int]:
    """The end tokens of a generation config, which may state none, one or several."""
    if eos_token_id is None:
        return []
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)


@dataclass(frozen=True)
class Deviation:
    """One reason why an artefact answers differently from its checkpoint.

    Args:
        cause: the part that causes it.
        what: the problem, a sentence without its full stop.
    """

    cause: Cause
    what: str


@dataclass(frozen=True, kw_only=True)
class Response:
    """The response of one side to one question.

    Args:
        prompt: the prompt as the model sees it.
        prompt_ids: tokens of the prompt.
        plain_ids: tokens of the last message alone, without a template.
        answer: the greedy answer.
        answer_ids: tokens of the answer, without the end token.
        ended: whether the model ended the answer itself, before the length limit.
        kl: divergence of the next-token distributions from the original's at the first positions of the original's
            answer, in nats; empty for the original itself.
        gap: how much more likely the original's own token was than the artefact's where the answers diverge, in nats of
            the original; None if they do not diverge.
        margins: for the original: how much more likely each of the first tokens was than the next best, in nats.
        offsets: for the original: the end of each token of the answer in its text.
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
        prefix: beginning of a conversation without a system prompt.
        system_prefix: beginning of a conversation with a system prompt, marked by ``{{SYSTEM}}``; None if the format
            does not support one.
        prompt: a question, marked by ``{{QUERY}}``, and the beginning of the answer.
        chat_sep: separator between an answer and the next question; None if the format has only one turn.
        suffix: end of the last answer.
        system: default system prompt of a conversation, "" for none.
        stop: texts that end an answer.
        tokenizer_template: whether the tokenizer's chat template renders every prompt as the training did.
        jinja: a chat template that does so, if the tokenizer's does not; "" if none was found.
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
class ProofSide:
    """One side of the comparison, after it was asked.

    Args:
        asked: its response to each question.
        vocabulary: number of tokens in its vocabulary.
        added: added tokens and their ids.
        stop_ids: ids of the tokens that end its answers.
        end: for the original: text and id of the end token used in training.
        dtype: dtype of the stored weights.
        chat: for the original: its chat format.
        faults: for an artefact: problems found in its files.
        read_by: the program that ran it.
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
class ProofOrder:
    """The order for a process that asks one side.

    Args:
        questions: messages of each question.
        max_tokens: longest answer, in tokens.
        folder: directory where the original's distributions are written or read.
        arguments: argument list for ms-swift's InferArguments, for the original; empty for an artefact.
        path: path of the artefact, a directory or a GGUF file.
        original: the original's result.
        base: directory of the base of a merged artefact, "" for none.
        adapter: directory of the adapter merged into it, "" for none.
        device: ``cpu``, ``cuda``, ...
    """

    questions: tuple[Messages, ...]
    max_tokens: int
    folder: str
    arguments: tuple[str, ...] = ()
    path: str = ""
    original: ProofSide | None = None
    base: str = ""
    adapter: str = ""
    device: str = "cpu"
