"""The rows of a step, shared out: by properties of any lengths, and in real training against ms-swift's own order."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_toolkit.training.batches import balance
from tests.clock import processor_seconds
from tests.training.both_ways import arguments, compare, write_mixed


@st.composite
def steps(draw: st.DrawFn, most_ranks: int = 4) -> tuple[list[int], int, int]:
    """The lengths of the rows of a step, its ranks, and the rows of a micro-batch."""
    ranks, rows = draw(st.integers(1, most_ranks)), draw(st.integers(1, 12))
    longest = draw(st.sampled_from([2, 30, 5000]))
    size = ranks * rows
    lengths = draw(st.lists(st.integers(1, longest), min_size=size, max_size=size))
    return lengths, ranks, draw(st.integers(1, 6))


def least_padding(lengths: list[int], parts: int) -> int:
    """The fewest tokens by trying every cut of the sorted rows."""
    ordered, never = sorted(lengths), 10**12
    best = [0] + [never] * len(ordered)
    for _ in range(parts):
        best = [never] + [
            min(best[start] + (end - start) * ordered[end - 1] for start in range(end))
            for end in range(1, len(ordered) + 1)
        ]
    return best[-1]


@given(steps(), st.booleans(), st.sampled_from([0, 16, 4096]), st.none() | st.integers(1, 9000))
def test_every_row_stays_in_its_step_and_every_rank_has_as_many_micro_batches(
    step: tuple[list[int], int, int], equal: bool, hidden: int, limit: int | None
) -> None:
    lengths, ranks, batch = step
    own = balance.own_order(len(lengths), ranks, batch)
    shares = balance.share_out(lengths, ranks, batch, equal=equal, hidden=hidden, limit=limit)
    rows = [row for share in shares for micro_batch in share for row in micro_batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [len(share) for share in shares] == [len(share) for share in own]
    assert all(micro_batch for share in shares for micro_batch in share)
    assert shares == balance.share_out(lengths, ranks, batch, equal=equal, hidden=hidden, limit=limit)


@given(steps(), st.booleans(), st.sampled_from([0, 16, 4096]))
def test_never_more_padding_and_never_more_work_for_the_slowest_rank(
    step: tuple[list[int], int, int], equal: bool, hidden: int
) -> None:
    lengths, ranks, batch = step
    own = balance.own_order(len(lengths), ranks, batch)
    shares = balance.share_out(lengths, ranks, batch, equal=equal, hidden=hidden)
    assert balance.padded_tokens(shares, lengths) <= balance.padded_tokens(own, lengths)
    assert slowest(shares, lengths, hidden) <= slowest(own, lengths, hidden)


def slowest(shares: balance.Shares, lengths: list[int], hidden: int) -> int:
    return max(sum(work(rows, lengths, hidden) for rows in share) for share in shares)


def work(rows: list[int], lengths: list[int], hidden: int) -> int:
    longest = max(lengths[row] for row in rows)
    return len(rows) * (longest + (longest * longest // (6 * hidden) if hidden else 0))


@given(steps(most_ranks=1))
def test_on_one_device_no_partition_has_fewer_padded_tokens(step: tuple[list[int], int, int]) -> None:
    lengths, _, batch = step
    (share,) = balance.share_out(lengths, 1, batch)
    assert balance.padded_tokens([share], lengths) == least_padding(lengths, len(share))


@given(steps())
def test_equal_sizes_stay_equal(step: tuple[list[int], int, int]) -> None:
    lengths, ranks, batch = step
    shares = balance.share_out(lengths, ranks, batch, equal=True)
    sizes = sorted(len(rows) for share in shares for rows in share)
    own = balance.own_order(len(lengths), ranks, batch)
    assert sizes == sorted(len(rows) for share in own for rows in share)


@given(steps(), st.integers(1, 9000))
def test_the_limit_holds_where_some_partition_keeps_it(step: tuple[list[int], int, int], limit: int) -> None:
    lengths, _, batch = step
    own = balance.own_order(len(lengths), 1, batch)
    (share,) = balance.share_out(lengths, 1, batch, limit=limit)
    most = max(len(rows) * max(lengths[row] for row in rows) for rows in share)
    if all(len(rows) * max(lengths[row] for row in rows) <= limit for rows in own[0]):
        assert most <= limit


@given(steps())
def test_ranks_that_keep_their_rows(step: tuple[list[int], int, int]) -> None:
    lengths, ranks, batch = step
    shares = balance.share_out_within_ranks(lengths, ranks, batch)
    for rank, share in enumerate(shares):
        assert sorted(row for rows in share for row in rows) == list(range(rank, len(lengths), ranks))


@given(steps(), st.sampled_from([0, 16, 4096]))
def test_without_padding_the_slowest_rank_has_no_more_work(
    step: tuple[list[int], int, int], hidden: int
) -> None:
    lengths, ranks, batch = step
    own = balance.own_order(len(lengths), ranks, batch)
    shares = balance.share_out_unpadded(lengths, ranks, batch, hidden)
    assert sorted(row for share in shares for rows in share for row in rows) == list(range(len(lengths)))
    assert [len(share) for share in shares] == [len(share) for share in own]
    assert all(rows for share in shares for rows in share)

    def most(of: balance.Shares) -> int:
        return max(sum(work([row], lengths, hidden) for rows in share for row in rows) for share in of)

    assert most(shares) <= most(own)


def test_chats_of_mixed_length_take_far_fewer_tokens_and_ranks_do_not_wait() -> None:
    random = Random(0)
    lengths = [max(1, int(random.lognormvariate(4.7, 0.9))) for _ in range(8 * 16)]
    own, shares = balance.own_order(128, 8, 4), balance.share_out(lengths, 8, 4, hidden=4096)
    assert balance.padded_tokens(own, lengths) > 2 * sum(lengths)
    assert balance.padded_tokens(shares, lengths) < 1.05 * sum(lengths)
    assert slowest(shares, lengths, 4096) * 8 < 1.1 * sum(work([row], lengths, 4096) for row in range(128))


@pytest.mark.parametrize("ranks", [1, 8])
def test_a_step_of_4096_rows_takes_little_time(ranks: int) -> None:
    random = Random(0)
    lengths = [max(1, int(random.lognormvariate(5, 0.9))) for _ in range(4096)]
    assert processor_seconds(lambda: balance.share_out(lengths, ranks, 8, hidden=4096)) < 5


# --- real training ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "chats.jsonl"
    write_mixed(path)
    return path


@pytest.mark.slow
def test_the_gradient_is_that_of_the_own_order(tiny_model: Path, mixed: Path, tmp_path: Path) -> None:
    """With each tuner, in other tasks and where micro-batches keep their size; and the losses of thirty steps, over
    several epochs."""
    rows = [json.loads(line)["messages"] for line in mixed.read_text().splitlines()]
    pairs, classes = tmp_path / "pairs.jsonl", tmp_path / "classes.jsonl"
    others = [row[-1]["content"][::2] + " no" for row in rows]
    pairs.write_text(
        "".join(
            json.dumps({"messages": row, "rejected_response": other}) + "\n"
            for row, other in zip(rows, others, strict=True)
        )
    )
    classes.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": row[-1]["content"]}], "label": at % 3})
            + "\n"
            for at, row in enumerate(rows)
        )
    )
    long = ["--max_steps=30", "--learning_rate=1e-4"]
    classify = ["--task_type=seq_cls", "--num_labels=3"]
    runs: list[dict[str, Any]] = [
        {"name": "lora", "command": "sft", "arguments": arguments(tiny_model, mixed, "lora")},
        {"name": "full", "command": "sft", "arguments": arguments(tiny_model, mixed, "full")},
        {"name": "long", "command": "sft", "arguments": arguments(tiny_model, mixed, "lora", *long)},
        {
            "name": "lazy",
            "command": "sft",
            "arguments": arguments(tiny_model, mixed, "lora", "--lazy_tokenize=true"),
            "computes": 0.85,
        },
        {"name": "pt", "command": "pt", "arguments": arguments(tiny_model, mixed, "full")},
        {
            "name": "dpo",
            "command": "rlhf",
            "arguments": arguments(tiny_model, pairs, "lora", "--rlhf_type=dpo"),
            "computes": 0.95,
        },
        {
            "name": "seq_cls",
            "command": "sft",
            "arguments": arguments(tiny_model, classes, "full", *classify),
            "computes": 0.95,
        },
    ]
    compare("shared", tmp_path, runs)


@pytest.mark.slow
def test_the_gradient_of_two_processes_is_that_of_the_own_order(
    tiny_model: Path, mixed: Path, tmp_path: Path
) -> None:
    run = arguments(tiny_model, mixed, "full", "--ddp_backend=gloo", "--gradient_accumulation_steps=2")
    compare("shared", tmp_path, [{"name": "ddp", "command": "sft", "arguments": run}], ranks=2)


@pytest.mark.slow
@pytest.mark.swift4
def test_the_gradient_under_zero_2_is_that_of_the_own_order(
    tiny_model: Path, mixed: Path, tmp_path: Path
) -> None:
    """One step of SGD with a large rate changes the weights by the gradient, which DeepSpeed does not show."""
    pytest.importorskip("deepspeed")
    one_step = ["--optim=sgd", "--learning_rate=100", "--lr_scheduler_type=constant", "--max_steps=1"]
    more = ["--deepspeed=zero2", "--gradient_accumulation_steps=2", *one_step]
    run = arguments(tiny_model, mixed, "full", *more)
    compare(
        "shared",
        tmp_path,
        [{"name": "zero2", "command": "sft", "arguments": run}],
        ranks=2,
        DS_ACCELERATOR="cpu",
    )
