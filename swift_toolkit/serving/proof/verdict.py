"""Judges whether two sides answer alike: the causes found, the thresholds of each format, the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from swift_toolkit.console.words import counted, listed, shown
from swift_toolkit.serving.proof.exchange import Deviation, ProofSide, Response, shared_length

_Word = Literal["same", "close", "different"]


@dataclass(frozen=True)
class Thresholds:
    """The difference allowed between a checkpoint and an artefact of one format.

    Args:
        same: highest mean KL for the verdict ``same``, in nats; every answer must be equal as well.
        close: highest mean KL for the verdict ``close``, in nats.
        reason: source of the figures.
    """

    same: float
    close: float
    reason: str


_LARGE = "llama.cpp's scoreboard for Llama 3 8B reports"
_SMALL = "a model with 100 million weights loses several times as much"

THRESHOLDS = {
    "whole": Thresholds(
        1e-3, 1e-2, "rounding of merged weights to bfloat16 gives 1e-6 to 5e-4, to float32 1e-7"
    ),
    "f16": Thresholds(1e-3, 1e-2, "16 bits per weight, and llama.cpp computes in a different order"),
    "bf16": Thresholds(1e-3, 1e-2, "16 bits per weight, and llama.cpp computes in a different order"),
    "q8_0": Thresholds(2e-3, 5e-2, f"{_LARGE} 0.0014; {_SMALL}"),
    "6 bits": Thresholds(2e-3, 0.1, f"{_LARGE} 0.0055 (q6_k) and 0.011 (q5_k_m); {_SMALL}"),
    "4 bits": Thresholds(2e-3, 0.5, f"{_LARGE} 0.031 (q4_k_m); {_SMALL}"),
    "8 bits": Thresholds(2e-3, 0.1, "8 bits per weight, activations rounded too (LLM.int8, fp8)"),
    "quantised base": Thresholds(
        2e-3,
        0.5,
        "the checkpoint runs on its quantised base, as in training, the export on the unquantised one",
    ),
    "server": Thresholds(0, 0, "a server returns no distributions, so the answers decide"),
}
"""Thresholds by storage type of the artefact's weights. llama.cpp's figures: ``tools/perplexity/README.md``."""


NEAR = 0.5
"""Largest margin between the two most likely tokens, in nats, at which 16-bit arithmetic may choose either."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One question on both sides.

    Args:
        question: the last message.
        original, artefact: the responses of the sides.
    """

    question: str
    original: Response
    artefact: Response

    @property
    def divergence(self) -> int | None:
        """Index from 0 of the first token at which the answers differ; None if they are equal."""
        one, other = self.original, self.artefact
        if (one.answer_ids, one.ended) == (other.answer_ids, other.ended):
            return None
        return shared_length(one.answer_ids, other.answer_ids)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The result of a comparison.

    Args:
        verdict: ``same``, ``close`` or ``different``.
        why: the reason in a sentence.
        faults: the causes.
        pairs: the responses to every question.
        mean_kl, max_kl: KL divergence of the next token, in nats; None if a side returns no distributions.
        thresholds: the thresholds of the format.
        read_by: the program that ran the artefact.
    """

    verdict: _Word
    why: str
    faults: tuple[Deviation, ...]
    pairs: tuple[Pair, ...]
    mean_kl: float | None
    max_kl: float | None
    thresholds: Thresholds
    read_by: str

    @property
    def equal_answers(self) -> int:
        """The number of answers that are equal in every token."""
        return sum(pair.divergence is None for pair in self.pairs)


def give_verdict(
    original: ProofSide,
    artefact: ProofSide,
    questions: Sequence[str],
    kind: str,
    seen: Sequence[Deviation] = (),
) -> Proof:
    """Judge two sides that were asked the same questions.

    Args:
        original: the checkpoint.
        artefact: the exported model.
        questions: the last message of each question.
        kind: how the artefact's weights are stored, a key of `THRESHOLDS`.
        seen: problems already found in its files.
    """
    pairs = tuple(
        Pair(question=question, original=one, artefact=other)
        for question, one, other in zip(questions, original.asked, artefact.asked, strict=True)
    )
    thresholds = THRESHOLDS[kind]
    kl = list(chain.from_iterable(pair.artefact.kl for pair in pairs))
    mean = sum(kl) / len(kl) if kl else None
    faults = [*seen, *artefact.faults, *faults_of(original, artefact, pairs)]
    if mean is not None and not mean <= thresholds.close and not any(f.cause == "weights" for f in faults):
        faults.append(
            Deviation(
                "weights", f"the distributions differ: mean KL {mean:.2g}, at most {thresholds.close:g}"
            )
        )
    if mean is None and not faults and any(not _near_tie(pair) for pair in pairs):
        faults.append(
            Deviation("weights", "answers to equal prompts differ where the checkpoint was certain")
        )
    verdict, why = _verdict(pairs, mean, thresholds, faults)
    return Proof(
        verdict=verdict,
        why=why,
        faults=tuple(faults),
        pairs=pairs,
        mean_kl=mean,
        max_kl=max(kl, default=None),
        thresholds=thresholds,
        read_by=artefact.read_by,
    )


