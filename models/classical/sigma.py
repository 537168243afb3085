"""N-sigma: mean and standard deviation of the machine's summed usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Floats, Floats32
from models.classical.base import known_aggregate, prediction
from models.forecaster import Prediction
from models.history import MIN_SAMPLES, History


@dataclass(frozen=True, slots=True)
class NSigma:
    """Mean + N x sample standard deviation of the aggregate, at most the limit; the knob is N.

    As in "Take it to the Limit" (EuroSys 2021).

    lookback: windows.
    """

    name: str
    lookback: int
    default_knob: float = 5.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        mean, deviation = mean_and_deviation(known_aggregate(history)[:, -self.lookback :])
        cap = np.maximum(history.limit - history.unknown, 0.0)
        return prediction(history, horizons, mean, deviation, cap)


def mean_and_deviation(values: Floats32 | Floats) -> tuple[Floats, Floats]:
    """Mean and sample standard deviation of each row's known values.

    Args:
        values: [R, W], NaN where unknown.

    Returns:
        Two [R]; NaN where fewer than MIN_SAMPLES values are known.
    """
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    filled = np.where(known, values, 0).astype(np.float64)
    mean = filled.sum(axis=1) / np.maximum(count, 1)
    squares = np.square(np.where(known, filled - mean[:, None], 0.0)).sum(axis=1)
    deviation = np.sqrt(squares / np.maximum(count - 1, 1))
    enough = count >= MIN_SAMPLES
    return np.where(enough, mean, np.nan), np.where(enough, deviation, np.nan)
