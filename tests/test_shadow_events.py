"""Order of simulated time, and the queue of pods that wait."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shadow.events import ARRIVAL, END, JOIN, LEAVE, TICK, Kind, Timeline, Waiting


def test_events_come_in_order_and_ends_make_room_first() -> None:
    timeline = Timeline(np.array([0, 5, 10, 10]), first=1, ticks=range(5, 20, 5), stop=15)
    timeline.end_at(10, run=7)
    seen = []
    for event in timeline:
        seen.append(event)
        if event == (5, Kind.ARRIVAL, 1):
            timeline.end_at(7, run=1)
    assert seen == [
        (5, Kind.TICK, -1),
        (5, Kind.ARRIVAL, 1),
        (7, Kind.END, 1),
        (10, Kind.END, 7),
        (10, Kind.TICK, -1),
        (10, Kind.ARRIVAL, 2),
        (10, Kind.ARRIVAL, 3),
    ]


def test_nothing_happens_at_the_stop() -> None:
    assert list(Timeline(np.array([15]), first=0, ticks=range(15, 20, 5), stop=15)) == []


def test_nothing_at_all() -> None:
    assert list(Timeline(np.zeros(0, np.int64), first=0, ticks=range(0), stop=9)) == []


actions = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove"]),
        st.integers(0, 200),
        st.integers(0, 10),
        st.integers(0, 2),
    ),
    max_size=150,
)


@given(actions, st.tuples(*[st.integers(0, 10)] * 3))
def test_waiting_equals_a_sorted_list(
    steps: list[tuple[str, int, int, int]], headroom: tuple[int, int, int]
) -> None:
    waiting = Waiting()
    slow: dict[int, tuple[int, int]] = {}
    for action, pod, need, kind in steps:
        if action == "add":
            waiting.add(pod, need, kind, time=0)
            slow.setdefault(pod, (need, kind))
        else:
            waiting.remove(pod)
            slow.pop(pod, None)
    assert len(waiting) == len(slow)
    tried = waiting.retry(100, np.array(headroom), np.random.default_rng(0))
    expected = [(pod, *ask) for pod, ask in sorted(slow.items()) if ask[0] <= headroom[ask[1]]]
    assert list(zip(*tried.tolist(), strict=True)) == expected


def tried(waiting: Waiting, time: int, seed: int = 0) -> list[int]:
    """The pods, in the order in which they are tried."""
    found: list[int] = waiting.retry(time, np.array([9]), np.random.default_rng(seed))[0].tolist()
    return found


def test_what_is_tried_stays_as_it_was_when_the_queue_changes() -> None:
    waiting = Waiting()
    for pod in range(5):
        waiting.add(pod, 1, 0, time=0)
    pods = waiting.retry(2, np.array([9]), np.random.default_rng(0))[0]
    waiting.remove(0)
    waiting.add(9, 1, 0, time=2)
    assert pods.tolist() == [0, 1, 2, 3, 4]


def test_in_a_quiet_queue_the_pod_that_was_tried_first_comes_first() -> None:
    waiting = Waiting()
    for pod in (3, 1, 2):
        waiting.add(pod, 1, 0, time=10)
    assert tried(waiting, 13) == [1, 2, 3]  # 10 + 2 s of backoff are over
    waiting.add(0, 1, 0, time=14)
    assert tried(waiting, 23) == [1, 2, 3, 0]  # 13 + 10 = 23 and 14 + 2 = 16 are over


def test_a_pod_that_has_just_come_overtakes_those_with_a_longer_backoff() -> None:
    waiting = Waiting()
    for pod in range(3):
        waiting.add(pod, 1, 0, time=10)
    tried(waiting, 20)  # until 30
    waiting.add(7, 1, 0, time=21)  # until 23
    waiting.add(8, 1, 0, time=25, backoff=0)  # it was displaced: never tried, in no backoff
    order = tried(waiting, 26)
    assert order[:2] == [7, 8]  # by their last attempt, before those in backoff
    assert sorted(order[2:]) == [0, 1, 2]


def test_who_is_first_within_a_second_of_backoff_is_drawn() -> None:
    def order(seed: int) -> tuple[int, ...]:
        waiting = Waiting()
        for pod in range(3):
            waiting.add(pod, 1, 0, time=10)
        return tuple(tried(waiting, 11, seed))

    assert len({order(seed) for seed in range(50)}) == 6  # 3! orders
    assert order(1) == order(1)


def test_nodes_change_before_what_arrives_at_the_same_second() -> None:
    changes = [(5, JOIN, 1), (5, LEAVE, 0), (9, LEAVE, 1)]
    timeline = Timeline(np.array([5]), first=0, ticks=range(5, 9, 5), stop=9, changes=changes)
    timeline.end_at(5, 7)
    assert list(timeline) == [
        (5, END, 7),
        (5, LEAVE, 0),
        (5, JOIN, 1),
        (5, TICK, -1),
        (5, ARRIVAL, 0),
    ]
