"""The figures of an evaluation, against loops over decisions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.arrays import Floats, Ints
from trainer.metrics import (
    block_interval,
    covering_knob,
    excess_reserve,
    judge,
    pinball,
    savings,
    violations,
    worst_machines,
)

NAN = np.nan


def cases(seed: int, times: int = 30, machines: int = 7) -> tuple[Floats, Floats, Floats, Ints]:
    """Forecast, truth, limit [T, N] and day [T], with unknown truths and a machine without."""
    rng = np.random.default_rng(seed)
    truth = rng.gamma(2.0, 1.0, (times, machines))
    truth[rng.random(truth.shape) < 0.1] = NAN
    truth[:, 0] = NAN
    forecast = rng.gamma(4.0, 1.0, (times, machines))
    limit = np.full(truth.shape, 20.0)
    limit[:, 1] = 0.0
    return forecast, truth, limit, np.arange(times) // 6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.01, 0.05, 0.5]))
def test_all_figures_equal_the_loops(seed: int, target: float) -> None:
    forecast, truth, limit, day = cases(seed)
    found = judge(forecast, truth, limit, day, target)
    count = violated = 0
    severities: list[float] = []
    excess = loss = total = saved = possible = 0.0
    with_limit = 0
    rates = []
    for machine in range(truth.shape[1]):
        own = own_violated = 0
        for time in range(truth.shape[0]):
            f, y, most = forecast[time, machine], truth[time, machine], limit[time, machine]
            if math.isnan(y):
                continue
            own += 1
            total += y
            if y > f:
                own_violated += 1
                severities.append((y - f) / y)
                loss += (1 - target) * (y - f)
            else:
                excess += f - y
                loss += target * (f - y)
            if most > 0:
                with_limit += 1
                saved += 1 - f / most
                possible += 1 - y / most
        count, violated = count + own, violated + own_violated
        if own:
            rates.append(own_violated / own)
    assert found.decisions == count
    assert found.violation_rate == pytest.approx(violated / count)
    assert found.worst_machines == pytest.approx(np.quantile(rates, 0.95))
    assert found.severity_mean == pytest.approx(np.mean(severities))
    assert found.severity_p99 == pytest.approx(np.quantile(severities, 0.99))
    assert found.excess_reserve == pytest.approx(excess / total)
    assert found.savings == pytest.approx(saved / with_limit)
    assert found.oracle_share == pytest.approx(saved / possible)
    assert found.pinball == pytest.approx(loss / total)
    assert found.interval_low <= found.violation_rate <= found.interval_high


def test_the_oracle_wastes_and_violates_nothing() -> None:
    _, truth, limit, day = cases(1)
    found = judge(truth, truth, limit, day, 0.01)
    assert found.violation_rate == found.excess_reserve == found.pinball == 0
    assert found.severity_mean == found.severity_p99 == 0
    assert found.oracle_share == 1


def test_pinball_by_hand() -> None:
    forecast, truth = np.array([[3.0, 1.0]]), np.array([[1.0, 2.0]])
    # (0.05 x 2 above + 0.95 x 1 below) / (1 + 2) = 1.05 / 3
    assert pinball(forecast, truth, 0.05) == pytest.approx(0.35)


@pytest.mark.parametrize("unknown", [NAN, np.inf])
def test_a_forecast_counts_for_pinball_where_the_truth_is_known(unknown: float) -> None:
    forecast, truth = np.array([3.0, unknown]), np.array([1.0, NAN])
    assert pinball(forecast, truth, 0.05) == pytest.approx(0.05 * 2 / 1)
    with pytest.raises(ValueError, match="contains"):
        pinball(forecast, np.array([1.0, 2.0]), 0.05)


def test_excess_and_savings_by_hand() -> None:
    forecast, truth = np.array([[3.0, 1.0]]), np.array([[1.0, 2.0]])
    assert excess_reserve(forecast, truth) == pytest.approx(2 / 3)
    # 1 - 3/4 and 1 - 1/4 -> 0.5; 1 - 1/4 and 1 - 2/4 -> 0.625
    assert savings(forecast, truth, np.full((1, 2), 4.0)) == (0.5, 0.625)


def test_rounding_is_no_violation_and_the_unknown_is_none() -> None:
    truth = np.array([0.1 + 0.2, 0.3 + 1e-6, NAN])
    assert violations(np.array([0.3, 0.3, 0.3]), truth).tolist() == [False, True, False]


def test_worst_machines_is_the_95th_percentile_of_their_own_rates() -> None:
    violated = np.zeros((100, 21), np.bool_)
    violated[:40, 20] = True  # rates: twenty 0, one 0.40
    violated[:10, 19] = True  # and one 0.10: position 0.95 x 20 = 19, the second highest
    assert worst_machines(violated, np.ones_like(violated)) == pytest.approx(0.10)


def test_nothing_known_gives_nan_and_no_warning() -> None:
    unknown = np.full((4, 2), NAN)
    found = judge(np.ones((4, 2)), unknown, np.ones((4, 2)), np.zeros(4, np.int64), 0.01)
    assert found.decisions == 0
    assert math.isnan(found.violation_rate)
    assert math.isnan(found.pinball)
    assert math.isnan(found.interval_low)
    assert math.isnan(found.oracle_share)


def test_idle_machines_give_no_ratio() -> None:
    found = judge(np.ones((4, 2)), np.zeros((4, 2)), np.ones((4, 2)), np.zeros(4, np.int64), 0.01)
    assert math.isnan(found.excess_reserve)
    assert math.isnan(found.pinball)
    assert found.violation_rate == 0


def test_interval_is_wide_where_violations_share_a_day() -> None:
    """The same 10 % of violations, all on one of ten days or spread over all of them."""
    known = np.ones((100, 5), np.bool_)
    day = np.arange(100) // 10
    clustered, spread = np.zeros_like(known), np.zeros_like(known)
    clustered[:10] = True
    spread[::10] = True
    low, high = block_interval(clustered, known, day, 0)
    assert low == 0.0
    assert high > 0.2  # two such days in a resample are as likely as one in four
    narrow_low, narrow_high = block_interval(spread, known, day, 0)
    assert narrow_low == pytest.approx(0.1)
    assert narrow_high == pytest.approx(0.1)


def test_interval_is_wide_where_violations_share_a_machine() -> None:
    known = np.ones((100, 10), np.bool_)
    violated = np.zeros_like(known)
    violated[:, 0] = True
    low, high = block_interval(violated, known, np.arange(100) // 10, 0)
    assert low == 0.0
    assert high > 0.2


def test_interval_covers_the_true_rate() -> None:
    """Days and machines differ; a 90 % interval misses the true 5 % in about one of ten worlds."""
    rng = np.random.default_rng(3)
    day = np.arange(200) // 10
    missed = 0
    for world in range(60):
        rate = 0.05 * rng.gamma(4.0, 1 / 4, (20, 1)) * rng.gamma(4.0, 1 / 4, (1, 20))
        violated = rng.random((200, 20)) < rate[day]
        low, high = block_interval(violated, np.ones_like(violated), day, world)
        missed += not low <= 0.05 <= high
    assert missed <= 15


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0.005, 0.3))
def test_covering_knob_leaves_exactly_the_target(seed: int, target: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rng.integers(1, 40), rng.integers(1, 20)))
    scores[rng.random(scores.shape) < 0.1] = NAN
    scores[0, 0] = 0.0
    knob = covering_knob(scores, target)
    count = int((~np.isnan(scores)).sum())
    assert int((scores > knob).sum()) == math.floor(target * count + 1e-9)


def test_covering_knob_where_nothing_covers() -> None:
    assert covering_knob(np.array([np.inf, np.inf, 1.0]), 0.01) == np.inf
    assert covering_knob(np.array([np.inf, 2.0, 1.0]), 0.34) == 2.0  # one of three may be violated
    assert math.isnan(covering_knob(np.array([NAN]), 0.01))
