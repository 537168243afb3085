"""Real kube-scheduler, API server, Prometheus and extender: what users rely on.

The tests share one cluster and leave it as they found it.
"""

from __future__ import annotations

import time

import pytest

from tests.controlplane import objects, workload
from tests.controlplane.process import wait_until
from tests.e2e.world import (
    NODE_CPU,
    NODES,
    PODS_PER_NODE,
    RESOURCE,
    USAGE,
    World,
    failed_scheduling,
    reclaimable,
)

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(1800)]


def test_the_resource_is_advertised_on_every_node(world: World) -> None:
    def amounts() -> list[str | None]:
        nodes = world.plane.admin.get("/api/v1/nodes")["items"]
        return [node["status"]["allocatable"].get(RESOURCE) for node in nodes]

    # 8 cores allocatable = 8000 millicores, which the API server writes as 8k
    wait_until(lambda: amounts() == ["8k"] * NODES, 120, "every node advertises the resource")


def test_offline_pods_fill_what_is_reclaimable_and_not_one_more(world: World) -> None:
    before = world.extender.nodes()
    for node in before.values():
        # three pods use 1.35 to 2.25 cores in all, and request 7.5
        assert PODS_PER_NODE * USAGE * 0.7 < node["horizons"][0]["forecast_cores"] < 7.5
        assert node["horizons"][0]["reclaimable_millicpu"] == reclaimable(node)
    total = sum(reclaimable(node) // 1000 for node in before.values())
    highest = {name: reclaimable(node) for name, node in before.items()}
    world.offline("fill", NODES * int(NODE_CPU), 1000)  # more than fit, whatever is reclaimable

    def watch() -> bool:
        for name, node in world.extender.nodes().items():
            highest[name] = max(highest[name], reclaimable(node))
        return sum(1 for pod in world.pods("fill") if pod["spec"].get("nodeName")) >= total - NODES

    wait_until(watch, 240, "most of the pods are placed", interval=0.5)
    world.settled("fill")
    world.retry()  # a newer forecast may have left room
    placed, waiting = world.settled("fill")
    after = world.extender.nodes()
    for name, node in after.items():
        highest[name] = max(highest[name], reclaimable(node))
    asked = world.asked()
    assert len(placed) > 0.8 * total
    assert len(waiting) >= 20
    for name, most in highest.items():
        assert asked[name] <= most, f"{name} was promised {asked[name]} of {most}"
    # Whoever waits finds room nowhere.
    assert max(reclaimable(node) - asked[name] for name, node in after.items()) < 1000
    world.delete("fill")


def test_a_pod_that_does_not_fit_says_why_and_the_node_shows_its_promises(world: World) -> None:
    (fits,) = world.offline("small", 1, 1500)
    (large,) = world.offline("large", 1, 7400)
    workload.wait_for_phase(world.plane.admin, world.namespace, [fits])
    wait_until(
        lambda: any(
            "asks 7400m for 1 h, more than is reclaimable" in message
            for message in failed_scheduling(world, large)
        ),
        180,
        "an event names the cause and the ask",
    )
    assert not workload.pod(world.plane.admin, world.namespace, large)["spec"].get("nodeName")
    node = workload.pod(world.plane.admin, world.namespace, fits)["spec"]["nodeName"]
    described = world.plane.kubectl("describe", "node", node)
    allocated = described[described.index("Allocated resources") :]
    line = next(line for line in allocated.splitlines() if RESOURCE in line)
    assert "1500" in line
    world.delete("small")
    world.delete("large")


def test_online_pods_do_not_need_the_extender_and_offline_pods_wait_for_it(world: World) -> None:
    admin = world.plane.admin
    workload.create_nodes(admin, [objects.node("spare", cpu=8.0)])
    world.extender.stop()
    workload.create_pods(
        admin, [objects.pod("web", world.namespace, cpu=2.0), objects.pod("web-2", world.namespace)]
    )
    world.offline("batch", 3, 500)
    workload.wait_for_phase(admin, world.namespace, ["web", "web-2"])
    time.sleep(3)  # long enough for a wrong placement, were there one
    assert not [pod for pod in world.pods("batch") if pod["spec"].get("nodeName")]
    world.extender.start()
    workload.wait_for_phase(
        admin, world.namespace, [f"batch-{n:03d}" for n in range(3)], timeout=180
    )
    world.delete("batch")
    world.delete("web")
    admin.delete("/api/v1/nodes/spare")


@pytest.mark.parametrize("grace", [10.0, 0.0], ids=["SIGTERM", "SIGKILL"])
def test_after_a_restart_nothing_is_promised_twice(world: World, grace: float) -> None:
    room = sum(reclaimable(node) // 1000 for node in world.extender.nodes().values())
    world.offline("old", room // 2, 1000)
    wait_until(lambda: len(world.asked()) > 0, 180, "some pods are placed", interval=0.02)
    # In the middle of a burst: holds, bindings under way and promises all exist.
    world.extender.stop(grace=grace)
    world.extender.start()
    shown = world.asked()  # before the promises are read: kube-scheduler goes on placing pods
    assert {
        name: node["promised_millicpu"]
        for name, node in world.extender.nodes().items()
        if node["promised_millicpu"] < shown[name]
    } == {}
    world.offline("new", room, 1000)
    world.settled("")
    asked = world.asked()
    for name, node in world.extender.nodes().items():
        assert asked[name] <= reclaimable(node) + 1000 * (node["blocked"] != ""), name
        assert node["promised_millicpu"] == asked[name]
    world.delete("old")
    world.delete("new")


@pytest.mark.slow
def test_promises_follow_the_tide(world: World) -> None:
    """Usage doubles and falls again; a window takes five minutes, so this takes about twelve."""
    pods = [pod["metadata"]["name"] for pod in world.pods("online")]
    low = sum(reclaimable(node) for node in world.extender.nodes().values())
    for pod in pods:
        workload.set_usage(world.plane.admin, world.namespace, pod, 2 * USAGE)
    # 150 pods x 0.6 cores more: 90 cores less to give. A first window may be half of the new usage.
    wait_until(
        lambda: sum(reclaimable(n) for n in world.extender.nodes().values()) < low - 60_000,
        660,
        "what is reclaimable falls with the rise of usage",
        interval=2,
    )
    high_tide = {name: reclaimable(node) for name, node in world.extender.nodes().items()}
    world.offline("tide", low // 1000, 1000)
    world.settled("tide")
    now = world.extender.nodes()
    for name, asked in world.asked().items():
        assert asked <= max(high_tide[name], reclaimable(now[name])), name
    for pod in pods:
        workload.set_usage(world.plane.admin, world.namespace, pod, USAGE)
    before = len([pod for pod in world.pods("tide") if pod["spec"].get("nodeName")])

    def more_run() -> bool:
        if sum(bool(pod["spec"].get("nodeName")) for pod in world.pods("tide")) >= before + 50:
            return True
        world.retry()
        return False

    wait_until(more_run, 660, "the fall of usage makes room for pods that wait", interval=15)
    world.delete("tide")
