"""The feature kernel: the same for training and serving, and blind to the future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.arrays import Floats32
from models.features import FEATURE_NAMES, features, input_names, inputs
from models.grid import DAY, WEEK, WINDOW
from models.history import History, build_history
from models.policy import HORIZONS
from tests.learned import small_cluster, small_machines
from tests.random_histories import aggregate_of, random_history
from trainer.dataset import build_rows
from trainer.machines import decision_times, machine_history


def column(rows: Floats32, name: str) -> Floats32:
    return rows[:, FEATURE_NAMES.index(name)]


def test_training_rows_equal_serving_rows_bit_for_bit() -> None:
    grid, _ = small_cluster()
    machines = small_machines()
    times = decision_times(grid, 0.5, 0.6)[::10]
    rows = build_rows(grid, machines, times, grid.end)
    served = np.concatenate(
        [features(machine_history(grid, machines, int(time))) for time in times]
    )
    known = ~np.isnan(served).any(axis=1)
    assert known.sum() == len(rows)
    np.testing.assert_array_equal(rows.features, served[known])


def test_the_future_changes_no_feature() -> None:
    grid, _ = small_cluster()
    machines = small_machines()
    time = grid.start + 6 * 86_400
    changed = grid.cpu.copy()
    changed[:, grid.column(time) :] = 99.0
    before = features(machine_history(grid, machines, time))
    after = features(machine_history(replace(grid, cpu=changed), machines, time))
    np.testing.assert_array_equal(before, after)


def test_training_truth_ends_where_it_is_told_to() -> None:
    grid, _ = small_cluster()
    times = decision_times(grid, 0.5, 0.6)[:1]
    rows = build_rows(grid, small_machines(), times, int(times[0]) + 6 * 3600)
    assert np.isfinite(rows.truth[:, :3]).any(axis=0).all()  # 1, 3 and 6 h are over by then
    assert np.isnan(rows.truth[:, 3:]).all()  # 12 and 24 h are not


@pytest.mark.parametrize("seed", range(5))
def test_simple_columns_equal_an_obvious_version(seed: int) -> None:
    history = random_history(seed)
    rows = features(history)
    for node in range(history.nodes - 1):
        past = aggregate_of(history, node)
        week = past[-WEEK:]
        seen = week[~np.isnan(week)]
        if len(seen) == 0:
            continue
        assert column(rows, "max_7d")[node] == pytest.approx(seen.max(), rel=1e-5)
        day = week[-DAY:]
        if (~np.isnan(day)).any():
            assert column(rows, "max_24h")[node] == pytest.approx(np.nanmax(day), rel=1e-5)


def steady(cores: float, time: int = 10 * 86_400) -> History:
    usage = np.full((2, WEEK), cores / 2, np.float32)
    return build_history(
        time, usage, np.ones(2), np.arange(2), np.zeros(2, np.int64), np.array([8.0])
    )


def test_inputs_of_trees_do_not_depend_on_scale() -> None:
    one, tenfold = features(steady(1.0)), features(steady(10.0))
    for hours in HORIZONS:
        names = list(input_names(hours))
        # what compares usage with requests must change: requests stayed the same
        kept = [at for at, name in enumerate(names) if "request" not in name]
        np.testing.assert_allclose(
            inputs(one, hours)[:, kept], inputs(tenfold, hours)[:, kept], atol=1e-4
        )


def test_a_node_without_any_usage_has_no_features() -> None:
    usage = np.full((1, WEEK), np.nan, np.float32)
    usage[0, :30] = 1.0
    usage[0, 30:] = np.nan
    history = build_history(
        30 * WINDOW, usage, np.ones(1), np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(2)
    )
    rows = features(history)
    assert rows.shape == (2, len(FEATURE_NAMES))
    assert np.isfinite(rows[0]).any()
