"""Replicas that are left one node are spread as kube-scheduler spreads them by default."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from extender.decide import Alone, Habit, decide
from extender.decision_log import Candidate, Decision
from extender.ports import ClusterError
from extender.replicas import Replicas
from extender.snapshot import Snapshot
from extender.spread import NO_ZONE, default_spread
from extender.wire import BindingArgs
from models.policy import Policy
from models.trace import Trace
from shadow.constraints import zones
from shadow.options import ReplayOptions
from shadow.replay import replay
from tests.extender_world import Json, World, as_node, as_pod, node_json, pod_json, records_of
from tests.shadow_traces import ROW, START, nodes_table, pods_table, usage_table
from tests.test_choose_alone import left, owned
from tests.test_decide import offline, snapshot

ZONES = ("a", "b", "c")
NAMES = tuple(f"n{number}" for number in range(9))


def slow_spread(rows: list[int], replicas: list[int], zone: list[int]) -> list[int]:
    """PodTopologySpread's PreScore, Score and NormalizeScore, one node at a time."""
    hosts = math.log(len(rows) + 2)
    domains = math.log(len({zone[row] for row in rows}) + 2)
    raw = []
    for row in rows:
        score = replicas.count(row) * hosts + (3 - 1)
        if zone[row] != NO_ZONE:
            siblings = sum(zone[other] == zone[row] for other in replicas)
            score += siblings * domains + (5 - 1)
        raw.append(math.floor(score + 0.5))
    return [100 * (max(raw) + min(raw) - each) // max(raw) for each in raw]


@given(st.data())
def test_the_spread_is_kube_schedulers(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(1, 12))
    row = st.integers(0, nodes - 1)
    rows = data.draw(st.lists(row, min_size=1, unique=True))
    replicas = data.draw(st.lists(row, max_size=20))
    zone = data.draw(st.lists(st.integers(NO_ZONE, 3), min_size=nodes, max_size=nodes))
    found = default_spread(
        np.array(rows), np.array(replicas, np.int64), np.array(zone, np.int64)
    ).tolist()
    assert found == slow_spread(rows, replicas, zone)
    without = default_spread(np.array(rows), np.array(replicas, np.int64), None).tolist()
    assert without == slow_spread(rows, replicas, [NO_ZONE] * nodes)


def test_by_hand() -> None:
    # Hosts weigh log(5) = 1.61, zones log(4) = 1.39. Node 0: 2 x 1.61 + 2 + 3 x 1.39 + 4 = 13.38;
    # node 1, in the same zone: 1.61 + 2 + 4.16 + 4 = 11.77; node 2: 2 + 4 = 6.
    found = default_spread(np.arange(3), np.array([0, 0, 1]), np.array([0, 0, 1]))
    assert found.tolist() == [100 * 6 // 13, 100 * 7 // 13, 100]


def chosen(of: Snapshot, replicas: list[int], passed_over: list[int], weight: float = 1.0) -> int:
    alone = Alone(np.array(passed_over, np.int64), np.array(replicas, np.int64))
    rows = np.arange(len(of.promised))
    policy = Policy(spread_weight=weight)
    (passed,) = decide(of, rows, offline(100), policy, 1, alone=alone).passed.tolist()
    return int(passed)


def test_rank_and_spread_together_choose() -> None:
    # Slack ranks the nodes 3, 2, 1, 0: stretched 1, 0.95, 0.9, 0.
    of = replace(snapshot([1000, 2800, 2900, 3000]), zone=np.array([0, 0, 1, 1]))
    assert chosen(of, [], []) == 3
    assert chosen(of, [3], []) == 1  # the other zone, though 2 is a better node
    assert chosen(of, [3], [], weight=0.0) == 3
    assert chosen(of, [3], [1]) == 2  # 0 is so much worse that its zone does not help
    assert chosen(of, [3, 3, 3], [1], weight=4.0) == 0
    assert chosen(replace(of, zone=None), [3], []) == 2  # without zones, just another node
    assert chosen(of, [3, 2, 1, 0], []) == 3  # alike everywhere
    assert chosen(of, [3], [1, 2, 0]) == 3


def test_replicas_are_counted_by_owner_and_node() -> None:
    replicas = Replicas()
    for owner, row in (("web", 3), ("web", 5), ("web", 3), ("db", 3), ("", 3)):
        replicas.add(owner, row)
    assert sorted(replicas.rows("web").tolist()) == [3, 3, 5]
    assert replicas.rows("").tolist() == []
    replicas.remove("web", 3)
    replicas.remove("", 3)
    assert sorted(replicas.rows("web").tolist()) == [3, 5]
    replicas.remove("db", 3)
    assert replicas.rows("db").tolist() == []
    with pytest.raises(KeyError):
        replicas.remove("db", 3)


def zoned(name: str, zone: str) -> Json:
    """A node in a zone."""
    made = node_json(name)
    made["metadata"]["labels"] = {"topology.kubernetes.io/zone": zone}
    return made


def zoned_world(forecast: dict[str, float] | float = 2.0, candidates: int = 4) -> World:
    """Nine nodes of 8 cores, three in each zone, of which kube-scheduler is left four at most."""
    of = World(nodes=NAMES, candidates=candidates, hold_seconds=30.0)
    for number, name in enumerate(NAMES):
        of.cluster.put_node(as_node(zoned(name, ZONES[number // 3])))
    of.sync()
    of.forecast(forecast)
    return of


def zone_of(name: str) -> str:
    return ZONES[NAMES.index(name) // 3]


def place(of: World, name: str, kind: str = "ReplicaSet", **asks: Any) -> str:  # noqa: ANN401
    """Filter a replica, which has not arrived yet, and the one node that it is left."""
    (node,) = left(of, owned(pod_json(name, **asks), kind))
    return node


def arrive(of: World, name: str, node: str, kind: str = "ReplicaSet", **asks: Any) -> None:  # noqa: ANN401
    of.cluster.put_pod(as_pod(owned(pod_json(name, node=node, **asks), kind)))


ONLINE: Json = {"cpu": "100m"}
OFFLINE: Json = {"ask": 100}


@pytest.mark.parametrize("asks", [ONLINE, OFFLINE])
@pytest.mark.parametrize("seen", [True, False])
def test_replicas_go_to_all_zones_and_nodes(asks: Json, *, seen: bool) -> None:
    """Whether each is seen to arrive before the next comes, or none is."""
    of = zoned_world()
    nodes = []
    for name in "uvwxyz":
        nodes.append(place(of, name, **asks))
        if seen:
            arrive(of, name, nodes[-1], **asks)
    assert len(set(nodes)) == 6
    assert Counter(map(zone_of, nodes)) == dict.fromkeys(ZONES, 2)


def test_a_much_better_node_is_worth_a_less_even_spread() -> None:
    of = zoned_world({name: 1.0 if zone_of(name) == "b" else 7.0 for name in NAMES})
    nodes = [place(of, name, **ONLINE) for name in "xyz"]
    assert {zone_of(node) for node in nodes} == {"b"}
    # Two siblings in its zone, none on the node: 2 x log(4 + 1) + 4 and 2 of a zone without; 9, 6.
    assert left_alone(of, "z").spread == pytest.approx(4.0 * (100 * 6 // 9) / 100)
    # Jobs' pods, and those of another owner, have no siblings there.
    assert zone_of(place(of, "job", "Job", **OFFLINE)) == "b"


def test_the_log_says_what_the_spread_was_worth() -> None:
    of = zoned_world({name: 1.0 if name == "n0" else 2.0 for name in NAMES})
    nodes = [place(of, name, **ONLINE) for name in "xyz"]
    third, second, first = (left_alone(of, name) for name in "zyx")
    assert [first.node, second.node, third.node] == nodes
    assert nodes[0] == "n0"  # the emptiest; without siblings nothing is spread
    assert first.spread == 0
    # Of nodes that are alike but n0, those in the other two zones are worth all of the weight.
    assert first.score > second.score == third.score
    assert second.spread == pytest.approx(4.0)
    assert third.spread == pytest.approx(4.0)
    left(of, owned(pod_json("job", **OFFLINE), "Job"))
    assert left_alone(of, "job").spread == 0


def left_alone(of: World, name: str) -> Candidate:
    """The node that a pod was left, as the decision log has it."""
    record = records_of(of.server.decisions, f"default/{name}")[0]
    assert isinstance(record, Decision)
    (candidate,) = record.candidates
    return candidate


def test_siblings_count_as_long_as_they_run() -> None:
    of = zoned_world()
    first = place(of, "x", **ONLINE)
    assert siblings(of) == [first]  # on its way
    arrive(of, "x", first, **ONLINE)
    assert siblings(of) == [first]
    leaving = owned(pod_json("x", node=first, **ONLINE), "ReplicaSet")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    of.cluster.put_pod(as_pod(leaving))
    assert siblings(of) == []
    second = place(of, "y", **ONLINE)
    assert siblings(of) == [second]
    of.now += 31  # it has never arrived
    of.state.expire(of.now)
    assert siblings(of) == []
    assert [place(of, "z", **OFFLINE)] == siblings(of)
    of.state.let_go("uid-z")  # nobody has read the answer
    assert siblings(of) == []


def siblings(of: World) -> list[str]:
    """The nodes on which another replica would find its siblings."""
    pod = of.state.facts(as_pod(owned(pod_json("another", **ONLINE), "ReplicaSet")))
    alone = of.state.alone(pod, pod.replica_of, of.now)
    assert alone is not None
    names = {row: name for name, row in of.state.snapshot(of.now).index.items()}
    return [names[row] for row in alone.replicas.tolist()]


def test_a_pod_that_was_left_an_unknown_node_is_nobodys_sibling() -> None:
    of = zoned_world(candidates=1)
    stranger = owned(pod_json("x", **ONLINE), "ReplicaSet")
    assert len(of.filter(stranger, ["a", "b", "c"])["NodeNames"]) == 1
    assert siblings(of) == []
    assert place(of, "y", **ONLINE) in NAMES


@pytest.mark.parametrize("asks", [ONLINE, OFFLINE])
def test_a_call_that_comes_too_late_makes_no_sibling(asks: Json) -> None:
    """kube-scheduler had given up waiting, and went on by itself."""
    of = zoned_world()
    arrive(of, "x", "n5", **asks)
    place(of, "x", **asks)
    assert siblings(of) == ["n5"]
    of.cluster.delete_pod("default", "x")
    place(of, "x", **asks)
    assert siblings(of) == []
    assert len(of.state.ledger) == 0


def test_a_pod_that_is_decided_otherwise_is_expected_nowhere() -> None:
    of = zoned_world()
    first = place(of, "x", **ONLINE)
    replica = owned(pod_json("x", **ONLINE), "ReplicaSet")
    assert of.filter(replica, [first])["NodeNames"] == [first]  # as its nominated node
    assert siblings(of) == [first]
    (other,) = [name for name in ("n0", "n1") if name != first][:1]
    assert of.filter(replica, [other])["NodeNames"] == [other]
    assert siblings(of) == []


def test_an_offline_pod_that_is_refused_at_last_is_expected_nowhere() -> None:
    of = zoned_world()
    node = place(of, "x", **OFFLINE)
    assert siblings(of) == [node]
    of.cluster.put_pod(as_pod(pod_json("large", cpu="8", node=node)))
    replica = owned(pod_json("x", **OFFLINE), "ReplicaSet")
    assert of.filter(replica, [node])["NodeNames"] == []
    assert siblings(of) == []


async def test_a_pod_whose_binding_is_refused_is_expected_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = zoned_world()
    refuse = AsyncMock(side_effect=ClusterError(403, "forbidden"))
    monkeypatch.setattr(of.cluster, "bind", refuse)
    of.cluster.put_pod(as_pod(owned(pod_json("x", **OFFLINE), "ReplicaSet")))
    node = place(of, "x", **OFFLINE)
    assert await of.server.binder.bind(BindingArgs("x", "default", "uid-x", node))
    assert siblings(of) == []


def test_nobody_is_expected_on_a_node_that_is_gone() -> None:
    of = zoned_world({name: 1.0 if name == "n8" else 2.0 for name in NAMES})
    assert place(of, "x", **ONLINE) == "n8"
    of.cluster.delete_node("n8")
    assert siblings(of) == []
    of.cluster.put_node(as_node(zoned("new", "a")))  # takes the row
    of.forecast({"new": 1.0, **dict.fromkeys(NAMES[:8], 2.0)})
    assert siblings(of) == []
    assert place(of, "y", **ONLINE) == "new"


def test_siblings_are_expected_for_as_long_as_before_when_the_clock_is_set() -> None:
    for seconds in (-3600.0, 3600.0):
        of = zoned_world()
        first = place(of, "x", **ONLINE)
        of.now += seconds
        of.state.shift(seconds)
        of.state.expire(of.now + 29)
        alone = of.state.under_way.others("nobody")
        assert [sent.row for sent in alone] == of.state.snapshot(of.now).rows([first]).tolist()
        of.state.expire(of.now + 31)
        assert list(of.state.under_way.others("nobody")) == []


def test_siblings_that_were_sent_before_a_step_is_noticed_are_expected_by_the_new_time() -> None:
    for seconds in (-3600.0, 3600.0):
        of = zoned_world()
        of.now += seconds
        of.cluster.hear()
        of.forecast(dict.fromkeys(NAMES, 2.0))
        place(of, "x", **ONLINE)
        of.now += 1
        of.state.shift(seconds)
        of.state.expire(of.now + 28)
        assert len(of.state.under_way.others("nobody")) == 1
        of.state.expire(of.now + 30)
        assert of.state.under_way.others("nobody") == []


def test_a_spread_sends_no_pod_to_a_hot_node() -> None:
    of = replace(
        snapshot([1000, 1000, 4000, 4000]),
        zone=np.array([0, 0, 1, 1]),
        usage=np.array([7.9, 7.9, 1.0, 1.0]),
    )
    assert chosen(of, [2, 2, 2, 3], [], weight=4.0) == 3
    assert chosen(replace(of, usage=np.full(4, 1.0)), [2, 2, 2, 3], [], weight=4.0) == 0
    assert chosen(replace(of, usage=np.full(4, 7.9)), [2, 2, 2, 3], [], weight=4.0) == 0


def test_a_spread_sends_no_pod_away_from_its_home() -> None:
    of = replace(snapshot([3000] * 4), zone=np.array([0, 0, 1, 1]))
    alone = Alone(np.zeros(0, np.int64), np.array([0, 0, 1]))
    asked = (of, np.arange(4), offline(100), Policy(), 1)
    assert decide(*asked, Habit(home=1), alone).passed.tolist() == [1]
    assert decide(*asked, Habit(), alone).passed.tolist() == [2]


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(NAMES[:4]), st.integers(0, 8))))
def test_what_is_counted_is_what_runs_whatever_happens(
    events: list[tuple[int, str, int]],
) -> None:
    """Pods and nodes come, change and go in any order."""
    of = zoned_world()
    owners = ("ReplicaSet", "StatefulSet", "Job")
    feed = of.state.pod_feed()
    for version, (pod, node, what) in enumerate(events, 1):
        name = f"p{pod}"
        if what == 0:
            if ("default", name) in of.cluster.pods:
                of.cluster.delete_pod("default", name)
        elif what == 1:
            if node in of.cluster.nodes:
                of.cluster.delete_node(node)
        elif what == 2:
            of.cluster.put_node(as_node(zoned(node, ZONES[pod % 3])))
        elif what == 3:  # whoever was not listed is gone
            list(feed.sift({f"uid-p{at}" for at in range(pod)}))
        elif what == 4:
            of.filter(owned(pod_json(name, **ONLINE), owners[pod % 3]), [*of.cluster.nodes, "no"])
        else:
            made = owned(pod_json(name, node=node, **ONLINE), owners[pod % 3])
            old = what == 5 and pod % 2 == 0  # a late event
            made["metadata"]["resourceVersion"] = str(1 if old else version + 1)
            if what == 6:
                made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            made["status"]["phase"] = "Failed" if what == 7 else "Running"
            feed.put(as_pod(made))
    view = of.state.snapshot(of.now)
    for owner in ("uid-ReplicaSet", "uid-StatefulSet", "uid-Job"):
        expected = [
            view.index[pod.node]
            for pod in of.state._pods.bound()
            if pod.replica_of == owner and pod.node in view.index
        ]
        assert sorted(of.state._replicas.rows(owner).tolist()) == sorted(expected)
    expected_at = {sent.row for sent in of.state.under_way.others("nobody")}
    assert expected_at <= set(view.index.values())
    numbers = view.zone
    assert numbers is not None
    for there in of.cluster.nodes.values():
        assert there.metadata is not None
        assert there.metadata.name is not None
        zone = (there.metadata.labels or {})["topology.kubernetes.io/zone"]
        assert numbers[view.index[there.metadata.name]] == of.state._nodes._zones[zone]


@pytest.mark.parametrize("workload", ["shop/Deployment/web", "shop/Job/web"])
@pytest.mark.parametrize("choose_alone", [True, False])
def test_a_replay_spreads_replicas(workload: str, *, choose_alone: bool) -> None:
    """Of nine nodes, of which a third, all in one zone, are empty."""
    nodes = nodes_table(dict.fromkeys(NAMES, (8.0, 32.0)))
    labels = [f'{{"topology.kubernetes.io/zone": "{zone_of(name)}"}}' for name in NAMES]
    running: list[ROW] = [
        (f"old-{name}", "online", 1.0, 1.0, -86_400, 86_400, name)
        for name in NAMES
        if zone_of(name) != "b"
    ]
    coming: list[ROW] = [
        (f"web-{at}", "online", 0.1, 0.1, 3600 + 60 * at, 86_400, None) for at in range(6)
    ]
    rows = [*running, *coming]
    owners = pl.Series([f"shop/Deployment/{row[0]}" for row in running] + [workload] * 6)
    usage = {row[0]: [0.5] * 300 for row in rows}
    pods = pods_table(rows).with_columns(workload=owners)
    zoned_nodes = nodes.with_columns(labels=pl.Series(labels))
    trace = Trace("zones", zoned_nodes, pods, usage_table(usage))
    options = ReplayOptions(start=START + 1800, hours=2.0, candidates=4)
    if not choose_alone:  # and ranks that count for nothing: kube-scheduler's own scores choose
        options = msgspec.structs.replace(options, choose_alone=False, extender_weight=0)
    result = replay(trace, None, options=options)
    names = np.array(result.pods.names)[result.runs.pod]
    web = np.char.startswith(names, "web-")
    placed = [NAMES[row] for row in result.runs.node[web].tolist()]
    assert len(placed) == 6
    per_zone = Counter(map(zone_of, placed))
    if "Job" in workload:
        assert per_zone == {"b": 6}  # where CPU is
    else:
        assert len(set(placed)) == 6
        assert per_zone == dict.fromkeys(ZONES, 2)


def test_a_trace_names_zones() -> None:
    nodes = nodes_table(dict.fromkeys("wxyz", (8.0, 32.0)))
    assert zones(nodes) is None
    labels = ['{"topology.kubernetes.io/zone": "b"}', None, '{"topology.kubernetes.io/zone": "a"}']
    found = zones(nodes.with_columns(labels=np.array([*labels, '{"other": "a"}'], object)))
    assert found is not None
    assert found.tolist() == [1, NO_ZONE, 0, NO_ZONE]
