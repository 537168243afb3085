"""CPU of each node over time: what every figure of a replay is summed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.arrays import Bools, Floats
from models.grid import WINDOW
from shadow.result import ReplayResult

MOST_STEPS = 1000
"""Steps of a node series where the trace has no usage, whose windows it would have to follow."""


@dataclass(frozen=True, slots=True)
class NodeSeries:
    """CPU of each node in each step of time, all [N, T] means in cores.

    Fields:
        start, step: seconds; step t covers [start + t * step, start + (t + 1) * step).
        allocatable: 0 while a node is not there.
        requested: by online pods that run.
        used: by online pods; None where the trace has no usage.
        asked: promises of offline pods that run.
        run: what of that offline pods really got: the kernel gives them only what online pods leave
            of the node, so no CPU is counted twice. As asked where usage is not known.
    """

    start: int
    step: int
    allocatable: Floats
    requested: Floats
    used: Floats | None
    asked: Floats
    run: Floats

    @property
    def hours(self) -> float:
        """Length of a step."""
        return self.step / 3600


def node_series(result: ReplayResult) -> NodeSeries:
    """Requests, usage and offline work of each node over time."""
    span = result.stop - result.start
    step = WINDOW
    if result.used is None:
        step = max(-(-span // MOST_STEPS), 1)
    steps = -(-span // step)
    offline = result.pods.offline[result.runs.pod]
    requested = spread(result, ~offline, step, steps)
    asked = spread(result, offline, step, steps)
    cores = (result.fleet.millicpu / 1000)[:, None]
    cores = cores * result.fleet.presence(result.start, step, steps)
    if result.used is None:
        return NodeSeries(result.start, step, cores, requested, None, asked, asked)
    used = result.used.astype(np.float64)
    run = np.minimum(asked, np.maximum(cores - used, 0.0))
    return NodeSeries(result.start, step, cores, requested, used, asked, run)


def time_series(result: ReplayResult, series: NodeSeries) -> dict[str, Floats]:
    """Sums over the nodes for plots, [T] in cores, and ``time`` in seconds since the epoch.

    ``forecast`` is that for the shortest horizon, as the last refresh left it. What needs usage is
    absent where the trace has none.
    """
    steps = series.asked.shape[1]
    time = series.start + np.arange(steps) * float(series.step)
    found = {
        "time": time,
        "allocatable": series.allocatable.sum(axis=0),
        "requested": series.requested.sum(axis=0),
        "reclaimed": series.run.sum(axis=0),
    }
    if series.used is None or result.forecasts is None:
        return found
    refresh = np.searchsorted(result.forecasts.time, time, side="right") - 1
    totals = np.nansum(result.forecasts.forecast.astype(np.float64), axis=1)[refresh]
    return found | {"used": series.used.sum(axis=0), "forecast": totals[:, 0]}


def shares(cores: Floats, allocatable: Floats) -> Floats:
    """CPU in use as a share of allocatable, [N, T]: NaN for a node that is not there.

    At a time at which no node is there, it is 0 for all, so that figures over nodes are, too.
    """
    there = allocatable > 0
    share: Floats = np.full(cores.shape, np.nan)
    np.divide(cores, allocatable, out=share, where=there)
    share[:, ~there.any(axis=0)] = 0.0
    return share


def spread(result: ReplayResult, kept: Bools, step: int, steps: int) -> Floats:
    """Mean cores of the kept runs on each node in each step, [N, T].

    A run that begins a fraction f into a step adds (1 - f) of its cores to that step's mean, and
    all of them to later ones; its end takes the same away.
    """
    runs = result.runs
    cores = result.pods.millicpu[runs.pod[kept]] / 1000
    change = np.zeros((len(result.fleet), steps + 2))
    for time, sign in ((runs.begin[kept], 1.0), (runs.end[kept], -1.0)):
        at, rest = np.divmod(time - result.start, step)
        part = rest / step
        np.add.at(change, (runs.node[kept], at), sign * cores * (1 - part))
        np.add.at(change, (runs.node[kept], at + 1), sign * cores * part)
    mean: Floats = np.cumsum(change, axis=1)[:, :steps]
    return np.where(np.abs(mean) < 1e-9, 0.0, mean)  # sums that return to 0 leave rounding behind
