"""PodTopologySpread, after Kubernetes 1.37: pods of one selector are spread over domains.

A domain is all nodes with one value of a label. Hard constraints (`DoNotSchedule`) filter, soft
ones (`ScheduleAnyway`) score. These are pods' own constraints; those that kube-scheduler adds where
a pod has none are in `extender.spread`. Of others (`defaultConstraints`) a trace knows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from extender.spread import crowding, emptiness
from models.arrays import Bools, Floats, Ints
from models.constraints import HOSTNAME, LabelSelector, TopologySpread
from shadow.constraints import NodeFacts, PodKind


@dataclass(frozen=True, slots=True)
class Group:
    """Pods that one constraint counts: those of a namespace that a selector means."""

    namespace: str
    selector: LabelSelector
    own: tuple[tuple[str, str], ...]
    """Labels of the constraint's `matchLabelKeys`, with the values that its pod has."""

    def means(self, kind: PodKind) -> bool:
        """Whether pods of a kind are counted."""
        return (
            self.namespace == kind.namespace
            and all(kind.labels.get(key) == value for key, value in self.own)
            and self.selector.matches(kind.labels)
        )


class Spreads:
    """How many pods of each group run on each node.

    Fields:
        present: [N] which nodes are here.
    """

    def __init__(self, nodes: NodeFacts, kinds: tuple[PodKind, ...]) -> None:
        self.present: Bools = np.ones(len(nodes.names), bool)
        self._nodes = nodes
        self._kinds = kinds
        self._counts: dict[str, tuple[Group, Ints]] = {}
        self._domains: dict[str, Ints] = {}
        for kind in kinds:
            for constraint in kind.topology_spread:
                group = _group(kind, constraint)
                if group is not None:
                    zero = np.zeros(len(nodes.names), np.int64)
                    self._counts.setdefault(repr(group), (group, zero))
        self._of: dict[int, list[Ints]] = {}

    def count(self, kind: int, row: int, sign: int) -> None:
        """Count a pod on a node, or no longer."""
        for counts in self._counted(kind):
            counts[row] += sign

    def counted(self, kind: int) -> bool:
        """Whether any group means this kind."""
        return bool(self._counted(kind))

    def counts(self, group: Group | None) -> Ints:
        """[N] pods of a group on each node."""
        if group is None:
            return np.zeros(len(self.present), np.int64)
        return self._counts[repr(group)][1]

    def domains(self, key: str) -> Ints:
        """[N] the domain of each node, numbered from 0; -1 without the label."""
        if key not in self._domains:
            numbers: dict[str, int] = {}
            found = [labels.get(key) for labels in self._nodes.labels]
            codes = [-1 if v is None else numbers.setdefault(v, len(numbers)) for v in found]
            self._domains[key] = np.array(codes, np.int64)
        return self._domains[key]

    def _counted(self, kind: int) -> list[Ints]:
        if kind not in self._of:
            pods = self._kinds[kind]
            self._of[kind] = [counts for g, counts in self._counts.values() if g.means(pods)]
        return self._of[kind]


@dataclass(frozen=True, slots=True)
class _Constraint:
    """One constraint of one kind of pod.

    Fields:
        domain, counts: [N], see `Spreads`.
        eligible: [N] nodes whose pods count: they have all keys and pass the inclusion policies.
        self_match: 1 where the pod itself is counted.
    """

    domain: Ints
    counts: Ints
    eligible: Bools
    max_skew: int
    min_domains: int
    self_match: int
    hostname: bool


class Spread:
    """The constraints of one kind of pod, on the state of the moment."""

    def __init__(self, state: Spreads, kind: PodKind, wants: Bools, tolerates: Bools) -> None:
        self._present = state.present
        self._hard, _ = _constraints(state, kind, "DoNotSchedule", wants, tolerates)
        self._soft, self._labelled = _constraints(state, kind, "ScheduleAnyway", wants, tolerates)

    def fits(self) -> Bools:
        """[N] which nodes keep every hard constraint."""
        fits = np.ones(len(self._present), bool)
        for constraint in self._hard:
            eligible = constraint.eligible & self._present
            domain = constraint.domain
            pods = _by_domain(domain, constraint.counts, eligible)
            here = np.bincount(domain[eligible], minlength=len(pods)) > 0
            least = 0
            if here.sum() >= constraint.min_domains:
                least = int(pods[here].min())
            skew = pods[domain] + constraint.self_match - least
            fits &= (domain >= 0) & (skew <= constraint.max_skew)
        return fits

    def score(self, rows: Ints) -> Ints:
        """0..100 for each feasible node: the fewer pods in its domains, the higher."""
        if not self._soft:
            return np.zeros(len(rows), np.int64)
        labelled = self._labelled.take(rows)
        scored = rows[labelled]
        raw = np.zeros(len(scored))
        for constraint in self._soft:
            raw += self._raw(constraint, scored)
        score = np.zeros(len(rows), np.int64)
        if len(scored):
            score[labelled] = emptiness(raw)
        return score

    def _raw(self, constraint: _Constraint, rows: Ints) -> Floats:
        """Pods in each node's domain, weighted by how many domains there are."""
        if constraint.hostname:
            pods, domains = constraint.counts.take(rows), len(rows)
        else:
            domain = constraint.domain.take(rows)
            eligible = constraint.eligible & self._present
            pods = _by_domain(constraint.domain, constraint.counts, eligible)[domain]
            domains = len(np.unique(domain))
        return crowding(pods, domains, constraint.max_skew)


def _constraints(
    state: Spreads, kind: PodKind, action: str, wants: Bools, tolerates: Bools
) -> tuple[list[_Constraint], Bools]:
    """The constraints with one action, and which nodes have all of their keys."""
    chosen = [c for c in kind.topology_spread if c.when_unsatisfiable == action]
    labelled = np.ones(len(wants), bool)
    for constraint in chosen:
        labelled &= state.domains(constraint.topology_key) >= 0
    found = []
    for constraint in chosen:
        eligible = labelled.copy()
        if constraint.node_affinity_policy == "Honor":
            eligible &= wants
        if constraint.node_taints_policy == "Honor":
            eligible &= tolerates
        group = _group(kind, constraint)
        found.append(
            _Constraint(
                domain=state.domains(constraint.topology_key),
                counts=state.counts(group),
                eligible=eligible,
                max_skew=constraint.max_skew,
                min_domains=constraint.min_domains or 1,
                self_match=int(_self_match(kind, constraint)),
                hostname=constraint.topology_key == HOSTNAME,
            )
        )
    return found, labelled


def _group(kind: PodKind, constraint: TopologySpread) -> Group | None:
    """Whom a constraint counts; None for nobody, as without a selector or with an empty one."""
    own = _own(kind, constraint)
    selector = constraint.label_selector
    if selector is None or (selector.empty and not own):
        return None
    return Group(kind.namespace, selector, own)


def _own(kind: PodKind, constraint: TopologySpread) -> tuple[tuple[str, str], ...]:
    keys = constraint.match_label_keys
    return tuple((key, kind.labels[key]) for key in keys if key in kind.labels)


def _self_match(kind: PodKind, constraint: TopologySpread) -> bool:
    selector = constraint.label_selector
    return selector is not None and selector.matches(kind.labels)


def _by_domain(domain: Ints, counts: Ints, eligible: Bools) -> Ints:
    """Pods in each domain, counted on eligible nodes; one 0 more, for nodes without a domain."""
    size = int(domain.max(initial=-1)) + 2
    sums = np.bincount(domain[eligible], weights=counts[eligible], minlength=size)
    return sums.astype(np.int64)
