"""Duplicates and leaks apart from blanks and case, and likely secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swift_toolkit.dataset.rows.secrets import secret_in
from swift_toolkit.dataset.scan import near, pool
from swift_toolkit.dataset.verify import verify


def row(question: str, answer: str = "It is two, my friend.", **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **more}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def test_rows_that_differ_in_blanks_and_case(tmp_path: Path) -> None:
    train = write(
        tmp_path / "a.jsonl",
        row("What is two?"), row("what  is two?\n"), row("What is two?"), row("What is 2?"), {"messages": []},
    )  # fmt: skip
    val = write(tmp_path / "v.jsonl", row("WHAT IS TWO?"), row("What is two?"), row("What is four?"))
    report = verify([train], [val])
    assert list(map(str, report.groups["near-duplicate"].examples)) == [
        f"{train}: row 2: is the same as row 1 except for spaces and case. Remove them, unless the extra weight is intended."
    ]
    assert list(map(str, report.groups["near-leak"].examples)) == [
        f"{val}: row 1: is the same as row 1 of {train} except for spaces and case. Remove them from one of the two."
    ]
    assert report.groups["leak"].count == 1  # the exact one


def test_only_the_first_rows_of_a_file_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swift_toolkit.dataset.scan import rows as scan_rows

    monkeypatch.setattr(scan_rows, "NEAR_ROWS", 3)
    file = write(tmp_path / "a.jsonl", row("One?"), row("two?"), row("Two?"), row("TWO?"))
    assert verify([file]).groups["near-duplicate"].count == 1
    assert verify([file], closely=True).groups["near-duplicate"].count == 2
    assert near.NEAR_ROWS >= 10_000


def test_long_rows_are_compared_up_to_a_number_of_characters() -> None:
    sketch = near.Sketch(left=5, characters=10)
    sketch.take([("a" * 8,)])
    assert sketch.left == 4
    sketch.take([("A" * 8,)])  # the block with the last character is checked whole
    sketch.take([("AKIAABCDEFGHIJKLMNOP",)])
    assert len(list(near.pairs([sketch]))) == 1 and sketch.secrets == []


def test_every_row_of_a_file_in_parts_can_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(f"Question {number}?") for number in range(40_000)]
    rows[33_333] = row("question 20000 ?")
    rows[39_999] = row("My key is AKIAABCDEFGHIJKLMNOP.")
    file = write(tmp_path / "a.jsonl", *rows)
    assert "near-duplicate" not in verify([file]).groups
    for alone in (1 << 60, 1):  # in one process, and in parts on all cores
        monkeypatch.setattr(pool, "ALONE_BYTES", alone)
        groups = verify([file], closely=True).groups
        (near_duplicate,), (secret,) = groups["near-duplicate"].examples, groups["secret"].examples
        assert "row 33,334: is the same as row 20,001 except for spaces and case" in str(near_duplicate)
        assert "row 40,000: holds a key of AWS" in str(secret)


def test_parts_of_a_file_add_up() -> None:
    first, later = near.Sketch(5), near.Sketch(5)
    first.take([("Hello",), ("b",)])
    later.take([("hello ",), ("AKIAABCDEFGHIJKLMNOP",)])
    first.add(later)
    ((one, two),) = near.pairs([first])
    assert (one.row, two.row, first.secrets) == (0, 2, [near.Secret(3, 'a key of AWS ("AKIAAB...")')])


SECRETS = [
    "-----BEGIN RSA PRIVATE KEY-----",
    "sk-proj-abcdefghij1234567890ABCD",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_" + "a1B2" * 9,
    "xoxb-123456789012-abcdef",
    "AIza" + "Sy0_-" * 6 + "abcde",
    "hf_" + "aB" * 17,
]
HARMLESS = [
    "sk-learn-is-a-library-for-python-users",
    "-----BEGIN CERTIFICATE-----",
    "AKIA",
    "ghp_short",
    "task-1234567890123456789012345",
    "the github page and xox",
]


def test_a_secret_after_something_similar_is_found() -> None:
    assert secret_in(f"task-1, sk-learn, disk-{SECRETS[1]}: {SECRETS[1]}") == (
        'a key of OpenAI or Anthropic ("sk-pro...")'
    )


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_found_and_never_shown_whole(secret: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", row("Why?"), row(f"My key is {secret}, keep it."))
    group = verify([file]).groups["secret"]
    assert group.count == 1 and str(group.examples[0]).startswith(f"{file}: row 2: holds a")
    assert secret[:6] in str(group.examples[0]) and secret[:12] not in str(group.examples[0])


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_a_little_like_a_secret(text: str) -> None:
    assert secret_in(text) == ""
