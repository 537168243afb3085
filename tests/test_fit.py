"""Fitting: the same seed gives the same model, nothing from the future, clear refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.errors import TraceError
from models.grid import DAY
from models.policy import HORIZONS
from tests.learned import small_cluster, small_machines, small_model
from trainer.fit import fit_model
from trainer.machines import machine_history, peak_truth


def test_the_same_seed_gives_the_same_model() -> None:
    grid, placement = small_cluster()
    again = fit_model(grid, seed=0, placement=placement, max_rows=3000, threads=1)
    history = machine_history(grid, small_machines(), grid.end)
    one = small_model().forecaster.predict(history, HORIZONS)
    other = again.forecaster.predict(history, HORIZONS)
    np.testing.assert_array_equal(one.location, other.location)
    assert again.calibration == small_model().calibration


def test_usage_after_the_shares_changes_nothing() -> None:
    grid, placement = small_cluster()
    changed = grid.cpu.copy()
    changed[:, int(0.8 * grid.windows) :] *= 7
    models = [
        fit_model(
            g,
            seed=0,
            placement=placement,
            max_rows=2000,
            threads=1,
            train=(0.0, 0.6),
            calibrate=(0.6, 0.8),
        )
        for g in (grid, replace(grid, cpu=changed))
    ]
    assert models[0].calibration == models[1].calibration


def test_a_fitted_model_is_calibrated_and_beats_requests() -> None:
    grid, _ = small_cluster()
    machines, model = small_machines(), small_model()
    knobs = model.calibration.knobs(0.01)
    violated, judged, forecast_sum, limit_sum = 0, 0, 0.0, 0.0
    for time in range(grid.start + 7 * DAY * 300, grid.end - 6 * 3600, 3600):
        history = machine_history(grid, machines, time)
        forecast = model.forecaster.predict(history, HORIZONS).at(knobs)
        forecast += history.unknown[:, None]
        truth = peak_truth(grid, machines, time, (1, 3, 6))
        known = np.isfinite(truth)
        violated += int((truth > forecast[:, :3])[known].sum())
        judged += int(known.sum())
        forecast_sum += float(forecast.sum())
        limit_sum += float(history.limit.sum()) * len(HORIZONS)
    assert judged > 100
    assert violated / judged < 0.1
    assert forecast_sum < 0.9 * limit_sum


def test_a_trace_that_is_too_short_says_how_much_is_needed() -> None:
    grid, placement = small_cluster()
    short = replace(grid, cpu=grid.cpu[:, : 2 * DAY])
    with pytest.raises(TraceError, match="days"):
        fit_model(short, seed=0, placement=placement)
