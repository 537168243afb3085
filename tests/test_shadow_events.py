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


@given(actions, st.tuples(*[st.integers(0, 10)] * 3), st.integers(-1, 200))
def test_waiting_equals_a_sorted_list(
    steps: list[tuple[str, int, int, int]], headroom: tuple[int, int, int], after: int
) -> None:
    waiting = Waiting()
    slow: dict[int, tuple[int, int]] = {}
    for action, pod, need, kind in steps:
        if action == "add":
            waiting.add(pod, need, kind)
            slow.setdefault(pod, (need, kind))
        else:
            waiting.remove(pod)
            slow.pop(pod, None)
    assert len(waiting) == len(slow)
    expected = [
        pod for pod in sorted(slow) if slow[pod][0] <= headroom[slow[pod][1]] and pod > after
    ]
    assert waiting.ready(np.array(headroom), after).tolist() == expected


def test_what_is_ready_stays_as_it_was_when_the_queue_changes() -> None:
    waiting = Waiting()
    for pod in range(5):
        waiting.add(pod, 1, 0)
    ready = waiting.ready(np.array([9]))
    waiting.remove(0)
    waiting.add(9, 1, 0)
    assert ready.tolist() == [0, 1, 2, 3, 4]


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
