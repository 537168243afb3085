"""Nodes and pods as the API takes them. CPU in cores, memory in GiB, as everywhere inside."""

from collections.abc import Mapping

from .api import Json

USAGE_ANNOTATION = "kwok.x-k8s.io/usage-cpu"
CONTAINER = "main"


def millicores(cores: float) -> str:
    """Return `cores` as a Kubernetes quantity: 0.75 is `750m`."""
    return f"{round(cores * 1000)}m"


def node(
    name: str,
    *,
    cpu: float = 8.0,
    memory: float = 32.0,
    pods: int = 110,
    extended: Mapping[str, int] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Json:
    """Return a node whose status has this capacity, all of it allocatable.

    It states no readiness: kwok adds conditions and addresses only to a node that has none.
    """
    resources = {
        "cpu": millicores(cpu),
        "memory": f"{round(memory * 1024)}Mi",
        "pods": str(pods),
        **{key: str(amount) for key, amount in (extended or {}).items()},
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "status": {"capacity": resources, "allocatable": resources},
    }


def pod(
    name: str,
    namespace: str,
    *,
    cpu: float | None = None,
    memory: float | None = None,
    extended: Mapping[str, int] | None = None,
    usage: float | None = None,
    node_name: str | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    priority_class: str | None = None,
) -> Json:
    """Return a pod of one container named CONTAINER.

    `cpu` and `memory` are requests; `extended` is asked for as request and limit, as the API
    demands; `usage` is what kwok lets it use, in cores; with `node_name` it is bound at once.
    """
    requests = {key: str(amount) for key, amount in (extended or {}).items()}
    limits = dict(requests)
    if cpu is not None:
        requests["cpu"] = millicores(cpu)
    if memory is not None:
        requests["memory"] = f"{round(memory * 1024)}Mi"
    notes = dict(annotations or {})
    if usage is not None:
        notes[USAGE_ANNOTATION] = millicores(usage)
    resources = {"requests": requests, "limits": limits}
    spec: Json = {
        "containers": [{"name": CONTAINER, "image": "none", "resources": resources}],
        "terminationGracePeriodSeconds": 0,
    }
    if node_name is not None:
        spec["nodeName"] = node_name
    if priority_class is not None:
        spec["priorityClassName"] = priority_class
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": dict(labels or {}),
        "annotations": notes,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
