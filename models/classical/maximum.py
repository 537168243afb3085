"""The larger of N-sigma and RC-like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.classical.base import prediction
from models.classical.percentile import RcLike
from models.classical.sigma import NSigma
from models.forecaster import Prediction
from models.history import History


@dataclass(frozen=True, slots=True)
class Maximum:
    """The larger of two predictors at their default knobs; the knob is a multiplier of it.

    "max(N-sigma, RC-like)" of "Take it to the Limit" (EuroSys 2021).
    """

    name: str
    sigma: NSigma
    percentile: RcLike
    default_knob: float = 1.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        either = [
            predictor.predict(history, horizons).at(np.array(predictor.default_knob))
            for predictor in (self.sigma, self.percentile)
        ]
        return prediction(history, horizons, np.zeros(history.nodes), np.maximum(*either))
