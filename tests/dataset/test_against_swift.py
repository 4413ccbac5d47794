"""The promise of `verify`, held against the real ms-swift on generated rows.

A row without an error is kept by `load_dataset` and its answer is learned; of a row with an error ms-swift deletes it,
fails, or learns something other than it says. Each example is one file of a few rows of one format.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from swift_toolkit.dataset.copies import prepare_data
from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.rows.messages import LOSS_KEYS
from swift_toolkit.dataset.scan.part import find_part
from swift_toolkit.dataset.scan.rows import scan_part
from swift_toolkit.dataset.verify import verify
from swift_toolkit.machine import msswift

pytestmark = pytest.mark.slow

Row = dict[str, Any]

LEARNS_ELSE = {"no-question", "no-answer", "content", "rejected", "label", "pairs"}
"""Kinds of error of rows that ms-swift keeps, but that train nothing or not what they say."""

LEARNS_MARKS = {"order"}
"""The same in pretraining: with a tool's answer ms-swift fails, or adds the marks of a chat to the plain text."""


class Swift:
    """ms-swift's own reading and encoding of a file.

    Args:
        model: directory with a tokenizer.
        cache: where its data sets are cached.
    """

    def __init__(self, model: Path, cache: Path) -> None:
        os.environ |= {
            "MODELSCOPE_CACHE": str(cache / "ms"),
            "HF_HOME": str(cache / "hf"),
            "HF_HUB_OFFLINE": "1",
        }
        msswift.template_api()  # imports ms-swift in half the time
        import datasets
        from swift import get_template, load_dataset
        from swift.model import get_processor
        from swift.utils import get_logger

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(50)
        get_logger().setLevel(50)
        self.load_dataset = load_dataset
        self.templates: dict[str, Any] = {}
        tasks: dict[str, dict[str, Any]] = {
            "sft": {},
            "pt": {"use_chat_template": False, "loss_scale": "all"},
            "dpo": {"mode": "rlhf"},
            "kto": {"mode": "kto"},
            "seq_cls": {
                "task_type": "seq_cls",
                "num_labels": 3,
                "problem_type": "single_label_classification",
            },
            "embedding": {"task_type": "embedding"},
        }
        for task, options in tasks.items():
            mode = options.pop("mode", "train")
            head = {
                key: options.pop(key) for key in ("task_type", "num_labels", "problem_type") if key in options
            }
            processor = get_processor(str(model), model_type="llama", **head)
            template = get_template(processor, template_type="chatml", agent_template="hermes", **options)
            template.set_mode(mode)
            self.templates[task] = template

    def learned(self, entries: list[str], task: str, **options: Any) -> dict[str, str]:
        """What is learned of each row that is kept, by the row's channel; "" where the rows have no labels."""
        template = self.templates[task]
        try:
            rows, _ = self.load_dataset(entries, load_from_cache_file=False, num_proc=None, **options)
        except Exception:
            return {}
        out = {}
        for row in rows:
            try:
                encoded = template.encode(dict(row), return_length=True)
            except Exception:
                continue
            prefix = "chosen_" if task in {"dpo", "kto"} else ""
            tokens, labels = encoded.get(f"{prefix}input_ids"), encoded.get(f"{prefix}labels")
            if tokens is not None and isinstance(labels, list):
                tokens = [token for token, label in zip(tokens, labels, strict=True) if label != -100]
                out[row["channel"]] = template.tokenizer.decode(tokens)
            else:
                out[row["channel"]] = ""
        return out


