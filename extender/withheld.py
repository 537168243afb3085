"""What resource locks take from each node, as arrays that are kept until something changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from extender.ask import PodFacts
from extender.locks import Lock
from extender.nodes import View
from models.arrays import Floats, Ints
from models.policy import HORIZONS


@dataclass(frozen=True, slots=True)
class Withheld:
    """The outcome for N nodes and H horizons, in millicores.

    taken: [N, H] of what is reclaimable, never more than that; free: [N, H] what is left.
    wanted: [N, H] what the locks ask for, whether it is there or not; None where there are none.
    changes: grows whenever the locks' effect changed.
    """

    taken: Ints
    free: Ints
    wanted: Ints | None
    changes: int


class LockTable:
    """The locks in force and to come, and the nodes that they concern."""

    def __init__(self) -> None:
        self.locks: tuple[Lock, ...] = ()
        self.problems: Mapping[str, str] = {}
        self._homes: dict[str, Counter[str]] = {}
        self._index: Mapping[str, int] = {}
        self._allocatable: Floats = np.zeros(0)
        self._wanted: Ints = np.zeros((0, 0), np.int64)
        self._view = -1
        self._since, self._until = np.inf, -np.inf
        self._changes = 0
        self._withheld = Withheld(np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int64), None, 0)

    def replace(
        self, locks: Sequence[Lock], problems: Mapping[str, str], pods: Iterable[PodFacts]
    ) -> None:
        """Put other locks in place of all.

        Args:
            locks: those that can be read. problems: what is wrong with the others, by name.
            pods: all that are bound to a node.
        """
        self.locks, self.problems = tuple(locks), dict(problems)
        self._homes = {lock.workload: Counter() for lock in locks if lock.workload}
        if self._homes:
            for pod in pods:
                if pod.workload in self._homes:
                    self._homes[pod.workload][pod.node] += 1
        self._forget()

    def moved(self, pod: PodFacts, pods: int) -> None:
        """A pod has come to its node (1) or left it (-1)."""
        home = self._homes.get(pod.workload)
        if home is not None:
            before = home[pod.node]
            home[pod.node] += pods
            if not before or not home[pod.node]:
                self._forget()

    def of(self, view: View, now: float) -> Withheld:
        """What the locks take from the nodes now."""
        in_time = self._since <= now < self._until
        if view.id != self._view or not in_time:
            if not in_time:
                self._changes += 1
                self._since, self._until = now, self._next_change(now)
            if not in_time or not self._same_nodes(view):
                self._index, self._allocatable = view.index, view.allocatable.copy()
                self._wanted = self._want(view, now)
            self._view, self._withheld = view.id, self._take(view.free)
        return self._withheld

    def on(self, node: str, allocatable: float, now: float) -> list[tuple[Lock, int]]:
        """The locks that concern a node now or later, with the millicores they withhold there."""
        return [
            (lock, int(_millicores(lock, np.array([allocatable]))[0]))
            for lock in self.locks
            if now < lock.end and ((names := self._names(lock)) is None or node in names)
        ]

    def astray(self, nodes: Collection[str], now: float) -> list[str]:
        """The locks that are not over and concern none of these nodes, by name."""
        return [
            lock.name
            for lock in self.locks
            if now < lock.end
            and (
                not any(self._homes[lock.workload].values())
                if lock.workload
                else lock.nodes is not None and lock.nodes.isdisjoint(nodes)
            )
        ]

    def _forget(self) -> None:
        """Compute everything anew for the next who asks."""
        self._until = -np.inf

    def _same_nodes(self, view: View) -> bool:
        if not self.locks:
            return len(view.free) == len(self._wanted)
        return view.index is self._index and np.array_equal(view.allocatable, self._allocatable)

    def _want(self, view: View, now: float) -> Ints:
        """What the locks ask for, whether it is there or not: [N, H] millicores."""
        index = view.index
        every = np.fromiter(index.values(), np.int64, len(index))
        begun = np.zeros_like(view.free)  # by the first horizon that reaches into the window
        for lock in self.locks:
            reached = [lock.overlaps(now, hours * 3600) for hours in HORIZONS]
            if any(reached):
                names = self._names(lock)
                known = [index[name] for name in names or () if name in index]
                rows = every if names is None else np.array(known, np.int64)
                begun[rows, reached.index(True)] += _millicores(lock, view.allocatable[rows])
        return begun.cumsum(axis=1)  # the longer ones reach into it as well

    def _take(self, free: Ints) -> Withheld:
        if not self.locks:
            return Withheld(self._wanted, free, None, self._changes)
        taken: Ints = np.minimum(self._wanted, free)
        left = free - taken
        left.flags.writeable = taken.flags.writeable = False
        return Withheld(taken, left, self._wanted, self._changes)

    def _next_change(self, now: float) -> float:
        """When the next window comes into some horizon's reach, or ends."""
        moments = [
            moment
            for lock in self.locks
            for moment in (lock.end, *(lock.start - hours * 3600 for hours in HORIZONS))
        ]
        return min((moment for moment in moments if moment > now), default=np.inf)

    def _names(self, lock: Lock) -> Collection[str] | None:
        """The nodes that it concerns; None for all."""
        return +self._homes[lock.workload] if lock.workload else lock.nodes  # + leaves counts > 0


def _millicores(lock: Lock, allocatable: Floats) -> Ints:
    """What a lock withholds on nodes of so many cores, rounded up: [K]."""
    cores = lock.cores + lock.share * allocatable
    # 1e-6 millicores undo the rounding of products such as 0.1 x 3 before rounding up.
    return np.ceil(cores * 1000 - 1e-6).astype(np.int64)
