"""Coordination of processes that were started separately, for example one per node.

torchrun gives every process the address of a key-value store (torch's TCPStore). Before training, rank 0 publishes its
request in the store and every other process compares it with its own; all use the automatic settings and the run
directory of rank 0. During training one process of each node increments a heartbeat counter in the store. A node whose
counter stops is considered lost. This module does not import torch: it receives a connection to the store.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from swift_toolkit.machine.failure import LOST

BEAT_SECONDS = 1.0
"""Seconds between two heartbeats of a node."""

SILENCE_SECONDS = 60.0
"""Seconds without a heartbeat after which a node is lost; long, because loading a model may block all threads."""

SILENCE_AFTER_ERROR = 4.0
"""The same after this process got an error about a broken connection."""

BROKEN_SECONDS = 10.0
"""The same for node 0 after the connection to its store broke."""


class Store(Protocol):
    """The subset of torch.distributed.Store that is used here."""

    def set(self, key: str, value: str, /) -> Any: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


@dataclass(frozen=True)
class PeerRequest:
    """The request of one process.

    Args:
        node: number and name of its machine, e.g. "node 1 (gpu07)".
        given: the user's settings by name, as the user writes them.
        automatic: the automatic settings by name, as ms-swift's command line arguments.
        data: fingerprints of the data files, by file name as given.
        versions: versions of the packages that must be the same on all nodes.
        directory: the run directory.
    """

    node: str
    given: Mapping[str, str]
    automatic: Mapping[str, Sequence[str]]
    data: Mapping[str, str]
    versions: Mapping[str, str]
    directory: str

    def differences(self, first: PeerRequest) -> list[str]:
        """The differences from the request of rank 0, one sentence each, with advice."""
        lines = []
        for kind, do in (
            ("given", "Start every node with the same config and flags."),
            ("data", "Give every node the same data."),
            ("versions", "Install the same version on every node."),
        ):
            mine, theirs = getattr(self, kind), getattr(first, kind)
            for name in [*theirs, *(name for name in mine if name not in theirs)]:
                if (here := mine.get(name)) != (there := theirs.get(name)):
                    where = f"{here or 'missing'} on {self.node}, but {there or 'missing'} on {first.node}"
                    lines.append(f'"{name}" is {where}. {do}')
        return lines


class Peers:
    """All processes of the run.

    Args:
        connect: opens a connection to the store; each thread needs its own.
        rank: the rank of this process.
        world: the number of processes.
        node: the node of this process, counted from 0.
        nodes: the number of nodes.
        leads: whether this process sends the heartbeat of its node.
    """

    def __init__(
        self, connect: Callable[[], Store], rank: int, world: int, node: int, nodes: int, leads: bool
    ) -> None:
        self.connect, self.rank, self.world = connect, rank, world
        self.node, self.nodes, self.leads = node, nodes, leads
        self.names = [f"node {number}" for number in range(nodes)]
        self._store = connect()
        self._heard: dict[int, float] = {}
        self._failure = ""
        self._broke: float | None = None
        self._ended = threading.Event()

    def agree(self, mine: PeerRequest) -> tuple[PeerRequest, list[str]]:
        """The request of rank 0, and how the others differ from it. Every process gets the same result."""
        store = self._store
        if self.leads:
            store.set(f"name/{self.node}", mine.node)
        if self.rank == 0:
            store.set("request", json.dumps(vars(mine)))
            found = [json.loads(store.get(f"differences/{rank}")) for rank in range(1, self.world)]
            lines = list(dict.fromkeys(line for one in found for line in one))
            store.set("differences", json.dumps(lines))
            first = mine
        else:
            first = PeerRequest(**json.loads(store.get("request")))
            store.set(f"differences/{self.rank}", json.dumps(mine.differences(first)))
            lines = json.loads(store.get("differences"))
        if not lines:
            self.names = [store.get(f"name/{number}").decode() for number in range(self.nodes)]
        return first, lines

    # --- during training ----------------------------------------------------------------------------------

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Start watching the other nodes. When one is lost, a thread calls ``on_loss`` once with a sentence that says
        why the run cannot continue."""
        now = time.monotonic()
        self._heard = dict.fromkeys(set(range(self.nodes)) - {self.node}, now)
        threading.Thread(target=self._beat, daemon=True).start()
        threading.Thread(target=self._judge, args=(on_loss,), daemon=True).start()

    def leave(self) -> None:
        """Stop watching; this process is done."""
        self._ended.set()

    def tell(self, reason: str) -> str:
        """Publish why this process failed.

        Returns:
            The first reason that any process published.
        """
        try:
            return self._store.compare_set("failed", "", f"{self.names[self.node]}: {reason}").decode()
        except Exception:  # the store is lost with node 0
            return reason

    def cause(self, message: str) -> str | None:
        """The reason why another process ended the run if ``message`` is only a consequence of it; else None.

        After an error about a broken connection this waits until the lost node is known.
        """
        if not LOST.search(message):
            return None
        began = time.monotonic()
        while time.monotonic() < began + SILENCE_AFTER_ERROR + 2 * BEAT_SECONDS:
            if reason := self._reason(SILENCE_AFTER_ERROR):
                return reason
            time.sleep(BEAT_SECONDS / 4)
        return None

    def _beat(self) -> None:
        """Send the heartbeat of this node and read those of the others."""
        beats, seen, store = 0, dict.fromkeys(self._heard, b""), self.connect()
        while not self._ended.wait(BEAT_SECONDS):
            beats += 1
            try:
                if self.leads:
                    store.set(f"beat/{self.node}", str(beats))
                for other in seen:
                    if store.check([f"beat/{other}"]) and (beat := store.get(f"beat/{other}")) != seen[other]:
                        seen[other], self._heard[other] = beat, time.monotonic()
                if store.check(["failed"]):
                    self._failure = store.get("failed").decode()
            except Exception:  # torch raises various types; each means that the store cannot be reached
                self._broke = time.monotonic()
                return

    def _reason(self, silence: float) -> str | None:
        """Why the run cannot continue: another node failed, or sent no heartbeat for ``silence`` seconds."""
        now = time.monotonic()
        if self._failure:
            return self._failure
        if self._broke is not None:  # heartbeats cannot be read any more, and the store is on node 0
            long = now - self._broke > min(silence, BROKEN_SECONDS)
            return f"{self.names[0]} is lost: the connection to it broke" if long and self.node else None
        for other, heard in self._heard.items():
            if now - heard > silence:
                return f"{self.names[other]} is lost: its last heartbeat was {now - heard:.0f} s ago"
        return None

    def _judge(self, on_loss: Callable[[str], None]) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if reason := self._reason(SILENCE_SECONDS):
                self._ended.set()
                on_loss(reason)
                return
