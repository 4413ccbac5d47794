"""Processes compare what they were asked for and notice when one is gone; torch's store is replaced by a dictionary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from swift_toolkit.training.process import peers
from swift_toolkit.training.process.peers import PeerRequest, Peers

FIRST = PeerRequest(
    node="node 0 (a)",
    given={"learning_rate": "0.0001", "max_steps": "10"},
    automatic={"gradient_checkpointing": ["--gradient_checkpointing=false"]},
    data={"data/train.jsonl": "1,000 bytes, 0a1b"},
    versions={"ms-swift": "4.6.0", "torch": "2.13.0"},
    directory="/runs/v0",
)


class Memory:
    """A store in this process: ``get`` waits, as torch's does."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.broken = False

    def set(self, key: str, value: str) -> None:
        self.check([])
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        while not self.check([key]):
            time.sleep(0.01)
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        if self.broken:
            raise RuntimeError("Broken pipe")
        return all(key in self.values for key in keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        self.check([])
        return self.values.setdefault(key, desired.encode())


def together(*works: Callable[[], Any]) -> list[Any]:
    """What the works return that run at the same time."""
    results: list[Any] = [None] * len(works)

    def run(at: int) -> None:
        results[at] = works[at]()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return results


def two(store: Memory) -> list[Peers]:
    return [Peers(lambda: store, node, 2, node, 2, True) for node in (0, 1)]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(peers, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(peers, "SILENCE_AFTER_ERROR", 0.3)
    monkeypatch.setattr(peers, "BROKEN_SECONDS", 0.3)


def test_rank_0_decides_and_all_know() -> None:
    other = replace(FIRST, node="node 1 (b)", directory="/tmp/x", automatic={})
    one, two_ = two(store := Memory())
    assert together(lambda: one.agree(FIRST), lambda: two_.agree(other)) == [(FIRST, []), (FIRST, [])]
    assert one.names == two_.names == ["node 0 (a)", "node 1 (b)"]
    assert store.values


def test_every_difference_is_named_on_every_node() -> None:
    other = replace(
        FIRST,
        node="node 1 (b)",
        given={"learning_rate": "0.0002", "max_steps": "10", "lora_rank": "8"},
        data={"data/train.jsonl": "1,001 bytes, 9f8e"},
        versions={"ms-swift": "4.5.1", "torch": "2.13.0"},
    )
    one, two_ = two(Memory())
    answers = together(lambda: one.agree(FIRST), lambda: two_.agree(other))
    assert answers[0][1] == answers[1][1] == [
        '"learning_rate" is 0.0002 on node 1 (b), but 0.0001 on node 0 (a). Start every node with the same config and flags.',
        '"lora_rank" is 8 on node 1 (b), but missing on node 0 (a). Start every node with the same config and flags.',
        '"data/train.jsonl" is 1,001 bytes, 9f8e on node 1 (b), but 1,000 bytes, 0a1b on node 0 (a). Give every node the same data.',
        '"ms-swift" is 4.5.1 on node 1 (b), but 4.6.0 on node 0 (a). Install the same version on every node.',
    ]  # fmt: skip


def watched(store: Memory) -> tuple[list[Peers], list[list[str]]]:
    pair, lost = two(store), [[], []]  # type: ignore[var-annotated]
    together(lambda: pair[0].agree(FIRST), lambda: pair[1].agree(replace(FIRST, node="node 1 (b)")))
    for one, heard in zip(pair, lost, strict=True):
        one.watch(heard.append)
    return pair, lost


def test_a_silent_node_is_gone_after_a_while() -> None:
    (one, two_), lost = watched(Memory())
    time.sleep(1.5)
    assert lost == [[], []]
    two_.leave()  # as a machine without power
    time.sleep(0.6)
    assert lost == [[], []]
    time.sleep(1.2)
    assert lost[1] == []
    assert lost[0] == ["node 1 (b) is lost: its last heartbeat was 1 s ago"]
    one.leave()


def test_a_broken_connection_points_to_the_node_that_is_silent() -> None:
    (one, two_), _ = watched(Memory())
    assert one.cause("ValueError: bad") is None
    assert one.cause("Connection closed by peer [10.0.0.2]:4711") is None  # all are there
    two_.leave()
    assert one.cause("Connection closed by peer [10.0.0.2]:4711") == (
        "node 1 (b) is lost: its last heartbeat was 0 s ago"
    )
    one.leave()


def test_the_first_to_fail_says_why() -> None:
    (one, two_), lost = watched(Memory())
    assert two_.tell("rank 1: ValueError: bad") == "node 1 (b): rank 1: ValueError: bad"
    assert one.tell("rank 0: RuntimeError: what?") == "node 1 (b): rank 1: ValueError: bad"
    assert one.cause("NCCL error: remote process exited") == "node 1 (b): rank 1: ValueError: bad"
    time.sleep(0.3)
    assert lost[0] == ["node 1 (b): rank 1: ValueError: bad"]


def test_without_the_store_node_0_is_gone() -> None:
    store = Memory()
    (_, two_), lost = watched(store)
    store.broken = True
    assert two_.cause("Connection reset by peer") == "node 0 (a) is lost: the connection to it broke"
    assert two_.tell("rank 1: X") == "rank 1: X"
    time.sleep(0.5)
    assert lost == [[], ["node 0 (a) is lost: the connection to it broke"]]
