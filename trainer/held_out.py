"""What a model forecasts for the share of a trace that it was not fitted on, and what came true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models import calibration
from models.arrays import Floats, Ints
from models.grid import UsageGrid
from models.model import Model
from models.policy import HORIZONS
from trainer.fit import CALIBRATE
from trainer.machines import Machines, decision_times, machine_history, peak_truth

MOST_TIMES = 96
"""Decisions that are looked at: enough for a figure, at about 20 ms each on 180 pods."""

LEAST_SCORES = 30
"""Known scores that each half must have; below, a rate of some percent means nothing."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Forecasts at T times for N machines and the H horizons of `models.policy.HORIZONS`.

    Fields, with shapes and units:
        time: [T] seconds since the epoch.
        forecast, truth: [T, N, H] cores; the truth is NaN where it is not known.
        score: [T, N, H] the knob that would just have covered the truth; inf where none would, NaN
            where the truth is not known.
        limit: [N] cores.
    """

    time: Ints
    forecast: Floats
    truth: Floats
    score: Floats
    limit: Floats


def look_at(model: Model, grid: UsageGrid, machines: Machines) -> HeldOut:
    """Forecast within the share of the time axis that calibrates, from what was known by then.

    Args:
        model: with the knobs of its own calibration, which saw this share of the trace.
        grid, machines: whose usage.
    """
    times = decision_times(grid, *CALIBRATE)
    times = times[:: -(-len(times) // MOST_TIMES) or 1]
    knob = model.calibration.knobs(model.policy.target)
    shape = (len(times), len(machines), len(HORIZONS))
    forecast, truth, score = np.empty(shape), np.empty(shape), np.empty(shape)
    for row, time in enumerate(times):
        history = machine_history(grid, machines, int(time))
        predicted = model.forecaster.predict(history, HORIZONS)
        unknown = history.unknown[:, None]
        forecast[row] = predicted.at(knob) + unknown
        truth[row] = peak_truth(grid, machines, int(time), HORIZONS)
        found = calibration.needed_knob(predicted, truth[row], history.unknown)
        beyond = truth[row] - unknown > predicted.cap[:, None]
        score[row] = np.where(beyond & ~np.isnan(found), np.inf, found)
    return HeldOut(times, forecast, truth, score, machines.limit)


def violation_rates(held: HeldOut, accepted: Sequence[float]) -> Floats:
    """How often a knob chosen for a probability on the first half is too low on the second.

    Only scores that were known when the second half began choose the knob. A probability that the
    forecaster is calibrated for comes out as itself; a higher rate is drift.

    Args:
        held: from `look_at`.
        accepted: A probabilities.

    Returns:
        [A, H] rates; NaN where a half has too few known scores.
    """
    rates = np.full((len(accepted), len(HORIZONS)), np.nan)
    if len(held.time) == 0:
        return rates
    split = held.time[len(held.time) // 2]
    for j, hours in enumerate(HORIZONS):
        score = held.score[:, :, j]
        past = score[held.time + hours * 3600 <= split]
        future = score[held.time >= split]
        past, future = past[~np.isnan(past)], future[~np.isnan(future)]
        if min(len(past), len(future)) < LEAST_SCORES:
            continue
        knobs = np.quantile(past, 1 - np.asarray(accepted), method="higher")
        rates[:, j] = (future[None, :] > knobs[:, None]).mean(axis=1)
    return rates
