"""Predictors that add a fixed share of a known size: Borg's default, Koordinator's batch tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.classical.base import known_aggregate, prediction
from models.forecaster import Prediction
from models.grid import HOUR
from models.history import History


@dataclass(frozen=True, slots=True)
class BorgDefault:
    """0.9 x the sum of requests; the knob is the factor ("Take it to the Limit", EuroSys 2021)."""

    name: str = "borg-default"
    default_knob: float = 0.9

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        requests = history.sum_pods(history.request)
        return prediction(history, horizons, np.zeros(history.nodes), requests)


@dataclass(frozen=True, slots=True)
class KoordinatorBatch:
    """Mean usage of the last 5 minutes + 0.40 x the machine's capacity; the knob is the 0.40.

    What Koordinator's users get by default: batch allocatable is capacity x (1 - 0.40) - usage. The
    newest known window of the last hour counts as the last 5 minutes, because a scrape may be late.
    """

    name: str = "koordinator-batch"
    default_knob: float = 0.40

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        recent = known_aggregate(history)[:, -HOUR:][:, ::-1]
        newest = recent[np.arange(history.nodes), np.argmax(~np.isnan(recent), axis=1)]
        return prediction(history, horizons, newest.astype(np.float64), history.limit)
