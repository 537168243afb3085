"""What a pod requests of each resource, by kube-scheduler's own rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.kube.quantity import MAX, QuantityError, cores, parse_quantity, whole
from models.kube.types import (
    Container,
    GrantedRequests,
    PodSpec,
    Requests,
    Resources,
    RunningStatus,
)

RECLAIMED = "archimedes.dev/reclaimed-millicpu"
"""The reclaimed resource's name where the operator chooses no other; one unit = one millicore."""

GIB = 2**30

_NONE = Resources()
_NO_STATUS = RunningStatus()
_NOTHING = Requests()
_NOT_GRANTED = GrantedRequests()

Amount = Callable[[Resources], float]


def asks_for(spec: PodSpec, resource: str) -> bool:
    """Whether a container or init container names the resource in requests or limits.

    kube-scheduler decides in the same way whether an extender manages a pod.
    """
    return any(
        resource in (amounts or ())
        for container in (*(spec.containers or ()), *(spec.init_containers or ()))
        for resources in (container.resources or _NONE,)
        for amounts in (resources.requests, resources.limits)
    )


def pod_request(spec: PodSpec, amount: Amount, status: RunningStatus = _NO_STATUS) -> float:
    """What a pod asks for of one resource in all, by kube-scheduler's own formula.

    A request of the pod as a whole replaces the sum of its containers'; overhead is added. While
    the pod is resized in place, the most counts of what it asks for, what its kubelet has set aside
    and what is in force; what no kubelet can give does not. Source: ``PodRequests`` in
    k8s.io/component-helpers/resource.

    Args:
        spec: the pod's.
        amount: reads the resource from requests and limits, 0 where they do not name it.
        status: the pod's, where it may run.
    """
    asked = _sum(spec, lambda container: amount(container.resources or _NONE))
    of_pod = amount(spec.resources) if spec.resources else 0.0
    if status.container_statuses and _is_resized(spec, status):
        asked, of_pod = _resized(spec, amount, status, asked, of_pod)
    return (of_pod or asked) + (amount(Resources(requests=spec.overhead)) if spec.overhead else 0)


def cpu_request(spec: PodSpec, status: RunningStatus = _NO_STATUS) -> float:
    """Cores of ordinary CPU that a pod requests."""
    return pod_request(spec, _cpu, status)


def memory_request(spec: PodSpec) -> float:
    """GiB that a pod requests."""
    return pod_request(spec, _memory)


def reclaimed_request(spec: PodSpec, resource: str) -> int:
    """Millicores that a pod asks for of the reclaimed resource.

    Raises:
        QuantityError: the amount is not one that a node could have.
    """
    return min(int(pod_request(spec, lambda found: whole(_read(found, resource)))), MAX)


def _sum(spec: PodSpec, own: Callable[[Container], float]) -> float:
    """What a pod's containers take in all, by what each takes.

    Containers and sidecars (init containers that always restart) run together, so they add up;
    before them each init container runs beside the sidecars that were started earlier, so the
    largest of those moments counts.
    """
    running = sum(map(own, spec.containers or ()))
    sidecars = highest = 0.0
    for container in spec.init_containers or ():
        taken = own(container)
        if container.restart_policy == "Always":
            running += taken
            sidecars += taken
            highest = max(highest, sidecars)
        else:
            highest = max(highest, taken + sidecars)
    return max(running, highest)


def _is_resized(spec: PodSpec, status: RunningStatus) -> bool:
    """Whether a kubelet may have granted anything but what is asked for: that is rare."""
    return (
        spec.resources is not None
        or _differ(spec.containers, status.container_statuses)
        or _differ(spec.init_containers, status.init_container_statuses)
    )


def _differ(
    containers: Sequence[Container] | None, granted: Sequence[GrantedRequests] | None
) -> bool:
    # Each event of a pod passes here: equal texts are told apart from others before any is read.
    if not containers or not granted:
        return False
    asked = {one.name: one.resources.requests if one.resources else None for one in containers}
    for one in granted:
        if one.resources is None and one.allocated_resources is None:
            continue  # it does not run yet, or its kubelet resizes nothing
        requests = asked.get(one.name)
        if one.allocated_resources != requests or (one.resources or _NOTHING).requests != requests:
            return True
    return False


def _resized(
    spec: PodSpec, amount: Amount, status: RunningStatus, asked: float, of_pod: float
) -> tuple[float, float]:
    """The most of what is asked for and what is granted: of the containers, and of the pod."""
    infeasible = _is_infeasible(status)
    statuses = (*(status.container_statuses or ()), *(status.init_container_statuses or ()))
    granted = {one.name: one for one in statuses}

    def allocated(container: Container) -> float:
        found = granted.get(container.name, _NOT_GRANTED).allocated_resources
        if found is not None:
            return amount(Resources(requests=found))
        return 0.0 if infeasible else amount(container.resources or _NONE)

    def in_force(container: Container) -> float:
        found = granted.get(container.name, _NOT_GRANTED).resources
        if found is not None and found.requests is not None:
            return amount(Resources(requests=found.requests))
        return allocated(container)

    sums = (_sum(spec, allocated), _sum(spec, in_force))
    asked = max(0.0 if infeasible else asked, *sums)
    if of_pod and status.resources is not None:
        found = (status.allocated_resources, status.resources.requests)
        amounts = (amount(Resources(requests=each)) for each in found)
        of_pod = max(0.0 if infeasible else of_pod, *amounts)
    return asked, of_pod


def _is_infeasible(status: RunningStatus) -> bool:
    """Whether the pod's node can never give what it was resized to."""
    pending = (one for one in status.conditions or () if one.type == "PodResizePending")
    return any(one.reason == "Infeasible" for one in pending)


def _read(resources: Resources, resource: str) -> str:
    """A request, else the limit, which the API server copies to the request."""
    for amounts in (resources.requests, resources.limits):
        if amounts and resource in amounts:
            return str(amounts[resource])
    return "0"


def _cpu(resources: Resources) -> float:
    """Ordinary CPU is the API server's to validate; what cannot be read counts as nothing."""
    try:
        return cores(_read(resources, "cpu"))
    except QuantityError:
        return 0.0


def _memory(resources: Resources) -> float:
    """As with ordinary CPU."""
    try:
        return float(parse_quantity(_read(resources, "memory"))) / GIB
    except QuantityError:
        return 0.0
