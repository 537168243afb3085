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
from tests.e2e.world import DEPLOY, RESOURCE

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(300)]

Right = tuple[str, str, str, str]
"""Where it holds (a namespace, or empty for everywhere), API group, resource, verb."""

_HOME = "kube-system"
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
    control_plane.kubectl("apply", "-f", str(DEPLOY / "rbac.yaml"))
    user = control_plane.service_account(_HOME, "archimedes-extender")
    workload.create_nodes(admin, [objects.node("role-node")])
    workload.create_pods(admin, [objects.pod("placed", namespace, node_name="role-node")])
    yield Place(control_plane, namespace, control_plane.client(user), user)
    workload.delete_all(admin)


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


@pytest.mark.parametrize("header", ["Impersonate-User", "Impersonate-Group"])
def test_it_cannot_be_somebody_else(place: Place, header: str) -> None:
    headers = {"Impersonate-User": "system:admin", header: "system:masters"}
    with pytest.raises(ApiError) as error:
        place.account._call("GET", "/api/v1/nodes", None, headers)
    assert error.value.status == _FORBIDDEN
