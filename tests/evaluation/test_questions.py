"""Sets of questions: what a question may be, what is wrong with a set, and that size costs no memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from swift_toolkit.config.tasks import TaskOutput
from swift_toolkit.evaluation.questions import QuestionSet
from swift_toolkit.problems import RequestError

ROOT = Path(__file__).resolve().parents[2]


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return path


def drawn(path):
    from PIL import Image

    Image.new("RGB", (2, 2)).save(path)
    return path


def refusal(source):
    with pytest.raises(RequestError) as caught:
        QuestionSet(source).check()
    return [str(problem) for problem in caught.value.problems]


def only(row):
    questions = list(QuestionSet([row]))
    assert len(questions) == 1
    return questions[0]


# --- what a question may be ---------------------------------------------------------------------------------


def test_a_text_is_a_question():
    question = only("Who are you?")
    assert question.messages == ({"role": "user", "content": "Who are you?"},)
    assert (question.id, question.reference, question.category) == ("1", None, None)


def test_an_object_has_all_keys(tmp_path):
    image = drawn(tmp_path / "cat.png")
    question = only(
        {
            "id": 7,
            "question": "What is this?",
            "system": "Be brief.",
            "reference": "A cat.",
            "category": "pictures",
            "images": [str(image)],
        }
    )
    assert question.id == "7"
    assert question.messages[0] == {"role": "system", "content": "Be brief."}
    assert question.text == "What is this?"
    assert (question.reference, question.category) == ("A cat.", "pictures")
    assert question.extra == {"images": [str(image)]}


def test_messages_of_several_turns_are_asked_up_to_the_last_user():
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Your name?"},
    ]
    assert only({"messages": turns}).messages == tuple(turns)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"query": "2+2?", "response": "4"},
        {"prompt": "2+2?", "completion": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"question": "2+2?", "answer": "4"},
    ],
)
def test_the_answer_of_a_training_row_is_the_reference(row):
    question = only(row)
    assert (question.text, question.reference) == ("2+2?", "4")


def test_a_reference_given_wins_over_the_answer():
    assert only({"query": "2+2?", "response": "4", "reference": "four"}).reference == "four"


def test_history_comes_before_the_question():
    question = only({"query": "And 3?", "history": [["2+2?", "4"]], "response": "7"})
    assert [message["content"] for message in question.messages] == ["2+2?", "4", "And 3?"]


def test_json_jsonl_and_csv_give_the_same_questions(tmp_path):
    rows = [{"id": "a", "question": "One, two?", "reference": "three"}, {"id": "b", "question": "你好"}]
    as_json = written(tmp_path, "q.json", rows)
    as_jsonl = written(tmp_path, "q.jsonl", "\n".join(json.dumps(row) for row in rows))
    as_csv = written(tmp_path, "q.csv", 'id,question,reference\na,"One, two?",three\nb,你好,\n')
    assert list(QuestionSet(as_json)) == list(QuestionSet(as_jsonl)) == list(QuestionSet(as_csv))


def test_an_image_is_found_beside_the_questions(tmp_path):
    drawn(tmp_path / "cat.png")
    path = written(tmp_path, "q.json", [{"question": "What?", "images": "cat.png"}])
    (question,) = QuestionSet(path)
    assert question.extra["images"] == [str(tmp_path / "cat.png")]


def test_the_overview_counts(tmp_path):
    rows = ["a", {"question": "b", "reference": "c", "category": "x"}, {"question": "d", "category": "x"}]
    overview = QuestionSet(written(tmp_path, "q.json", rows)).check()
    assert (overview.count, overview.references, overview.media, overview.categories) == (3, 1, 0, {"x": 2})
    assert overview.digest == QuestionSet(rows).check().digest
    assert overview.digest != QuestionSet(rows[:2]).check().digest


# --- what is wrong ------------------------------------------------------------------------------------------


def test_everything_wrong_with_a_file_is_said_at_once(tmp_path):
    written(tmp_path, "text.png", "no picture")
    path = written(
        tmp_path,
        "q.json",
        '["fine",\n 3,\n {"question": "a", "refrence": "b"},\n {"system": "x"},\n {"question": ""},\n'
        ' {"messages": [{"role": "usr", "content": "x"}]},\n {"question": "a", "images": ["no.png"]},\n'
        ' {"id": "k", "question": "a"},\n {"id": "k", "question": "b"},\n'
        ' {"question": "a", "images": ["text.png"]}]',
    )
    assert refusal(path) == [
        f'{path}:2: is neither text nor an object. Write text or {{"question": ...}}.',
        f'{path}:3: "refrence" is not a key of a question. Did you mean "reference"?',
        f'{path}:4: no known format has the columns "system". Use "messages", "query" and "response", or '
        '"instruction", "input" and "output".',
        f'{path}:5: has no question. Write a "question", or "messages" with a turn from "user".',
        f'{path}:6: message 1 has the unknown role "usr". Did you mean "user"?',
        f'{path}:7: "images" names no.png, which does not exist. Correct the path.',
        f'{path}:9: the id "k" is already used in line 8. Use unique ids.',
        f'{path}:10: "{tmp_path}/text.png" is not a readable image. Replace the file.',
    ]


def test_many_problems_are_counted():
    found = refusal([3] * 30)
    assert len(found) == 21
    assert found[-1] == "questions: has 10 more problems."


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.json", "[]", "does not contain any questions"),
        ("q.jsonl", "", "does not contain any questions"),
        ("q.txtx", "a", "is not a data file"),
        ("q.jsonl", '{"question": "a"}\n{"question": \n', ":2: "),
    ],
)
def test_files_that_hold_no_questions(tmp_path, name, content, said):
    (message,) = refusal(written(tmp_path, name, content))
    assert said in message


def test_a_missing_file_and_a_directory(tmp_path):
    assert refusal(tmp_path / "no.json") == [f"{tmp_path}/no.json: does not exist."]
    assert refusal(tmp_path) == [f"{tmp_path}: is a directory, not a questions file."]


# --- its size does not matter -------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from swift_toolkit.evaluation.questions import QuestionSet
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
QuestionSet(sys.argv[1]).check()
small = peak()
overview = QuestionSet(sys.argv[2]).check()
count = sum(1 for _ in QuestionSet(sys.argv[2]))
print(overview.count, count, peak() - small)
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_hundred_thousand_questions_are_streamed(tmp_path, suffix):
    row = {
        "question": "How far is it from here to there, and what lies between? " * 4,
        "reference": "x" * 200,
    }
    files = []
    for count in (1_000, 100_000):
        path = tmp_path / f"{count}{suffix}"
        lines = [json.dumps(row)] * count
        path.write_text("\n".join(lines) if suffix == ".jsonl" else "[" + ",\n".join(lines) + "]")
        files.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *files], cwd=ROOT, capture_output=True, text=True, check=True
    )
    checked, read, grown = map(int, done.stdout.split())
    assert checked == read == 100_000
    assert grown < 20_000  # KiB; the file has 50 MB


def test_the_shipped_set():
    questions = list(QuestionSet(ROOT / "test_questions.json"))
    QuestionSet(ROOT / "test_questions.json").check()
    assert len(questions) >= 20
    assert len({question.category for question in questions}) >= 5
    assert all(question.category for question in questions)
    chinese = [
        question for question in questions if any("\u4e00" <= letter <= "\u9fff" for letter in question.text)
    ]
    assert len(chinese) >= 8 and len(questions) - len(chinese) >= 8
    assert sum(question.reference is not None for question in questions) >= 8
    assert sum(len(question.messages) > 1 for question in questions) >= 3


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


SCORED = {
    "class": (
        [
            {"messages": [user("good"), {"role": "assistant", "content": "so"}], "label": 1},
            {"messages": [user("late")], "label": [0, 2]},
            {"messages": [user("fine")], "label": 3.5},
            "text",
        ],
        [("good so", "1", None), ("late", "0, 2", None), ("fine", None, None), ("text", None, None)],
    ),
    "reward": (
        [
            {"messages": [user("2+2"), {"role": "assistant", "content": "4"}], "rejected_response": "5"},
            {"messages": [user("1+1"), {"role": "assistant", "content": "2"}]},
        ],
        [("2+2 4", None, "preferred"), ("2+2 5", None, "rejected"), ("1+1 2", None, None)],
    ),
    "score": (
        [
            {
                "messages": [user("q")],
                "positive_messages": [[{"role": "assistant", "content": "a"}]],
                "negative_messages": [[{"role": "assistant", "content": name}] for name in "bc"],
            },
            {"messages": [user("r"), {"role": "assistant", "content": "d"}]},
        ],
        [("q a", None, "matching"), ("q b", None, "not matching"), ("q c", None, "not matching"), ("r d", None, None)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("output", SCORED)
def test_what_scores_or_classifies_gets_the_whole_conversation(output: TaskOutput) -> None:
    rows, expected = SCORED[output]
    asked = QuestionSet(rows, output=output)
    said = [(" ".join(one["content"] for one in q.messages), q.reference, q.category) for q in asked]
    assert said == expected
    assert [question.index for question in asked] == list(range(len(expected)))
    assert asked.check().count == len(expected)


def test_parts_of_a_row_have_their_own_ids() -> None:
    row = {
        "id": "x",
        "messages": [user("q"), {"role": "assistant", "content": "a"}],
        "rejected_response": "b",
    }
    asked = QuestionSet([row], output="reward")
    asked.check()
    assert [question.id for question in asked] == ["x.1", "x.2"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "reward",
            '1: has no answer to score. End "messages" with the answer to score, a turn from "assistant".',
        ),
        (
            "score",
            '1: has no document to score. Write "positive_messages", or end "messages" with the document, '
            'a turn from "assistant".',
        ),
    ],
)
def test_what_has_nothing_to_score(output: TaskOutput, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        QuestionSet(["Hi?"], output=output).check()
    assert message in str(caught.value)
