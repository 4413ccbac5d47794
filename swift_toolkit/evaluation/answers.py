"""The answers file of a run: answers are appended one by one, survive a kill, and are written to one JSON file at the
end.

During a run the answers are in ``<output>.partial``: a first line that identifies the run, then one line per answer.
The same request finds this file again and asks only the missing questions. When none is missing, the answers are
written in order to ``<output>``, atomically, and the partial file is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from swift_toolkit.evaluation.results import Figures, FileMeta, Finished, Meta, Result, Results
from swift_toolkit.inference.exchange import Answer, Question, Side
from swift_toolkit.machine.files import whole_text
from swift_toolkit.problems import Problem, RequestError, RunError

PARTIAL = ".partial"
DAMAGED = ".damaged"  # suffix added to a finished file that cannot be read
_FORMAT = 1  # format version of both files; files of another version are never continued


class AnswersFile:
    """The answers of one run, on disk. Created by `open_answers`.

    Args:
        output: file for the finished answers.
        run: data that identifies this run, as JSON.
        sides: the sides that are asked: ``("tuned",)`` or ``("tuned", "base")``.
        count: number of questions.

    Attributes:
        finished: ``output`` is complete.
        damaged: number of lines of an earlier run that could not be read; their answers are missing.
        meta: description of the run; None before `keep_meta`.
    """

    def __init__(self, output: Path, run: Mapping[str, object], sides: Sequence[Side], count: int) -> None:
        self.output, self.partial = output, _partial(output)
        self.run, self.sides, self.count = run, tuple(sides), count
        self.fingerprint = fingerprint(run)
        self.finished = False
        self.damaged = 0
        self.meta: Meta | None = None
        self._offsets = {side: array("q", [-1]) * count for side in self.sides}
        self._kept = dict.fromkeys(self.sides, 0)
        self._file: BinaryIO | None = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # a failed write has already been reported
                self._file.close()
            self._file = None

    def count_of(self, side: Side) -> int:
        """The number of questions with an answer, or a recorded failure, from ``side``."""
        return self._kept[side]

    def keep_meta(self, meta: Meta) -> None:
        """Store the description of the run; later calls have no effect."""
        if self.meta is None:
            self.meta = meta
            self._append({"meta": meta})

    def missing(self, side: Side, index: int) -> bool:
        """Whether ``side`` has not been asked the question at ``index`` yet."""
        return self._offsets[side][index] < 0

    def append(self, index: int, side: Side, answer: Answer) -> None:
        """Store one answer. Once this returns, killing this process does not lose it."""
        self._note(side, index, self._append({"index": index, "side": side, **asdict(answer)}))

    def _note(self, side: Side, index: int, offset: int) -> None:
        self._kept[side] += self._offsets[side][index] < 0
        self._offsets[side][index] = offset

    def _append(self, line: Mapping[str, object]) -> int:
        """Write one line; return its offset.

        Raises:
            RunError: the line cannot be written.
        """
        assert self._file is not None
        offset = self._file.seek(0, os.SEEK_END)
        with unwritable_as_run_error(self.partial):
            self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        return offset

    def answer(self, index: int, side: Side) -> Answer | None:
        """The answer to the question at ``index``, None if it is missing."""
        offset = self._offsets[side][index]
        if offset < 0:
            return None
        assert self._file is not None
        self._file.seek(offset)
        line = json.loads(self._file.readline())
        del line["index"], line["side"]
        return Answer(**line)

    def pairs(self, questions: Iterable[Question]) -> Iterator[tuple[Question, dict[Side, Answer]]]:
        """Yield every question in order with its answers by side, one in memory at a time."""
        for question in questions:
            found = {side: self.answer(question.index, side) for side in self.sides}
            yield question, {side: answer for side, answer in found.items() if answer is not None}

    def finish(self, results: Iterable[Result], summary: Callable[[], Figures]) -> None:
        """Write the finished answers atomically and remove the partial file.

        Args:
            results: one for each question, in order.
            summary: returns the figures of all results; called after the last result.

        Raises:
            RunError: the file cannot be written.
        """
        with unwritable_as_run_error(self.output):
            self._write_results(results, summary)
        self.finished = True
        self.partial.unlink(missing_ok=True)

    def _write_results(self, results: Iterable[Result], summary: Callable[[], Figures]) -> None:
        assert self.meta is not None
        with tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.output.parent) as body:
            separator = ""
            for result in results:
                body.write(separator + json.dumps(result, ensure_ascii=False))
                separator = ",\n"
            body.seek(0)
            meta: FileMeta = {"format": _FORMAT, "fingerprint": self.fingerprint, **self.meta}
            finished: Finished = {"meta": meta, "summary": summary()}
            head = json.dumps(finished, ensure_ascii=False, indent=2)
            with whole_text(self.output) as file:
                file.write(head.removesuffix("\n}") + ",\n" + _RESULTS)
                shutil.copyfileobj(body, file)
                file.write("\n]}\n")

    def start(self) -> None:
        """Open the partial file: create it, or read that of an earlier run.

        Raises:
            RequestError: another process has locked it, or it cannot be written.
            RunError: the disk is full.
        """
        try:
            self._file = self.partial.open("a+b")
        except OSError as error:
            raise _unwritable(self.output, error) from None
        _lock(self._file, self.output)
        self._file.seek(0)
        header = self._file.readline()
        if not header.endswith(b"\n"):
            self._file.truncate(0)
            self._append({"format": _FORMAT, "fingerprint": self.fingerprint, "run": self.run})
            return
        self._recover(self._file)

    def _recover(self, file: BinaryIO) -> None:
        """Find the existing answers. An incomplete last line is dropped; a line in the middle that a power cut filled
        with zeros, or that is damaged otherwise, is skipped, and its question is asked again.
        """
        offset = file.tell()
        while line := file.readline():
            if not line.endswith(b"\n"):
                break
            start = len(line) - len(line.lstrip(b"\0"))  # the next line may have been written after the zeros
            if not self._take(line[start:], offset + start):
                self.damaged += 1
            offset += len(line)
        file.truncate(offset)

    def _take(self, line: bytes, offset: int) -> bool:
        """Record the content of a line; return whether it is complete."""
        try:
            entry = json.loads(line)
            if "meta" in entry:
                if not entry["meta"].keys() >= Meta.__required_keys__:
                    return False
                self.meta = entry["meta"]
                return True
            index, side = entry.pop("index"), entry.pop("side")
            Answer(**entry)
            if index < 0:
                return False
            self._note(side, index, offset)
        except (ValueError, TypeError, LookupError, AttributeError):
            return False
        return True


@contextmanager
def unwritable_as_run_error(path: Path) -> Iterator[None]:
    """Turn errors of the file system into a RunError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error


