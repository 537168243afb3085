"""A cluster behind an API server: what `extender.ports.Cluster` asks for, in its requests."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote

import msgspec
import numpy as np

from extender.kube import KubeApi
from extender.ports import ClusterError, Feed, PodEvent
from extender.reflector import Reflector, Watched
from extender.telemetry import Telemetry
from models.kube.types import ConfigMap, FinishedPod, Node, Pod

UNFINISHED = "status.phase!=Succeeded,status.phase!=Failed"
"""Finished pods use nothing; to this watch, a pod that finishes is deleted."""

SUCCEEDED = "status.phase=Succeeded"

_REPORTER = "archimedes.dev/extender"
_INSTANCE = f"archimedes-extender-{socket.gethostname()}"[:128]
"""Which extender wrote an event; the API server takes 128 characters."""

_PODS = "/api/v1/pods"
T = TypeVar("T", bound=Watched)
_pod = msgspec.json.Decoder(Pod)


class KubeCluster:
    """Nodes and pods of an API server."""

    def __init__(self, api: KubeApi, telemetry: Telemetry, rng: np.random.Generator) -> None:
        self._api = api
        self._telemetry = telemetry
        self._rng = rng

    async def follow(self, nodes: Feed[Node], pods: Feed[Pod]) -> None:
        """Report what exists and every change, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reflect(Node, "/api/v1/nodes", "", nodes))
            group.create_task(self._reflect(Pod, _PODS, UNFINISHED, pods))

    async def follow_succeeded(self, pods: Feed[FinishedPod]) -> None:
        """Report the pods that have succeeded, and each further one, for ever."""
        await self._reflect(FinishedPod, _PODS, SUCCEEDED, pods)

    async def follow_config_map(self, namespace: str, name: str, feed: Feed[ConfigMap]) -> None:
        """Report one ConfigMap and every change to it, for ever."""
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/configmaps"
        await self._reflect(ConfigMap, path, f"metadata.name={name}", feed)

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> None:
        """Bind the pod with this UID. Raises ClusterError."""
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await self._api.call("POST", f"{_pod_path(namespace, name)}/binding", body=binding)

    async def read_pod(self, namespace: str, name: str) -> Pod | None:
        """The pod as it is now, None where there is none. Raises ClusterError."""
        try:
            return _pod.decode(await self._api.call("GET", _pod_path(namespace, name)))
        except ClusterError as e:
            if e.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        except (ValueError, RecursionError) as e:
            raise ClusterError(0, "the API server's answer is no pod") from e

    async def advertise(self, node: str, resource: str, amount: int) -> None:
        """Write an extended resource into a node's capacity and allocatable. Raises ClusterError.

        A kubelet copies the capacity to allocatable itself, a moment later; nodes without one, such
        as kwok's, do not.
        """
        amounts = {resource: str(amount)}
        await self._api.call(
            "PATCH",
            f"/api/v1/nodes/{quote(node, safe='')}/status",
            body={"status": {"capacity": amounts, "allocatable": amounts}},
            content_type="application/merge-patch+json",
        )

    async def write_event(self, event: PodEvent) -> None:
        """Create an event on a pod. Raises ClusterError."""
        await self._api.call(
            "POST",
            f"/apis/events.k8s.io/v1/namespaces/{quote(event.namespace, safe='')}/events",
            body={
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {
                    # A name's 253 characters would leave no room for what is appended.
                    "generateName": f"{event.name[:200].rstrip('.-')}-",
                    "namespace": event.namespace,
                },
                "eventTime": _micro_time(event.time),
                "reportingController": _REPORTER,
                "reportingInstance": _INSTANCE,
                "type": "Warning",
                "reason": event.reason,
                "action": event.action,
                "note": event.note,
                "regarding": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "namespace": event.namespace,
                    "name": event.name,
                    "uid": event.uid,
                },
            },
        )

    async def close(self) -> None:
        """Close connections."""
        await self._api.close()

    async def _reflect(self, kind: type[T], path: str, selector: str, feed: Feed[T]) -> None:
        reflector = Reflector(self._api, kind, path, selector, feed, self._telemetry, self._rng)
        await reflector.run()


def _pod_path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"


def _micro_time(seconds: float) -> str:
    """A time as the API server wants it: UTC with microseconds."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")
