"""The workload of a pod, from its owner reference and labels."""

import msgspec
import pytest

from models.kube.owner import workload_of
from models.kube.preferences import replica_of
from models.kube.types import Metadata


def metadata(
    owner: tuple[str, str] | None = None, template_hash: str = "", controller: bool = True
) -> Metadata:
    kind, name = owner or ("", "")
    references = [{"kind": kind, "name": name, "controller": controller}] if owner else None
    labels = {"pod-template-hash": template_hash} if template_hash else None
    fields = {"name": "p-0", "namespace": "shop", "labels": labels, "ownerReferences": references}
    return msgspec.convert(fields, Metadata)


@pytest.mark.parametrize(
    ("owner", "template_hash", "expected"),
    [
        (("ReplicaSet", "web-6b5d9c"), "6b5d9c", "shop/Deployment/web"),
        (("ReplicaSet", "web-6b5d9c"), "", "shop/ReplicaSet/web-6b5d9c"),
        (("ReplicaSet", "web"), "6b5d9c", "shop/ReplicaSet/web"),
        (("StatefulSet", "db"), "", "shop/StatefulSet/db"),
        (("Job", "nightly-29384400"), "", "shop/CronJob/nightly"),
        (("Job", "import-7"), "", "shop/Job/import-7"),
        (None, "", "shop/Pod/p-0"),
    ],
)
def test_the_top_owner(owner: tuple[str, str] | None, template_hash: str, expected: str) -> None:
    assert workload_of(metadata(owner, template_hash)) == expected


def test_an_owner_that_does_not_control_is_none() -> None:
    assert workload_of(metadata(("ReplicaSet", "web"), controller=False)) == "shop/Pod/p-0"


def test_an_object_without_anything() -> None:
    assert workload_of(Metadata()) == "default/Pod/"


@pytest.mark.parametrize(
    ("api_version", "kind", "spread"),
    [
        ("apps/v1", "ReplicaSet", True),
        ("apps/v1", "StatefulSet", True),
        ("v1", "ReplicationController", True),
        ("apps/v1", "DaemonSet", False),
        ("batch/v1", "Job", False),
        ("apps.kruise.io/v1beta1", "StatefulSet", False),
        ("", "ReplicaSet", False),
    ],
)
def test_whose_replica_a_pod_is(api_version: str, kind: str, *, spread: bool) -> None:
    owner = {"apiVersion": api_version, "kind": kind, "name": "web", "uid": "u1"}
    fields = {"ownerReferences": [{"kind": "Node", "uid": "u0"}, {**owner, "controller": True}]}
    assert replica_of(msgspec.convert(fields, Metadata)) == ("u1" if spread else "")
    leaving = {**fields, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert replica_of(msgspec.convert(leaving, Metadata)) == ""
    unowned = {"ownerReferences": [owner]}
    assert replica_of(msgspec.convert(unowned, Metadata)) == ""
    assert replica_of(Metadata()) == ""
