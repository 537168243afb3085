"""The shipped role on a real API server: each right is needed, and there is no other."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import yaml

from tests.controlplane import objects, workload
from tests.controlplane.api import Api, ApiError, Json
from tests.controlplane.cluster import ControlPlane
from tests.controlplane.process import wait_until
from tests.e2e.world import DEPLOY, RESOURCE, shipped_account

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(900)]

Right = tuple[str, str, str, str]
"""Where it holds (a namespace, or empty for everywhere), API group, resource, verb."""

_HOME = "kube-system"
_LOCKS = f"/api/v1/namespaces/{_HOME}/configmaps"
_FORBIDDEN = 403


@dataclass(frozen=True)
class Place:
    """A cluster with the shipped role, a node and two pods, of which one waits."""

    plane: ControlPlane
    namespace: str
    account: Api
    user: str


@pytest.fixture(scope="module")
def place(control_plane: ControlPlane) -> Iterator[Place]:
    namespace = f"test-{secrets.token_hex(4)}"
    admin = control_plane.admin
    workload.create_namespace(admin, namespace)
    user = shipped_account(control_plane)
    workload.create_nodes(admin, [objects.node("role-node")])
    workload.create_pods(admin, [objects.pod("placed", namespace, node_name="role-node")])
    here = Place(control_plane, namespace, control_plane.client(user), user)
    wait_until(lambda: _is_in_force(here), 120, "the API server has read the admission policy")
    yield here
    workload.delete_all(admin)


def _is_in_force(place: Place) -> bool:
    labels = {"probe": secrets.token_hex(4)}  # a patch that changes nothing is never refused
    try:
        place.account.patch("/api/v1/nodes/role-node/status", {"metadata": {"labels": labels}})
    except ApiError as e:
        return "the extender changes" in e.message
    return False


def shipped() -> set[Right]:
    """What the manifest grants, right by right."""
    documents = list(yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text()))
    rights: set[Right] = set()
    for role in documents:
        if role["kind"] in ("Role", "ClusterRole"):
            where = role["metadata"]["namespace"] if role["kind"] == "Role" else ""
            rights |= {right for rule in role["rules"] for right in _rights(rule, where)}
    return rights


def _rights(rule: Json, where: str) -> Iterator[Right]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            for name in rule.get("resourceNames", [""]):
                for verb in rule["verbs"]:
                    yield where, group, f"{resource}/{name}" if name else resource, verb


def granted(plane: ControlPlane, user: str, namespace: str) -> set[Right]:
    """What the API server says that a user may do in a namespace, beyond any account's."""

    def rules(who: str) -> set[Right]:
        review = plane.client(who).post(
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            {"spec": {"namespace": namespace}},
        )
        assert not review["status"]["incomplete"]
        return {right for rule in review["status"]["resourceRules"] for right in _rights(rule, "")}

    return rules(user) - rules(plane.service_account(namespace, "nobody"))


def test_the_api_server_grants_what_the_manifest_says_and_nothing_else(place: Place) -> None:
    everywhere = {right for right in shipped() if not right[0]}
    assert granted(place.plane, place.user, place.namespace) == everywhere
    at_home = {("", *right[1:]) for right in shipped() if right[0] in ("", _HOME)}
    assert granted(place.plane, place.user, _HOME) == at_home


def needed(place: Place) -> dict[Right, Callable[[], object]]:
    """Each right, with the call of the extender that needs it."""
    account, pods = place.account, f"/api/v1/namespaces/{place.namespace}/pods"
    amounts = {RESOURCE: "4000"}
    event = {
        "metadata": {"generateName": "placed-", "namespace": place.namespace},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "archimedes.dev/extender",
        "reportingInstance": "archimedes-extender-test",
        "type": "Warning",
        "reason": "NothingReclaimable",
        "action": "Filtering",
        "regarding": {"kind": "Pod", "namespace": place.namespace, "name": "placed"},
    }
    binding = {"metadata": {"name": "waits"}, "target": {"kind": "Node", "name": "role-node"}}
    return {
        ("", "", "nodes", "list"): lambda: account.get("/api/v1/nodes"),
        ("", "", "nodes", "watch"): lambda: account.text(
            "/api/v1/nodes?watch=true&timeoutSeconds=1"
        ),
        ("", "", "nodes/status", "patch"): lambda: account.patch(
            "/api/v1/nodes/role-node/status",
            {"status": {"capacity": amounts, "allocatable": amounts}},
        ),
        ("", "", "pods", "get"): lambda: account.get(f"{pods}/placed"),
        ("", "", "pods", "list"): lambda: account.get("/api/v1/pods"),
        ("", "", "pods", "watch"): lambda: account.text("/api/v1/pods?watch=true&timeoutSeconds=1"),
        ("", "", "pods/binding", "create"): lambda: account.post(f"{pods}/waits/binding", binding),
        (_HOME, "", "configmaps/archimedes-locks", "list"): lambda: account.get(
            _LOCKS, fieldSelector="metadata.name=archimedes-locks"
        ),
        (_HOME, "", "configmaps/archimedes-locks", "watch"): lambda: account.text(
            f"{_LOCKS}?fieldSelector=metadata.name%3Darchimedes-locks&watch=true&timeoutSeconds=1"
        ),
        ("", "events.k8s.io", "events", "create"): lambda: account.post(
            f"/apis/events.k8s.io/v1/namespaces/{place.namespace}/events", event
        ),
    }


