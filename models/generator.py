"""A synthetic cluster for those who have no trace at hand, and jobs for traces without any.

Everything is drawn from a seed: the same parameters give the same trace.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import signal, special

from models.arrays import Bools, Floats, Ints
from models.generator_spec import ClusterSpec, JobSpec
from models.grid import DAY, WINDOW
from models.trace import Trace
from models.trace_schema import NODES, PODS, USAGE, conform

__all__ = ["ClusterSpec", "JobSpec", "generate_trace", "offline_pods"]


@dataclass(frozen=True, slots=True)
class _Slots:
    """Replica slots: what successive pods of one replica have in common. All arrays are [S]."""

    workload: Ints
    replica: Ints
    request: Floats
    memory: Floats
    node: Ints


def generate_trace(spec: ClusterSpec) -> Trace:
    """A cluster whose online pods fill it by request and use a fraction of that.

    No node's requests exceed its CPU or memory at any time, no node's usage its CPU, and no pod's
    usage its limit.
    """
    rng = np.random.default_rng(spec.seed)
    slots, free = _fill_nodes(spec, rng)
    pods, slot, release = _roll_out(spec, rng, slots, free)
    usage = _usage(spec, rng, slots, pods, slot, release)
    nodes = pl.DataFrame(
        {
            "node": [_node(index) for index in range(spec.nodes)],
            "cpu": spec.node_cpu,
            "memory": spec.node_memory,
        }
    )
    return Trace(f"generated-{spec.seed}", conform(nodes, NODES), pods, usage)


def _node(index: int) -> str:
    return f"node-{index:03d}"


def _fill_nodes(spec: ClusterSpec, rng: np.random.Generator) -> tuple[_Slots, Floats]:
    """Add workloads until the nodes are full; also what stays free, [nodes, 2] (cores, GiB)."""
    free = np.tile([spec.node_cpu, spec.node_memory], (spec.nodes, 1)).astype(np.float64)
    wanted = spec.fill * spec.nodes * spec.node_cpu
    rows: list[tuple[int, int, float, float, int]] = []
    total, workload, failures = 0.0, 0, 0
    while total < wanted - min(spec.requests) / 2 and failures < 50:
        request = float(rng.choice(spec.requests))
        memory = round(request * rng.uniform(*spec.memory_per_core), 2)
        placed = 0
        for replica in range(int(rng.geometric(1 / spec.replicas))):
            node = _roomiest(free, request, memory)
            if node is None or total + request > wanted + min(spec.requests) / 2:
                break
            free[node] -= request, memory
            total += request
            rows.append((workload, replica, request, memory, node))
            placed += 1
        workload += placed > 0
        failures = 0 if placed else failures + 1
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return _Slots(*columns), free


def _roomiest(free: Floats, request: float, memory: float) -> int | None:
    """The node with the most free CPU that holds the pod: kube-scheduler's default spreading."""
    fits = (free[:, 0] >= request) & (free[:, 1] >= memory)
    if not fits.any():
        return None
    return int(np.argmax(np.where(fits, free[:, 0], -np.inf)))


def _roll_out(
    spec: ClusterSpec, rng: np.random.Generator, slots: _Slots, free: Floats
) -> tuple[pl.DataFrame, Ints, Ints]:
    """Replace pods at each rollout, one a minute, each on the node with the most room.

    Returns:
        pods.parquet's table, and for each pod its slot and the release that it runs.
    """
    end = spec.start + spec.days * 86_400
    releases = [
        (int(time), workload)
        for workload in range(int(slots.workload.max()) + 1)
        for time in rng.uniform(
            spec.start + 3600, end - 3600, rng.poisson(spec.rollouts_per_day * spec.days)
        )
    ]
    rows = [[slot, 0, spec.start, end, int(node)] for slot, node in enumerate(slots.node)]
    current = list(range(len(rows)))
    count = np.zeros(int(slots.workload.max()) + 1, np.int64)
    for time, workload in sorted(releases):
        count[workload] += 1
        members = np.flatnonzero(slots.workload == workload)
        for turn, slot in enumerate(members.tolist()):
            old = rows[current[slot]]
            moment = time + 60 * turn
            if not old[2] < moment < end:
                continue
            ask = slots.request[slot], slots.memory[slot]
            free[old[4]] += ask
            node = _roomiest(free, *ask)
            assert node is not None  # noqa: S101 - the old pod's place has just been freed
            free[node] -= ask
            old[3] = moment
            current[slot] = len(rows)
            rows.append([slot, int(count[workload]), moment, end, node])
    slot, release, born, gone, on = np.array(rows, np.int64).T
    return _pods_table(slots, slot, release, born, gone, on), slot, release


