"""What a pod requests of each resource, by kube-scheduler's own rules."""

from __future__ import annotations

from collections.abc import Callable

from models.kube.quantity import MAX, QuantityError, cores, parse_quantity, whole
from models.kube.types import PodSpec, Resources

RECLAIMED = "archimedes.dev/reclaimed-millicpu"
"""The reclaimed resource's name where the operator chooses no other; one unit = one millicore."""

GIB = 2**30

_NONE = Resources()

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


def pod_request(spec: PodSpec, amount: Amount) -> float:
    """What a pod asks for of one resource in all, by kube-scheduler's own formula.

    Containers and sidecars (init containers that always restart) run together, so they add up;
    before them each init container runs beside the sidecars that were started earlier, so the
    largest of those moments counts. A request of the pod as a whole replaces the sum; overhead is
    added. Source: ``PodRequests`` in k8s.io/component-helpers/resource.

    Args:
        spec: the pod's.
        amount: reads the resource from requests and limits, 0 where they do not name it.
    """
    running = sum(amount(container.resources or _NONE) for container in spec.containers or ())
    sidecars = highest = 0.0
    for container in spec.init_containers or ():
        own = amount(container.resources or _NONE)
        if container.restart_policy == "Always":
            running += own
            sidecars += own
            highest = max(highest, sidecars)
        else:
            highest = max(highest, own + sidecars)
    total = (amount(spec.resources) if spec.resources else 0) or max(running, highest)
    return total + (amount(Resources(requests=spec.overhead)) if spec.overhead else 0)


def cpu_request(spec: PodSpec) -> float:
    """Cores of ordinary CPU that a pod requests."""
    return pod_request(spec, _cpu)


def memory_request(spec: PodSpec) -> float:
    """GiB that a pod requests."""
    return pod_request(spec, _memory)


def reclaimed_request(spec: PodSpec, resource: str) -> int:
    """Millicores that a pod asks for of the reclaimed resource.

    Raises:
        QuantityError: the amount is not one that a node could have.
    """
    return min(int(pod_request(spec, lambda found: whole(_read(found, resource)))), MAX)


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
