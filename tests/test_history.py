"""The aggregate of a node's pods, against an obvious version, and what a decision may know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.arrays import Floats, Floats32, Ints
from models.grid import WINDOW, UsageGrid
from models.history import MIN_SAMPLES, History, build_history, history_at
from models.truth import LATE

NAN = np.nan


def slow_aggregate(usage: Floats32, pod: Ints, node: Ints, nodes: int) -> Floats:
    """The definition, pod by pod and window by window."""
    windows = usage.shape[1]
    aggregate = np.zeros((nodes, windows))
    samples = [[w for w in range(windows) if not np.isnan(row[w])] for row in usage]
    edges = [(p, n) for p, n in zip(pod, node, strict=True) if len(samples[p]) >= MIN_SAMPLES]
    for p, n in edges:
        seen = samples[p]
        mean = sum(float(usage[p, w]) for w in seen) / len(seen)
        is_silent = windows - 1 - seen[-1] > LATE
        for w in range(windows):
            watched = any(w in samples[other] for other, there in edges if there == n)
            if w in seen:
                aggregate[n, w] += float(usage[p, w])
            elif w < seen[0] or (w > seen[-1] and is_silent and watched):
                aggregate[n, w] += mean
            else:
                aggregate[n, w] = NAN
    return aggregate


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_aggregate_equals_the_slow_version(seed: int, pods: int, nodes: int) -> None:
    rng = np.random.default_rng(seed)
    usage = rng.random((pods, 40)).astype(np.float32)
    usage[rng.random(usage.shape) < 0.02] = NAN
    for row in usage:
        row[: rng.integers(0, 40)] = NAN
        row[40 - rng.integers(0, 8) * rng.integers(0, 2) :] = NAN
    pod = rng.permutation(np.repeat(np.arange(pods), 2))
    node = rng.integers(0, nodes, len(pod))
    edges = np.unique(np.stack([pod, node], axis=1), axis=0)
    history = build_history(0, usage, np.ones(pods), edges[:, 0], edges[:, 1], np.full(nodes, 9.0))
    expected = slow_aggregate(usage, edges[:, 0], edges[:, 1], nodes)
    np.testing.assert_allclose(history.aggregate, expected, rtol=1e-5, atol=1e-5)


def small_history(usage: Floats32, request: list[float]) -> History:
    pods = len(usage)
    return build_history(
        0, usage, np.array(request), np.arange(pods), np.zeros(pods, np.int64), np.array([8.0])
    )


def test_a_young_pod_counts_with_its_request() -> None:
    usage = np.full((2, 30), 0.5, np.float32)
    usage[1, : 30 - (MIN_SAMPLES - 1)] = NAN  # 23 samples: one too few
    history = small_history(usage, [2.0, 3.0])
    assert history.unknown.tolist() == [3.0]
    np.testing.assert_allclose(history.aggregate[0], 0.5)
    usage[1, 30 - MIN_SAMPLES] = 0.5  # the 24th sample
    history = small_history(usage, [2.0, 3.0])
    assert history.unknown.tolist() == [0.0]
    np.testing.assert_allclose(history.aggregate[0], 1.0)


def test_a_pod_that_is_observed_no_longer_hides_nothing_of_what_the_others_use() -> None:
    usage = np.array([[0.5] * 40, [0.25, 0.75] * 20], np.float32)
    usage[0, 30:] = 3.0
    usage[1, 30:] = NAN
    np.testing.assert_allclose(small_history(usage, [4.0, 1.0]).aggregate[0, 30:], 3.5)
    usage[0, 34:36] = NAN  # nothing was observed on the node: that says nothing about its usage
    found = small_history(usage, [4.0, 1.0]).aggregate[0]
    np.testing.assert_allclose(found[30:], [3.5] * 4 + [NAN] * 2 + [3.5] * 4)


@pytest.mark.parametrize(("missing", "known"), [(1, 0), (LATE, 0), (LATE + 1, LATE + 1)])
def test_what_may_only_be_late_is_awaited(missing: int, known: int) -> None:
    usage = np.full((2, 40), 0.5, np.float32)
    usage[1, 40 - missing :] = NAN
    found = small_history(usage, [4.0, 1.0]).aggregate[0, 40 - missing :]
    assert np.isfinite(found).sum() == known


def test_a_gap_between_samples_is_a_gap() -> None:
    usage = np.full((2, 40), 0.5, np.float32)
    usage[1, 30:39] = NAN
    assert np.isnan(small_history(usage, [4.0, 1.0]).aggregate[0, 30:39]).all()


def test_sum_pods_leaves_young_pods_out() -> None:
    usage = np.full((2, 30), 0.5, np.float32)
    usage[1] = NAN
    history = small_history(usage, [2.0, 3.0])
    assert history.sum_pods(np.array([1.5, 100.0])).tolist() == [1.5]


def test_what_was_not_observed_in_the_newest_window_uses_nothing_in_it() -> None:
    usage = np.full((3, 30), 0.5, np.float32)
    usage[:, -1] = [1.0, NAN, 2.0]
    usage[2, :-1] = NAN  # young, but it runs
    assert small_history(usage, [2.0, 3.0, 4.0]).newest.tolist() == [3.0]


def test_a_node_without_pods_has_an_empty_aggregate() -> None:
    history = build_history(
        0,
        np.zeros((0, 30), np.float32),
        np.zeros(0),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        np.array([8.0]),
    )
    assert history.aggregate.tolist() == [[0.0] * 30]
    assert history.unknown.tolist() == [0.0]


def grid_of(cpu: Floats32, start: int = 0) -> UsageGrid:
    pods = len(cpu)
    names = tuple(f"pod-{p}" for p in range(pods))
    return UsageGrid(
        start,
        cpu,
        None,
        names,
        names,
        np.ones(pods),
        np.zeros(pods, np.int64),
        np.full(pods, 10**9),
    )


ONE = np.zeros(1, np.int64)


@pytest.mark.parametrize(
    ("time", "last"),
    [
        (10 * WINDOW, 9.0),  # window 9 covers [2700, 3000) and is complete at 3000
        (10 * WINDOW + 299, 9.0),  # window 10 is not complete yet
        (11 * WINDOW, 10.0),
    ],
)
def test_only_complete_windows_are_known(time: int, last: float) -> None:
    grid = grid_of(np.arange(100, dtype=np.float32)[None, :])
    history = history_at(grid, time, ONE, ONE, np.array([8.0]), windows=5)
    assert history.usage[0, -1] == last
    assert history.usage[0, 0] == last - 4


def test_the_past_before_the_grid_and_after_its_end_is_unknown() -> None:
    grid = grid_of(np.arange(3, dtype=np.float32)[None, :])
    early = history_at(grid, 2 * WINDOW, ONE, ONE, np.array([8.0]), windows=4)
    np.testing.assert_array_equal(early.usage, [[NAN, NAN, 0, 1]])
    late = history_at(grid, 5 * WINDOW, ONE, ONE, np.array([8.0]), windows=4)
    np.testing.assert_array_equal(late.usage, [[1, 2, NAN, NAN]])
    never = history_at(grid, 50 * WINDOW, ONE, ONE, np.array([8.0]), windows=4)
    assert np.isnan(never.usage).all()


def test_a_pod_counts_only_while_it_exists() -> None:
    grid = grid_of(np.ones((1, 100), np.float32))
    grid.born[0], grid.gone[0] = 40 * WINDOW, 60 * WINDOW
    for time, edges in ((39, 0), (40, 1), (59, 1), (60, 0)):
        history = history_at(grid, time * WINDOW, ONE, ONE, np.array([8.0]), windows=30)
        assert len(history.pod) == edges
