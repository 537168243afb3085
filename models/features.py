"""The one feature kernel: what training and serving know about a node, as numbers.

A row describes a node at a moment by figures of its past week. The *experts* are in cores: each is
a guess at a peak or at a spread (the highest of the same window on earlier days, the trailing
maximum, a quantile of past window maxima, a sum over the pods, ...). The *shapes* are pure numbers
(time of day, how uneven the pods are, ...). All come from hourly figures of the node's aggregate
and of its pods, so a week costs 168 columns instead of 2,016; hours are counted back from the
moment of the forecast. Unknown windows are left out, never filled with a future.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.arrays import Floats, Floats32, Ints
from models.grid import WEEK
from models.history import History
from models.hourly import (
    HOURS_A_WEEK,
    Hourly,
    divide,
    either,
    first_known,
    hourly,
    increase,
    quantiles,
    row_max,
    row_mean,
    row_sd,
    widen,
)
from models.policy import HORIZONS

CHUNK = 512
"""Nodes or pods worked on at a time: 4 MB of windows, which caches hold and whose memory is used
again for the next, where larger arrays are handed back to the system and zeroed by it each time."""

_NODE_EXPERTS = (
    "mean_7d",
    "mean_24h",
    "mean_1h",
    "max_7d",
    "max_24h",
    "max_6h",
    "p99_24h",
    "hour_max_p90",
    "hour_max_p99",
    "sd_7d",
    "sd_24h",
    "pods_hour_max_p95",
    "pods_p95_24h",
    "pods_max_24h",
    "pods_sd",
    "pods_gap",
    "top_pod_gap",
    "requests",
    "top_request",
)
_WINDOW_EXPERTS = (
    "season_1d",
    "season_7d",
    "season_max",
    "season_mean",
    "season_rise",
    "window_max_p50",
    "window_max_p90",
    "window_max_p99",
    "window_max_sd",
    "rise_p90",
    "rise_p99",
)
_NODE_SHAPES = (
    "hour_sin",
    "hour_cos",
    "variation",
    "correlation",
    "mean_of_requests",
    "unevenness",
    "top_pod_share",
    "age",
)
_WINDOW_SHAPES = ("weekend",)


def _named(names: tuple[str, ...], hours: int) -> tuple[str, ...]:
    return tuple(f"{name}_{hours}h" for name in names)


FEATURE_NAMES: tuple[str, ...] = (
    *_NODE_EXPERTS,
    *_NODE_SHAPES,
    *(name for hours in HORIZONS for name in _named(_WINDOW_EXPERTS + _WINDOW_SHAPES, hours)),
)
"""Columns of `features`, in order. Those that end in a horizon's hours belong to that horizon."""

_COLUMN = {name: column for column, name in enumerate(FEATURE_NAMES)}
_PEAK = _COLUMN["max_7d"]
_TINY = 1e-6
"""Cores; keeps ratios of idle nodes finite."""


def expert_names(hours: int) -> tuple[str, ...]:
    """Names of the columns that are guesses in cores, for one horizon."""
    return _NODE_EXPERTS + _named(_WINDOW_EXPERTS, hours)


def input_names(hours: int) -> tuple[str, ...]:
    """Names of the columns that a tree model of one horizon sees: experts, then shapes."""
    return expert_names(hours) + _shape_names(hours)


def experts(rows: Floats32, hours: int) -> Floats:
    """The guesses in cores, [N, K] in the order of `expert_names`, of `features` rows."""
    return _columns(rows, expert_names(hours))


def unit(rows: Floats32) -> Floats:
    """The highest usage of the past week, [N] cores, never 0: what ratios are taken to."""
    return np.maximum(rows[:, _PEAK].astype(np.float64), _TINY)


def inputs(rows: Floats32, hours: int) -> Floats:
    """What a tree model sees, [N, F] in the order of `input_names`, all of it scale-free.

    Experts are ratios to `unit`.
    """
    ratios = experts(rows, hours) / unit(rows)[:, None]
    return np.hstack([ratios, _columns(rows, _shape_names(hours))])


