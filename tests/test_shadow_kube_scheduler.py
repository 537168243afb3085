"""kube-scheduler's filters and scores against hand arithmetic and a slow copy of its rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.arrays import Bools, Ints
from shadow.kube_scheduler import (
    DEFAULT_MEMORY,
    DEFAULT_MILLICPU,
    NodeState,
    Request,
    pick,
    sample,
    sample_size,
)

GIB = 2**30


def state(*nodes: tuple[int, int], max_pods: int = 110) -> NodeState:
    """Nodes of (millicores, GiB)."""
    cpu, memory = zip(*nodes, strict=True)
    return NodeState(np.array(cpu), np.array(memory) * GIB, max_pods)


def rows(count: int) -> Ints:
    return np.arange(count)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (0, 0),
        (99, 99),  # below 100 all are looked at
        (100, 100),  # 100 x 50 % = 50, at least 100
        (500, 230),  # 500 x (50 - 4) %
        (1000, 420),  # 1000 x (50 - 8) %
        (1523, 578),  # 1523 x (50 - 12) % = 578.74
        (5000, 500),  # 5000 x (50 - 40) %
        (10_000, 500),  # 10000 x max(50 - 80, 5) %
    ],
)
def test_sample_size_is_adaptive(nodes: int, expected: int) -> None:
    assert sample_size(nodes) == expected


@pytest.mark.parametrize(
    ("nodes", "percentage", "expected"),
    [
        (99, 5, 99),  # below 100 all are looked at
        (1000, 5, 100),  # 50, at least 100
        (5000, 2, 100),
        (5000, 5, 250),
        (1523, 70, 1066),  # 1523 x 70 % = 1066.1
        (5000, 100, 5000),
    ],
)
def test_a_share_that_is_configured_is_used(nodes: int, percentage: int, expected: int) -> None:
    assert sample_size(nodes, percentage) == expected


def slow_sample(fit: list[bool], start: int, want: int) -> tuple[list[int], int]:
    """`findNodesThatPassFilters`, one node after the other.

    The search is cancelled by one more node than wanted that fits; that one is not counted.
    """
    found: list[int] = []
    processed = 0
    for step in range(len(fit)):
        row = (start + step) % len(fit)
        if fit[row]:
            if len(found) == want:
                break
            found.append(row)
        processed += 1
    return found, (start + processed) % len(fit)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 29), st.integers(1, 30))
def test_sample_looks_round_robin(fit: list[bool], start: int, want: int) -> None:
    start %= len(fit)
    found, following = sample(np.array(fit, bool), start, want)
    assert (found.tolist(), following) == slow_sample(fit, start, want)


def test_a_full_round_returns_to_its_start() -> None:
    fit = np.array([True, True, True, False])
    assert sample(fit, 2, 9)[1] == 2


def test_fits_looks_only_at_what_is_requested() -> None:
    nodes = state((4000, 8), (1000, 8), (4000, 1))
    assert nodes.fits(Request(2000, 4 * GIB, 0)).tolist() == [True, False, False]
    assert nodes.fits(Request(0, 4 * GIB, 0)).tolist() == [True, True, False]
    assert nodes.fits(Request(4000, 0, 0)).tolist() == [True, False, True]
    nodes.add(0, Request(9000, 0, 0))  # the trace itself may put too much on a node
    assert nodes.fits(Request(0, GIB, 0)).tolist() == [True, True, True]
    assert nodes.fits(Request(1, GIB, 0)).tolist() == [False, True, True]


def test_fits_keeps_the_advertised_ceiling_of_the_extended_resource() -> None:
    nodes = state((4000, 8))
    nodes.add(0, Request(0, 0, 3000))
    assert nodes.fits(Request(0, 0, 1000)).all()
    assert not nodes.fits(Request(0, 0, 1001)).any()
    assert nodes.fits(Request(4000, 0, 0)).all()  # ordinary CPU is counted apart


def test_fits_counts_pods() -> None:
    nodes = state((4000, 8), max_pods=2)
    for _ in range(2):
        assert nodes.fits(Request(0, 0, 0)).all()
        nodes.add(0, Request(0, 0, 0))
    assert not nodes.fits(Request(0, 0, 0)).any()
    nodes.remove(0, Request(0, 0, 0))
    assert nodes.fits(Request(0, 0, 0)).all()


def test_least_allocated_by_hand() -> None:
    nodes = state((4000, 16))
    nodes.add(0, Request(1000, 4 * GIB, 0))
    # CPU (4000 - 1000 - 500) * 100 / 4000 = 62, memory (16 - 4 - 6) * 100 / 16 = 37; mean 49
    assert nodes.least_allocated(rows(1), Request(500, 6 * GIB, 0)).tolist() == [49]


def test_least_allocated_takes_defaults_for_pods_without_requests() -> None:
    nodes = state((1000, 2))
    nodes.add(0, Request(0, 0, 0))
    # CPU (1000 - 100 - 100) * 100 / 1000 = 80
    # memory (2048 - 200 - 200) MiB * 100 / 2048 MiB = 80.46; mean (80 + 80) / 2
    assert nodes.least_allocated(rows(1), Request(0, 0, 0)).tolist() == [80]
    assert (DEFAULT_MILLICPU, DEFAULT_MEMORY) == (100, 200 * 2**20)


def test_least_allocated_above_capacity_is_zero() -> None:
    nodes = state((1000, 10))
    nodes.add(0, Request(950, 0, 0))
    # CPU 950 + 100 (default) > 1000: 0; memory (10 GiB - 2 x 200 MiB) * 100 / 10 GiB = 96; mean 48
    assert nodes.least_allocated(rows(1), Request(0, 0, 0)).tolist() == [48]


def test_least_allocated_skips_a_resource_without_capacity() -> None:
    nodes = state((4000, 0), (0, 0))
    # only CPU counts: (4000 - 1000) * 100 / 4000
    assert nodes.least_allocated(rows(2), Request(1000, 0, 0)).tolist() == [75, 0]


def test_balanced_allocation_by_hand() -> None:
    nodes = state((4000, 16), (4000, 16))
    nodes.add(1, Request(2000, 0, 0))
    # Node 0, before: both 0, balance 100. After: 0.25 and 0.5, std 0.125, 100 x 0.875 = 87.
    #   50 + (50 + 87 - 100) // 2 = 68
    # Node 1, before: 0.5 and 0, std 0.25, 75. After: 0.75 and 0.5, std 0.125, 87.
    #   50 + (50 + 87 - 75) // 2 = 81
    assert nodes.balanced_allocation(rows(2), Request(1000, 8 * GIB, 0)).tolist() == [68, 81]


def test_balanced_allocation_of_a_pod_without_requests_is_skipped() -> None:
    assert state((4000, 16)).balanced_allocation(rows(1), Request(0, 0, 2000)).tolist() == [0]


def test_balanced_allocation_with_one_resource_never_changes() -> None:
    # std is 0 before and after: 50 + (50 + 100 - 100) // 2
    assert state((4000, 0)).balanced_allocation(rows(1), Request(1000, 0, 0)).tolist() == [75]


def slow_least(capacity: list[int], requested: list[int]) -> int:
    """`leastResourceScorer` with weights of 1."""
    total, weights = 0, 0
    for have, want in zip(capacity, requested, strict=True):
        if have == 0:
            continue
        total += 0 if want > have else (have - want) * 100 // have
        weights += 1
    return total // weights if weights else 0


def slow_balance(capacity: list[int], requested: list[int]) -> int:
    """`balancedResourceScore`."""
    fractions = [min(w / h, 1.0) for h, w in zip(capacity, requested, strict=True) if h]
    std = abs((fractions[0] - fractions[1]) / 2) if len(fractions) == 2 else 0.0
    return int((1 - std) * 100)


amounts = st.integers(0, 2**36)


@given(
    capacity=st.tuples(st.integers(0, 256_000), amounts),
    held=st.tuples(st.integers(0, 300_000), amounts),
    pod=st.tuples(st.integers(0, 64_000), amounts),
)
def test_scores_equal_the_slow_rules(
    capacity: tuple[int, int], held: tuple[int, int], pod: tuple[int, int]
) -> None:
    nodes = NodeState(np.array([capacity[0]]), np.array([capacity[1]]), 110)
    nodes.add(0, Request(*held, 0))
    request = Request(*pod, 0)
    default = (DEFAULT_MILLICPU, DEFAULT_MEMORY)
    scored = [(h or d) + (p or d) for h, p, d in zip(held, pod, default, strict=True)]
    assert nodes.least_allocated(rows(1), request).tolist() == [slow_least(list(capacity), scored)]
    after = [h + p for h, p in zip(held, pod, strict=True)]
    gain = slow_balance(list(capacity), after) - slow_balance(list(capacity), list(held))
    expected = 50 + (50 + gain) // 2 if any(pod) else 0
    assert nodes.balanced_allocation(rows(1), request).tolist() == [expected]
    both = nodes.least_allocated(rows(1), request) + expected
    assert nodes.score(rows(1), request).tolist() == both.tolist()


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=8))
def test_removing_undoes_adding(pods: list[tuple[int, int]]) -> None:
    nodes, fresh = state((4000, 16)), state((4000, 16))
    requests = [Request(cpu, memory, cpu) for cpu, memory in pods]
    for request in requests:
        nodes.add(0, request)
    for request in requests:
        nodes.remove(0, request)
    assert (nodes.free == fresh.free).all()
    assert (nodes.unscored == fresh.unscored).all()


def test_pick_takes_the_highest_and_any_of_equals() -> None:
    rng = np.random.default_rng(0)
    assert pick(np.array([3, 9, 1]), rng) == 1
    drawn = [pick(np.array([5, 1, 5, 5]), rng) for _ in range(600)]
    # 200 each expected; 5 standard deviations are 58
    assert all(142 < drawn.count(position) < 258 for position in (0, 2, 3))


def test_sample_of_nothing() -> None:
    none: Bools = np.zeros(3, bool)
    found, following = sample(none, 1, 3)
    assert (len(found), following) == (0, 1)
