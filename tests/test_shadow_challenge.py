"""The decision as the challenger would have met it: its forecast, and all else as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from extender.locks import Lock
from extender.recording import Recorded, Refresh
from models.arrays import Ints
from models.grid import DAY, WINDOW
from models.policy import HORIZONS
from models.rolling import Forecast
from models.usage_source import UsageBlock
from models.usage_store import UsageStore
from shadow.challenge import challenged, real_peaks, resolved
from tests.extender_world import PLAIN, START, World, pod_json
from tests.test_recording import entries

NODES = ("n1", "n2")


def recorded(folder: Path, *locks: Lock) -> list[Recorded]:
    """Three decisions on two nodes with a forecast of 7.5 cores, the middle one under the locks."""
    world = World(NODES, decision_log=str(folder / "d.jsonl"))
    world.sync()
    world.forecast(7.5)
    for number, in_force in enumerate(((), locks, ())):
        world.state.lock(in_force, {})
        world.filter(pod_json(f"p{number}", 100))
    assert world.server.recorder is not None
    world.server.recorder.close()
    world.server.decisions.close()
    return [e for e in entries(folder / "d.jsonl.recording") if isinstance(e, Recorded)]


def free(decision: Recorded, cores: float) -> Ints:
    """What is free for an hour where the challenger forecasts so many cores on each node."""
    shape = (len(NODES), len(HORIZONS))
    was, own = np.full(shape, 7.5), np.full(shape, cores)
    allocatable = np.full(len(NODES), 8.0)
    refresh = Refresh(START, int(START), "7", NODES, allocatable, was, was, {}, 1.0)
    found = challenged(decision, refresh, Forecast(own, own), PLAIN).snapshot
    hour: Ints = found.free[found.rows(NODES), 0]
    return hour


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (7.5, [0, 500]),  # 8 - 7.5 = 0.5 cores on each; the lock asks for 2 of n1
        (4.0, [2000, 4000]),  # 8 - 4 - 2, and 8 - 4: more is there, and the lock gets all it asks
    ],
)
def test_locks_withhold_from_the_challenger_all_that_they_ask_for(
    tmp_path: Path, cores: float, expected: list[int]
) -> None:
    lock = Lock("sale", START, START + 3600, 2.0, 0.0, frozenset({"n1"}), "", "a sale")
    before, under, after = recorded(tmp_path, lock)
    assert free(under, cores).tolist() == expected
    assert free(before, cores).tolist() == free(after, cores).tolist() == [expected[1]] * 2


BEGIN = int(START) // WINDOW * WINDOW
PODS = ("default/a", "default/b")


def used(observed: dict[str, float]) -> UsageStore:
    """A day in which both pods use two cores, then two hours in which only some are observed."""
    store = UsageStore()
    store.write(UsageBlock(BEGIN - DAY * WINDOW, PODS, np.full((2, DAY), 2.0, np.float32)), PODS)
    cpu = np.repeat(np.array(list(observed.values()), np.float32)[:, None], 24, axis=1)
    store.write(UsageBlock(BEGIN, tuple(observed), cpu.reshape(len(observed), 24)), PODS)
    return store


def test_a_pod_that_is_observed_no_longer_hides_nothing_of_what_the_others_use() -> None:
    peaks = real_peaks(used({"default/b": 3.0}), PODS, PODS, np.zeros(2, int), 1, BEGIN, 1)
    np.testing.assert_array_equal(peaks, [5.0])  # 3 observed, and the 2 of the day before


@pytest.mark.parametrize(
    ("observed", "here", "expected"),
    [
        ({}, PODS, [np.nan, np.nan]),  # nothing was scraped
        ({}, (), [np.nan, np.nan]),  # and both ended meanwhile: how much they used nobody knows
        ({"default/b": 3.0}, PODS, [np.nan, 3.0]),  # one node was not scraped
        ({"default/b": 3.0}, PODS[1:], [0.0, 3.0]),  # the pod is gone
    ],
)
def test_only_what_has_ended_uses_nothing(
    observed: dict[str, float], here: tuple[str, ...], expected: list[float]
) -> None:
    store = used(observed)
    assert resolved(BEGIN, 1, store)
    peaks = real_peaks(store, PODS, here, np.arange(2), 2, BEGIN, 1)
    np.testing.assert_array_equal(peaks, expected)
