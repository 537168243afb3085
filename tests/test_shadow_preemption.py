"""Who has to go when an online pod fits nowhere."""

from __future__ import annotations

import numpy as np

from shadow.kube_scheduler import NodeState, Request
from shadow.preemption import Holder, preempt

GIB = 2**30


def cluster(*holders: tuple[int, int, int, int]) -> tuple[NodeState, list[Holder]]:
    """Three nodes of 4 cores and 8 GiB; holders are (row, millicores, GiB, begin)."""
    nodes = NodeState(np.full(3, 4000), np.full(3, 8 * GIB), 110)
    held = []
    for run, (row, cpu, memory, begin) in enumerate(holders):
        request = Request(cpu, memory * GIB, 0)
        nodes.add(row, request)
        held.append(Holder(run, row, request, begin))
    return nodes, held


def test_the_fewest_go() -> None:
    nodes, held = cluster((0, 2000, 1, 10), (0, 2000, 1, 20), (1, 4000, 1, 5), (2, 4000, 7, 1))
    # 3 cores: node 0 would lose two pods, nodes 1 and 2 one each; node 1's began later
    assert preempt(nodes, Request(3000, GIB, 0), held) == (1, (2,))


def test_the_oldest_stay() -> None:
    nodes, held = cluster((0, 1000, 0, 1), (0, 1000, 0, 2), (0, 1000, 0, 3), (0, 1000, 0, 4))
    nodes.add(1, Request(4000, 0, 0))
    nodes.add(2, Request(4000, 0, 0))
    # 2 cores: the two youngest of node 0
    assert preempt(nodes, Request(2000, 0, 0), held) == (0, (2, 3))


def test_memory_counts_too() -> None:
    nodes, held = cluster((0, 100, 6, 1), (1, 100, 3, 2), (2, 100, 3, 3))
    for row in range(3):
        nodes.add(row, Request(0, GIB, 0))
    # 5 GiB: node 0 has 1 free and gets 6; nodes 1 and 2 have 4 free and get 3: the younger goes
    assert preempt(nodes, Request(100, 5 * GIB, 0), held) == (2, (2,))


def test_nobody_goes_in_vain() -> None:
    nodes, held = cluster((0, 1000, 0, 1))
    for row in range(3):
        nodes.add(row, Request(2500, 0, 0))
    # 2 cores: even without the pod node 0 has 1.5
    assert preempt(nodes, Request(2000, 0, 0), held) is None
    assert preempt(nodes, Request(2000, 0, 0), []) is None


def test_slots_can_be_what_is_missing() -> None:
    nodes = NodeState(np.array([4000]), np.array([8 * GIB]), 1)
    request = Request(0, 0, 0)
    nodes.add(0, request)
    assert preempt(nodes, request, [Holder(3, 0, request, 0)]) == (0, (3,))
