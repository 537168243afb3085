"""A real kube-scheduler that makes room for an offline pod: whose pods go is the extender's answer.

kube-scheduler preempts where its own check of the advertised ceiling (8000m) fails, and proposes
the lowest pods whose leaving would satisfy that. What is reclaimable lies below the ceiling.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.controlplane import objects, workload
from tests.controlplane.api import ApiError, Json
from tests.controlplane.process import wait_until
from tests.e2e.world import (
    DURATION,
    NODE_CPU,
    PRIORITY_CLASS,
    RESOURCE,
    World,
    failed_scheduling,
    reclaimable,
)

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(900)]

FIRST, SECOND = "node-00", "node-01"
LOWEST = PRIORITY_CLASS  # -1000, as shipped
LOW = "offline-low"
URGENT = "offline-urgent"
CEILING = int(NODE_CPU * 1000)


@pytest.fixture
def classes(world: World) -> Iterator[None]:
    """Two priority classes above the shipped one; only the upper one displaces others."""
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    for name, value, policy in ((LOW, -900, "Never"), (URGENT, -500, "PreemptLowerPriority")):
        body = {"metadata": {"name": name}, "value": value, "preemptionPolicy": policy}
        world.plane.admin.post(path, body)
    wait_until(lambda: admits(world, LOW) and admits(world, URGENT), 120, "the classes count")
    yield
    world.delete("preempt")
    for name in (LOW, URGENT):
        world.plane.admin.delete(f"{path}/{name}")


def admits(world: World, priority_class: str) -> bool:
    """Whether the API server takes pods of a class: it reads classes through a watch of its own."""
    path = f"/api/v1/namespaces/{world.namespace}/pods?dryRun=All"
    pod = objects.pod("preempt-none", world.namespace, priority_class=priority_class)
    try:
        world.plane.admin.post(path, pod)
    except ApiError:
        return False
    return True


def create(world: World, name: str, ask: int, priority_class: str, *nodes: str) -> None:
    """An offline pod that may run on these nodes only."""
    pod = objects.pod(
        name,
        world.namespace,
        extended={RESOURCE: ask},
        annotations={DURATION: "1h"},
        usage=0.1,
        priority_class=priority_class,
    )
    term = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}
    required = {"nodeSelectorTerms": [{"matchExpressions": [term]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    pod["spec"]["affinity"] = affinity
    workload.create_pods(world.plane.admin, [pod])


def fill(world: World, staying: int) -> int:
    """A lower pod on the first node and a lowest one on the second, and what one more may ask for.

    Both nodes are nearly full. ``staying``: millicores of the second that an urgent pod has, which
    nobody displaces. What one more may ask for fits on an emptied node, and on none beside these.
    """
    nodes = world.extender.nodes()
    full = min(reclaimable(nodes[name]) for name in (FIRST, SECOND)) - 200
    create(world, "preempt-first", full, LOW, FIRST)
    create(world, "preempt-second", full - staying, LOWEST, SECOND)
    names = ["preempt-first", "preempt-second"]
    if staying:
        create(world, "preempt-stays", staying, URGENT, SECOND)
        names.append("preempt-stays")
    workload.wait_for_phase(world.plane.admin, world.namespace, names)
    wait_until(world.agrees, 120, "the ledger holds what runs")
    return CEILING - full + 500


def remaining(world: World) -> set[str]:
    """Which of the pods are left."""
    return {pod["metadata"]["name"].removeprefix("preempt-") for pod in world.pods("preempt")}


def answers(world: World) -> list[Json]:
    """What the extender's log says about the urgent pod's preempt calls, the newest first."""
    pod = workload.pod(world.plane.admin, world.namespace, "preempt-urgent")
    logged = world.extender.get(f"/v1/decisions?pod={world.namespace}/preempt-urgent")
    own = [record for record in logged if record["uid"] == pod["metadata"]["uid"]]
    return [record for record in own if record["kind"] == "preempt"]


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("staying", [0, 2800])
def test_the_answer_decides_whose_pods_make_room(world: World, staying: int) -> None:
    # 8 cores - what was reclaimable + 700m: some 3 cores
    ask = fill(world, staying)
    create(world, "preempt-urgent", ask, URGENT, FIRST, SECOND)
    workload.wait_for_phase(world.plane.admin, world.namespace, ["preempt-urgent"], timeout=180)
    urgent = workload.pod(world.plane.admin, world.namespace, "preempt-urgent")
    *_, answer = answers(world)  # the first: the pod may come back before its victims have gone
    assert answer["proposed"] == 2
    if staying:
        # Of some 5000m, those of the pod that stays are missing: the second has no room.
        assert answer["nodes"] == [FIRST]
        assert urgent["spec"]["nodeName"] == FIRST
        assert remaining(world) == {"second", "stays", "urgent"}
    else:
        # Both have room, so kube-scheduler displaces the lowest pod.
        assert set(answer["nodes"]) == {FIRST, SECOND}
        assert urgent["spec"]["nodeName"] == SECOND
        assert remaining(world) == {"first", "urgent"}
    wait_until(world.agrees, 120, "the ledger holds what runs")


@pytest.mark.usefixtures("classes")
def test_where_no_answer_makes_room_nobody_is_evicted(world: World) -> None:
    fill(world, 0)
    # More than is reclaimable on an empty node, less than its ceiling: in vain.
    create(world, "preempt-urgent", CEILING - 600, URGENT, FIRST, SECOND)
    given_up = "no candidate node for preemption"
    wait_until(
        lambda: any(given_up in text for text in failed_scheduling(world, "preempt-urgent")),
        180,
        "kube-scheduler has given up for now",
    )
    *_, answer = answers(world)  # the first: the pod may come back before its victims have gone
    assert (answer["proposed"], answer["kept"]) == (2, 0)
    assert answer["rejected"] == {"asks 7400m for 1 h, more than is reclaimable": 2}
    assert remaining(world) == {"first", "second", "urgent"}
    assert world.agrees()
