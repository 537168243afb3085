"""How full the nodes were and how evenly, at once and over time."""

from __future__ import annotations

import msgspec
import numpy as np

from models.arrays import Floats
from shadow.series import NodeSeries, shares

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


def utilisation(series: NodeSeries, cores: Floats | None) -> Utilisation | None:
    """How full the nodes were and how evenly while they were there; ``cores`` in use are [N, T]."""
    exists = series.allocatable > 0
    if cores is None or not exists.any():
        return None
    share = shares(cores, series.allocatable)
    there = share[exists]
    bins = np.clip((there * TENTHS).astype(np.int64), 0, TENTHS - 1)
    return Utilisation(
        mean=float(there.mean()),
        deviation=float(np.nanstd(share, axis=0).mean()),
        p95=float(np.percentile(there, 95)),
        share_20_40=float(_idles(there).mean()),
        tenths=tuple((np.bincount(bins, minlength=TENTHS) / bins.size).tolist()),
    )


def balance(series: NodeSeries, cores: Floats | None) -> Balance | None:
    """The same for each hour; a last hour that is not full counts for what there is of it."""
    if cores is None:
        return None
    hour = max(3600 // series.step, 1)
    starts = np.arange(0, cores.shape[1], hour)
    summed = (np.add.reduceat(of, starts, axis=1) for of in (cores, series.allocatable))
    share = shares(*summed)
    return Balance(
        time=tuple((series.start + starts * series.step).tolist()),
        mean=tuple(np.nanmean(share, axis=0).tolist()),
        deviation=tuple(np.nanstd(share, axis=0).tolist()),
        p95=tuple(np.nanpercentile(share, 95, axis=0).tolist()),
        share_20_40=tuple(np.nanmean(_idles(share), axis=0).tolist()),
    )


def _idles(share: Floats) -> Floats:
    idles = ((share >= IDLE[0]) & (share <= IDLE[1])).astype(np.float64)
    return np.where(np.isnan(share), np.nan, idles)
