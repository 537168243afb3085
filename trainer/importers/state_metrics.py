"""Pods that are gone, from the series of kube-state-metrics that a Prometheus has kept of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from models.kube.owner import workload_of
from models.kube.request import GIB
from models.kube.types import Metadata, OwnerReference
from models.prometheus import PrometheusSource, Series, selector
from models.usage_source import PrometheusSettings
from trainer.importers.cluster_objects import PodFacts
from trainer.importers.lives import PastPod

_DAY = 86_400

_TEMPLATE = re.compile(r"-([bcdfghjklmnpqrstvwxz2456789]{5,10})$")
"""What a Deployment appends to its name for a ReplicaSet's: a hash in letters that spell nothing.
The pod's own label tells it too, but kube-state-metrics exports no labels unless it is told to."""


async def past_pods(
    source: PrometheusSource, settings: PrometheusSettings, start: int, end: int, resource: str
) -> dict[str, list[PastPod]]:
    """Pods that existed in [start, end), seconds since the epoch, by ``namespace/name``.

    Empty where there is no kube-state-metrics.

    Raises:
        UsageError: a query failed.
    """
    reclaimed = re.sub(r"[^a-zA-Z0-9_]", "_", resource)  # as kube-state-metrics writes names
    requests = selector(
        "kube_pod_container_resource_requests", settings, f'resource=~"cpu|memory|{reclaimed}"'
    )
    created = selector("kube_pod_created", settings)
    info, owner = selector("kube_pod_info", settings), "created_by_kind,created_by_name"
    days = day_ends(start, end)
    amounts, births, places = [
        [each for each in await source.series(query, days[0], days[-1], step=_DAY) if each.values]
        for query in (
            # Containers of one pod add up; pods of one name, which differ in their uid, do not.
            f"sum by (namespace,pod,uid,resource) (max_over_time({requests}[1d]))",
            f"max by (namespace,pod,uid) (max_over_time({created}[1d]))",
            f"max by (namespace,pod,uid,node,{owner}) (max_over_time({info}[1d]))",
        )
    ]
    return _pods(amounts, births, places, reclaimed)


def day_ends(start: int, end: int) -> range:
    """When the days of [start, end) end, the last at ``end``; the first may begin before."""
    return range(end - (-(-(end - start) // _DAY) - 1) * _DAY, end + 1, _DAY)


def _pods(
    amounts: Iterable[Series], births: Iterable[Series], places: Iterable[Series], reclaimed: str
) -> dict[str, list[PastPod]]:
    requested: dict[tuple[str, str], dict[str, float]] = {}
    for series in amounts:
        resources = requested.setdefault(_pod(series), {})
        resources[series.metric.get("resource", "")] = series.values[-1][1]
    created = {_pod(series): series.values[-1][1] for series in births}
    newest: dict[tuple[str, str], Series] = {}
    for series in sorted(places, key=_newness):  # a pod that waited has been without a node
        newest[_pod(series)] = series
    found: dict[str, list[PastPod]] = {}
    for pod, place in newest.items():
        if pod[0]:
            facts = _facts(pod, requested.get(pod, {}), place.metric, reclaimed)
            past = PastPod(facts, created.get(pod, math.inf), place.values[-1][0])
            found.setdefault(facts.pod, []).append(past)
    return found


def _facts(
    pod: tuple[str, str], requested: dict[str, float], labels: dict[str, str], reclaimed: str
) -> PodFacts:
    offline = reclaimed in requested
    return PodFacts(
        pod=pod[0],
        uid=pod[1],
        workload=_workload(labels),
        tier="offline" if offline else "online",
        cpu_request=requested[reclaimed] / 1000 if offline else requested.get("cpu", 0.0),
        memory_request=requested.get("memory", 0.0) / GIB,
        node=labels.get("node", ""),
    )


def _workload(labels: dict[str, str]) -> str:
    kind, name = labels.get("created_by_kind", ""), labels.get("created_by_name", "")
    template = _TEMPLATE.search(name) if kind == "ReplicaSet" else None
    owner = OwnerReference(kind=kind, name=name, controller=True)
    nobody = ("", "<none>")  # how kube-state-metrics writes that there is no owner
    return workload_of(
        Metadata(
            name=labels["pod"],
            namespace=labels["namespace"],
            labels={"pod-template-hash": template[1]} if template else None,
            owner_references=None if kind in nobody else [owner],
        )
    )


def _pod(series: Series) -> tuple[str, str]:
    """Name ``namespace/name`` and uid; without a name it is no pod's series."""
    namespace, pod = series.metric.get("namespace"), series.metric.get("pod")
    return f"{namespace}/{pod}" if namespace and pod else "", series.metric.get("uid", "")


def _newness(series: Series) -> tuple[float, bool]:
    return series.values[-1][0], bool(series.metric.get("node"))
