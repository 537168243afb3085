"""VPA's and Koordinator's decaying histograms, against explicit loops over buckets."""

from __future__ import annotations

import numpy as np
import pytest

from models.arrays import Floats32
from models.classical import classical
from models.classical.base import MIN_SCALE
from models.classical.histogram import (
    KOORDINATOR_BUCKETS,
    VPA_BUCKETS,
    Buckets,
    decayed_percentile,
    weighted_bucket,
)
from models.grid import DAY, WEEK
from models.history import MIN_SAMPLES, build_history
from tests.random_histories import HORIZONS, aggregate_of, daily_usage, members, random_history


def slow_histogram(
    row: Floats32, first: float, highest: float, half_life_hours: float, level: float
) -> float:
    """A percentile as VPA's histogram computes it: buckets grow by 5 %, the bucket's end counts."""
    starts = [0.0]
    while starts[-1] <= highest:
        starts.append(starts[-1] + first * 1.05 ** (len(starts) - 1))
    weights = [0.0] * len(starts)
    for at, value in enumerate(row):
        if np.isnan(value):
            continue
        bucket = max(b for b, start in enumerate(starts) if start <= float(value))
        age_hours = (len(row) - 1 - at) * 5 / 60
        weights[bucket] += 0.5 ** (age_hours / half_life_hours)
    total, summed = sum(weights), 0.0
    for bucket, weight in enumerate(weights):
        summed += weight
        if summed >= level * total:
            return starts[bucket + 1]
    raise AssertionError("the weights of all buckets are the total")


@pytest.mark.parametrize("seed", range(3))
def test_vpa_sums_the_pods_p90(seed: int) -> None:
    history = random_history(seed, pods=5, nodes=3)
    predicted = classical("vpa").predict(history, HORIZONS).at(np.array(1.15))
    for node in range(history.nodes):
        total = 0.0
        for pod in members(history, node):
            total += 1.15 * slow_histogram(history.usage[pod], 0.01, 1000.0, 24, 0.90)
        np.testing.assert_allclose(predicted[node], total, rtol=1e-9, atol=2 * MIN_SCALE)


@pytest.mark.parametrize("seed", range(3))
def test_koordinator_is_the_larger_of_sum_and_aggregate(seed: int) -> None:
    history = random_history(seed, pods=5, nodes=3)
    predicted = classical("koordinator").predict(history, HORIZONS).at(np.array(1.10))
    for node in range(history.nodes - 1):
        total = 0.0
        for pod in members(history, node):
            if np.isnan(history.usage[pod, :-DAY]).all():  # younger than 24 h
                total += history.request[pod]
            else:
                total += 1.10 * slow_histogram(history.usage[pod], 0.025, 1024.0, 12, 0.95)
        whole = aggregate_of(history, node)
        if (~np.isnan(whole)).sum() >= MIN_SAMPLES:
            total = max(total, 1.10 * slow_histogram(whole, 0.025, 1024.0, 12, 0.95))
        np.testing.assert_allclose(predicted[node], total, rtol=1e-6, atol=2 * MIN_SCALE)


def test_koordinator_takes_the_aggregate_where_it_is_larger() -> None:
    """Pods that are rarely busy, but always one of them: the sum of their p95 sees none."""
    usage = np.full((40, WEEK), 0.01, np.float32)
    usage[np.arange(WEEK) % 40, np.arange(WEEK)] = 2.0  # each busy in 2.5 % of the windows
    history = build_history(
        0, usage, np.full(40, 4.0), np.arange(40), np.zeros(40, np.int64), np.array([160.0])
    )
    predicted = classical("koordinator").predict(history, HORIZONS).at(np.array(1.10))
    # The sum: 40 x 1.10 x 0.025 (the first bucket's end) = 1.1; the aggregate is always 2.39.
    assert predicted[0, 0] > 1.10 * 2.39
    assert predicted[0, 0] < 1.10 * 2.39 * 1.06


def test_a_recent_day_outweighs_an_old_one() -> None:
    """Half-life 24 h: of two days, the newer weighs 2/3, so the p60 lies in the newer one."""
    usage = np.full((1, 2 * DAY), 3.0, np.float32)
    usage[0, DAY:] = 1.0
    found = decayed_percentile(usage, VPA_BUCKETS, 24 * 3600, 0.60)
    assert 1.0 < found[0] < 1.06
    found = decayed_percentile(usage, VPA_BUCKETS, 24 * 3600, 0.70)
    assert 3.0 < found[0] < 3.16


def test_buckets_end_where_the_next_one_starts() -> None:
    # 0.025 x (1.05^2 - 1) / 0.05 = 0.025 + 0.02625 = 0.05125
    assert KOORDINATOR_BUCKETS.index(np.array([0.0, 0.0249, 0.0251, 0.0512])).tolist() == [
        0,
        0,
        1,
        1,
    ]
    np.testing.assert_allclose(KOORDINATOR_BUCKETS.end(np.array([0.0, 1.0])), [0.025, 0.05125])


def test_usage_beyond_the_last_bucket_is_returned_by_its_start() -> None:
    buckets = Buckets(first=1.0, growth=1.05, highest=2.0)
    assert buckets.last == 2  # starts at 0, 1 and 2.05
    assert buckets.index(np.array([100.0])).tolist() == [2]
    np.testing.assert_allclose(buckets.end(np.array([2.0])), [2.05])


def test_rows_are_independent_of_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = daily_usage(rng, 7, 100).astype(np.float64)
    values[3] = np.nan
    weights = rng.random(values.shape)
    whole = weighted_bucket(np.floor(values * 10), weights, 0.9)
    monkeypatch.setattr("models.classical.histogram.CHUNK", 2)
    np.testing.assert_array_equal(weighted_bucket(np.floor(values * 10), weights, 0.9), whole)
    assert np.isnan(whole[3])
