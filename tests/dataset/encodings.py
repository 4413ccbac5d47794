"""Reads and encodes data as ms-swift does before it trains, with rows kept between the cases, for a test.

    python tests/dataset/encodings.py <request.json>

The request: ``arguments`` of all cases; ``cases``, objects with further ``arguments``, and optionally ``remove``, a folder
that goes before, ``write``, files to be written before (path -> text; a file that exists keeps its time), and ``spare``,
bytes that must be free for an entry.
Prints for every case how many rows were ``encoded``, of every row the noted ``lengths`` and the real ``tokens`` and
``learned`` ones, whether it is ``kept``, and what ms-swift ``shows`` of the lengths.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from swift_toolkit.dataset import row_cache
from swift_toolkit.dataset.row_cache import RowKeeper
from swift_toolkit.machine import msswift


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    train = msswift.train_function("sft", [])
    pipeline = sys.modules[train.__module__]
    encoded = Path("encoded")  # also by the processes of `datasets`

    def count(encode: Any, row: Any, **kwargs: Any) -> Any:
        with encoded.open("a") as file:
            file.write("x")
        return encode(row, **kwargs)

    msswift.encode_through(lambda encode, args, *more, **kwargs: encode(*more, **kwargs), count)
    spare, keeper = row_cache.SPARE_BYTES, RowKeeper()
    msswift.keep_rows(keeper.open, keeper.drop)
    msswift.measure_rows_at_once()
    out = []
    for case in request["cases"]:
        row_cache.SPARE_BYTES = case.get("spare", spare)
        if "remove" in case:
            shutil.rmtree(case["remove"])
        for path, text in case.get("write", {}).items():
            write(Path(path), text)
        encoded.write_text("")
        run = pipeline.SwiftSft([*request["arguments"], *case["arguments"]])
        dataset, _ = run._prepare_dataset()
        used = encoded.stat().st_size - 1  # the first row is shown
        rows = [dataset[at] for at in range(len(dataset))]
        learned = [sum(label != -100 for label in row["labels"]) for row in rows]
        kept = keeper.folder is not None
        lengths = msswift.row_lengths(dataset)
        tokens = [len(row["input_ids"]) for row in rows]
        shows = run.train_msg["train_dataset"]
        found = {"encoded": used, "tokens": tokens, "lengths": lengths, "learned": learned}
        out.append({**found, "kept": kept, "shows": shows})
    return out


def write(path: Path, text: str) -> None:
    before = path.stat() if path.exists() else None
    path.write_text(text, encoding="utf-8")
    if before is not None:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


if __name__ == "__main__":
    print("\n" + json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
