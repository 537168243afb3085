"""What a pod asks for: how much, for how long, and of which tier."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec

from extender.decide import Ask
from extender.homes import REBUILD_LABEL
from models.kube.owner import workload_of
from models.kube.preferences import replica_of
from models.kube.quantity import QuantityError
from models.kube.request import asks_for, cpu_request, reclaimed_request
from models.kube.types import Metadata, Pod, PodSpec, RunningStatus, seconds_of, version_of
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

Lasted = Callable[[str], float | None]


def _never(_: str) -> None:
    """No workload has ever finished a run."""


class PodFacts(msgspec.Struct, frozen=True, gc=False):
    """What the extender keeps of a pod.

    Fields, with units:
        uid: or ``namespace/name`` where a caller left the UID out.
        key: ``namespace/name``.
        workload: its top owner, ``namespace/kind/name``; see `models.kube.owner`.
        replica_of: UID of the owner whose pods are spread, or empty; see
            `models.kube.preferences.replica_of`.
        node: where it is bound, or empty.
        offline: whether it asks for the reclaimed resource (zero counts).
        ask: millicores and horizon; for an online pod, its ordinary request.
        request: ordinary CPU request, cores.
        started: seconds since the epoch at which its kubelet took it, inf before that.
        finished: whether it has succeeded or failed, and so uses nothing.
        problem: why its ask for the reclaimed resource cannot be met anywhere, or empty.
        bad_annotations: annotations that could not be read and were ignored.
        candidates: how many nodes it wants to be offered; None for the setting.
        rebuild: whether its label asks for the node that such a pod of its workload has left.
        version: its resourceVersion, 0 where there is none.
    """

    uid: str
    key: str
    workload: str
    replica_of: str
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
    status = pod.status or RunningStatus()
    key = _key(metadata)
    offline = asks_for(spec, resource)
    request = cpu_request(spec, status)
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
        replica_of=sys.intern(replica_of(metadata)),
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


def uid_of(metadata: Metadata) -> str:
    """A pod's UID, or ``namespace/name`` where a caller left it out."""
    return metadata.uid or _key(metadata)


def _key(metadata: Metadata) -> str:
    return f"{metadata.namespace or 'default'}/{metadata.name or ''}"


@lru_cache(maxsize=1024)
def parse_duration(text: str) -> float | None:
    """Seconds of a duration such as "90m", "2h" or "1d12h"; None where it is none, or is 0."""
    text = text.strip()
    if len(text) > _MAX_TEXT or not _DURATION.fullmatch(text):
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return seconds or None


def _reclaimed(spec: PodSpec, resource: str) -> tuple[int, str]:
    """Millicores asked of the reclaimed resource, and what is wrong with the ask."""
    try:
        return reclaimed_request(spec, resource), ""
    except QuantityError as e:
        return 0, f"asks for {resource} in a way that no node can meet: {e}"


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
