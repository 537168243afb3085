"""How long pods wait with the real kube-scheduler and the real extender, and in the replay."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass

import numpy as np
import pytest

from models.arrays import Floats
from shadow.result import ReplayResult
from tests.controlplane import objects, workload
from tests.controlplane.api import Json
from tests.controlplane.process import wait_until
from tests.e2e.recorded import known, replayed, trace_of
from tests.e2e.world import DURATION, RESOURCE, World

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(900)]

PODS = 90
ARRIVE_WITHIN = 60
SHORTEST, LONGEST = 4, 15
"""Seconds. A node gives about 5.2 cores, two pods of 2.5: five of them run 67 pods a minute."""
CHOSEN = {"test": "pending"}
SEEDS = 20
EQUAL, MIXED = 0.02, 0.03
"""Of the time from the first arrival to the last bind. With several sizes the large pods wait long
and are few, so that one run says less: seeds of the replay alone differ by 1.5 %."""


@dataclass(frozen=True)
class Job:
    """An offline pod: seconds from the start until it is created, and that it runs for."""

    pod: Json
    arrival: int
    lasts: int


def some_jobs(world: World, asks: list[int]) -> list[Job]:
    """Pods of the chosen nodes, in order of arrival; each asks for one of `asks` millicores."""
    rng = np.random.default_rng(0)
    made = []
    for number, arrival in enumerate(np.sort(rng.integers(0, ARRIVE_WITHIN, PODS)).tolist()):
        pod = objects.pod(
            f"wait-{number:03d}",
            world.namespace,
            extended={RESOURCE: int(rng.choice(asks))},
            annotations={DURATION: "1h"},
            labels=CHOSEN,
        )
        pod["spec"]["nodeSelector"] = CHOSEN
        made.append(Job(pod, arrival, int(rng.integers(SHORTEST, LONGEST))))
    return made


def really_lived(world: World, jobs: list[Job]) -> Floats:
    """Create pods when they arrive, delete them when they have run; then when each did what.

    [3, jobs] seconds from the start: when it was created, seen to be bound, and deleted. The test's
    own clock, as the API server's creation times are whole seconds. What is late here because the
    test or the API server stood still is late in the replay, too: it gets these times.
    """
    admin, path = world.plane.admin, f"/api/v1/namespaces/{world.namespace}/pods"
    waiting: dict[str, int] = {}
    ends: list[tuple[float, int]] = []
    created, bound, deleted = lives = np.full((3, len(jobs)), np.nan)
    start, came = time.monotonic(), 0
    while came < len(jobs) or waiting or ends:
        while came < len(jobs) and jobs[came].arrival <= time.monotonic() - start:
            waiting[jobs[came].pod["metadata"]["name"]] = came
            created[came] = time.monotonic() - start
            admin.post(path, jobs[came].pod)
            came += 1
        while ends and ends[0][0] <= time.monotonic() - start:
            number = heapq.heappop(ends)[1]
            world.remove(jobs[number].pod["metadata"]["name"])
            deleted[number] = time.monotonic() - start
        for pod in admin.get(path, labelSelector="test=pending")["items"]:
            name = pod["metadata"]["name"]
            if name in waiting and pod["spec"].get("nodeName"):
                number = waiting.pop(name)
                bound[number] = time.monotonic() - start
                heapq.heappush(ends, (bound[number] + jobs[number].lasts, number))
        time.sleep(0.01)
    return lives


def waits(result: ReplayResult, jobs: list[Job]) -> Floats:
    """Seconds that each job waited in a replay."""
    by_name = dict(zip(result.pods.names, result.waited.tolist(), strict=True))
    found = [by_name[f"{j.pod['metadata']['namespace']}/{j.pod['metadata']['name']}"] for j in jobs]
    return np.array(found, float)


def choose_nodes(world: World, count: int) -> None:
    """Label so many nodes, and no others, once all advertise the resource."""
    admin = world.plane.admin

    def advertised() -> bool:
        nodes = admin.get("/api/v1/nodes")["items"]
        return all(RESOURCE in node["status"]["allocatable"] for node in nodes)

    wait_until(advertised, 120, "every node advertises the resource")
    for number, name in enumerate(sorted(world.extender.nodes())):
        chosen = CHOSEN if number < count else dict.fromkeys(CHOSEN)
        admin.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": chosen}})


@pytest.mark.parametrize(
    ("count", "asks", "tolerance"),
    [(5, [2500], EQUAL), (6, [1200, 2500, 3700], MIXED)],
    ids=["equal", "mixed"],
)
def test_pods_wait_as_long(
    still_world: World, count: int, asks: list[int], tolerance: float
) -> None:
    world = still_world
    choose_nodes(world, count)
    nodes = world.plane.admin.get("/api/v1/nodes")["items"]
    before = workload.pods(world.plane.admin, world.namespace)
    model, jobs = known(nodes, world.extender.nodes()), some_jobs(world, asks)
    created, bound, deleted = really_lived(world, jobs)
    waited, span = bound - created, float(bound.max())
    lives = list(zip(created.tolist(), (deleted - bound).tolist(), strict=True))
    trace = trace_of(nodes, before, [job.pod for job in jobs], lives)
    replays = [waits(replayed(trace, model, seed), jobs) for seed in range(SEEDS)]
    # From the shortest wait to the longest: the distance of the two distributions.
    shadow, real = np.mean(np.sort(replays, axis=1), axis=0), np.sort(waited)
    assert real.mean() > 2 * EQUAL * span  # there is something to compare
    assert np.abs(shadow - real).mean() < tolerance * span, (shadow.round(1), real.round(1))
    world.delete("wait-")