def _pods_table(
    slots: _Slots, slot: Ints, release: Ints, born: Ints, gone: Ints, node: Ints
) -> pl.DataFrame:
    names = [f"service-{workload:03d}" for workload in slots.workload[slot]]
    table = pl.DataFrame(
        {
            "pod": [
                f"{name}-{version}-{replica}"
                for name, version, replica in zip(names, release, slots.replica[slot], strict=True)
            ],
            "workload": [f"default/Deployment/{name}" for name in names],
            "tier": "online",
            "cpu_request": slots.request[slot],
            "memory_request": slots.memory[slot],
            "start": _times(born),
            "end": _times(gone),
            "node": [_node(index) for index in node],
        }
    )
    return conform(table, PODS)


def _times(seconds: Ints) -> pl.Series:
    """Seconds since the epoch as UTC timestamps."""
    return pl.Series(seconds.astype(np.int64) * 1_000_000).cast(pl.Datetime("us", "UTC"))


def _usage(
    spec: ClusterSpec,
    rng: np.random.Generator,
    slots: _Slots,
    pods: pl.DataFrame,
    slot: Ints,
    release: Ints,
) -> pl.DataFrame:
    """usage.parquet's table: the demand of each slot, cut into its pods' lives."""
    windows = spec.days * DAY
    demand = _workload_demand(spec, rng, int(slots.workload.max()) + 1, windows)
    share = np.exp(rng.normal(0, spec.imbalance, len(slots.request)))[:, None] * np.exp(
        spec.imbalance * _ar1(rng, len(slots.request), windows, spec.noise_memory)
    )
    usage = demand[slots.workload] * share * slots.request[:, None]

    born = (pods["start"].dt.epoch("s").to_numpy() - spec.start + WINDOW - 1) // WINDOW
    gone = (pods["end"].dt.epoch("s").to_numpy() - spec.start + WINDOW - 1) // WINDOW
    length = gone - born
    pod = np.repeat(np.arange(pods.height), length)
    window = np.arange(len(pod)) - np.repeat(np.cumsum(length) - length, length) + born[pod]
    change = np.exp(spec.rollout_change * rng.normal(size=pods.height)) * (release > 0) + (
        release == 0
    )
    age = window - born[pod]
    warm = 1 + spec.warm_up * 0.5 ** np.minimum(age, 60) * (release[pod] > 0)
    limit = spec.burst_limit * slots.request[slot[pod]]
    cpu = np.minimum(usage[slot[pod], window] * change[pod] * warm, limit)
    node = pods["node"].str.slice(5).cast(pl.Int64).to_numpy()[pod]
    cpu *= _contention(spec, cpu, node * windows + window)
    above = spec.minute_peak * np.exp(0.6 * rng.normal(size=len(cpu)))
    cpu_max = np.minimum(cpu * (1 + above), np.minimum(limit, spec.node_cpu))
    kept = _observed(spec, rng, window, windows)
    table = pl.DataFrame(
        {
            "pod": pods["pod"].gather(pod[kept]),
            "time": _times(spec.start + window[kept] * WINDOW),
            "cpu": cpu[kept],
            "cpu_max": np.maximum(cpu_max, cpu)[kept],
        }
    )
    return conform(table, USAGE)


def _contention(spec: ClusterSpec, cpu: Floats, cell: Ints) -> Floats:
    """The factor that keeps each node within its CPU; a cell is one node in one window."""
    load = np.bincount(cell, weights=cpu, minlength=spec.nodes * spec.days * DAY)
    return np.minimum(1.0, spec.node_cpu / np.maximum(load, 1e-9))[cell]


def _observed(spec: ClusterSpec, rng: np.random.Generator, window: Ints, windows: int) -> Bools:
    """Which rows survive outages and failed scrapes."""
    up = np.ones(windows, bool)
    for _ in range(spec.outages):
        first = int(rng.integers(windows))
        up[first : first + int(rng.integers(4, 37))] = False
    kept: Bools = up[window] & (rng.random(len(window)) >= spec.missing)
    return kept


