"""Scores against references: by hand, and by the libraries over a whole corpus."""

import pytest

from swift_toolkit.evaluation.questions import QuestionSet
from swift_toolkit.evaluation.scores import ScoreBoard, Scorer, exact_match, tokens
from swift_toolkit.evaluation.summary import Summary, score_table
from swift_toolkit.inference.exchange import Answer


def test_characters_of_chinese_are_words():
    assert tokens("Pico 是小助手。Version 2!") == ["pico", "是", "小", "助", "手", "version", "2"]


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Paris.", "paris", True),
        (" The  end\n", "the end", True),
        ("北京。", "北京", True),
        ("ＡＢＣ", "abc", True),
        ("Paris, France", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_exact_match(answer, reference, same):
    assert exact_match(answer, reference) is same


def test_rouge_l_by_hand():
    scorer = Scorer()
    # longest common subsequence "the cat sat": 3 of 4 words of the answer, 3 of 6 of the reference: F = 0.6
    score = scorer.score("the cat sat down", "the big cat sat over there")
    assert score.rouge_l == pytest.approx(60)
    # 小助手 out of 小助手 and of 我是小助手: P = 1, R = 3/5, F = 0.75
    assert scorer.score("小助手", "我是小助手").rouge_l == pytest.approx(75)


def test_an_equal_answer_has_full_marks():
    scorer = Scorer()
    for text in ("I am a small model, trained today.", "我是一个小助手。"):
        assert scorer.score(text, text).as_dict() == {"exact_match": 100, "rouge_l": 100, "bleu": 100}


def test_an_empty_answer_has_none():
    assert Scorer().score("", "我是小助手").as_dict() == {"exact_match": 0, "rouge_l": 0, "bleu": 0}


def test_bleu_is_that_of_the_corpus():
    import sacrebleu

    pairs = [
        ("the cat sat on the mat", "the cat is on the mat"),
        ("hello there my good old friend", "hello there good old friend of mine"),
        ("it rains a lot in autumn here", "it rains a lot in the autumn here"),
    ]
    scorer, board = Scorer(), ScoreBoard()
    for answer, reference in pairs:
        board.add("tuned", None, scorer.score(answer, reference))
    expected = sacrebleu.corpus_bleu([answer for answer, _ in pairs], [[reference for _, reference in pairs]])
    assert board.means()["all"]["tuned"]["bleu"] == round(expected.score, 2)


def summed(rows, answers):
    summary = Summary(("tuned", "base"), Scorer())
    results = []
    for question, (tuned, base) in zip(QuestionSet(rows), answers, strict=True):
        results.append(summary.add(question, {"tuned": tuned, "base": base}))
    return results, summary.figures()


def test_scores_by_category_and_the_difference():
    rows = [
        {"question": "1?", "reference": "one", "category": "numbers"},
        {"question": "2?", "reference": "two", "category": "numbers"},
        {"question": "name?", "reference": "Pico", "category": "self"},
        "no reference",
    ]
    answers = [
        (Answer("one"), Answer("1")),
        (Answer("three"), Answer("Two.")),
        (Answer("Pico"), Answer("no")),
    ]
    results, summary = summed(rows, [*answers, (Answer("x"), Answer("y"))])
    scores = summary["scores"]
    assert [scores[name]["count"] for name in ("all", "numbers", "self")] == [3, 2, 1]
    assert scores["numbers"]["tuned"]["exact_match"] == scores["numbers"]["base"]["exact_match"] == 50
    assert scores["self"]["difference"]["exact_match"] == 100
    assert "scores" not in results[3]
    heading, table = score_table(scores)
    assert heading == ["category", "count", "score", "base", "tuned", "difference"]
    assert ["self", "1", "exact match", "0.0", "100.0", "+100.0"] in table


def test_a_question_that_one_side_failed_is_scored_for_neither():
    rows = [{"question": "1?", "reference": "one"}, {"question": "2?", "reference": "two"}]
    failed = Answer(None, error="ValueError: too long")
    results, summary = summed(rows, [(Answer("one"), failed), (Answer("two"), Answer("two"))])
    assert summary["scores"]["all"]["count"] == 1
    assert (summary["asked"], summary["answered"], summary["failed"]) == (2, 1, 1)
    assert results[0]["base"]["error"] == "ValueError: too long"


def test_latencies_and_speed():
    summary = Summary(("tuned",), None)
    for index, question in enumerate(QuestionSet([str(index) for index in range(20)]), start=1):
        summary.add(question, {"tuned": Answer("x", "stop", 3, 10, seconds=index, share=2)})
    figures = summary.figures()
    assert (figures["latency_p50"], figures["latency_p95"]) == (10, 19)
    assert (figures["tokens_in"], figures["tokens_out"], figures["seconds"]) == (60, 200, 40)
    assert figures["tokens_per_second"] == 5
