"""Training rows: what was known about machines at past moments, and the peaks that followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.arrays import Floats, Floats32, Ints
from models.errors import TraceError
from models.features import FEATURE_NAMES, features
from models.grid import UsageGrid
from models.history import History
from models.policy import HORIZONS
from trainer.machines import Machines, join_machines, machine_history, machines_of, peak_truth

LEAST_TIMES = 100
"""Decisions that should be sampled. Machines at one moment resemble each other, so more machines
than rows / 100 would add little but time."""


@dataclass(frozen=True, slots=True)
class Rows:
    """R training rows.

    time: [R] seconds since the epoch. features: [R, F] from the one kernel. truth: [R, H] cores,
    the peak of the seasoned pods within each of `models.policy.HORIZONS`, NaN where not known.
    """

    time: Ints
    features: Floats32
    truth: Floats32

    def __len__(self) -> int:
        return len(self.time)


def training_machines(
    grid: UsageGrid,
    pods: Ints,
    seed: int,
    placement: Sequence[str | None] | None,
    at_most: int,
) -> Machines:
    """The trace's nodes, where it knows them, and random machines of the same pods.

    Random machines multiply what few nodes can teach. Beyond ``at_most`` machines a seeded choice
    is left, with nodes and random machines in their proportions.
    """
    parts = [machines_of(grid, pods, seed)]
    if placement is not None:
        parts.insert(0, machines_of(grid, pods, seed, placement))
    machines = join_machines(parts)
    if len(machines) <= at_most:
        return machines
    rng = np.random.default_rng(seed)
    return _subset(machines, np.sort(rng.choice(len(machines), at_most, replace=False)))


def observed(grid: UsageGrid) -> UsageGrid:
    """The grid without pods that were never observed: what they use cannot be known.

    On a machine with one of them, no peak would be known.
    """
    return _chosen(grid, np.flatnonzero(~np.isnan(grid.cpu).all(axis=1)))


def check_requests(request: Floats) -> None:
    """Refuse pods [P] none of which requests CPU: their machines' forecasts would all be 0.

    Raises:
        TraceError: says so.
    """
    if not (request > 0).any():
        raise TraceError(
            "no observed online pod of the trace requests CPU, and no machine is forecast more "
            "than its pods request; use a trace that has cpu_request"
        )


def only_pods(grid: UsageGrid, machines: Machines) -> tuple[UsageGrid, Machines]:
    """The grid's pods that are on a machine at all: no history is then built of others."""
    used, pod = np.unique(machines.pod, return_inverse=True)
    return _chosen(grid, used), replace(machines, pod=pod.astype(np.int64))


def _chosen(grid: UsageGrid, pods: Ints) -> UsageGrid:
    return replace(
        grid,
        cpu=grid.cpu[pods],
        cpu_max=None if grid.cpu_max is None else grid.cpu_max[pods],
        pods=tuple(grid.pods[i] for i in pods),
        workloads=tuple(grid.workloads[i] for i in pods),
        request=grid.request[pods],
        born=grid.born[pods],
        gone=grid.gone[pods],
    )


def build_rows(
    grid: UsageGrid,
    machines: Machines,
    times: Ints,
    before: int,
    advance: Callable[[float], None] | None = None,
) -> Rows:
    """Describe the machines at each time, and look up what followed.

    Memory is that of one moment's history plus the rows.

    Args:
        grid, machines: whose usage.
        times: [T] seconds since the epoch.
        before: seconds since the epoch; a peak counts only if its whole horizon ends by then.
        advance: called with the share that is done.

    Returns:
        At most T x N rows: machines of which nothing is known at a time are left out.
    """
    shape = (len(times) * len(machines),)
    found = Rows(
        np.zeros(shape, np.int64),
        np.empty((*shape, len(FEATURE_NAMES)), np.float32),
        np.empty((*shape, len(HORIZONS)), np.float32),
    )
    kept = 0
    for done, time in enumerate(times.tolist()):
        history = machine_history(grid, machines, time)
        rows = features(history)
        known = np.flatnonzero(~np.isnan(rows).any(axis=1) & _populated(history))
        part = slice(kept, kept + len(known))
        found.time[part] = time
        found.features[part] = rows[known]
        found.truth[part] = seasoned_truth(grid, history, before)[known]
        kept += len(known)
        if advance is not None:
            advance((done + 1) / len(times))
    return Rows(found.time[:kept], found.features[:kept], found.truth[:kept])


def seasoned_truth(grid: UsageGrid, history: History, before: int) -> Floats32:
    """The peak of each machine's seasoned pods within each horizon that ends ``before``, [N, H]."""
    kept = history.seasoned[history.pod]
    seasoned = Machines(
        history.pod[kept], history.node[kept], history.limit, np.zeros(history.nodes, np.int64)
    )
    truth = peak_truth(grid, seasoned, history.time, HORIZONS)
    late = np.array([history.time + hours * 3600 > before for hours in HORIZONS])
    truth[:, late] = np.nan
    return truth.astype(np.float32)


def _populated(history: History) -> np.typing.NDArray[np.bool_]:
    return history.sum_pods(np.ones(len(history.request))) > 0


def _subset(machines: Machines, kept: Ints) -> Machines:
    number = np.full(len(machines), -1, np.int64)
    number[kept] = np.arange(len(kept))
    edges = number[machines.node] >= 0
    return Machines(
        machines.pod[edges],
        number[machines.node[edges]],
        machines.limit[kept],
        machines.size[kept],
    )
