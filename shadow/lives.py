"""Nodes and online pods as one recorded refresh after another showed them, and what they used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from extender.recording import OnlinePod, Refresh
from models.arrays import Floats, Floats32, Ints
from models.grid import WINDOW


@dataclass(slots=True)
class NodeLife:
    """A node while it is there, in seconds since the epoch.

    row: its place in `Lives.nodes`. cpu: allocatable cores, the newest. start: -inf where it was
    there from the first. end: inf while it is still there.
    """

    name: str
    row: int
    cpu: float
    start: float
    end: float = math.inf


@dataclass(slots=True)
class PodLife:
    """An online pod on one node, or on none yet (None), in seconds since the epoch; as `NodeLife`.

    row: its place in `Lives.pods`.
    """

    pod: OnlinePod
    node: NodeLife | None
    row: int
    start: float
    end: float = math.inf


@dataclass(slots=True)
class Lives:
    """All nodes and pods that refreshes have shown, in the order in which they came.

    Fields:
        offline: keys of pods that are not online, whatever CPU they request.
        time: of the newest refresh; seconds since the epoch.
        usage: for each window the pods that used something: [K] rows, its start, [K] cores.
    """

    offline: Collection[str]
    time: float = -math.inf
    nodes: list[NodeLife] = field(default_factory=list)
    pods: list[PodLife] = field(default_factory=list)
    usage: list[tuple[Ints, int, Floats32]] = field(default_factory=list)
    _here: dict[str, NodeLife] = field(default_factory=dict)
    _alive: dict[str, PodLife] = field(default_factory=dict)
    _usage_end: int = 0

    def see(self, refresh: Refresh) -> None:
        """Take in the next refresh; one that a new segment repeats changes nothing."""
        self._see_nodes(refresh)
        self._see_pods(refresh)
        if refresh.usage is not None and refresh.usage_end > self._usage_end:
            self._share(refresh.nodes, refresh.usage, refresh.usage_end)
        self.time = refresh.time

    def _see_nodes(self, refresh: Refresh) -> None:
        since = refresh.time if self.nodes else -math.inf
        listed = dict(zip(refresh.nodes, refresh.allocatable.tolist(), strict=True))
        usable = {name: cpu for name, cpu in listed.items() if cpu > 0}
        for name, cpu in usable.items():
            if name not in self._here:
                self._here[name] = NodeLife(name, len(self.nodes), cpu, since)
                self.nodes.append(self._here[name])
            self._here[name].cpu = cpu
        for name in self._here.keys() - usable.keys():
            self._here.pop(name).end = refresh.time

    def _see_pods(self, refresh: Refresh) -> None:
        now: dict[str, PodLife] = {}
        for key, pod in refresh.pods.items():
            node = self._here.get(pod.node)
            if key in self.offline or (node is None and pod.node):
                continue  # a pod outlives its node only until it is collected
            life = self._alive.get(key)
            if life is None or not _goes_on(life, pod, node):
                life = PodLife(pod, None, len(self.pods), refresh.time)
                self.pods.append(life)
            if life.node is None and node is not None:
                life.start = max(min(pod.started, refresh.time), node.start)
            life.pod, life.node = pod, node
            now[key] = life
        for key, life in self._alive.items():
            if now.get(key) is not life:
                life.end = refresh.time
        self._alive = now

    def _share(self, nodes: Sequence[str], used: Floats, end: int) -> None:
        """Share what nodes used in a window among the pods that were there by its end."""
        place = {name: at for at, name in enumerate(nodes)}
        there = [life for life in self._alive.values() if life.node and life.start < end]
        node = np.array([place[life.pod.node] for life in there], np.int64)
        request = np.array([life.pod.request for life in there], np.float64)
        cores = shared(used, node, request).astype(np.float32)
        known = np.flatnonzero(np.isfinite(cores))
        if len(known):
            rows = np.array([life.row for life in there], np.int64)[known]
            self.usage.append((rows, end - WINDOW, cores[known]))
            self._usage_end = end


def shared(used: Floats, node: Ints, request: Floats) -> Floats:
    """What P pods used of what their nodes used, in proportion to requests.

    Where no pod of a node requests anything, all have the same.

    Args:
        used: [N] cores. node: [P] rows of it. request: [P] cores.

    Returns:
        [P] cores; those of a node's pods add up to what it used.
    """
    requested = np.bincount(node, request, len(used))
    weight = np.where(requested[node] > 0, request, 1.0)
    shares: Floats = used[node] * weight / np.bincount(node, weight, len(used))[node]
    return shares


def numbered(names: Sequence[str]) -> list[str]:
    """Each name once: of several that are equal, all but the last get a number, as in NAME#1."""
    left, count = Counter(names), Counter[str]()
    found = []
    for name in names:
        count[name] += 1
        found.append(name if count[name] == left[name] else f"{name}#{count[name]}")
    return found


def _goes_on(life: PodLife, pod: OnlinePod, node: NodeLife | None) -> bool:
    """Whether it is the same pod, on the same node or bound only now; a resize changes nothing."""
    if life.node is None:
        return True
    return life.node is node and life.pod.started in (pod.started, math.inf)
