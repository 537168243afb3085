"""The champion at work on a cluster: groups of nodes bound its memory and change no forecast."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from extender.outlook import Champion, CountedPod
from models import node_groups
from models.arrays import Floats32
from models.classical import classical
from models.grid import DAY, WEEK, WINDOW
from models.shipped import shipped
from models.usage_source import PrometheusSettings, UsageBlock, UsageError
from models.usage_store import UsageReader, UsageStore

START = 1_700_000_100  # a multiple of 300
NODES = tuple(f"n{number}" for number in range(6))
ALLOCATABLE = np.full(len(NODES), 8.0)
PODS = [
    CountedPod(
        f"default/p{number}", NODES[number % 6], f"default/Pod/p{number}", False, 1.0, np.inf
    )
    for number in range(24)
]
KEYS = [pod.key for pod in PODS]


def used(hours: int = 4) -> UsageStore:
    """Some hours of usage, different for each pod."""
    store = UsageStore()
    use(store, START, hours)
    return store


def use(store: UsageStore, start: int, hours: int) -> None:
    """Write some hours more, of which every tenth window is a burst of one node's pods."""
    rng = np.random.default_rng(start)
    cpu = rng.uniform(0.1, 0.9, (len(PODS), 12 * hours))
    cpu[rng.integers(6) :: 6, ::10] += 2.0
    store.write(UsageBlock(start, KEYS, cpu.astype(np.float32)), frozenset(KEYS))


def test_a_champion_made_before_any_pod_was_listed_works_in_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = shipped(classical("max-7d"))
    whole = Champion(model).outlook(NODES, ALLOCATABLE, PODS, used())
    monkeypatch.setattr(node_groups, "_PODS_PER_GROUP", 8)
    taken: list[int] = []
    take = UsageStore.take

    def noted(store: UsageStore, pods: Sequence[str]) -> Floats32:
        taken.append(len(pods))
        return take(store, pods)

    monkeypatch.setattr(UsageStore, "take", noted)
    grouped = Champion(model).outlook(NODES, ALLOCATABLE, PODS, used())
    assert sum(taken) == len(PODS)
    assert max(taken) < len(PODS)
    np.testing.assert_allclose(grouped.forecast.forecast, whole.forecast.forecast)
    np.testing.assert_array_equal(grouped.newest, whole.newest)


def test_groups_learn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shipped(classical("trailing-max-24h"))
    whole, grouped = Champion(model), Champion(model)
    store = used(hours=24)
    whole.outlook(NODES, ALLOCATABLE, PODS, store)
    monkeypatch.setattr(node_groups, "_PODS_PER_GROUP", 4)  # 6 groups, one of them without nodes
    groups = node_groups.node_groups(NODES, PODS, 6)
    assert min(len(group.names) for group in groups) == 0
    grouped.outlook(NODES, ALLOCATABLE, PODS, store)
    for hour in range(60):
        use(store, START + (24 + hour) * 3600, hours=1)
        expected = whole.outlook(NODES, ALLOCATABLE, PODS, store).forecast
        found = grouped.outlook(NODES, ALLOCATABLE, PODS, store).forecast
        np.testing.assert_allclose(found.forecast, expected.forecast, rtol=1e-9)
        np.testing.assert_allclose(found.expected, expected.expected, rtol=1e-9)
    fresh = Champion(model).outlook(NODES, ALLOCATABLE, PODS, store).forecast
    assert (fresh.forecast != expected.forecast).any()  # there was something to learn


def test_a_pod_that_crashes_again_and_again_hides_nothing_of_what_its_node_uses() -> None:
    """It yields no rate, and its neighbours keep the node fresh."""
    store, champion = used(hours=24), Champion(shipped(classical("trailing-max-24h")))
    before = champion.outlook(NODES, ALLOCATABLE, PODS, store)
    others, end = [pod.key for pod in PODS if pod.key != "default/p0"], int(store.time)
    store.write(UsageBlock(end, others, np.full((23, 12), 1.5, np.float32)), frozenset(KEYS))
    after = champion.outlook(NODES, ALLOCATABLE, PODS, store)
    assert after.newest[0] == after.usage_end
    # Its limit of 4: that is what the four pods of node 0 request
    assert before.forecast.forecast[0, 0] < after.forecast.forecast[0, 0]


def test_usage_taken_up_to_another_time_is_the_same_usage() -> None:
    store = used()
    now = store.take(KEYS)
    assert np.isfinite(now[:, -1]).all()
    earlier, later = (store.take(KEYS, store.time + by * WINDOW) for by in (-2, 2))
    np.testing.assert_array_equal(earlier[:, 2:], now[:, :-2])
    np.testing.assert_array_equal(later[:, :-2], now[:, 2:])
    assert np.isnan(later[:, -2:]).all()  # not known yet
    for far in (-WEEK, WEEK):
        assert np.isnan(store.take(KEYS, store.time + far * WINDOW)).all()


