"""How full the nodes were and how evenly, at once and over time."""

from __future__ import annotations

import msgspec
import numpy as np

from models.arrays import Floats
from shadow.result import ReplayResult
from shadow.series import NodeSeries, allocatable

TENTHS = 10
"""Bins of the distribution; the last one takes what lies above 100 % as well."""

IDLE = (0.2, 0.4)
"""Share of a node's CPU in use at which most clusters idle, after the published traces."""


class Utilisation(msgspec.Struct, frozen=True, kw_only=True):
    """CPU in use as a share of allocatable.

    mean and p95: over all nodes and steps. deviation: standard deviation between nodes, averaged
    over time. share_20_40: share of nodes and steps at 20 to 40 %, where most clusters idle.
    tenths: share of nodes and steps at 0 to 10 %, 10 to 20 %, ... 90 % and above.
    """

    mean: float
    deviation: float
    p95: float
    share_20_40: float
    tenths: tuple[float, ...]


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """How full the nodes were in each hour; all of equal length, ``time`` in epoch seconds.

    mean, deviation, p95: over the nodes (each with its mean of the hour). share_20_40: share of
    nodes at 20 to 40 %.
    """

    time: tuple[int, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    p95: tuple[float, ...]
    share_20_40: tuple[float, ...]


def utilisation(result: ReplayResult, cores: Floats | None) -> Utilisation | None:
    """How full the nodes were and how evenly; ``cores`` in use are [N, T]."""
    if cores is None:
        return None
    share = cores / np.maximum(allocatable(result), 1e-9)
    bins = np.clip((share * TENTHS).astype(np.int64), 0, TENTHS - 1)
    return Utilisation(
        mean=float(share.mean()),
        deviation=float(share.std(axis=0).mean()),
        p95=float(np.percentile(share, 95)),
        share_20_40=float(_idles(share).mean()),
        tenths=tuple((np.bincount(bins.ravel(), minlength=TENTHS) / bins.size).tolist()),
    )


def balance(result: ReplayResult, series: NodeSeries, cores: Floats | None) -> Balance | None:
    """The same for each hour; a last hour that is not full counts for what there is of it."""
    if cores is None:
        return None
    hour = max(3600 // series.step, 1)
    starts = np.arange(0, cores.shape[1], hour)
    width = np.diff(np.append(starts, cores.shape[1]))
    share = np.add.reduceat(cores, starts, axis=1) / width / np.maximum(allocatable(result), 1e-9)
    return Balance(
        time=tuple((series.start + starts * series.step).tolist()),
        mean=tuple(share.mean(axis=0).tolist()),
        deviation=tuple(share.std(axis=0).tolist()),
        p95=tuple(np.percentile(share, 95, axis=0).tolist()),
        share_20_40=tuple(_idles(share).mean(axis=0).tolist()),
    )


def _idles(share: Floats) -> Floats:
    return ((share >= IDLE[0]) & (share <= IDLE[1])).astype(np.float64)
