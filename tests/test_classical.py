"""Every classical predictor, against its definition written as loops."""

from __future__ import annotations

import numpy as np
import pytest

from models.arrays import Floats, Floats32
from models.classical import CLASSICAL, classical
from models.classical.base import MIN_SCALE, quantile
from models.errors import ArtifactError
from models.grid import DAY, WEEK, WINDOW
from models.history import MIN_SAMPLES, History, build_history
from tests.random_histories import (
    HORIZONS,
    aggregate_of,
    daily_usage,
    known,
    members,
    random_history,
)

SEEDS = range(4)


def default_forecast(name: str, history: History) -> Floats:
    """[N, H] with the knob that ships, without unknown pods."""
    predictor = classical(name)
    return predictor.predict(history, HORIZONS).at(np.array(predictor.default_knob))


def slow_percentile(values: list[float], level: float) -> float:
    """Linear interpolation between the closest ranks."""
    ordered = sorted(values)
    position = level * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "level", "lookback"),
    [
        ("rc-like-p95-24h", 0.95, DAY),
        ("rc-like-p99-24h", 0.99, DAY),
        ("rc-like-p95-7d", 0.95, WEEK),
        ("rc-like-p99-7d", 0.99, WEEK),
    ],
)
def test_rc_like_sums_the_pods_percentiles(
    seed: int, name: str, level: float, lookback: int
) -> None:
    history = random_history(seed)
    found = default_forecast(name, history)
    for node in range(history.nodes):
        total = 0.0
        for pod in members(history, node):
            samples = known(history.usage[pod, -lookback:])
            few = len(samples) < MIN_SAMPLES
            total += history.request[pod] if few else slow_percentile(samples, level)
        np.testing.assert_allclose(found[node], total, rtol=1e-5, atol=MIN_SCALE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "level", "lookback"),
    [
        ("aggregate-p95-24h", 0.95, DAY),
        ("aggregate-p99-24h", 0.99, DAY),
        ("aggregate-p95-7d", 0.95, WEEK),
        ("aggregate-p99-7d", 0.99, WEEK),
    ],
)
def test_aggregate_percentile(seed: int, name: str, level: float, lookback: int) -> None:
    history = random_history(seed)
    found = default_forecast(name, history)
    for node in range(history.nodes - 1):
        samples = known(aggregate_of(history, node)[-lookback:])
        expected = slow_percentile(samples, level) if len(samples) >= MIN_SAMPLES else np.nan
        np.testing.assert_allclose(found[node], expected, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "lookback"), [("n-sigma-24h", DAY), ("n-sigma-7d", WEEK)])
def test_n_sigma_is_mean_plus_five_deviations_at_most_the_limit(
    seed: int, name: str, lookback: int
) -> None:
    history = random_history(seed)
    found = default_forecast(name, history)
    for node in range(history.nodes - 1):
        samples = known(aggregate_of(history, node)[-lookback:])
        if len(samples) < MIN_SAMPLES:
            assert np.isnan(found[node]).all()
            continue
        mean = sum(samples) / len(samples)
        variance = sum((s - mean) ** 2 for s in samples) / (len(samples) - 1)
        most = history.limit[node] - history.unknown[node]
        np.testing.assert_allclose(found[node], min(mean + 5 * variance**0.5, most), rtol=1e-4)


def test_n_sigma_reaches_the_limit() -> None:
    usage = np.zeros((1, DAY), np.float32)
    usage[0, ::2] = 3.0  # mean 1.5, deviation 1.5: 1.5 + 5 x 1.5 = 9 cores, of which 4 exist
    history = one_node(usage, [4.0])
    assert default_forecast("n-sigma-24h", history)[0].tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_max_is_the_larger_of_both(seed: int) -> None:
    history = random_history(seed)
    for span in ("24h", "7d"):
        found = default_forecast(f"max-{span}", history)
        sigma = default_forecast(f"n-sigma-{span}", history)
        percentile = default_forecast(f"rc-like-p99-{span}", history)
        expected = np.maximum(sigma, percentile)
        np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-6, atol=MIN_SCALE)


def test_borg_default_is_nine_tenths_of_the_requests() -> None:
    usage = np.full((3, DAY), 0.5, np.float32)
    usage[2] = np.nan  # without samples: not in the prediction, its request is added outside
    history = one_node(usage, [1.0, 3.0, 5.0])
    # 0.9 x (1 + 3) = 3.6
    np.testing.assert_allclose(default_forecast("borg-default", history), [[3.6, 3.6, 3.6]])
    assert history.unknown.tolist() == [5.0]


def test_koordinator_batch_adds_two_fifths_of_the_capacity_to_the_last_usage() -> None:
    usage = np.full((2, DAY), 0.5, np.float32)
    usage[:, -1] = 0.75
    history = one_node(usage, [4.0, 4.0])
    # 2 x 0.75 + 0.40 x 8 = 4.7
    np.testing.assert_allclose(default_forecast("koordinator-batch", history), [[4.7, 4.7, 4.7]])


