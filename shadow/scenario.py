"""From a trace to what a replay meets: nodes, pods in order of arrival, and their usage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from models.arrays import Bools, Floats, Ints
from models.errors import TraceError
from models.generator import offline_pods
from models.grid import WINDOW, UsageGrid
from models.policy import horizon_index
from models.times import utc
from models.trace import Trace, usage_grid
from models.trace_validation import LONGEST_DAYS
from shadow.cluster import Fleet
from shadow.constraints import Constraints, constraints_of, pod_kinds, zones
from shadow.events import NEVER
from shadow.options import ReplayOptions

GIB = 2**30
PODS_PER_NODE = 10
DEFAULT_HOURS = 24.0
LEARN = 7 * 86_400
"""Seconds of usage that are history by default: a week holds every weekday once."""


@dataclass(frozen=True, slots=True)
class Pods:
    """P pods in order of arrival; all arrays are [P].

    Fields:
        names: unique.
        offline: tier.
        millicpu: requests, or the ask for reclaimed CPU; memory: bytes.
        arrival: seconds since the epoch; an online pod that runs already arrives at the start.
        duration: seconds that an offline pod runs for.
        gone: seconds since the epoch at which an online pod is deleted.
        horizon: index of the horizon that an offline pod asks for.
        node: row of the node that the trace names for an online pod, else -1.
        grid: row in the usage grid, -1 for offline pods.
        kind: of `Scenario.constraints`, None where nothing restricts pods.
    """

    names: tuple[str, ...]
    offline: Bools
    millicpu: Ints
    memory: Ints
    arrival: Ints
    duration: Ints
    gone: Ints
    horizon: Ints
    node: Ints
    grid: Ints
    kind: Ints | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that happens in [start, stop), seconds since the epoch, but for what is decided.

    ``grid`` is the online pods' usage, None where the trace has none; ``constraints`` what the
    trace says of where pods may run, None where it says nothing or its nodes are not its own.
    """

    name: str
    start: int
    stop: int
    fleet: Fleet
    pods: Pods
    grid: UsageGrid | None
    constraints: Constraints | None = None


def build_scenario(trace: Trace, options: ReplayOptions) -> Scenario:
    """What a replay of a trace meets.

    Raises:
        TraceError: the trace does not cover the wanted period, or no pod or node is there in it.
    """
    grid = usage_grid(trace)
    known = grid if grid.windows else None
    start, stop = _period(trace, known, options)
    online = _alive(grid, start, stop)
    own = _has_own_nodes(trace, options)
    fleet = _own_nodes(trace) if own else _equal_nodes(trace, grid, online, start, options)
    if not fleet.presence(start, stop - start, 1).any():
        raise TraceError(f"{trace.name}: no node is there in the replayed period.")
    if fleet.left is not None:  # what was on a node that has left is gone with it
        home = _homes(trace.pods.filter(pl.col("tier") == "online")[online], fleet)
        online = online[(home < 0) | (fleet.left[home] > start)]
    kinds, kind = pod_kinds(trace.pods)
    constraints = constraints_of(trace.nodes, kinds) if own else None
    if constraints is not None:
        trace = replace(trace, pods=trace.pods.with_columns(kind=kind))
    pods = _pods(trace, grid, online, fleet, start, stop, options)
    if len(pods) == 0:
        raise TraceError(f"{trace.name}: no pod is alive in the replayed period.")
    return Scenario(trace.name, start, stop, fleet, pods, known, constraints)


