"""Scores answers against references: exact match, ROUGE-L, BLEU, each from 0 to 100.

Chinese, Japanese and Korean text is scored by character, as its words are not reliably separated by spaces. ROUGE-L
is the F-measure of Lin (2004) as computed by the package rouge-score. BLEU is that of Papineni et al. (2002) as
computed by sacrebleu with effective order, for one answer and over all answers of a category.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swift_toolkit.evaluation.results import CategoryScores, Scores
from swift_toolkit.inference.exchange import Side
from swift_toolkit.machine import packages

METRICS = {"exact_match": "exact match", "rouge_l": "ROUGE-L", "bleu": "BLEU"}
"""The metrics and their display names."""

SCORERS = ("rouge_score", "sacrebleu")  # packages for ROUGE-L and BLEU
ALL = "all"  # the category that contains every answer

# Han, Kana, Hangul, and full-width forms
_CJK = "\u1100-\u11ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_TOKEN = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")
_HAS_CJK = re.compile(f"[{_CJK}]")


def tokens(text: str) -> list[str]:
    """Split a text into lower-case words; each Chinese, Japanese or Korean character is a word."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def exact_match(answer: str, reference: str) -> bool:
    """Whether the two are equal apart from case, spaces and punctuation at the ends."""
    return _plain(answer) == _plain(reference)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .!。！\"'")


@dataclass(frozen=True)
class Score:
    """The scores of one answer against its reference.

    Args:
        exact_match: 0 or 100.
        rouge_l: 0 to 100, None if rouge-score is not installed.
        bleu: 0 to 100, None if sacrebleu is not installed.
        bleu_counts: matching n-grams and all n-grams (for n from 1 to 4), and the lengths of answer and reference in
            tokens; corpus BLEU is computed from their sums.
    """

    exact_match: float
    rouge_l: float | None = None
    bleu: float | None = None
    bleu_counts: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, float]:
        found = {name: getattr(self, name) for name in METRICS}
        return {name: round(value, 2) for name, value in found.items() if value is not None}


class Scorer:
    """Scores answers with the libraries' own scorers."""

    def __init__(self) -> None:
        missing = packages.not_installed(SCORERS)
        self._rouge: Any = None
        self._bleus: dict[bool, Any] = {}
        if "rouge_score" not in missing:
            from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

            self._rouge = RougeScorer(["rougeL"], tokenizer=_Tokenizer())
        if "sacrebleu" not in missing:
            from sacrebleu.metrics.bleu import BLEU

            for cjk in (False, True):
                self._bleus[cjk] = BLEU(tokenize="zh" if cjk else "13a", effective_order=True)

    def score(self, answer: str, reference: str) -> Score:
        """Score ``answer`` against ``reference``."""
        rouge = bleu = None
        counts: tuple[int, ...] = ()
        if self._rouge is not None:
            rouge = 100 * self._rouge.score(reference, answer)["rougeL"].fmeasure
        if self._bleus:
            one = self._bleus[bool(_HAS_CJK.search(reference))].sentence_score(answer, [reference])
            bleu = one.score
            counts = (*one.counts, *one.totals, one.sys_len, one.ref_len)
        return Score(100.0 * exact_match(answer, reference), rouge, bleu, counts)


class _Tokenizer:
    """A tokenizer with the interface that rouge-score requires."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


@dataclass
class _Sum:
    count: int = 0
    exact_match: float = 0.0
    rouge_l: float = 0.0
    bleu_counts: list[int] = field(default_factory=lambda: [0] * 10)

    def add(self, score: Score) -> None:
        self.count += 1
        self.exact_match += score.exact_match
        self.rouge_l += score.rouge_l or 0.0
        if score.bleu_counts:
            self.bleu_counts = [a + b for a, b in zip(self.bleu_counts, score.bleu_counts, strict=True)]


class ScoreBoard:
    """The scores of a run by side and category, in memory that does not grow with the number of answers."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[Side, _Sum]] = {}
        self._without = packages.not_installed(SCORERS)

    def add(self, side: Side, category: str | None, score: Score) -> None:
        """Add one score to its category and to all answers."""
        for name in (ALL, category):
            if name is not None:
                self._sums.setdefault(name, {}).setdefault(side, _Sum()).add(score)

    def means(self) -> Scores:
        """The mean scores of each category."""
        return {category: self._of(sides) for category, sides in self._sums.items()}

    def _of(self, sides: Mapping[Side, _Sum]) -> CategoryScores:
        result: CategoryScores = {"count": next(iter(sides.values())).count}
        for side, total in sides.items():
            result[side] = self._means(total)
        if len(sides) == 2:
            tuned, base = result["tuned"], result["base"]
            result["difference"] = {name: round(tuned[name] - base[name], 2) for name in tuned}
        return result

    def _means(self, total: _Sum) -> dict[str, float]:
        means = {"exact_match": total.exact_match / total.count}
        if "rouge_score" not in self._without:
            means["rouge_l"] = total.rouge_l / total.count
        if "sacrebleu" not in self._without:
            means["bleu"] = _corpus_bleu(total.bleu_counts)
        return {name: round(value, 2) for name, value in means.items()}


def _corpus_bleu(counts: list[int]) -> float:
    from sacrebleu.metrics.bleu import BLEU

    correct, total, (answers, references) = counts[:4], counts[4:8], counts[8:]
    score = BLEU.compute_bleu(correct, total, answers, references, smooth_method="exp", effective_order=True)
    return float(score.score)
