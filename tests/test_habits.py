"""Profiles by hour of day, against a slow version; what is known of workloads."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.arrays import Floats32
from models.grid import DAY, WEEK, WINDOW
from models.habits import HabitsBuilder, hourly_peaks, node_shapes, shapes
from models.history import build_history

MONDAY = 1_736_121_600  # 00:00 UTC


def slow_hourly_peaks(usage: Floats32, time: int) -> Floats32:
    """The same, one window at a time."""
    result = np.full((len(usage), 24), np.nan, np.float32)
    last_hour = (time - WINDOW) // 3600
    for row, series in enumerate(usage):
        by_hour: dict[int, float] = {}
        for at, cores in enumerate(series):
            hour = (time - (len(series) - at) * WINDOW) // 3600
            if not np.isnan(cores) and hour > last_hour - 168:
                by_hour[hour] = max(by_hour.get(hour, -np.inf), float(cores))
        for hour in range(24):
            peaks = sorted(cores for at, cores in by_hour.items() if at % 24 == hour)
            if peaks:
                result[row, hour] = peaks[len(peaks) // 2]
    return result


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    windows=st.integers(1, WEEK),
    offset=st.integers(0, DAY),
    gaps=st.floats(0, 1),
)
def test_it_equals_the_slow_version(seed: int, windows: int, offset: int, gaps: float) -> None:
    rng = np.random.default_rng(seed)
    usage = rng.uniform(0, 4, (2, windows)).astype(np.float32)
    usage[rng.random(usage.shape) < gaps] = np.nan
    time = MONDAY + offset * WINDOW
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = hourly_peaks(usage, time)
    np.testing.assert_array_equal(found, slow_hourly_peaks(usage, time))


def test_a_burst_on_one_day_moves_no_peak() -> None:
    usage = np.ones((1, WEEK), np.float32)
    usage[0, 5 * DAY + 40] = 9.0  # one window at 03:20
    assert hourly_peaks(usage, MONDAY).tolist() == [[1.0] * 24]


def test_nothing_known_is_flat_and_an_unseen_hour_counts_as_the_highest() -> None:
    peaks = np.full((3, 24), np.nan)
    peaks[1] = 0.0
    peaks[2, :2] = [1.0, 4.0]
    found = shapes(peaks)
    assert found[0].tolist() == found[1].tolist() == [1.0] * 24
    assert found[2].tolist() == [0.25] + [1.0] * 23  # 1/4, 4/4, the others were never seen
    assert hourly_peaks(np.zeros((0, 0), np.float32), MONDAY).shape == (0, 24)


def tide(hour: int, high: float, low: float = 1.0) -> Floats32:
    """A week of usage that is high in one hour of each day."""
    usage = np.full(WEEK, low, np.float32)
    usage.reshape(7, DAY)[:, hour * 12 : hour * 12 + 12] = high
    return usage


def test_a_new_pod_needs_the_highest_of_its_siblings_at_their_hours() -> None:
    builder = HabitsBuilder(["w", "w", "short"])
    builder.add(["w"], tide(9, 3.0)[None], MONDAY)
    builder.add(["w", "short"], np.stack([tide(9, 5.0), tide(9, np.nan)]), MONDAY)
    habits = builder.build()
    profile = habits.of("w")
    assert profile is not None
    # mean of profiles: (3 + 5)/2 = 4 at nine, 1 else; stretched to the highest window, 5
    assert profile[9] == 5.0
    assert profile[8] == pytest.approx(5.0 / 4)
    assert habits.of("short") is None  # nine o'clock was never seen
    assert habits.of("nobody") is None
    np.testing.assert_array_equal(habits.needs(["nobody", "w", "short"]), [np.nan, 5.0, np.nan])


def test_new_pods_count_with_their_need_and_flatten_their_node() -> None:
    usage = np.stack([tide(9, 4.0), np.full(WEEK, np.nan, np.float32)])
    args = np.array([4.0, 2.0]), np.array([0, 1]), np.array([0, 0]), np.array([8.0])
    history = build_history(MONDAY, usage, *args)
    assert history.unknown.tolist() == [2.0]  # its request
    counted = history.counting(np.array([9.0, 1.0]))
    assert counted.unknown.tolist() == [1.0]  # a seasoned pod's need is not asked for
    assert history.counting(np.full(2, np.nan)).unknown.tolist() == [2.0]
    shape = node_shapes(counted)[0]
    assert shape[9] == 1.0  # (4 + 1)/5
    assert shape[0] == pytest.approx(0.4)  # (1 + 1)/5
