"""Figures of a replay: pure functions of what it recorded."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from models.arrays import Bools, Floats, Ints
from models.grid import WINDOW
from models.policy import HORIZONS
from shadow.result import Ending, ReplayResult, State

MOST_STEPS = 1000
"""Steps of a node series where the trace has no usage, whose windows it would have to follow."""


@dataclass(frozen=True, slots=True)
class NodeSeries:
    """CPU of each node in each step of time, all [N, T] means in cores.

    Fields:
        start, step: seconds; step t covers [start + t * step, start + (t + 1) * step).
        requested: by online pods that run.
        used: by online pods; None where the trace has no usage.
        asked: promises of offline pods that run.
        run: what of that offline pods really got: the kernel gives them only what online pods leave
            of the node, so no CPU is counted twice. As asked where usage is not known.
    """

    start: int
    step: int
    requested: Floats
    used: Floats | None
    asked: Floats
    run: Floats

    @property
    def hours(self) -> float:
        """Length of a step."""
        return self.step / 3600


class Utilisation(msgspec.Struct, frozen=True, kw_only=True):
    """CPU in use as a share of allocatable.

    mean and p95: over all nodes and steps. deviation: standard deviation between nodes, averaged
    over time. share_20_40: share of nodes and steps at 20 to 40 %, where most clusters idle.
    """

    mean: float
    deviation: float
    p95: float
    share_20_40: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay comes to. None: the trace has no usage, or nothing happened to measure.

    Fields:
        *_core_hours: of the whole replay. requested, used: by online pods. reclaimed: what offline
            pods really ran on promises. beyond_requests: the part of it above what nobody had
            requested. throttled: promised, but online pods needed it. lost: run, then lost because
            the pod was displaced and starts again; part of reclaimed.
        reclaimed_share: of the CPU that online pods left idle.
        violation_rate: share of (node, refresh, horizon) whose real peak was above the forecast,
            of those whose whole horizon lies in the trace; by_horizon: the same by hours.
        severity_mean, severity_p99: (peak - forecast) / peak over violations.
        overload_rate: share of (node, window) with promises in which online usage and promises
            together were above the ceiling; overloaded_promises: share of runs that met one.
        offline_pods_*: placed at least once, finished, waiting, refused (ask for more than any node
            could give), of offline_pods. online_pods_waiting: those that found no node.
        refused: how many pods had to wait for each reason, once or more.
        evictions, preemptions: offline pods displaced from hot nodes, and by online pods.
        wait_*_s: seconds from arrival to the first start (or the stop) of offline pods.
        decisions, decision_ms_*: how many, and how long each took where it was measured.
    """

    trace: str
    model_version: str
    start: int
    hours: float
    nodes: int
    allocatable_core_hours: float
    requested_core_hours: float
    used_core_hours: float | None
    reclaimed_core_hours: float
    reclaimed_share: float | None
    beyond_requests_core_hours: float
    throttled_core_hours: float | None
    lost_core_hours: float
    violation_rate: float | None
    violation_rate_by_horizon: dict[str, float | None]
    severity_mean: float | None
    severity_p99: float | None
    overload_rate: float | None
    overloaded_promises: float | None
    online_pods: int
    online_pods_waiting: int
    offline_pods: int
    offline_pods_placed: int
    offline_pods_finished: int
    offline_pods_waiting: int
    offline_pods_refused: int
    refused: dict[str, int]
    evictions: int
    preemptions: int
    wait_mean_s: float | None
    wait_p50_s: float | None
    wait_p95_s: float | None
    utilisation_before: Utilisation | None
    utilisation_after: Utilisation | None
    decisions: int
    decision_ms_p50: float | None
    decision_ms_p99: float | None


