"""The answers file: kept through a kill, never mixed, whole at the end."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swift_toolkit.evaluation.answers import open_answers, read_results
from swift_toolkit.evaluation.questions import QuestionSet
from swift_toolkit.evaluation.results import Meta
from swift_toolkit.inference.exchange import Answer
from swift_toolkit.problems import RequestError, RunError

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ["a", "b", "c", "d"]
SIDES = ("tuned", "base")
META = {**dict.fromkeys(Meta.__required_keys__), "checkpoint": "x"}


def opened(tmp_path, run=1, output="out.json", sides=SIDES, count=4):
    place = None if output is None else tmp_path / output
    return open_answers(place, tmp_path, {"run": run}, sides, count)


def answer(text, **more):
    return Answer(text, "stop", 3, 5, 0.5, 0.5, **more)


def fill(answers):
    answers.keep_meta(META)
    for index in (2, 0, 3, 1):
        for side in answers.sides:
            answers.append(index, side, answer(f"{side} {index}"))


def finish(answers):
    results = (
        {"id": question.id, **{side: given.text for side, given in found.items()}}
        for question, found in answers.pairs(QuestionSet(QUESTIONS))
    )
    answers.finish(results, lambda: {"asked": 4})


def test_answers_come_in_the_order_of_the_questions(tmp_path):
    answers = opened(tmp_path)
    fill(answers)
    assert (tmp_path / "out.json.partial").exists()
    finish(answers)
    meta, summary, results = read_results(tmp_path / "out.json")
    assert meta["checkpoint"] == "x" and summary == {"asked": 4}
    expected = [{"id": str(i + 1), "tuned": f"tuned {i}", "base": f"base {i}"} for i in range(4)]
    assert list(results) == expected
    assert json.loads((tmp_path / "out.json").read_text())["results"] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_what_is_there_is_not_missing_after_a_stop(tmp_path):
    first = opened(tmp_path)
    first.keep_meta(META)
    first.append(1, "tuned", answer("one"))
    first.append(3, "base", answer(None, error="ValueError: no"))
    first.close()
    again = opened(tmp_path)
    assert [index for index in range(4) if not again.missing("tuned", index)] == [1]
    assert [index for index in range(4) if not again.missing("base", index)] == [3]
    assert (again.count_of("tuned"), again.meta) == (1, META)
    assert again.answer(3, "base").error == "ValueError: no"


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_off_by_a_kill_is_asked_again(tmp_path, cut):
    first = opened(tmp_path)
    first.append(0, "tuned", answer("zero"))
    first.append(1, "tuned", answer("一"))
    first.close()
    partial = tmp_path / "out.json.partial"
    partial.write_bytes(partial.read_bytes()[:-cut])
    again = opened(tmp_path)
    assert not again.missing("tuned", 0) and again.missing("tuned", 1)
    again.append(1, "tuned", answer("one"))
    again.close()
    last = opened(tmp_path)
    assert [last.answer(index, "tuned").text for index in (0, 1)] == ["zero", "one"]


def damage(path, number, line):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = line(lines[number])
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    "line",
    [
        lambda old: bytes(len(old) - 1) + b"\n",  # zeros
        lambda old: old[:20] + bytes(40) + old[60:],
        lambda old: old[: len(old) // 2] + b"\n",
        lambda old: b"[1, 2]\n",
        lambda old: b"null\n",
        lambda old: b'{"index": -1, "side": "tuned", "text": "x"}\n',
        lambda old: b'{"index": 99, "side": "tuned", "text": "x"}\n',
        lambda old: b'{"index": 1, "side": "nobody", "text": "x"}\n',
        lambda old: b'{"index": 1, "side": "tuned", "no": "x"}\n',
        lambda old: b'{"meta": 5}\n',
        lambda old: b'{"meta": {"checkpoint": "x"}}\n',
        lambda old: b"\xff\xfe\n",
    ],
)
def test_a_damaged_line_is_asked_again(tmp_path, line):
    first = opened(tmp_path)
    for index in range(3):
        first.append(index, "tuned", answer(f"answer {index}"))
    first.close()
    damage(tmp_path / "out.json.partial", 2, line)
    again = opened(tmp_path)
    assert [index for index in range(4) if again.missing("tuned", index)] == [1, 3]
    assert (again.damaged, again.count_of("tuned")) == (1, 2)
    assert [again.answer(index, "tuned").text for index in (0, 2)] == ["answer 0", "answer 2"]
    fill(again)
    finish(again)
    assert len(list(read_results(again.output)[2])) == 4


def test_a_line_behind_the_zeros_of_a_power_cut_counts(tmp_path):
    first = opened(tmp_path)
    first.append(0, "tuned", answer("zero"))
    first.append(1, "tuned", answer("one"))
    first.close()
    damage(tmp_path / "out.json.partial", 2, lambda old: bytes(4096) + old)
    again = opened(tmp_path)
    assert again.answer(1, "tuned").text == "one" and not again.damaged


def test_a_finished_file_that_is_damaged_is_kept_aside(tmp_path):
    first = opened(tmp_path)
    fill(first)
    finish(first)
    damage(tmp_path / "out.json", -3, lambda old: bytes(len(old) - 1) + b"\n")
    again = opened(tmp_path)
    assert not again.finished and again.damaged == 1
    assert again.output == tmp_path / "out.json" and (tmp_path / "out.json.damaged").exists()


def test_a_kill_before_the_first_line_is_done(tmp_path):
    (tmp_path / "out.json.partial").write_bytes(b'{"format": 1, "finger')
    answers = opened(tmp_path)
    fill(answers)
    finish(answers)
    assert answers.output == tmp_path / "out.json"


def test_another_run_gets_another_file(tmp_path):
    first = opened(tmp_path, run=1)
    fill(first)
    finish(first)
    second = opened(tmp_path, run=2)
    assert second.output.name == "out-2.json"
    second.append(0, "tuned", answer("zero"))
    second.close()
    assert opened(tmp_path, run=3).output.name == "out-3.json"
    assert opened(tmp_path, run=2).count_of("tuned") == 1
    assert opened(tmp_path, run=1).finished


def test_a_foreign_file_is_never_overwritten(tmp_path):
    (tmp_path / "out.json").write_text("my notes")
    assert opened(tmp_path).output.name == "out-2.json"
    assert (tmp_path / "out.json").read_text() == "my notes"


def test_without_an_output_the_unfinished_run_is_found(tmp_path):
    first = opened(tmp_path, output=None)
    first.append(0, "tuned", answer("zero"))
    first.close()
    time.sleep(1.1)  # names are by the second
    assert opened(tmp_path, output=None).output == first.output
    other = opened(tmp_path, run=2, output=None)
    assert other.output != first.output


def test_without_an_output_a_finished_run_is_done_again(tmp_path):
    first = opened(tmp_path, output=None)
    fill(first)
    finish(first)
    assert opened(tmp_path, output=None).output != first.output


def test_killed_between_the_last_two_steps(tmp_path):
    """The finished file is there, the partial one was not yet removed."""
    answers = opened(tmp_path, output=None)
    fill(answers)
    partial = answers.partial.read_bytes()
    finish(answers)
    answers.partial.write_bytes(partial)
    again = opened(tmp_path, output=None)
    assert again.finished and again.output == answers.output
    assert not answers.partial.exists()


def test_a_write_that_fails_leaves_nothing_half_done(tmp_path):
    answers = opened(tmp_path)
    fill(answers)

    def broken():
        yield {"id": "1"}
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"Cannot write .*out\.json: No space left on device"):
        answers.finish(broken(), dict)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json.partial"]
    answers.close()
    assert opened(tmp_path).count_of("base") == 4


FILLING = """
import resource, sys
from pathlib import Path
from swift_toolkit.evaluation.answers import Answer, open_answers
from swift_toolkit.problems import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
place = Path(sys.argv[1])
answers = open_answers(place, place.parent, {"run": 1}, ("tuned",), 100)
try:
    for index in range(100):
        answers.append(index, "tuned", Answer("x" * 100, "stop"))
