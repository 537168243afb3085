"""A cluster, usage and a model in memory: the same ports without Kubernetes, for demo and tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
from msgspec.structs import replace

from extender.champion import ModelStatus
from extender.ports import ClusterError, Feed, PodEvent
from models.grid import UsageGrid
from models.kube.types import (
    ConfigMap,
    FinishedPod,
    Metadata,
    Node,
    NodeStatus,
    Pod,
    PodSpec,
)
from models.model import Model
from models.usage_source import UsageBlock


class MemoryCluster:
    """Nodes and pods as the API server would hold them; changes reach the feeds at once."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.pods: dict[tuple[str, str], Pod] = {}
        self.events: list[PodEvent] = []
        self._version = 0
        self._node_feed: Feed[Node] | None = None
        self._pod_feed: Feed[Pod] | None = None
        self.config_map: ConfigMap | None = None
        self._config_map_feed: Feed[ConfigMap] | None = None

    async def follow(self, nodes: Feed[Node], pods: Feed[Pod]) -> None:
        """Report what exists and every change, until cancelled."""
        self.attach(nodes, pods)
        await asyncio.Event().wait()

    async def follow_succeeded(self, pods: Feed[FinishedPod]) -> None:
        """Pods end here without a trace; report none, until cancelled."""
        pods.retain(())
        await asyncio.Event().wait()

    async def follow_config_map(self, namespace: str, name: str, feed: Feed[ConfigMap]) -> None:
        """Report the one ConfigMap and every change, until cancelled."""
        metadata = Metadata(name=name, namespace=namespace)
        found = self.config_map
        feed.retain(() if found is None else (feed.put(replace(found, metadata=metadata)),))
        self._config_map_feed = feed
        await asyncio.Event().wait()

    def put_config_map(self, data: Mapping[str, str] | None) -> None:
        """Write the ConfigMap, or delete it."""
        before, self.config_map = (
            self.config_map,
            None if data is None else ConfigMap(data={**data}),
        )
        if self._config_map_feed is not None:
            if self.config_map is not None:
                self._config_map_feed.put(self.config_map)
            elif before is not None:
                self._config_map_feed.remove(before)

    def attach(self, nodes: Feed[Node], pods: Feed[Pod]) -> None:
        """Report what exists now, and from then on every change as it is made."""
        nodes.retain({nodes.put(node) for node in self.nodes.values()})
        pods.retain({pods.put(pod) for pod in self.pods.values()})
        self._node_feed, self._pod_feed = nodes, pods

    def put_node(self, node: Node) -> None:
        """Add or replace a node."""
        metadata = self._stamp(node.metadata)
        node = replace(node, metadata=metadata)
        self.nodes[metadata.name or ""] = node
        if self._node_feed is not None:
            self._node_feed.put(node)

    def delete_node(self, name: str) -> None:
        """Remove a node; its pods stay, as in a real cluster until they are collected."""
        node = self.nodes.pop(name)
        if self._node_feed is not None:
            self._node_feed.remove(node)

    def put_pod(self, pod: Pod) -> None:
        """Add or replace a pod."""
        metadata = self._stamp(pod.metadata)
        pod = replace(pod, metadata=metadata)
        self.pods[metadata.namespace or "default", metadata.name or ""] = pod
        if self._pod_feed is not None:
            self._pod_feed.put(pod)

    def delete_pod(self, namespace: str, name: str) -> None:
        """Remove a pod."""
        pod = self.pods.pop((namespace, name))
        if self._pod_feed is not None:
            self._pod_feed.remove(pod)

    def hear(self) -> None:
        """What a bookmark does: show that the connection is alive."""
        for feed in (self._node_feed, self._pod_feed):
            if feed is not None:
                feed.heard()

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> None:
        """Bind the pod with this UID. Raises ClusterError as an API server would."""
        pod = self.pods.get((namespace, name))
        if pod is None:
            raise ClusterError(404, f'pods "{name}" not found')
        spec = pod.spec or PodSpec()
        if uid and uid != (pod.metadata or Metadata()).uid:
            raise ClusterError(409, "the UID in the precondition does not match")
        if spec.node_name:
            raise ClusterError(409, f"pod {name} is already assigned to node {spec.node_name}")
        self.put_pod(replace(pod, spec=replace(spec, node_name=node)))

    async def read_pod(self, namespace: str, name: str) -> Pod | None:
        """The pod as it is now, None where there is none."""
        return self.pods.get((namespace, name))

    async def advertise(self, node: str, resource: str, amount: int) -> None:
        """Write an extended resource into a node's status. Raises ClusterError."""
        found = self.nodes.get(node)
        if found is None:
            raise ClusterError(404, f'nodes "{node}" not found')
        status = found.status or NodeStatus()
        capacity = {**(status.capacity or {}), resource: str(amount)}
        allocatable = {**(status.allocatable or {}), resource: str(amount)}
        status = NodeStatus(allocatable=allocatable, capacity=capacity)
        self.put_node(replace(found, status=status))

    async def write_event(self, event: PodEvent) -> None:
        """Keep an event on a pod."""
        self.events.append(event)

    async def close(self) -> None:
        """Nothing is open."""

    def _stamp(self, metadata: Metadata | None) -> Metadata:
        self._version += 1
        return replace(metadata or Metadata(), resource_version=str(self._version))


class GridUsage:
    """Usage from a grid, such as a trace's, as Prometheus would answer it.

    The grid's pods are named ``namespace/name``. Nothing later than what is asked for is seen, so
    a grid may hold the future.
    """

    def __init__(self, grid: UsageGrid) -> None:
        self._grid = grid

    async def read(self, start: int, windows: int) -> UsageBlock:
        """The windows from ``start`` on, of all pods."""
        first = self._grid.column(start)
        inside = np.arange(max(first, 0), min(first + windows, self._grid.windows))
        cpu = np.full((len(self._grid.pods), windows), np.nan, np.float32)
        if len(inside):
            cpu[:, inside - first] = self._grid.cpu[:, inside]
        return UsageBlock(start, self._grid.pods, cpu)

    async def close(self) -> None:
        """Nothing is open."""


class FixedModel:
    """A model that is handed over instead of being looked up; set ``next`` to replace it."""

    def __init__(self, model: Model | None) -> None:
        self._model = model
        self.next: Model | None = None

    @property
    def status(self) -> ModelStatus:
        """What serves."""
        if self._model is None:
            return ModelStatus("none", "", "no model was given")
        return ModelStatus("champion", self._model.version)

    async def initial(self) -> tuple[Model | None, ModelStatus]:
        """The model that was given."""
        return self._model, self.status

    async def poll(self) -> Model | None:
        """The model in ``next``, once."""
        found, self.next = self.next, None
        self._model = found or self._model
        return found