def node_series(result: ReplayResult) -> NodeSeries:
    """Requests, usage and offline work of each node over time."""
    span = result.stop - result.start
    step = WINDOW
    if result.used is None:
        step = max(-(-span // MOST_STEPS), 1)
    steps = -(-span // step)
    offline = result.pods.offline[result.runs.pod]
    requested = _spread(result, ~offline, step, steps)
    asked = _spread(result, offline, step, steps)
    if result.used is None:
        return NodeSeries(result.start, step, requested, None, asked, asked)
    used = result.used.astype(np.float64)
    idle = np.maximum(_allocatable(result) - used, 0.0)
    return NodeSeries(result.start, step, requested, used, asked, np.minimum(asked, idle))


def figures(result: ReplayResult, series: NodeSeries | None = None) -> Figures:
    """All figures of a replay; ``series`` saves computing `node_series` again."""
    series = series or node_series(result)
    runs, pods, state = result.runs, result.pods, result.state
    capacity = float(result.fleet.millicpu.sum()) / 1000 * (result.stop - result.start) / 3600
    run = float(series.run.sum()) * series.hours
    used = None if series.used is None else float(series.used.sum()) * series.hours
    unrequested = np.maximum(_allocatable(result) - series.requested, 0.0)
    placed = np.unique(runs.pod[pods.offline[runs.pod]])
    waited = result.waited[pods.offline]
    rate, by_horizon, severity = violations(result)
    overload, overloaded = overloads(result, series)
    latency = result.latency * 1000
    return Figures(
        trace=result.trace,
        model_version=result.model_version,
        start=result.start,
        hours=(result.stop - result.start) / 3600,
        nodes=len(result.fleet),
        allocatable_core_hours=capacity,
        requested_core_hours=float(series.requested.sum()) * series.hours,
        used_core_hours=used,
        reclaimed_core_hours=run,
        reclaimed_share=None if used is None or used >= capacity else run / (capacity - used),
        beyond_requests_core_hours=float(np.maximum(series.run - unrequested, 0).sum())
        * series.hours,
        throttled_core_hours=None
        if used is None
        else float((series.asked - series.run).sum()) * series.hours,
        lost_core_hours=float(_core_hours(result)[runs.ending != Ending.NATURAL].sum()),
        violation_rate=rate,
        violation_rate_by_horizon=by_horizon,
        severity_mean=None if len(severity) == 0 else float(severity.mean()),
        severity_p99=_quantile(severity, 99),
        overload_rate=overload,
        overloaded_promises=overloaded,
        online_pods=int((~pods.offline).sum()),
        online_pods_waiting=int((~pods.offline & (state >= State.WAITING)).sum()),
        offline_pods=int(pods.offline.sum()),
        offline_pods_placed=len(placed),
        offline_pods_finished=int((pods.offline & (state == State.FINISHED)).sum()),
        offline_pods_waiting=int((pods.offline & (state == State.WAITING)).sum()),
        offline_pods_refused=int((pods.offline & (state == State.REFUSED)).sum()),
        refused=result.refused,
        evictions=int((runs.ending == Ending.EVICTED).sum()),
        preemptions=int((runs.ending == Ending.PREEMPTED).sum()),
        wait_mean_s=None if len(waited) == 0 else float(waited.mean()),
        wait_p50_s=_quantile(waited, 50),
        wait_p95_s=_quantile(waited, 95),
        utilisation_before=utilisation(result, series.used),
        utilisation_after=None
        if series.used is None
        else utilisation(result, series.used + series.run),
        decisions=result.decisions,
        decision_ms_p50=_quantile(latency, 50),
        decision_ms_p99=_quantile(latency, 99),
    )


def judged(result: ReplayResult) -> tuple[Bools, Bools]:
    """Which forecasts can be judged, and which of them were violated, both [R, N, H].

    A forecast is judged where its node had one and pods, and its whole horizon lies in the trace.
    """
    if result.forecasts is None:
        empty = np.zeros((0, len(result.fleet), len(HORIZONS)), bool)
        return empty, empty
    forecast, truth = result.forecasts.forecast, result.forecasts.truth
    known = np.isfinite(forecast) & np.isfinite(truth)
    # A truth that equals the forecast in cores must not count by float32's last digit.
    return known, known & (truth > forecast + 1e-5)


def violations(result: ReplayResult) -> tuple[float | None, dict[str, float | None], Floats]:
    """The violation rate over all horizons and by horizon, and each violation's severity."""
    known, violated = judged(result)
    by_horizon = {
        str(hours): _share(violated[:, :, column], known[:, :, column])
        for column, hours in enumerate(HORIZONS)
    }
    if result.forecasts is None:
        return None, by_horizon, np.zeros(0)
    truth = result.forecasts.truth[violated].astype(np.float64)
    severity = (truth - result.forecasts.forecast[violated]) / truth
    return _share(violated, known), by_horizon, severity


def overload_windows(result: ReplayResult, series: NodeSeries) -> Bools:
    """Node and steps, [N, T], in which online usage and promises were above the ceiling."""
    if series.used is None:
        return np.zeros(series.asked.shape, bool)
    ceiling = _allocatable(result) * result.policy.ceiling
    over: Bools = (series.asked > 0) & (series.used + series.asked > ceiling + 1e-5)
    return over


def overloads(result: ReplayResult, series: NodeSeries) -> tuple[float | None, float | None]:
    """Share of node windows with promises that were overloaded, and of promises that met one."""
    if series.used is None:
        return None, None
    over = overload_windows(result, series)
    before = np.concatenate([np.zeros((len(over), 1)), np.cumsum(over, axis=1)], axis=1)
    kept = result.pods.offline[result.runs.pod]
    node = result.runs.node[kept]
    first = (result.runs.begin[kept] - series.start) // series.step
    last = -((series.start - result.runs.end[kept]) // series.step)
    met = before[node, last] > before[node, first]
    return _share(over, series.asked > 0), None if len(met) == 0 else float(met.mean())


def utilisation(result: ReplayResult, cores: Floats | None) -> Utilisation | None:
    """How full the nodes were and how evenly; ``cores`` in use are [N, T]."""
    if cores is None:
        return None
    share = cores / np.maximum(_allocatable(result), 1e-9)
    return Utilisation(
        mean=float(share.mean()),
        deviation=float(share.std(axis=0).mean()),
        p95=float(np.percentile(share, 95)),
        share_20_40=float(((share >= 0.2) & (share <= 0.4)).mean()),
    )


def time_series(result: ReplayResult, series: NodeSeries) -> dict[str, Floats]:
    """Sums over the nodes for plots, in cores, and shares; all [T] but `time` in epoch seconds.

    ``forecast`` and ``forecast_day`` are those for the shortest and the longest horizon, as the
    last refresh left them; ``before`` and ``after`` the mean utilisation of the nodes without and
    with offline pods, ``*_deviation`` its standard deviation between nodes. What needs usage is
    absent where the trace has none.
    """
    steps = series.asked.shape[1]
    time = series.start + np.arange(steps) * float(series.step)
    found = {
        "time": time,
        "allocatable": np.full(steps, result.fleet.millicpu.sum() / 1000),
        "requested": series.requested.sum(axis=0),
        "reclaimed": series.run.sum(axis=0),
    }
    if series.used is None or result.forecasts is None:
        return found
    refresh = np.searchsorted(result.forecasts.time, time, side="right") - 1
    totals = np.nansum(result.forecasts.forecast.astype(np.float64), axis=1)[refresh]
    found |= {"used": series.used.sum(axis=0), "forecast": totals[:, 0]}
    found["forecast_day"] = totals[:, -1]
    for name, cores in (("before", series.used), ("after", series.used + series.run)):
        share = cores / np.maximum(_allocatable(result), 1e-9)
        found |= {name: share.mean(axis=0), f"{name}_deviation": share.std(axis=0)}
    return found


def _allocatable(result: ReplayResult) -> Floats:
    """Cores, [N, 1]."""
    return (result.fleet.millicpu / 1000)[:, None]


def _core_hours(result: ReplayResult) -> Floats:
    """What each run asked for over its length, [R]."""
    runs = result.runs
    hours: Floats = (runs.end - runs.begin) / 3600 * result.pods.millicpu[runs.pod] / 1000
    return hours


def _spread(result: ReplayResult, kept: Bools, step: int, steps: int) -> Floats:
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


def _share(part: Bools, whole: Bools) -> float | None:
    total = int(whole.sum())
    return None if total == 0 else int(part.sum()) / total


def _quantile(values: Floats | Ints, percent: float) -> float | None:
    return None if len(values) == 0 else float(np.percentile(values, percent))