@pytest.fixture(scope="module", autouse=True)
def _the_same_examples_everywhere() -> Iterator[None]:
    """Hypothesis also draws the constants of all modules that happen to be imported: with them, what is generated
    would depend on which tests ran before and on where the packages lie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "_get_local_constants", providers.Constants)
        providers.CONSTANTS_CACHE.cache.clear()
        yield
        providers.CONSTANTS_CACHE.cache.clear()


@pytest.fixture(scope="session")
def swift(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    before = dict(os.environ)
    yield Swift(tiny_model, tmp_path_factory.mktemp("cache"))
    os.environ.clear()
    os.environ.update(before)


# Rows, mostly right, sometimes not

texts = st.text("abcXYZ 0123456789.,:;!?'\"\\/{}[]()<>|#*_-\n\té ß你好，。—“”", min_size=1, max_size=30)
odd_texts = st.sampled_from(
    ["", " ", "\n", "a\nb", "<think>", "12", "true", "[1]", "{}", "你好", "\u2028", "'", '"']
)
contents = st.one_of(texts, texts, texts, odd_texts)
odd_contents = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.booleans(),
    st.just([]),
    st.lists(st.builds(lambda text: {"type": "text", "text": text}, contents), min_size=1, max_size=2),
    st.just([{"text": "no type"}]),
    st.just({"answer": 1}),
    st.just(["text"]),
)


def mostly(
    good: st.SearchStrategy[Any], odd: st.SearchStrategy[Any], share: int = 12
) -> st.SearchStrategy[Any]:
    return st.integers(0, share).flatmap(lambda n: odd if n == 0 else good)


roles = st.sampled_from(["user", "assistant", "human", "gpt", "bot"])
odd_roles = st.sampled_from(["system", "User", "tool", "tool_call", "observation", "model", None, 5, ""])
calls = st.sampled_from(
    ['{"name": "f", "arguments": {}}', {"name": "f", "arguments": {"x": 1}}, "f()", {"x": 1}]
)


@st.composite
def turns(draw: st.DrawFn, keys: tuple[str, str]) -> list[Any]:
    """A conversation, by and large of the right form."""
    role_key, content_key = keys
    out: list[Any] = []
    if draw(st.booleans()):
        out.append({role_key: "system", content_key: draw(mostly(contents, odd_contents))})
    for _ in range(draw(st.integers(1, 2))):
        user, assistant = draw(st.sampled_from([("user", "assistant"), ("human", "gpt")]))
        out.append(
            {
                role_key: draw(mostly(st.just(user), odd_roles)),
                content_key: draw(mostly(contents, odd_contents)),
            }
        )
        if draw(st.integers(0, 5)) == 0:
            out.append({role_key: "tool_call", content_key: draw(calls)})
            out.append({role_key: "tool_response", content_key: draw(mostly(contents, odd_contents))})
        out.append(
            {
                role_key: draw(mostly(st.just(assistant), roles)),
                content_key: draw(mostly(contents, odd_contents)),
            }
        )
    change = draw(st.integers(0, 14))
    if change == 0:
        out.pop(draw(st.integers(0, len(out) - 1)))
    elif change == 1:
        out.append(draw(st.sampled_from([None, "text", {}, {role_key: "user"}, out[0]])))
    elif change == 2:
        out[-1] = {**out[-1], draw(st.sampled_from(["loss", "name", "weight", "from"])): draw(st.booleans())}
    return out


@st.composite
def files(draw: st.DrawFn, extra: st.SearchStrategy[Row]) -> list[Row]:
    """A few rows of one format, each with a channel by which it is known."""
    family = draw(st.sampled_from(["messages", "conversations", "query", "alpaca", "pairs"]))
    rows = []
    for at in range(draw(st.integers(1, 8))):
        if family in {"messages", "conversations"}:
            keys = ("role", "content") if family == "messages" else ("from", "value")
            row: Row = {family: draw(mostly(turns(keys), st.sampled_from([None, [], "text", {}, 5]), 20))}
            if draw(st.integers(0, 3)) == 0:
                row["system"] = draw(mostly(contents, odd_contents))
        elif family == "pairs":
            pair = st.fixed_dictionaries({"human": mostly(contents, odd_contents), "assistant": contents})
            row = {"conversation": draw(st.lists(pair, min_size=1, max_size=2))}
        elif family == "query":
            row = {
                "query": draw(mostly(contents, odd_contents)),
                "response": draw(mostly(contents, odd_contents)),
            }
            if draw(st.integers(0, 3)) == 0:
                row["history"] = draw(st.lists(st.lists(contents, min_size=2, max_size=2), max_size=2))
        else:
            texts_or_none = mostly(contents, odd_contents)
            row = {name: draw(texts_or_none) for name in ("instruction", "input", "output")}
        rows.append(row | draw(extra) | {"channel": f"row {at}"})
    return rows


class Verdicts:
    """Takes the rows of a scan and keeps the kinds of error of each bad one, by its channel."""

    wants_rows = False

    def __init__(self) -> None:
        self.bad: dict[str, set[str]] = {}

    def lines(self, chunk: bytes) -> None:
        pass

    def row(self, value: Any, row: Row | None, flaws: list[Flaw], line: int | None, number: int) -> None:
        if kinds := {flaw.kind for flaw in flaws if flaw.is_error}:
            self.bad[f"row {number - 1}"] = kinds


QUESTIONS = {"user", "human", "tool", "tool_response", "function_response", "observation", "observations"}


def answer_of(row: Row) -> str | None:
    """The text of the last answer, where it is plain text."""
    for name in ("chosen", "messages", "conversations", "conversation", "completion"):
        value = row.get(name)
        last = value[-1] if isinstance(value, list) and value else value
        if isinstance(last, dict):
            answer = last.get("content", last.get("value", last.get("assistant")))
            is_learned = last.get("loss") is not False and last.get("weight") not in (0, False)
            is_learned = is_learned and last.get("role", last.get("from")) not in QUESTIONS
            return answer if isinstance(answer, str) and is_learned else None
    answer = row.get("chosen", row.get("output", row.get("response")))
    return answer if isinstance(answer, str) else None


def check(swift: Swift, path: Path, rows: list[Row], task: str, **options: Any) -> None:
    """Hold the verdict on a file of these rows against what ms-swift does with it."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    report = verify([str(path)], task=task, **options)
    assume(not report.files[0].unusable)
    verdicts = Verdicts()
    scan_part(find_part(path, str(path), report.rules), verdicts)
    bad = verdicts.bad
    assert len(bad) == report.files[0].bad
    learned: dict[str, str] = {}
    if len(bad) < len(rows):
        learned = swift.learned(prepare_data(report, path.parent / "data", "").train, task)
    for row in rows:
        channel = row["channel"]
        if channel not in bad:
            assert channel in learned, f"passed, but ms-swift does not keep {row}"
            answer = answer_of(row)
            if task in {"sft", "dpo"} and answer:
                assert answer.strip() in learned[channel], f"passed, but not learned: {row} {learned}"
    as_it_is = swift.learned([str(path)], task) if bad else {}
    for row in rows:
        kinds = bad.get(row["channel"])
        says_else = LEARNS_ELSE | (LEARNS_MARKS if task == "pt" else set())
        if any(f'"{key}"' in json.dumps(row) for key in LOSS_KEYS):
            says_else = says_else | {"value"}  # ms-swift learns such a message in any case
        if "tools" in row:
            says_else = says_else | {"tools"}  # it writes whatever is there into the prompt
        if kinds and not kinds & says_else:
            assert row["channel"] not in as_it_is, f"refused for {kinds}, but ms-swift trains on {row}"


many = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # an example takes half a second, too long for shrinking
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
few = settings(many, max_examples=25)
nothing = st.just({})


@many
@example(
    rows=[
        {
            "messages": [
                {"role": "user", "content": "1999-05-01"},
                {"role": "assistant", "content": "1999-05-02"},
            ],
            "channel": "row 0",
        }
    ]
)
@example(
    rows=[
        {
            "messages": [
                {"role": "user", "content": "one?"},
                {"role": "assistant", "content": "one answer"},
                {"role": "user", "content": "two?"},
            ],
            "channel": "row 0",
        }
    ]
)
@given(rows=files(nothing))
def test_sft(swift: Swift, tmp_path: Path, rows: list[Row]) -> None:
    check(swift, tmp_path / "sft.jsonl", rows, "sft")


@few
@given(
    rows=files(nothing) | st.lists(contents, min_size=1, max_size=4).map(lambda t: [{"text": x} for x in t])
)
def test_pretraining(swift: Swift, tmp_path: Path, rows: list[Row]) -> None:
    rows = [row | {"channel": f"row {at}"} for at, row in enumerate(rows)]
    check(swift, tmp_path / "pt.jsonl", rows, "pt")


rejected = st.one_of(
    st.builds(lambda text: {"rejected_response": text}, mostly(contents, odd_contents)),
    st.builds(lambda text: {"rejected_response": [{"role": "assistant", "content": text}]}, contents),
    st.builds(lambda turns: {"rejected_messages": turns}, turns(("role", "content"))),
    nothing,
)


