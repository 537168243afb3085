"""The learned forecaster: quantiles of a node's peak, from linear and tree models together.

For each horizon, a non-negative linear quantile regression mixes guesses that are themselves peaks
or spreads in cores (the experts of `models.features`): steady, and sensible far from its training
data. LightGBM predicts the ratio of the peak to the past week's highest usage: it sees the shapes
as well and finds what is not linear. Both predict a lower quantile (LOW) and the distance from
there to a high one (HIGH); averaged they are the location and the scale of the prediction, so that
the knob 1 stands for the HIGH quantile as it was learned, and calibration moves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import lightgbm as lgb
import numpy as np

from models.arrays import Floats, Floats32
from models.features import experts, features, inputs, unit
from models.forecaster import Prediction
from models.history import History

LOW, HIGH = 0.9, 0.99
"""Quantiles of the peak that are learned. 0.99 is the default target; the distance to 0.9 tells a
heavy tail from a light one, and of 0.9 there are enough cases to learn from."""

TREE_WEIGHT = 0.4
"""Weight of the tree models in the average. From 0.35 to 0.5 nothing changes by more than the
spread between seeds; below, spiky machines get worse, above, steady ones (docs/decisions.md)."""

LEAST_SCALE = 0.01
"""Smallest scale as a share of the past week's highest usage: a flat past does not make certain."""

MIN_SCALE = 1e-3
"""Smallest scale in cores, a millicore."""


@dataclass(frozen=True, slots=True)
class HorizonModel:
    """What was learned for one horizon.

    location, spread: [K] weights, none negative, of the horizon's experts: their sums are the LOW
    quantile and the distance from it to the HIGH one. low, high: LightGBM models of the two
    quantiles of peak / `features.unit`.
    """

    hours: int
    location: Floats
    spread: Floats
    low: lgb.Booster
    high: lgb.Booster

    def predict(self, rows: Floats32, tree_weight: float, threads: int) -> tuple[Floats, Floats]:
        """Location and scale, [N] cores each, of `features` rows without NaN."""
        guesses, scale_free, peak = experts(rows, self.hours), inputs(rows, self.hours), unit(rows)
        low = peak * _predict(self.low, scale_free, threads)
        high = peak * _predict(self.high, scale_free, threads)
        linear, trees = 1 - tree_weight, tree_weight
        location = linear * (guesses @ self.location) + trees * low
        scale = linear * (guesses @ self.spread) + trees * np.maximum(high - low, 0.0)
        return location, np.maximum(scale, np.maximum(LEAST_SCALE * peak, MIN_SCALE))


@dataclass(frozen=True, slots=True)
class QuantileForecaster:
    """Predicts with one `HorizonModel` for each horizon; a `models.forecaster.Forecaster`.

    tree_weight: of the tree models in the average, in [0, 1]. threads: of LightGBM; one leaves the
    other cores to the requests that are being served.
    """

    models: tuple[HorizonModel, ...]
    tree_weight: float = TREE_WEIGHT
    threads: int = 1

    @property
    def name(self) -> str:
        """The name in tables and manifests."""
        return "learned"

    @property
    def default_knob(self) -> float:
        """The HIGH quantile as it was learned."""
        return 1.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `Forecaster.predict`; a node without a seasoned pod has a cap of 0."""
        rows = features(history)
        location, scale = self.predict_rows(rows, horizons)
        populated = history.sum_pods(np.ones(len(history.request))) > 0
        return Prediction(
            np.where(populated[:, None], location, 0.0),
            np.where(populated[:, None], scale, MIN_SCALE),
            np.where(populated, history.limit, 0.0),
        )

    def predict_rows(self, rows: Floats32, horizons: Sequence[int]) -> tuple[Floats, Floats]:
        """Location and scale, [N, H] cores each, of `features` rows; NaN for rows of NaN.

        Raises:
            ValueError: a horizon was not learned.
        """
        model_of = {model.hours: model for model in self.models}
        missing = [hours for hours in horizons if hours not in model_of]
        if missing:
            raise ValueError(f"no model for {missing} h, only for {sorted(model_of)} h")
        location = np.full((len(rows), len(horizons)), np.nan)
        scale = np.full_like(location, MIN_SCALE)
        known = ~np.isnan(rows).any(axis=1)
        if known.any():
            for column, hours in enumerate(horizons):
                found = model_of[hours].predict(rows[known], self.tree_weight, self.threads)
                location[known, column], scale[known, column] = found
        return location, scale


def _predict(booster: lgb.Booster, scale_free: Floats, threads: int) -> Floats:
    """A ratio can be predicted below 0, where the nearest usage is none."""
    ratio = cast("Floats", booster.predict(scale_free, num_threads=threads))
    return np.maximum(ratio, 0.0)
