"""Percentiles of trailing usage: of each pod (RC-like), or of the machine's sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.classical.base import known_aggregate, prediction, quantile, sum_or_request
from models.forecaster import Prediction
from models.history import History


@dataclass(frozen=True, slots=True)
class RcLike:
    """Sum over pods of a percentile of each pod's own trailing usage; the knob is a multiplier.

    After Resource Central (SOSP 2017), as in "Take it to the Limit" (EuroSys 2021).

    lookback: windows.
    """

    name: str
    level: float
    lookback: int
    default_knob: float = 1.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        each = quantile(history.usage[:, -self.lookback :], self.level)
        total, requests = sum_or_request(history, each)
        return prediction(history, horizons, requests, total)


@dataclass(frozen=True, slots=True)
class AggregatePercentile:
    """A percentile of the machine's summed trailing usage; the knob is a multiplier.

    lookback: windows.
    """

    name: str
    level: float
    lookback: int
    default_knob: float = 1.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        peak = quantile(known_aggregate(history)[:, -self.lookback :], self.level)
        return prediction(history, horizons, np.zeros(history.nodes), peak)
