"""Nodes that pods have left, for successors that ask to be rebuilt in place.

Image layers and local data are still there. Each node that was left is given to one successor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import msgspec
from msgspec.structs import replace

REBUILD_LABEL = "archimedes.dev/rebuild-in-place"
"""A pod labelled "true" prefers a node that such a pod of its workload has left."""

_SECONDS = 3600.0
"""For how long a node is remembered: kubelets remove unused images sooner or later."""

_WORKLOADS = 4096
"""Workloads that are remembered, those that lost a pod last."""

_NODES = 64
"""Nodes that are remembered of a workload, those that were left last."""


class Left(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node that a pod left, until when it is remembered, and the UID of its successor if any."""

    node: str
    until: float
    successor: str = ""


Record = Mapping[str, tuple[Left, ...]]


class Homes:
    """Per workload, the nodes that its pods ran on until lately; bounded."""

    def __init__(self, record: Record | None = None) -> None:
        """``record``: what an earlier process remembered."""
        self._left: OrderedDict[str, tuple[Left, ...]] = OrderedDict(record or {})

    def leave(self, workload: str, uid: str, node: str, now: float) -> None:
        """A pod is gone from a node; what it had claimed itself is free for others."""
        places = _give(_remembered(self._left.pop(workload, ()), now), uid, None)
        self._left[workload] = (*places, Left(node, now + _SECONDS))[-_NODES:]
        while len(self._left) > _WORKLOADS:
            self._left.popitem(last=False)

    def claim(self, workload: str, uid: str, offered: Callable[[str], bool], now: float) -> str:
        """The node that a new pod should have, or empty; nobody else is given it.

        A pod that asks again keeps its node as long as it is offered.
        """
        places = _remembered(self._left.get(workload, ()), now)
        own = next((left for left in places if left.successor == uid), None)
        if own is not None and offered(own.node):
            return own.node
        # The one that was left last knows most; those claimed by others are theirs.
        for left in reversed(places):
            if not left.successor and offered(left.node):
                self._left[workload] = _give(places, uid, left)
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
        rest = _give((left for left in places if left is not taken), uid, None)
        if rest:
            self._left[workload] = rest
        else:
            del self._left[workload]

    def record(self) -> Record:
        """Everything, as it is now; what comes later does not change it."""
        return dict(self._left)

    def __len__(self) -> int:
        return sum(map(len, self._left.values()))


def _remembered(places: tuple[Left, ...], now: float) -> tuple[Left, ...]:
    return tuple(left for left in places if left.until > now)


def _give(places: Iterable[Left], uid: str, chosen: Left | None) -> tuple[Left, ...]:
    """The places, of which the successor has the chosen one and no other."""
    return tuple(
        replace(left, successor=uid if left is chosen else "")
        if left is chosen or left.successor == uid
        else left
        for left in places
    )
