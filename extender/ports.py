"""What the server needs from outside, as interfaces: the clock, the cluster, usage, models.

`extender.app` puts the parts together; a demo or a test brings its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from models.kube.types import ConfigMap, FinishedPod, Node, Pod
from models.model import Model

if TYPE_CHECKING:
    from extender.champion import ModelStatus

Clock = Callable[[], float]
"""Seconds since the epoch."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Feed(Generic[T]):
    """Where a cluster reports one kind of object, always from the event loop.

    put: an object exists, or has changed; returns its key. remove: it is gone. sift: a list is
    complete, and what is not among its keys is gone; each step of the iterator is a part of that,
    short enough for the event loop. heard: the connection is alive.
    """

    put: Callable[[T], str]
    remove: Callable[[T], None]
    sift: Callable[[Collection[str]], Iterator[None]]
    heard: Callable[[], None]

    def retain(self, listed: Collection[str]) -> None:
        """All of ``sift`` at once."""
        deque(self.sift(listed), maxlen=0)


class ClusterError(Exception):
    """The API server refused (``status`` is its HTTP status) or did not answer (0).

    retry_after: seconds for which it wants to be left alone.
    """

    def __init__(self, status: int, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class PodEvent:
    """A warning about a pod, as the API server keeps it; ``time`` in seconds since the epoch."""

    namespace: str
    name: str
    uid: str
    reason: str
    action: str
    note: str
    time: float


class Cluster(Protocol):
    """Nodes and pods: an API server, or a simulation."""

    async def follow(self, nodes: Feed[Node], pods: Feed[Pod]) -> None:
        """Report what exists and every change, for ever; recovers from failures by itself."""

    async def follow_succeeded(self, pods: Feed[FinishedPod]) -> None:
        """Report the pods that have succeeded, and each further one, for ever."""

    async def follow_config_map(self, namespace: str, name: str, feed: Feed[ConfigMap]) -> None:
        """Report one ConfigMap and every change to it, for ever."""

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> None:
        """Bind the pod with this UID. Raises ClusterError."""

    async def read_pod(self, namespace: str, name: str) -> Pod | None:
        """The pod as it is now, None where there is none. Raises ClusterError."""

    async def advertise(self, node: str, resource: str, amount: int) -> None:
        """Write an extended resource into a node's status. Raises ClusterError."""

    async def write_event(self, event: PodEvent) -> None:
        """Create an event on a pod. Raises ClusterError."""

    async def close(self) -> None:
        """Close connections."""


class ModelSource(Protocol):
    """Where the champion comes from."""

    @property
    def status(self) -> ModelStatus:
        """What serves, and why it is not the champion."""

    async def initial(self) -> tuple[Model | None, ModelStatus]:
        """The model to start with, None where nothing can serve."""

    async def poll(self) -> Model | None:
        """A model that shall replace the one that serves, or None."""
