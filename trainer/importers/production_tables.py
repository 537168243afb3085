"""The tables of a trace from what was found of a cluster's pods, nodes and usage."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from models.arrays import Floats32, Ints
from models.constraints import NODE_JSON, POD_JSON
from models.grid import WINDOW
from models.trace_schema import NODES, PODS, USAGE, conform
from models.trace_validation import MOST_CORES
from models.usage_source import UsageBlock
from trainer.importers.cluster_objects import NodeFacts, PodFacts
from trainer.importers.common import moment
from trainer.importers.lives import Lives

_LINGERS = 2 * WINDOW
"""Seconds before the period's end after which a node that was seen is there to the last: it is
looked for every window, and what is seen of it may be a window old."""


@dataclass(frozen=True, slots=True)
class Period:
    """What is imported: [start, end), seconds since the epoch, whole windows."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Seen:
    """From when until when usage of a pod was observed, seconds since the epoch."""

    start: int
    end: int


def usage_rows(
    block: UsageBlock, peaks: UsageBlock | None, wanted: Mapping[str, Lives]
) -> pl.DataFrame:
    """Rows of usage.parquet; what is no usage stays a gap, and a peak is never below its mean.

    Args:
        block: mean cores of each pod and window.
        peaks: the most cores, of any pods in any order; None where they are not wanted.
        wanted: what is known of the names whose usage counts, ``namespace/name``.
    """
    kept = [row for row, pod in enumerate(block.pods) if pod in wanted]
    cpu = block.cpu[kept]
    row, column = np.nonzero(_possible(cpu))
    time = block.start + column.astype(np.int64) * WINDOW
    names = _names([wanted[block.pods[at]] for at in kept], row, time)
    rows = pl.DataFrame(
        {"pod": pl.Series(names, dtype=pl.String), "time": time, "cpu": cpu[row, column]}
    ).with_columns(moment("time"))
    if peaks is None:
        return conform(rows, USAGE)
    highest = _aligned(peaks, [block.pods[at] for at in kept])[row, column]
    highest = np.where(_possible(highest), np.maximum(highest, cpu[row, column]), np.nan)
    return conform(rows.with_columns(cpu_max=pl.Series(highest).fill_nan(None)), USAGE)


def _names(names: Sequence[Lives], row: Ints, time: Ints) -> np.ndarray[tuple[int], np.dtype[Any]]:
    """The pod of each window, given its row among the names (ascending) and its start."""
    found = np.array([each.pods[-1].pod for each in names], dtype=object)[row]
    bounds = np.searchsorted(row, np.arange(len(names) + 1))
    for each, (first, stop) in zip(names, pairwise(bounds), strict=True):
        life = each.of(time[first:stop])
        if (life < len(each.pods) - 1).any():
            pods = np.array([pod.pod for pod in each.pods], dtype=object)
            found[first:stop] = pods[life]
    return found


def _possible(cpu: Floats32) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Whether a figure can be usage: a counter that was set wrongly gives any rate."""
    return np.isfinite(cpu) & (cpu >= 0) & (cpu <= MOST_CORES)


def _aligned(block: UsageBlock, pods: Sequence[str]) -> Floats32:
    """A block's rows in the order of ``pods``; those that it lacks are gaps."""
    at = {pod: row for row, pod in enumerate(block.pods)}
    cpu = np.full((len(pods), block.cpu.shape[1]), np.nan, np.float32)
    found = [row for row, pod in enumerate(pods) if pod in at]
    cpu[found] = block.cpu[[at[pods[row]] for row in found]]
    return cpu


def with_lives(
    facts: Iterable[PodFacts], seen: Mapping[str, Seen], period: Period
) -> list[PodFacts]:
    """The pods that lived in the period, each with its start and its end.

    The life of a pod that there is now is widened to all of its usage; a pod that is gone lived
    while its usage was observed.
    """
    living = []
    for pod in facts:
        alive = pod.start < period.end and pod.end > period.start
        usage = seen.get(pod.pod)
        if not alive and usage is None:
            continue
        starts = [*([pod.start] if alive else []), *([usage.start] if usage else [])]
        ends = [*([pod.end] if alive else []), *([usage.end] if usage else [])]
        living.append(replace(pod, start=min(starts), end=max(ends)))
    return living


def pods_table(pods: Sequence[PodFacts], nodes: Collection[str], period: Period) -> pl.DataFrame:
    """pods.parquet; the end of a pod that outlives the period, and a node that is gone, are empty.

    Args:
        pods: with their lives.
        nodes: names of the nodes that are there.
        period: what is imported.
    """
    table = pl.DataFrame(
        {
            "pod": [pod.pod for pod in pods],
            "workload": [pod.workload for pod in pods],
            "tier": [pod.tier for pod in pods],
            "cpu_request": [pod.cpu_request for pod in pods],
            "memory_request": [pod.memory_request for pod in pods],
            "start": [pod.start for pod in pods],
            "end": [pod.end if pod.end < period.end else None for pod in pods],
            "node": [pod.node if pod.node in nodes else None for pod in pods],
            **_columns(POD_JSON, [pod.constraints for pod in pods]),
        },
        schema_overrides={"start": pl.Float64, "end": pl.Float64, "node": pl.String},
    )
    return conform(table.with_columns(moment("start"), moment("end")), PODS)


def nodes_table(
    nodes: Sequence[NodeFacts], pods: Iterable[PodFacts], period: Period
) -> pl.DataFrame:
    """nodes.parquet; a node that came within the period starts then, or with its first pod.

    One that went within it ends then, or with its last pod. Start and end are empty where a node
    was there from the beginning, and to the last.
    """
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for pod in pods:
        first[pod.node] = min(pod.start, first.get(pod.node, math.inf))
        last[pod.node] = max(pod.end, last.get(pod.node, -math.inf))
    starts = [min(node.created, first.get(node.node, math.inf)) for node in nodes]
    ends = [max(node.gone, last.get(node.node, -math.inf)) for node in nodes]
    table = pl.DataFrame(
        {
            "node": [node.node for node in nodes],
            "cpu": [node.cpu for node in nodes],
            "memory": [node.memory for node in nodes],
            "start": [start if start > period.start else None for start in starts],
            "end": [end if end < period.end - _LINGERS else None for end in ends],
            "unschedulable": [node.unschedulable for node in nodes],
            **_columns(NODE_JSON, [node.constraints for node in nodes]),
        },
        schema_overrides={"start": pl.Float64, "end": pl.Float64},
    )
    return conform(table.with_columns(moment("start"), moment("end")), NODES)


def _columns(names: Iterable[str], given: Sequence[Mapping[str, str]]) -> dict[str, pl.Series]:
    """The columns in which any row has a text."""
    return {
        name: pl.Series([row.get(name) for row in given], dtype=pl.String)
        for name in names
        if any(name in row for row in given)
    }
