"""Fitting: the same seed gives the same model, nothing from the future, clear refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from models.classical import CLASSICAL
from models.errors import TraceError
from models.features import input_names
from models.forecaster import Prediction
from models.grid import DAY, WINDOW
from models.history import History
from models.policy import HORIZONS
from tests.learned import small_cluster, small_machines, small_model
from trainer.fit import calibrate_model, fit_model
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


def test_importances_are_of_features_whatever_their_names_end_in() -> None:
    found = small_model().training.importances
    of_node = set.intersection(*(set(input_names(hours)) for hours in HORIZONS))
    of_window = {name.removesuffix("_1h") for name in input_names(1)}
    assert {"mean_1h", "max_6h", "max_24h", "mean_24h"} <= found.keys() <= of_node | of_window
    assert sum(found.values()) == pytest.approx(1)


def test_figures_of_training_are_of_what_is_served_at_most() -> None:
    grid, _ = small_cluster()
    low = CLASSICAL["trailing-max-24h"]

    class Wild:
        """Would say a thousand cores, but at most the day's highest."""

        name, default_knob = low.name, 1.0

        def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
            highest = low.predict(history, horizons).at(np.ones(1))
            return Prediction(highest, np.full(highest.shape, 1e3), highest.max(axis=1))

    metrics = calibrate_model(Wild(), grid, seed=0, max_rows=2000).training.metrics
    # A day's highest is less than five times the next day's.
    assert 0 < metrics["uncalibrated_excess_reserve_24h"] < 5


def test_figures_that_are_not_known_are_left_out() -> None:
    grid, placement = small_cluster()
    idle = replace(grid, cpu=grid.cpu * 0)
    model = fit_model(idle, seed=0, placement=placement, max_rows=2000, threads=1)
    assert np.isfinite(list(model.training.metrics.values())).all()
    assert "calibrated_violation_rate_1h" in model.training.metrics
    assert "calibrated_pinball_1h" not in model.training.metrics


def test_a_machine_that_was_idle_teaches_others_nothing() -> None:
    grid, placement = small_cluster()
    idle = np.zeros((3, grid.windows), np.float32)
    idle[:, 3 * DAY :: 37] = 0.5
    more = replace(
        grid,
        cpu=np.vstack([grid.cpu, idle]),
        cpu_max=None,
        pods=(*grid.pods, "a/i0", "a/i1", "a/i2"),
        workloads=(*grid.workloads, *["a/Deployment/i"] * 3),
        request=np.append(grid.request, [1.0] * 3),
        born=np.append(grid.born, [grid.start] * 3),
        gone=np.append(grid.gone, [grid.end] * 3),
    )
    fitted = fit_model(more, seed=0, placement=(*placement, *["idle"] * 3), max_rows=3000)
    busy = machine_history(grid, small_machines(), grid.start + 7 * DAY * WINDOW)
    found = fitted.forecaster.predict(busy, HORIZONS).location.sum(axis=0)
    plain = small_model().forecaster.predict(busy, HORIZONS).location.sum(axis=0)
    np.testing.assert_allclose(found, plain, rtol=0.2)


def test_pods_that_request_no_cpu_are_refused_by_that_name() -> None:
    grid, placement = small_cluster()
    with pytest.raises(TraceError, match="requests CPU"):
        fit_model(replace(grid, request=grid.request * 0), seed=0, placement=placement)


def test_a_trace_that_is_too_short_says_how_much_is_needed() -> None:
    grid, placement = small_cluster()
    short = replace(grid, cpu=grid.cpu[:, : 2 * DAY])
    with pytest.raises(TraceError, match="days"):
        fit_model(short, seed=0, placement=placement)
