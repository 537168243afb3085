"""The workload of a pod, from its owner reference and labels."""

import msgspec
import pytest

from models.kube.owner import workload_of
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
