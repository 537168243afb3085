"""Nodes that are gone, from the series that a Prometheus has kept of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from models.kube.request import GIB
from models.prometheus import PrometheusSource, Series, selector
from models.usage_source import PrometheusSettings
from trainer.importers.cluster_objects import NodeFacts
from trainer.importers.state_metrics import by_day


def cpu_query(settings: PrometheusSettings) -> str:
    """The PromQL for each node's cores: allocatable, or else those of the machine."""
    return _query(settings, "cpu", "machine_cpu_cores")


def memory_query(settings: PrometheusSettings) -> str:
    """The PromQL for each node's memory in bytes: allocatable, or else that of the machine."""
    return _query(settings, "memory", "machine_memory_bytes")


def _query(settings: PrometheusSettings, resource: str, machine: str) -> str:
    """kube-state-metrics' series, else the kubelet's.

    Of these the Prometheus Operator writes the node's name to ``node``; Prometheus' own service
    discovery writes it to ``instance``.
    """
    state = selector("kube_node_status_allocatable", settings, f'resource="{resource}"')
    labelled = selector(machine, settings, 'node!=""')
    others = selector(machine, settings, 'node=""')
    return (
        f"max by (node) ({state}) or max by (node) ({labelled}) or "
        f'max by (node) (label_replace({others}, "node", "$1", "instance", "(.+)"))'
    )


async def past_nodes(
    source: PrometheusSource, cores: str, memory: str, start: int, end: int
) -> dict[str, NodeFacts]:
    """Nodes that existed in [start, end), seconds since the epoch, by name.

    Args:
        source: where to ask.
        cores, memory: PromQL that returns cores and bytes by node.
        start, end: seconds since the epoch.

    Raises:
        UsageError: a query failed.
    """
    # The least of a day: a scrape that failed lets the machine's own, which is more, through.
    amounts = [
        _last(await by_day(source, f"min_over_time(({query})[1d:5m])", start, end))
        for query in (cores, memory)
    ]
    first = await by_day(source, f"min_over_time(timestamp({cores})[1d:5m])", start, end)
    last = _last(await by_day(source, f"max_over_time(timestamp({cores})[1d:5m])", start, end))
    begun = {_node(series): series.values[0][1] for series in first}
    return {
        node: NodeFacts(
            node=node,
            cpu=cpu,
            memory=amounts[1][node] / GIB,
            created=begun.get(node, -math.inf),
            unschedulable=False,
            constraints={},
            unread=(),
            gone=last.get(node, math.inf),
        )
        for node, cpu in amounts[0].items()
        if node and cpu > 0 and amounts[1].get(node, 0) > 0
    }


def _last(found: Iterable[Series]) -> dict[str, float]:
    return {_node(series): series.values[-1][1] for series in found}


def _node(series: Series) -> str:
    return series.metric.get("node", "")
