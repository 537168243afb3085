"""What online pods really use on nodes, and what of it may be known."""

from __future__ import annotations

import numpy as np
import pytest

from models.arrays import Floats
from models.grid import DAY, WEEK, WINDOW, UsageGrid
from models.policy import HORIZONS
from shadow.usage import OnlineUsage
from tests.shadow_traces import START

NAN = float("nan")


def grid(cpu: list[list[float]], born: list[int] | None = None, gone: int = 10**6) -> UsageGrid:
    pods = len(cpu)
    return UsageGrid(
        start=START,
        cpu=np.array(cpu, np.float32),
        cpu_max=None,
        pods=tuple(f"p{i}" for i in range(pods)),
        workloads=tuple(f"w{i}" for i in range(pods)),
        request=np.full(pods, 3.0),
        born=START + np.array(born or [0] * pods),
        gone=np.full(pods, START + gone),
    )


def usage(of: UsageGrid, first: int, last: int, nodes: int = 1) -> OnlineUsage:
    return OnlineUsage(of, nodes, START + first * WINDOW, START + last * WINDOW)


def test_gaps_count_with_the_last_observed_window_and_the_beginning_with_the_first() -> None:
    real = usage(grid([[NAN, 1, NAN, NAN, 2, NAN]]), 0, 6)
    real.place(0, 0, START)
    assert real.node[0].tolist() == [1, 1, 1, 1, 2, 2]


def test_a_gap_at_the_start_counts_with_the_history() -> None:
    real = usage(grid([[5, NAN, NAN, 2]]), 2, 4)
    real.place(0, 0, START + 2 * WINDOW)
    assert real.node[0].tolist() == [5, 2]


def test_a_pod_that_was_never_observed_counts_with_its_request() -> None:
    real = usage(grid([[NAN, NAN]]), 0, 2)
    real.place(0, 0, START)
    assert real.node[0].tolist() == [3, 3]


def test_a_pod_uses_nothing_before_it_is_placed_nor_after_its_end() -> None:
    real = usage(grid([[1.0] * 6], gone=4 * WINDOW), 0, 6)
    real.place(0, 0, START + WINDOW)
    assert real.node[0].tolist() == [0, 1, 1, 1, 0, 0]


def test_the_last_complete_window_is_what_is_known_of_now() -> None:
    real = usage(grid([[1, 2, 4]]), 0, 3)
    real.place(0, 0, START)
    assert real.at(START + 2 * WINDOW).tolist() == [2]
    assert real.at(START + 2 * WINDOW + 299).tolist() == [2]
    assert np.isnan(real.at(START)).all()  # nothing of the first window is known when it begins


def slow_peaks(node: Floats, column: int) -> list[float]:
    """The highest of the windows [column, column + hours * 12), NaN beyond the end."""
    found = []
    for hours in HORIZONS:
        ahead = node[column : column + hours * 12]
        found.append(float(ahead.max()) if len(ahead) == hours * 12 else NAN)
    return found


@pytest.mark.parametrize("column", [0, 5, 100, 2 * DAY - 288, 2 * DAY - 100, 2 * DAY - 12])
def test_peaks_are_those_of_the_windows_ahead(column: int) -> None:
    rng = np.random.default_rng(column)
    series = rng.random(2 * DAY)
    real = usage(grid([series.tolist()]), 0, 2 * DAY, nodes=2)
    real.place(0, 0, START)
    found = real.peaks(START + column * WINDOW)
    np.testing.assert_allclose(found[0], slow_peaks(series, column), rtol=1e-6)
    assert np.isnan(found[1]).all()  # a node without pods has no peak


def test_peaks_are_those_of_the_pods_that_are_there_now() -> None:
    real = usage(grid([[1.0] * 300, [5.0] * 300]), 0, 300)
    real.place(0, 0, START)
    before = real.peaks(START)[0]
    real.place(0, 1, START + WINDOW)
    assert before.tolist() == [1, 1, 1, 1, 1]
    assert real.peaks(START + WINDOW)[0].tolist() == [6, 6, 6, 6, 6]
    real.remove(0)
    real.remove(0)
    assert np.isnan(real.peaks(START + WINDOW)).all()


def test_history_ends_with_the_last_complete_window() -> None:
    real = usage(grid([[1, 2, 3, 4], [10, 20, 30, 40]]), 0, 4)
    known = real.history(START + 2 * WINDOW, np.array([1, 0]), np.array([0, 0]), np.array([8.0]))
    assert known.usage.shape == (2, WEEK)
    assert known.usage[:, -2:].tolist() == [[10, 20], [1, 2]]
    assert np.isnan(known.usage[:, :-2]).all()
    assert known.time == START + 2 * WINDOW


def test_history_looks_back_a_week() -> None:
    series = np.arange(WEEK + 10, dtype=np.float64)
    real = usage(grid([series.tolist()]), WEEK, WEEK + 10)
    known = real.history(START + (WEEK + 5) * WINDOW, np.array([0]), np.array([0]), np.array([8.0]))
    assert (known.usage[0] == series[5 : WEEK + 5]).all()


def test_a_node_is_as_fresh_as_its_most_recently_observed_pod() -> None:
    of = grid([[1, 1, 1, 1, 1, NAN, NAN], [1, 1, 1, NAN, NAN, NAN, NAN], [1] * 7])
    real = usage(of, 0, 7, nodes=3)
    pods, node = np.array([0, 1, 2]), np.array([0, 0, 1])
    # At the end of window 4: pod 0 was seen in it. Node 2 is empty: as fresh as the trace.
    assert real.age(START + 5 * WINDOW, pods, node).tolist() == [0, 0, 0]
    # At the end of window 6 pod 0 was last seen at the end of window 4, two windows ago.
    assert real.age(START + 7 * WINDOW, pods, node).tolist() == [2 * WINDOW, 0, 0]


def test_pods_too_young_to_be_observed_do_not_make_a_node_stale() -> None:
    of = grid([[NAN] * 4 + [1] * 4, [1] * 8], born=[3 * WINDOW, 0])
    real = usage(of, 0, 8, nodes=2)
    pods, node = np.array([0, 1]), np.array([0, 1])
    assert real.age(START + 4 * WINDOW, pods, node).tolist() == [0, 0]


def test_a_pod_that_is_never_observed_makes_its_node_stale() -> None:
    real = usage(grid([[NAN] * 8, [1] * 8]), 0, 8, nodes=2)
    age = real.age(START + 8 * WINDOW, np.array([0, 1]), np.array([0, 1]))
    assert age[0] >= DAY * WINDOW
    assert age[1] == 0
