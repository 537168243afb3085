"""A small cluster in memory with an extender beside it: what the server's tests share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import msgspec
import numpy as np
import orjson

from extender.app import Parts, Server
from extender.decision_log import DecisionLog, Record, decode_record
from extender.forecasting import ThreadForecasting
from extender.homes import REBUILD_LABEL
from extender.memory import FixedModel, MemoryCluster
from extender.outlook import unknown
from extender.settings import EventSettings, ProbeSettings, Settings, TlsSettings
from models.kube.types import Node, Pod
from models.policy import HORIZONS, Policy
from models.rolling import Forecast
from models.usage_source import PrometheusSettings, UsageSource

RESOURCE = "archimedes.dev/reclaimed-millicpu"
START = 1_700_000_100.0  # a multiple of 300
PLAIN = Policy(ceiling=1.0, system_reserve=0.0)  # reclaimable = allocatable - forecast

Json = dict[str, Any]


class Choices(TypedDict, total=False):
    """Settings that tests choose."""

    port: int
    candidates: int
    choose_alone: bool
    hold_seconds: float
    bind_seconds: float
    request_seconds: float
    max_body_bytes: int
    max_connections: int
    watch_max_age: float
    advertise: bool
    advertise_share: float
    drain_seconds: float
    decision_log: str
    refresh_seconds: float
    prometheus: PrometheusSettings
    tls: TlsSettings
    probes: ProbeSettings
    events: EventSettings


def container(requests: Mapping[str, object] | None = None, **fields: object) -> Json:
    """A container that asks for something."""
    return {"name": "c", "resources": {"requests": dict(requests or {})}, **fields}


def pod_json(
    name: str,
    ask: object = None,
    *,
    uid: str | None = None,
    cpu: str | None = None,
    node: str | None = None,
    annotations: Mapping[str, str] | None = None,
    phase: str = "Pending",
    **spec: object,
) -> Json:
    """A pod as kube-scheduler sends it; `ask` is of the reclaimed resource."""
    requests = {} if ask is None else {RESOURCE: str(ask)}
    if cpu is not None:
        requests["cpu"] = cpu
    metadata: Json = {"name": name, "namespace": "default", "uid": uid or f"uid-{name}"}
    if annotations is not None:
        metadata["annotations"] = dict(annotations)
    body: Json = {"containers": [container(requests)], **spec}
    if node is not None:
        body["nodeName"] = node
    return {"metadata": metadata, "spec": body, "status": {"phase": phase}}


def node_json(name: str, cpu: str = "8", advertised: str | None = None) -> Json:
    """A node with allocatable CPU."""
    amounts = {"cpu": cpu} | ({RESOURCE: advertised} if advertised is not None else {})
    return {"metadata": {"name": name}, "status": {"allocatable": amounts, "capacity": amounts}}


def rebuilt_json(name: str, node: str | None = None) -> Json:
    """A replica of one StatefulSet that asks to be rebuilt in place."""
    pod = pod_json(name, cpu="1", node=node)
    pod["metadata"]["labels"] = {REBUILD_LABEL: "true"}
    owner = {"kind": "StatefulSet", "name": "db", "controller": True}
    pod["metadata"]["ownerReferences"] = [owner]
    return pod


def as_pod(value: Json) -> Pod:
    """The struct of a pod's JSON."""
    return msgspec.convert(value, Pod)


def as_node(value: Json) -> Node:
    """The struct of a node's JSON."""
    return msgspec.convert(value, Node)


class World:
    """A cluster in memory, a clock that stands still, and a server; no background loops."""

    def __init__(
        self,
        nodes: Sequence[str] = ("n1", "n2"),
        cpu: str = "8",
        usage: UsageSource | None = None,
        now: float = START,
        learned_file: Path | None = None,
        **settings: Unpack[Choices],
    ) -> None:
        self.now = now
        self.cluster = MemoryCluster()
        for name in nodes:
            self.cluster.put_node(as_node(node_json(name, cpu)))
        self.settings = Settings(policy=PLAIN, **settings)
        self.models = FixedModel(None)
        self.forecasting = ThreadForecasting(usage, self.settings.prometheus)
        outside = (self.cluster, self.forecasting, self.models)
        parts = Parts(self.settings, lambda: self.now, *outside, learned_file)
        self.server = Server(parts)
        self.state = self.server.state

    def sync(self) -> None:
        """List nodes and pods; from here on, changes reach the server."""
        self.cluster.attach(self.state.node_feed(), self.state.pod_feed())

    def forecast(self, cores: float | Mapping[str, Sequence[float] | float] = 2.0) -> None:
        """Put forecasts of so many cores into service, for all nodes or by node (and horizon)."""
        capture = self.state.capture()
        outlook = unknown(len(capture.nodes))
        for row, name in enumerate(capture.nodes):
            value = cores if isinstance(cores, float | int) else cores.get(name, np.nan)
            outlook.forecast.forecast[row] = np.broadcast_to(value, len(HORIZONS))
        peaks = outlook.forecast.forecast
        newest = np.full(len(capture.nodes), self.now)
        self.state.serve(capture, Forecast(peaks, peaks * 0.8), newest, "7", PLAIN)

    def filter(self, pod: Json, names: Sequence[str] | None = None) -> Json:
        """What filter answers, without HTTP."""
        body = orjson.dumps(args(pod, list(self.cluster.nodes) if names is None else names))
        answer: Json = orjson.loads(self.server.calls.filter(body).body)
        return answer

    def preempt(self, pod: Json, victims: Mapping[str, Sequence[str]]) -> Json:
        """What preempt answers to UIDs by node, over the wire format."""
        meta = {node: {"Pods": [{"UID": uid} for uid in uids]} for node, uids in victims.items()}
        body = {"Pod": pod, "NodeNameToMetaVictims": meta}
        answer: Json = orjson.loads(self.server.calls.preempt(orjson.dumps(body)))
        return answer

    def prioritize(self, pod: Json, names: Sequence[str]) -> list[Json]:
        """What prioritize answers, without HTTP."""
        body = orjson.dumps(args(pod, names))
        answer: list[Json] = orjson.loads(self.server.calls.prioritize(body))
        return answer


def records_of(log: DecisionLog, pod: str = "", limit: int = 100) -> list[Record]:
    """What a decision log remembers, the newest first."""
    return [decode_record(line) for line in log.recent(pod, limit)]


def args(
    pod: Json, names: Sequence[str] | None = None, nodes: Sequence[Json] | None = None
) -> Json:
    """The body of filter and prioritize, as kube-scheduler writes it."""
    listed = None if nodes is None else {"metadata": {}, "items": list(nodes)}
    return {"Pod": pod, "Nodes": listed, "NodeNames": None if names is None else list(names)}


def binding(pod: Json, node: str, uid: str | None = None) -> Json:
    """The body of bind."""
    metadata = pod["metadata"]
    return {
        "PodName": metadata["name"],
        "PodNamespace": metadata["namespace"],
        "PodUID": uid or metadata["uid"],
        "Node": node,
    }
