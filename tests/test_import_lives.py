"""Imports from production: pods and nodes that are gone, and the lives of a name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.grid import WINDOW
from models.usage_source import UsageBlock
from tests.production_world import (
    END,
    RESOURCE,
    START,
    Json,
    World,
    a_node,
    a_pod,
    born,
    imported,
    playing,
    row,
    usage,
)
from trainer.importers.cluster_objects import LivePod, NodeFacts, PodFacts, pod_facts
from trainer.importers.lives import lives
from trainer.importers.production_tables import (
    Period,
    Seen,
    nodes_table,
    pods_table,
    usage_rows,
    with_lives,
)


@pytest.fixture(name="world")
def play(tmp_path: Path) -> Iterator[World]:
    """Both servers."""
    with playing(tmp_path) as world:
        yield world


# Pods that are gone


def info(pod: str, kind: str, owner: str, node: str = "n1", at: int = END, uid: str = "") -> Json:
    labels = {"created_by_kind": kind, "created_by_name": owner, "node": node, "uid": uid}
    return {"metric": {"namespace": "shop", "pod": pod, **labels}, "values": [(at, "1")]}


def created(pod: str, uid: str, hours: float) -> Json:
    labels = {"namespace": "shop", "pod": pod, "uid": uid}
    return {"metric": labels, "values": [(END, f"{START + hours * 3600}")]}


def requested(pod: str, resource: str, *amounts: str, uid: str = "") -> Json:
    values = [(END - 86_400 * back, amount) for back, amount in enumerate(reversed(amounts))]
    labels = {"namespace": "shop", "pod": pod, "resource": resource, "uid": uid}
    return {"metric": labels, "values": values[::-1]}


def test_pods_that_are_gone_are_known_from_kube_state_metrics(world: World, tmp_path: Path) -> None:
    early = [0.25] * 4 + [math.nan] * 8
    world.usage |= {"old-5d4f7c9b8-abcde": early, "etl": early, "lost": early}
    world.metrics["kube_pod_info"] = [
        info("old-5d4f7c9b8-abcde", "ReplicaSet", "old-5d4f7c9b8"),
        info("etl", "Job", "etl-29384400", node="left"),
        info("silent", "<none>", "<none>"),  # no usage of it, so nobody knows when it lived
    ]
    world.metrics["kube_pod_container_resource_requests"] = [
        requested("old-5d4f7c9b8-abcde", "cpu", "1", "1.5"),
        requested("old-5d4f7c9b8-abcde", "memory", "2147483648"),
        requested("etl", "archimedes_dev_reclaimed_millicpu", "500"),
    ]
    said, trace = imported(world, tmp_path / "out")
    assert said.pods == 3
    assert said.left_out == (
        (
            "1 pods that have used CPU are gone, and Prometheus has no kube_pod_info of them: "
            "they are left out."
        ),
        (
            "1 pods ran on 1 nodes that are gone, and Prometheus does not tell what these offered: "
            "the pods are placed anew in a replay."
        ),
    )
    old, etl = row(trace, "old-5d4f7c9b8-abcde"), row(trace, "etl")
    assert (old["workload"], old["node"]) == ("shop/Deployment/old", "n1")
    assert (old["tier"], old["cpu_request"], old["memory_request"]) == ("online", 1.5, 2.0)
    assert old["start"].timestamp() == START
    assert old["end"].timestamp() == START + 4 * WINDOW
    assert (etl["workload"], etl["tier"], etl["cpu_request"]) == (
        "shop/CronJob/etl",
        "offline",
        0.5,
    )
    assert etl["node"] is None  # its node is gone too


def test_of_a_pod_that_exists_the_api_server_knows_more(world: World, tmp_path: Path) -> None:
    world.metrics["kube_pod_info"] = [info("web", "StatefulSet", "web")]
    world.metrics["kube_pod_container_resource_requests"] = [requested("web", "cpu", "7")]
    _, trace = imported(world, tmp_path / "out")
    assert row(trace, "web")["cpu_request"] == 2.0


def test_of_two_nodes_the_newer_counts(world: World, tmp_path: Path) -> None:
    world.nodes.append(a_node("n2"))
    world.usage["db-0"] = [0.25] * 12
    world.metrics["kube_pod_info"] = [
        info("db-0", "StatefulSet", "db", node="n2", at=END),
        info("db-0", "StatefulSet", "db", node="n1", at=END - 86_400),
    ]
    _, trace = imported(world, tmp_path / "out")
    assert row(trace, "db-0")["node"] == "n2"


# Nodes that are gone


def test_a_node_that_is_gone_is_known_from_prometheus(world: World, tmp_path: Path) -> None:
    quarter = START + 900.0
    world.past_nodes = {
        "n1": (4.0, 2.0**34, START, END),  # there is one now: the API server knows more
        "left": (16.0, 2.0**36, quarter, START + 1800.0),
        "phantom": (16.0, 2.0**36, START, END),  # no pod of the trace was there
    }
    world.usage["etl"] = [math.nan] * 2 + [0.25] * 6 + [math.nan] * 4
    world.metrics["kube_pod_info"] = [info("etl", "Job", "etl-29384400", node="left")]
    said, trace = imported(world, tmp_path / "out")
    assert said.left_out == ()
    assert row(trace, "etl")["node"] == "left"
    assert trace.nodes is not None
    ended = datetime.fromtimestamp(START + 8 * WINDOW, UTC)  # with its last pod
    began = datetime.fromtimestamp(START + 2 * WINDOW, UTC)  # with its first pod
    assert trace.nodes.select("node", "cpu", "memory", "start", "end").rows() == [
        ("n1", 8.0, 32.0, None, None),
        ("left", 16.0, 64.0, began, ended),
    ]


def test_what_a_node_offered_can_be_asked_for_in_other_words(world: World, tmp_path: Path) -> None:
    imported(world, tmp_path / "out", node_cpu="mine_cpu", node_memory="mine_memory")
    asked = {query["query"] for query in world.queries if "mine" in query["query"]}
    assert asked == {
        "min_over_time((mine_cpu)[1d:5m])",
        "min_over_time((mine_memory)[1d:5m])",
        "min_over_time(timestamp(mine_cpu)[1d:5m])",
        "max_over_time(timestamp(mine_cpu)[1d:5m])",
    }


# Lives


def stateful(world: World, *uids: str, dated: bool = True) -> None:
    """Pods of the name db-0, one every quarter of an hour; each asks for a core more."""
    world.usage["db-0"] = [0.25] * 3 + [0.5] * 3 + [0.75] * 6
    for number, uid in enumerate(uids):
        place = info(
            "db-0", "StatefulSet", "db", node=f"n{number + 1}", uid=uid, at=END - 9 + number
        )
        world.metrics["kube_pod_info"].append(place)
        cores = requested("db-0", "cpu", f"{number + 1}", uid=uid)
        world.metrics["kube_pod_container_resource_requests"].append(cores)
        if dated:
            world.metrics["kube_pod_created"].append(created("db-0", uid, number / 4 + 0.01))


def test_a_name_that_came_back_is_split_into_its_lives(world: World, tmp_path: Path) -> None:
    stateful(world, "a", "b")
    now = a_pod("db-0", hours=0.51, node_name="n1", cpu=7.0)
    now["metadata"]["uid"] = "c"
    world.pods.append(now)
    world.nodes.append(a_node("n2"))
    said, trace = imported(world, tmp_path / "out")
    assert (said.pods, said.left_out) == (4, ())
    # The third began at half past and 36 s: in the seventh window.
    assert usage(trace, "db-0#1") == [(at, 0.25, None) for at in range(3)]
    assert usage(trace, "db-0#2") == [(at, 0.5, None) for at in range(3, 6)]
    assert usage(trace, "db-0") == [(at, 0.75, None) for at in range(6, 12)]
    lived = [row(trace, name) for name in ("db-0#1", "db-0#2", "db-0")]
    assert [(pod["cpu_request"], pod["node"]) for pod in lived] == [
        (1.0, "n1"),
        (2.0, "n2"),
        (7.0, "n1"),
    ]
    assert {pod["workload"] for pod in lived} == {"shop/StatefulSet/db", "shop/Pod/db-0"}
    ends = [int(pod["end"].timestamp() - START) // WINDOW for pod in lived]
    assert ends == [3, 6, 12]


@pytest.mark.parametrize("dated", [True, False])
def test_what_kube_state_metrics_tells_of_the_pod_that_there_is_now_is_no_life(
    world: World, tmp_path: Path, *, dated: bool
) -> None:
    stateful(world, "a", "b", dated=dated)
    now = a_pod("db-0", hours=0.26, cpu=7.0)
    now["metadata"]["uid"] = "b"
    world.pods.append(now)
    said, trace = imported(world, tmp_path / "out")
    assert said.left_out == ()
    assert [row(trace, name)["cpu_request"] for name in ("db-0#1", "db-0")] == [1.0, 7.0]
    assert [at for at, _, _ in usage(trace, "db-0#1")] == [0, 1, 2]
    assert [at for at, _, _ in usage(trace, "db-0")] == list(range(3, 12))


def test_without_dates_only_the_newest_counts(world: World, tmp_path: Path) -> None:
    stateful(world, "a", "b", dated=False)
    world.nodes.append(a_node("n2"))
    said, trace = imported(world, tmp_path / "out")
    assert (row(trace, "db-0")["cpu_request"], row(trace, "db-0")["node"]) == (2.0, "n2")
    assert len(usage(trace, "db-0")) == 12
    assert said.left_out == (
        (
            "1 names had several pods, and Prometheus has no kube_pod_created of them: "
            "only the newest counts."
        ),
    )


def test_usage_from_before_a_pod_was_created_was_another_ones(world: World, tmp_path: Path) -> None:
    world.pods = [a_pod("web", hours=0.5)]
    _, trace = imported(world, tmp_path / "out")
    older, newer = row(trace, "web#1"), row(trace, "web")
    assert (older["cpu_request"], older["node"]) == (2.0, None)  # where it ran nobody knows
    assert (newer["cpu_request"], newer["node"]) == (2.0, "n1")
    assert [at for at, _, _ in usage(trace, "web#1")] == list(range(6))
    assert [at for at, _, _ in usage(trace, "web")] == list(range(6, 12))


def fact(name: str = "shop/web", start: float = math.inf, end: float = math.inf) -> PodFacts:
    return PodFacts(name, "shop/Pod/web", "online", 1.0, 1.0, start, end, "n1")


PERIOD = Period(START, END)


@pytest.mark.parametrize(
    ("pod", "seen", "life"),
    [
        (fact(start=START - 50), None, (START - 50, math.inf)),
        (fact(start=START - 50, end=START + 70), None, (START - 50, START + 70)),
        (fact(start=START - 50, end=START - 1), None, None),  # before the period
        (fact(start=END), None, None),  # after it
        (fact(), None, None),  # gone, and nobody saw it use anything
        (fact(), Seen(START + 300, START + 900), (START + 300, START + 900)),
        # Its first window began before it did.
        (fact(start=START + 600), Seen(START + 300, END), (START + 300, math.inf)),
        (fact(start=END + 10), Seen(START, START + 600), (START, START + 600)),
        (
            fact(start=START - 90, end=START + 70),
            Seen(START, START + 600),
            (START - 90, START + 600),
        ),
    ],
)
def test_lives(pod: PodFacts, seen: Seen | None, life: tuple[float, float] | None) -> None:
    found = with_lives([pod], {pod.pod: seen} if seen else {}, PERIOD)
    assert [(p.start, p.end) for p in found] == ([life] if life else [])


def test_an_end_after_the_period_is_none() -> None:
    pods = [fact(start=START, end=END + 5), fact("shop/b", START, END - 5)]
    table = pods_table(pods, {"n1"}, PERIOD)
    assert table["end"].to_list() == [None, datetime.fromtimestamp(END - 5, UTC)]


def test_a_node_is_there_before_its_first_pod() -> None:
    node = NodeFacts("n1", 8.0, 32.0, START + 900, False, {}, ())
    table = nodes_table([node], [fact(start=START + 300)], PERIOD)
    assert table["start"].to_list() == [datetime.fromtimestamp(START + 300, UTC)]


def test_peaks_of_other_pods_in_another_order() -> None:
    cpu = UsageBlock(START, ("a", "b", "c"), np.array([[1], [2], [3]], np.float32))
    peaks = UsageBlock(START, ("c", "x", "a"), np.array([[7], [8], [9]], np.float32))
    rows = usage_rows(cpu, peaks, lives([fact("a"), fact("b")], {}))
    assert rows.select("pod", "cpu", "cpu_max").rows() == [("a", 1.0, 9.0), ("b", 2.0, None)]


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ({"phase": "Running"}, math.inf),
        ({"phase": "Failed"}, START),  # evicted: when it was created is all that is known
        (
            {
                "phase": "Succeeded",
                "startTime": born(0.1),
                "containerStatuses": [
                    {"state": {"terminated": {"finishedAt": born(0.5)}}},
                    {"state": {"terminated": {"finishedAt": born(0.25)}}},
                ],
            },
            START + 1800,
        ),
    ],
)
def test_when_a_pod_has_ended(status: Json, ended: float) -> None:
    pod = msgspec.convert(a_pod("p", hours=0, status=status), LivePod)
    assert pod_facts(pod, RESOURCE).end == ended
