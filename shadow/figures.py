"""Figures of a replay: pure functions of what it recorded."""

from __future__ import annotations

import msgspec
import numpy as np

from models.arrays import Bools, Floats, Ints
from models.policy import HORIZONS
from shadow.fragmentation import fragmentation
from shadow.result import Ending, ReplayResult, State
from shadow.series import NodeSeries, node_series
from shadow.utilisation import Balance, Utilisation, balance, utilisation


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay comes to. None: the trace has no usage, or nothing happened to measure.

    Fields:
        nodes: that were there at some time.
        *_core_hours: of the whole replay. allocatable: of nodes while they were there. requested,
            used: by online pods. allocated: requests of online pods and promises that ran.
            reclaimed: what offline pods really ran on promises. beyond_requests: the part of it
            above what nobody had requested. throttled: promised, but online pods needed it. lost:
            run, then lost because the pod was displaced and starts again; part of reclaimed.
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
        fragmentation: share of the CPU left to promise in pieces too small for the pods that ask,
            see `shadow.fragmentation`.
        utilisation_*, balance_*: of nodes by online pods alone (before) and with offline pods.
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
    allocated_core_hours: float
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
    wait_p99_s: float | None
    fragmentation: float | None
    utilisation_before: Utilisation | None
    utilisation_after: Utilisation | None
    balance_before: Balance | None
    balance_after: Balance | None
    decisions: int
    decision_ms_p50: float | None
    decision_ms_p99: float | None


def figures(result: ReplayResult, series: NodeSeries | None = None) -> Figures:
    """All figures of a replay; ``series`` saves computing `node_series` again."""
    series = series or node_series(result)
    runs, pods, state = result.runs, result.pods, result.state
    capacity = _capacity(result)
    run = float(series.run.sum()) * series.hours
    used = None if series.used is None else float(series.used.sum()) * series.hours
    after = None if series.used is None else series.used + series.run
    unrequested = np.maximum(series.allocatable - series.requested, 0.0)
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
        allocated_core_hours=float((series.requested + series.asked).sum()) * series.hours,
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
        wait_p99_s=_quantile(waited, 99),
        fragmentation=fragmentation(result, series),
        utilisation_before=utilisation(series, series.used),
        utilisation_after=utilisation(series, after),
        balance_before=balance(series, series.used),
        balance_after=balance(series, after),
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


def overload_windows(
    result: ReplayResult, series: NodeSeries, ceiling: float | None = None
) -> Bools:
    """Node and steps, [N, T], in which online usage and promises were above the ceiling.

    ``ceiling`` is a share of allocatable, by default the policy's own.
    """
    if series.used is None:
        return np.zeros(series.asked.shape, bool)
    limit = series.allocatable * (ceiling or result.policy.ceiling)
    over: Bools = (series.asked > 0) & (series.used + series.asked > limit + 1e-5)
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


def _capacity(result: ReplayResult) -> float:
    """Core-hours of the nodes while they were there."""
    span = result.stop - result.start
    there = result.fleet.presence(result.start, span, 1)[:, 0]
    return float((result.fleet.millicpu * there).sum()) / 1000 * span / 3600


def _core_hours(result: ReplayResult) -> Floats:
    """What each run asked for over its length, [R]."""
    runs = result.runs
    hours: Floats = (runs.end - runs.begin) / 3600 * result.pods.millicpu[runs.pod] / 1000
    return hours


def _share(part: Bools, whole: Bools) -> float | None:
    total = int(whole.sum())
    return None if total == 0 else int(part.sum()) / total


def _quantile(values: Floats | Ints, percent: float) -> float | None:
    return None if len(values) == 0 else float(np.percentile(values, percent))
