"""Audit every row of the data with ms-swift's template, using all cores."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from swift_toolkit.dataset.audit.audit import Audit, Place, enter
from swift_toolkit.dataset.audit.look import Looker
from swift_toolkit.dataset.reading.files import read_records
from swift_toolkit.dataset.report import DataReport
from swift_toolkit.dataset.rows.checks import Rules, usable
from swift_toolkit.dataset.rows.messages import Row
from swift_toolkit.dataset.scan.part import find_part
from swift_toolkit.dataset.spec import DatasetSpec
from swift_toolkit.machine.device import cpu_cores

ROWS_OF_A_SHARE = 64
"""Number of rows that a process handles at a time."""

ALONE = 2_000
"""Fewer rows than this are audited by a single process."""

MOST_PROCESSES = 8


def audit_all(looker: Looker, report: DataReport) -> None:
    """Audit every row, and add the findings to the report.

    Args:
        looker: judges rows with the template.
        report: the report of a `verify` that checked every row.

    Raises:
        FlawError: a file cannot be read.
    """
    started = time.perf_counter()
    processes = min(cpu_cores(), MOST_PROCESSES) if (report.train_rows or 0) > ALONE else 1
    if processes == 1 or "fork" not in multiprocessing.get_all_start_methods():
        found = _look_at(looker, report)
    else:
        found = _with_all_cores(looker, report, processes)
    enter(found, looker, report)
    report.seconds += time.perf_counter() - started


def _with_all_cores(looker: Looker, report: DataReport, processes: int) -> Audit:
    """Each process reads all rows and encodes its share of them; encoding costs far more than reading."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context, whole = multiprocessing.get_context("fork"), Audit()
    workers = []
    for share in range(processes):
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(looker, report, share, processes, send), daemon=True)
        worker.start()
        send.close()
        workers.append((worker, receive))
    for worker, receive in workers:
        found = receive.recv()
        worker.join()
        if isinstance(found, Exception):
            raise found
        whole.add(found)
    return whole


def _work(looker: Looker, report: DataReport, share: int, of: int, send: Connection) -> None:
    try:
        send.send(_look_at(looker, report, share, of))
    except Exception as error:
        send.send(error)


def _look_at(looker: Looker, report: DataReport, share: int = 0, of: int = 1) -> Audit:
    """Audit every row, or one of ``of`` shares of the rows."""
    out = Audit()
    for split in report.specs:
        for place, row in rows_in([spec.text for spec in report.specs[split]], looker.rules, share, of):
            out.take(looker.look(row), place, split)
    return out


def rows_in(entries: Sequence[str], rules: Rules, share: int, of: int) -> Iterator[tuple[Place, Row]]:
    """The readable rows of local data sets, or one of ``of`` shares of them."""
    for place, row, _ in rows_with_values(entries, rules, share, of):
        yield place, row


def rows_with_values(
    entries: Sequence[str], rules: Rules, share: int = 0, of: int = 1
) -> Iterator[tuple[Place, Row, Row]]:
    """The same, with all columns of each row as in the file."""
    order = 0
    for entry in entries:
        spec = DatasetSpec.parse(entry)
        for path in spec.local_files():
            order += 1
            part = find_part(path, str(path), rules)
            for record in read_records(part.file):
                if record.number // ROWS_OF_A_SHARE % of != share:
                    continue
                if (row := usable(record.value, part.layout, rules)) is not None:
                    yield Place(order, str(path), record.line, record.number), row, record.value