except RunError as error:
    print(answers.count_of("tuned"), error)
answers.close()
"""


def test_a_disk_that_takes_no_more_is_told_and_what_was_kept_stays(tmp_path):
    place = tmp_path / "out.json"
    command = [sys.executable, "-c", FILLING, str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    kept, told = done.stdout.strip().split(" ", 1)
    assert told == f"Cannot write {place}.partial: File too large."
    again = opened(tmp_path, sides=("tuned",), count=100)
    assert again.count_of("tuned") == int(kept) > 5


def _hold(place, held, release):
    answers = open_answers(place, place.parent, {"run": 1}, SIDES, 4)
    held.set()
    release.wait(20)
    answers.close()


def test_two_at_once_are_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "out.json", held, release))
    process.start()
    try:
        assert held.wait(20)
        with pytest.raises(RequestError) as caught:
            opened(tmp_path)
    finally:
        release.set()
        process.join()
    assert str(caught.value) == (
        f"{tmp_path}/out.json: is being written by another run of this command. Wait for that run, or stop it."
    )


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError) as caught:
        opened(tmp_path, output="file/out.json")
    assert str(caught.value) == (
        f"{tmp_path}/file/out.json: cannot be written: file exists. Choose another file with --output."
    )


WRITER = """
import sys, time
from pathlib import Path
from swift_toolkit.evaluation.answers import Answer, open_answers
place = Path(sys.argv[1])
answers = open_answers(place, place.parent, {"run": 1}, ("tuned",), 100_000)
start = answers.count_of("tuned")
assert all(answers.answer(i, "tuned").text == f"answer {i}" for i in range(start))
print("ready", flush=True)
for index in range(start, 100_000):
    answers.append(index, "tuned", Answer(f"answer {index}", "stop"))
    print(index, flush=True)
