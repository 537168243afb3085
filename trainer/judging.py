"""Turns what a predictor said into forecasts, by the way its knob is set, and judges them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.arrays import Floats, Ints
from models.calibration import LIMIT, Calibration, Recalibrator, fit_calibration, score
from models.forecaster import Prediction
from trainer.metrics import TOLERANCE, Figures, covering_knob, judge
from trainer.past import Past

Mode = Literal["deployed", "frontier", "oracle", "shipped"]
"""How a knob was set: from the past; on the test itself so that exactly the target is violated;
with the truth as the forecast; with the predictor's default."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The figures of one predictor in one mode; horizon in hours."""

    predictor: str
    mode: Mode
    horizon: int
    target: float
    figures: Figures


def calibrate(past: Past, name: str, horizons: tuple[int, ...], until: int) -> Calibration:
    """Calibrate a predictor on the decisions whose horizons had passed by ``until``.

    Raises:
        TraceError: a horizon has no decision whose truth is known.
    """
    scores = score(past.predictions[name], past.truth, past.unknown)
    made = np.repeat(past.time, past.machines)
    ends = made[:, None] + 3600 * np.array(horizons)
    return fit_calibration(np.where(ends <= until, scores, np.nan), made, horizons)


def deployed_knobs(
    past: Past, name: str, horizons: tuple[int, ...], calibration: Calibration, target: float
) -> Floats:
    """The knobs [T, H] that a recalibrated predictor uses, each from what was known by then."""
    shape = (len(past.time), past.machines, len(horizons))
    scores = score(past.predictions[name], past.truth, past.unknown).reshape(shape)
    recalibrator = Recalibrator(calibration, target)
    resolved = [0] * len(horizons)
    knobs = np.empty((len(past.time), len(horizons)))
    for row, time in enumerate(past.time.tolist()):
        for j, hours in enumerate(horizons):
            while past.time[resolved[j]] + hours * 3600 <= time:
                made = resolved[j]
                recalibrator.observe(int(past.time[made]), j, scores[made, :, j])
                resolved[j] += 1
        knobs[row] = recalibrator.knobs(time)
    return knobs


def frontier_knobs(past: Past, name: str, target: float) -> Floats:
    """The knob of each horizon [H] that is violated in exactly the target's share of the test."""
    said = past.predictions[name]
    asked = past.truth - past.unknown[:, None]
    scores = (asked - said.location) / said.scale
    # No knob covers what is above the cap, and none matters where nothing is forecast.
    beyond = asked > said.cap[:, None] + TOLERANCE
    fixed = np.isnan(said.location) | (said.cap[:, None] <= 0)
    hopeless = np.where(np.isnan(said.location), past.truth > past.limit[:, None], beyond)
    scores = np.where(fixed, np.where(hopeless, np.inf, -np.inf), scores)
    scores = np.where(beyond & ~fixed, np.inf, scores)
    scores = np.where(np.isnan(past.truth), np.nan, scores)
    knobs = [covering_knob(column, target) for column in scores.T]
    return np.asarray(np.clip(knobs, -LIMIT, LIMIT), np.float64)


def forecast(past: Past, said: Prediction, knobs: Floats) -> Floats:
    """The forecasts [R, H] in cores for knobs [T, H]; the limit where a predictor says nothing."""
    raw = said.at(np.repeat(knobs, past.machines, axis=0)) + past.unknown[:, None]
    return np.asarray(np.where(np.isnan(raw), past.limit[:, None], raw))


def judge_rows(
    past: Past,
    forecasts: Floats,
    truth: Floats,
    name: str,
    mode: Mode,
    horizons: tuple[int, ...],
    target: float,
) -> list[Judged]:
    """The figures of forecasts [R, H] against a truth [R, H], horizon by horizon."""
    day: Ints = (past.time - past.time[0]) // 86_400
    limit = past.by_machine(past.limit)
    return [
        Judged(
            name,
            mode,
            hours,
            target,
            judge(
                past.by_machine(forecasts[:, j]), past.by_machine(truth[:, j]), limit, day, target
            ),
        )
        for j, hours in enumerate(horizons)
    ]
