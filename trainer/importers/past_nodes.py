"""Nodes that are gone, from the series that a Prometheus has kept of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from models.grid import WINDOW
from models.kube.request import GIB
from models.prometheus import PrometheusSource, selector
from models.usage_source import PrometheusSettings
from trainer.importers.cluster_objects import NodeFacts
from trainer.importers.state_metrics import day_ends


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
    days = day_ends(start, end)
    # The least of a day: a scrape that failed lets the machine's own, which is more, through.
    cpu = await _figures(source, f"min_over_time(({cores})[1d:5m])", days)
    size = await _figures(source, f"min_over_time(({memory})[1d:5m])", days)
    last = await _figures(source, f"max_over_time(timestamp({cores})[1d:5m])", days)
    first = await _figures(source, f"min_over_time(timestamp({cores})[1d:5m])", days[::-1])
    return {
        node: NodeFacts(
            node=node,
            cpu=cpu[node],
            memory=size[node] / GIB,
            created=first.get(node, -math.inf),
            unschedulable=False,
            constraints={},
            unread=(),
            gone=last.get(node, math.inf),
        )
        for node in cpu
        if cpu[node] > 0 and size.get(node, 0) > 0
    }


async def _figures(source: PrometheusSource, query: str, days: Iterable[int]) -> dict[str, float]:
    """What a query returns for each node, by its name, on the last of the days on which it does.

    A day at a time, since servers bound the samples that one query may look at.
    """
    found: dict[str, float] = {}
    for day in days:
        for series in await source.series(query, day, day, step=WINDOW):
            if series.values and "node" in series.metric:
                found[series.metric["node"]] = series.values[-1][1]
    return found
