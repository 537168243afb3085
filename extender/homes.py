"""Nodes that pods have left, for successors that ask to be rebuilt in place.

Image layers and local data are still there. Each node that was left is given to one successor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

REBUILD_LABEL = "archimedes.dev/rebuild-in-place"
"""A pod labelled "true" prefers a node that a pod of its workload has left."""

_SECONDS = 3600.0
"""For how long a node is remembered: kubelets remove unused images sooner or later."""

_WORKLOADS = 4096
"""Workloads that are remembered, those that lost a pod last."""

_NODES = 64
"""Nodes that are remembered of a workload, those that were left last."""


@dataclass(slots=True)
class _Left:
    """A node that a pod left, until when it is remembered, and the UID of its successor if any."""

    node: str
    until: float
    successor: str = ""


class Homes:
    """Per workload, the nodes that its pods ran on until lately; bounded."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, list[_Left]] = OrderedDict()

    def leave(self, workload: str, uid: str, node: str, now: float) -> None:
        """A pod is gone from a node; what it had claimed itself is free for others."""
        places = [left for left in self._left.pop(workload, []) if left.until > now]
        for left in places:
            if left.successor == uid:
                left.successor = ""
        self._left[workload] = [*places, _Left(node, now + _SECONDS)][-_NODES:]
        if len(self._left) > _WORKLOADS:
            self._left.popitem(last=False)

    def claim(self, workload: str, uid: str, offered: Callable[[str], bool], now: float) -> str:
        """The node that a new pod should have, or empty; nobody else is given it.

        A pod that asks again keeps its node as long as it is offered.
        """
        places = [left for left in self._left.get(workload, ()) if left.until > now]
        own = next((left for left in places if left.successor == uid), None)
        if own is not None and offered(own.node):
            return own.node
        # The one that was left last knows most; those claimed by others are theirs.
        for left in reversed(places):
            if not left.successor and offered(left.node):
                if own is not None:
                    own.successor = ""
                left.successor = uid
                return left.node
        return ""

    def settle(self, workload: str, uid: str, node: str) -> None:
        """A pod is bound: the node that it took is given to nobody else, what it left alone is."""
        places = self._left.get(workload)
        if places is None:
            return
        taken = next(
            (left for left in places if left.node == node and left.successor in ("", uid)), None
        )
        if taken is not None:
            places.remove(taken)
        for left in places:
            if left.successor == uid:
                left.successor = ""
        if not places:
            del self._left[workload]

    def __len__(self) -> int:
        return sum(map(len, self._left.values()))
