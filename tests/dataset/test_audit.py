"""What is learned of rows, by ms-swift's own templates: its labels, seeded faults, clean data."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.tasks import TASKS, TaskName
from swift_toolkit.dataset import preview
from swift_toolkit.dataset.audit import exact, sample
from swift_toolkit.dataset.audit.audit import Audit, Place
from swift_toolkit.dataset.audit.encoded import encode_row
from swift_toolkit.dataset.audit.look import Looker
from swift_toolkit.dataset.page import page
from swift_toolkit.dataset.preview import TemplateView
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.verify import verify
from swift_toolkit.machine.msswift import template_api

pytestmark = pytest.mark.slow

Row = dict[str, object]
TEMPLATES = (
    "chatml default qwen qwen2_5 qwen3 qwen3_nothinking qwen3_coder llama llama3 llama3_2 megrez sus ziya glm4 internlm"
    " internlm2 deepseek deepseek_coder deepseek_r1 openbuddy minicpm orion codefuse skywork mistral_nemo zephyr"
    " gemma phi3 phi4 qwq"
).split()
WORDS = "the river bank holds small bright stones and nobody knows why they never move 河 岸 in ( ) { x = 3 } spring".split()


def words(dice: random.Random, most: int = 30) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(2, most))) + "."


def talk(dice: random.Random, turns: int = 1, system: bool = False, thinks: bool = False) -> Row:
    """A plain conversation."""
    messages = [{"role": "system", "content": words(dice)}] if system else []
    for _ in range(turns):
        answer = f"<think>\n{words(dice)}\n</think>\n\n{words(dice)}" if thinks else words(dice)
        messages += [{"role": "user", "content": words(dice)}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def pair(dice: random.Random, **how: Any) -> Row:
    return talk(dice, **how) | {"rejected_response": "No: " + words(dice)}


def calls_a_tool(dice: random.Random) -> Row:
    name, result = f"look_up_{dice.randint(1, 99)}", {"found": words(dice, 5)}
    tool = {"type": "function", "function": {"name": name, "description": "Looks up.", "parameters": {}}}
    call = json.dumps({"name": name, "arguments": {"what": "river"}})
    messages = [
        {"role": "user", "content": words(dice)},
        {"role": "tool_call", "content": call},
        {"role": "tool_response", "content": json.dumps(result)},
        {"role": "assistant", "content": words(dice)},
    ]
    return {"tools": json.dumps([tool]), "messages": messages}


def write(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def make_template(tiny_model: Path) -> Callable[..., Any]:
    """Makes a template of ms-swift for the tokenizer of SmolLM2."""
    get_processor, get_template = template_api()
    processor = get_processor(str(tiny_model), model_type="llama")

    def make(name: str, **settings: Any) -> Any:
        return get_template(processor, template_type=name, **settings)

    return make


def test_the_labels_are_those_of_ms_swift_on_30_templates(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows as they come from the file by ms-swift's own loader, encoded by the template of its own arguments."""
    get_processor, get_template = template_api()  # imports ms-swift in half the time
    kept: list[Any] = []

    def read_once(*model: Any, **settings: Any) -> Any:
        kept[:] = kept or [get_processor(*model, **settings)]
        return kept[0]

    monkeypatch.setattr(preview, "template_api", lambda _: (read_once, get_template))
    from swift import SftArguments
    from swift.utils import parse_args

    dice = random.Random(1)
    rows = [talk(dice, turns=n % 3 + 1, system=n % 2 == 0, thinks=n % 5 == 4) for n in range(12)]
    rows[1]["messages"][0]["loss"] = False  # type: ignore[index]
    file = write(tmp_path / "rows.jsonl", rows)
    given = {"model": str(tiny_model), "model_type": "llama", "template": "chatml", "dataset": file}
    given |= {
        "use_cpu": "true",
        "check_model": "false",
        "output_dir": str(tmp_path / "out"),
        "max_length": "90",
    }
    argv = [f"--{name}={value}" for name, value in given.items()]
    args, _ = parse_args(SftArguments, [*argv, "--truncation_strategy=right", "--split_dataset_ratio=0"])
    args.dataset_shuffle = False
    processor, loaded = args.get_model_processor(load_model=False)[1], args.load_dataset()[0]
    assert len(TEMPLATES) == 30
    for name in TEMPLATES:
        args.template = name
        theirs = args.get_template(processor)
        theirs.set_mode("train")
        settings = {"model_type": "llama", "template": name, "truncation_strategy": "right"}
        view = TemplateView(str(tiny_model), Rules(max_length=90), settings)
        view.template.max_length = view.max_length
        ours = [encode_row(view.template, row)[0] for _, row in exact.rows_in([file], Rules(), 0, 1)]
        expected = [theirs.encode(row) for row in loaded]
        assert len(ours) == len(expected) == 12
        assert [one.tokens for one in ours] == [one["input_ids"] for one in expected], name
        assert [one.labels for one in ours] == [one["labels"] for one in expected], name


