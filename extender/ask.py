"""What a pod asks for: how much, for how long, and of which tier."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache

import msgspec

from extender.decide import Ask
from extender.homes import REBUILD_LABEL
from extender.kube_types import (
    Metadata,
    Pod,
    PodSpec,
    PodStatus,
    Resources,
    version_of,
)
from extender.owner import workload_of
from extender.quantity import MAX, QuantityError, cores, whole
from models.policy import horizon_index

DURATION_ANNOTATION = "archimedes.dev/expected-duration"
CANDIDATES_ANNOTATION = "archimedes.dev/candidates"

DEFAULT_DURATION = 24 * 3600.0
"""Seconds for a pod that says nothing and whose workload's runs are not known: the longest horizon,
which promises the least."""

_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[dhms])+")
_PART = re.compile(r"([0-9.]+)([dhms])")
_SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_MAX_TEXT = 64
_FINISHED = ("Succeeded", "Failed")
_NONE = Resources()

Amount = Callable[[Resources], float]
Lasted = Callable[[str], float | None]


def _never(_: str) -> None:
    """No workload has ever finished a run."""


class PodFacts(msgspec.Struct, frozen=True, gc=False):
    """What the extender keeps of a pod.

    Fields, with units:
        uid: or ``namespace/name`` where a caller left the UID out.
        key: ``namespace/name``.
        workload: its top owner, ``namespace/kind/name``; see `extender.owner`.
        node: where it is bound, or empty.
        offline: whether it asks for the reclaimed resource (zero counts).
        ask: millicores and horizon; for an online pod, its ordinary request.
        request: ordinary CPU request, cores.
        started: seconds since the epoch at which its kubelet took it, inf before that.
        finished: whether it has succeeded or failed, and so uses nothing.
        problem: why its ask for the reclaimed resource cannot be met anywhere, or empty.
        bad_annotations: annotations that could not be read and were ignored.
        candidates: how many nodes it wants to be offered; None for the setting.
        rebuild: whether its label asks for the node that a pod of its workload has left.
        version: its resourceVersion, 0 where there is none.
    """

    uid: str
    key: str
    workload: str
    node: str
    offline: bool
    ask: Ask
    request: float
    started: float
    finished: bool
    problem: str
    bad_annotations: tuple[str, ...]
    candidates: int | None
    rebuild: bool
    version: int


def pod_facts(pod: Pod, resource: str, lasted: Lasted = _never) -> PodFacts:
    """Read a pod; never fails, whatever is missing or malformed.

    Args:
        pod: as the API server or kube-scheduler sent it.
        resource: the name of the reclaimed resource.
        lasted: for how long, in seconds, runs of a workload last; None where it is not known.
    """
    metadata, spec = pod.metadata or Metadata(), pod.spec or PodSpec()
    status = pod.status or PodStatus()
    key = f"{metadata.namespace or 'default'}/{metadata.name or ''}"
    offline = asks_for(spec, resource)
    request = pod_request(spec, _cpu)
    millicpu, problem = _reclaimed(spec, resource) if offline else (round(request * 1000), "")
    annotations = metadata.annotations or {}
    workload = sys.intern(workload_of(metadata))
    duration, candidates, bad = _annotated(annotations, spec)
    if duration is None:
        duration = (lasted(workload) if offline else None) or DEFAULT_DURATION
    return PodFacts(
        uid=metadata.uid or key,
        key=key,
        workload=workload,
        node=spec.node_name or "",
        offline=offline,
        ask=Ask(millicpu, horizon_index(duration), offline),
        request=request,
        started=seconds_of(status.start_time),
        finished=status.phase in _FINISHED,
        problem=problem,
        bad_annotations=bad,
        candidates=candidates,
        rebuild=(metadata.labels or {}).get(REBUILD_LABEL) == "true",
        version=version_of(metadata),
    )


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
    total = amount(spec.resources or _NONE) or max(running, highest)
    return total + amount(Resources(requests=spec.overhead))


@lru_cache(maxsize=1024)
def parse_duration(text: str) -> float | None:
    """Seconds of a duration such as "90m", "2h" or "1d12h"; None where it is none, or is 0."""
    text = text.strip()
    if len(text) > _MAX_TEXT or not _DURATION.fullmatch(text):
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return seconds or None


def seconds_of(text: str | None) -> float:
    """Seconds since the epoch of an RFC 3339 time; inf where there is none."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else math.inf
    except ValueError:
        return math.inf


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


def _reclaimed(spec: PodSpec, resource: str) -> tuple[int, str]:
    """Millicores asked of the reclaimed resource, and what is wrong with the ask."""
    try:
        asked = pod_request(spec, lambda resources: whole(_read(resources, resource)))
    except QuantityError as e:
        return 0, f"asks for {resource} in a way that no node can meet: {e}"
    return min(int(asked), MAX), ""


def _annotated(
    annotations: Mapping[str, str], spec: PodSpec
) -> tuple[float | None, int | None, tuple[str, ...]]:
    """Expected duration in seconds, wanted candidates, and the annotations that are malformed.

    The duration is None where the pod says nothing. A malformed one counts as the longest horizon:
    the pod can only be promised less.
    """
    bad: list[str] = []
    duration = float(spec.active_deadline_seconds or 0) or None
    if (text := annotations.get(DURATION_ANNOTATION)) is not None:
        parsed = parse_duration(text)
        duration = parsed if parsed is not None else DEFAULT_DURATION
        if parsed is None:
            bad.append(DURATION_ANNOTATION)
    candidates = None
    if (text := annotations.get(CANDIDATES_ANNOTATION)) is not None:
        candidates = int(text) if text.isascii() and text.isdigit() and len(text) < 7 else None
        if candidates is None:
            bad.append(CANDIDATES_ANNOTATION)
    return duration, candidates, tuple(bad)
