"""Random histories with gaps, late starts, unseasoned pods and pods on several nodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.arrays import Floats32
from models.grid import DAY, WEEK
from models.history import History, build_history

HORIZONS = (1, 6, 24)


def random_history(seed: int, pods: int = 7, nodes: int = 4, windows: int = WEEK) -> History:
    """Nodes share pods; the last node has none; one pod has too few samples."""
    rng = np.random.default_rng(seed)
    usage = daily_usage(rng, pods, windows)
    usage[rng.random(usage.shape) < 0.01] = np.nan
    for late in range(pods // 2):
        usage[late, : rng.integers(0, windows)] = np.nan
    usage[0, : windows - 10] = np.nan
    if pods > 2:
        usage[1, -DAY:] = np.nan  # old, but silent for a day
    edges = [(p, n) for n in range(nodes - 1) for p in range(pods) if rng.random() < 0.6]
    table = np.array(edges, np.int64)
    pod, nodes_of = table[:, 0], table[:, 1]
    request = rng.uniform(0.5, 4.0, pods)
    limit = np.bincount(nodes_of, request[pod], minlength=nodes).astype(np.float64)
    return build_history(1_700_000_000, usage, request, pod, nodes_of, limit)


def daily_usage(rng: np.random.Generator, pods: int, windows: int) -> Floats32:
    """[P, W] cores with a daily tide, noise and spikes."""
    tide = 0.5 + 0.4 * np.sin(2 * np.pi * np.arange(windows) / DAY)
    noise = rng.gamma(2.0, 0.1, (pods, windows))
    spikes = (rng.random((pods, windows)) < 0.005) * rng.gamma(2.0, 1.0, (pods, windows))
    usage = rng.gamma(2.0, 0.5, (pods, 1)) * (tide + noise) + spikes
    return np.asarray(usage, np.float32)


def members(history: History, node: int) -> Iterator[int]:
    """The seasoned pods of a node."""
    for pod, where in zip(history.pod.tolist(), history.node.tolist(), strict=True):
        if where == node and history.seasoned[pod]:
            yield pod


def known(values: Floats32) -> list[float]:
    """The known values of a row, in order."""
    return [float(v) for v in values if not np.isnan(v)]


def aggregate_of(history: History, node: int) -> Floats32:
    """The node's aggregate, unknown before any of its pods has started."""
    starts = [int(np.flatnonzero(~np.isnan(history.usage[p]))[0]) for p in members(history, node)]
    row: Floats32 = history.aggregate[node].copy()
    row[: min(starts, default=0)] = np.nan
    return row
