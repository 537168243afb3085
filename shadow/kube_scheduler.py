"""kube-scheduler's own default filters and scores over arrays of nodes.

Follows Kubernetes 1.37 (``pkg/scheduler/schedule_one.go`` and
``framework/plugins/noderesources``). Taints, affinity and topology spread are in `shadow.placing`;
the other default plugins (ports, volumes, images, affinity between pods) give equal scores to pods
without such needs, which is all that a trace knows of, so they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from extender.spread import MAX_NODE_SCORE
from models.arrays import Bools, Floats, Ints

DEFAULT_MILLICPU = 100
"""What NodeResourcesFit scores a pod with that requests no CPU (`DefaultMilliCPURequest`)."""
DEFAULT_MEMORY = 200 * 1024 * 1024
"""Bytes that it scores a pod with that requests no memory (`DefaultMemoryRequest`)."""
MIN_FEASIBLE = 100
"""Below this number of nodes all of them are looked at (`minFeasibleNodesToFind`)."""
CPU, MEMORY, EXTENDED, SLOTS = range(4)
_REQUESTED, _UNSCORED, _DIVISOR = slice(4, 8, 2), slice(8, 10), slice(10, 16)
GONE = 2**40
"""Slots that a node which is not here lacks: more than any node has."""


@dataclass(frozen=True, slots=True)
class Request:
    """What kube-scheduler counts for one pod: ordinary CPU and memory, and the extended resource.

    millicpu and extended in millicores, memory in bytes. ``extended`` is the ask for reclaimed CPU.

    Fields that follow from these, in the shape in which `NodeState` needs them:
        counts: [10] what changes in its table where the pod runs.
        tried: [6, 1] what would change of it in what a score reads, if the pod ran there.
    """

    millicpu: int
    memory: int
    extended: int
    counts: Floats = field(init=False, repr=False, compare=False)
    tried: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the arrays once: pods that ask for the same share them."""
        cpu, memory = self.millicpu, self.memory
        taken = [
            -MAX_NODE_SCORE * (cpu or DEFAULT_MILLICPU),
            -MAX_NODE_SCORE * (memory or DEFAULT_MEMORY),
        ]
        free = [-cpu, -memory, -self.extended, -1]
        counts = np.array([*free, cpu, cpu, memory, memory, *taken], np.float64)
        tried = np.array([0, cpu, 0, memory, *taken], np.float64)[:, None]
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "tried", tried)