@few
@given(rows=files(rejected))
def test_preference(swift: Swift, tmp_path: Path, rows: list[Row]) -> None:
    check(swift, tmp_path / "dpo.jsonl", rows, "dpo")


@few
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "chosen": mostly(contents, odd_contents),
                "rejected": contents,
                "prompt": mostly(contents, odd_contents),
            }
        ),
        min_size=1,
        max_size=6,
    )
)
def test_chosen_and_rejected(swift: Swift, tmp_path: Path, rows: list[Row]) -> None:
    rows = [row | {"channel": f"row {at}"} for at, row in enumerate(rows)]
    check(swift, tmp_path / "chosen.jsonl", rows, "dpo")


@few
@given(rows=files(st.builds(lambda label: {"label": label}, mostly(st.booleans(), odd_contents))))
def test_kto(swift: Swift, tmp_path: Path, rows: list[Row]) -> None:
    check(swift, tmp_path / "kto.jsonl", rows, "kto")


@few
@given(rows=files(st.builds(lambda label: {"label": label}, mostly(st.integers(0, 2), odd_contents))))
def test_classes(swift: Swift, tmp_path: Path, rows: list[Row]) -> None:
    check(swift, tmp_path / "classes.jsonl", rows, "seq_cls", num_labels=3)


lists_of_turns = st.lists(turns(("role", "content")), max_size=2)


@few
@example(
    rows=[
        {
            "query": "q",
            "response": "a",
            "positive_messages": [
                [
                    {"role": "user", "content": "q"},
                    {"role": "tool_call", "content": {"name": "f", "arguments": {"x": 1}}},
                    {"role": "tool_response", "content": "3"},
                    {"role": "assistant", "content": "true"},
                ]
            ],
            "channel": "row 0",
        }
    ]
)
@given(
    rows=files(
        st.fixed_dictionaries(
            {"positive_messages": mostly(lists_of_turns, odd_contents)},
            optional={"negative_messages": lists_of_turns},
        )
    )
)
def test_embedding(swift: Swift, tmp_path: Path, rows: list[Row]) -> None:
    check(swift, tmp_path / "embedding.jsonl", rows, "embedding")


def write_as(path: Path, rows: list[Row]) -> None:
    """Write the rows in the way that the name of the file asks for."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith((".csv", ".tsv")):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    elif name.endswith(".json"):
        data = json.dumps(rows, indent=1).encode()
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))


ways = [
    "a.csv",
    "a.tsv",
    "a.json",
    "a.parquet",
    "a.ndjson",
    "a.jsonl.gz",
    "a.json.zst",
    "a.csv.gz",
    "A.JSONL",
]
sentences = st.one_of(
    texts.filter(str.strip), st.sampled_from(["42", "true", "[1]", "1999-05-01", "null", "NA"])
)


@few
@example(way="a.csv", rows=[{"query": "1999-05-01", "response": "1999-05-02"}] * 2)
@given(
    way=st.sampled_from(ways),
    rows=st.lists(st.fixed_dictionaries({"query": sentences, "response": sentences}), min_size=1, max_size=5),
)
def test_ways_of_writing(swift: Swift, tmp_path: Path, way: str, rows: list[Row]) -> None:
    rows = [row | {"channel": f"row {at}"} for at, row in enumerate(rows)]
    write_as(tmp_path / way, rows)
    report = verify([str(tmp_path / way)])
    assert report.ok, report.problems
    learned = swift.learned(prepare_data(report, tmp_path / "data").train, "sft")
    for row in rows:
        assert row["response"].strip() in learned[row["channel"]]
