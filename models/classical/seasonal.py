"""Predictors on past maxima of the machine's summed usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Floats32
from models.classical.base import highest, known_aggregate, prediction, quantile
from models.forecaster import Prediction
from models.grid import DAY, HOUR, WEEK, WINDOW
from models.history import History
from models.hourly import widen
from models.truth import STEP

HALF_HOUR = STEP // WINDOW
"""Windows in a half hour."""


@dataclass(frozen=True, slots=True)
class SeasonalMax:
    """The highest of the same window on each of the last 7 days; the knob is a multiplier."""

    name: str = "seasonal-max"
    default_knob: float = 1.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        week = last_week(known_aggregate(history))
        ahead = np.arange(WEEK) % DAY  # windows by which each lies ahead of now, on its own day
        peaks = [highest(week[:, ahead < hours * HOUR]) for hours in horizons]
        return prediction(history, horizons, np.zeros(history.nodes), np.stack(peaks, axis=1))


@dataclass(frozen=True, slots=True)
class TrailingMax:
    """The highest window of the recent past; the knob is a multiplier.

    lookback: windows.
    """

    name: str
    lookback: int
    default_knob: float = 1.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        peak = highest(known_aggregate(history)[:, -self.lookback :])
        return prediction(history, horizons, np.zeros(history.nodes), peak)


@dataclass(frozen=True, slots=True)
class WindowMaxima:
    """Quantile of past maxima over complete windows of the horizon's length within 7 days.

    The windows start every half hour, as decisions do: each maximum is the peak that a past
    decision faced. The knob is a multiplier.
    """

    name: str
    level: float
    default_knob: float = 1.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        halves = half_hour_peaks(known_aggregate(history))
        peaks = [
            quantile(widen(halves, 1, hours * 3600 // STEP), self.level, least=1)
            for hours in horizons
        ]
        return prediction(history, horizons, np.zeros(history.nodes), np.stack(peaks, axis=1))


def last_week(aggregate: Floats32) -> Floats32:
    """The last 7 days [N, WEEK], NaN before a shorter history begins."""
    missing = WEEK - min(aggregate.shape[1], WEEK)
    return np.pad(aggregate[:, -WEEK:], ((0, 0), (missing, 0)), constant_values=np.nan)


def half_hour_peaks(aggregate: Floats32) -> Floats32:
    """The highest usage of each half hour of the last 7 days.

    One known 5-minute window is enough for a half hour: collectors lose single scrapes.

    Args:
        aggregate: [N, W] cores, newest last, NaN where unknown.

    Returns:
        [N, 336] cores, NaN where nothing of a half hour is known.
    """
    week = last_week(aggregate)
    peaks = week[:, ::HALF_HOUR]
    for offset in range(1, HALF_HOUR):
        peaks = np.fmax(peaks, week[:, offset::HALF_HOUR])
    return peaks