_RESULTS = '  "results": [\n'


def _partial(output: Path) -> Path:
    return output.with_name(output.name + PARTIAL)


def _lock(file: BinaryIO, output: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        problem = Problem(
            "is being written by another run of this command",
            "Wait for that run, or stop it.",
            file=str(output),
        )
        file.close()
        raise RequestError([problem]) from None


def fingerprint(run: Mapping[str, object]) -> str:
    """A fingerprint; two runs with the same one can continue each other."""
    return hashlib.sha256(json.dumps([_FORMAT, run], sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def open_answers(
    output: Path | None, folder: Path, run: Mapping[str, object], sides: Sequence[Side], count: int
) -> AnswersFile:
    """Open the answers file of a run: the one that the same run left unfinished, else a new one.

    Args:
        output: file for the answers. If it contains another run's answers, ``-2``, ``-3`` ... is added to the name.
            None: a file in ``folder`` named after the time.
        folder: directory for answers without ``output``.
        run: data that identifies this run, as JSON.
        sides: the sides that are asked.
        count: number of questions.

    Raises:
        RequestError: it cannot be written, or another process is writing it.
    """
    _make_folder(folder if output is None else output.parent, output or folder)
    mark = fingerprint(run)
    place = _unfinished(folder, mark) or _by_time(folder) if output is None else _free(output, mark)
    answers = AnswersFile(place, run, sides, count)
    if place.exists() and _is_whole(place, count):  # the same run
        answers.finished = True
        answers.partial.unlink(missing_ok=True)
        return answers
    if place.exists():
        answers.damaged += 1
        place.replace(place.with_name(place.name + DAMAGED))
    answers.start()
    return answers


def _is_whole(path: Path, count: int) -> bool:
    """Whether a finished file can be read to its end and contains all results."""
    try:
        return sum(1 for _ in read_results(path)[2]) == count
    except (OSError, ValueError, KeyError):
        return False


def _make_folder(folder: Path, shown: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(shown, error) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(shown, PermissionError(0, "Permission denied"))


def _unwritable(output: Path, error: OSError) -> RequestError:
    what = f"cannot be written: {(error.strerror or 'unknown error').lower()}"
    return RequestError([Problem(what, "Choose another file with --output.", file=str(output))])


def _unfinished(folder: Path, mark: str) -> Path | None:
    for partial in sorted(folder.glob(f"answers-*.json{PARTIAL}")):
        if _mark_of_partial(partial) == mark:
            return partial.with_name(partial.name.removesuffix(PARTIAL))
    return None


def _by_time(folder: Path) -> Path:
    return _free(folder / time.strftime("answers-%Y%m%d-%H%M%S.json"), "")


def _free(output: Path, mark: str) -> Path:
    """The first of ``output`` and its numbered variants that is free or belongs to the run ``mark``."""
    place, number = output, 1
    while True:
        marks = [_mark_of_results(place), _mark_of_partial(_partial(place))]
        if mark in marks or marks == [None, None]:
            return place
        number += 1
        place = output.with_name(f"{output.stem}-{number}{output.suffix}")


def _mark_of_partial(path: Path) -> str | None:
    """The run that a partial file belongs to: None if there is no file (or no complete first line), "" if unknown."""
    try:
        with path.open("rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    if not line.endswith(b"\n"):
        return None if not line or line.startswith(b'{"format"') else ""
    try:
        return str(json.loads(line)["fingerprint"])
    except (ValueError, TypeError, KeyError):
        return ""


def _mark_of_results(path: Path) -> str | None:
    """The run that finished answers belong to: None if there is no file, "" if unknown."""
    if not path.exists():
        return None
    try:
        return str(read_results(path)[0]["fingerprint"])
    except (OSError, ValueError, KeyError):
        return ""


def read_results(path: Path) -> tuple[FileMeta, Figures, Results]:
    """Read ``meta``, ``summary`` and the results, one at a time, from a finished answers file.

    Raises:
        ValueError: it is not a finished answers file.
    """
    head = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line == _RESULTS:
                break
            head.append(line)
            if len(head) > 10_000:
                break
    document: Finished = json.loads("".join(head).rstrip().removesuffix(",") + "}")
    return document["meta"], document["summary"], _results(path, len(head) + 1)


def _results(path: Path, skip: int) -> Results:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number >= skip and line.startswith("{"):
                yield json.loads(line.rstrip().removesuffix(","))
