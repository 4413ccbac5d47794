"""Random data files: each is reported on, in bounded time, and what is written of it can be read again."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.tasks import TASKS
from swift_toolkit.dataset import page
from swift_toolkit.dataset.copies import convert
from swift_toolkit.dataset.verify import verify
from swift_toolkit.problems import RequestError
from tests.fuzz import LONGEST, TEXTS, damaged, draw, numbers, value, writes_only_below

COLUMNS = (
    "messages", "messages", "query", "response", "instruction", "input", "output", "prompt", "completion", "conversations",
    "history", "system", "images", "image", "videos", "audios", "tools", "objects", "label", "chosen", "rejected",
    "rejected_response", "rejected_messages", "positive", "negative", "solution", "text", "id", "channel", "a\"b", "a\\b",
    "a\nb", "\0", "é", "", " ", "messages ", "Messages", "loss", "margin",
)  # fmt: skip
ROLES = ("user", "assistant", "system", "tool", "tool_call", "human", "gpt", "x", "", None, 5)


def message(draw: random.Random) -> Any:
    if draw.random() < 0.1:
        return value(draw)
    names = draw.choice((("role", "content"), ("role", "content"), ("from", "value"), ("role", "contents")))
    made = {names[0]: draw.choice(ROLES), names[1]: draw.choice((*TEXTS[:40], value(draw)))}
    return made | ({draw.choice(("loss", "tool_calls", "x")): value(draw)} if draw.random() < 0.1 else {})


def row(draw: random.Random, good: float) -> Any:
    kind = draw.random()
    if kind < 0.05 * (1 - good):
        return value(draw)
    if kind < max(good, 0.4):
        talk = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": draw.choice(("b", "c" * 90))},
        ]
        return {"messages": talk * draw.choice((1, 1, 2, 40))}
    made: dict[str, Any] = {}
    for name in draw.sample(COLUMNS, draw.randrange(1, 5)):
        talks = name in ("messages", "conversations", "chosen", "rejected", "history")
        made[name] = (
            [message(draw) for _ in range(draw.randrange(4))]
            if talks and draw.random() < 0.7
            else value(draw)
        )
    return made


def data_file(draw: random.Random, folder: Path) -> Path:
    """Write a file of rows; its kind goes by its name, as in ms-swift."""
    good = draw.choice((0, 0, 0.9, 1))
    rows = [row(draw, good) for _ in range(draw.choice((0, 1, 2, 5, 30)))]
    rows *= draw.choice((1, 1, 1, 20))
    kind = draw.choice((".jsonl", ".jsonl", ".json", ".csv", ".txt", ".jsonl.gz", ".parquet", ".arrow", ""))
    path = folder / f"data{kind}"
    if kind == ".json":
        text = json.dumps(rows, indent=draw.choice((None, 1)), default=str)
    elif kind == ".csv":
        text = _csv(draw, [one for one in rows if isinstance(one, dict)])
    else:
        text = "".join(json.dumps(one, ensure_ascii=draw.random() < 0.5) + "\n" for one in rows)
    data = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.3:
        data = damaged(draw, data)
    if kind.endswith(".gz"):
        data = gzip.compress(data)
        data = damaged(draw, data) if draw.random() < 0.3 else data
    path.write_bytes(data)
    return path


def _csv(draw: random.Random, rows: list[dict[str, Any]]) -> str:
    columns = draw.sample(COLUMNS, draw.randrange(1, 6))
    out = io.StringIO()
    writer = csv.writer(out, delimiter=draw.choice(",,;\t"), lineterminator=draw.choice(("\n", "\r\n")))
    writer.writerow(columns)
    for one in rows:
        writer.writerow(
            ["" if one.get(name) is None else str(one.get(name)).replace("\0", "") for name in columns]
        )
    return out.getvalue()


def test_data_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results: Counter[str] = Counter()
    slowest = (0.0, 0)
    failures = []
    for number in numbers(300, 10_000):
        drawn = draw("data", number)
        file = data_file(drawn, tmp_path)
        began = time.process_time()
        try:
            with writes_only_below(tmp_path):
                result = look(drawn, file, tmp_path)
        except Exception as error:
            result = f"{type(error).__name__}"
            failures.append((number, file.name, repr(error)[:300], file.read_bytes()[:300]))
        seconds = time.process_time() - began
        slowest = max(slowest, (seconds, number))
        results[result] += 1
        file.unlink()
    with capsys.disabled():
        for failure in failures[:20]:
            print("\nFAILED", *failure, sep="\n  ")
        print(f"\n{sum(results.values())} files, {dict(results)}, slowest {slowest[0]:.2f} s")
    assert failures == []
    assert slowest[0] < LONGEST, slowest


def look(draw: random.Random, file: Path, folder: Path) -> str:
    """Verify a file and say how it ended; what can be converted is read again."""
    report = verify(
        [str(file)], task=draw.choice(("sft", "sft", *TASKS)), multimodal=draw.random() < 0.2, num_labels=2
    )
    assert "".join(report.summary()) and report.verdict()
    assert all(str(problem) for problem in report.problems)
    page.histogram_lines(report)
    json.dumps(report.as_dict(), default=str)
    if not report.ok:
        return "refused"
    page.write_report(report, folder / "report.html")
    try:
        rows = convert(report, folder / "converted.jsonl")
    except RequestError:
        return "not converted"
    lines = (folder / "converted.jsonl").read_bytes().splitlines()
    assert len([json.loads(line) for line in lines]) == rows
    return "converted"
