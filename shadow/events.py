"""What happens in simulated time, in order, and the pods that wait for their turn."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from models.arrays import Floats, Ints

NEVER = 2**62
"""A time, in seconds since the epoch, that no replay reaches."""


class Kind(IntEnum):
    """Events at the same second happen in this order: what ends makes room for what arrives."""

    END = 0
    """A run ends; the subject is the run."""
    LEAVE = 1
    """A node goes away, and with it the pods that are left on it; the subject is the node's row."""
    JOIN = 2
    """A node comes; the subject is the node's row."""
    TICK = 3
    """A usage window is complete."""
    ARRIVAL = 4
    """A pod is created; the subject is the pod."""


END, LEAVE, JOIN, TICK, ARRIVAL = Kind

Change = tuple[int, Kind, int]
"""A node that joins or leaves: when, which of the two, and its row."""

_NO_CHANGE: Change = (NEVER, LEAVE, -1)


class Timeline:
    """Merges arrivals, ends, node changes and ticks; ends are added while it is consumed."""

    def __init__(
        self, arrivals: Ints, first: int, ticks: range, stop: int, changes: Sequence[Change] = ()
    ) -> None:
        """Plan a replay that ends before ``stop``.

        Args:
            arrivals: [P] seconds since the epoch, non-decreasing; the index is the pod.
            first: the pod that arrives first; those before it are there already.
            ticks: seconds since the epoch.
            stop: nothing at or after this second happens.
            changes: nodes that join and leave, in any order.
        """
        self._arrivals: list[int] = [*arrivals.tolist(), NEVER]
        self._ticks = iter(ticks)
        self._tick = next(self._ticks, NEVER)
        self._ends: list[tuple[int, int]] = []
        self._changes = iter(sorted(changes))
        self._change = next(self._changes, _NO_CHANGE)
        self._arrived = first
        self._stop = stop

    def end_at(self, time: int, run: int) -> None:
        """Let a run end at a time that has not passed."""
        heapq.heappush(self._ends, (time, run))

    def __iter__(self) -> Timeline:
        return self

    def __next__(self) -> tuple[int, Kind, int]:
        """The next event: its time, its kind and its subject (-1 for a tick)."""
        end = self._ends[0][0] if self._ends else NEVER
        arrival = self._arrivals[self._arrived]
        tick = self._tick
        time = min(end, self._change[0], tick, arrival)
        if time >= self._stop:
            raise StopIteration
        if time == end:
            return time, END, heapq.heappop(self._ends)[1]
        if time == self._change[0]:
            change, self._change = self._change, next(self._changes, _NO_CHANGE)
            return change
        if time == tick:
            self._tick = next(self._ticks, NEVER)
            return time, TICK, -1
        self._arrived += 1
        return time, ARRIVAL, self._arrived - 1


NEW_BACKOFF = 2
"""Seconds for which a refused pod that has just come is in backoff. kube-scheduler tries it twice:
that it was refused becomes a condition of the pod, and this change wakes it once."""

LONGEST_BACKOFF = 10
"""Seconds: kube-scheduler's podMaxBackoffSeconds by default. A backoff doubles with each attempt,
and the events of one pod's end (its mark, its deletion, the next pod's bind and start) are three
attempts or more, so that pods that did not profit from one have the longest."""


class Waiting:
    """Pods that no node took, and the order in which kube-scheduler tries them again.

    At an event that may have made room it tries all of them: first those whose backoff is over, by
    their last attempt; then, if idle, the others, by the second in which their backoff ends. So in
    a busy queue new pods overtake old ones. Who is first within such a second is a matter of
    milliseconds (several events follow each other, and the first pod may meet an extender that has
    not heard yet), so it is drawn. See `backoff_queue.go` of Kubernetes 1.37.

    A pod whose need is more than any node has left would only be rejected again.
    """

    def __init__(self) -> None:
        # One column for each pod that waits, by pod: the pod, what it needs, of which kind, when it
        # was last tried, and when its backoff ends.
        self._buffer: Ints = np.zeros((5, 64), np.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, pod: int, need: int, kind: int, time: int, backoff: int = NEW_BACKOFF) -> None:
        """Let a pod wait that needs ``need`` millicores of headroom of a kind; once only.

        ``time`` is seconds since the epoch, from which its ``backoff`` counts.
        """
        place, found = self._find(pod)
        if found:
            return
        if self._count == self._buffer.shape[1]:
            self._buffer = np.concatenate([self._buffer, np.zeros_like(self._buffer)], axis=1)
        after = self._buffer[:, place : self._count].copy()
        self._buffer[:, place + 1 : self._count + 1] = after
        self._buffer[:, place] = pod, need, kind, time, time + backoff
        self._count += 1

    def remove(self, pod: int) -> None:
        """Stop waiting; unknown pods are ignored."""
        if self._count == 0:
            return
        place, found = self._find(pod)
        if found:
            after = self._buffer[:, place + 1 : self._count].copy()
            self._count -= 1
            self._buffer[:, place : self._count] = after

    def retry(self, time: int, headroom: Ints, rng: np.random.Generator) -> Ints:
        """Try all at ``time``, seconds since the epoch.

        Args:
            time: of the event.
            headroom: [kinds] the most millicores that any node has left.
            rng: draws the order within a second.

        Returns:
            Those for which some node may have room, in their order: pod, need and kind, [3, W].
        """
        columns = self._buffer[:, : self._count]
        need, kind, tried, ends = columns[1:]
        places = np.flatnonzero(need <= headroom[kind])
        if len(places) > 1:
            chance = rng.random(len(places))
            places = places[retry_order(tried[places], ends[places], time, chance)]
        tried[:], ends[:] = time, time + LONGEST_BACKOFF
        return columns[:3].take(places, axis=1)

    def _find(self, pod: int) -> tuple[int, bool]:
        place = int(self._buffer[0, : self._count].searchsorted(pod))
        return place, place < self._count and int(self._buffer[0, place]) == pod


def retry_order(tried: Ints, ends: Ints, time: int, chance: Floats) -> Ints:
    """In which order pods are tried at ``time``, all [W].

    Args:
        tried, ends: when each was last tried, and when its backoff ends.
        chance: decides between those whose backoff ends in the same second. Between those that were
            last tried in the same second, the earlier in the array is first.
    """
    over = ends <= time  # and `tried` is at most `time`, so these are first
    return np.lexsort((np.where(over, 0, chance), np.where(over, tried, ends)))