class NodeState:
    """What kube-scheduler's cache holds of N nodes; all here that changes.

    All are whole numbers below 2^53, which floats hold exactly.

    Fields:
        allocatable: [2, N] millicores and bytes; 0 where a node does not say.
        free: [4, N] what NodeResourcesFit may still give: CPU and MEMORY by requests, EXTENDED, and
            pod SLOTS. Negative where the trace itself put too much on a node.
        requested: [2, N] of CPU and MEMORY.
        unscored: [2, N] a hundred times what its score takes for free: pods that request nothing
            count as well.
        here: how many nodes are here; the others have no slots.
    """

    def __init__(self, millicpu: Ints, memory: Ints, max_pods: int) -> None:
        both = (millicpu > 0) & (memory > 0)
        none, slots = np.zeros(len(both)), np.full(len(both), max_pods)
        # A node with only one of the two resources is always balanced, and scored by that one.
        halves = [np.where(both, 2.0 * have, np.inf) for have in (millicpu, memory)]
        scored = [np.maximum(have, 1) for have in (millicpu, memory)]
        # One table, so that one operation counts a pod and one gathers what a score needs:
        # free, requested (CPU without and with a pod that is tried, memory likewise), unscored,
        # and what each of these six is a share of; of requests, half the share is needed.
        self._table: Floats = np.array(
            [
                *(millicpu, memory, millicpu, slots),
                *(none, none, none, none),
                *(MAX_NODE_SCORE * millicpu, MAX_NODE_SCORE * memory),
                *(halves[CPU], halves[CPU], halves[MEMORY], halves[MEMORY], *scored),
            ],
            np.float64,
        )
        self.free: Floats = self._table[:4]
        self.requested: Floats = self._table[_REQUESTED]
        self.unscored: Floats = self._table[_UNSCORED]
        self.allocatable: Floats = self.free[:EXTENDED].copy()
        self._times: Ints | None = None if both.all() else np.where(both, 1, 2)
        self.here = len(both)

    def __len__(self) -> int:
        return int(self.free.shape[1])

    def add(self, row: int, request: Request) -> None:
        """Count a pod on a node."""
        self._table[:10, row] += request.counts

    def remove(self, row: int, request: Request) -> None:
        """Stop counting a pod on a node."""
        self._table[:10, row] -= request.counts

    def leave(self, row: int) -> None:
        """A node goes away: nothing fits on it."""
        self.free[SLOTS, row] -= GONE
        self.here -= 1

    def join(self, row: int) -> None:
        """A node comes that was not here."""
        self.free[SLOTS, row] += GONE
        self.here += 1

    def fits(self, request: Request) -> Bools:
        """NodeResourcesFit's filter, [N]: a resource that is not requested is not looked at."""
        fit: Bools = self.free[SLOTS] > 0
        if request.millicpu:
            fit &= self.free[CPU] >= request.millicpu
        if request.memory:
            fit &= self.free[MEMORY] >= request.memory
        if request.extended:
            fit &= self.free[EXTENDED] >= request.extended
        return fit

    def score(self, rows: Ints, request: Request) -> Ints:
        """The sum of both scores, [K]."""
        least, balance = self._scores(rows, request)
        return least + balance if request.millicpu or request.memory else least

    def least_allocated(self, rows: Ints, request: Request) -> Ints:
        """NodeResourcesFit's score, 0..100: the mean over CPU and memory of the share left free."""
        return self._scores(rows, request)[0]

    def balanced_allocation(self, rows: Ints, request: Request) -> Ints:
        """NodeResourcesBalancedAllocation's score, 50..100, or 0 for a pod without requests.

        Since 1.36 the score is how much the pod improves the balance of CPU and memory on a node,
        where the balance is 100 x (1 - standard deviation of the fractions that are requested).
        """
        if not (request.millicpu or request.memory):
            return np.zeros(len(rows), np.int64)
        return self._scores(rows, request)[1]

    def _scores(self, rows: Ints, request: Request) -> tuple[Ints, Ints]:
        """Both scores, [K] each, in as few operations as possible: the replay's inner loop.

        The deviation of two fractions is half their difference, so halves of fractions will do.
        """
        gathered = self._table[4:].take(rows, axis=1)
        share = gathered[:6]
        share += request.tried
        share /= gathered[6:]
        halves, left = share[:4], share[4:]
        np.minimum(halves, 0.5, out=halves)
        np.maximum(left, 0.0, out=left)
        deviation = np.abs(halves[:2] - halves[2:])
        balanced = np.subtract(1.0, deviation, out=share[2:4])
        balanced *= MAX_NODE_SCORE
        before, after, cpu, memory = percent = share[2:].astype(np.int64)
        if self._times is not None:
            percent[2:] *= self._times.take(rows)
        after -= before
        least, balance = before, after  # computed in place
        np.add(cpu, memory, out=least)
        percent[:2] >>= 1
        balance += 3 * MAX_NODE_SCORE // 4  # 50 + (50 + improvement) / 2
        return least, balance


def sample_size(nodes: int, percentage: int = 0) -> int:
    """How many feasible nodes kube-scheduler looks for (`numFeasibleNodesToFind`).

    ``percentage``: `percentageOfNodesToScore` of its configuration, 0 for its own choice.
    """
    if nodes < MIN_FEASIBLE or percentage >= 100:
        return nodes
    return max(nodes * (percentage or max(50 - nodes // 125, 5)) // 100, MIN_FEASIBLE)


def sample(fit: Bools, start: int, want: int) -> tuple[Ints, int]:
    """The first feasible nodes in round-robin order.

    Args:
        fit: [N] which nodes pass the filters.
        start: row at which the search begins.
        want: how many to find.

    Returns:
        Rows in the order in which they were found, and the row at which the next search begins.
    """
    rows = fit.nonzero()[0]
    split = np.count_nonzero(fit[:start])
    if len(rows) <= want:  # every node is looked at
        return np.concatenate((rows[split:], rows[:split])), start
    stop = split + want  # one more that fits ends the search
    if stop < len(rows):
        return rows[split:stop], int(rows[stop])
    stop -= len(rows)
    return np.concatenate((rows[split:], rows[:stop])), int(rows[stop])


def pick(score: Ints, rng: np.random.Generator) -> int:
    """Position of the highest score, any of them where several are equal (`selectHost`)."""
    best = (score == score[score.argmax()]).nonzero()[0]
    return int(best[int(rng.random() * len(best))])