# --- seeded faults ------------------------------------------------------------------------------------------

SIX = ("chatml", "llama3", "qwen3", "deepseek_r1", "gemma", "internlm2")


@dataclass(frozen=True)
class Case:
    """Rows and settings; what must be found in them, "" for nothing."""

    rows: tuple[Row, ...]
    found: str = ""
    task: TaskName = "sft"
    limit: int | None = None
    truncation: str = "delete"
    settings: tuple[tuple[str, object], ...] = ()


def looked_at(case: Case, template: Any) -> dict[str, int]:
    """The kinds of flaws that are found, and how many of each."""
    rules = Rules(TASKS[case.task])
    template.set_mode(rules.task.template_mode)
    looker = Looker(template=template, rules=rules, limit=case.limit, truncation=case.truncation)
    audit = Audit()
    for number, row in enumerate(case.rows, 1):
        audit.take(looker.look(copy.deepcopy(row)), Place(0, "a.jsonl", number, number), "train")
    return {group.kind: group.count for group in audit.groups(looker)}


def with_text(row: Row, at: int, text: str, place: str) -> Row:
    """The row with a text at the beginning, in the middle or at the end of a message."""
    row = copy.deepcopy(row)
    message = row["messages"][at]  # type: ignore[index]
    content = message["content"]
    middle = len(content) // 2
    message["content"] = {"begin": text + content, "middle": content[:middle] + text + content[middle:]}.get(
        place, content + text
    )
    return row


