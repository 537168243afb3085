"""Figures of replays by seed, node and block of time: what the bootstrap draws from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Bools, Floats, Ints
from shadow.figures import judged, overload_windows
from shadow.result import ReplayResult
from shadow.series import NodeSeries, node_series, spread

_DAY = 86_400
_FEWEST_DAYS = 5
_PARTS = 8


@dataclass(frozen=True, slots=True)
class Cells:
    """K replays of one side, that differ in their seed, over N nodes and B blocks of time.

    Fields:
        results, series: of each seed.
        reclaimed: [K, N, B] core-hours.
        violated, judged: [K, N, B, H] forecasts.
        promised, overloaded: [K, N, B] windows with promises, and those of them above the ceiling.
    """

    results: Sequence[ReplayResult]
    series: Sequence[NodeSeries]
    reclaimed: Floats
    violated: Floats
    judged: Floats
    overloaded: Floats
    promised: Floats

    def core_hours(self, kept: Sequence[Bools]) -> Floats:
        """Core-hours that some runs really got, [K, N, B]; ``kept`` says which, [R] for each seed.

        Where online pods needed what was promised, every promise on the node got the same share.
        """
        return np.stack(
            [
                _core_hours(result, series, runs)
                for result, series, runs in zip(self.results, self.series, kept, strict=True)
            ]
        )


def cells_of(results: Sequence[ReplayResult], ceiling: float) -> Cells:
    """Sum up each replay; ``ceiling`` is the share of allocatable above which a node is full."""
    series = [node_series(result) for result in results]
    of = list(zip(results, series, strict=True))
    judgements = [judged(result) for result in results]
    over = [overload_windows(result, s, ceiling) for result, s in of]
    return Cells(
        results=results,
        series=series,
        reclaimed=np.stack([_by_block(result, s, s.run * s.hours) for result, s in of]),
        violated=np.stack([_by_refresh(r, j[1]) for r, j in zip(results, judgements, strict=True)]),
        judged=np.stack([_by_refresh(r, j[0]) for r, j in zip(results, judgements, strict=True)]),
        overloaded=np.stack([_by_block(*of[k], windows) for k, windows in enumerate(over)]),
        promised=np.stack([_by_block(result, s, s.asked > 0) for result, s in of]),
    )


def block_hours(result: ReplayResult) -> float:
    """Days where there are enough of them, else eighths of the replay."""
    return (_DAY if _has_days(result) else (result.stop - result.start) / _PARTS) / 3600


def block_of(result: ReplayResult, time: Ints) -> Ints:
    """The block that each moment (seconds since the epoch) lies in."""
    seconds = block_hours(result) * 3600
    block: Ints = np.minimum((time - result.start) // seconds, blocks(result) - 1).astype(np.int64)
    return block


def blocks(result: ReplayResult) -> int:
    """How many blocks a replay has."""
    if not _has_days(result):
        return _PARTS
    return -(-(result.stop - result.start) // _DAY)


def _has_days(result: ReplayResult) -> bool:
    return result.stop - result.start >= _FEWEST_DAYS * _DAY


def _by_block(result: ReplayResult, series: NodeSeries, figure: Floats | Bools) -> Floats:
    """Sum a figure [N, T] of the series' steps by block, [N, B]."""
    steps = series.start + np.arange(figure.shape[1]) * series.step
    return _add_up(figure, block_of(result, steps), blocks(result))


def _by_refresh(result: ReplayResult, figure: Bools) -> Floats:
    """Sum a figure [R, N, H] of the refreshes by block, [N, B, H]."""
    if result.forecasts is None:
        return np.zeros((figure.shape[1], blocks(result), figure.shape[2]))
    moments = block_of(result, result.forecasts.time)
    return _add_up(figure.transpose(1, 0, 2), moments, blocks(result))


def _add_up(figure: Floats | Bools, block: Ints, count: int) -> Floats:
    """Sum [N, T, ...] by the block of each column, [N, B, ...]."""
    found = np.zeros((len(figure), count, *figure.shape[2:]))
    np.add.at(found.swapaxes(0, 1), block, figure.swapaxes(0, 1))
    return found


def _core_hours(result: ReplayResult, series: NodeSeries, kept: Bools) -> Floats:
    asked = spread(result, kept, series.step, series.asked.shape[1])
    offline = result.pods.offline[result.runs.pod[kept]]
    if offline.any():
        asked *= series.run / np.maximum(series.asked, 1e-9)
    return _by_block(result, series, asked * series.hours)
