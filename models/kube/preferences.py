"""Whether kube-scheduler would rather have a pod on one node than on another that fits as well."""

from __future__ import annotations

from models.kube.owner import controller_of
from models.kube.types import Metadata, OfferedPodSpec, Preferences

_SPREAD = {
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "StatefulSet"),
    ("v1", "ReplicationController"),
}
"""Owners whose pods kube-scheduler spreads over nodes and zones by default (``DefaultSelector`` in
pkg/scheduler/framework/plugins/helper of Kubernetes 1.37)."""

_REPLICATING = ("Deployment", "ReplicaSet", "ReplicationController", "StatefulSet")
_ENDING = ("Pod", "Job", "CronJob")


def has_preferences(spec: OfferedPodSpec) -> bool:
    """Whether a pod says which of the nodes that fit it would rather have.

    By preferred affinity or a spread that is not required; or it has volumes or devices, which have
    to be found on the node too.
    """
    if spec.resource_claims or any(
        volume.persistent_volume_claim or volume.ephemeral for volume in spec.volumes or ()
    ):
        return True
    spread = spec.topology_spread_constraints or ()
    if any(constraint.when_unsatisfiable == "ScheduleAnyway" for constraint in spread):
        return True
    affinity = spec.affinity
    return affinity is not None and any(
        map(_preferred, (affinity.node_affinity, affinity.pod_affinity, affinity.pod_anti_affinity))
    )


def replica_of(metadata: Metadata) -> str:
    """The UID of the owner beside whose other pods a pod is spread by default; empty for none.

    A pod that was told to go counts for none. Which of an owner's pods also belong to the same
    Services is not looked at: they have the labels of one template.
    """
    owner = controller_of(metadata)
    if owner is None or metadata.deletion_timestamp:
        return ""
    return owner.uid if (owner.api_version, owner.kind) in _SPREAD else ""


def may_be_spread(workload: str, offline: bool) -> bool:
    """Whether a workload's pods are spread by something, which may not be known.

    kube-scheduler also spreads pods behind a Service, whoever owns them. Offline pods are taken to
    have none, online pods to have one unless they run to their end.

    Args:
        workload: as `models.kube.owner.workload_of` gives it.
        offline: the pods' tier.
    """
    return replicates(workload) if offline else _kind(workload) not in _ENDING


def replicates(workload: str) -> bool:
    """Whether a workload's owner makes replicas that kube-scheduler spreads by default."""
    return _kind(workload) in _REPLICATING


def _kind(workload: str) -> str:
    return workload.split("/")[1] if workload.count("/") == 2 else ""


def _preferred(terms: Preferences | None) -> bool:
    return terms is not None and bool(terms.preferred)
