"""Whose pod it is: the workload that it, its siblings and its predecessors belong to."""

from __future__ import annotations

import re

from models.kube.types import Metadata, OwnerReference

_HASH_LABEL = "pod-template-hash"
_SCHEDULED = re.compile(r"-[0-9]{8,}$")
"""A CronJob names its Jobs by the minute of their schedule."""


def workload_of(metadata: Metadata) -> str:
    """The top owner of a pod, ``namespace/kind/name``; the pod itself where nobody owns it.

    A Deployment's ReplicaSet and a CronJob's Job are seen through by their names, which their
    controllers make: so no other kind of object has to be watched.
    """
    namespace = metadata.namespace or "default"
    owner = controller_of(metadata)
    if owner is None:
        return f"{namespace}/Pod/{metadata.name or ''}"
    kind, name = _top(owner, (metadata.labels or {}).get(_HASH_LABEL, ""))
    return f"{namespace}/{kind}/{name}"


def controller_of(metadata: Metadata) -> OwnerReference | None:
    """The owner that looks after an object, or None."""
    owners = metadata.owner_references or ()
    return next((owner for owner in owners if owner.controller), None)


def _top(owner: OwnerReference, template_hash: str) -> tuple[str, str]:
    if owner.kind == "ReplicaSet" and template_hash and owner.name.endswith(f"-{template_hash}"):
        return "Deployment", owner.name.removesuffix(f"-{template_hash}")
    if owner.kind == "Job" and _SCHEDULED.search(owner.name):
        return "CronJob", _SCHEDULED.sub("", owner.name)
    return owner.kind, owner.name
