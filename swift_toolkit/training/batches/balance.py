"""Partition the rows of one optimiser step into micro-batches, and assign the micro-batches to devices.

ms-swift fills the micro-batches of a step in random order and pads every row to the longest of its micro-batch. If the
loss is normalised by the learned tokens of the whole step, any other partition of the same rows has the same gradient.
`share_out` finds the one with the fewest padded tokens and, for several devices, equal work on each.
Pure arithmetic: every rank computes the same partition from the same lengths.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import pairwise
from math import isqrt

RowIndices = list[int]
"""Indices of the rows of one micro-batch."""

Shares = list[list[RowIndices]]
"""Micro-batches by rank."""

_HEADROOM = (1.05, 1.2, 1.5, 2.0)
"""Limits of the largest micro-batch to try with several ranks, as multiples of its least possible work."""

_EVEN = 1.02
"""The search ends once the work of the slowest rank is at most this multiple of the mean."""


def share_out(
    lengths: Sequence[int],
    ranks: int,
    batch: int,
    *,
    equal: bool = False,
    limit: int | None = None,
    hidden: int = 0,
) -> Shares:
    """Partition the rows of one optimiser step into micro-batches of each rank.

    The number of micro-batches is the same as in ms-swift's own order. With one rank, the partition has the fewest
    padded tokens for that number. With several ranks, it minimises the work of the busiest rank, as far as the search
    goes; neither that work nor the number of padded tokens exceeds that of ms-swift's own order.

    Args:
        lengths: tokens of each row, in ms-swift's order: row i belongs to rank i % ranks. The number of rows is a
            multiple of ``ranks``.
        ranks: number of processes with their own rows.
        batch: rows per micro-batch in ms-swift's order.
        equal: every micro-batch keeps ms-swift's number of rows.
        limit: maximum tokens of a micro-batch, padding included; if that is impossible, the tokens of ``batch`` rows
            of the longest length.
        hidden: hidden size h of the model, for the quadratic part of attention: a row of S tokens takes S (1 + S / 6h)
            (Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters", appendix).
            0 counts tokens only, as with one rank.
    """
    own = own_order(len(lengths), ranks, batch)
    parts = sum(map(len, own))
    if (ranks == 1 and parts == len(lengths)) or (equal and len(lengths) != parts * batch):
        return own
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    longest = [max(lengths[row], 1) for row in order]
    step = _Step(longest, [_work(one, hidden if ranks > 1 else 0) for one in longest], parts, batch)
    cuts = iter([list(range(batch, len(order) + 1, batch))]) if equal else step.partitions(limit, ranks)
    found = (_deal(_rows(order, ends), ranks, lambda rows: _work_of(rows, lengths, hidden)) for ends in cuts)
    return next(found) if ranks == 1 else _best(own, found, lengths, hidden)


def share_out_unpadded(lengths: Sequence[int], ranks: int, batch: int, hidden: int = 0) -> Shares:
    """The same without padding: equal work on every rank, and about as many tokens in every micro-batch."""
    own = own_order(len(lengths), ranks, batch)
    work = [max(1, _work(length, hidden)) for length in lengths]

    def cost(rows: RowIndices) -> int:
        return sum(work[row] for row in rows)

    parts: list[RowIndices] = [[] for share in own for _ in share]
    loads = [(0, part) for part in range(len(parts))]
    for row in sorted(range(len(lengths)), key=lambda row: (-work[row], row)):
        load, part = loads[0]
        parts[part].append(row)
        heapreplace(loads, (load + work[row], part))
    dealt = _deal(parts, ranks, cost)
    return min(own, dealt, key=lambda shares: max(sum(map(cost, share)) for share in shares))


def share_out_within_ranks(
    lengths: Sequence[int], ranks: int, batch: int, limit: int | None = None
) -> Shares:
    """The same for losses that each rank normalises by its own tokens: every rank keeps its rows."""
    mine = [list(range(rank, len(lengths), ranks)) for rank in range(ranks)]
    found = [share_out([lengths[row] for row in rows], 1, batch, limit=limit)[0] for rows in mine]
    return [[[rows[at] for at in part] for part in parts] for rows, parts in zip(mine, found, strict=True)]


def _best(own: Shares, found: Iterator[Shares], lengths: Sequence[int], hidden: int) -> Shares:
    """The partition whose slowest rank has the least work, among those that are no worse than ``own`` in any respect.
    The first partition with almost equal ranks ends the search."""
    best = most = _load(own, lengths, hidden)
    for shares in found:
        load = _load(shares, lengths, hidden)
        if load.within(most) and (load.slowest, load.padded) < (best.slowest, best.padded):
            best = load
            if load.slowest * len(shares) <= _EVEN * load.work:
                break
    return best.shares


def own_order(rows: int, ranks: int, batch: int) -> Shares:
    """The micro-batches of ms-swift's sampler: ``rows`` go to the ranks in turn, and each rank batches its own."""
    each = [list(range(rank, rows, ranks)) for rank in range(ranks)]
    return [[mine[at : at + batch] for at in range(0, len(mine), batch)] for mine in each]


def padded_tokens(shares: Shares, lengths: Sequence[int]) -> int:
    """Computed tokens, including padding."""
    return sum(len(rows) * max(lengths[row] for row in rows) for share in shares for rows in share)


def _work(length: int, hidden: int) -> int:
    return length + length * length // (6 * hidden) if hidden else length


def _rows(order: Sequence[int], ends: Sequence[int]) -> list[RowIndices]:
    return [list(order[start:end]) for start, end in pairwise([0, *ends])]


# --- several ranks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Load:
    """The cost of a partition: tokens with padding, the total work, that of the slowest rank, and that of a rank which
    waits for the others at every micro-batch (as with ZeRO-3)."""

    shares: Shares
    padded: int
    work: int
    slowest: int
    in_step: int

    def within(self, other: _Load) -> bool:
        return self.padded <= other.padded and self.slowest <= other.slowest and self.in_step <= other.in_step


def _load(shares: Shares, lengths: Sequence[int], hidden: int) -> _Load:
    work = [[_work_of(rows, lengths, hidden) for rows in share] for share in shares]
    in_step = sum(max(slot) for slot in zip(*work, strict=True))
    sums = [sum(slots) for slots in work]
    return _Load(shares, padded_tokens(shares, lengths), sum(sums), max(sums), in_step)


def _work_of(rows: RowIndices, lengths: Sequence[int], hidden: int) -> int:
    return len(rows) * _work(max(lengths[row] for row in rows), hidden)


def _deal(parts: list[RowIndices], ranks: int, cost: Callable[[RowIndices], int]) -> Shares:
    """Assign micro-batches to ranks, the largest first: those with similar work at the same time, and the largest of
    them to the rank with the least work so far."""
    costs = sorted(((cost(rows), rows) for rows in parts), key=lambda one: one[0], reverse=True)
    shares: Shares = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for at in range(0, len(costs), ranks):
        for rank, (one, rows) in zip(
            sorted(range(ranks), key=loads.__getitem__), costs[at : at + ranks], strict=True
        ):
            shares[rank].append(rows)
            loads[rank] += one
    return shares


# --- the cheapest partition of sorted rows ------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """The rows of a step, shortest first, to be cut into ``parts`` contiguous runs.

    A run costs its number of rows times the work of its last row, which is the longest. No partition of the rows costs
    less than the best partition into runs: swapping two rows that are out of order increases neither maximum.
    """

    lengths: list[int]
    work: list[int]
    parts: int
    batch: int

    def partitions(self, limit: int | None, ranks: int) -> Iterator[list[int]]:
        """The ends of the runs of the cheapest partition; for several ranks also of partitions with a smaller largest
        run, because ranks wait for the one with the most work."""
        free = [0] * (len(self.work) + 1)
        if limit is not None:
            longest, least = self.lengths[-1], max(limit, self.lengths[-1])
            if not self._fits(self.lengths, least, free):
                least = max(least, longest * self.batch)
            free = _starts(self.lengths, least, free)
        yield _cut(self.work, free, self.parts)
        if ranks > 1:
            least = self._least_limit(self.work, free)
            for more in (1, *_HEADROOM):
                yield _cut(self.work, _starts(self.work, int(least * more), free), self.parts)

    def _least_limit(self, weights: list[int], floor: Sequence[int]) -> int:
        """The smallest limit of a run with which the rows can be cut into ``parts`` runs."""
        limits = range(weights[-1], weights[-1] * len(weights) + 1)
        return limits[bisect_left(limits, True, key=lambda limit: self._fits(weights, limit, floor))]

    def _fits(self, weights: list[int], limit: int, floor: Sequence[int]) -> bool:
        starts, end = _starts(weights, limit, floor), len(weights)
        for _ in range(self.parts):
            end = starts[end]
            if not end:
                return True
        return False


def _starts(weights: Sequence[int], limit: int, floor: Sequence[int]) -> list[int]:
    """For every end of a run, the earliest start not before ``floor`` that keeps the run within ``limit``."""
    return [0, *(max(floor[end], end - limit // weights[end - 1]) for end in range(1, len(floor)))]


def _cut(work: Sequence[int], starts: Sequence[int], parts: int) -> list[int]:
    """The ends of exactly ``parts`` runs with the lowest cost, each starting at ``starts[end]`` or later.

    The cost is convex in the number of runs (it has the Monge property), so a price per run can produce any number
    of runs (Aggarwal, Schieber, Tokuyama 1994, "Finding a minimum-weight k-link path in graphs with the concave Monge
    property"). This finds the smallest integer price at which ``parts`` runs are cheapest, then one such partition.
    """
    low, high = 0, work[-1] * len(work) + 1
    while low < high:
        price = isqrt((low + 1) * (high + 1)) - 1
        count = _chain(work, starts, price, 1)[1][-1]
        low, high = (price + 1, high) if count > parts else (low, price)
        if count == parts:
            low = price
    price = low
    cost, fewest = _chain(work, starts, price, 1)
    most = fewest if fewest[-1] == parts else _chain(work, starts, price, -1)[1]
    ends, end = [], len(work)
    for left in range(parts - 1, -1, -1):
        ends.append(end)
        run = work[end - 1]
        end = next(
            start
            for start in range(end - 1, starts[end] - 1, -1)
            if fewest[start] <= left <= most[start] and cost[start] + (end - start) * run + price == cost[end]
        )
    return ends[::-1]


def _chain(work: Sequence[int], starts: Sequence[int], price: int, sign: int) -> tuple[list[int], list[int]]:
    """The lowest cost up to every end with ``price`` per run, and its number of runs: the fewest with ``sign`` 1, the
    most with -1.

    The best starts are monotonic in the end (Galil and Park 1992, "Dynamic programming with convexity, concavity and
    sparsity"): each start is queued with the first end for which it is the best.
    """
    scale = len(work) + 1  # encodes cost and number of runs in one integer
    charge = price * scale + sign
    best = [0]
    waiting = deque([(0, 1)])
    for end in range(1, scale):
        while len(waiting) > 1 and waiting[1][1] <= end:
            waiting.popleft()
        start = waiting[0][0]
        best.append(best[start] + (end - start) * work[end - 1] * scale + charge)
        better = end + 1
        while waiting:
            other, since = waiting[-1]
            # from this work on, a run from `end` is cheaper than one from `other`, or the latter is too long
            least = -((best[other] - best[end]) // ((end - other) * scale))
            better = max(end, min(bisect_left(work, least), bisect_right(starts, other) - 1)) + 1
            if better > since:
                break
            waiting.pop()
        if better < scale:
            waiting.append((end, better))
    cost = [-(-value // scale) if sign < 0 else value // scale for value in best]
    return cost, [sign * (value - one * scale) for value, one in zip(best, cost, strict=True)]
