"""Crane's percentile and its DSP prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.arrays import Floats
from models.classical import classical
from models.classical.base import MIN_SCALE
from models.classical.crane import (
    LEAST,
    best_margin,
    bridge_gaps,
    is_daily,
    low_pass,
    without_outliers,
)
from models.grid import DAY, WEEK
from models.history import History, build_history
from tests.random_histories import HORIZONS, known, members, random_history

HOURS = np.arange(WEEK) / 12


def one_node(usage: Floats) -> History:
    return build_history(
        0,
        usage[None].astype(np.float32),
        np.array([8.0]),
        np.array([0]),
        np.array([0]),
        np.array([8.0]),
    )


@pytest.mark.parametrize("seed", range(3))
def test_percentile_weighs_each_sample_by_its_value(seed: int) -> None:
    history = random_history(seed)
    predicted = classical("crane-percentile").predict(history, HORIZONS).at(np.array(1.15))
    for node in range(history.nodes):
        total = 0.0
        for pod in members(history, node):
            buckets: dict[int, float] = {}
            for value in known(history.usage[pod]):
                bucket = math.floor(value / 0.1)
                buckets[bucket] = buckets.get(bucket, 0.0) + max(1e-5, value)
            summed = 0.0
            for bucket in sorted(buckets):
                summed += buckets[bucket]
                if summed >= 0.99 * sum(buckets.values()):
                    total += 1.15 * (bucket + 1) * 0.1
                    break
        np.testing.assert_allclose(predicted[node], total, rtol=1e-6, atol=2 * MIN_SCALE)


def test_dsp_repeats_a_daily_tide() -> None:
    """2 cores + 1 x sin with its peak at 6 h: the next hour is near the mean, 6 h hold the peak."""
    usage = 2 + np.sin(2 * np.pi * HOURS / 24)
    predicted = classical("crane-dsp").predict(one_node(usage), HORIZONS).at(np.array(1.0))
    # A perfect reconstruction: the smallest margin, 1 %, is best.
    next_hour = 2 + np.sin(2 * np.pi * (11 / 12) / 24)
    np.testing.assert_allclose(predicted[0], [1.01 * next_hour, 1.01 * 3, 1.01 * 3], rtol=1e-3)


def test_dsp_repeats_the_week_where_no_day_is_like_another() -> None:
    """A weekly wave that is highest at noon of its first day: tomorrow is like a week ago."""
    usage = 2 + 1.5 * np.cos(2 * np.pi * (HOURS - 12) / 168)
    predicted = classical("crane-dsp").predict(one_node(usage), HORIZONS).at(np.array(1.0))
    # The last day never exceeded 2 + 1.5 x cos(2 pi 12 / 168) = 3.35; the margin is 1 %.
    np.testing.assert_allclose(predicted[0, 2], 1.01 * 3.5, rtol=1e-3)


def test_dsp_bridges_gaps_and_is_silent_without_two_recent_days() -> None:
    usage = 2 + np.sin(2 * np.pi * HOURS / 24)
    whole = classical("crane-dsp").predict(one_node(usage), HORIZONS).at(np.array(1.0))
    usage[100:103] = np.nan
    gappy = classical("crane-dsp").predict(one_node(usage), HORIZONS).at(np.array(1.0))
    np.testing.assert_allclose(gappy, whole, rtol=1e-3)
    usage[-2 * DAY :] = np.nan
    assert np.isnan(classical("crane-dsp").predict(one_node(usage), HORIZONS).scale).all()


def test_daily_means_no_longer_wave_is_stronger() -> None:
    day, week = np.sin(2 * np.pi * HOURS / 24), np.sin(2 * np.pi * HOURS / 168)
    rows = np.stack([day, day + 0.5 * week, day + 1.5 * week, week, np.ones(WEEK)])
    assert is_daily(rows).tolist() == [True, True, False, False, False]


def test_a_half_day_period_is_a_daily_one_too() -> None:
    """Its autocorrelation peaks at 24 h as well, and no wave of a day or longer exists at all."""
    rows = np.sin(2 * np.pi * HOURS / 12)[None] + 1e-9 * np.sin(2 * np.pi * HOURS / 24)
    assert is_daily(rows).tolist() == [True]


def test_low_pass_keeps_waves_of_an_hour_and_longer() -> None:
    slow = 5 + np.sin(2 * np.pi * HOURS / 24) + np.sin(2 * np.pi * HOURS)
    fast = np.sin(2 * np.pi * HOURS * 2)  # every half hour
    np.testing.assert_allclose(low_pass((slow + fast)[None])[0], slow, atol=1e-9)
    assert (low_pass(np.zeros((1, WEEK))) == LEAST).all()


def test_low_pass_equals_the_slow_transform() -> None:
    rng = np.random.default_rng(0)
    row = rng.gamma(2.0, 1.0, DAY)
    angle = 2 * np.pi * np.outer(np.arange(DAY), np.arange(DAY)) / DAY
    spectrum = (row * np.exp(-1j * angle)).sum(axis=1)
    waves = np.minimum(np.arange(DAY), DAY - np.arange(DAY))  # waves in the day
    spectrum[waves > 24] = 0  # shorter than an hour
    expected = (spectrum * np.exp(1j * angle)).sum(axis=1).real / DAY
    expected[expected <= 0] = LEAST
    np.testing.assert_allclose(low_pass(row[None])[0], expected, atol=1e-9)


def test_margin_punishes_forecasts_below_the_truth() -> None:
    actual = np.full((4, DAY), 1.0)
    estimated = np.stack(
        [
            np.full(DAY, 1.0),  # right: 1 %
            np.full(DAY, 0.92),  # 10 % reach 1.012, 1 % stay below at 0.929
            np.full(DAY, 0.87),  # 15 % reach 1.0005
            np.full(DAY, 0.50),  # the largest is the least wrong
        ]
    )
    assert best_margin(actual, estimated).tolist() == [0.01, 0.10, 0.15, 0.20]


def test_margin_equals_the_loop_over_candidates() -> None:
    rng = np.random.default_rng(5)
    actual, estimated = rng.uniform(0.5, 1.5, (6, 50)), rng.uniform(0.5, 1.5, (6, 50))
    actual[5, 0] = 0.0  # too small for relative errors: the mean absolute error decides
    for row, margin in enumerate(best_margin(actual, estimated).tolist()):
        errors = {
            m: slow_error(actual[row].tolist(), (estimated[row] * (1 + m)).tolist())
            for m in (0.01, 0.10, 0.15, 0.20)
        }
        assert margin == min(errors, key=lambda m: errors[m])


def slow_error(actual: list[float], estimated: list[float]) -> float:
    if min(actual) < 1e-3:
        return sum(abs(e - a) for a, e in zip(actual, estimated, strict=True)) / len(actual)
    total = 0.0
    for a, e in zip(actual, estimated, strict=True):
        total += -math.log(1 - (a - e) / a) / math.log(1.25) if e < a else (e - a) / a
    return total / len(actual)


def test_gaps_are_bridged_on_a_line() -> None:
    nan = np.nan
    rows = np.array([[nan, 1.0, nan, nan, 4.0, nan], [nan] * 6], np.float32)
    assert bridge_gaps(rows).tolist() == [[1.0, 1.0, 2.0, 3.0, 4.0, 4.0], [0.0] * 6]


def test_outliers_take_the_value_before() -> None:
    values = np.linspace(1.0, 2.0, WEEK)[None].copy()
    values[0, 500] = 50.0
    cleaned = without_outliers(values)
    assert cleaned[0, 500] == values[0, 499]
    assert cleaned.max() < 2.0
