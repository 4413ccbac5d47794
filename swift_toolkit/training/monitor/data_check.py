"""The data check before the first step: every row is valid, and ms-swift uses enough of them.

Of large data sets only a sample is checked before the model is loaded. The rest is checked while the model loads, and
the first step waits for the result. It also waits for ms-swift's own count of the rows that remain after tokenizing,
which drops rows longer than max_length, for example.

The training process waits until the file ``DataCheck.path`` exists. It appends a line to ``DataCheck.lost`` for each
row that could not be tokenized.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType

from swift_toolkit.dataset.copies import bad_rows_allowed
from swift_toolkit.dataset.verify import BackgroundVerify, DataReport, Split
from swift_toolkit.machine.scratch import ScratchFolder
from swift_toolkit.problems import Problem
from swift_toolkit.training.preflight import VerifyArguments
from swift_toolkit.training.process import events
from swift_toolkit.training.process.events import RunEvent

_VERBS: dict[Split, str] = {"train": "trains on", "val": "validates on"}

REASONS = 5
"""How many reasons a message lists."""


class DataCheck:
    """Delays the first step of a run until its data is known to be valid. Use it as a context manager.

    Args:
        report: what is known about the data.
        verify: arguments of the `verify` call that checks every row, if ``report`` covers a sample.
        expected: computes, from a report, the rows of each split that ms-swift should get; None where unknown.
        max_lost: how many training rows ms-swift may drop: "N" or "P%".
    """

    def __init__(
        self,
        report: DataReport,
        verify: VerifyArguments,
        expected: Callable[[DataReport], Mapping[Split, int | None]],
        max_lost: str,
    ) -> None:
        self.report, self.expected, self.max_lost = report, expected, max_lost
        self._verify = verify
        self._scan: BackgroundVerify | None = None
        self._directory = ScratchFolder()
        self.path = self._directory.path / "go"
        self.lost = self._directory.path / "lost"
        self.lost.touch()
        self.counted = False
        self.loaded: dict[Split, int | None] = {}
        self.used: dict[Split, int | None] = {}
        self.reasons: Counter[str] = Counter()

    def __enter__(self) -> DataCheck:
        if not self.report.complete:
            self._scan = BackgroundVerify(**self._verify)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._scan is not None:
            self._scan.stop()
        self._directory.cleanup()

    def take(self, event: RunEvent) -> str:
        """Handle an event of the training process. Returns a sentence for the user, or ""."""
        if isinstance(event, events.RowsCounted):
            self.count(event.loaded, event.used)
            return self.sentence()
        if isinstance(event, events.Waiting) and not self.counted:
            self.count(
                {}, {}
            )  # the rows bypassed this count, for example because they were already tokenized
        return ""

    def count(self, loaded: Mapping[Split, int | None], used: Mapping[Split, int | None]) -> None:
        """Set ms-swift's count of rows.

        Args:
            loaded: rows of each split that it read; None if it reads them during training.
            used: rows that it tokenized; None if it does so during training.
        """
        self.counted, self.loaded, self.used = True, dict(loaded), dict(used)
        self.reasons = self._reasons()

    def problems(self) -> list[Problem]:
        """The problems that stop the run, as far as they are known. Once all data is known to be good, the first step
        may start."""
        if self._scan is not None and (report := self._scan.report()) is not None:
            self._scan.stop()
            self._scan = None
            self.report = report
            if not report.ok:
                return report.problems
        if self._scan is not None or not self.counted:
            return []
        if problem := self._too_many_lost():
            return [problem]
        self.path.touch()
        return []

    def _found(self, split: Split) -> int | None:
        found = self.expected(self.report)[split]
        return self.loaded.get(split) if found is None else found

    def _too_many_lost(self) -> Problem | None:
        found, used = self._found("train"), self.used.get("train")
        if found is None or used is None or found - used <= bad_rows_allowed(self.max_lost, found):
            return None
        do = f"Allow it with --max-lost-rows {100 - 100 * used // max(found, 1)}%."
        if any(_is_too_long(reason) for reason in self.reasons):
            do = f'Raise "max_length", or set "truncation_strategy" to "left" or "right". {do}'
        return Problem(f"{self.sentence()}; at most {self.max_lost} may be dropped", do)

    def sentence(self) -> str:
        """How many rows are used, and why not all of them; "" if all are used, or if that is unknown."""
        parts, unread = [], 0
        for split, verb in _VERBS.items():
            found, loaded, used = self._found(split), self.loaded.get(split), self.used.get(split)
            if found is not None and loaded is not None and used is not None and used < found:
                parts.append(f"{verb} {used:,} of {found:,} rows")
                unread += max(found - loaded, 0)
        if not parts:
            return ""
        why = [f"{unread:,} were not read by ms-swift, see train.log"] if unread else []
        why += _listed(self.reasons)
        return f"ms-swift {' and '.join(parts)}" + (": " + ", ".join(why) if why else "")

    def last_sentence(self) -> str:
        """A sentence about rows that turned out to be unusable during training; "" if there are none."""
        replaced = self._reasons() - self.reasons
        if not replaced:
            return ""
        return f"ms-swift replaced rows that it could not use: {', '.join(_listed(replaced))}"

    def as_dict(self) -> dict[str, object]:
        """Plain data for result.json: rows of each split as found, loaded and used; the reasons for rows that were not
        used, and for rows that were replaced during training.
        """
        rows: dict[str, object] = {
            split: {
                "found": self._found(split),
                "loaded": self.loaded.get(split),
                "used": self.used.get(split),
            }
            for split in _VERBS
        }
        return {
            **rows,
            "not_used": dict(self.reasons),
            "replaced_while_training": dict(self._reasons() - self.reasons),
        }

    def _reasons(self) -> Counter[str]:
        lines = self.lost.read_text(encoding="utf-8").splitlines() if self.lost.exists() else []
        return Counter(json.loads(line) for line in lines)


def _listed(reasons: Counter[str]) -> list[str]:
    return [f"{count:,} {reason}" for reason, count in reasons.most_common(REASONS)]


def _is_too_long(reason: str) -> bool:
    return reason.startswith("too long")