def faults(dice: random.Random) -> Iterator[Case]:
    """40 faults, each in otherwise clean rows."""
    clean = [talk(dice) for _ in range(10)]
    for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"):  # special in this tokenizer
        for at in (0, 1):
            yield Case((*clean, with_text(clean[0], at, text, dice.choice(["begin", "middle"]))), "special")
    yield Case((*clean, with_text(talk(dice, 3, system=True), 0, "<|endoftext|>", "end")), "special")
    yield Case((*clean, with_text(talk(dice, 3), 2, "<|im_end|>", "end")), "special")
    rejected = pair(dice) | {"rejected_response": "No <|im_end|> never"}
    yield Case((*(pair(dice) for _ in range(5)), rejected), "special", "dpo")
    for text in (
        "[INST]",
        "<<SYS>>",
        "<start_of_turn>",
        "<|eot_id|>",
        "<｜User｜>",
        "<|start_header_id|>",
        "[/INST]",
    ):
        yield Case((*clean, with_text(clean[1], dice.choice([0, 1]), text, "middle")), "marks")
    long = [
        {
            "messages": [
                {"role": "user", "content": "why"},
                {"role": "assistant", "content": "a small stone " * 150},
            ]
        }
    ]
    for truncation, found in (("delete", "too-long"), ("right", "cut-answer")):
        yield Case((*clean, *long), found, limit=300, truncation=truncation)
    yield Case(tuple(long * 3), "nothing-used", limit=300)
    yield Case((*clean, talk(dice, 60)), "cut-answer", limit=400, truncation="left")
    asks_long = {
        "messages": [{"role": "user", "content": "stones " * 3000}, {"role": "assistant", "content": "Yes."}]
    }
    yield Case((*clean, asks_long), "no-learned", limit=300, truncation="right")
    yield Case((asks_long, asks_long), "nothing-learned", limit=300, truncation="right")
    yield Case((*clean, asks_long), "cut-answer", limit=300, truncation="right")
    yield Case((asks_long,) * 3, "few-learned", limit=9000)
    told_long = {"messages": [{"role": "system", "content": "river " * 7000}, *talk(dice)["messages"]]}  # type: ignore[misc]
    yield Case((told_long,) * 4, "few-learned")
    same = talk(dice) | {"rejected_response": "x"}
    answer = "a stone in the river " * 80
    same["messages"][1]["content"], same["rejected_response"] = answer + "yes", answer + "no"  # type: ignore[index]
    pairs = tuple(pair(dice) for _ in range(6))
    yield Case((*pairs, same), "same-pair", "dpo", 200, "right")
    yield Case((*pairs, same), "cut-answer", "dpo", 200, "right")
    yield Case((*pairs, same), "same-pair", "orpo", 200, "right")
    judged = tuple(talk(dice) | {"label": n % 2 == 0} for n in range(6))
    yield Case((*judged, {**long[0], "label": True}), "cut-answer", "kto", 200, "right")
    yield Case((*clean, talk(dice, thinks=True)), "mixed-thinking")
    thinking = [talk(dice, thinks=True) for _ in range(10)]
    yield Case((*thinking, talk(dice)), "mixed-thinking")
    yield Case((*thinking[:5], *clean[:5]), "mixed-thinking")
    yield Case((*thinking[:3], talk(dice, 2, system=True)), "mixed-thinking")
    yield Case((*pairs, pair(dice, thinks=True)), "mixed-thinking", "dpo")
    yield Case((*judged, talk(dice, thinks=True) | {"label": True}), "mixed-thinking", "kto")
    tools = tuple(calls_a_tool(dice) for _ in range(4))
    agent = ("agent_template", "hermes")
    yield Case(tools, "tool-results", settings=(agent, ("loss_scale", "all")))
    later = {**tools[0], "messages": [*tools[0]["messages"], *talk(dice)["messages"]]}  # type: ignore[misc]
    yield Case((*clean, later), "tool-calls", settings=(agent, ("loss_scale", "last_round")))
    yield Case(
        (*clean, tools[0] | {"images": ["/nowhere.png"], "tools": "not json ["}),
        "template",
        settings=(agent,),
    )


def clean_sets(dice: random.Random) -> Iterator[Case]:
    """30 sets with nothing wrong."""
    for turn in range(5):
        yield Case(tuple(talk(dice, turns=turn % 3 + 1, system=turn % 2 == 0) for _ in range(8)))
        yield Case(tuple(talk(dice, thinks=True, system=turn % 2 == 0) for _ in range(8)))
        yield Case(tuple(pair(dice) for _ in range(8)), task=("dpo", "orpo", "simpo", "cpo", "dpo")[turn])  # type: ignore[arg-type]
        yield Case(tuple(talk(dice) | {"label": n % 2 == 0} for n in range(8)), task="kto")
        scale = ("default", "hermes", "default", "ignore_empty_think", "default")[turn]
        settings: tuple[tuple[str, object], ...] = (("agent_template", "hermes"), ("loss_scale", scale))
        yield Case(tuple(calls_a_tool(dice) for _ in range(6)), settings=settings)
        written = "Use <b>bold</b>, a[0] < b, x|y, List<int>, [link](a.md) and `<html>` in HTML. "
        rows = [with_text(talk(dice), n % 2, written, "begin") for n in range(6)]
        yield Case(tuple(rows), limit=2000, truncation=("delete", "right", "left", "delete", "split")[turn])


@pytest.mark.parametrize("name", SIX)
def test_40_seeded_faults_are_found_and_nothing_in_30_clean_sets(
    name: str, make_template: Callable[..., Any]
) -> None:
    seeded, clean = list(faults(random.Random(2))), list(clean_sets(random.Random(3)))
    assert (len(seeded), len(clean)) == (40, 30)
    missed = [
        (case.found, found)
        for case in seeded
        if not (found := looked_at(case, make_template(name, **dict(case.settings)))).get(case.found)
    ]
    assert missed == []
    alarms = [
        found for case in clean if (found := looked_at(case, make_template(name, **dict(case.settings))))
    ]
    assert alarms == []


