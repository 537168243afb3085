"""Where pods may run: labels, taints, affinity and spread, in Kubernetes' own JSON form.

These are the parts of a node's and a pod's specification that kube-scheduler's default filters and
scores read. A trace carries each as JSON text, exactly as `kubectl get -o json` shows it; fields
that are not listed here are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Labels = dict[str, str]

HOSTNAME = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"


class _Kubernetes(msgspec.Struct, frozen=True, rename="camel"):
    """Names its fields as Kubernetes does."""


class Taint(_Kubernetes, frozen=True):
    """One of a node's `spec.taints`."""

    key: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
    value: str = ""


class Toleration(_Kubernetes, frozen=True):
    """One of a pod's `spec.tolerations`; without a key it is for every taint."""

    key: str = ""
    operator: Literal["", "Equal", "Exists"] = ""
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    def tolerates(self, taint: Taint) -> bool:
        """Whether it is for this taint."""
        if self.effect not in ("", taint.effect) or self.key not in ("", taint.key):
            return False
        return self.operator == "Exists" or self.value == taint.value


class Requirement(_Kubernetes, frozen=True):
    """One of the `matchExpressions` of a selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what the API server refuses.

        Raises:
            ValueError: the operator takes other values.
        """
        if self.operator in ("In", "NotIn") and not self.values:
            raise ValueError(f"operator {self.operator} needs values")
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            raise ValueError(f"operator {self.operator} takes no values")
        if self.operator in ("Gt", "Lt") and not (len(self.values) == 1 and _whole(self.values[0])):
            raise ValueError(f"operator {self.operator} needs one whole number")

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet it; `NotIn` is met where the key is absent, as in Kubernetes."""
        found = labels.get(self.key)
        match self.operator:
            case "In":
                return found in self.values
            case "NotIn":
                return found not in self.values
            case "Exists":
                return found is not None
            case "DoesNotExist":
                return found is None
        if found is None or not _whole(found):
            return False
        bound = int(self.values[0])
        return int(found) > bound if self.operator == "Gt" else int(found) < bound


class NodeSelectorTerm(_Kubernetes, frozen=True):
    """Requirements on a node's labels and on its name, all of which must be met."""

    match_expressions: tuple[Requirement, ...] = ()
    match_fields: tuple[Requirement, ...] = ()

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether a node meets it; a term without requirements is met by none."""
        if not (self.match_expressions or self.match_fields):
            return False
        fields = {"metadata.name": name}
        return all(r.matches(labels) for r in self.match_expressions) and all(
            r.matches(fields) for r in self.match_fields
        )


class NodeSelector(_Kubernetes, frozen=True):
    """Terms of which a node must meet one."""

    node_selector_terms: tuple[NodeSelectorTerm, ...]


class PreferredTerm(_Kubernetes, frozen=True):
    """A term that a pod would like its node to meet."""

    weight: Annotated[int, Meta(ge=1, le=100)]
    preference: NodeSelectorTerm


class NodeAffinity(
    _Kubernetes,
    frozen=True,
    rename={
        "required": "requiredDuringSchedulingIgnoredDuringExecution",
        "preferred": "preferredDuringSchedulingIgnoredDuringExecution",
    },
):
    """A pod's `spec.affinity.nodeAffinity`."""

    required: NodeSelector | None = None
    preferred: tuple[PreferredTerm, ...] = ()


class LabelSelector(_Kubernetes, frozen=True):
    """Which pods are meant: all that meet every requirement."""

    match_labels: Labels = msgspec.field(default_factory=dict)
    match_expressions: tuple[Requirement, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether it requires nothing."""
        return not (self.match_labels or self.match_expressions)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a pod with these labels is meant."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            r.matches(labels) for r in self.match_expressions
        )


class TopologySpread(_Kubernetes, frozen=True):
    """One of a pod's `spec.topologySpreadConstraints`."""

    max_skew: Annotated[int, Meta(ge=1)]
    topology_key: str
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: LabelSelector | None = None
    match_label_keys: tuple[str, ...] = ()
    min_domains: Annotated[int, Meta(ge=1)] | None = None
    node_affinity_policy: Literal["Honor", "Ignore"] = "Honor"
    node_taints_policy: Literal["Honor", "Ignore"] = "Ignore"


NODE_JSON: dict[str, Any] = {"labels": Labels, "taints": tuple[Taint, ...]}
"""What each JSON column of nodes.parquet holds."""

POD_JSON: dict[str, Any] = {
    "labels": Labels,
    "node_selector": Labels,
    "node_affinity": NodeAffinity,
    "tolerations": tuple[Toleration, ...],
    "topology_spread": tuple[TopologySpread, ...],
}
"""What each JSON column of pods.parquet holds."""


def _whole(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()
