"""What the classical predictors share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.arrays import Floats, Floats32
from models.forecaster import Prediction
from models.history import MIN_SAMPLES, History
from models.truth import highest_known

MIN_SCALE = 1e-3
"""Cores. A scale below a millicore could not be told from zero in a promise, and the score of a
truth would be divided by it."""


def prediction(
    history: History,
    horizons: Sequence[int],
    location: Floats,
    scale: Floats,
    cap: Floats | None = None,
) -> Prediction:
    """A prediction from figures that are the same for all horizons ([N]) or not ([N, H]).

    Without a cap the forecast is unbounded; nodes without a seasoned pod forecast nothing.
    """
    shape = (history.nodes, len(horizons))
    populated = history.sum_pods(np.ones(len(history.request))) > 0
    bound = np.full(history.nodes, np.inf) if cap is None else cap
    return Prediction(
        np.where(populated[:, None], _by_horizon(location, shape), 0.0),
        np.where(populated[:, None], np.maximum(_by_horizon(scale, shape), MIN_SCALE), MIN_SCALE),
        np.where(populated, bound, 0.0),
    )


def known_aggregate(history: History) -> Floats32:
    """The history's aggregate [N, W], NaN also before the first of the node's pods had started.

    There the history holds the pods' own means, which suit a pod that joins others; where nothing
    ran at all they would stand for calm that nobody has seen.
    """
    kept = history.seasoned[history.pod]
    first = np.argmax(~np.isnan(history.usage), axis=1)
    width = history.usage.shape[1]
    start = np.full(history.nodes, width)
    np.minimum.at(start, history.node[kept], first[history.pod[kept]])
    if not start.any():
        return history.aggregate
    before = np.arange(width) < start[:, None]
    return np.where(before, np.float32(np.nan), history.aggregate)


def sum_or_request(history: History, values: Floats) -> tuple[Floats, Floats]:
    """Sum a figure of the pods over each node, and the requests of the pods that have none.

    Args:
        history: who is where.
        values: [P] cores, NaN where a pod has too little data for the figure.

    Returns:
        sum [N] and requests [N], both over seasoned pods only.
    """
    missing = np.isnan(values)
    return (
        history.sum_pods(np.where(missing, 0.0, values)),
        history.sum_pods(np.where(missing, history.request, 0.0)),
    )


def quantile(values: Floats32, level: float, least: int = MIN_SAMPLES) -> Floats:
    """Quantile of each row's known values, linearly interpolated.

    Args:
        values: [R, W], NaN where unknown.
        level: 0.95 for the 95th percentile.
        least: rows with fewer known values give NaN.
    """
    ordered = np.sort(values, axis=1)  # NaN comes last
    known = values.shape[1] - np.isnan(ordered).sum(axis=1)
    position = level * np.maximum(known - 1, 0)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(known - 1, 0))
    rows = np.arange(len(values))
    below = ordered[rows, low].astype(np.float64)
    above = ordered[rows, high].astype(np.float64)
    found = below + (position - low) * (above - below)
    return np.where(known >= max(least, 1), found, np.nan)


def highest(values: Floats32) -> Floats:
    """The highest known value of each row of [R, W], NaN where none is."""
    peak, known = highest_known(values)
    return np.where(known > 0, peak, np.nan).astype(np.float64)


def _by_horizon(values: Floats, shape: tuple[int, int]) -> Floats:
    return np.broadcast_to(values if values.ndim == 2 else values[:, None], shape)
