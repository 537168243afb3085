"""A real kube-scheduler that is left one node for each replica: the extender spreads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.controlplane import objects, workload
from tests.controlplane.api import Json
from tests.controlplane.process import wait_until
from tests.e2e.world import NODES, RESOURCE, ZONES, World, shipped_configuration, zone_of

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(900)]

ASKS: dict[str, Json] = {"online": {"cpu": 0.05}, "offline": {"extended": {RESOURCE: 50}}}


ALIKE = 0.5  # cores, to which nodes must be forecast the same: a fifth of what a sibling weighs


@pytest.fixture(name="world", scope="module")
def alike(still_world: World) -> World:
    """Nodes whose one forecast is of the same past: only their siblings tell them apart.

    Later forecasts may differ, as a machine that stands still spoils the rates of some nodes.
    """
    nodes = still_world.extender.nodes().values()
    longest = [node["horizons"][-1]["forecast_cores"] for node in nodes]
    assert max(longest) - min(longest) < ALIKE
    configuration = shipped_configuration(still_world.extender.url)
    # As shipped, kube-scheduler places an online pod by itself where an answer takes 100 ms.
    configuration["extenders"][1]["httpTimeout"] = "10s"
    still_world.plane.start_scheduler(configuration)
    return still_world


@pytest.fixture(params=ASKS)
def tier(world: World, request: pytest.FixtureRequest) -> Iterator[str]:
    """Either tier; its pods are gone afterwards."""
    yield request.param
    world.delete("replica")


def create(world: World, tier: str, numbers: range) -> list[str]:
    """Replicas of one ReplicaSet, whose controller does not run, and of a Service; their names."""
    names = [f"replica-{tier}-{number}" for number in numbers]
    owner = replica_set(world, tier)
    for name in names:
        pod = objects.pod(name, world.namespace, labels={"app": tier}, usage=0.01, **ASKS[tier])
        pod["metadata"]["ownerReferences"] = [owner]
        workload.create_pods(world.plane.admin, [pod])
    return names


def replica_set(world: World, tier: str) -> Json:
    """The owner reference to the tier's ReplicaSet, which is made if it is not there."""
    path = f"/apis/apps/v1/namespaces/{world.namespace}/replicasets"
    of = {"apiVersion": "apps/v1", "kind": "ReplicaSet"}
    found = {item["metadata"]["name"]: item for item in world.plane.admin.get(path)["items"]}
    if tier not in found:
        labels = {"app": tier}
        template = objects.pod("template", world.namespace, labels=labels)
        template["metadata"] = {"labels": labels}
        spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
        found[tier] = world.plane.admin.post(path, {**of, "metadata": {"name": tier}, "spec": spec})
    return {**of, "name": tier, "uid": found[tier]["metadata"]["uid"], "controller": True}


def nodes_of(world: World, names: list[str]) -> list[str]:
    """Where pods run, once they do."""
    workload.wait_for_phase(world.plane.admin, world.namespace, names, timeout=180)
    pods = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in world.pods("replica")}
    return [pods[name] for name in names]


def test_replicas_are_spread_over_nodes_and_zones(world: World, tier: str) -> None:
    first = create(world, tier, range(12))
    nodes = nodes_of(world, first)
    for name in first:
        logged = world.extender.get(f"/v1/decisions?pod={world.namespace}/{name}")
        left = [len(record["candidates"]) for record in logged if record["kind"] == "filter"]
        assert left
        assert {*left} == {1}  # kube-scheduler had no choice
    assert len(set(nodes)) == 12
    assert Counter(map(zone_of, nodes)) == dict.fromkeys(ZONES, 4)
    # More than there are nodes, while some are there already.
    more = create(world, tier, range(12, NODES + 4))
    nodes += nodes_of(world, more)
    per_node = Counter(nodes)
    assert len(per_node) == NODES
    assert max(per_node.values()) == 2
    wait_until(world.agrees, 120, "the ledger holds what runs")
