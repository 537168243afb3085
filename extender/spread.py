"""How kube-scheduler spreads replicas that do not say how: PodTopologySpread's default score.

Follows Kubernetes 1.37 (``pkg/scheduler/framework/plugins/podtopologyspread``). Pods of a
ReplicaSet, ReplicationController or StatefulSet are spread over nodes and zones by constraints of
``ScheduleAnyway``, unless they have constraints of their own.
"""

from __future__ import annotations

import math

import numpy as np

from models.arrays import Floats, Ints

MAX_NODE_SCORE = 100
NO_ZONE = -1

_NODE_SKEW, _ZONE_SKEW = 3, 5
"""``maxSkew`` of `systemDefaultConstraints`."""


def default_spread(rows: Ints, replicas: Ints, zone: Ints | None) -> Ints:
    """How few of a pod's siblings run on each node and in its zone, [K], 0 to 100.

    A node without a zone counts with its own pods only, as there.

    Args:
        rows: [K] rows of the nodes that are compared, K > 0.
        replicas: [S] rows of the nodes on which the siblings run, one for each pod.
        zone: [N] number of each node's zone, `NO_ZONE` for none; None where no node has one.
    """
    on_node = np.bincount(replicas, minlength=int(rows.max()) + 1)
    pods = crowding(on_node.take(rows), len(rows), _NODE_SKEW)
    if zone is not None:
        of = zone.take(rows) - NO_ZONE  # 0 for none
        in_zone = np.bincount(zone.take(replicas) - NO_ZONE, minlength=int(of.max()) + 1)
        zones = int(np.count_nonzero(np.bincount(of)))
        pods += np.where(of == 0, 0.0, crowding(in_zone.take(of), zones, _ZONE_SKEW))
    return emptiness(pods)


def crowding(pods: Ints, domains: int, max_skew: int) -> Floats:
    """Pods in the domain of each node, weighted by how many domains there are (`scoreForCount`)."""
    return np.asarray(pods * math.log(domains + 2) + (max_skew - 1))


def emptiness(crowded: Floats) -> Ints:
    """0 to 100, the less crowded the higher (`NormalizeScore`); not for no nodes at all."""
    whole = np.floor(crowded + 0.5).astype(np.int64)
    high, low = int(whole.max()), int(whole.min())
    if high == 0:
        return np.full(len(whole), MAX_NODE_SCORE)
    score: Ints = MAX_NODE_SCORE * (high + low - whole) // high
    return score
