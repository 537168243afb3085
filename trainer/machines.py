"""The machines, moments and true peaks on which forecasts are fitted and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.arrays import Bools, Floats, Ints
from models.grid import HOUR, WINDOW, UsageGrid
from models.history import History, history_at
from models.trace import Trace
from models.truth import MIN_OBSERVED, STEP, highest_known, sum_known

SIZES = (8, 20, 40)
"""Pods on a random machine."""

PER_SIZE = 20
"""Random machines of each size: the spread between machines stays small against that between days,
and a trace of 100 pods is still evaluated in minutes."""

TRAIN_SHARE = 0.6
"""Share of the pods (or of the trace's nodes) that train; the rest test."""


@dataclass(frozen=True, slots=True)
class Machines:
    """N machines as M edges: pod ``pod[e]`` is on machine ``node[e]`` while it exists.

    limit: [N] cores, the sum of the requests of all its pods; size: [N] pods, dead or alive.
    """

    pod: Ints
    node: Ints
    limit: Floats
    size: Ints

    def __len__(self) -> int:
        return len(self.limit)


def placement_of(trace: Trace, grid: UsageGrid) -> tuple[str | None, ...] | None:
    """The node of each pod of a grid, or None where the trace places none of them."""
    node_of = dict(trace.pods.select("pod", "node").iter_rows())
    nodes = tuple(node_of.get(pod) for pod in grid.pods)
    return None if all(node is None for node in nodes) else nodes


def split_pods(
    grid: UsageGrid, seed: int, placement: Sequence[str | None] | None = None
) -> tuple[Ints, Ints]:
    """Seeded 60/40 split of the pods' indices into train and test, each sorted.

    Where the trace places pods on nodes, whole nodes are split, so that a machine keeps all its
    pods; pods without a node are then in neither part.
    """
    rng = np.random.default_rng(seed)
    if placement is None:
        return _split(np.arange(len(grid.pods)), rng)
    node = _node_index(placement)
    train, test = _split(np.unique(node[node >= 0]), rng)
    return np.flatnonzero(np.isin(node, train)), np.flatnonzero(np.isin(node, test))


def machines_of(
    grid: UsageGrid,
    pods: Ints,
    seed: int,
    placement: Sequence[str | None] | None = None,
    per_size: int = PER_SIZE,
) -> Machines:
    """Machines made of some of a grid's pods.

    Args:
        grid: pods and their requests.
        pods: indices of the pods that may be used.
        seed: of the random machines.
        placement: the node of each of the grid's pods, where the trace knows it; None draws random
            machines of 8, 20 and 40 pods.
        per_size: random machines of each size, as far as that many different ones exist. A size
            with more pods than there are is left out; where even 8 are too many, one machine
            holds all.
    """
    if placement is not None:
        index = _node_index(placement)
        kept = pods[index[pods] >= 0]
        node = np.unique(index[kept], return_inverse=True)[1]
        return _machines(grid, kept, node.astype(np.int64))
    rng = np.random.default_rng(seed)
    sizes = [size for size in SIZES if size <= len(pods)] or [len(pods)]
    members = [m for size in sizes if size for m in _draw(pods, size, per_size, rng)]
    node = np.repeat(np.arange(len(members)), [len(m) for m in members])
    return _machines(grid, np.concatenate([np.zeros(0, np.int64), *members]), node)


def join_machines(parts: Sequence[Machines]) -> Machines:
    """All machines of several sets, in order: one history then serves them all."""
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    return Machines(
        np.concatenate([part.pod for part in parts]),
        np.concatenate([part.node + offset for part, offset in zip(parts, offsets, strict=False)]),
        np.concatenate([part.limit for part in parts]),
        np.concatenate([part.size for part in parts]),
    )


def decision_times(grid: UsageGrid, first: float, last: float) -> Ints:
    """Moments on the half hour within [first, last) of the grid's time axis, as shares of it."""
    span = grid.end - grid.start
    begin, end = grid.start + first * span, grid.start + last * span
    times = np.arange(-(-grid.start // STEP) * STEP, grid.end, STEP, dtype=np.int64)
    return times[(times >= begin) & (times < end)]


def machine_history(grid: UsageGrid, machines: Machines, time: int) -> History:
    """What was known at ``time`` about the machines.

    A machine's limit is the sum of the requests of the pods that exist at ``time``.
    """
    requests = np.where(_alive(grid, time), grid.request, 0.0)
    limit = np.bincount(machines.node, requests[machines.pod], minlength=len(machines))
    return history_at(grid, time, machines.pod, machines.node, limit.astype(np.float64))


def peak_truth(
    grid: UsageGrid,
    machines: Machines,
    time: int,
    horizons: Sequence[int],
    column: Literal["cpu", "cpu_max"] = "cpu",
) -> Floats:
    """The highest summed usage of each machine's pods of ``time`` within each horizon.

    The pods are those that exist at ``time``; one that ends within the horizon uses nothing from
    then on. A window in which an existing pod was not observed is unknown.

    Args:
        grid, machines: whose usage.
        time: the decision, seconds since the epoch.
        horizons: hours; the truth is over the windows of (time, time + hours].
        column: the windows' mean, or their highest minute.

    Returns:
        [N, H] cores; NaN where the grid ends before the horizon, where a machine has no pod at
        ``time``, or where less than MIN_OBSERVED of the windows are known.
    """
    values = grid.cpu if column == "cpu" else grid.cpu_max
    truth = np.full((len(machines), len(horizons)), np.nan)
    first = grid.column(time - time % WINDOW)
    if values is None or first < 0:
        return truth
    alive = _alive(grid, time)[machines.pod]
    last = first + max(horizons) * HOUR
    starts = grid.start + np.arange(first, min(last, grid.windows)) * WINDOW
    future = values[:, first:last].copy()
    ended = starts + WINDOW > grid.gone[:, None]
    future[ended & np.isnan(future)] = 0.0
    total = sum_known(future, machines.pod[alive], machines.node[alive], len(machines))
    populated = np.bincount(machines.node[alive], minlength=len(machines)) > 0
    for j, hours in enumerate(horizons):
        count = hours * HOUR
        if first + count > grid.windows:
            continue
        peak, known = highest_known(total[:, :count])
        enough = populated & (known >= MIN_OBSERVED * count)
        truth[enough, j] = peak[enough]
    return truth


def _alive(grid: UsageGrid, time: int) -> Bools:
    return (grid.born <= time) & (time < grid.gone)


def _split(items: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    shuffled = rng.permutation(items)
    count = round(TRAIN_SHARE * len(items))
    return np.sort(shuffled[:count]), np.sort(shuffled[count:])


def _draw(pods: Ints, size: int, count: int, rng: np.random.Generator) -> list[Ints]:
    """Up to ``count`` different random sets of ``size`` pods."""
    found: dict[tuple[int, ...], Ints] = {}
    for _ in range(4 * count):  # repeats are rare unless hardly any different sets exist
        drawn = np.sort(rng.choice(pods, size, replace=False))
        found.setdefault(tuple(drawn.tolist()), drawn)
        if len(found) == count:
            break
    return list(found.values())


def _machines(grid: UsageGrid, pod: Ints, node: Ints) -> Machines:
    size = np.bincount(node).astype(np.int64)
    limit = np.bincount(node, grid.request[pod], minlength=len(size)).astype(np.float64)
    return Machines(pod, node, limit, size)


def _node_index(placement: Sequence[str | None]) -> Ints:
    """Index of each pod's node among the sorted node names, -1 for a pod without one."""
    names = sorted({name for name in placement if name is not None})
    index = {name: row for row, name in enumerate(names)}
    return np.array([-1 if name is None else index[name] for name in placement], np.int64)
