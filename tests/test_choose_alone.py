"""Where kube-scheduler has nothing to choose by, filter leaves it the best node alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from extender.decide import Alone, decide
from models.classical import classical
from models.shipped import shipped
from shadow.constraints import PLAIN, Constraints
from shadow.indifference import indifferent, owners, shunned
from shadow.options import ReplayOptions
from shadow.replay import replay
from shadow.scenario import build_scenario
from tests.extender_world import Json, World, as_node, as_pod, node_json, pod_json
from tests.shadow_traces import tidal_trace
from tests.test_decide import POLICY, offline, snapshot
from tests.test_shadow_placing import facts, kind, taint

NAMES = tuple(f"n{number}" for number in range(6))


def world(*, choose_alone: bool = True, candidates: int = 3, hold_seconds: float = 30.0) -> World:
    """Six nodes of 8 cores with forecasts of 1 to 6 cores: the first is the best."""
    found = World(
        nodes=NAMES, candidates=candidates, hold_seconds=hold_seconds, choose_alone=choose_alone
    )
    found.sync()
    found.forecast({name: float(number + 1) for number, name in enumerate(NAMES)})
    return found


def owned(pod: Json, owner: str, api_version: str = "apps/v1") -> Json:
    """The pod, looked after by somebody."""
    of = {"apiVersion": api_version, "kind": owner, "name": "app-1", "uid": f"uid-{owner}"}
    pod["metadata"]["ownerReferences"] = [{**of, "controller": True}]
    return pod


def left(of: World, pod: Json) -> list[str]:
    """The nodes that filter leaves, sorted."""
    return sorted(of.filter(pod)["NodeNames"])


def test_a_jobs_pod_gets_the_best_node_and_is_held_there_alone() -> None:
    of = world()
    assert left(of, owned(pod_json("p", 1500), "Job")) == ["n0"]
    entry = of.state.ledger.get("uid-p")
    assert entry is not None
    assert entry.rows == tuple(of.state.snapshot(of.now).rows(["n0"]).tolist())
    # The next one sees that n0 has 5.5 cores left and n1 six, which nobody else was promised.
    assert left(of, pod_json("q", 1000)) == ["n1"]


def test_kube_scheduler_chooses_where_no_more_fit_than_it_would_be_left() -> None:
    assert left(world(candidates=6), pod_json("p", 1000)) == list(NAMES)
    assert left(world(candidates=0), pod_json("p", 1000)) == list(NAMES)
    assert left(world(), pod_json("p", 5000)) == ["n0", "n1", "n2"]
    assert left(world(choose_alone=False), pod_json("p", 1000)) == ["n0", "n1", "n2"]


WEIGHT: Json = {"weight": 1, "preference": {"matchExpressions": []}}
PREFERRED: Json = {"preferredDuringSchedulingIgnoredDuringExecution": [WEIGHT]}
SPREAD: Json = {"maxSkew": 1, "topologyKey": "zone", "labelSelector": {}}


@pytest.mark.parametrize(
    "spec",
    [
        {"affinity": {"nodeAffinity": PREFERRED}},
        {"affinity": {"podAffinity": PREFERRED}},
        {"affinity": {"podAntiAffinity": PREFERRED}},
        {"topologySpreadConstraints": [{**SPREAD, "whenUnsatisfiable": "ScheduleAnyway"}]},
        {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]},
        {"volumes": [{"name": "v", "ephemeral": {}}]},
        {"resourceClaims": [{"name": "gpu"}]},
    ],
)
def test_kube_scheduler_chooses_where_the_pod_has_preferences(spec: dict[str, Any]) -> None:
    assert left(world(), pod_json("p", 1000, **spec)) == ["n0", "n1", "n2"]
    assert left(world(), pod_json("q", cpu="1", **spec)) == ["n0", "n1", "n2"]


@pytest.mark.parametrize(
    "spec",
    [
        {"affinity": {}},
        {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}},
        {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}},
        {"topologySpreadConstraints": [{**SPREAD, "whenUnsatisfiable": "DoNotSchedule"}]},
        {"volumes": [{"name": "token", "projected": {"sources": []}}], "resourceClaims": []},
    ],
)
def test_what_a_pod_requires_leaves_nothing_to_choose(spec: dict[str, Any]) -> None:
    assert left(world(), pod_json("p", 1000, **spec)) == ["n0"]


@pytest.mark.parametrize(
    ("api_version", "owner", "offline_left", "online_left"),
    [
        ("batch/v1", "Job", 1, 1),
        ("apps/v1", "ReplicaSet", 1, 1),
        ("v1", "ReplicationController", 1, 1),
        ("apps/v1", "StatefulSet", 1, 1),
        ("apps.kruise.io/v1beta1", "StatefulSet", 3, 3),  # kube-scheduler does not know these
        ("kubeflow.org/v1", "PyTorchJob", 1, 3),  # of online pods, only Jobs' serve nobody
    ],
)
def test_whose_pods_are_left_one_node(
    api_version: str, owner: str, offline_left: int, online_left: int
) -> None:
    assert len(left(world(), owned(pod_json("p", 1000), owner, api_version))) == offline_left
    assert len(left(world(), owned(pod_json("q", cpu="1"), owner, api_version))) == online_left
    own = [{**SPREAD, "whenUnsatisfiable": "DoNotSchedule"}]  # instead of any by default
    spread = pod_json("r", cpu="1", topologySpreadConstraints=own)
    assert len(left(world(), owned(spread, owner, api_version))) == 1


def test_a_pod_can_ask_for_more_and_for_less() -> None:
    more = pod_json("p", 1000, annotations={"archimedes.dev/candidates": "2"})
    assert left(world(), more) == ["n0", "n1"]
    one = pod_json("p", cpu="1", annotations={"archimedes.dev/candidates": "1"})
    assert left(world(), owned(one, "ReplicaSet")) == ["n0"]


def tainted(name: str, effect: str) -> Json:
    """A node with a taint."""
    return {**node_json(name), "spec": {"taints": [{"key": "old", "effect": effect}]}}


def test_a_node_to_be_avoided_is_never_chosen_alone() -> None:
    of = world()
    of.cluster.put_node(as_node(tainted("n0", "PreferNoSchedule")))
    assert left(of, pod_json("p", 1000)) == ["n1"]
    for name in NAMES:
        of.cluster.put_node(as_node(tainted(name, "PreferNoSchedule")))
    assert len(left(of, pod_json("q", 1000))) == 3
    of.cluster.put_node(as_node(node_json("n0")))
    assert left(of, pod_json("r", 1000)) == ["n0"]
    of.cluster.put_node(as_node(tainted("n0", "NoSchedule")))  # who may run there may as well
    assert left(of, pod_json("r", 1000)) == ["n0"]


def test_a_new_node_does_not_inherit_what_is_said_of_a_gone_one() -> None:
    of = world()
    of.cluster.put_node(as_node(tainted("n0", "PreferNoSchedule")))
    of.cluster.delete_node("n0")
    of.cluster.put_node(as_node(node_json("new")))  # takes the row
    of.forecast({"new": 0.5, **{name: float(at + 1) for at, name in enumerate(NAMES)}})
    assert left(of, pod_json("p", 1000)) == ["new"]


def test_online_pods_that_come_together_do_not_all_go_to_one_node() -> None:
    of = world()
    assert [left(of, pod_json(name, cpu="1")) for name in "abcdef"] == [[name] for name in NAMES]
    # Nobody knows better where the seventh goes than kube-scheduler, which has bound the others.
    assert len(left(of, pod_json("g", cpu="1"))) == 3
    # One that asks again is not in its own way.
    assert left(of, pod_json("a", cpu="1")) == ["n0"]
    # One that has arrived is in the forecast instead: 3 cores of either are taken then.
    of.cluster.put_pod(as_pod(pod_json("a", cpu="2", node="n0")))
    of.cluster.put_pod(as_pod(pod_json("b", cpu="1", node="n1")))
    assert left(of, pod_json("h", cpu="1")) == ["n0"]
    assert left(of, pod_json("i", cpu="1")) == ["n1"]


def test_an_online_pod_that_never_arrives_is_waited_for_as_long_as_a_hold() -> None:
    of = world()
    assert left(of, pod_json("a", cpu="1")) == ["n0"]
    of.now += 31
    of.state.expire(of.now)
    assert left(of, pod_json("b", cpu="1")) == ["n0"]
    of.cluster.put_pod(as_pod(pod_json("b", cpu="1")))
    of.cluster.delete_pod("default", "b")
    assert left(of, pod_json("d", cpu="1")) == ["n0"]


def test_kube_scheduler_chooses_while_not_all_is_listed() -> None:
    of = World(nodes=NAMES, candidates=3)
    assert len(left(of, pod_json("a", cpu="1"))) == 3  # nothing is known
    nodes = of.state.node_feed()
    nodes.retain({nodes.put(node) for node in of.cluster.nodes.values()})
    of.state.pod_feed().put(as_pod(pod_json("first", cpu="1", node="n0")))
    assert len(left(of, pod_json("a", cpu="1"))) == 3  # what else runs on them is not
    of.sync()
    assert len(left(of, pod_json("a", cpu="1"))) == 1


def test_a_node_that_is_not_known_is_never_chosen_alone() -> None:
    of = world()
    strangers = [f"stranger-{at}" for at in range(5)]
    assert of.filter(pod_json("a", cpu="1"), [*strangers, "n5"])["NodeNames"] == ["n5"]
    assert len(of.filter(pod_json("b", cpu="1"), strangers)["NodeNames"]) == 3


def test_kube_scheduler_chooses_while_nobody_hears_where_pods_go() -> None:
    of = world()
    of.now += of.settings.watch_max_age + 1
    assert len(left(of, pod_json("a", cpu="1"))) == 3
    of = world()
    for at in range(1100):  # as many have never arrived
        facts = of.state.facts(as_pod(pod_json(f"lost-{at}", cpu="1")))
        of.state.under_way.send(facts, 5, of.now, of.now + 30)
    assert len(left(of, pod_json("a", cpu="1"))) == 3
    of.now += 31
    of.state.expire(of.now)
    assert left(of, pod_json("a", cpu="1")) == ["n0"]


def test_the_best_is_left_and_where_all_are_passed_over_several_are() -> None:
    of, rows = snapshot([1000, 4000, 3000, 4000]), np.array([3, 0, 2, 1])

    def passed(passed_over: list[int], candidates: int = 2) -> list[int]:
        alone = Alone(np.array(passed_over, np.int64), np.zeros(0, np.int64))
        found = decide(of, rows, offline(100), POLICY, candidates, alone=alone)
        return sorted(rows[found.passed].tolist())

    assert passed([]) == [3]  # of equals the first: kube-scheduler begins elsewhere each time
    assert passed([3]) == [1]
    assert passed([3, 1]) == [2]
    assert passed([0, 1, 2, 3]) == [1, 3]
    assert passed([], candidates=4) == passed([], candidates=0) == [0, 1, 2, 3]


def test_the_replay_leaves_one_node_to_the_same_pods() -> None:
    scenario = build_scenario(tidal_trace(), ReplayOptions())
    pods = scenario.pods
    assert indifferent(scenario, ReplayOptions()) == [True] * len(pods)
    workloads = () if scenario.grid is None else scenario.grid.workloads
    spread = [workloads[at] if at >= 0 else "" for at in pods.grid.tolist()]
    assert owners(scenario) == spread  # of Deployments
    assert len(set(spread)) > 2
    assert not any(indifferent(scenario, ReplayOptions(choose_alone=False)))


def test_the_replay_knows_what_prefers_and_what_is_to_be_avoided() -> None:
    scenario = build_scenario(tidal_trace(), ReplayOptions())
    preferred = [{"weight": 1, "preference": {"matchExpressions": []}}]
    anyway = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    kinds = (
        PLAIN,
        kind(node_affinity={"preferredDuringSchedulingIgnoredDuringExecution": preferred}),
        kind(topology_spread=[anyway]),
        kind(topology_spread=[{**anyway, "whenUnsatisfiable": "DoNotSchedule"}]),
    )
    nodes = facts({}, {"taints": [taint("PreferNoSchedule")]}, {"taints": [taint("NoSchedule")]})
    constraints = Constraints(nodes, kinds)
    which = np.arange(len(scenario.pods)) % len(kinds)
    marked = replace(scenario, constraints=constraints, pods=replace(scenario.pods, kind=which))
    expected = np.isin(which, (0, 3))
    assert indifferent(marked, ReplayOptions()) == expected.tolist()
    # A pod with constraints of its own is not spread by default.
    by_default = ~scenario.pods.offline & np.isin(which, (0, 1))
    assert [bool(owner) for owner in owners(marked)] == by_default.tolist()
    assert by_default.any()
    assert scenario.grid is not None
    operators = tuple(name.replace("Deployment", "Operator") for name in scenario.grid.workloads)
    grid = replace(scenario.grid, workloads=operators)
    behind_services = np.where(scenario.pods.offline, expected, which == 3)
    found = indifferent(replace(marked, grid=grid), ReplayOptions())
    assert found == behind_services.tolist()
    assert not any(owners(replace(marked, grid=grid)))
    assert shunned(constraints).tolist() == [1]
    assert shunned(None).tolist() == []


def test_an_online_job_in_a_trace_is_decided_as_in_the_server() -> None:
    trace = tidal_trace()
    jobs = trace.pods.with_columns(workload=pl.format("ns/Job/{}", "pod"))
    scenario = build_scenario(replace(trace, pods=jobs), ReplayOptions())
    assert all(indifferent(scenario, ReplayOptions()))


def test_a_replay_that_leaves_one_node_decides_otherwise_and_loses_nothing() -> None:
    model = shipped(classical("koordinator"))
    found = [
        replay(tidal_trace(), model, options=ReplayOptions(candidates=2, choose_alone=alone))
        for alone in (True, False)
    ]
    assert found[0].runs.node.tolist() != found[1].runs.node.tolist()
    assert len(found[0].pods) == len(found[1].pods)
