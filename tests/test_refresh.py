"""Refreshes follow the pods by what has changed, and forecast as from a complete list."""

import numpy as np
import pytest

from extender.forecasting import ThreadForecasting, Usage
from extender.memory import GridUsage
from extender.outlook import unknown
from models.arrays import Floats
from models.classical import CLASSICAL
from models.grid import WINDOW, UsageGrid
from models.model import Model
from models.shipped import shipped
from tests.extender_world import PLAIN, START, Json, World, as_pod, pod_json

NODES = ("n1", "n2", "n3")
NAMES = tuple("abcdefgh")
PAST = 48
BEGIN = int(START) - PAST * WINDOW


def usage() -> GridUsage:
    """Of whatever pod is called a to h: the more, the later its letter, and from now on 1 more."""
    cpu = np.arange(1, 1 + len(NAMES))[:, None] / 10 + (np.arange(2 * PAST) >= PAST)
    names = tuple(f"default/{name}" for name in NAMES)
    lives = np.full(len(NAMES), BEGIN), np.full(len(NAMES), BEGIN + 10**6)
    requests = np.ones(len(NAMES))
    return GridUsage(UsageGrid(BEGIN, cpu.astype(np.float32), None, names, NAMES, requests, *lives))


def model() -> Model:
    """Forecasts the highest of a day."""
    return shipped(CLASSICAL["trailing-max-24h"], PLAIN)


async def refreshed(world: World) -> Floats:
    """What is forecast for each node, by name."""
    await world.server.refresher.refresh()
    snapshot = world.state.snapshot(world.now)
    return snapshot.forecast[snapshot.rows(NODES)]


async def serving() -> World:
    """A server with a model, and no pods yet."""
    world = World(NODES, usage=usage())
    world.sync()
    await world.server.refresher.install(model(), "test")
    return world


def running(name: str, node: str, uid: str = "") -> Json:
    """An online pod that has run for a day."""
    pod = pod_json(name, cpu="1", node=node, phase="Running", uid=uid or None)
    pod["status"]["startTime"] = "2023-11-13T00:00:00Z"
    return pod


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_followed_is_what_a_new_server_lists(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = await serving()
    for name in NAMES:  # a window is read once, for the pods that are there then
        world.cluster.put_pod(as_pod(running(name, "n1")))
    await refreshed(world)
    for number in range(40):
        name, node = str(rng.choice(NAMES)), str(rng.choice(NODES))
        exists = ("default", name) in world.cluster.pods
        match rng.integers(4):
            case 0 if exists:
                world.cluster.delete_pod("default", name)
            case 1 if exists:  # another pod of the same name
                world.cluster.delete_pod("default", name)
                world.cluster.put_pod(as_pod(running(name, node, f"uid-{number}")))
            case 2 if not exists:
                waits = pod_json(name, cpu="1", uid=f"uid-{number}")
                world.cluster.put_pod(as_pod(waits))
            case _ if not exists:
                world.cluster.put_pod(as_pod(running(name, node, f"uid-{number}")))
            case _:
                pass
        if rng.random() < 0.5:
            await world.server.refresher.follow()
        if number % 3 == 0:
            found = await refreshed(world)
            other = World(NODES, usage=usage())
            other.cluster = world.cluster
            other.cluster.attach(other.state.node_feed(), other.state.pod_feed())
            await other.server.refresher.install(model(), "test")
            np.testing.assert_allclose(found, await refreshed(other), rtol=1e-9)
            world.sync()  # the cluster reports to it again


async def test_a_successor_of_the_same_name_may_come_before_its_predecessor_goes() -> None:
    world = await serving()
    before, after = as_pod(running("a", "n1", "uid-1")), as_pod(running("a", "n2", "uid-2"))
    feed = world.state.pod_feed()
    feed.put(before)
    assert (await refreshed(world))[:, 0].tolist() == pytest.approx([0.1, 0, 0])
    feed.put(after)
    await refreshed(world)
    feed.put(before)  # once more, while both are there
    await refreshed(world)
    feed.remove(before)
    assert (await refreshed(world))[:, 0].tolist() == pytest.approx([0, 0.1, 0])
    world.now += 3 * WINDOW
    assert (await refreshed(world))[:, 0].tolist() == pytest.approx([0, 1.1, 0])  # still read
    feed.remove(after)
    assert (await refreshed(world))[:, 0].tolist() == [0, 0, 0]
    world.now += 7200
    await refreshed(world)
    assert world.forecasting._store.newest(["default/a"]).tolist() == [-np.inf]  # forgotten


async def test_usage_is_kept_of_bound_online_pods_only() -> None:
    world = await serving()
    world.cluster.put_pod(as_pod(running("a", "n1")))
    world.cluster.put_pod(as_pod(pod_json("b", cpu="1")))
    world.cluster.put_pod(as_pod(pod_json("c", 1000, node="n1")))
    await refreshed(world)
    store = world.forecasting._store
    assert np.isfinite(store.newest([f"default/{name}" for name in "abc"])).tolist() == [
        True,
        False,
        False,
    ]


def test_a_capture_holds_what_has_changed_since_the_last() -> None:
    world = World(NODES)
    world.sync()
    world.cluster.put_pod(as_pod(pod_json("stays", cpu="1")))
    world.cluster.put_pod(as_pod(pod_json("goes", cpu="1", node="n1")))
    first = world.state.capture().changes
    assert {uid for uid, pod in first.items() if pod is not None} == {"uid-stays", "uid-goes"}
    world.cluster.put_pod(as_pod(pod_json("passes", cpu="1")))
    world.cluster.delete_pod("default", "passes")
    world.cluster.delete_pod("default", "goes")
    assert world.state.capture().changes == {"uid-passes": None, "uid-goes": None}
    assert world.state.capture().changes == {}


async def test_what_changes_in_a_refresh_waits_for_its_second_look() -> None:
    world = await serving()
    refresher = world.server.refresher
    seen: list[str] = []

    async def read(now: float) -> Usage:
        world.cluster.put_pod(as_pod(running("a", "n1")))
        await refresher.follow()
        seen.extend(world.forecasting._pods.observed)
        return await ThreadForecasting.read_usage(world.forecasting, now)

    world.forecasting.read_usage = read  # type: ignore[method-assign]
    await refreshed(world)
    assert seen == []
    assert world.state.changes() == {}
    assert list(world.forecasting._pods.observed) == ["default/a"]


def test_a_node_of_which_nothing_was_observed_keeps_to_no_forecast() -> None:
    refresher = World().server.refresher

    def compare(usage_end: int, usage: list[float], newest: list[float]) -> None:
        outlook = unknown(2, usage_end)
        outlook.forecast.forecast[:] = 1.0
        outlook.rhythm.usage[:], outlook.newest[:] = usage, newest
        refresher._compare(("n1", "n2"), outlook)

    registry = refresher._telemetry.registry
    compare(300, [0.0, 0.0], [300, 300])
    compare(600, [2.0, 0.0], [600, 300])
    assert registry.get_sample_value("archimedes_node_windows_total") == 1
    assert registry.get_sample_value("archimedes_violations_total") == 1
    compare(900, [0.5, 0.5], [900, 900])
    assert registry.get_sample_value("archimedes_node_windows_total") == 3
    assert registry.get_sample_value("archimedes_violations_total") == 1