def test_each_right_is_needed_and_works(place: Place) -> None:
    calls = needed(place)
    assert set(calls) == shipped(), "every right of deploy/rbac.yaml has its call in needed()"
    workload.create_pods(place.plane.admin, [objects.pod("waits", place.namespace)])
    for call in calls.values():
        call()
    waits = workload.pod(place.plane.admin, place.namespace, "waits")
    assert waits["spec"]["nodeName"] == "role-node"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/secrets", None),
        ("GET", "/api/v1/namespaces/{ns}/secrets", None),
        ("GET", "/api/v1/configmaps", None),
        ("GET", "/api/v1/namespaces/kube-system/configmaps", None),
        ("DELETE", "/api/v1/namespaces/kube-system/configmaps/archimedes-locks", {}),
        (
            "GET",
            "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication",
            None,
        ),
        ("GET", "/api/v1/namespaces/{ns}/pods/placed/log", None),
        ("DELETE", "/api/v1/namespaces/{ns}/pods/placed", {}),
        ("PATCH", "/api/v1/namespaces/{ns}/pods/placed", {"metadata": {"labels": {"a": "b"}}}),
        ("PATCH", "/api/v1/namespaces/{ns}/pods/placed/status", {"status": {"phase": "Failed"}}),
        ("PATCH", "/api/v1/namespaces/{ns}/pods/placed/resize", {"spec": {}}),
        ("POST", "/api/v1/namespaces/{ns}/pods", {"metadata": {"name": "mine"}}),
        ("POST", "/api/v1/namespaces/{ns}/pods/placed/eviction", {"metadata": {"name": "placed"}}),
        ("POST", "/api/v1/namespaces/{ns}/pods/placed/exec?command=sh", {}),
        ("PATCH", "/api/v1/nodes/role-node", {"metadata": {"labels": {"a": "b"}}}),
        ("PATCH", "/api/v1/nodes/role-node", {"spec": {"unschedulable": True}}),
        ("DELETE", "/api/v1/nodes/role-node", {}),
        ("POST", "/api/v1/nodes", {"metadata": {"name": "mine"}}),
        ("POST", "/api/v1/nodes/role-node/proxy/run", {}),
        ("GET", "/apis/events.k8s.io/v1/events", None),
        ("DELETE", "/apis/events.k8s.io/v1/namespaces/{ns}/events", {}),
        ("POST", "/api/v1/namespaces/kube-system/serviceaccounts/archimedes-extender/token", {}),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {}),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings", {}),
        ("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/archimedes-extender", {}),
        ("PATCH", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler", {}),
    ],
)
def test_what_is_not_needed_is_forbidden(
    place: Place, method: str, path: str, body: Json | None
) -> None:
    with pytest.raises(ApiError) as error:
        place.account._call(method, path.format(ns=place.namespace), body, _headers(method))
    assert error.value.status == _FORBIDDEN


def _headers(method: str) -> dict[str, str]:
    return {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"labels": {"a": "b"}}},
        {"metadata": {"annotations": {"a": "b"}}},
        {"status": {"capacity": {"cpu": "640"}}},
        {"status": {"allocatable": {"cpu": "640"}}},
        {"status": {"capacity": {"memory": None}}},
        {"status": {"allocatable": {"pods": None}}},
        {"status": {"capacity": {"example.com/gpu": "8"}}},
        {"status": {"conditions": [{"type": "Ready", "status": "False"}]}},
        {"status": {"conditions": None}},
        {"status": {"addresses": [{"type": "InternalIP", "address": "10.1.2.3"}]}},
        {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1234}}}},
        {"status": {"nodeInfo": {"kubeletVersion": "v0"}}},
        {"status": {"images": [{"names": ["a"], "sizeBytes": 1}]}},
        {"status": {"volumesInUse": ["a"]}},
        {"status": {"volumesAttached": [{"name": "a", "devicePath": "b"}]}},
        {"status": {"phase": "Terminated"}},
    ],
)
def test_of_a_nodes_status_it_writes_its_own_resource_only(place: Place, change: Json) -> None:
    path = "/api/v1/nodes/role-node/status"
    with pytest.raises(ApiError, match="the extender changes") as error:
        place.account.patch(path, change)
    assert error.value.status in (_FORBIDDEN, 422)
    for amount in ("3000", "5000"):  # new, and changed
        amounts = {RESOURCE: amount}
        place.account.patch(path, {"status": {"capacity": amounts, "allocatable": amounts}})


def test_others_may_write_a_nodes_status_as_before(place: Place) -> None:
    annotations = {"annotations": {"example.com/by": "its kubelet"}}
    place.plane.admin.patch("/api/v1/nodes/role-node/status", {"metadata": annotations})


@pytest.mark.parametrize("header", ["Impersonate-User", "Impersonate-Group"])
def test_it_cannot_be_somebody_else(place: Place, header: str) -> None:
    headers = {"Impersonate-User": "system:admin", header: "system:masters"}
    with pytest.raises(ApiError) as error:
        place.account._call("GET", "/api/v1/nodes", None, headers)
    assert error.value.status == _FORBIDDEN