def _near_tie(pair: Pair) -> bool:
    """Whether the answers are equal, or diverge where rounding alone can decide."""
    place, margins = pair.divergence, pair.original.margins
    return place is None or place >= len(margins) or margins[place] < NEAR


def _verdict(
    pairs: Sequence[Pair], mean: float | None, thresholds: Thresholds, faults: Sequence[Deviation]
) -> tuple[_Word, str]:
    equal = sum(pair.divergence is None for pair in pairs)
    answers = f"{equal} of {counted(len(pairs), 'answer')} equal"
    if faults:
        causes = " and ".join(dict.fromkeys(fault.cause for fault in faults))
        return "different", f"{answers}; cause: {causes}"
    if mean is None and equal == len(pairs):
        return "same", answers
    if mean is None:
        return "close", f"{answers}, the others differ where two tokens were almost equally likely"
    measured = f"{answers}, mean KL {mean:.2g}"
    if mean <= thresholds.same and equal == len(pairs):
        return "same", f"{measured}, at most {thresholds.same:g}"
    return "close", f"{measured}, at most {thresholds.close:g}"


def faults_of(original: ProofSide, artefact: ProofSide, pairs: Sequence[Pair]) -> Iterator[Deviation]:
    """Yield problems visible in the tokens, the prompts and the ends of answers."""
    tokenizer = list(_tokenizer_faults(original, artefact, pairs))
    yield from tokenizer
    prompts = [pair for pair in pairs if pair.original.prompt_ids != pair.artefact.prompt_ids]
    same_text = all(one.original.prompt == one.artefact.prompt for one in prompts)
    if prompts and not (tokenizer and same_text):
        yield from _prompt_faults(original, prompts)
    end = original.end
    if end is not None and end[1] not in artefact.stop_ids:
        yield Deviation("stop tokens", f"{shown(end[0])} does not end an answer, but did in training")


def _tokenizer_faults(original: ProofSide, artefact: ProofSide, pairs: Sequence[Pair]) -> Iterator[Deviation]:
    if any(pair.original.plain_ids != pair.artefact.plain_ids for pair in pairs):
        yield Deviation("tokenizer", "it splits the same text into different tokens")
    if not original.added or not artefact.added:
        return
    missing = [one for one, number in original.added.items() if artefact.added.get(one) != number]
    more = [one for one in artefact.added if one not in original.added]
    if missing:
        yield Deviation(
            "tokenizer", f"tokens are missing or have a different id: {listed(map(shown, missing))}"
        )
    if more and len(artefact.added) != len(original.added):
        yield Deviation("tokenizer", f"tokens were added: {listed(map(shown, more))}")


def _prompt_faults(original: ProofSide, pairs: Sequence[Pair]) -> Iterator[Deviation]:
    """Yield differences of the prompts."""
    told, other = pairs[0].original.prompt, pairs[0].artefact.prompt
    system = original.chat.system if original.chat else ""
    if not other:
        yield Deviation("template", "the artefact has no chat template")
        return
    if system and system in told and system not in other:
        yield Deviation("prompt", f"the system prompt of the training is missing: {shown(system)}")
        if told.endswith(other):
            return
    differ = f"{counted(len(pairs), 'prompt')} differ{'s' if len(pairs) == 1 else ''}"
    yield Deviation("template", f"{differ}: {_first_difference(told, other)}")


def _first_difference(one: str, other: str) -> str:
    place = shared_length(one, other)
    return f"{shown(one[place : place + 40])} in training, {shown(other[place : place + 40])} in the artefact"
