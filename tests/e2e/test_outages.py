"""What is paused or killed under load: no promise is made twice, none leaks, no online pod waits.

A paused program is worse than a killed one: connections are taken and nothing is answered.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.controlplane import objects, workload
from tests.controlplane.api import Json
from tests.controlplane.cluster import API_SERVER
from tests.controlplane.process import wait_until
from tests.controlplane.prometheus import Prometheus
from tests.e2e.world import NODE_CPU, NODES, RESOURCE, World, reclaimable, write_day

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(900)]

ASK = 1000
TOO_MANY = NODES * int(NODE_CPU * 1000) // ASK
"""Pods that do not all fit, whatever is reclaimable: what was free at first may become more."""

PAUSE = 8.0  # seconds: longer than each timeout on the way


@contextmanager
def load(world: World) -> Iterator[None]:
    """More offline pods than fit, under way while the block runs; afterwards the books are right.

    No node has more than was reclaimable at the highest while they were placed, and the ledger
    holds what the API server shows and nothing else.
    """
    with highest_reclaimable(world) as highest:
        room = sum(most // ASK for most in highest.values())
        world.offline("load", TOO_MANY, ASK)
        wait_until(lambda: len(world.asked()) > 3, 180, "pods are being placed", interval=0.02)
        yield
        heard(world)
        world.retry()
        placed, waiting = world.settled("load")
    asked = world.asked()
    assert {name: asked[name] for name in asked if asked[name] > highest.get(name, 0)} == {}
    assert len(placed) > 0.7 * room, "what was free is in use again after the outage"
    assert waiting
    world.delete("load")


def heard(world: World) -> None:
    """Wait until kube-scheduler hears of pods again: it has placed one that came just now."""
    (name,) = online(world, "heard", 1)
    workload.wait_for_phase(world.plane.admin, world.namespace, [name], timeout=180)
    world.delete(name)


@contextmanager
def highest_reclaimable(world: World) -> Iterator[dict[str, int]]:
    """The most that was reclaimable on each node, looked at again and again while the block runs.

    It moves both ways: online pods of the test before leave the forecast with a refresh, those of
    this one enter it.
    """
    highest: dict[str, int] = {}
    over = threading.Event()

    def look() -> None:
        for name, node in world.extender.nodes().items():
            if not node["blocked"] and node["horizons"][0]["forecast_cores"] is not None:
                highest[name] = max(highest.get(name, 0), reclaimable(node))

    def watch() -> None:
        while not over.wait(0.1):
            with suppress(OSError, HTTPException):  # it is down, or stands still
                look()

    look()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        over.set()
        watcher.join()
    look()


def test_online_pods_are_placed_beside_a_paused_extender(world: World) -> None:
    """Each is delayed by two tenths of a second, and by 3 s where an offline pod is being tried."""
    with load(world), world.extender.paused():
        names = online(world, "web", 20)
        workload.wait_for_phase(world.plane.admin, world.namespace, names, timeout=60)
    world.delete("web")


def test_online_pods_do_not_wait_for_a_killed_extender(world: World) -> None:
    with load(world):
        world.extender.stop(grace=0.0)
        names = online(world, "web", 20)
        workload.wait_for_phase(world.plane.admin, world.namespace, names, timeout=60)
        world.extender.start()
    world.delete("web")


def paused_api_server(world: World) -> AbstractContextManager[None]:
    return world.plane.paused(API_SERVER)


def paused_prometheus(world: World) -> AbstractContextManager[None]:
    return world.prometheus.paused()


@contextmanager
def killed_prometheus(world: World) -> Iterator[None]:
    world.prometheus.stop()
    try:
        yield
    finally:
        world.prometheus.start()


@pytest.mark.parametrize("pause", [paused_api_server, paused_prometheus, killed_prometheus])
def test_nothing_is_promised_twice_around_a_pause(
    world: World, pause: Callable[[World], AbstractContextManager[None]]
) -> None:
    with load(world), pause(world):
        time.sleep(PAUSE)


def test_calls_go_on_where_the_process_that_forecasts_is_killed(world: World) -> None:
    extender = world.extender
    killed, before = extender.forecaster(), crashes(world)
    assert killed is not None
    with load(world):
        os.kill(killed, signal.SIGKILL)
        names = online(world, "web", 20)
        workload.wait_for_phase(world.plane.admin, world.namespace, names, timeout=60)
    wait_until(
        lambda: extender.forecaster() not in (None, killed), 180, "another process forecasts"
    )
    assert crashes(world) != before
    last = last_refresh(world)
    wait_until(lambda: last_refresh(world) != last, 180, "it has forecast")
    assert all(not node["blocked"] for node in extender.nodes().values())
    world.delete("web")


def last_refresh(world: World) -> list[str]:
    """For how long the last refresh took, which is never the same twice."""
    return metric(world, "archimedes_refresh_seconds ")


def crashes(world: World) -> list[str]:
    """How often each loop has crashed; nothing of one that never has."""
    return metric(world, "archimedes_loop_errors_total{")


def metric(world: World, name: str) -> list[str]:
    """A metric's lines."""
    lines = world.extender.text("/metrics").splitlines()
    return [line for line in lines if line.startswith(name)]


