"""How much of the reclaimable CPU lies in pieces that are too small."""

from __future__ import annotations

import numpy as np

from models.arrays import Floats, Ints
from models.policy import HORIZONS
from models.reclaim import reclaimable_millicpu
from shadow.result import ReplayResult
from shadow.series import NodeSeries

MOST_MOMENTS = 400
"""Moments that are looked at; between them little changes, and each costs a sum over the nodes."""


def fragmentation(result: ReplayResult, series: NodeSeries) -> float | None:
    """Share of the CPU left to promise that lies on nodes where a pod does not find its ask.

    Defined as in Weng et al., "Beware of Fragmentation" (USENIX ATC 2023): for a pod, what a node
    has left is a fragment where it is less than the pod asks; the fragments of the cluster are the
    mean over the workload, here the offline pods of the replay with the horizons they ask for.
    Summed over the nodes and over the moments after each refresh (without usage: over time), and
    divided by all that is left. CPU alone is counted, not memory.

    None where no offline pod asks for anything, or nothing was ever left.
    """
    pods = result.pods
    asking = pods.offline & (pods.millicpu > 0)
    if not asking.any() or not result.options.reclaim:
        return None
    pieces, fragments = 0.0, 0.0
    for allocatable, forecast, promised in _moments(result, series):
        free = reclaimable_millicpu(allocatable, forecast, result.policy)
        left = np.maximum(free - np.rint(promised * 1000).astype(np.int64)[:, None], 0)
        for horizon in np.unique(pods.horizon[asking]).tolist():
            asks = np.sort(pods.millicpu[asking & (pods.horizon == horizon)])
            piece = left[:, horizon]
            pieces += float(piece.sum()) * len(asks)
            fragments += float((piece * _above(asks, piece)).sum())
    return None if pieces == 0 else fragments / pieces


def _moments(result: ReplayResult, series: NodeSeries) -> list[tuple[Floats, Floats, Floats]]:
    """Allocatable [N], forecast [N, H] and promises [N], in cores, at moments of the replay."""
    known = result.forecasts
    if known is None:
        steps, horizons = _some(np.arange(series.asked.shape[1])), (1, len(HORIZONS))
        return [
            (
                series.allocatable[:, t],
                np.tile(series.requested[:, [t]], horizons),
                series.asked[:, t],
            )
            for t in steps
        ]
    at = (known.time - series.start) // series.step
    return [
        (
            series.allocatable[:, at[moment]],
            known.forecast[moment].astype(np.float64),
            series.asked[:, at[moment]],
        )
        for moment in _some(np.arange(len(known.time)))
    ]


def _some(moments: Ints) -> list[int]:
    found: list[int] = moments[:: max(-(-len(moments) // MOST_MOMENTS), 1)].tolist()
    return found


def _above(asks: Ints, piece: Ints) -> Ints:
    """How many of the sorted asks are larger than each piece."""
    above: Ints = len(asks) - np.searchsorted(asks, piece, side="right")
    return above
