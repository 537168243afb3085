"""Locks and durations on a real API server: what its watches show is what counts."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import count

import pytest

from extender.runs import FEWEST
from tests.controlplane import objects, workload
from tests.controlplane.api import Json
from tests.controlplane.process import wait_until
from tests.e2e.world import NODES, RESOURCE, World

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(900)]

LOCKS = "/api/v1/namespaces/kube-system/configmaps"


def moment(offset: float) -> str:
    """So many seconds from now, as Kubernetes writes times."""
    return datetime.fromtimestamp(time.time() + offset, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def locks(cores: float, nodes: str) -> Json:
    """The ConfigMap with one good lock and a bad one."""
    lines = {
        "start": moment(-60),
        "end": moment(3600),
        "cores": cores,
        "nodes": nodes,
        "reason": "sale",
    }
    text = "\n".join(f"{key}: {value}" for key, value in lines.items())
    return {
        "metadata": {"name": "archimedes-locks"},
        "data": {"sale": text, "bad": "end: tomorrow"},
    }


def withheld(world: World) -> dict[str, int]:
    """Millicores that locks withhold from promises for an hour, by node, without zeros."""
    nodes = world.extender.nodes().items()
    found = {name: int(node["horizons"][0]["withheld_millicpu"]) for name, node in nodes}
    return {name: millicpu for name, millicpu in found.items() if millicpu}


def test_a_resource_lock_withholds_cpu_for_as_long_as_it_stands(world: World) -> None:
    admin = world.plane.admin
    before = world.extender.nodes()["node-00"]["horizons"][0]
    assert before["reclaimable_millicpu"] == before["available_millicpu"]
    admin.post(LOCKS, locks(1.5, "[node-00, node-01]"))
    try:
        in_force_and_changed(world)
    finally:
        admin.delete(f"{LOCKS}/archimedes-locks")
    wait_until(lambda: not withheld(world), 120, "the lock is gone")


def in_force_and_changed(world: World) -> None:
    """The lock counts, is shown, and counts as changed."""
    wait_until(
        lambda: withheld(world) == {"node-00": 1500, "node-01": 1500}, 120, "the lock is in force"
    )
    after = world.extender.nodes()["node-00"]["horizons"][0]
    assert after["reclaimable_millicpu"] - after["available_millicpu"] == 1500
    details = world.extender.get("/v1/nodes/node-00")
    assert [(lock["name"], lock["reason"]) for lock in details["locks"]] == [("sale", "sale")]
    assert "resource lock bad ignored" in world.extender.text("/readyz?verbose")
    changed = {"data": locks(0.5, '"*"')["data"]}
    world.plane.admin.patch(f"{LOCKS}/archimedes-locks", changed)
    wait_until(
        lambda: list(withheld(world).values()) == [500] * NODES, 120, "the changed lock counts"
    )


def job_pod(world: World, name: str) -> Json:
    """An offline pod of what runs every night; it does not say for how long.

    Its owner is no Job: kwok would finish it by itself.
    """
    pod = objects.pod(name, world.namespace, extended={RESOURCE: 100}, usage=0.1)
    owner = {"apiVersion": "example.dev/v1", "kind": "Workflow", "name": "nightly", "uid": "1"}
    pod["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    return pod


def finish(world: World, name: str, seconds: int) -> None:
    """What a kubelet writes when the container has ended by itself."""
    path = f"/api/v1/namespaces/{world.namespace}/pods/{name}/status"
    state = {"terminated": {"exitCode": 0, "startedAt": moment(-seconds), "finishedAt": moment(0)}}
    container = {
        "name": objects.CONTAINER,
        "image": "none",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }
    status = {
        "phase": "Succeeded",
        "startTime": moment(-seconds),
        "containerStatuses": [container],
    }
    world.plane.admin.patch(path, {"status": status})


def horizon(world: World, name: str) -> int:
    """Hours for which a running pod was promised its CPU."""
    node = workload.pod(world.plane.admin, world.namespace, name)["spec"]["nodeName"]
    promises = world.extender.get(f"/v1/nodes/{node}")["promises"]
    (hours,) = {p["horizon_hours"] for p in promises if p["pod"] == f"{world.namespace}/{name}"}
    return int(hours)


def timed(world: World) -> bool:
    """Whether the extender knows of runs."""
    return "archimedes_workloads_timed 1.0" in world.extender.text("/metrics")


def test_a_workload_whose_runs_were_short_is_promised_short_times(world: World) -> None:
    admin = world.plane.admin
    names = [f"nightly-{number}" for number in range(FEWEST)]
    workload.create_pods(admin, [job_pod(world, name) for name in names])
    workload.wait_for_phase(admin, world.namespace, names)
    assert {horizon(world, name) for name in names} == {24}
    for number, name in enumerate(names):
        finish(world, name, 1000 + number)
    wait_until(lambda: timed(world), 120, "the runs are known")
    wait_until(world.agrees, 120, "what has finished is charged no longer")
    numbers = count()

    def promised_an_hour() -> bool:
        """Another one is: the extender hears of the last run somewhat later than of the first."""
        name = f"nightly-next-{next(numbers)}"
        workload.create_pods(admin, [job_pod(world, name)])
        workload.wait_for_phase(admin, world.namespace, [name])
        return horizon(world, name) == 1  # 1004 s x 1.5 = 1506 s

    wait_until(promised_an_hour, 60, "the next run is promised an hour", interval=2)
    world.extender.stop()
    world.extender.start()
    assert timed(world)
    world.delete("nightly")
