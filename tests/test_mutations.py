"""Mistaken commands of ``benchmarks/mutations.py``: a part of the table of ms-swift's answers, held against ours."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from swift_toolkit.machine.msswift import installed

pytestmark = pytest.mark.swift4
BENCHMARK = Path(__file__).parent.parent / "benchmarks/mutations.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutations", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def laid_out(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark.lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("laid_out")
def test_what_is_right_is_accepted(benchmark: ModuleType) -> None:
    refused = {
        name: said.said
        for name, words in benchmark.commands().items()
        if (said := benchmark.ours(words)).status
    }
    assert not refused


@pytest.mark.usefixtures("laid_out")
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_what_ms_swift_refuses_is_refused_before(benchmark: ModuleType, number: int) -> None:
    draw = benchmark.DRAWS[number]
    if json.loads(draw.table.read_text().splitlines()[0])["ms-swift"] != installed().version:
        pytest.skip("the table has the answers of another version of ms-swift")
    answers = benchmark.kept_answers(draw)
    asked = [
        one for one in benchmark.mutations(draw)[:: draw.count // 100] if answers[one.words].error is not None
    ]
    missed = []
    for mutation in asked:
        found = benchmark.ours(mutation.words)
        assert found.status in (0, 2), found.said
        if not (found.refused and found.names(mutation)) and not benchmark.is_old(mutation):
            missed.append(f"{mutation.kind}: {' '.join(mutation.words)}: {answers[mutation.words].error}")
    assert len(asked) > 50
    assert len(missed) <= 0.03 * len(asked), "\n".join(missed)


@pytest.fixture(scope="module")
def place(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    benchmark.lay_out(folder)
    return folder


LIMITS = Path(__file__).parent / "limits.txt"
COUNT = sum(1 for line in LIMITS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#")


@pytest.mark.parametrize("number", range(COUNT))
def test_what_ms_swift_raises_is_refused_and_what_is_next_to_it_is_not(
    benchmark: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.chdir(place)
    row = benchmark.limits()[number]
    found = benchmark.ours(row.wrong.words)
    assert found.status == 2, row.wrong.words
    assert f'{row.wrong.key}"' in found.said, found.said
    if row.near is not None:
        assert benchmark.ours(row.near.words).status == 0
