"""Crane's percentile and its periodic signal (DSP) predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Bools, Floats, Floats32
from models.classical.base import known_aggregate, prediction, sum_or_request
from models.classical.histogram import weighted_bucket
from models.classical.seasonal import last_week
from models.forecaster import Prediction
from models.grid import DAY, HOUR, WEEK, WINDOW
from models.history import History

BUCKET = 0.1
"""Cores in a bucket of Crane's linear histogram."""

MARGINS = (0.01, 0.10, 0.15, 0.20)
"""What the signal is raised by; the one with the least error on the newest day is used."""

SMOOTH = 3600
"""Seconds: shorter waves are filtered out as noise (Crane's threshold of 1 / 3600 Hz)."""

PEAK = 4 * HOUR
"""Windows on either side of a day's lag at which the autocorrelation must be lower."""

LEAST = 0.01
"""Cores that stand for a reconstructed value of zero or less, as in Crane."""


@dataclass(frozen=True, slots=True)
class CranePercentile:
    """Sum over pods of the p99 of a linear histogram in which a sample weighs its own value.

    7 days, buckets of 0.1 cores returned by their end, weights ``max(1e-5, usage)``; the knob is
    the factor, 1.15. Crane's resource recommendation.
    """

    name: str = "crane-percentile"
    level: float = 0.99
    default_knob: float = 1.15

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        usage = history.usage[:, -WEEK:].astype(np.float64)
        bucket = weighted_bucket(np.floor(usage / BUCKET), np.maximum(usage, 1e-5), self.level)
        total, requests = sum_or_request(history, (bucket + 1) * BUCKET)
        return prediction(history, horizons, requests, total)


@dataclass(frozen=True, slots=True)
class CraneDsp:
    """The machine's usage as a periodic signal, repeated; the knob is a multiplier.

    1. Gaps are bridged linearly, values beyond the 0.1 and 99.9 percentile take the one before.
    2. Waves shorter than an hour are removed (FFT over the 7 days).
    3. The period is a day where the daily wave is the strongest of a day or longer and the
       autocorrelation peaks at a day; otherwise a week.
    4. The last period of the smooth signal is expected to come again, raised by the margin whose
       forecast of the newest day has the least error; a forecast below the truth counts more.

    Crane learns from 7 days by default, which hold no second week, so: a weekly signal is not
    tested for weekly periodicity, and its margin is chosen by how well the smooth signal covers the
    newest day that it was made from. For a daily signal, the newest day is forecast from the six
    before it.
    """

    name: str = "crane-dsp"
    default_knob: float = 1.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """See `models.forecaster.Forecaster`."""
        week = last_week(known_aggregate(history))
        enough = ~np.isnan(week[:, -2 * DAY :]).all(axis=1)
        signal = without_outliers(bridge_gaps(week))
        daily = is_daily(signal)
        smooth = low_pass(signal)
        coming = np.where(daily[:, None], np.tile(smooth[:, -DAY:], 7), smooth)
        before = low_pass(signal[:, :-DAY])[:, -DAY:]
        tested = np.where(daily[:, None], before, smooth[:, -DAY:])
        margin = best_margin(signal[:, -DAY:], tested)
        peaks = [coming[:, : hours * HOUR].max(axis=1) for hours in horizons]
        raised = np.stack(peaks, axis=1) * (1 + margin[:, None])
        raised[~enough] = np.nan
        return prediction(history, horizons, np.zeros(history.nodes), raised)


def bridge_gaps(values: Floats32) -> Floats:
    """Fill each row's unknown values on the line between their neighbours; [R, W].

    Ends take the nearest known value, a row without any is zero.
    """
    filled = values.astype(np.float64)
    unknown = np.isnan(filled)
    axis = np.arange(values.shape[1])
    for row in np.flatnonzero(unknown.any(axis=1)):
        gap = unknown[row]
        if gap.all():
            filled[row] = 0.0
        else:
            filled[row, gap] = np.interp(axis[gap], axis[~gap], filled[row, ~gap])
    return filled


def without_outliers(values: Floats) -> Floats:
    """Replace what is beyond the 0.1 and 99.9 percentile of its row by the last value within."""
    low, high = np.quantile(values, [0.001, 0.999], axis=1, keepdims=True)
    kept = (values >= low) & (values <= high)
    kept[:, 0] = True
    source = np.maximum.accumulate(np.where(kept, np.arange(values.shape[1]), 0), axis=1)
    return np.take_along_axis(values, source, axis=1)


def low_pass(values: Floats) -> Floats:
    """Each row of [R, W] without its waves shorter than SMOOTH, at least LEAST."""
    waves = values.shape[1]
    spectrum = np.fft.rfft(values, axis=1)
    spectrum[:, waves * WINDOW // SMOOTH + 1 :] = 0
    smooth = np.fft.irfft(spectrum, n=waves, axis=1)
    return np.where(smooth <= 0, LEAST, smooth)


def is_daily(values: Floats) -> Bools:
    """Whether each row of [R, W], a number of days, repeats itself daily.

    No longer wave of the spectrum is stronger than the daily one, and the autocorrelation at a
    day's lag is positive and higher than 4 hours before and after it.
    """
    centred = values - values.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, axis=1))
    days = values.shape[1] // DAY
    strongest = spectrum[:, days] >= spectrum[:, 1:days].max(axis=1, initial=0.0)
    correlation = np.fft.irfft(np.square(spectrum), n=values.shape[1], axis=1)
    at_day = correlation[:, DAY]
    around = np.maximum(correlation[:, DAY - PEAK], correlation[:, DAY + PEAK])
    return np.asarray(strongest & (at_day > 0) & (at_day > around))


def best_margin(actual: Floats, estimated: Floats) -> Floats:
    """The margin [R] with the least error of ``estimated x (1 + margin)`` against ``actual``.

    Crane's error: the mean relative error, where being below by a share x counts
    ``-log(1 - x) / log(1.25)``; where a truth is under 1e-3 cores, the mean absolute error.
    """
    errors = np.stack([_error(actual, estimated * (1 + margin)) for margin in MARGINS], axis=1)
    return np.asarray(np.array(MARGINS)[errors.argmin(axis=1)])


def _error(actual: Floats, estimated: Floats) -> Floats:
    small = (actual < 1e-3).any(axis=1)
    relative = (estimated - actual) / np.maximum(actual, 1e-3)
    below = relative < 0
    punished = -np.log(1 + np.where(below, relative, 0.0)) / np.log(1.25)
    mean = np.where(below, punished, relative).mean(axis=1)
    return np.asarray(np.where(small, np.abs(estimated - actual).mean(axis=1), mean))
