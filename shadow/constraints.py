"""What a trace says of where its pods may run: nodes' facts, and pods grouped by what they want."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import polars as pl

from extender.spread import NO_ZONE
from models.arrays import Bools, Ints
from models.constraints import (
    HOSTNAME,
    NODE_JSON,
    POD_JSON,
    ZONE,
    Labels,
    NodeAffinity,
    Taint,
    Toleration,
    TopologySpread,
)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Of N nodes what selectors and taints are about.

    A node has the label `HOSTNAME`, as kubelet sets it, unless the trace gives it another value.
    """

    names: tuple[str, ...]
    labels: tuple[Mapping[str, str], ...]
    taints: tuple[tuple[Taint, ...], ...]
    unschedulable: Bools


@dataclass(frozen=True, slots=True)
class PodKind:
    """What pods of one kind want; nothing by default.

    Namespace and labels are what other pods' spread counts them by.
    """

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    node_affinity: NodeAffinity = field(default_factory=NodeAffinity)
    tolerations: tuple[Toleration, ...] = ()
    topology_spread: tuple[TopologySpread, ...] = ()


PLAIN = PodKind()


@dataclass(frozen=True, slots=True)
class Constraints:
    """Nodes, the kinds of pods, of which the first is `PLAIN`; ``Pods.kind`` refers to them."""

    nodes: NodeFacts
    kinds: tuple[PodKind, ...]


def node_facts(nodes: pl.DataFrame) -> NodeFacts:
    """What a trace's nodes say."""
    names = tuple(nodes["node"])
    labels = _column(nodes, "labels", NODE_JSON, {})
    flags = nodes["unschedulable"] if "unschedulable" in nodes.columns else None
    return NodeFacts(
        names=names,
        labels=tuple({HOSTNAME: n, **own} for n, own in zip(names, labels, strict=True)),
        taints=_column(nodes, "taints", NODE_JSON, ()),
        unschedulable=(
            np.zeros(len(names), bool)
            if flags is None
            else flags.fill_null(value=False).to_numpy().astype(bool)
        ),
    )


def zones(nodes: pl.DataFrame) -> Ints | None:
    """[N] the number of each node's zone, `NO_ZONE` for none; None where no node has one."""
    found = [labels.get(ZONE, "") for labels in _column(nodes, "labels", NODE_JSON, {})]
    numbers = {zone: number for number, zone in enumerate(sorted({*found} - {""}))}
    return np.array([numbers.get(zone, NO_ZONE) for zone in found]) if numbers else None


def pod_kinds(pods: pl.DataFrame) -> tuple[tuple[PodKind, ...], Ints]:
    """The kinds of pods, and of which each pod is.

    Labels matter only where some pod spreads, so that traces whose pods all have labels of their
    own do not have as many kinds as pods.
    """
    given = [n for n in POD_JSON if n in pods.columns and pods[n].null_count() < pods.height]
    spreads = "topology_spread" in given
    names = given if spreads else [name for name in given if name != "labels"]
    if not names:
        return (PLAIN,), np.zeros(pods.height, np.int64)
    # A pod's name is `namespace/name` where the source knows namespaces.
    namespace = pl.when(spreads).then(pl.col("pod").str.extract("^([^/]*)/", 1).fill_null(""))
    wanted = pods.select(*names, namespace=namespace)
    kinds = wanted.unique(maintain_order=True).with_row_index("kind", offset=1)
    keys = [*names, "namespace"]
    joined = wanted.join(kinds, on=keys, how="left", nulls_equal=True, maintain_order="left")
    found = [PLAIN, *(_kind(row, names) for row in kinds.iter_rows(named=True))]
    return tuple(found), joined["kind"].to_numpy().astype(np.int64)


def constraints_of(nodes: pl.DataFrame | None, kinds: tuple[PodKind, ...]) -> Constraints | None:
    """What restricts pods on a trace's nodes; None where nothing does, which costs nothing."""
    if nodes is None:
        return None
    facts = node_facts(nodes)
    if len(kinds) == 1 and not any(facts.taints) and not facts.unschedulable.any():
        return None
    return Constraints(facts, kinds)


def _kind(row: Mapping[str, Any], names: list[str]) -> PodKind:
    given = {
        name: msgspec.json.decode(row[name], type=POD_JSON[name])
        for name in names
        if row[name] is not None
    }
    return PodKind(namespace=row["namespace"] or "", **given)


def _column(
    frame: pl.DataFrame, name: str, types: Mapping[str, Any], empty: Labels | tuple[()]
) -> tuple[Any, ...]:
    """A JSON column, decoded."""
    if name not in frame.columns:
        return (empty,) * frame.height
    texts = frame[name].to_list()
    decoded = {t: msgspec.json.decode(t, type=types[name]) for t in set(texts) if t is not None}
    return tuple(decoded.get(text, empty) for text in texts)
