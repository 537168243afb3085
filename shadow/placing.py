"""kube-scheduler's filters and scores for pods that may not, or would rather not, run anywhere.

Follows Kubernetes 1.37: TaintToleration, NodeUnschedulable, NodeAffinity and PodTopologySpread with
their default weights. Of one kind of pod all but the spread is the same at any time, so it is
computed once; the spread counts pods that come and go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from extender.spread import MAX_NODE_SCORE
from models.arrays import Bools, Ints
from models.constraints import UNSCHEDULABLE, Taint
from shadow.constraints import Constraints, NodeFacts, PodKind
from shadow.spread import Spread, Spreads

TAINT_WEIGHT, AFFINITY_WEIGHT, SPREAD_WEIGHT = 3, 2, 2


@dataclass(frozen=True, slots=True)
class Standing:
    """What one kind of pod finds on N nodes, whatever runs there.

    Fields:
        fits: [N] where it may run. wants: [N] which nodes meet its selector and affinity.
        tolerates: [N] which nodes have no taint that keeps it away.
        disliked: [N] taints of effect PreferNoSchedule that it does not tolerate.
        liked: [N] weights of the preferred terms that the node meets.
    """

    fits: Bools
    wants: Bools
    tolerates: Bools
    disliked: Ints
    liked: Ints


class Placing:
    """Where each kind of pod may run now, and what nodes score; all that is mutable of it.

    Kinds are indices into `Constraints.kinds`, rows are nodes.
    """

    def __init__(self, constraints: Constraints) -> None:
        self._kinds = constraints.kinds
        self._nodes = constraints.nodes
        self._standing: dict[int, Standing] = {}
        self._spreads = Spreads(constraints.nodes, constraints.kinds)
        self._spread: dict[int, Spread] = {}

    def fits(self, kind: int) -> Bools:
        """[N] which nodes pass the filters."""
        standing, spread = self.standing(kind), self._spread_of(kind)
        return standing.fits if spread is None else standing.fits & spread.fits()

    def score(self, kind: int, rows: Ints) -> Ints:
        """What feasible nodes score, weighted; a plugin that scores all alike is left out."""
        standing, spread = self.standing(kind), self._spread_of(kind)
        score = np.zeros(len(rows), np.int64)
        disliked = standing.disliked.take(rows)
        if disliked.any():
            score -= TAINT_WEIGHT * _normalised(disliked)
        liked = standing.liked.take(rows)
        if liked.any():
            score += AFFINITY_WEIGHT * _normalised(liked)
        if spread is not None:
            score += SPREAD_WEIGHT * spread.score(rows)
        return score

    def add(self, kind: int, row: int) -> None:
        """Count a pod on a node."""
        self._spreads.count(kind, row, 1)

    def remove(self, kind: int, row: int) -> None:
        """Stop counting a pod on a node."""
        self._spreads.count(kind, row, -1)

    def present(self, row: int, *, here: bool) -> None:
        """A node joins or leaves; its domain counts only while it is here."""
        self._spreads.present[row] = here

    def spreads(self, kind: int) -> bool:
        """Whether other pods' places decide where this kind may run."""
        return bool(self._kinds[kind].topology_spread)

    def counted(self, kind: int) -> bool:
        """Whether where this kind runs decides where other pods may."""
        return self._spreads.counted(kind)

    def standing(self, kind: int) -> Standing:
        """What holds for a kind at any time."""
        found = self._standing.get(kind)
        if found is None:
            found = self._standing[kind] = _standing(self._nodes, self._kinds[kind])
        return found

    def _spread_of(self, kind: int) -> Spread | None:
        if not self._kinds[kind].topology_spread:
            return None
        found = self._spread.get(kind)
        if found is None:
            standing = self.standing(kind)
            found = Spread(self._spreads, self._kinds[kind], standing.wants, standing.tolerates)
            self._spread[kind] = found
        return found


def _standing(nodes: NodeFacts, kind: PodKind) -> Standing:
    """Nodes share taints, so each different set of them is looked at once."""
    unschedulable = Taint(UNSCHEDULABLE, "NoSchedule")
    hard = {taints: _untolerated(kind, taints, soft=False) for taints in set(nodes.taints)}
    soft = {taints: _untolerated(kind, taints, soft=True) for taints in set(nodes.taints)}
    tolerates = np.array([hard[taints] == 0 for taints in nodes.taints], bool)
    wants = np.array([_wants(nodes, kind, row) for row in range(len(nodes.names))], bool)
    fits = tolerates & wants
    if not any(toleration.tolerates(unschedulable) for toleration in kind.tolerations):
        fits &= ~nodes.unschedulable
    return Standing(
        fits=fits,
        wants=wants,
        tolerates=tolerates,
        disliked=np.array([soft[taints] for taints in nodes.taints], np.int64),
        liked=_liked(nodes, kind),
    )


def _untolerated(kind: PodKind, taints: Sequence[Taint], *, soft: bool) -> int:
    """How many taints a kind of pod does not tolerate: those that keep it away, or the others."""
    return sum(
        (taint.effect == "PreferNoSchedule") == soft
        and not any(toleration.tolerates(taint) for toleration in kind.tolerations)
        for taint in taints
    )


def _wants(nodes: NodeFacts, kind: PodKind, row: int) -> bool:
    """Whether a node meets a kind's selector and required affinity."""
    labels, required = nodes.labels[row], kind.node_affinity.required
    if any(labels.get(key) != value for key, value in kind.node_selector.items()):
        return False
    return required is None or any(
        term.matches(nodes.names[row], labels) for term in required.node_selector_terms
    )


def _liked(nodes: NodeFacts, kind: PodKind) -> Ints:
    preferred = kind.node_affinity.preferred
    if not preferred:
        return np.zeros(len(nodes.names), np.int64)
    return np.array(
        [
            sum(p.weight for p in preferred if p.preference.matches(name, labels))
            for name, labels in zip(nodes.names, nodes.labels, strict=True)
        ],
        np.int64,
    )


def _normalised(count: Ints) -> Ints:
    """`DefaultNormalizeScore`: the highest becomes 100."""
    scaled: Ints = MAX_NODE_SCORE * count // count.max()
    return scaled