"""


def test_kill_minus_nine_loses_nothing(tmp_path):
    """Ten kills at any moment: every answer that was reported as kept is there, none twice."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out.json")]
    reported = -1
    for turn in range(10):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.01 + turn * 0.007)
            os.kill(process.pid, signal.SIGKILL)
            lines = [line for line in process.stdout if line.endswith("\n")]
        reported = max(reported, int(lines[-1]) if lines else -1)
    lines = (tmp_path / "out.json.partial").read_text().splitlines()
    kept = [json.loads(line)["index"] for line in lines[1:] if line.endswith("}")]
    assert kept == list(range(len(kept)))
    assert len(kept) > reported > 100


MEASURE = """
import resource, sys
from pathlib import Path
from swift_toolkit.evaluation.answers import Answer, open_answers, read_results
from swift_toolkit.evaluation.questions import QuestionSet
from swift_toolkit.evaluation.summary import Summary
def run(count):
    folder = Path(sys.argv[1])
    place = folder / f"{count}.json"
    lines = folder / f"{count}.jsonl"
    with lines.open("w") as file:
        for index in range(count):
            file.write('{"question": "number %d?"}\\n' % index)
    answers = open_answers(place, folder, {"run": count}, ("tuned",), count)
    answers.keep_meta({})
    for index in range(count):
        answers.append(index, "tuned", Answer("x" * 500, "stop", 5, 7, 0.1, 0.1))
    summary = Summary(("tuned",), None)
    answers.finish((summary.add(*pair) for pair in answers.pairs(QuestionSet(lines))), summary.figures)
    assert sum(1 for _ in read_results(place)[2]) == summary.figures()["answered"] == count
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = run(1_000)
print(run(100_000) - small)
"""


def test_memory_stays_flat(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20_000  # KiB; the answers have 60 MB
