"""Taints, affinity and spread against hand arithmetic and a slow copy of kube-scheduler's rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.constraints import HOSTNAME, NODE_JSON, POD_JSON, TopologySpread
from shadow.constraints import PLAIN, Constraints, NodeFacts, PodKind
from shadow.placing import Placing


def facts(*nodes: Mapping[str, Any]) -> NodeFacts:
    """Nodes n0, n1, ... of labels, taints and unschedulable, as a trace has them."""
    names = tuple(f"n{row}" for row in range(len(nodes)))
    return NodeFacts(
        names=names,
        labels=tuple(
            {HOSTNAME: name, **node.get("labels", {})}
            for name, node in zip(names, nodes, strict=True)
        ),
        taints=tuple(msgspec.convert(n.get("taints", []), NODE_JSON["taints"]) for n in nodes),
        unschedulable=np.array([node.get("unschedulable", False) for node in nodes], bool),
    )


def kind(**wants: Any) -> PodKind:  # noqa: ANN401  # JSON of Kubernetes' form
    plain = {name: wants.pop(name) for name in ("namespace",) if name in wants}
    decoded = {name: msgspec.convert(value, POD_JSON[name]) for name, value in wants.items()}
    return PodKind(**plain, **decoded)


def placing(nodes: NodeFacts, *kinds: PodKind) -> Placing:
    """Kinds are numbered from 1 on."""
    return Placing(Constraints(nodes, (PLAIN, *kinds)))


def taint(effect: str, key: str = "gpu", value: str = "yes") -> dict[str, str]:
    return {"key": key, "value": value, "effect": effect}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, "values": list(values)}


def required(*terms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    chosen = [{"matchExpressions": list(term)} for term in terms]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": chosen}}


@pytest.mark.parametrize(
    ("toleration", "fits"),
    [
        (None, [False, False, True]),
        ({"key": "gpu", "operator": "Exists"}, [True, True, True]),
        ({"operator": "Exists"}, [True, True, True]),  # no key: every taint
        ({"key": "gpu", "value": "yes"}, [True, True, True]),  # no operator: Equal
        ({"key": "gpu", "value": "no"}, [False, False, True]),
        ({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}, [True, False, True]),
        ({"key": "disk", "operator": "Exists"}, [False, False, True]),
    ],
)
def test_a_taint_keeps_away_whoever_does_not_tolerate_it(
    toleration: dict[str, str] | None, fits: list[bool]
) -> None:
    nodes = facts(
        {"taints": [taint("NoSchedule")]},
        {"taints": [taint("NoExecute")]},
        {"taints": [taint("PreferNoSchedule")]},
    )
    own = kind(tolerations=[] if toleration is None else [toleration])
    assert placing(nodes, own).fits(1).tolist() == fits


def test_an_unschedulable_node_takes_only_those_that_tolerate_it() -> None:
    nodes = facts({"unschedulable": True}, {})
    key = "node.kubernetes.io/unschedulable"
    tolerant = kind(tolerations=[{"key": key, "operator": "Exists", "effect": "NoSchedule"}])
    found = placing(nodes, tolerant)
    assert found.fits(0).tolist() == [False, True]
    assert found.fits(1).tolist() == [True, True]


@pytest.mark.parametrize(
    ("requirement", "fits"),
    [
        (("disk", "In", "fast", "huge"), [True, False, False]),
        (("disk", "NotIn", "fast"), [False, True, True]),  # also where the label is absent
        (("disk", "Exists"), [True, True, False]),
        (("disk", "DoesNotExist"), [False, False, True]),
        (("rank", "Gt", "7"), [False, True, False]),  # 30 > 7 as numbers; "x" is none
        (("rank", "Lt", "8"), [True, False, False]),
    ],
)
def test_operators(requirement: tuple[str, ...], fits: list[bool]) -> None:
    nodes = facts(
        {"labels": {"disk": "fast", "rank": "7"}},
        {"labels": {"disk": "slow", "rank": "30"}},
        {"labels": {"rank": "x"}},
    )
    own = kind(node_affinity=required([expression(*requirement)]))
    assert placing(nodes, own).fits(1).tolist() == fits


def test_terms_are_ored_requirements_anded_and_an_empty_term_is_met_by_none() -> None:
    nodes = facts({"labels": {"a": "1", "b": "1"}}, {"labels": {"a": "1"}}, {"labels": {"c": "1"}})
    both = [expression("a", "Exists"), expression("b", "Exists")]
    own = kind(node_affinity=required(both, [expression("c", "Exists")], []))
    assert placing(nodes, own).fits(1).tolist() == [True, False, True]
    none = kind(node_affinity=required([]))
    assert not placing(nodes, none).fits(1).any()
    named = {"matchFields": [expression("metadata.name", "In", "n1")]}
    chosen = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [named]}}
    assert placing(nodes, kind(node_affinity=chosen)).fits(1).tolist() == [False, True, False]


def test_selector_and_affinity_must_both_be_met() -> None:
    nodes = facts({"labels": {"a": "1", "b": "1"}}, {"labels": {"a": "1"}}, {"labels": {"b": "1"}})
    own = kind(node_selector={"a": "1"}, node_affinity=required([expression("b", "Exists")]))
    assert placing(nodes, own).fits(1).tolist() == [True, False, False]


def test_disliked_taints_and_liked_labels_score_in_proportion() -> None:
    nodes = facts(
        {"taints": [taint("PreferNoSchedule"), taint("PreferNoSchedule", "old")]},
        {"taints": [taint("PreferNoSchedule")], "labels": {"zone": "a"}},
        {"labels": {"zone": "a", "disk": "fast"}},
    )
    preferred = [
        {"weight": 30, "preference": {"matchExpressions": [expression("zone", "In", "a")]}},
        {"weight": 60, "preference": {"matchExpressions": [expression("disk", "In", "fast")]}},
    ]
    own = kind(node_affinity={"preferredDuringSchedulingIgnoredDuringExecution": preferred})
    score = placing(nodes, own).score(1, np.arange(3))
    # taints 3 x (100 x 2 / 2, 100 x 1 / 2, 0) to lose, affinity 2 x (0, 100 x 30 // 90, 100)
    assert score.tolist() == [-300, -150 + 66, 200]
    # of the first two alone, the affinity of the second is the highest: 2 x 100
    assert placing(nodes, own).score(1, np.arange(2)).tolist() == [-300, -150 + 200]


def spread(**wants: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON of Kubernetes' form
    return {
        "maxSkew": 1,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    } | wants


def test_a_skew_is_never_exceeded() -> None:
    nodes = facts(
        {"labels": {"zone": "a"}}, {"labels": {"zone": "a"}}, {"labels": {"zone": "b"}}, {}
    )
    own = kind(labels={"app": "web"}, topology_spread=[spread()])
    other = kind(labels={"app": "db"})
    elsewhere = kind(namespace="other", labels={"app": "web"})
    found = placing(nodes, own, other, elsewhere)
    assert found.fits(1).tolist() == [True, True, True, False]  # no zone, no place
    found.add(1, 0)
    assert found.fits(1).tolist() == [False, False, True, False]  # a has 1 + 1, b has 0
    found.add(2, 2)  # pods of another label or namespace do not count
    found.add(3, 2)
    assert found.fits(1).tolist() == [False, False, True, False]
    found.add(1, 2)
    assert found.fits(1).tolist() == [True, True, True, False]
    found.add(1, 1)
    found.present(2, here=False)  # the only zone that is left has the least
    assert found.fits(1).tolist()[:2] == [True, True]
    found.present(2, here=True)
    found.remove(1, 1)
    assert found.fits(1).tolist() == [True, True, True, False]


def test_with_fewer_domains_than_wanted_the_least_is_none() -> None:
    nodes = facts({"labels": {"zone": "a"}}, {"labels": {"zone": "b"}})
    own = kind(labels={"app": "web"}, topology_spread=[spread(minDomains=3)])
    found = placing(nodes, own)
    for row in (0, 1):
        assert found.fits(1)[row]
        found.add(1, row)
    assert not found.fits(1).any()  # 1 + 1 - 0 > 1


def test_a_soft_spread_scores_by_hand() -> None:
    nodes = facts(*({"labels": {"zone": zone}} for zone in "aab"), {})
    own = kind(labels={"app": "web"}, topology_spread=[spread(whenUnsatisfiable="ScheduleAnyway")])
    found = placing(nodes, own)
    for _ in range(3):
        found.add(1, 0)
    found.add(1, 2)
    # 2 zones: weight log(4) = 1.386; a: 3 x 1.386 = 4.16 -> 4, b: 1.386 -> 1
    # 100 x (4 + 1 - 4) // 4 = 25 and 100 x (4 + 1 - 1) // 4 = 100, twice; 0 without a zone
    assert found.score(1, np.arange(4)).tolist() == [50, 50, 200, 0]


zones = st.sampled_from(["a", "b", "c", None])


@st.composite
def constraint(draw: st.DrawFn) -> dict[str, Any]:
    selector = draw(st.sampled_from([{"matchLabels": {"app": "web"}}, {}, None]))
    return spread(
        maxSkew=draw(st.integers(1, 3)),
        topologyKey=draw(st.sampled_from(["zone", HOSTNAME])),
        whenUnsatisfiable=draw(st.sampled_from(["DoNotSchedule", "ScheduleAnyway"])),
        labelSelector=selector,
        minDomains=draw(st.sampled_from([None, 2])),
        nodeAffinityPolicy=draw(st.sampled_from(["Honor", "Ignore"])),
        nodeTaintsPolicy=draw(st.sampled_from(["Honor", "Ignore"])),
    )


@given(
    where=st.lists(st.tuples(zones, st.booleans(), st.booleans()), min_size=1, max_size=6),
    wanted=st.lists(constraint(), min_size=1, max_size=3),
    pods=st.lists(st.integers(0, 5), max_size=12),
)
def test_spread_equals_the_slow_rules(
    where: list[tuple[str | None, bool, bool]], wanted: list[dict[str, Any]], pods: list[int]
) -> None:
    nodes = facts(
        *(
            {
                "labels": ({"zone": zone} if zone else {}) | ({"disk": "fast"} if fast else {}),
                "taints": [taint("NoSchedule")] if bad else [],
            }
            for zone, fast, bad in where
        )
    )
    own = kind(labels={"app": "web"}, node_selector={"disk": "fast"}, topology_spread=wanted)
    found = placing(nodes, own)
    here = [0] * len(where)
    for row in pods:
        found.add(1, row % len(where))
        here[row % len(where)] += 1
    slow = Slow(nodes, own, here)
    standing = found.standing(1)
    expected = [bool(standing.fits[row]) and slow.fits(row) for row in range(len(where))]
    assert found.fits(1).tolist() == expected
    rows = np.arange(len(where))
    assert found.score(1, rows).tolist() == [2 * score for score in slow.scores()]


class Slow:
    """PodTopologySpread, one node and one constraint after the other."""

    def __init__(self, nodes: NodeFacts, pod: PodKind, here: list[int]) -> None:
        self.nodes, self.pod, self.here = nodes, pod, here

    def of(self, action: str) -> list[TopologySpread]:
        return [c for c in self.pod.topology_spread if c.when_unsatisfiable == action]

    def labelled(self, row: int, wanted: list[TopologySpread]) -> bool:
        return all(c.topology_key in self.nodes.labels[row] for c in wanted)

    def included(self, row: int, c: TopologySpread) -> bool:
        affine = c.node_affinity_policy == "Ignore" or "disk" in self.nodes.labels[row]
        return affine and (c.node_taints_policy == "Ignore" or not self.nodes.taints[row])

    def pods(self, row: int, c: TopologySpread) -> int:
        """Only a selector that requires something counts pods: all of them are `web`."""
        return self.here[row] if c.label_selector is not None and not c.label_selector.empty else 0

    def sums(self, c: TopologySpread, wanted: list[TopologySpread]) -> dict[str, int]:
        sums: dict[str, int] = {}
        for row, labels in enumerate(self.nodes.labels):
            if self.labelled(row, wanted) and self.included(row, c):
                value = labels[c.topology_key]
                sums[value] = sums.get(value, 0) + self.pods(row, c)
        return sums

    def fits(self, row: int) -> bool:
        hard = self.of("DoNotSchedule")
        for c in hard:
            sums, value = self.sums(c, hard), self.nodes.labels[row].get(c.topology_key)
            if value is None:
                return False
            least = 0 if len(sums) < (c.min_domains or 1) else min(sums.values())
            own = 0 if c.label_selector is None else 1
            if sums.get(value, 0) + own - least > c.max_skew:
                return False
        return True

    def scores(self) -> list[int]:
        soft, labels = self.of("ScheduleAnyway"), self.nodes.labels
        if not soft:
            return [0] * len(labels)
        rows = [row for row in range(len(labels)) if self.labelled(row, soft)]
        raw = {}
        for row in rows:
            score = 0.0
            for c in soft:
                value = labels[row][c.topology_key]
                domains = len({labels[r][c.topology_key] for r in rows})
                count = self.sums(c, soft).get(value, 0)
                if c.topology_key == HOSTNAME:
                    domains, count = len(rows), self.pods(row, c)
                score += count * math.log(domains + 2) + c.max_skew - 1
            raw[row] = math.floor(score + 0.5)
        if not raw:
            return [0] * len(labels)
        high, low = max(raw.values()), min(raw.values())
        return [
            0 if row not in raw else 100 if high == 0 else 100 * (high + low - raw[row]) // high
            for row in range(len(labels))
        ]
