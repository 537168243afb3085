"""Nodes and pods in a running cluster: create, watch for, change, delete."""

from collections.abc import Iterable, Mapping

from .api import Api, Json
from .objects import USAGE_ANNOTATION, millicores
from .process import wait_until

_READY_SECONDS = 180.0
_POD_SECONDS = 120.0
_GONE_SECONDS = 120.0

# What `delete_all` deletes, owners first; each lives in namespaces.
_WORKLOADS = (
    ("batch/v1", "cronjobs"),
    ("batch/v1", "jobs"),
    ("apps/v1", "deployments"),
    ("apps/v1", "statefulsets"),
    ("apps/v1", "daemonsets"),
    ("apps/v1", "replicasets"),
)


def create_namespace(api: Api, name: str, labels: Mapping[str, str] | None = None) -> None:
    """Create a namespace. It stays: only a controller manager could delete it."""
    api.post("/api/v1/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})


def create_nodes(api: Api, manifests: Iterable[Json]) -> None:
    """Create nodes and return when kwok has made all of them ready (kwok must run).

    Raises TimeoutError naming those that are not.
    """
    names = [api.post("/api/v1/nodes", manifest)["metadata"]["name"] for manifest in manifests]

    def none_unready() -> bool:
        ready = {node["metadata"]["name"] for node in _items(api, "/api/v1/nodes") if _ready(node)}
        return ready.issuperset(names)

    wait_until(none_unready, _READY_SECONDS, f"{len(names)} nodes are ready")


def create_pods(api: Api, manifests: Iterable[Json]) -> None:
    """Create pods, in order, and return at once."""
    for manifest in manifests:
        api.post(f"/api/v1/namespaces/{manifest['metadata']['namespace']}/pods", manifest)


def pods(api: Api, namespace: str) -> list[Json]:
    """Return all pods of a namespace."""
    return _items(api, _pods_path(namespace))


def pod(api: Api, namespace: str, name: str) -> Json:
    """Return one pod."""
    return api.get(f"{_pods_path(namespace)}/{name}")


def wait_for_phase(
    api: Api,
    namespace: str,
    names: Iterable[str],
    phase: str = "Running",
    timeout: float = _POD_SECONDS,
) -> list[Json]:
    """Return these pods once all of them are in `phase`. Raises TimeoutError after `timeout` s."""
    wanted = set(names)

    def all_there() -> list[Json]:
        there = [
            p
            for p in pods(api, namespace)
            if p["metadata"]["name"] in wanted and p["status"].get("phase") == phase
        ]
        return there if len(there) == len(wanted) else []

    return wait_until(all_there, timeout, f"{len(wanted)} pods in {namespace} are {phase}")


def set_usage(api: Api, namespace: str, name: str, cores: float) -> None:
    """Have kwok's counter of this pod grow by `cores` core-seconds a second from now on.

    Each container of the pod uses that much: the annotation is the pod's, the counter is not.
    """
    annotations = {USAGE_ANNOTATION: millicores(cores)}
    api.patch(f"{_pods_path(namespace)}/{name}", {"metadata": {"annotations": annotations}})


def events(api: Api, namespace: str, name: str) -> list[Json]:
    """Return the events about one object, such as a pod's `FailedScheduling` with its message."""
    selector = f"involvedObject.name={name}"
    return _items(api, f"/api/v1/namespaces/{namespace}/events", fieldSelector=selector)


def delete_all(api: Api) -> None:
    """Delete all workloads, pods and nodes, and return when no pod and no node is left."""
    for version, plural in _WORKLOADS:
        for namespace in _namespaces(_items(api, f"/apis/{version}/{plural}")):
            api.delete(f"/apis/{version}/namespaces/{namespace}/{plural}")
    for namespace in _namespaces(_items(api, "/api/v1/pods")):
        api.delete(_pods_path(namespace), grace_seconds=0)
    wait_until(lambda: not _items(api, "/api/v1/pods"), _GONE_SECONDS, "all pods are gone")
    api.delete("/api/v1/nodes")
    wait_until(lambda: not _items(api, "/api/v1/nodes"), _GONE_SECONDS, "all nodes are gone")
    # A lease outlives its node. Were a node of that name to come again, a controller manager would
    # collect the old lease, and kwok would leave the node's pods pending until its next renewal.
    api.delete("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases")


def _pods_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def _items(api: Api, path: str, **query: str) -> list[Json]:
    found: list[Json] = api.get(path, **query)["items"]
    return found


def _namespaces(objects: Iterable[Json]) -> set[str]:
    return {item["metadata"]["namespace"] for item in objects}


def _ready(node: Json) -> bool:
    conditions = node["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
