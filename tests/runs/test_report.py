"""``runs show``, ``compare`` and ``repeat``, and the reports: from what the files of runs say."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_toolkit import __main__
from swift_toolkit.console import page as console_page
from swift_toolkit.console.page import MOST_POINTS, Curve, line_chart
from swift_toolkit.runs import command, comparison, lock, resume
from swift_toolkit.runs import page as runs_page
from swift_toolkit.runs.history import read_history
from swift_toolkit.runs.record import Commit, RunDetails, RunPlan, TrainingResult, commit_of
from swift_toolkit.runs.recorder import Recorder
from swift_toolkit.runs.table import read_run

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def make_run(directory: Path, rate: float = 1e-4, steps: int = 40, loss: float = 2.0, **result: Any) -> Path:
    """A run that logged at every step and was measured at every tenth."""
    directory.mkdir(parents=True)
    given = {"model": "/models/tiny", "tuner_type": "lora", "dataset": "a.jsonl", "learning_rate": str(rate)}
    words = ("finetune_trainer.py", "--config", "c.json", "--nproc-per-node", "2", "--hub_token", "hf_secret")
    data = {"train": ["1 bytes, ab"], "val": []}
    config = given | {"output_dir": str(directory)}
    resume.StoredRequest(None, given, (), data, "m", 1, 16, words).write(directory)
    lines = [
        {
            "loss": loss / step,
            "grad_norm": 1.0,
            "learning_rate": rate,
            "global_step/max_steps": f"{step}/{steps}",
        }
        for step in range(1, steps + 1)
    ]
    lines.append({"eval_loss": loss / steps, "global_step/max_steps": f"{steps}/{steps}"})
    (directory / "logging.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut by')
    recorder = Recorder(directory, directory.parent)
    settings = {name: {"value": value, "source": "c.json:1"} for name, value in config.items()}
    facts = [("model", "</script><b>tiny</b>")]
    versions = {"python": "3.11"}
    recorder.begin(
        RunPlan(
            facts=facts, settings=settings, command=words, commit=None, fingerprints=data, versions=versions
        )
    )
    (directory / "result.json").write_text(json.dumps({"status": "done", "error": None, **result}))
    return directory


@pytest.fixture
def output(tmp_path: Path) -> Path:
    make_run(tmp_path / "a/v0-20260101-000000")
    make_run(tmp_path / "b/v0-20260102-000000", rate=1e-3, loss=1.0)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert __main__.main(["runs", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_show(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "show", output / "a")
    assert (shown["step"], shown["best_loss"], shown["result"]["status"]) == (40, 0.05, "done")
    assert shown["plan"]["settings"]["learning_rate"] == {"value": "0.0001", "source": "c.json:1"}
    assert __main__.main(["runs", "show", str(output / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].rstrip().split("  ", 1) == ["steps", "40 of 40"] or "40 of 40" in "\n".join(lines)


def test_compare_names_what_differs(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "compare", output / "a", output / "b", "--report", output / "c.html")
    assert found["names"] == ["a", "b"]
    assert found["settings"] == [["learning_rate", "0.0001", "0.001"]]
    assert found["data"] == []
    assert ["best loss", "0.05", "0.025"] in found["results"]
    assert "2 runs compared" in (output / "c.html").read_text()


def test_names_of_runs_tell_them_apart(tmp_path: Path) -> None:
    same = [tmp_path / "a/v0-20260101-000000", tmp_path / "a/v1-20260101-000000"]
    assert comparison.short_names(same) == ("v0-20260101-000000", "v1-20260101-000000")
    assert comparison.short_names([tmp_path / "x/a/v0", tmp_path / "y/a/v0"]) == ("x/a/v0", "y/a/v0")


def test_repeat_uses_the_record(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = output / "a/v0-20260101-000000"
    (run / "settings.json").write_text("{}")
    assert printed(capsys, "repeat", output / "a")["command"] == [
        "finetune_trainer.py", "--config", str(run / "settings.json"), "--nproc-per-node", "2",
    ]  # fmt: skip


def test_mistakes(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["show", "no"],
        ["compare", output / "a"],
        ["repeat", output / "a"],
        ["show", output / "a", "--yes"],
    ):
        assert __main__.main(["runs", *map(str, words)]) == 2
    run = output / "a/v0-20260101-000000"
    assert capsys.readouterr().err.splitlines() == [
        "no is not a run. Name a run directory (vN-<time>), or an output directory with runs.",
        "compare takes 2 to 12 runs; given: 1. See python -m swift_toolkit runs --help.",
        f"{run} has no settings.json, because an older version started this run. "
        f"Its settings are in {run}/result.json, under config.",
        '"--yes" needs the action clean. Remove it, or use: runs clean --yes.',
    ]


def test_a_run_is_named_in_several_ways(output: Path) -> None:
    run = output / "a/v0-20260101-000000"
    (run / "checkpoint-4").mkdir()
    (output / "a/last").symlink_to(run / "checkpoint-4")
    assert {
        command.run_of(str(path)) for path in (run, run.parent, run / "checkpoint-4", output / "a/last")
    } == {run}


def test_a_command_is_recorded_without_secrets() -> None:
    words = [
        "a.py",
        "--hub_token",
        "hf_x",
        "--swanlab_webhook_url=https://h/x",
        "--dataset",
        "https://me:pw@h/d",
    ]
    shown = list(resume._without_secrets(words))
    assert shown[:4] == ["a.py", "--hub_token", "***", "--swanlab_webhook_url=***"]
    assert "pw" not in shown[5]


def test_the_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    found = commit_of(ROOT)
    assert found is None or (isinstance(found, Commit) and re.fullmatch("[0-9a-f]{40}", found.id))


# --- pages --------------------------------------------------------------------------------------------------


class Charts(HTMLParser):
    """The charts of a page, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts: list[dict[str, Any]] = []
        self.open: list[str] = []
        self._data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._data = ("type", "application/json") in attrs
        if tag not in ("meta", "br", "img", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._data = False

    def handle_data(self, data: str) -> None:
        if self._data:
            self.charts.append(json.loads(data))


def details() -> RunDetails:
    content: dict[str, Any] = dict.fromkeys(RunDetails.__dataclass_fields__)
    return RunDetails(**{**content, "alarms": (), "memory": {"peak": GIB, "estimate": 2 * GIB}})


RESULT = TrainingResult(
    "done", Path("run"), None, None, 40, {}, {"startup": 1.0, "training": 2.0, "total": 3.0}
)


def test_a_resumed_run_has_no_result_of_its_earlier_part(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a/v0-20260101-000000", status="failed", error="out of memory")
    plan = RunPlan(facts=(), settings={}, command=(), commit=None, fingerprints={}, versions={})
    Recorder(run, tmp_path).begin(plan)
    assert read_run(run).state == "killed"


def test_the_report_of_a_run(output: Path) -> None:
    run = output / "a/v0-20260101-000000"
    recorder = Recorder(run, output)
    for step in (10, 20, 30):
        recorder.measure(step, 40, step * GIB // 10)
    recorder.report()
    running = (run / "report.html").read_text()
    assert "Running, step 40 of 40" in running and '<meta http-equiv="refresh" content="60">' in running
    with lock.held(run, str):  # by this very process, until it ends
        recorder.write(RESULT, "", details())
        recorder.report()
    text = (run / "report.html").read_text()
    parsed = Charts(text)
    assert parsed.open == []
    assert len(text) < 500_000
    assert not re.search(r"""(src|href)\s*=|url\(|fetch\(|@import""", text.partition("<script>/*")[0])
    loss = parsed.charts[0]
    assert [one["label"] for one in loss["series"]] == ["training", "validation"]
    assert loss["x"] == list(range(1, 41))
    assert loss["series"][1]["values"][-2:] == [None, 0.05]
    memory = parsed.charts[-1]
    assert (memory["x"], memory["series"][0]["values"]) == ([10, 20, 30], [1.0, 2.0, 3.0])
    assert "&lt;/script&gt;&lt;b&gt;tiny" in text
    assert "Done, step 40 of 40" in text


def test_the_report_of_a_run_that_failed_or_logged_nothing(tmp_path: Path) -> None:
    alarm = {"kind": "stall", "step": 3, "what": "no progress", "do": "Look."}
    failed = make_run(
        tmp_path / "a/v0-20260101-000000", status="failed", error="out of <memory>", alarms=[alarm]
    )
    assert "out of &lt;memory&gt;" in runs_page.run_page(failed)
    assert "Step 3: no progress. Look." in runs_page.run_page(failed)
    empty = tmp_path / "b/v0-20260101-000000"
    empty.mkdir(parents=True)
    assert Charts(runs_page.run_page(empty)).charts == []


def test_a_report_that_fails_is_said_once_and_ends_nothing(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = output / "a/v0-20260101-000000"
    monkeypatch.setattr(runs_page, "run_page", lambda *_: 1 / 0)
    recorder = Recorder(run, output)
    recorder.report()
    recorder.report()
    assert capsys.readouterr().err == f"cannot write the report of {run}: division by zero\n"


def test_curves_of_several_runs_share_a_chart(output: Path) -> None:
    runs = [output / "a/v0-20260101-000000", output / "b/v0-20260102-000000"]
    loss = Charts(runs_page.comparison_page(comparison.compare(runs))).charts[0]
    assert [(one["label"], one["color"], one["dashed"]) for one in loss["series"]] == [
        ("a", 1, False), ("a, validation", 1, True), ("b", 2, False), ("b, validation", 2, True),
    ]  # fmt: skip


@given(count=st.integers(1, 4 * MOST_POINTS), seed=st.integers(0, 1000))
def test_a_thinned_curve_keeps_its_peaks_and_its_end(count: int, seed: int) -> None:
    chance = random.Random(seed)
    points = {step: chance.uniform(-9, 9) for step in range(0, 3 * count, 3)}
    thinned = console_page._thinned(points)
    assert len(thinned) <= MOST_POINTS + 2
    assert {min(points.values()), max(points.values())} <= set(thinned.values())
    assert max(points) in thinned
    assert thinned.items() <= points.items()


def test_what_is_not_a_number_leaves_a_gap() -> None:
    chart = Charts(line_chart("Loss", [Curve("a", {1: 1.0, 2: math.nan, 3: math.inf})])).charts[0]
    assert chart["series"][0]["values"] == [1.0, None, None]
    assert line_chart("Loss", [Curve("a", {})]) == ""


def test_a_pause_is_no_slow_step(tmp_path: Path) -> None:
    """A run that was resumed an hour later."""
    times = {1: 0.0, 2: 1.0, 3: 2.0, 4: 3602.0, 5: 3603.0}
    lines = [
        {"global_step/max_steps": f"{step}/9", "time": time, "memory": 0} for step, time in times.items()
    ]
    (tmp_path / "measured.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_history(tmp_path).speed == {2: 1.0, 3: 1.0, 5: 1.0}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_report_in_a_browser(output: Path) -> None:
    """Every chart is drawn, without network; hovering shows values, dragging zooms, and it fits a phone."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    run = output / "a/v0-20260101-000000"
    runs_page.write_run_report(run)
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 420, "height": 900}, color_scheme="dark")
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: wrong.append(request.url) if request.url[:5] != "file:" else None)
        tab.goto(f"file://{run}/report.html")
        assert tab.locator(".uplot canvas").count() == len(Charts(runs_page.run_page(run)).charts) > 2
        assert tab.evaluate("document.documentElement.scrollWidth") == 420
        assert "40" in tab.locator(".u-legend").first.inner_text()  # without a cursor, the last values
        area = tab.locator(".u-over").first
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        assert box is not None
        middle, height = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        tab.mouse.move(middle, height)
        shown = tab.locator(".u-legend").first.inner_text()
        step = int(re.findall(r"\d+", shown)[0])
        assert 15 < step < 26
        assert f"{2 / step:.4g}"[:5] in shown
        tab.mouse.down()
        tab.mouse.move(box["x"] + box["width"] - 2, height, steps=5)
        tab.mouse.up()
        tab.mouse.move(box["x"] + 5, height)
        assert int(re.findall(r"\d+", tab.locator(".u-legend").first.inner_text())[0]) >= step
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.emulate_media(media="print")
        # paper is narrower than the window, and no script runs after its width is known
        inside = """all => { document.querySelector("main").style.width = "600px"; return all.every(one =>
            one.getBoundingClientRect().right <= one.closest("figure").getBoundingClientRect().right) }"""
        assert tab.locator("figure canvas").evaluate_all(inside)
        assert tab.locator("details td").first.is_visible()  # folded on the screen only
        browser.close()
    assert wrong == []
