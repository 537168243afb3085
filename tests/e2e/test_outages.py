"""What is paused or killed under load: no promise is made twice, none leaks, no online pod waits.

A paused program is worse than a killed one: connections are taken and nothing is answered.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.client import HTTPException

import pytest

from tests.controlplane import objects, workload
from tests.controlplane.cluster import API_SERVER
from tests.controlplane.process import wait_until
from tests.e2e.world import NODE_CPU, NODES, World, reclaimable

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


def test_online_pods_do_not_wait_for_a_paused_extender(world: World) -> None:
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


@pytest.mark.parametrize("pause", [paused_api_server, paused_prometheus])
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


def online(world: World, prefix: str, count: int) -> list[str]:
    """Small online pods that find room beside the others: their names."""
    names = [f"{prefix}-{number:02d}" for number in range(count)]
    workload.create_pods(
        world.plane.admin, [objects.pod(name, world.namespace, cpu=0.1) for name in names]
    )
    return names