def features(history: History) -> Floats32:
    """Describe each node at the moment of a history.

    Args:
        history: a past of any length; what is older than a week is ignored.

    Returns:
        [N, len(FEATURE_NAMES)]. A node whose aggregate is all gaps gives NaN throughout: its other
        figures would be guesses about nothing.
    """
    rows = np.empty((history.nodes, len(FEATURE_NAMES)), np.float32)
    seen = _first_seen(history)
    of_pods = _pod_columns(history, seen)
    first = _first_on_node(history, seen)
    for chunk in _chunks(history.nodes):
        columns = _node_columns(history.time, hourly(history.aggregate[chunk], first[chunk]))
        columns |= {name: values[chunk] for name, values in of_pods.items()}
        columns |= _shapes(history.time, columns)
        for column, name in enumerate(FEATURE_NAMES):
            rows[chunk, column] = columns[name]
    rows[~np.isfinite(rows[:, _PEAK])] = np.nan
    return rows


def _node_columns(time: int, past: Hourly) -> dict[str, Floats]:
    """The columns that come from the nodes' aggregate."""
    highest, mean, sd = past.highest(HOURS_A_WEEK), past.mean(HOURS_A_WEEK), past.sd(HOURS_A_WEEK)
    hour_max_p90, hour_max_p99 = quantiles(past.peak, 0.9, 0.99)
    columns = {
        "mean_7d": mean,
        "mean_24h": either(past.mean(24), mean),
        "mean_1h": either(past.mean(1), mean),
        "max_7d": highest,
        "max_24h": either(past.highest(24), highest),
        "max_6h": either(past.highest(6), highest),
        "p99_24h": either(quantiles(past.day, 0.99)[0], highest),
        "hour_max_p90": hour_max_p90,
        "hour_max_p99": hour_max_p99,
        "sd_7d": sd,
        "sd_24h": either(past.sd(24), sd),
    }
    rolling, width = past.peak, 1
    for hours in HORIZONS:
        rolling, width = widen(rolling, width, hours), hours
        columns |= _window_columns(past, rolling, hours, columns)
        columns[f"weekend_{hours}h"] = np.full(len(mean), _weekend_share(time, hours))
    return columns


def _window_columns(
    past: Hourly, rolling: Floats32, hours: int, node: dict[str, Floats]
) -> dict[str, Floats]:
    """The columns that ask what past windows of the horizon's length were like.

    ``rolling[:, i]`` is the highest of the hours i to i + hours - 1. What no past window can tell
    yet is answered with the highest usage known: cautious, as befits a young node.
    """
    highest = node["max_7d"]
    room = np.maximum(highest - node["mean_1h"], 0.0)
    starts = [HOURS_A_WEEK - 24 * day for day in range(1, 8)]  # the same window 1 .. 7 days ago
    season = rolling[:, starts]
    hour_before = past.hour_means()[:, [start - 1 for start in starts[:6]]]
    season_rise = row_max(increase(hour_before, season[:, :6]))
    season_max = either(row_max(season), highest)
    rise = increase(past.peak[:, : HOURS_A_WEEK - hours], rolling[:, 1:])
    values = (
        either(row_max(season[:, :1]), season_max),
        either(row_max(season[:, 6:]), season_max),
        season_max,
        either(row_mean(season), season_max),
        np.maximum(either(season_rise, room), 0.0),
        *(either(found, highest) for found in quantiles(rolling, 0.5, 0.9, 0.99)),
        either(row_sd(rolling), node["sd_7d"]),
        *(np.maximum(either(found, room), 0.0) for found in quantiles(rise, 0.9, 0.99)),
    )
    return dict(zip(_named(_WINDOW_EXPERTS, hours), values, strict=True))


