#!/usr/bin/env python3
"""Speed and memory of data verification, compared with ms-swift's own reading of the same rows.

    python benchmarks/dataset_scan.py                  # 1 MB, 100 MB and 2 GB; 100,000 rows with ms-swift
    python benchmarks/dataset_scan.py --swift-rows 1000000
    python benchmarks/dataset_scan.py --layouts 100000 # the table of all formats, with ms-swift
    python benchmarks/dataset_scan.py --growth json csv parquet     # memory with 1 MB, 100 MB and 2 GB of a format

The files contain messages in JSON Lines (for the table, a question and an answer in each format), generated with a
fixed seed and removed afterwards. Each figure is the best of several rounds in separate processes; memory is the
highest sum over all processes of one more run, because looking at it takes processor time. On a busy machine, compare
the processor time, which is also printed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet
import zstandard

ROOT = Path(__file__).resolve().parent.parent

VERIFY = """
import json, os, sys, time
from swift_toolkit.dataset.scan import pool
from swift_toolkit.dataset.verify import verify
if sys.argv[2] == "one":
    pool.ALONE_BYTES = 1 << 60
started, busy = time.perf_counter(), sum(os.times()[:4])
report = verify([sys.argv[1]], limit_seconds=float(sys.argv[3]) if sys.argv[3] else None)
seconds, busy = time.perf_counter() - started, sum(os.times()[:4]) - busy
assert report.ok, report.problems
print(json.dumps({"seconds": seconds, "busy": busy, "rows": report.train_rows}))
"""

SWIFT = """
import json, os, sys, time
from swift import load_dataset
started, busy = time.perf_counter(), sum(os.times()[:4])
rows, _ = load_dataset([sys.argv[1]], load_from_cache_file=False)
seconds, busy = time.perf_counter() - started, sum(os.times()[:4]) - busy
print(json.dumps({"seconds": seconds, "busy": busy, "rows": len(rows)}))
"""


DECODE = """
import gzip, io, json, os, sys, time
from pathlib import Path
import msgspec, pyarrow.csv, pyarrow.parquet, zstandard
path = Path(sys.argv[1])
class Row(msgspec.Struct):
    query: str
    response: str
started, busy = time.perf_counter(), sum(os.times()[:4])
data = path.read_bytes()
if path.suffix == ".gz":
    data = gzip.decompress(data)
elif path.suffix == ".zst":
    data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
if ".jsonl" in path.suffixes:
    rows = msgspec.json.Decoder(Row).decode_lines(data)
elif ".json" in path.suffixes:
    rows = msgspec.json.decode(data, type=list[Row])
elif ".parquet" in path.suffixes:
    rows = pyarrow.parquet.read_table(io.BytesIO(data))
else:
    options = pyarrow.csv.ParseOptions(delimiter="\\t" if ".tsv" in path.suffixes else ",", newlines_in_values=True)
    rows = pyarrow.csv.read_csv(io.BytesIO(data), parse_options=options)
if not isinstance(rows, list):
    rows = list(zip(*(column.to_pylist() for column in rows.columns)))
