"""Nodes and pods of a simulated cluster as an API server would send them, rendered fast.

Sizes are those of real objects: a pod has 3 kB of JSON, managed fields included, a node 4 kB.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

RESOURCE = "archimedes.dev/reclaimed-millicpu"
NAMESPACE = "team"
NODE_CPU = 32
REQUEST = 0.5
"""Cores that each resident online pod requests."""

_SIBLINGS = 40
_ZONES = 3


@dataclass(frozen=True, slots=True)
class PodRow:
    """One pod. ``offline``: asks for reclaimed millicores instead of ordinary CPU."""

    name: str
    uid: str
    offline: bool
    node: str = ""
    version: int = 1

    @property
    def owner(self) -> str:
        """The Job, or the ReplicaSet, that it belongs to: its name without the last part."""
        return self.name.rpartition("-")[0]

    def render(self) -> bytes:
        """The pod's JSON."""
        template = _OFFLINE if self.offline else _ONLINE
        phase = "Running" if self.node else "Pending"
        node = f'"nodeName":"{self.node}",' if self.node else ""
        return template % (
            self.name.encode(),
            self.uid.encode(),
            self.version,
            self.owner.encode(),
            self.owner.encode(),
            node.encode(),
            phase.encode(),
        )


def node_name(number: int) -> str:
    """Names as clouds give them."""
    return f"gke-production-pool-{number // 1000}-{number:08x}-x7k2"


def resident(number: int, nodes: int, version: int = 1) -> PodRow:
    """A pod that runs from the start; every tenth is an offline one, and 40 have one owner."""
    name = f"service-{number // _SIBLINGS}-{number:08x}"
    uid = f"00000000-0000-4000-8000-{number:012x}"
    return PodRow(name, uid, number % 10 == 9, node_name(number % nodes), version)


def arriving(number: int) -> PodRow:
    """A pod that waits for a node; every other is an offline one, and 40 have one owner."""
    uid = f"11111111-0000-4000-8000-{number:012x}"
    return PodRow(f"arrival-{number // _SIBLINGS}-{number:08x}", uid, number % 2 == 0)


def render_node(number: int) -> bytes:
    """A node's JSON."""
    name = node_name(number).encode()
    return _NODE % (name, name, number + 1, number % _ZONES)


def _managed_fields(count: int) -> list[object]:
    field: dict[str, object] = {
        "f:metadata": {"f:labels": {f"f:label-{at}": {} for at in range(8)}}
    }
    entry = {
        "manager": "kubelet",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": {**field, "f:status": {"f:conditions": {f"k:{at}": {} for at in range(8)}}},
    }
    return [entry] * count


def _pod_template(requests: dict[str, str], api_version: str, kind: str) -> bytes:
    env = [{"name": f"VARIABLE_{at}", "value": f"some value {at}"} for at in range(12)]
    container = {
        "name": "main",
        "image": "registry.example/team/batch:1.2.3",
        "env": env,
        "resources": {"requests": {**requests, "memory": "1Gi"}, "limits": requests},
        "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets", "readOnly": True}],
    }
    owner = {"apiVersion": api_version, "kind": kind, "name": "@owner", "uid": "@owner"}
    metadata = {
        "name": "@name",
        "namespace": NAMESPACE,
        "uid": "@uid",
        "resourceVersion": "@version",
        "labels": {f"label-{at}": "value" for at in range(8)},
        "annotations": {"archimedes.dev/expected-duration": "1h"},
        "ownerReferences": [{**owner, "controller": True}],
        "managedFields": _managed_fields(2),
    }
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    pod = {
        "metadata": metadata,
        "spec": {"@node": 0, "containers": [container], "schedulerName": "default-scheduler"},
        "status": {
            "phase": "@phase",
            "startTime": "2023-01-01T00:00:00Z",
            "conditions": conditions,
        },
    }
    return _template(pod, _POD_FIELDS)


def _node_template() -> bytes:
    amounts = {"cpu": str(NODE_CPU), "memory": "128Gi", "pods": "250"}
    amounts[RESOURCE] = str(NODE_CPU * 1000)
    node = {
        "metadata": {
            "name": "@name",
            "uid": "@uid",
            "resourceVersion": "@version",
            "labels": {
                **{f"label-{at}": "value" for at in range(20)},
                "topology.kubernetes.io/zone": "zone-@zone",
            },
            "managedFields": _managed_fields(3),
        },
        "status": {
            "allocatable": amounts,
            "capacity": amounts,
            "conditions": [{"type": "Ready", "status": "True"}],
            "images": [{"names": [f"image-{at}"], "sizeBytes": 10**8} for at in range(30)],
        },
    }
    return _template(node, {"@name": "%s", "@uid": "%s", "@version": "%d", "@zone": "%d"})


def _template(value: object, fields: dict[str, str]) -> bytes:
    text = json.dumps(value, separators=(",", ":"))
    for field, form in fields.items():
        text = text.replace(field, form)
    return text.replace('"@node":0,', "%s").encode()


_POD_FIELDS = {"@name": "%s", "@uid": "%s", "@version": "%d", "@owner": "%s", "@phase": "%s"}
_ONLINE = _pod_template({"cpu": f"{round(REQUEST * 1000)}m"}, "apps/v1", "ReplicaSet")
_OFFLINE = _pod_template({RESOURCE: "500"}, "batch/v1", "Job")
_NODE = _node_template()
