"""The pods and nodes that a cluster has now, from its API server, as rows of a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from models.constraints import NODE_JSON, POD_JSON
from models.errors import SourceError
from models.kube.owner import workload_of
from models.kube.quantity import QuantityError, cores, parse_quantity
from models.kube.request import (
    GIB,
    asks_for,
    cpu_request,
    memory_request,
    reclaimed_request,
)
from models.kube.types import (
    FinishedPod,
    FinishedStatus,
    Metadata,
    NodeStatus,
    Page,
    PodSpec,
    Status,
    seconds_of,
)

_PAGE = 500
"""Objects of one answer: some megabytes."""

_SECONDS = 60.0
"""Seconds that one page may take."""

_MAX_TEXT = 500
_FINISHED = ("Succeeded", "Failed")
_NOTHING = msgspec.Raw(b"null")

T = TypeVar("T")

_page = msgspec.json.Decoder(Page)


class _Metadata(Metadata, frozen=True):
    creation_timestamp: str | None = None


class _Affinity(msgspec.Struct, frozen=True, rename="camel"):
    node_affinity: msgspec.Raw = _NOTHING


class _PodSpec(PodSpec, frozen=True):
    node_selector: msgspec.Raw = _NOTHING
    affinity: _Affinity | None = None
    tolerations: msgspec.Raw = _NOTHING
    topology_spread_constraints: msgspec.Raw = _NOTHING


class LivePod(FinishedPod, frozen=True):
    """A pod, read more closely than the extender does, whether it has finished or not."""

    metadata: _Metadata | None = None
    spec: _PodSpec | None = None


class _NodeSpec(msgspec.Struct, frozen=True, rename="camel"):
    taints: msgspec.Raw = _NOTHING
    unschedulable: bool | None = None


class LiveNode(msgspec.Struct, frozen=True):
    """A node, with what keeps pods away from it."""

    metadata: _Metadata | None = None
    spec: _NodeSpec | None = None
    status: NodeStatus | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What a trace tells of a pod, but for its usage.

    Fields:
        pod: ``namespace/name``. uid: Kubernetes' own, empty where not known. workload: its top
            owner. tier: online or offline.
        cpu_request: cores; of an offline pod, reclaimed ones. memory_request: GiB.
        start, end: seconds since the epoch; inf where not known, the end also while it runs.
        node: where it runs or ran, empty where not known.
        constraints: the JSON columns of `models.constraints.POD_JSON`, without the empty ones, and
            without those that use something newer than a trace can express.
        unread: names of the latter.
    """

    pod: str
    workload: str
    tier: str
    cpu_request: float
    memory_request: float | None
    start: float = math.inf
    end: float = math.inf
    node: str = ""
    constraints: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    uid: str = ""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a trace tells of a node: cores and GiB allocatable, and when it was there.

    ``created`` and ``gone`` are in seconds since the epoch, infinite where there is none known;
    ``constraints`` and ``unread`` as with `PodFacts`.
    """

    node: str
    cpu: float
    memory: float
    created: float
    unschedulable: bool
    constraints: dict[str, str]
    unread: tuple[str, ...]
    gone: float = math.inf


class ClusterObjects:
    """One API server's lists."""

    def __init__(self, configuration: client.Configuration) -> None:
        self._client = client.ApiClient(configuration)

    def pods(self) -> Iterator[LivePod]:
        """Every pod of every namespace, finished ones too. Raises SourceError."""
        return self._list("pods", LivePod)

    def nodes(self) -> Iterator[LiveNode]:
        """Every node. Raises SourceError."""
        return self._list("nodes", LiveNode)

    def _list(self, kind: str, object_type: type[T]) -> Iterator[T]:
        decoder = msgspec.json.Decoder(object_type)
        more: str | None = ""
        while more is not None:
            body = self._get(kind, more)
            try:
                page = _page.decode(body)
                yield from [decoder.decode(item) for item in page.items or ()]
            except (ValueError, RecursionError) as e:
                raise SourceError(
                    f"what answers at {self._client.configuration.host} is no Kubernetes API "
                    f"server: its list of {kind} cannot be read ({e})."
                ) from e
            more = page.metadata.continue_ or None

    def _get(self, kind: str, more: str) -> bytes:
        query = [("limit", str(_PAGE)), *([("continue", more)] if more else [])]
        try:
            request = self._client.param_serialize(
                "GET",
                f"/api/v1/{kind}",
                query_params=query,
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )
            answer = self._client.call_api(*request, _request_timeout=_SECONDS)
            body: bytes = answer.read()  # type: ignore[no-untyped-call]
        except (ApiException, urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            raise SourceError(
                f"the API server at {self._client.configuration.host} cannot be reached: "
                f"{' '.join(str(e).split())}"[:_MAX_TEXT]
            ) from e
        if answer.status != HTTPStatus.OK:
            raise SourceError(
                f"the API server at {self._client.configuration.host} refused to list {kind}: "
                f"{_reason(body) or f'status {answer.status}'}"
            )
        return body


def pod_facts(pod: LivePod, resource: str) -> PodFacts:
    """Read a pod; ``resource`` is the reclaimed resource's name."""
    metadata, spec = pod.metadata or _Metadata(), pod.spec or _PodSpec()
    offline = asks_for(spec, resource)
    constraints, unread = _texts(
        POD_JSON,
        labels=_labels(metadata),
        node_selector=spec.node_selector,
        node_affinity=spec.affinity.node_affinity if spec.affinity else _NOTHING,
        tolerations=spec.tolerations,
        topology_spread=spec.topology_spread_constraints,
    )
    return PodFacts(
        pod=f"{metadata.namespace or 'default'}/{metadata.name or ''}",
        workload=workload_of(metadata),
        tier="offline" if offline else "online",
        cpu_request=_reclaimed(spec, resource) if offline else cpu_request(spec),
        memory_request=memory_request(spec),
        start=seconds_of(metadata.creation_timestamp),
        end=_ended(metadata, pod.status or FinishedStatus()),
        node=spec.node_name or "",
        constraints=constraints,
        unread=unread,
        uid=metadata.uid or "",
    )


def node_facts(node: LiveNode) -> NodeFacts | None:
    """Read a node; None where it offers no CPU or no memory, and so is no place for pods."""
    metadata, spec = node.metadata or _Metadata(), node.spec or _NodeSpec()
    status = node.status or NodeStatus()
    offered = status.allocatable or status.capacity or {}
    try:
        cpu = cores(str(offered.get("cpu", "0")))
        memory = float(parse_quantity(str(offered.get("memory", "0")))) / GIB
    except QuantityError:
        return None
    if cpu <= 0 or memory <= 0:
        return None
    created = seconds_of(metadata.creation_timestamp)
    constraints, unread = _texts(NODE_JSON, labels=_labels(metadata), taints=spec.taints)
    return NodeFacts(
        node=metadata.name or "",
        cpu=cpu,
        memory=memory,
        created=created if created < math.inf else -math.inf,
        unschedulable=bool(spec.unschedulable),
        constraints=constraints,
        unread=unread,
    )


def _reclaimed(spec: PodSpec, resource: str) -> float:
    """Reclaimed cores; an amount that no node can have counts as nothing, since it never ran."""
    try:
        return reclaimed_request(spec, resource) / 1000
    except QuantityError:
        return 0.0


def _ended(metadata: _Metadata, status: FinishedStatus) -> float:
    """When a finished pod's last container ended; inf while the pod is not finished.

    An evicted pod may no longer say so: then it ended when it was last heard of.
    """
    if status.phase not in _FINISHED:
        return math.inf
    ended = [
        seconds_of(container.state.terminated.finished_at)
        for container in status.container_statuses or ()
        if container.state is not None and container.state.terminated is not None
    ]
    began = (seconds_of(status.start_time), seconds_of(metadata.creation_timestamp))
    known = [time for time in (*ended, *began) if time < math.inf]
    return max(known, default=math.inf)


def _labels(metadata: _Metadata) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(metadata.labels))


def _texts(kinds: dict[str, Any], **given: msgspec.Raw) -> tuple[dict[str, str], tuple[str, ...]]:
    """The columns that hold something, and the names of those that a trace cannot express."""
    texts, unread = {}, []
    for name, raw in given.items():
        if not msgspec.json.decode(raw):
            continue
        try:
            msgspec.json.decode(raw, type=kinds[name])
        except msgspec.DecodeError:
            unread.append(name)
        else:
            texts[name] = bytes(raw).decode()
    return texts, tuple(unread)


def _reason(body: bytes) -> str:
    try:
        return (msgspec.json.decode(body, type=Status).message or "")[:_MAX_TEXT]
    except (ValueError, RecursionError):
        return ""
