"""Predictors on decaying histograms: the Vertical Pod Autoscaler's and Koordinator's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Floats, Floats32
from models.classical.base import known_aggregate, prediction, sum_or_request
from models.forecaster import Prediction
from models.grid import DAY, WINDOW
from models.history import MIN_SAMPLES, History

CHUNK = 4096
"""Rows for which histograms are held at once: 6 MB for VPA's 176 buckets."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Exponential buckets: bucket b starts at ``first x (growth^b - 1) / (growth - 1)`` cores.

    highest: cores; what is above falls into the last bucket, which is returned by its start.
    """

    first: float
    growth: float
    highest: float

    def index(self, values: Floats) -> Floats:
        """The bucket of each value, as a float so that NaN stays NaN."""
        ratio = values * (self.growth - 1) / self.first + 1
        bucket = np.floor(np.log(ratio) / np.log(self.growth))
        return np.asarray(np.minimum(bucket, self.last))

    def end(self, bucket: Floats) -> Floats:
        """The end of a bucket, which is the next one's start."""
        following = np.minimum(bucket + 1, self.last)
        return self.first * (self.growth**following - 1) / (self.growth - 1)

    @property
    def last(self) -> int:
        """Index of the last bucket."""
        ratio = self.highest * (self.growth - 1) / self.first + 1
        return int(np.ceil(np.log(ratio) / np.log(self.growth)))


VPA_BUCKETS = Buckets(first=0.01, growth=1.05, highest=1000.0)
KOORDINATOR_BUCKETS = Buckets(first=0.025, growth=1.05, highest=1024.0)


@dataclass(frozen=True, slots=True)
class Vpa:
    """Sum over pods of the p90 of a decaying histogram; the knob is the factor, 1.15.

    The recommender's target: half-life 24 h, the bucket's end. History is cut at the 7 days that
    every predictor sees; what VPA's eighth day would add weighs under 1 %.
    """

    name: str = "vpa"
    level: float = 0.90
    half_life: float = 24 * 3600
    default_knob: float = 1.15

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        each = decayed_percentile(history.usage, VPA_BUCKETS, self.half_life, self.level)
        total, requests = sum_or_request(history, each)
        return prediction(history, horizons, requests, total)


@dataclass(frozen=True, slots=True)
class Koordinator:
    """The larger of the pods' summed and the machine's own p95; the knob is the factor, 1.10.

    Half-life 12 h. Koordinator publishes the smaller reclaimable CPU of both ways. Pods younger
    than 24 h count with their request in the sum. The larger way is chosen at the default knob and
    kept for others, so that the forecast stays linear in the knob.
    """

    name: str = "koordinator"
    level: float = 0.95
    half_life: float = 12 * 3600
    default_knob: float = 1.10

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        each = decayed_percentile(history.usage, KOORDINATOR_BUCKETS, self.half_life, self.level)
        young = np.isnan(history.usage[:, :-DAY]).all(axis=1)
        total, requests = sum_or_request(history, np.where(young, np.nan, each))
        whole = decayed_percentile(
            known_aggregate(history), KOORDINATOR_BUCKETS, self.half_life, self.level
        )
        whole = np.where(np.isnan(whole), 0.0, whole)
        summed = self.default_knob * total + requests >= self.default_knob * whole
        return prediction(
            history, horizons, np.where(summed, requests, 0.0), np.where(summed, total, whole)
        )


def decayed_percentile(
    values: Floats32, buckets: Buckets, half_life: float, level: float
) -> Floats:
    """Percentile of each row's histogram, in which a sample's weight halves with its age.

    The bucket in which the summed weight reaches ``level`` of the total, by its end.

    Args:
        values: [R, W] cores, newest window last, NaN where unknown.
        buckets: of the histogram.
        half_life: seconds.
        level: 0.9 for the 90th percentile.

    Returns:
        [R] cores, NaN where fewer than MIN_SAMPLES values are known.
    """
    age = np.arange(values.shape[1] - 1, -1, -1) * WINDOW
    weights = np.broadcast_to(0.5 ** (age / half_life), values.shape)
    found = weighted_bucket(buckets.index(values.astype(np.float64)), weights, level)
    return buckets.end(found)


def weighted_bucket(index: Floats, weights: Floats, level: float) -> Floats:
    """The first bucket of each row at which the weights sum up to ``level`` of their total.

    Args:
        index: [R, W] bucket of each sample, NaN where there is none.
        weights: [R, W].
        level: share of the total weight.

    Returns:
        [R], NaN where a row has fewer than MIN_SAMPLES samples.
    """
    found = np.full(len(index), np.nan)
    known = ~np.isnan(index)
    for start in range(0, len(index), CHUNK):
        part = known[start : start + CHUNK]
        rows = len(part)
        bucket = index[start : start + CHUNK][part].astype(np.int64)
        size = int(bucket.max(initial=0)) + 1
        row = np.nonzero(part)[0]
        weight = np.bincount(
            row * size + bucket, weights[start : start + CHUNK][part], minlength=rows * size
        )
        summed = weight.reshape(rows, size).cumsum(axis=1)
        # Rounding may leave the last sum a hair below the total, never below this.
        reached = summed >= level * summed[:, -1:] * (1 - 1e-12)
        enough = part.sum(axis=1) >= MIN_SAMPLES
        found[start : start + rows] = np.where(enough, reached.argmax(axis=1), np.nan)
    return found
