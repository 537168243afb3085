"""What keeps the event loop free, and what measures that it is."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Literal, cast

import msgspec
import numpy as np
import pytest

from extender import lag, loops
from extender.champion import ModelStatus
from extender.forecasting import ForecastingError
from extender.inspection import health
from extender.kube import KubeApi
from extender.lag import (
    NICENESS,
    PROBE_SECONDS,
    TURN_SECONDS,
    Turns,
    background_threads,
    probe_lag,
)
from extender.memory import FixedModel
from extender.ports import Feed
from extender.reflector import Reflector
from extender.telemetry import Telemetry
from models.classical import CLASSICAL
from models.kube.types import Pod
from models.model import Model
from models.shipped import shipped
from tests.extender_world import World, pod_json

OBJECTS = 1000


class Eager:
    """An API server whose list and events are all there at once."""

    def __init__(self) -> None:
        self.pods = [pod_json(f"pod-{number}") for number in range(OBJECTS)]

    async def call(self, _: str, __: str, ___: Mapping[str, str]) -> bytes:
        metadata = {"resourceVersion": "7"}
        return msgspec.json.encode({"metadata": metadata, "items": self.pods})

    async def watch(self, _: str, __: Mapping[str, str]) -> AsyncIterator[bytes]:
        for pod in self.pods:
            yield msgspec.json.encode({"type": "MODIFIED", "object": pod})


class Noted:
    """A pod feed that notes in which turn of the event loop each of its steps was made."""

    def __init__(self) -> None:
        self.turn = 0
        self.steps: list[int] = []

    def put(self, _: Pod) -> str:
        self.steps.append(self.turn)
        return str(len(self.steps))

    def sift(self, listed: Collection[str]) -> Iterator[None]:
        for _ in listed:
            self.steps.append(self.turn)
            yield

    async def count(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turn += 1


@pytest.mark.parametrize(("of", "steps"), [("list", 2 * OBJECTS), ("watch", OBJECTS)])
async def test_lists_and_watches_give_way_to_calls(
    of: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag, "TURN_SECONDS", 0.0)
    noted = Noted()
    feed = Feed(noted.put, lambda _: None, noted.sift, lambda: None)
    reader = Reflector(
        cast("KubeApi", Eager()), Pod, "/", "", feed, Telemetry(), np.random.default_rng(0)
    )
    counter = asyncio.create_task(noted.count())
    await asyncio.sleep(0)
    await (reader._list() if of == "list" else reader._watch())
    counter.cancel()
    assert len(noted.steps) == steps  # a list is looked through once more for what is gone
    assert np.bincount(noted.steps).max() <= 2  # the last that is read, the first looked up


async def test_a_turn_ends_when_its_time_has_run_out() -> None:
    now = 0.0
    turns = Turns(lambda: now)
    others: list[float] = []

    async def other() -> None:
        while True:
            others.append(now)
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(8):
        await turns.give_way()
        now += TURN_SECONDS / 4
    task.cancel()
    assert others == [TURN_SECONDS]  # after four steps, and not again before four more


class Ring:
    """What only a collector frees: it holds itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def own_collector() -> Iterator[None]:
    """What a server does to the process's garbage collector is undone."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


async def turn(times: int = 20) -> None:
    """Let whatever is due run."""
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("own_collector")
async def test_garbage_is_collected_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_COLLECT_SECONDS", 0.0)
    world = World()
    world.sync()
    task = asyncio.create_task(world.server.loops._collect())
    await turn()
    left = weakref.ref(Ring())
    for _ in range(5_000):  # more than would send Python's own collector as it is set at first
        [Ring()]
    assert left() is not None
    await turn()
    task.cancel()
    assert left() is None


@pytest.mark.usefixtures("own_collector")
async def test_changes_of_pods_are_taken_over_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "_FOLLOW_SECONDS", 0.0)
    world = World()
    world.sync()
    twice, times = asyncio.Event(), 0

    async def follow() -> None:
        nonlocal times
        times += 1
        if times == 2:
            twice.set()

    monkeypatch.setattr(world.server.refresher, "follow", follow)
    running = asyncio.create_task(world.server.loops.run())
    async with asyncio.timeout(10):
        await twice.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_clock_that_is_set_during_a_tick_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, ticks = World(), 0
    shifts: list[float] = []
    really = asyncio.sleep

    async def sleep(seconds: float) -> None:
        world.now += seconds
        await really(0)

    def flush() -> None:
        nonlocal ticks
        ticks += 1
        world.now -= 3600 if ticks == 3 else 0

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(world.server.decisions, "flush", flush)
    monkeypatch.setattr(world.state, "shift", shifts.append)
    task = asyncio.create_task(world.server.loops._tick())
    for _ in range(10):
        await really(0)
    task.cancel()
    assert ticks > 4
    assert shifts == [-3600.0]


async def test_nothing_is_chased_before_a_tick_has_looked_at_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "_CHASE_SECONDS", 0.0)
    world, chased = World(), 0

    async def chase() -> None:
        nonlocal chased
        chased += 1

    monkeypatch.setattr(world.server.binder, "chase", chase)
    task = asyncio.create_task(world.server.loops._chase())
    for ticks in range(3):
        for _ in range(10):
            await asyncio.sleep(0)
        assert chased == ticks
        world.server.loops.tick()
    task.cancel()


async def test_a_model_that_cannot_be_installed_is_tried_again_until_a_newer_one_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    first, newer = (shipped(CLASSICAL[name]) for name in ("max-7d", "koordinator"))
    refresher, every, now = world.server.refresher, world.settings.model.poll_seconds, 0.0
    world.models._model = first
    tried: list[tuple[str, float]] = []

    async def install(model: Model | None, source: str) -> None:
        assert model is not None
        tried.append((model.version, now))
        if len(tried) == 4:
            world.models.next = newer
        if model is first:
            raise ForecastingError(f"the process of {source} ended")

    really = asyncio.sleep

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await really(0)

    monkeypatch.setattr(refresher, "install", install)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    task = asyncio.create_task(world.server.loops._champion())
    for _ in range(50):
        await really(0)
    task.cancel()
    # Twice and three times as long after the second and third failure; the newer model at once.
    times = [0, every, 3 * every, 6 * every, 7 * every]
    assert tried == [
        (name, at) for name, at in zip(["max-7d"] * 4 + ["koordinator"], times, strict=True)
    ]
    failures = ("archimedes_loop_errors_total", {"loop": "champion"})
    assert world.server.telemetry.registry.get_sample_value(*failures) == 4


async def test_a_copy_on_disk_that_proves_to_be_the_champion_is_reported_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.sync()
    world.models._model = shipped(CLASSICAL["max-7d"])
    sources: list[Literal["disk", "champion"]] = ["disk", "disk", "champion"]
    monkeypatch.setattr(FixedModel, "status", property(lambda _: ModelStatus(sources[0], "max-7d")))
    really = asyncio.sleep

    async def sleep(_: float) -> None:
        if len(sources) > 1:
            sources.pop(0)
        await really(0.01)

    monkeypatch.setattr("extender.loops.asyncio.sleep", sleep)
    task = asyncio.create_task(world.server.loops._champion())
    registry = world.server.telemetry.registry

    def serves(source: str) -> float | None:
        of = {"version": "max-7d", "forecaster": "max-7d", "source": source}
        return registry.get_sample_value("archimedes_model_info", of)

    async with asyncio.timeout(10):
        while serves("champion") is None:
            await really(0.01)
    task.cancel()
    assert serves("disk") is None


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
async def test_what_runs_beside_the_loop_leaves_it_the_cores() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    own = niceness()
    asyncio.get_running_loop().set_default_executor(background_threads())
    assert await asyncio.to_thread(niceness) == min(own + NICENESS, 19)
    assert niceness() == own


async def test_the_probe_reports_how_late_it_woke() -> None:
    # Asleep from 0 to 0.012 and from 1 to 1.005, where 0.005 were due: late by 0.007, and not late.
    moments = iter([0.0, 0.012, 1.0, 1.0 + PROBE_SECONDS])
    seen: list[float] = []
    with pytest.raises(RuntimeError, match="StopIteration"):
        await probe_lag(lambda: next(moments), seen.append)
    assert seen == pytest.approx([0.007, 0.0])


def test_health_says_what_is_not_known_of_the_champion() -> None:
    world = World()
    for source, says in (
        (
            "champion",
            "[ ] whether there is a newer champion is not known, or it cannot serve: away",
        ),
        ("disk", "[ ] model is not the champion: away"),
    ):
        status = ModelStatus(cast("Literal['champion', 'disk']", source), "7", "away")
        assert says in health(world.state, status, world.now).text.splitlines()


def test_health_does_not_take_what_serves_for_a_champion_that_cannot() -> None:
    world, status = World(), ModelStatus("champion", "2")
    world.state.model_version = "1"
    lines = health(world.state, status, world.now).text.splitlines()
    assert "[ ] model: 1" in lines
    assert "[ ] model 2 (champion) does not serve: no forecast was made with it yet" in lines
    world.state.model_version = "2"
    lines = health(world.state, status, world.now).text.splitlines()
    assert [line for line in lines if "model" in line] == ["[ ] model: 2 (champion)"]
