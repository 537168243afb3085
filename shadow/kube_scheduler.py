"""kube-scheduler's own default filters and scores over arrays of nodes.

Follows Kubernetes 1.37 (``pkg/scheduler/schedule_one.go`` and
``framework/plugins/noderesources``). Taints, affinity and topology spread are in `shadow.placing`;
the other default plugins (ports, volumes, images, affinity between pods) give equal scores to pods
without such needs, which is all that a trace knows of, so they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.arrays import Bools, Ints

MAX_NODE_SCORE = 100
DEFAULT_MILLICPU = 100
"""What NodeResourcesFit scores a pod with that requests no CPU (`DefaultMilliCPURequest`)."""
DEFAULT_MEMORY = 200 * 1024 * 1024
"""Bytes that it scores a pod with that requests no memory (`DefaultMemoryRequest`)."""
MIN_FEASIBLE = 100
"""Below this number of nodes all of them are looked at (`minFeasibleNodesToFind`)."""
CPU, MEMORY, EXTENDED, SLOTS = range(4)
_UNSCORED, _DIVISOR = slice(6, 8), slice(8, 10)
GONE = 2**40
"""Slots that a node which is not here lacks: more than any node has."""


@dataclass(frozen=True, slots=True)
class Request:
    """What kube-scheduler counts for one pod: ordinary CPU and memory, and the extended resource.

    millicpu and extended in millicores, memory in bytes. ``extended`` is the ask for reclaimed CPU.

    Fields that follow from these, in the shape in which `NodeState` needs them:
        counts: [8] what changes in its table where the pod runs.
        ordinary: [2, 2, 1] without the pod and with it, CPU and memory.
        scored: [2, 1] CPU and memory that it is scored with.
    """

    millicpu: int
    memory: int
    extended: int
    counts: Ints = field(init=False, repr=False, compare=False)
    ordinary: Ints = field(init=False, repr=False, compare=False)
    scored: Ints = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the arrays once: pods that ask for the same share them."""
        cpu, memory = self.millicpu, self.memory
        scored = [cpu or DEFAULT_MILLICPU, memory or DEFAULT_MEMORY]
        counts = np.array([-cpu, -memory, -self.extended, -1, cpu, memory, -scored[0], -scored[1]])
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "ordinary", np.array([[[0], [0]], [[cpu], [memory]]]))
        object.__setattr__(self, "scored", np.array(scored)[:, None])


class NodeState:
    """What kube-scheduler's cache holds of N nodes; all here that changes.

    Fields:
        allocatable: [2, N] millicores and bytes; 0 where a node does not say.
        free: [4, N] what NodeResourcesFit may still give: CPU and MEMORY by requests, EXTENDED, and
            pod SLOTS. Negative where the trace itself put too much on a node.
        requested: [2, N] of CPU and MEMORY.
        unscored: [2, N] what its score takes for free: pods that request nothing count as well.
        here: how many nodes are here; the others have no slots.
    """

    def __init__(self, millicpu: Ints, memory: Ints, max_pods: int) -> None:
        slots = np.full(len(millicpu), max_pods, np.int64)
        none = np.zeros_like(slots)
        # One table, so that one operation counts a pod and one gathers what a score needs.
        self._table: Ints = np.stack(
            [millicpu, memory, millicpu, slots, none, none, millicpu, memory, millicpu, memory]
        ).astype(np.int64)
        np.maximum(self._table[_DIVISOR], 1, out=self._table[_DIVISOR])
        self.free: Ints = self._table[:4]
        self.requested: Ints = self._table[4:6]
        self.unscored: Ints = self._table[_UNSCORED]
        self.allocatable: Ints = self.free[:EXTENDED].copy()
        self._both: Bools = (millicpu > 0) & (memory > 0)
        self._all_both = bool(self._both.all())
        self.here = len(millicpu)

    def __len__(self) -> int:
        return int(self.free.shape[1])

    def add(self, row: int, request: Request) -> None:
        """Count a pod on a node."""
        self._table[:8, row] += request.counts

    def remove(self, row: int, request: Request) -> None:
        """Stop counting a pod on a node."""
        self._table[:8, row] -= request.counts

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
        """The sum of both scores; what they read is gathered once."""
        gathered = self._table[4:].take(rows, axis=1)
        score = self._least(gathered, rows, request)
        if request.millicpu or request.memory:
            score += self._balance(gathered, rows, request)
        return score

    def least_allocated(self, rows: Ints, request: Request) -> Ints:
        """NodeResourcesFit's score, 0..100: the mean over CPU and memory of the share left free."""
        return self._least(self._table[4:].take(rows, axis=1), rows, request)

    def balanced_allocation(self, rows: Ints, request: Request) -> Ints:
        """NodeResourcesBalancedAllocation's score, 50..100, or 0 for a pod without requests.

        Since 1.36 the score is how much the pod improves the balance of CPU and memory on a node,
        where the balance is 100 x (1 - standard deviation of the fractions that are requested).
        """
        if not (request.millicpu or request.memory):
            return np.zeros(len(rows), np.int64)
        return self._balance(self._table[4:].take(rows, axis=1), rows, request)

    def _least(self, gathered: Ints, rows: Ints, request: Request) -> Ints:
        left = gathered[2:4] - request.scored
        np.maximum(left, 0, out=left)
        left *= MAX_NODE_SCORE
        left //= gathered[4:]
        mean: Ints = left[CPU] + left[MEMORY]
        # A node with only one of the two resources is scored by that one.
        mean //= 2 if self._all_both else np.where(self._both.take(rows), 2, 1)
        return mean

    def _balance(self, gathered: Ints, rows: Ints, request: Request) -> Ints:
        fraction = (gathered[:2] + request.ordinary) / gathered[4:]
        np.minimum(fraction, 1.0, out=fraction)
        deviation = np.abs(fraction[:, CPU] - fraction[:, MEMORY])
        # A node with only one of the two resources is always balanced.
        deviation *= 0.5 if self._all_both else np.where(self._both.take(rows), 0.5, 0.0)
        before, after = ((1 - deviation) * MAX_NODE_SCORE).astype(np.int64)
        after -= before
        after += MAX_NODE_SCORE // 2
        after //= 2
        after += MAX_NODE_SCORE // 2
        score: Ints = after
        return score


def sample_size(nodes: int) -> int:
    """How many feasible nodes kube-scheduler looks for (`numFeasibleNodesToFind`)."""
    if nodes < MIN_FEASIBLE:
        return nodes
    return max(nodes * max(50 - nodes // 125, 5) // 100, MIN_FEASIBLE)


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
    split = int(rows.searchsorted(start))
    rows = np.concatenate((rows[split:], rows[:split]))
    if len(rows) <= want:
        return rows, start  # every node was looked at
    return rows[:want], int(rows[want])  # one more that fits ends the search


def pick(score: Ints, rng: np.random.Generator) -> int:
    """Position of the highest score, any of them where several are equal (`selectHost`)."""
    best = (score == score.max()).nonzero()[0]
    return int(best[int(rng.random() * len(best))])
