"""Rows as the model sees them: the rendered template, the learned part, the truncated part.

    view = TemplateView("models/Qwen2.5-7B-Instruct", Rules(max_length=2048), {"system": "Be brief."})
    for row in view.rows(["data/train.jsonl"], 3):
        print(*row.lines(colour=True), sep="\n")

Needs ms-swift (about 10 s to import) and the model's tokenizer, but not its weights.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path

from swift_toolkit.console.words import short
from swift_toolkit.dataset.audit import exact
from swift_toolkit.dataset.audit.audit import Place
from swift_toolkit.dataset.audit.encoded import IGNORED, encode_row
from swift_toolkit.dataset.audit.look import Looker
from swift_toolkit.dataset.reading.files import read_records
from swift_toolkit.dataset.rows.checks import Rules, judge
from swift_toolkit.dataset.rows.messages import Row
from swift_toolkit.dataset.scan.part import find_part
from swift_toolkit.dataset.verify import DataReport, DatasetSpec
from swift_toolkit.machine.msswift import template_api
from swift_toolkit.problems import RunError, first_line

TEMPLATE_SETTINGS = (
    "agent_template", "norm_bbox", "max_pixels", "use_chat_template", "loss_scale", "is_binary_loss_scale",
    "template_backend", "response_prefix", "enable_thinking", "preserve_thinking", "add_non_thinking_prefix",
)  # fmt: skip
"""Settings of ms-swift that affect the text, other than `template`, `system` and `max_length`."""

REPEATED = 4
"""Runs of at least this many equal tokens, as in images, are shown as one token with a count."""


@dataclass(frozen=True)
class Piece:
    """Consecutive text of a row that is treated the same.

    Args:
        text: the decoded tokens.
        tokens: the number of tokens.
        learned: whether they count for the loss.
        cut: whether they are beyond max_length and truncated.
    """

    text: str
    tokens: int
    learned: bool
    cut: bool


@dataclass(frozen=True)
class ShownRow:
    """One sequence of a row.

    Args:
        place: file and line, or file and row.
        name: which of the row's sequences it is: "chosen", "rejected", "anchor", ...; "" for the only one.
        pieces: the text; empty if it cannot be rendered.
        note: what ms-swift does with it; "" if nothing special.
    """

    place: str
    name: str
    pieces: tuple[Piece, ...]
    note: str = ""

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)

    @property
    def learned(self) -> int:
        return sum(piece.tokens for piece in self.pieces if piece.learned and not piece.cut)

    def lines(self, colour: bool) -> list[str]:
        """The heading and the text.

        Args:
            colour: show learned text in green and truncated text in red, for a terminal. Otherwise they are enclosed in
                marks.
        """
        name = f" ({self.name})" if self.name else ""
        counts = f"{self.tokens} tokens, {self.learned} learned" if self.pieces else "not rendered"
        out = [f"{self.place}{name}: {counts}" + (f"; {self.note}" if self.note else "")]
        text = "".join(_coloured(piece) if colour else _marked(piece) for piece in self.pieces)
        return [*out, *text.split("\n")] if text else out


def _reason(error: Exception) -> str:
    return short(first_line(error).rstrip("."), 200)


def _coloured(piece: Piece) -> str:
    if not piece.cut and not piece.learned:
        return piece.text
    return f"\033[{'31' if piece.cut else '32'}m{piece.text}\033[0m"


def _marked(piece: Piece) -> str:
    if not piece.cut and not piece.learned:
        return piece.text
    return f"[[cut: {piece.text}]]" if piece.cut else f"[[{piece.text}]]"


def _be_quiet() -> None:
    """Keep ms-swift and its libraries from printing between the rows."""
    for variable, level in (("LOG_LEVEL", "ERROR"), ("TRANSFORMERS_VERBOSITY", "error")):
        os.environ.setdefault(variable, level)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def _download_as_run_error(model: str) -> Iterator[None]:
    """Report in one line that a hub model cannot be downloaded."""
    try:
        yield
    except Exception as error:
        if Path(model).exists():
            raise
        raise RunError(f'Cannot download the model "{model}": {first_line(error)}') from error


class TemplateView:
    """The model's own template, as a training run would use it.

    Args:
        model: a model directory or hub ID.
        rules: the task, and max_length.
        settings: ms-swift's settings: `model_type`, `template`, `system`, `truncation_strategy` and those of
            `TEMPLATE_SETTINGS`.
    """

    def __init__(
        self, model: str, rules: Rules, settings: Mapping[str, object], trust_code: bool = False
    ) -> None:
        _be_quiet()
        get_processor, get_template = template_api(trust_code)
        self.rules = rules
        self.truncation = str(settings.get("truncation_strategy") or "delete")
        added = settings.get("new_special_tokens")
        self.added = [str(token) for token in added] if isinstance(added, list) else []
        with _download_as_run_error(model):
            processor = get_processor(
                model,
                model_type=settings.get("model_type"),
                task_type=rules.task.task_type,
                num_labels=rules.num_labels,
                problem_type=rules.problem_type,
                new_special_tokens=self.added,
            )
        given = {name: settings[name] for name in TEMPLATE_SETTINGS if settings.get(name) is not None}
        if rules.task.rows == "text":  # as ms-swift's PretrainArguments
            given = {"use_chat_template": False, "loss_scale": "all"} | given
        template = get_template(
            processor,
            template_type=settings.get("template"),
            default_system=settings.get("system"),
            max_length=rules.max_length,
            truncation_strategy="raise" if self.truncation == "delete" else self.truncation,
            **given,
        )
        template.set_mode(rules.task.template_mode)
        self.max_length: int | None = template.max_length
        template.max_length = None  # the truncated text is shown too
        self.template = template

    def rows(self, entries: Sequence[str], count: int) -> Iterator[ShownRow]:
        """Render the first rows of the local data sets, each as one or more sequences.

        Args:
            entries: as in `verify`.
            count: the number of rows.

        Raises:
            FlawError: a file cannot be read.
        """
        for place, row in islice(self._read(entries), count):
            yield from self._shown(str(place), row)

    def audit(self, report: DataReport) -> None:
        """Replace the report's estimates by the template's exact numbers for every row: tokens and learned tokens.

        Raises:
            FlawError: a file cannot be read.
        """
        exact.audit_all(
            Looker(
                template=self.template,
                rules=self.rules,
                limit=self.max_length,
                truncation=self.truncation,
                added=self.added,
            ),
            report,
        )

    def _read(self, entries: Sequence[str]) -> Iterator[tuple[Place, Row | None]]:
        for entry in entries:
            spec = DatasetSpec.parse(entry)
            for path in spec.local_files():
                part = find_part(path, str(path), self.rules)
                for record in read_records(part.file):
                    place = Place(0, str(path), record.line, record.number)
                    yield place, judge(record.value, part.layout, self.rules)[0]

    def _shown(self, place: str, row: Row | None) -> Iterator[ShownRow]:
        if row is None:
            yield ShownRow(place, "", (), "cannot be read, see --verify-data")
            return
        try:
            encoded = encode_row(self.template, row)
        except Exception as error:
            # ms-swift skips a row on any exception of the template
            yield ShownRow(place, "", (), f"ms-swift skips it: {_reason(error)}")
            return
        for name, tokens, labels in encoded:
            shown = ShownRow(place, name, tuple(self._pieces(tokens, labels)))
            if self.max_length is not None and len(tokens) > self.max_length:
                shown = replace(shown, note=f"longer than max_length {self.max_length}, {self._fate()}")
            yield shown

    def _fate(self) -> str:
        if self.truncation in {"left", "right"}:
            return f"cut on the {self.truncation}"
        return "split" if self.truncation == "split" else "skipped"

    def _pieces(self, tokens: list[int], labels: list[int] | None) -> Iterator[Piece]:
        learned = [label != IGNORED for label in labels] if labels is not None else [False] * len(tokens)
        cut = self._cut(len(tokens))
        at = 0
        for (is_learned, is_cut), group in groupby(zip(learned, cut, strict=True)):
            size = len(list(group))
            yield Piece(self._text(tokens[at : at + size]), size, is_learned, is_cut)
            at += size

    def _cut(self, length: int) -> list[bool]:
        over = max(length - self.max_length, 0) if self.max_length is not None else 0
        if self.truncation == "left":
            return [True] * over + [False] * (length - over)
        if self.truncation == "right":
            return [False] * (length - over) + [True] * over
        return [False] * length

    def _text(self, tokens: list[int]) -> str:
        """The tokens as text; long runs of one token are shown with a count."""
        out, kept = [], []
        for token, group in groupby(tokens):
            times = len(list(group))
            if times < REPEATED:
                kept += [token] * times
                continue
            out += [
                self.template.tokenizer.decode(kept),
                f"{self.template.tokenizer.decode([token])} × {times}",
            ]
            kept = []
        return "".join([*out, self.template.tokenizer.decode(kept)])
