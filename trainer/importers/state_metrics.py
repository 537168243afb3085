"""Pods that are gone, from the series of kube-state-metrics that a Prometheus has kept of them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from models.kube.owner import workload_of
from models.kube.request import GIB
from models.kube.types import Metadata, OwnerReference
from models.prometheus import PrometheusSource, Series, selector
from models.usage_source import PrometheusSettings
from trainer.importers.cluster_objects import PodFacts

_DAY = 86_400

_TEMPLATE = re.compile(r"-([bcdfghjklmnpqrstvwxz2456789]{5,10})$")
"""What a Deployment appends to its name for a ReplicaSet's: a hash in letters that spell nothing.
The pod's own label tells it too, but kube-state-metrics exports no labels unless it is told to."""


async def past_pods(
    source: PrometheusSource, settings: PrometheusSettings, start: int, end: int, resource: str
) -> dict[str, PodFacts]:
    """Pods that existed in [start, end), seconds since the epoch, by ``namespace/name``.

    Of a name that several pods had, the newest counts. Empty where there is no kube-state-metrics.

    Raises:
        UsageError: a query failed.
    """
    days = -(-(end - start) // _DAY)
    first = end - (days - 1) * _DAY
    reclaimed = re.sub(r"[^a-zA-Z0-9_]", "_", resource)  # as kube-state-metrics writes names
    requests = selector(
        "kube_pod_container_resource_requests", settings, f'resource=~"cpu|memory|{reclaimed}"'
    )
    # Containers of one pod add up; pods of one name, which differ in their uid, do not.
    amounts = await source.series(
        f"max by (namespace,pod,resource) (sum by (namespace,pod,uid,resource) "
        f"(max_over_time({requests}[1d])))",
        first,
        end,
        step=_DAY,
    )
    places = await source.series(
        "max by (namespace,pod,node,created_by_kind,created_by_name) "
        f"(max_over_time({selector('kube_pod_info', settings)}[1d]))",
        first,
        end,
        step=_DAY,
    )
    return _facts(amounts, places, reclaimed)


def _facts(
    amounts: Iterable[Series], places: Iterable[Series], reclaimed: str
) -> dict[str, PodFacts]:
    requested: dict[str, dict[str, float]] = {}
    for series in amounts:
        if series.values and (key := _key(series)):
            resources = requested.setdefault(key, {})
            resources[series.metric.get("resource", "")] = series.values[-1][1]
    newest: dict[str, Series] = {}
    for series in places:
        key = _key(series)
        if series.values and key and (key not in newest or _last(newest[key]) < _last(series)):
            newest[key] = series
    return {
        key: _pod(key, requested.get(key, {}), place.metric, reclaimed)
        for key, place in newest.items()
    }


def _pod(key: str, requested: dict[str, float], labels: dict[str, str], reclaimed: str) -> PodFacts:
    offline = reclaimed in requested
    return PodFacts(
        pod=key,
        workload=_workload(labels),
        tier="offline" if offline else "online",
        cpu_request=requested[reclaimed] / 1000 if offline else requested.get("cpu", 0.0),
        memory_request=requested.get("memory", 0.0) / GIB,
        node=labels.get("node", ""),
    )


def _workload(labels: dict[str, str]) -> str:
    kind, name = labels.get("created_by_kind", ""), labels.get("created_by_name", "")
    template = _TEMPLATE.search(name) if kind == "ReplicaSet" else None
    nobody = ("", "<none>")  # how kube-state-metrics writes that there is no owner
    return workload_of(
        Metadata(
            name=labels["pod"],
            namespace=labels["namespace"],
            labels={"pod-template-hash": template[1]} if template else None,
            owner_references=None if kind in nobody else [OwnerReference(kind, name, True)],
        )
    )


def _key(series: Series) -> str:
    namespace, pod = series.metric.get("namespace"), series.metric.get("pod")
    return f"{namespace}/{pod}" if namespace and pod else ""


def _last(series: Series) -> float:
    return series.values[-1][0]