def test_nothing_is_promised_twice_around_a_new_api_server(world: World) -> None:
    with load(world):
        world.plane.restart_api_server()


def test_nothing_new_is_promised_where_usage_is_half_an_hour_old(
    world: World, tmp_path: Path
) -> None:
    """A Prometheus that lags behind takes the place of the one that scrapes, for a while."""
    kept = running(world)
    world.extender.stop()
    past = write_day(tmp_path / "day.txt", world.namespace, online_pods(world), ago=1800)
    with (
        killed_prometheus(world),
        Prometheus(tmp_path / "lagging", (), past, world.prometheus.port),
    ):
        world.extender.launch()
        stale = "usage data is older than 900 s, nothing new is promised"
        wait_until(lambda: blocked(world) == {stale}, 60, "usage is too old on every node")
        (late,) = world.offline("late", 1, ASK)
        refused(world, late, stale)
        assert running(world) == kept
        assert world.agrees()
    # The next window would bring the recovery within five minutes; a new process reads all anew.
    forecaster = world.extender.forecaster()
    assert forecaster is not None
    os.kill(forecaster, signal.SIGKILL)
    wait_until(world.extender.forecasts, 120, "something can be promised again")
    goes_on(world, late, kept)


def test_nothing_new_is_promised_where_the_api_server_was_lost(world: World) -> None:
    kept = running(world)
    world.extender.stop()
    world.extender.launch(watch_max_age=10)  # less than the minute between two bookmarks

    def heard_and_open() -> bool:
        stir(world)
        return world.extender.forecasts()

    wait_until(heard_and_open, 60, "something can be promised", interval=1)
    with world.plane.paused(API_SERVER):
        lost = "the extender has lost the API server, nothing new is promised"
        wait_until(lambda: blocked(world) == {lost}, 60, "the API server is lost")
        assert set(filtered(world, "late")["FailedAndUnresolvableNodes"].values()) == {lost}
        promised = sum(node["promised_millicpu"] for node in world.extender.nodes().values())
        assert promised == len(kept) * ASK
    wait_until(heard_and_open, 60, "something can be promised again", interval=1)
    (late,) = world.offline("late", 1, ASK)
    goes_on(world, late, kept)
    world.extender.stop()
    world.extender.start()


def running(world: World) -> dict[str, str]:
    """Some offline pods with their nodes; they are created where they are not there."""
    if not world.pods("kept"):
        world.offline("kept", 10, ASK)
    wait_until(
        lambda: all(pod["spec"].get("nodeName") for pod in world.pods("kept")),
        120,
        "offline pods are placed",
    )
    wait_until(world.agrees, 60, "the ledger holds them")
    return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in world.pods("kept")}


def goes_on(world: World, late: str, kept: dict[str, str]) -> None:
    """After an outage: what ran is where it was, what waited is placed, the ledger is right."""

    def placed() -> bool:
        stir(world)  # kube-scheduler tries again what was refused
        return bool(world.pods(late)[0]["spec"].get("nodeName"))

    wait_until(placed, 120, "what waited is placed", interval=1)
    assert running(world) == kept
    world.delete(late)
    world.delete("kept")


def refused(world: World, name: str, text: str) -> None:
    """Wait until a pod was refused by all nodes for this reason; it has no node."""
    key = f"{world.namespace}/{name}"
    (decision,) = wait_until(
        lambda: world.extender.get(f"/v1/decisions?pod={key}&limit=1"), 60, f"{name} is tried"
    )
    assert decision["rejected"] == {text: NODES}
    assert not world.pods(name)[0]["spec"].get("nodeName")


def filtered(world: World, name: str) -> Json:
    """The extender's own answer about an offline pod and all nodes."""
    pod = objects.pod(name, world.namespace, extended={RESOURCE: ASK})
    body = json.dumps({"Pod": pod, "NodeNames": sorted(world.extender.nodes())}).encode()
    with urllib.request.urlopen(f"{world.extender.url}/v1/filter", body, timeout=30) as answer:
        found: Json = json.load(answer)
    return found


def blocked(world: World) -> set[str]:
    """Why nodes are promised nothing; an empty text where one is promised something."""
    return {node["blocked"] for node in world.extender.nodes().values()}


def stir(world: World) -> None:
    """Change a node and a pod: both watches hear of something."""
    change = {"metadata": {"annotations": {"stirred": str(time.time())}}}
    pod = f"/api/v1/namespaces/{world.namespace}/pods/{next(iter(online_pods(world)))}"
    for path in ("/api/v1/nodes/node-00", pod):
        world.plane.admin.patch(path, change)


def online_pods(world: World) -> dict[str, str]:
    """The online pods that fill the nodes, with these."""
    pods = world.pods("online-")
    return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in pods}


def online(world: World, prefix: str, count: int) -> list[str]:
    """Small online pods that find room beside the others: their names."""
    names = [f"{prefix}-{number:02d}" for number in range(count)]
    workload.create_pods(
        world.plane.admin, [objects.pod(name, world.namespace, cpu=0.1) for name in names]
    )
    return names