def _pod_columns(history: History, seen: Ints) -> dict[str, Floats]:
    """The columns that are sums or maxima over each node's seasoned pods."""
    on_nodes = np.unique(history.pod[history.seasoned[history.pod]])
    figures = np.zeros((6, len(history.request)))
    for chunk in _chunks(len(on_nodes)):
        figures[:, on_nodes[chunk]] = _pod_figures(hourly(history.usage[on_nodes[chunk]]))
    mean, variance, gap, hour_max, p95, max_24h = figures
    total = history.sum_pods(mean)
    return {
        "pods_hour_max_p95": history.sum_pods(hour_max),
        "pods_p95_24h": history.sum_pods(p95),
        "pods_max_24h": history.sum_pods(max_24h),
        "pods_sd": np.sqrt(history.sum_pods(variance)),
        "pods_gap": np.sqrt(history.sum_pods(np.square(gap))),
        "top_pod_gap": _top(history, gap),
        "requests": history.sum_pods(history.request),
        "top_request": _top(history, history.request),
        "unevenness": divide(history.sum_pods(np.square(mean)), np.square(total), 0.0),
        "top_pod_share": divide(_top(history, mean), total, 0.0),
        "age": divide(history.sum_pods(mean * (1 - seen / WEEK)), total, 0.0),
    }


def _pod_figures(past: Hourly) -> tuple[Floats, ...]:
    """Mean, variance, highest - mean, p95 of hourly peaks, p95 and highest of the last day, [R]."""
    mean, highest = past.mean(HOURS_A_WEEK), past.highest(HOURS_A_WEEK)
    return (
        mean,
        np.square(past.sd(HOURS_A_WEEK)),
        highest - mean,
        quantiles(past.peak, 0.95)[0],
        either(quantiles(past.day, 0.95)[0], mean),
        either(past.highest(24), mean),
    )


def _shapes(time: int, columns: dict[str, Floats]) -> dict[str, Floats]:
    """The scale-free columns that follow from the others.

    ``correlation`` is the variance of the sum over the sum of variances: 1 for independent pods,
    their number for equal pods that move together.
    """
    angle = 2 * np.pi * (time % 86_400) / 86_400
    mean, sd = columns["mean_7d"], columns["sd_7d"]
    return {
        "hour_sin": np.full(len(mean), np.sin(angle)),
        "hour_cos": np.full(len(mean), np.cos(angle)),
        "variation": divide(sd, mean, 0.0),
        "correlation": divide(np.square(sd), np.square(columns["pods_sd"]), 0.0),
        "mean_of_requests": divide(mean, columns["requests"], 0.0),
    }


def _first_seen(history: History) -> Ints:
    """Column of the last week, [P], in which each pod was first seen."""
    first = np.empty(len(history.request), np.int64)
    for chunk in _chunks(len(first)):
        first[chunk] = first_known(history.usage[chunk])
    return first


def _first_on_node(history: History, seen: Ints) -> Ints:
    """Column, [N], in which the first of a node's seasoned pods was first seen.

    Before it the aggregate only repeats the pods' means (see `History.aggregate`).
    """
    kept = history.seasoned[history.pod]
    first = np.full(history.nodes, WEEK, np.int64)
    np.minimum.at(first, history.node[kept], seen[history.pod[kept]])
    return first


def _top(history: History, values: Floats) -> Floats:
    """The highest of a figure of the pods ([P]) among each node's seasoned pods, [N]."""
    kept = history.seasoned[history.pod]
    top = np.zeros(history.nodes)
    np.maximum.at(top, history.node[kept], values[history.pod[kept]])
    return top


def _weekend_share(time: int, hours: int) -> float:
    """Share of (time, time + hours] that lies on a Saturday or Sunday, UTC."""
    moments = time + 900 + 1800 * np.arange(2 * hours)  # the middles of its half hours
    weekday = (moments // 86_400 + 3) % 7  # 1 January 1970 was a Thursday; Monday is 0
    return float((weekday >= 5).mean())


def _shape_names(hours: int) -> tuple[str, ...]:
    return _NODE_SHAPES + _named(_WINDOW_SHAPES, hours)


def _columns(rows: Floats32, names: tuple[str, ...]) -> Floats:
    return rows[:, [_COLUMN[name] for name in names]].astype(np.float64)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
