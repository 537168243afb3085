"""A cluster's nodes in groups, so that memory is bounded by a group's week of usage.

Champion and challenger form them the same way.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from models.arrays import Floats, Floats32, Ints
from models.history import History, build_history

_PODS_PER_GROUP = 4096
"""Pods whose week is unpacked at a time: 33 MB."""


class PlacedPod(Protocol):
    """An online pod: ``namespace/name``, its node, cores requested, its workload."""

    @property
    def key(self) -> str:
        """``namespace/name``."""

    @property
    def node(self) -> str:
        """The node's name."""

    @property
    def request(self) -> float:
        """Cores."""

    @property
    def workload(self) -> str:
        """The top owner."""


P = TypeVar("P", bound=PlacedPod)


@dataclass(frozen=True, slots=True)
class NodeGroup(Generic[P]):
    """Some nodes of a cluster and the pods on them.

    rows: [N] of the nodes among the cluster's; names: of the nodes. pods: P of them; node: [P]
    their nodes, indices into ``names``.
    """

    rows: Ints
    names: list[str]
    pods: list[P]
    node: Ints

    @property
    def keys(self) -> list[str]:
        """Names of the pods."""
        return [pod.key for pod in self.pods]

    @property
    def workloads(self) -> list[str]:
        """Of the pods."""
        return [pod.workload for pod in self.pods]

    def history(self, time: int, usage: Floats32, allocatable: Floats, needs: Floats) -> History:
        """What is known of the group.

        Args:
            time: seconds since the epoch at which usage ends.
            usage: [P, W] cores of the pods.
            allocatable: cores of all nodes of the cluster.
            needs: [P] cores with which new pods count, NaN for their request.
        """
        request = np.array([pod.request for pod in self.pods], np.float64)
        pod = np.arange(len(self.pods))
        limit = allocatable[self.rows]
        return build_history(time, usage, request, pod, self.node, limit).counting(needs)


def groups_for(pods: int) -> int:
    """Into how many groups the nodes of so many pods are split."""
    return max(math.ceil(pods / _PODS_PER_GROUP), 1)


def node_groups(nodes: Sequence[str], pods: Iterable[P], groups: int) -> list[NodeGroup[P]]:
    """Split nodes by name, and with them their pods; pods on other nodes are left out."""
    group = np.array([zlib.crc32(name.encode()) % groups for name in nodes], np.int64)
    row = {name: at for at, name in enumerate(nodes)}
    members: list[list[P]] = [[] for _ in range(groups)]
    for pod in pods:
        at = row.get(pod.node)
        if at is not None:
            members[group[at]].append(pod)
    found = []
    for number, own in enumerate(members):
        rows = np.flatnonzero(group == number)
        index = np.array([row[pod.node] for pod in own], np.int64)
        names = [nodes[int(at)] for at in rows]
        found.append(NodeGroup(rows, names, own, np.searchsorted(rows, index)))
    return found
