"""A cluster in production, from its Prometheus and its API server, as a trace."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import polars as pl
import pyarrow.parquet as pq

from models.errors import SourceError
from models.grid import WINDOW
from models.kube.access import load_configuration
from models.prometheus import PrometheusSource, peak_query
from models.trace import staged_folder
from models.trace_validation import check_rows, node_rules, pod_rules
from models.usage_source import PrometheusSettings, UsageError
from models.usage_store import query_spans
from trainer.importers.cluster_objects import (
    ClusterObjects,
    NodeFacts,
    PodFacts,
    node_facts,
    pod_facts,
)
from trainer.importers.common import Imported, Track, usage_file
from trainer.importers.lives import Lives, lives
from trainer.importers.past_nodes import cpu_query, memory_query, past_nodes
from trainer.importers.production_tables import (
    Period,
    Seen,
    nodes_table,
    pods_table,
    usage_rows,
    with_lives,
)
from trainer.importers.state_metrics import past_pods


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """Where a cluster's past is, and which part of it is wanted.

    Fields:
        prometheus: has the usage.
        kubeconfig: as for the extender; empty for the usual places.
        resource: name of the reclaimed resource.
        start, end: seconds since the epoch; only whole windows between them are read.
        peaks: whether each window's highest figure is read too.
        node_cpu, node_memory: PromQL that returns cores and bytes by node; empty for the usual one.
    """

    prometheus: PrometheusSettings
    kubeconfig: str
    resource: str
    start: float
    end: float
    peaks: bool
    node_cpu: str = ""
    node_memory: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    """What exists now: nodes, pods, and the names of nodes on which no pod can be."""

    nodes: list[NodeFacts]
    pods: list[PodFacts]
    no_places: frozenset[str]


def import_production(
    wanted: Production, out: Path, *, now: float, track: Track[tuple[int, int]], overwrite: bool
) -> Imported:
    """Write the trace of a cluster, all of it or nothing.

    Args:
        wanted: what to read.
        out: folder of the trace.
        now: seconds since the epoch; what lies after it has not happened.
        track: shows progress.
        overwrite: whether a trace that stands at ``out`` is replaced.

    Raises:
        SourceError: a server refuses, is not what it should be, or has nothing of that time.
        SettingsError: there is no access to the cluster.
        TraceError: ``out`` cannot be written, or the pods are invalid.
    """
    period = _period(wanted, now)
    with staged_folder(out, overwrite=overwrite) as folder:
        found = _objects(wanted)
        try:
            return asyncio.run(_import(wanted, period, found, folder, track))
        except UsageError as e:
            raise SourceError(f"{out} was not written: {e}.") from e


def _period(wanted: Production, now: float) -> Period:
    """The whole windows that are wanted."""
    if wanted.end > now:
        raise SourceError(
            f"--end {_utc(wanted.end)} is in the future (it is {_utc(now)}); nothing has been "
            "used then."
        )
    if wanted.end <= wanted.start:
        raise SourceError(f"--end {_utc(wanted.end)} is not after --start {_utc(wanted.start)}.")
    period = Period(
        -int(-wanted.start // WINDOW) * WINDOW,
        int(wanted.end // WINDOW) * WINDOW,
    )
    if period.end <= period.start:
        raise SourceError(
            f"there is no whole 5-minute window between --start {_utc(wanted.start)} and --end "
            f"{_utc(wanted.end)}."
        )
    return period


def _objects(wanted: Production) -> _Found:
    """What the API server has now."""
    api = ClusterObjects(load_configuration(wanted.kubeconfig))
    listed = list(api.nodes())
    nodes = [node for node in map(node_facts, listed) if node is not None]
    names = {node.metadata.name or "" for node in listed if node.metadata}
    pods = [pod_facts(pod, wanted.resource) for pod in api.pods()]
    return _Found(nodes, pods, frozenset(names - {node.node for node in nodes}))


async def _import(
    wanted: Production, period: Period, found: _Found, folder: Path, track: Track[tuple[int, int]]
) -> Imported:
    async with AsyncExitStack() as stack:
        source = PrometheusSource(wanted.prometheus)
        stack.push_async_callback(source.close)
        peaks = None
        if wanted.peaks:
            query = peak_query(wanted.prometheus)
            peaks = PrometheusSource(msgspec.structs.replace(wanted.prometheus, query=query))
            stack.push_async_callback(peaks.close)
        past = await past_pods(source, wanted.prometheus, period.start, period.end, wanted.resource)
        known = lives(found.pods, past)
        gone = await past_nodes(
            source,
            wanted.node_cpu or cpu_query(wanted.prometheus),
            wanted.node_memory or memory_query(wanted.prometheus),
            period.start,
            period.end,
        )
        usage = await _usage(source, peaks, period, known, folder, track)
    if not usage.rows:
        raise SourceError(
            f"there is no usage of a known pod between {_utc(period.start)} and "
            f"{_utc(period.end)}; check --start, --end, --cluster-label and --query."
        )
    facts = (pod for name in known.values() for pod in name.pods)
    pods = with_lives(facts, usage.seen, period)
    nodes = [*found.nodes, *_missing(pods, found, gone)]
    _write(pods, nodes, period, folder)
    return Imported(
        pods=len(pods),
        usage_rows=usage.rows,
        first=_time(min(seen.start for seen in usage.seen.values())),
        last=_time(max(seen.end for seen in usage.seen.values())),
        left_out=tuple(_left_out(found, nodes, pods, known, usage)),
    )


def _missing(
    pods: Iterable[PodFacts], found: _Found, gone: Mapping[str, NodeFacts]
) -> list[NodeFacts]:
    """The nodes that are gone and on which pods ran, as far as they are known."""
    there = {node.node for node in found.nodes} | found.no_places
    return [gone[name] for name in sorted({pod.node for pod in pods} - there) if name in gone]


@dataclass(slots=True)
class _Usage:
    """What was written of usage: rows, the span of each pod, and the pods nothing is known of."""

    rows: int
    seen: dict[str, Seen]
    unknown: set[str]


async def _usage(
    source: PrometheusSource,
    peaks: PrometheusSource | None,
    period: Period,
    known: Mapping[str, Lives],
    folder: Path,
    track: Track[tuple[int, int]],
) -> _Usage:
    """Read and write usage in parts, so that memory does not grow with the period."""
    usage = _Usage(0, {}, set())
    spans = query_spans(period.start // WINDOW, period.end // WINDOW, max(len(known), 1))
    with usage_file(folder) as write:
        for first, windows in track(spans):
            block = await source.read(first * WINDOW, windows)
            highest = await peaks.read(first * WINDOW, windows) if peaks else None
            rows = usage_rows(block, highest, known)
            usage.unknown.update(pod for pod in block.pods if pod not in known)
            if rows.height:
                write(rows)
                usage.rows += rows.height
                _note(usage.seen, rows)
    return usage


def _note(seen: dict[str, Seen], rows: pl.DataFrame) -> None:
    """Widen what was seen of each pod by later rows."""
    second = pl.col("time").dt.epoch("s")
    for pod, first, last in (
        rows.group_by("pod")
        .agg(second.min().alias("first"), second.max().alias("last"))
        .iter_rows()
    ):
        seen[pod] = Seen(seen[pod].start if pod in seen else first, last + WINDOW)


def _write(
    pods: Sequence[PodFacts], nodes: Sequence[NodeFacts], period: Period, folder: Path
) -> None:
    """Check and write the two small tables; without a node the trace lists none."""
    names = {node.node for node in nodes}
    places = nodes_table(nodes, pods, period) if nodes else None
    table = pods_table(pods, names, period)
    if places is not None:
        check_rows(places, node_rules(places), Path("nodes.parquet"))
        pq.write_table(places.to_arrow(), folder / "nodes.parquet", write_page_checksum=True)
    check_rows(table, pod_rules(places), Path("pods.parquet"))
    pq.write_table(table.to_arrow(), folder / "pods.parquet", write_page_checksum=True)


def _left_out(
    found: _Found,
    nodes: Sequence[NodeFacts],
    pods: Sequence[PodFacts],
    known: Mapping[str, Lives],
    usage: _Usage,
) -> list[str]:
    """A sentence for each kind of thing that the trace lacks."""
    said = []
    if usage.unknown:
        said.append(
            f"{len(usage.unknown)} pods that have used CPU are gone, and Prometheus has no "
            "kube_pod_info of them: they are left out."
        )
    if found.no_places:
        said.append(f"{len(found.no_places)} nodes offer no CPU or no memory: they are left out.")
    there = {node.node for node in nodes} | found.no_places
    homeless = [pod.node for pod in pods if pod.node and pod.node not in there]
    if homeless:
        said.append(
            f"{len(homeless)} pods ran on {len(set(homeless))} nodes that are gone, and Prometheus "
            "does not tell what these offered: the pods are placed anew in a replay."
        )
    unsplit = sum(name.unsplit for name in known.values())
    if unsplit:
        said.append(
            f"{unsplit} names had several pods, and Prometheus has no kube_pod_created of them: "
            "only the newest counts."
        )
    unread = Counter(
        name
        for names in (*(pod.unread for pod in pods), *(node.unread for node in nodes))
        for name in names
    )
    said += [
        f"{count} times {name} says more than a trace can: it is left empty there."
        for name, count in sorted(unread.items())
    ]
    return said


def _utc(seconds: float) -> str:
    return f"{_time(seconds):%Y-%m-%dT%H:%M:%SZ}"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