def _workload_demand(
    spec: ClusterSpec, rng: np.random.Generator, workloads: int, windows: int
) -> Floats:
    """Demand of each workload as a share of its pods' requests, [workloads, windows]."""

    def column(values: Floats) -> Floats:
        return values[:, None]

    time = spec.start + np.arange(windows) * WINDOW
    hour = (time % 86_400) / 3600
    weekend = np.isin((time // 86_400 + 3) % 7, (5, 6))  # the epoch was a Thursday
    night = column(rng.random(workloads)) < spec.night_share
    peak = column(rng.normal(*spec.day_peak, workloads)) + 12 * night
    angle = 2 * np.pi * (hour - peak) / 24
    swing = column(rng.uniform(*spec.tide, workloads))
    # The second harmonic makes mornings rise faster than evenings fall.
    tide = 1 + swing * (0.85 * np.cos(angle) + 0.15 * np.sin(2 * angle))
    dip = column(rng.uniform(*spec.weekend_dip, workloads)) * ~night
    trend = 1 + column(rng.normal(0, spec.growth, workloads)) * np.arange(windows) / DAY
    noise = np.exp(spec.noise * _ar1(rng, workloads, windows, spec.noise_memory))
    base = tide * (1 - dip * weekend) * np.maximum(trend, 0.1) * noise
    base /= base.mean(axis=1, keepdims=True) * column(rng.uniform(*spec.over_request, workloads))
    return np.asarray(base * (1 + _spikes(spec, rng, workloads, windows)))


def _spikes(spec: ClusterSpec, rng: np.random.Generator, workloads: int, windows: int) -> Floats:
    """Extra demand from bursts as a multiple of the demand, [workloads, windows]."""
    starts = rng.random((workloads, windows)) < spec.spikes_per_day / DAY
    height = rng.pareto(spec.spike_tail, (workloads, windows))
    fade = np.exp(-WINDOW / (60 * spec.spike_minutes))
    return np.asarray(signal.lfilter([1.0], [1.0, -fade], starts * height, axis=1))


def _ar1(rng: np.random.Generator, rows: int, windows: int, memory: float) -> Floats:
    """Stationary AR(1) noise with unit variance, [rows, windows]."""
    shocks = rng.normal(size=(rows, windows)) * np.sqrt(1 - memory**2)
    shocks[:, 0] /= np.sqrt(1 - memory**2)
    return np.asarray(signal.lfilter([1.0], [1.0, -memory], shocks, axis=1))


def offline_pods(seed: int, start: int, end: int, cores: float) -> pl.DataFrame:
    """A stream of offline jobs (see `JobSpec`) as rows of pods.parquet, in order of arrival.

    Arrivals are Poisson with a daily tide. ``start`` is the arrival and ``end`` the arrival plus
    the duration, as if the job ran at once; ``cpu_request`` is its ask in cores of reclaimed CPU.

    Args:
        seed: of every random choice.
        start: seconds since the epoch of the first possible arrival.
        end: seconds since the epoch after the last possible arrival; runs may go on beyond it.
        cores: offered load: cores that would be running on the average if no job ever waited.
    """
    spec = JobSpec()
    rng = np.random.default_rng(seed)
    # Evenly spaced quantiles instead of draws: every seed has its long-running workloads.
    quantiles = (np.arange(spec.workloads) + 0.5) / spec.workloads
    scale = spec.median_minutes * 60 * np.exp(spec.spread * special.ndtri(quantiles))
    weights = np.array(spec.ask_weights) / sum(spec.ask_weights)
    mean_ask = float(weights @ np.array(spec.asks))
    work = mean_ask * float(_mean_duration(scale, spec).mean())  # core-seconds of a job, expected
    count = int(rng.poisson(cores * (end - start) / work)) if end > start else 0
    arrival = _arrivals(rng, count, start, end, spec)
    workload = rng.integers(spec.workloads, size=count)
    duration = _bounded(scale[workload] * np.exp(spec.run_spread * rng.normal(size=count)), spec)
    ask = rng.choice(spec.asks, size=count, p=weights)
    table = pl.DataFrame(
        {
            "pod": [f"job-{seed}-{index:05d}" for index in range(count)],
            "workload": [f"batch/Job/job-{index:02d}" for index in workload],
            "tier": "offline",
            "cpu_request": ask,
            "memory_request": ask * spec.memory_per_core,
            "start": _times(arrival),
            "end": _times(arrival + duration.astype(np.int64)),
        },
        schema_overrides={"pod": pl.String, "workload": pl.String, "tier": pl.String},
    )
    return conform(table, PODS)


def _bounded(seconds: Floats, spec: JobSpec) -> Floats:
    return np.clip(seconds, spec.shortest_minutes * 60, spec.longest_hours * 3600)


def _mean_duration(scale: Floats, spec: JobSpec) -> Floats:
    """Mean of a log-normal duration clipped to the spec's bounds, in seconds; as `scale`.

    E[clip(X, a, b)] = a P(X < a) + E[X; a < X < b] + b P(X > b), with X log-normal.
    """
    low, high = spec.shortest_minutes * 60, spec.longest_hours * 3600
    sigma = spec.run_spread
    below, above = (np.log(bound / scale) / sigma for bound in (low, high))
    inside = special.ndtr(above - sigma) - special.ndtr(below - sigma)
    body = scale * np.exp(sigma**2 / 2) * inside
    return np.asarray(low * special.ndtr(below) + body + high * special.ndtr(-above))


def _arrivals(rng: np.random.Generator, count: int, start: int, end: int, spec: JobSpec) -> Ints:
    """Sorted arrival times in seconds since the epoch, thinned by the daily tide."""
    kept: list[Ints] = [np.empty(0, np.int64)]
    missing = count
    while missing > 0:
        time = rng.integers(start, end, size=2 * missing)
        angle = 2 * np.pi * (time / 3600 - spec.peak_hour) / 24
        rate = (1 + spec.tide * np.cos(angle)) / (1 + spec.tide)
        kept.append(time[rng.random(len(time)) < rate][:missing])
        missing -= len(kept[-1])
    return np.sort(np.concatenate(kept))