def test_a_template_without_an_end_token(make_template: Callable[..., Any]) -> None:
    template = make_template("chatml")
    template.template_meta = replace(template.template_meta, suffix=[])
    dice = random.Random(4)
    assert looked_at(Case(tuple(talk(dice) for _ in range(3))), template) == {"no-end": 3}


def test_thinking_that_the_template_removes(make_template: Callable[..., Any]) -> None:
    rows = (talk(random.Random(5), turns=2, thinks=True),)
    assert looked_at(Case(rows), make_template("qwen3", preserve_thinking=False)) == {"lost-thinking": 1}
    assert looked_at(Case(rows), make_template("qwen3")) == {}
    assert looked_at(Case(rows), make_template("chatml")) == {}


# --- where it is shown --------------------------------------------------------------------------------------


def test_all_cores_find_what_one_finds(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(6)
    rows = [talk(dice, thinks=n in (5, 250)) for n in range(400)]
    rows[130] = with_text(rows[130], 0, "<repo_name>", "middle")
    file = write(tmp_path / "a.jsonl", rows)
    found = []
    for alone in (10_000, 10):
        monkeypatch.setattr(exact, "ALONE", alone)
        monkeypatch.setattr(exact, "cpu_cores", lambda: 3)
        report = verify([file])
        settings = {"model_type": "llama", "template": "chatml"}
        TemplateView(str(tiny_model), Rules(), settings).audit(report)
        found.append((report.learned, report.tokens, [*map(str, report.summary())]))
    assert found[0] == found[1]
    report_lines = "\n".join(found[0][2])
    assert (
        f'{file}:131: message 1 contains "<repo_name>", which the tokenizer reads as a special token'
        in report_lines
    )
    assert "2 of 400 answers think (<think>...</think>), the others do not" in report_lines
    assert report.learned is not None and 0.3 < report.learned.share < 0.7
    assert "What is learned" in page(report) and f"{report.learned}." in page(report)
    assert report.as_dict()["learned"]["rows"] == 400


def test_a_sample_is_quick_and_looks_behind_the_beginning(
    make_template: Callable[..., Any], tmp_path: Path
) -> None:
    dice = random.Random(7)
    rows = [talk(dice) for _ in range(3_000)] + [talk(dice, thinks=True) for _ in range(40_000)]
    file = write(tmp_path / "a.jsonl", rows)
    looker = Looker(template=make_template("chatml"), rules=Rules(), limit=None)
    audit = sample.audit(looker, [file])
    assert 0 < audit.rows <= sample.AUDIT_ROWS
    assert "mixed-thinking" in {group.kind for group in audit.groups(looker)}


def test_a_sample_of_a_folder_reads_few_files(make_template: Callable[..., Any], tmp_path: Path) -> None:
    dice = random.Random(10)
    for number in range(50):
        write(
            tmp_path / f"{number:02}.jsonl", [talk(dice), with_text(talk(dice), 0, "<repo_name>", "middle")]
        )
    audit = sample.audit(Looker(template=make_template("chatml"), rules=Rules(), limit=None), [str(tmp_path)])
    assert audit.rows == 2 * audit.counts["special"] <= 2 * sample.FILES
    files = {place.file for place, _ in audit.found["special"]}
    assert str(tmp_path / "00.jsonl") in files and len(files) == 5


def test_what_stops_a_run(make_template: Callable[..., Any], tmp_path: Path) -> None:
    """Rows that are all too long do; rows that the template refuses do not: ms-swift says so itself."""
    looker = Looker(template=make_template("chatml"), rules=Rules(), limit=5)
    audit = sample.audit(looker, [write(tmp_path / "a.jsonl", [talk(random.Random(8))] * 3)])
    assert [group.kind for group in audit.groups(looker) if sample.stops(audit, group.kind)] == [
        "nothing-used"
    ]
    refused = write(tmp_path / "b.jsonl", [calls_a_tool(random.Random(9))] * 3)
    audit = sample.audit(replace(looker, limit=None), [refused])
    assert audit.counts["template"] == 3
    assert not any(sample.stops(audit, group.kind) for group in audit.groups(looker))
