"""Audit a sample of the rows with ms-swift's template in less than a second."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice

from swift_toolkit.dataset.audit.audit import Audit, Place
from swift_toolkit.dataset.audit.look import Looker
from swift_toolkit.dataset.reading.files import read_records
from swift_toolkit.dataset.rows.checks import usable
from swift_toolkit.dataset.rows.messages import Row
from swift_toolkit.dataset.scan.blocks import block_of
from swift_toolkit.dataset.scan.part import Part, find_part
from swift_toolkit.dataset.scan.sample import some_blocks
from swift_toolkit.dataset.spec import DatasetSpec

_SECONDS = 0.6
"""Approximate duration of the audit in seconds."""

AUDIT_ROWS = 96
"""Maximum number of audited rows."""

FILES = 8
"""Maximum number of sampled files, evenly spread over all files, because the beginning of each must be read."""

_READ = 2_048  # rows read from the beginning of a file
_BEHIND = 8  # rows from each block after it

_SEEN_ELSEWHERE = frozenset({"template", "too-long"})
"""Kinds of flaws that a sample does not report, because they are counted when ms-swift tokenizes all rows."""


def audit(looker: Looker, entries: Sequence[str]) -> Audit:
    """Audit some rows of local data sets.

    Args:
        looker: judges rows with the template.
        entries: the entries of ``dataset``; data on a hub is skipped.

    Raises:
        FlawError: a file cannot be read.
    """
    out, until = Audit(), time.perf_counter() + _SECONDS
    paths = [path for entry in entries for path in DatasetSpec.parse(entry).local_files()]
    paths = paths[:: -(-len(paths) // FILES) or 1]
    for order, path in enumerate(paths):
        part = find_part(path, str(path), looker.rules)
        for place, row in islice(_some(part, order), max(AUDIT_ROWS // len(paths), 4)):
            out.take(looker.look(row), place, "train")
            if time.perf_counter() > until:
                return out
    for kind in _SEEN_ELSEWHERE & out.found.keys():
        del out.found[kind]
    return out


def stops(found: Audit, kind: str) -> bool:
    """Whether a flaw of a sample stops a run. Rows that the template rejects do not: it may lack something before the
    model is loaded, and otherwise ms-swift itself reports the error."""
    return kind == "nothing-learned" or (kind == "nothing-used" and not found.counts["template"])


def _some(part: Part, order: int) -> Iterator[tuple[Place, Row]]:
    """The first rows, then some from places spread over the file."""
    records = list(islice(read_records(part.file), _READ))
    spread = records[16 :: max(len(records) * 2 // AUDIT_ROWS, 1)]
    for record in (*records[:16], *spread):
        if (row := usable(record.value, part.layout, part.rules)) is not None:
            yield Place(order, part.file.shown, record.line, record.number), row
    if len(records) < _READ:
        return
    for piece in islice(some_blocks(part), 1, None):
        block = block_of(part.file, piece, part.header)
        for at in range(0, len(block), max(len(block) // _BEHIND, 1)):
            for record in block.records(at, at + 1):
                if (row := usable(record.value, part.layout, part.rules)) is not None:
                    yield Place(order, part.file.shown, None, None), row
