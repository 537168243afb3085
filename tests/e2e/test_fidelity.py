"""The same pods through the real kube-scheduler with the real extender, and through the replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from models.arrays import Floats
from shadow.result import ReplayResult
from tests.controlplane import objects, workload
from tests.controlplane.api import Json
from tests.controlplane.process import wait_until
from tests.e2e.recorded import homes, known, replayed, trace_of
from tests.e2e.world import DURATION, NODE_CPU, NODES, RESOURCE, World, reclaimable

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(900)]

SEEDS = 10
TOLERANCE = 0.02
NODE_MEMORY = 32.0


# One choice only


@dataclass(frozen=True)
class Case:
    """Pods that arrive one after the other on a few nodes, of which each may have only one.

    Fields:
        nodes: what is changed of node 0, 1, ... of the case; all have the label `case`.
        running: pods that are there already: on which of these nodes, and their manifest's changes.
        arriving: requests and the changes of each manifest.
        homes: on which of the nodes each has to run.
    """

    name: str
    nodes: tuple[Json, ...]
    arriving: tuple[tuple[Json, Json], ...]
    homes: tuple[int, ...]
    running: tuple[tuple[int, Json, Json], ...] = ()


def required(key: str, operator: str, *values: str) -> Json:
    term = {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}
    chosen = {"nodeSelectorTerms": [term]}
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": chosen}}
    }


def labels(**given: str) -> Json:
    return {"metadata": {"labels": given}}


def tainted(effect: str) -> Json:
    return {"spec": {"taints": [{"key": "dedicated", "value": "gpu", "effect": effect}]}}


SMALL: Json = {"cpu": 0.2}
TOLERANT = {"tolerations": [{"key": "dedicated", "operator": "Exists"}]}
SPREAD = {
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "spread"}},
        }
    ]
}
APP: Json = {"labels": {"app": "spread"}}

CASES = [
    Case("selector", (labels(), labels(disk="fast")), ((SMALL, required("disk", "Exists")),), (1,)),
    Case(
        "not-in",
        (labels(disk="slow"), labels()),
        ((SMALL, required("disk", "NotIn", "slow")),),
        (1,),
    ),
    Case(
        "greater",
        (labels(rank="7"), labels(rank="30")),
        ((SMALL, required("rank", "Gt", "7")),),
        (1,),
    ),
    Case("taint", (tainted("NoSchedule"), {}), ((SMALL, {}),), (1,)),
    Case("execute", ({}, tainted("NoExecute")), (({"offline": 300}, {}),), (0,)),
    # 300 points for the node without the taint; the extender gives 200 at most, others 100 each
    Case("dislike", (tainted("PreferNoSchedule"), {}), ((SMALL, {}),), (1,)),
    Case(
        "tolerate",
        (labels(disk="fast") | tainted("NoSchedule"), {}),
        (({"offline": 300}, TOLERANT | required("disk", "In", "fast")),),
        (0,),
    ),
    Case("cordon", ({"spec": {"unschedulable": True}}, {}), ((SMALL, {}),), (1,)),
    # 32 GiB, of which 30 are taken on one of the two
    Case("memory", ({}, {}), (({"memory": 4.0}, {}),), (1,), ((0, {"memory": 30.0}, {}),)),
    # one pod in each of zones a and b, so that a skew of 1 leaves c, then c is like the others
    Case(
        "spread",
        (labels(zone="a"), labels(zone="b"), labels(zone="c")),
        ((SMALL | APP, SPREAD),),
        (2,),
        ((0, SMALL | APP, {}), (1, SMALL | APP, {})),
    ),
    # each node gives about 5.2 cores; the first takes 4, so the second finds 4 on the other one
    Case(
        "promises",
        (labels(disk="fast"), {}),
        (({"offline": 4000}, required("disk", "Exists")), ({"offline": 4000}, {})),
        (0, 1),
    ),
]


def manifest(world: World, name: str, ask: Json, spec: Json, node: str | None = None) -> Json:
    """A pod as the API takes it."""
    offline = ask.get("offline")
    made = objects.pod(
        name,
        world.namespace,
        cpu=ask.get("cpu"),
        memory=ask.get("memory"),
        extended={RESOURCE: offline} if offline else None,
        annotations={DURATION: "1h"} if offline else None,
        labels=ask.get("labels"),
        usage=ask.get("cpu", 0.0) or None,
        node_name=node,
    )
    made["spec"] |= spec
    return made


def prepare(world: World) -> tuple[list[Json], dict[str, str]]:
    """Set up the nodes of all cases and what runs there; what arrives, and where each has to go."""
    names = iter(sorted(world.extender.nodes()))
    arriving, expected = [], {}
    for case in CASES:
        own = [next(names) for _ in case.nodes]
        for node, change in zip(own, case.nodes, strict=True):
            path = f"/api/v1/nodes/{node}"
            world.plane.admin.patch(path, {"metadata": {"labels": {"case": case.name}}})
            if change:
                world.plane.admin.patch(path, change)
        running = [
            manifest(world, f"here-{case.name}-{number}", ask, spec, own[where])
            for number, (where, ask, spec) in enumerate(case.running)
        ]
        workload.create_pods(world.plane.admin, running)
        chosen = {"nodeSelector": {"case": case.name}}
        for number, ((ask, spec), home) in enumerate(zip(case.arriving, case.homes, strict=True)):
            name = f"one-{case.name}-{number}"
            arriving.append(manifest(world, name, ask, spec | chosen))
            expected[name] = own[home]
    return arriving, expected


def test_where_the_choice_is_unique_both_choose_the_same(still_world: World) -> None:
    world = still_world
    arriving, expected = prepare(world)
    admin = world.plane.admin
    here = [pod["metadata"]["name"] for pod in world.pods("here")]
    workload.wait_for_phase(admin, world.namespace, here)
    nodes, before = admin.get("/api/v1/nodes")["items"], workload.pods(admin, world.namespace)
    model = known(nodes, world.extender.nodes())
    for pod in arriving:
        workload.create_pods(admin, [pod])
        workload.wait_for_phase(admin, world.namespace, [pod["metadata"]["name"]])
    real = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in world.pods("one-")}
    assert real == expected
    found = homes(replayed(trace_of(nodes, before, arriving), model))
    assert {name: found.get(name) for name in expected} == expected
    world.delete("one-")
    world.delete("here-")
    for node in nodes:
        plain = {"spec": {"taints": None, "unschedulable": None}}
        admin.patch(f"/api/v1/nodes/{node['metadata']['name']}", plain)


# Distributions


PARTS = ("promised", "cpu", "memory")
"""CPU that is promised, and CPU and memory that are requested."""


def load_of(placed: Mapping[str, str], pods: list[Json]) -> Floats:
    """What the pods that are placed take of each node, [PARTS, N] shares, from low to high."""
    sums = np.zeros((len(PARTS), NODES))
    for pod in pods:
        node = placed.get(pod["metadata"]["name"])
        if node is not None:
            requests = pod["spec"]["containers"][0]["resources"]["requests"]
            sums[:, int(node.removeprefix("node-"))] += (
                int(requests.get(RESOURCE, 0)) / 1000 / NODE_CPU,
                int(requests.get("cpu", "0m")[:-1]) / 1000 / NODE_CPU,
                int(requests.get("memory", "0Mi")[:-2]) / 1024 / NODE_MEMORY,
            )
    return np.sort(sums, axis=1)


def compare(real: Floats, replays: Sequence[ReplayResult], pods: list[Json]) -> None:
    """Within 2 %: the sum of promises, and the share of each node, the emptiest to the fullest."""
    shadow = np.mean([load_of(homes(result), pods) for result in replays], axis=0)
    assert shadow[0].sum() == pytest.approx(real[0].sum(), rel=TOLERANCE)
    off = dict(zip(PARTS, np.abs(shadow - real).mean(axis=1).tolist(), strict=True))
    assert max(off.values()) < TOLERANCE, off


@pytest.mark.parametrize(("share", "online"), [(0.5, 150), (1.3, 50)], ids=["half", "overloaded"])
def test_elsewhere_the_distributions_are_the_same(
    still_world: World, share: float, online: int
) -> None:
    world = still_world
    admin = world.plane.admin
    rng = np.random.default_rng(int(share * 10))
    room = sum(reclaimable(node) for node in world.extender.nodes().values())
    asks: list[Json] = []
    while sum(ask["offline"] for ask in asks) < share * room:
        asks.append({"offline": int(rng.choice([300, 700, 1100])), "memory": 0.5})
    asks += [{"cpu": 0.05, "memory": 1.0} for _ in range(online)]
    pods = [
        manifest(world, f"many-{number:03d}", asks[which], {})
        for number, which in enumerate(rng.permutation(len(asks)).tolist())
    ]
    nodes, before = admin.get("/api/v1/nodes")["items"], workload.pods(admin, world.namespace)
    trace, model = trace_of(nodes, before, pods), known(nodes, world.extender.nodes())
    workload.create_pods(admin, pods)
    placed, waiting = world.settled("many-")
    assert bool(waiting) == (share > 1)
    real = load_of({p["metadata"]["name"]: p["spec"]["nodeName"] for p in placed}, pods)
    compare(real, [replayed(trace, model, seed) for seed in range(SEEDS)], pods)
    world.delete("many-")
    wait_until(lambda: not world.asked(), 120, "nothing is promised any more")
