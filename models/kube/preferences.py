"""Whether kube-scheduler would rather have a pod on one node than on another that fits as well."""

from __future__ import annotations

from models.kube.types import OfferedPodSpec, Preferences

_SPREAD = ("Deployment", "ReplicaSet", "ReplicationController", "StatefulSet")
"""Owners whose pods kube-scheduler spreads over nodes and zones by default (``DefaultSelector`` in
pkg/scheduler/framework/plugins/helper of Kubernetes 1.37)."""

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


def is_spread(workload: str, offline: bool) -> bool:
    """Whether a workload's pods are to be spread, or may well be.

    kube-scheduler also spreads pods behind a Service, whoever owns them. Offline pods are taken to
    have none, online pods to have one unless they run to their end.

    Args:
        workload: as `models.kube.owner.workload_of` gives it.
        offline: the pods' tier.
    """
    kind = workload.split("/")[1] if workload.count("/") == 2 else ""
    return kind in _SPREAD if offline else kind not in _ENDING


def _preferred(terms: Preferences | None) -> bool:
    return terms is not None and bool(terms.preferred)