def test_koordinator_batch_takes_the_newest_known_window_of_the_last_hour() -> None:
    usage = np.full((1, DAY), 0.5, np.float32)
    usage[0, -3:] = [1.0, np.nan, np.nan]
    # 1.0 + 0.40 x 4 = 2.6
    found = default_forecast("koordinator-batch", one_node(usage, [4.0]))
    np.testing.assert_allclose(found, [[2.6, 2.6, 2.6]])
    usage[0, -12:] = np.nan
    assert np.isnan(default_forecast("koordinator-batch", one_node(usage, [4.0]))).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_trailing_maximum(seed: int) -> None:
    history = random_history(seed)
    for name, lookback in (("trailing-max-24h", DAY), ("trailing-max-7d", WEEK)):
        found = default_forecast(name, history)
        for node in range(history.nodes - 1):
            expected = max(known(aggregate_of(history, node)[-lookback:]), default=np.nan)
            np.testing.assert_allclose(found[node], expected, rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_seasonal_maximum_looks_at_the_coming_hours_of_each_past_day(seed: int) -> None:
    history = random_history(seed)
    found = default_forecast("seasonal-max", history)
    for node in range(history.nodes - 1):
        row = aggregate_of(history, node)
        for j, hours in enumerate(HORIZONS):
            highest = -np.inf
            for days_ago in range(1, 8):
                start = len(row) - days_ago * DAY
                highest = max([highest, *known(row[start : start + hours * 12])])
            np.testing.assert_allclose(found[node, j], highest, rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_quantile_of_past_window_maxima(seed: int) -> None:
    history = random_history(seed)
    for name, level in (("window-max-p90", 0.90), ("window-max-p99", 0.99)):
        found = default_forecast(name, history)
        for node in range(history.nodes - 1):
            for j, hours in enumerate(HORIZONS):
                maxima = slow_window_maxima(aggregate_of(history, node), hours)
                expected = slow_percentile(maxima, level) if maxima else np.nan
                np.testing.assert_allclose(found[node, j], expected, rtol=1e-5)


def slow_window_maxima(row: Floats32, hours: int) -> list[float]:
    """Maxima of the complete windows that start on a half hour, counted back from now."""
    length, maxima = hours * 3600 // WINDOW, []
    for start in range(0, len(row) - length + 1, 6):
        halves = [known(row[at : at + 6]) for at in range(start, start + length, 6)]
        if all(halves):
            maxima.append(max(max(half) for half in halves))
    return maxima


def one_node(usage: Floats32, request: list[float]) -> History:
    pods = len(usage)
    return build_history(
        0,
        usage,
        np.array(request),
        np.arange(pods),
        np.zeros(pods, np.int64),
        np.array([sum(request)]),
    )


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_node_without_seasoned_pods_is_forecast_to_use_nothing(name: str) -> None:
    history = random_history(0)
    forecast = default_forecast(name, history)
    assert (history.node != history.nodes - 1).all()
    assert forecast[-1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("windows", [30, DAY, WEEK])
def test_histories_may_be_short_and_may_be_empty(name: str, windows: int) -> None:
    rng = np.random.default_rng(0)
    alone = one_node(daily_usage(rng, 1, windows), [8.0])
    predicted = classical(name).predict(alone, HORIZONS)
    assert predicted.location.shape == predicted.scale.shape == (1, 3)
    said = np.isfinite(predicted.location) & np.isfinite(predicted.scale)
    assert said.all() or windows < WEEK  # yesterday's evening is unknown to a morning of history
    assert (predicted.scale[said] > 0).all()
    none = np.zeros(0, np.int64)
    empty = build_history(
        0, np.zeros((0, windows), np.float32), np.zeros(0), none, none, np.zeros(0)
    )
    assert classical(name).predict(empty, HORIZONS).location.shape == (0, 3)


@pytest.mark.parametrize("name", CLASSICAL)
def test_an_idle_node_is_predicted(name: str) -> None:
    history = one_node(np.zeros((3, WEEK), np.float32), [1.0, 1.0, 1.0])
    forecast = default_forecast(name, history)
    assert np.isfinite(forecast).all()
    assert (forecast >= 0).all()


@pytest.mark.parametrize("name", CLASSICAL)
def test_sharing_pods_changes_nothing(name: str) -> None:
    """A node's forecast is the same whether or not other nodes list its pods too."""
    history = random_history(3)
    together = classical(name).predict(history, HORIZONS)
    for node in range(history.nodes):
        own = history.node == node
        alone = build_history(
            history.time,
            history.usage,
            history.request,
            history.pod[own],
            np.zeros(int(own.sum()), np.int64),
            history.limit[node : node + 1],
        )
        predicted = classical(name).predict(alone, HORIZONS)
        np.testing.assert_allclose(predicted.location[0], together.location[node], rtol=1e-5)
        np.testing.assert_allclose(predicted.scale[0], together.scale[node], rtol=1e-5)


def test_calm_before_anything_ran_is_no_evidence() -> None:
    """A node whose pods all started a day ago is not taken for one with six calm days before."""
    rng = np.random.default_rng(1)
    usage = daily_usage(rng, 2, WEEK)
    usage[:, :-DAY] = np.nan
    week, day = (
        default_forecast(name, one_node(usage, [8.0, 8.0]))
        for name in ("aggregate-p99-7d", "aggregate-p99-24h")
    )
    np.testing.assert_allclose(week, day)


def test_quantile_of_a_row_with_few_values_is_unknown() -> None:
    values = np.array([[1.0, 2.0, np.nan], [np.nan, np.nan, np.nan]], np.float32)
    found = quantile(values, 0.5, least=2)
    assert found[0] == 1.5
    assert np.isnan(found[1])
    assert np.isnan(quantile(values, 0.5, least=0)[1])


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ArtifactError, match="borg-default"):
        classical("oracle")