def _period(trace: Trace, grid: UsageGrid | None, options: ReplayOptions) -> tuple[int, int]:
    """When deciding begins and ends, seconds since the epoch."""
    hours = options.hours
    if grid is not None:
        first, last = grid.start, grid.end
        history = min(LEARN, (last - first) // 2)
        hours = hours or DEFAULT_HOURS
    else:
        times = trace.pods.select(
            pl.col("start").min().dt.epoch("s"), pl.col("end").max().dt.epoch("s")
        )
        first, last = times.row(0)
        history = 0
        last += 1  # a pod that ends at this second is seen to end
    start = options.start if options.start is not None else first + history
    start -= start % WINDOW
    stop = last if hours is None else min(start + round(hours * 3600), last)
    if not first - WINDOW < start < stop:
        raise TraceError(
            f"{trace.name} covers {utc(first)} to {utc(last)}, so it cannot be decided again "
            f"from {utc(start)} on; choose a start within it."
        )
    if grid is not None and (stop - start) % WINDOW:
        raise TraceError(
            f"{trace.name} has usage in windows of {WINDOW // 60} minutes, so it is decided again "
            f"for a multiple of them, not for {(stop - start) / 60:g} minutes; correct the hours."
        )
    if stop - start > LONGEST_DAYS * 86_400:
        raise TraceError(
            f"{trace.name} goes on until {utc(last)}, {(stop - start) // 86_400:,} days after its "
            "start; choose how many hours to decide again, or correct that pod's end."
        )
    return start, stop


def _alive(grid: UsageGrid, start: int, stop: int) -> Ints:
    return np.flatnonzero((grid.born < stop) & (grid.gone > start))


def _has_own_nodes(trace: Trace, options: ReplayOptions) -> bool:
    """Whether the replay is on the trace's nodes: it has some, and no others are wanted."""
    return trace.nodes is not None and options.nodes is None and options.node_cpu is None


def _own_nodes(trace: Trace) -> Fleet:
    """The trace's nodes, with when they are there."""
    nodes = trace.nodes
    if nodes is None or nodes.height == 0:
        raise TraceError(f"{trace.name}: nodes.parquet lists no node; leave the file out.")
    lives = {
        name: nodes[column].dt.epoch("s").fill_null(otherwise).to_numpy()
        for name, column, otherwise in (("joined", "start", -NEVER), ("left", "end", NEVER))
        if column in nodes.columns and nodes[column].null_count() < nodes.height
    }
    return Fleet(
        tuple(nodes["node"]),
        np.rint(nodes["cpu"].to_numpy() * 1000).astype(np.int64),
        np.rint(nodes["memory"].to_numpy() * GIB).astype(np.int64),
        zone=zones(nodes),
        **lives,
    )


def _equal_nodes(
    trace: Trace, grid: UsageGrid, online: Ints, start: int, options: ReplayOptions
) -> Fleet:
    """Equal nodes that the highest sum of online requests fills to `ReplayOptions.fill`."""
    memory = _memory(trace.pods.filter(pl.col("tier") == "online"))[online] / GIB
    born, gone = np.maximum(grid.born[online], start), grid.gone[online]
    cores = highest_sum(born, gone, grid.request[online])
    largest = float(grid.request[online].max(initial=0.0))
    count = options.nodes
    if count is None and options.node_cpu is None:
        count = max(round(highest_sum(born, gone, np.ones(len(online))) / PODS_PER_NODE), 1)
    if count is None:
        count = max(int(np.ceil(cores / (options.fill * (options.node_cpu or 1.0)))), 1)
    cpu = options.node_cpu or max(np.ceil(max(cores / (options.fill * count), largest)), 1.0)
    most = max(2 * highest_sum(born, gone, memory) / count, float(memory.max(initial=0.0)))
    return equal_fleet(count, cpu, options.node_memory or max(4 * cpu, most))


def equal_fleet(count: int, cpu: float, memory: float) -> Fleet:
    """Nodes of one kind: cores and GiB."""
    return Fleet(
        tuple(f"equal-{row:04d}" for row in range(count)),
        np.full(count, round(cpu * 1000), np.int64),
        np.full(count, round(memory * GIB), np.int64),
    )


def highest_sum(born: Ints, gone: Ints, value: Floats | Ints) -> float:
    """The highest sum of a figure over pods that are alive together."""
    time = np.concatenate([born, gone])
    change = np.concatenate([value, -value])
    # At equal times what ends comes first: it makes room.
    order = np.lexsort((change, time))
    return float(np.cumsum(change[order]).max(initial=0.0))


def _memory(pods: pl.DataFrame) -> Ints:
    """Bytes that pods request; none where the trace does not say."""
    gib = pods["memory_request"].fill_null(0.0).to_numpy()
    memory: Ints = np.rint(gib * GIB).astype(np.int64)
    return memory


def _pods(
    trace: Trace,
    grid: UsageGrid,
    online: Ints,
    fleet: Fleet,
    start: int,
    stop: int,
    options: ReplayOptions,
) -> Pods:
    """Online pods that are alive and offline pods that arrive in [start, stop)."""
    services = trace.pods.filter(pl.col("tier") == "online")[online]
    jobs = _jobs(trace, grid, fleet, start, stop, options)
    table = pl.concat([services, jobs], how="diagonal").with_columns(
        arrival=pl.col("start").dt.epoch("s").clip(start), gone=pl.col("end").dt.epoch("s")
    )
    offline = (table["tier"] == "offline").to_numpy()
    node = np.where(offline, -1, _homes(table, fleet))
    arrival, gone = _lives(table, node, fleet)
    duration = np.maximum(gone - arrival, 1)
    # What runs at the start was placed before: known places first, then the largest pods, so that
    # a full cluster does not begin with pods that find no node.
    size = np.where(arrival == start, -table["cpu_request"].to_numpy(), 0.0)
    order = np.lexsort((size, node < 0, offline, arrival))
    return Pods(
        names=tuple(table["pod"].gather(order)),
        offline=offline[order],
        millicpu=np.rint(table["cpu_request"].to_numpy() * 1000).astype(np.int64)[order],
        memory=_memory(table)[order],
        arrival=arrival[order],
        duration=duration[order],
        gone=np.maximum(gone, arrival + 1)[order],
        horizon=_horizons(duration, options)[order],
        node=node[order],
        grid=np.concatenate([online, np.full(jobs.height, -1)])[order].astype(np.int64),
        # Generated jobs are of the first kind: they want nothing.
        kind=table["kind"].fill_null(0).to_numpy()[order] if "kind" in table.columns else None,
    )


def _homes(pods: pl.DataFrame, fleet: Fleet) -> Ints:
    """Row of the node that the trace names for each pod, else -1."""
    index = {name: row for row, name in enumerate(fleet.names)}
    return np.array([index.get(name, -1) for name in pods["node"]], np.int64)


def _lives(pods: pl.DataFrame, node: Ints, fleet: Fleet) -> tuple[Ints, Ints]:
    """From when and until when each pod lives, never without the node that the trace names."""
    arrival, gone = pods["arrival"].to_numpy(), pods["gone"].to_numpy()
    if fleet.joined is not None:
        arrival = np.where(node < 0, arrival, np.maximum(arrival, fleet.joined[node]))
    if fleet.left is not None:
        gone = np.where(node < 0, gone, np.minimum(gone, fleet.left[node]))
    return arrival, gone


def _jobs(
    trace: Trace, grid: UsageGrid, fleet: Fleet, start: int, stop: int, options: ReplayOptions
) -> pl.DataFrame:
    """Offline pods of the trace, or generated ones where it has none at all."""
    own = trace.pods.filter(pl.col("tier") == "offline")
    if own.height == 0:
        there = fleet.presence(start, stop - start, 1)[:, 0]
        own = generated_jobs(
            grid, float((fleet.millicpu * there).sum()) / 1000, start, stop, options
        )
    arrival = pl.col("start").dt.epoch("s")
    return own.filter((arrival >= start) & (arrival < stop))


def generated_jobs(
    grid: UsageGrid, cores: float, start: int, stop: int, options: ReplayOptions
) -> pl.DataFrame:
    """Offline pods for a trace without any, as rows of pods.parquet: `ReplayOptions.offline_load`.

    Args:
        grid: the online pods' usage.
        cores: allocatable CPU of the nodes.
        start, stop: between which they arrive, seconds since the epoch.
        options: of the replay.
    """
    idle = max(cores - _busy(grid, start), 0.0)
    return offline_pods(options.seed, start, stop, options.offline_load * idle)


def _busy(grid: UsageGrid, start: int) -> float:
    """Cores that online pods used on the average before the start; without usage, requests."""
    past = grid.cpu[:, : max(grid.column(start), 0)]
    if past.size:
        return float(np.nansum(past, dtype=np.float64) / past.shape[1])
    return float(grid.request[(grid.born <= start) & (grid.gone > start)].sum())


def _horizons(duration: Ints, options: ReplayOptions) -> Ints:
    """Index of the horizon that each pod's expected duration takes."""
    rng = np.random.default_rng([options.seed, 1])
    expected = duration * np.exp(options.duration_blur * rng.normal(size=len(duration)))
    return np.array([horizon_index(seconds) for seconds in expected], np.int64)
