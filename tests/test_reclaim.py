"""The one formula of the system, against a slow version of itself and against its own promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.policy import Policy
from models.reclaim import reclaimable_millicpu

PLAIN = Policy(ceiling=1.0, system_reserve=0.0)


def reclaim(allocatable: float, forecast: list[float], policy: Policy = PLAIN) -> list[int]:
    """The formula on one node."""
    free = reclaimable_millicpu(np.array([allocatable]), np.array([forecast]), policy)
    return [int(value) for value in free[0]]


def test_every_term_counts() -> None:
    # (8 cores x 0.9) - 0.5 reserve - 5.2 peak = 1.5
    assert reclaim(8.0, [5.2], Policy(ceiling=0.9, system_reserve=0.5)) == [1500]


def test_it_never_falls_below_zero() -> None:
    assert reclaim(8.0, [9.0]) == [0]
    assert reclaim(0.0, [0.0], Policy(system_reserve=1.0)) == [0]


def test_a_longer_horizon_never_has_more() -> None:
    # The 24 h peak includes the 1 h peak of 6, whatever the forecast of 4 says: 8 - 6 = 2.
    assert reclaim(8.0, [6.0, 4.0, 7.0]) == [2000, 2000, 1000]


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf])
def test_what_is_not_known_is_not_free(unknown: float) -> None:
    assert reclaim(8.0, [unknown, 1.0]) == [0, 0]
    assert reclaim(8.0, [1.0, unknown]) == [7000, 0]


def test_rounding_is_down_but_not_for_what_floats_lose() -> None:
    assert reclaim(8.0, [7.99901]) == [0]  # 0.99 millicores
    assert reclaim(8.0, [7.9989]) == [1]  # 1.1 millicores
    assert reclaim(0.3, [0.1]) == [200]  # 0.3 - 0.1 = 0.19999999999999998


def test_no_nodes() -> None:
    free = reclaimable_millicpu(np.zeros(0), np.zeros((0, 5)), PLAIN)
    assert free.shape == (0, 5)
    assert free.dtype == np.int64


@given(
    allocatable=st.floats(0, 512),
    forecast=st.lists(st.floats(-1, 600) | st.just(math.nan), min_size=1, max_size=5),
    ceiling=st.floats(0.01, 1),
    reserve=st.floats(0, 10),
)
def test_it_equals_the_slow_formula(
    allocatable: float, forecast: list[float], ceiling: float, reserve: float
) -> None:
    policy = Policy(ceiling=ceiling, system_reserve=reserve)
    found = reclaim(allocatable, forecast, policy)
    peak = -math.inf
    for value, cores in zip(found, forecast, strict=True):
        peak = max(peak, math.inf if math.isnan(cores) else cores)
        exact = max(allocatable * ceiling - reserve - peak, 0.0) * 1000
        assert abs(value - math.floor(exact)) <= 1  # one where rounding is a matter of taste
        assert value <= exact + 1e-3
