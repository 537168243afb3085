"""What is known at one moment about nodes and their online pods: the input of every forecaster."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from models.arrays import Bools, Floats, Floats32, Ints
from models.grid import WEEK, WINDOW, UsageGrid
from models.truth import own_mean, silent

MIN_SAMPLES = 24
"""A pod with fewer observed windows (2 h) counts with its request everywhere."""

_PODS_AT_ONCE = 512
"""Pods whose week is worked on at a time: 4 MB, several times over."""


@dataclass(frozen=True, slots=True)
class History:
    """The past of P pods on N nodes, as known at ``time``.

    A pod may be listed on several nodes (the random machines of an evaluation share pods), so
    membership is a list of M edges: pod ``pod[e]`` is on node ``node[e]``.

    Fields, with shapes and units:
        time: seconds since the epoch; the last column is the window [time - 300, time).
        usage: [P, W] cores, oldest window first, NaN where not observed.
        request: [P] cores.
        pod, node: [M] indices.
        limit: [N] cores that the node's online pods can use at most: the sum of requests on the
            random machines of an evaluation, allocatable CPU in a cluster.
        seasoned: [P] whether the pod has MIN_SAMPLES observed windows.
        aggregate: [N, W] cores, summed over the node's seasoned pods and aligned by recency. NaN
            where a pod that had started was not observed; windows from before a pod's first
            sample count with that pod's own mean. So do those of a pod that has gone silent, where
            another one of the node was observed: it must not hide what the others use.
        unknown: [N] cores: requests of the pods that are not seasoned.
    """

    time: int
    usage: Floats32
    request: Floats
    pod: Ints
    node: Ints
    limit: Floats
    seasoned: Bools
    aggregate: Floats32
    unknown: Floats

    @property
    def nodes(self) -> int:
        """N, the number of nodes."""
        return len(self.limit)

    @property
    def newest(self) -> Floats:
        """What the node's pods used in the newest window, [N] cores; unobserved ones nothing."""
        used = np.nan_to_num(self.usage[:, -1]).astype(np.float64)
        return np.bincount(self.node, used[self.pod], self.nodes).astype(np.float64)

    def counting(self, need: Floats) -> History:
        """The same, where pods that are not seasoned count with ``need`` [P] cores.

        NaN leaves a pod its request.
        """
        counted = np.where(np.isfinite(need), need, self.request)
        new = ~self.seasoned[self.pod]
        weights = counted[self.pod[new]]
        unknown = np.bincount(self.node[new], weights=weights, minlength=self.nodes)
        return replace(self, unknown=unknown.astype(np.float64))

    def sum_pods(self, values: Floats) -> Floats:
        """Sum a figure of the pods ([P]) over the seasoned pods of each node ([N])."""
        kept = self.seasoned[self.pod]
        return np.bincount(
            self.node[kept], weights=values[self.pod[kept]], minlength=self.nodes
        ).astype(np.float64)


def build_history(
    time: int, usage: Floats32, request: Floats, pod: Ints, node: Ints, limit: Floats
) -> History:
    """Aggregate the pods' trailing windows by node; see `History` for shapes and units."""
    seasoned = np.count_nonzero(~np.isnan(usage), axis=1) >= MIN_SAMPLES
    kept = seasoned[pod]
    members = sparse.csc_array(
        (np.ones(int(kept.sum()), np.float32), (node[kept], pod[kept])),
        shape=(len(limit), len(request)),
    )
    aggregate = np.zeros((len(limit), usage.shape[1]), np.float32)
    gaps, quiet, seen = (np.zeros(aggregate.shape, np.bool_) for _ in range(3))
    for first in range(0, len(usage), _PODS_AT_ONCE):
        some = slice(first, first + _PODS_AT_ONCE)
        filled, missing, assumed = _filled(usage[some])
        aggregate += members[:, some] @ filled
        gaps |= members[:, some] @ missing.astype(np.float32) > 0
        quiet |= members[:, some] @ assumed.astype(np.float32) > 0
        seen |= members[:, some] @ (~np.isnan(usage[some])).astype(np.float32) > 0
    aggregate[gaps | (quiet & ~seen)] = np.nan
    unknown = np.bincount(node[~kept], weights=request[pod[~kept]], minlength=len(limit))
    return History(
        time, usage, request, pod, node, limit, seasoned, aggregate, unknown.astype(np.float64)
    )


def _filled(usage: Floats32) -> tuple[Floats32, Bools, Bools]:
    """Usage with the pod's own mean where it has not begun or is silent, and 0 in gaps.

    Also those gaps, and where it is silent.
    """
    observed, quiet = ~np.isnan(usage), silent(usage)
    unborn = ~np.logical_or.accumulate(observed, axis=1)
    assumed = np.where(unborn | quiet, own_mean(usage)[:, None], np.float32(0))
    return np.where(observed, usage, assumed), ~observed & ~unborn & ~quiet, quiet


def history_at(
    grid: UsageGrid, time: int, pod: Ints, node: Ints, limit: Floats, windows: int = WEEK
) -> History:
    """The history of a grid's pods as known at ``time``: only windows complete by then.

    Where the grid starts later than ``windows`` before ``time``, the missing past is NaN.
    Edges of pods that do not exist at ``time`` are left out.
    """
    stop = grid.column(time - time % WINDOW)
    usage = np.full((len(grid.pods), windows), np.nan, np.float32)
    have = min(max(stop, 0), grid.windows)
    lag = stop - have  # windows between the grid's end and now, unobserved
    count = max(min(have, windows - lag), 0)
    if count:
        usage[:, windows - lag - count : windows - lag] = grid.cpu[:, have - count : have]
    alive = (grid.born[pod] <= time) & (time < grid.gone[pod])
    return build_history(time, usage, grid.request, pod[alive], node[alive], limit)