seconds, busy = time.perf_counter() - started, sum(os.times()[:4]) - busy
print(json.dumps({"seconds": seconds, "busy": busy, "rows": len(rows)}))
"""
"""The minimum work of any reader: the texts of all rows as Python objects."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, nargs="*", default=[1, 100, 2000])
    parser.add_argument(
        "--swift-rows", type=int, default=100_000, help="number of rows that ms-swift reads too; 0 for none"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--layouts", type=int, default=0, help="only the table of formats, with this number of rows"
    )
    parser.add_argument(
        "--growth",
        nargs="+",
        choices=GROWING,
        default=[],
        help="only the growth of memory with these formats",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for layout in options.growth:
            for megabytes in options.megabytes:
                growth(Path(folder), megabytes, options.rounds, layout)
        if options.growth:
            return
        if options.layouts:
            layouts(Path(folder), options.layouts, options.rounds, bool(options.swift_rows))
            return
        for kind in ("english", "chinese"):
            throughput(Path(folder), kind, 100, options.rounds)
        for megabytes in options.megabytes:
            growth(Path(folder), megabytes, options.rounds)
        if options.swift_rows:
            against_swift(Path(folder), options.swift_rows, options.rounds)


def throughput(folder: Path, kind: str, megabytes: int, rounds: int) -> None:
    for words in (60, 400):
        path = folder / "rows.jsonl"
        write(path, rows_of(kind, words), size=megabytes << 20)
        best = best_of(rounds, VERIFY, path, "one", "")
        print(
            f"one core, {kind}, {path.stat().st_size // best['rows']} bytes per row: {figures(path, best)}",
            flush=True,
        )


GROWING = ("jsonl", "json", "csv", "parquet")


def growth(folder: Path, megabytes: int, rounds: int, layout: str = "jsonl") -> None:
    path = folder / f"rows.{layout}"
    write_grown(path, megabytes << 20, layout)
    for cores, name in (("one", "one core"), ("all", "all cores")):
        best = best_of(rounds if megabytes < 1000 else 1, VERIFY, path, cores, "")
        memory = memory_in(VERIFY, path, cores, "")
        print(f"{megabytes} MB {layout}, {name}: {figures(path, best)}, {memory} MB of memory", flush=True)
    best, memory = best_of(1, VERIFY, path, "one", "2"), memory_in(VERIFY, path, "one", "2")
    print(f"{megabytes} MB {layout}, within 2 s: {best['seconds']:.2f} s, {memory} MB of memory", flush=True)
    path.unlink()


def write_grown(path: Path, size: int, layout: str) -> None:
    """Write ``size`` bytes of distinct rows or a little more; Parquet without compression."""
    if layout == "jsonl":
        write(path, rows_of("english", 60), size=size)
    elif layout == "parquet":
        schema = pyarrow.schema({"query": pyarrow.string(), "response": pyarrow.string()})
        with pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for rows in endless_pairs():
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                if path.stat().st_size >= size:
                    break
    else:
        with path.open("w", encoding="utf-8", newline="") as out:
            out.write("[" if layout == "json" else "query,response\r\n")
            for number, rows in enumerate(endless_pairs()):
                if layout == "csv":
                    csv.DictWriter(out, list(rows[0])).writerows(rows)
                else:
                    out.write((",\n" if number else "") + ",\n".join(map(json.dumps, rows)))
                if out.tell() >= size:
                    break
            out.write("]\n" if layout == "json" else "")


def endless_pairs() -> Iterator[list[dict[str, str]]]:
    """Distinct rows of a question and an answer, a thousand at a time, endlessly."""
    table = pairs_of("plain", 1000)
    for number in count():
        yield [row | {"query": f"{number}, {row['query']}"} for row in table]


def against_swift(folder: Path, rows: int, rounds: int) -> None:
    path = folder / "rows.jsonl"
    write(path, rows_of("english", 60), rows=rows)
    ours, swift = best_of(rounds, VERIFY, path, "all", ""), best_of(1, SWIFT, path)
    for name, of in (("wall", "seconds"), ("processor", "busy")):
        times = f"ours {ours[of]:.2f} s, ms-swift {swift[of]:.1f} s, {swift[of] / ours[of]:.0f} times"
        print(f"{rows} rows, {name}: {times}", flush=True)


LAYOUTS = ("jsonl", "json", "indented.json", "csv", "tsv", "parquet", "jsonl.gz", "json.zst", "csv.gz")
SWIFT_READS = ("jsonl", "json", "indented.json", "csv", "parquet")


def layouts(folder: Path, rows: int, rounds: int, with_swift: bool) -> None:
    """The table of all formats, with plain English, with this project's documentation, and with Chinese text."""
    print(
        "text      layout        MB    ours: wall, processor  MB of memory"
        "   within 2 s  of decoding   ms-swift: wall, processor  times: wall, processor",
        flush=True,
    )
    worst: dict[str, float] = {}
    for kind in ("plain", "mixed", "chinese"):
        table = pairs_of(kind, rows)
        for layout in LAYOUTS:
            path = folder / f"rows.{layout}"
            write_layout(path, table, layout)
            ours, memory = best_of(rounds, VERIFY, path, "all", ""), memory_in(VERIFY, path, "all", "")
            quick = best_of(1, VERIFY, path, "all", "2")
            decode = best_of(rounds, DECODE, path)
            of_decoding = ours["busy"] / max(decode["busy"], 0.01)  # os.times counts hundredths of a second
            worst["decoding"] = max(worst.get("decoding", 0), of_decoding)
            line = f"{kind:9} {layout:12} {path.stat().st_size / 1e6:5.0f} {ours['seconds']:10.2f} {ours['busy']:10.2f}"
            line += f" {memory:13} {quick['seconds']:12.2f} {of_decoding:12.1f}"
            if with_swift and layout in SWIFT_READS:
                swift = best_of(1, SWIFT, path)
                times, busy = (swift[of] / ours[of] for of in ("seconds", "busy"))
                line += f" {swift['seconds']:15.1f} {swift['busy']:10.1f} {times:12.1f} {busy:10.1f}"
                worst["ms-swift"] = min(worst.get("ms-swift", times), times)
            print(line, flush=True)
            path.unlink()
    print(f"worst: {worst['decoding']:.1f} times the processor time of decoding alone", end="")
    print(
        f", {worst['ms-swift']:.1f} times as fast as ms-swift by wall clock" if with_swift else "", flush=True
    )


def pairs_of(kind: str, rows: int) -> list[dict[str, str]]:
    """Rows of a question and an answer; the mixed ones contain quotes, symbols, code and Chinese. In JSON, non-ASCII
    characters are escaped, as in json.dumps."""
    some = random.Random(2)
    words = "the model learns from data which is read row by row and it must be right before training".split()
    if kind == "mixed":
        names = ("README.md", "README_zh.md", "finetune_trainer.py")
        words = [word for name in names for word in (ROOT / name).read_text(encoding="utf-8").split(" ")]
    if kind == "chinese":
        words = ["".join(chr(some.randrange(0x4E00, 0x9000)) for _ in range(4)) for _ in range(500)]
    texts = [" ".join(some.choices(words, k=some.randrange(10, 90))) for _ in range(500)]
    return [
        {"query": f"{at}: {some.choice(texts)[:120]}", "response": some.choice(texts)} for at in range(rows)
    ]


def write_layout(path: Path, rows: list[dict[str, str]], layout: str) -> None:
    name, _, packing = layout.partition(".") if layout.endswith((".gz", ".zst")) else (layout, "", "")
    if name == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    text = io.StringIO(newline="")
    if name == "jsonl":
        text.writelines(json.dumps(row) + "\n" for row in rows)
    elif name in ("json", "indented.json"):
        json.dump(rows, text, indent=2 if name != "json" else None)
    else:
        table = csv.DictWriter(text, list(rows[0]), delimiter="\t" if name == "tsv" else ",")
        table.writeheader()
        table.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(PACK[packing](data))


PACK = {"": bytes, "gz": partial(gzip.compress, compresslevel=6), "zst": zstandard.compress}


def figures(path: Path, best: dict[str, float]) -> str:
    size, rows = path.stat().st_size, best["rows"]
    out = [
        f"{seconds:.2f} s {name}, {size / seconds / 1e6:.0f} MB/s, {rows / seconds / 1e3:.0f} krows/s"
        for name, seconds in (("wall", best["seconds"]), ("processor", best["busy"]))
    ]
    return "; ".join(out)


def rows_of(kind: str, words: int) -> Iterator[bytes]:
    """An endless sequence of distinct rows with a question and an answer."""
    some = random.Random(1)
    sentence = (
        "the model learns from data which is read row by row and it must be right before training begins"
    )
    english = sentence.split()
    chinese = [chr(some.randrange(0x4E00, 0x9000)) for _ in range(2000)] + ["，", "。"] * 100
    known, space = (english, " ") if kind == "english" else (chinese, "")
    texts = [
        space.join(some.choices(known, k=some.randrange(words // 2, words * 3 // 2))) for _ in range(500)
    ]
    number = 0
    while True:
        number += 1
        question, answer = some.choice(texts)[: words * 2], some.choice(texts)
        yield (
            f'{{"messages": [{{"role": "user", "content": "{number}: {question}"}}, '
            f'{{"role": "assistant", "content": "{answer}"}}]}}\n'
        ).encode()


def write(path: Path, lines: Iterator[bytes], size: int = 0, rows: int = 0) -> None:
    with path.open("wb") as out:
        written = 0
        for number, line in enumerate(lines, 1):
            written += out.write(line)
            if written >= size and number >= rows:
                return


def best_of(rounds: int, code: str, *arguments: object) -> dict[str, float]:
    """The fastest of several runs."""
    return min(
        (run(code, *map(str, arguments))[0] for _ in range(rounds)), key=lambda result: result["seconds"]
    )


def memory_in(code: str, *arguments: object) -> int:
    """The memory of a run in MB."""
    return run(code, *map(str, arguments), watched=True)[1] >> 20


def run(code: str, *arguments: str, watched: bool = False) -> tuple[dict[str, float], int]:
    """What a run prints, and its memory in bytes if it is watched."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MODELSCOPE_CACHE": cache, "HF_HOME": cache}
        command = [sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        peak = 0
        while watched and process.poll() is None:
            peak = max(peak, memory_of(psutil.Process(process.pid)))
            time.sleep(0.02)
        out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run failed with status {process.returncode}")
    return json.loads(out.splitlines()[-1]), peak


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process and its children; shared memory is counted for each process."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.Error:
        pass
    return total


if __name__ == "__main__":
    main()