async def test_usage_is_read_anew_after_the_clock_was_ahead() -> None:
    class Source:
        known = START

        async def read(self, start: int, windows: int) -> UsageBlock:
            ends = start + WINDOW * np.arange(1, windows + 1)
            cpu = np.where(ends <= self.known, 1.0, np.nan).astype(np.float32)
            return UsageBlock(start, KEYS[:1], cpu[None])

        async def close(self) -> None:
            pass

    source, store = Source(), UsageStore()
    reader = UsageReader(source, store, PrometheusSettings(history_days=1, delay_seconds=0))
    for ahead in (0, 30 * 86_400, 0):
        await reader.catch_up(source.known + ahead, frozenset(KEYS[:1]))
    source.known += WINDOW
    await reader.catch_up(source.known, frozenset(KEYS[:1]))
    assert store.time == store.fresh == source.known
    assert np.isfinite(store.take(KEYS[:1])[:, -DAY:]).all()  # the past as well


class Unreadable:
    """A source whose windows from ``first`` to ``last`` (seconds) cannot be read."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.pods: list[str] = KEYS[:1]
        self.asked = 0
        self.given = 0  # windows

    async def read(self, start: int, windows: int) -> UsageBlock:
        self.asked += 1
        if start < self.last and start + windows * WINDOW > self.first:
            raise UsageError("a store gateway is down")
        self.given += windows
        return UsageBlock(start, self.pods, np.ones((len(self.pods), windows), np.float32))

    async def close(self) -> None:
        pass


async def refreshed(reader: UsageReader, source: Unreadable, time: int) -> bool:
    """Whether all went well."""
    try:
        await reader.catch_up(time, frozenset(source.pods))
    except UsageError:
        return False
    return True


async def test_a_window_that_cannot_be_read_takes_little_beside_it() -> None:
    now = START + 7 * 86_400
    bad = now - 20 * 3600
    source, store = Unreadable(bad, bad + WINDOW), UsageStore()
    reader = UsageReader(source, store, PrometheusSettings(delay_seconds=0))
    for number in range(12):  # an hour
        assert not await refreshed(reader, source, now + number * WINDOW)
    assert store.time == now + 11 * WINDOW
    missing = np.isnan(store.take(KEYS[:1])[0])
    assert missing.sum() == 9  # a day of 288 windows in two, five times
    source.last = 0
    assert await refreshed(reader, source, now + 12 * WINDOW)
    assert np.isfinite(store.take(KEYS[:1])).all()


async def test_an_outage_is_made_up_for_without_asking_for_a_window_many_times() -> None:
    source, store = Unreadable(0, 0), UsageStore()
    reader = UsageReader(source, store, PrometheusSettings(history_days=1, delay_seconds=0))
    assert await refreshed(reader, source, START)
    source.last, before = START + 86_400, source.given
    for number in range(1, 145):  # half a day
        assert not await refreshed(reader, source, START + number * WINDOW)
    source.last = 0
    assert await refreshed(reader, source, START + 145 * WINDOW)
    assert np.isfinite(store.take(KEYS[:1])[:, -DAY:]).all()
    assert source.given - before == 145 * 3  # each with the two before it


async def test_pods_that_are_gone_are_forgotten_while_a_part_of_the_past_cannot_be_read() -> None:
    source, store = Unreadable(START - 3 * 86_400, START - 3 * 86_400 + WINDOW), UsageStore()
    reader = UsageReader(source, store, PrometheusSettings(delay_seconds=0))
    for number in range(48):
        source.pods = [f"default/job-{number}-{at}" for at in range(20)]
        await refreshed(reader, source, START + number * WINDOW)
    assert len(store) < 20 * 16  # those of an hour, and of three windows that are read again


async def test_what_takes_too_long_to_read_goes_on_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, store = Unreadable(0, 0), UsageStore()
    reader = UsageReader(source, store, PrometheusSettings(delay_seconds=0))
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: 60.0 * source.asked)  # a query takes a minute
        await reader.catch_up(START, frozenset(KEYS[:1]), patience=120.0)
        assert source.asked == 2
        assert np.isfinite(store.take(KEYS[:1])).sum() == 2 * DAY
        assert np.isfinite(store.take(KEYS[:1])[:, -DAY:]).all()  # the newest first
        for _ in range(3):
            await reader.catch_up(START, frozenset(KEYS[:1]), patience=120.0)
    assert np.isfinite(store.take(KEYS[:1])).all()
    assert source.asked == 7
