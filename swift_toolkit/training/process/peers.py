"""Processes of a run that several starters started: they agree before they train, and notice when one is gone.

torchrun gives every process the address of a key-value store (torch's TCPStore). Over it rank 0 says what it was
asked to do, all compare, and the automatic settings and the run directory of rank 0 hold for all. While they train,
one process of each node counts up in the store; one whose count stands still is gone. Nothing here imports torch:
the store is handed in.
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
"""How often a node shows that it is there."""

SILENCE_SECONDS = 60.0
"""Silence after which a node counts as gone; long, because loading a model may block the threads of a process."""

SILENCE_AFTER_ERROR = 4.0
"""The same once this process met an error that says a connection broke."""

BROKEN_SECONDS = 10.0
"""The same for node 0 once the connection to its store broke."""


class Store(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: str, /) -> Any: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


@dataclass(frozen=True)
class PeerRequest:
    """What one process was asked to do.

    Args:
        node: which machine it is on and what that is called, e.g. "node 1 (gpu07)".
        given: settings that somebody gave, by name, as a user would write them.
        automatic: settings that were chosen, by name, as words of ms-swift's command line.
        data: fingerprints of the data files, by the name under which they were given.
        versions: of the packages that must be the same.
        directory: where the run writes.
    """

    node: str
    given: Mapping[str, str]
    automatic: Mapping[str, Sequence[str]]
    data: Mapping[str, str]
    versions: Mapping[str, str]
    directory: str

    def differences(self, first: PeerRequest) -> list[str]:
        """What is not as rank 0 was asked, one sentence each with what to do."""
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
        connect: opens a connection to the store; each thread uses its own.
        rank: of this process.
        world: how many there are.
        node: of this process, counted from 0.
        nodes: how many there are.
        leads: whether this process is the one of its node that shows it is there.
    """

    def __init__(
        self, connect: Callable[[], Store], rank: int, world: int, node: int, nodes: int, leads: bool
    ) -> None:
        self.connect, self.rank, self.world = connect, rank, world
        self.node, self.nodes, self.leads = node, nodes, leads
        self.names = [f"node {number}" for number in range(nodes)]
        self._store = connect()
        self._heard: dict[int, float] = {}
        self._told = ""
        self._broke: float | None = None
        self._ended = threading.Event()

    def agree(self, mine: PeerRequest) -> tuple[PeerRequest, list[str]]:
        """The request of rank 0, and in how far the others' differ from it; every process gets the same."""
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

    # --- while training -----------------------------------------------------------------------------------

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """From now on, call ``on_loss`` with a sentence, once, from another thread, when the run cannot go on
        because of another node."""
        now = time.monotonic()
        self._heard = dict.fromkeys(set(range(self.nodes)) - {self.node}, now)
        threading.Thread(target=self._beat, daemon=True).start()
        threading.Thread(target=self._judge, args=(on_loss,), daemon=True).start()

    def leave(self) -> None:
        """Stop watching: this process is done."""
        self._ended.set()

    def tell(self, reason: str) -> str:
        """Say to all why the run fails.

        Returns:
            The first reason that any process gave.
        """
        try:
            return self._store.compare_set("failed", "", f"{self.names[self.node]}: {reason}").decode()
        except Exception:  # the store has gone with node 0
            return reason

    def cause(self, message: str) -> str | None:
        """Why another process, not this one, ended the run with the error ``message`` here; None if it did not.

        After an error that says a connection broke, this waits until it is known which node has gone.
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
        """Show that this node is there, and listen to the others."""
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
                    self._told = store.get("failed").decode()
            except Exception:  # torch has many; all mean that the store cannot be reached
                self._broke = time.monotonic()
                return

    def _reason(self, silence: float) -> str | None:
        """Why the run cannot go on, if another node has failed or was not heard of for ``silence`` seconds."""
        now = time.monotonic()
        if self._told:
            return self._told
        if self._broke is not None:  # then no node can be heard any more, and only node 0 is to blame
            long = now - self._broke > min(silence, BROKEN_SECONDS)
            return f"{self.names[0]} has gone: the connection to it broke" if long and self.node else None
        for other, heard in self._heard.items():
            if now - heard > silence:
                return f"{self.names[other]} has gone: it was last heard of {now - heard:.0f} s ago"
        return None

    def _judge(self, on_loss: Callable[[str], None]) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if reason := self._reason(SILENCE_SECONDS):
                self._ended.set()
                on_loss(reason)
                return
