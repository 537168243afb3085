"""Where the sides of a comparison differ: by tier, size and duration of pods, and by node size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np

from models.arrays import Bools, Floats, Ints
from models.policy import HORIZONS
from shadow.bootstrap import Interval, Weights, interval
from shadow.cells import Cells, block_of
from shadow.result import ReplayResult

SIZES = (0, 500, 1000, 2000, 4000, 8000)
"""Millicores at which the pod sizes begin: doublings around one core, the common ask."""

NODE_SIZES = 4
"""At most so many groups of nodes; fleets of more sizes are cut into groups of similar size."""


class Cohort(msgspec.Struct, frozen=True, kw_only=True):
    """One group of pods or nodes; differences are challenger minus champion.

    Fields:
        by, cohort: which breakdown, and which group of it.
        pods: how many pods arrived in it (mean over the seeds); 0 for nodes.
        champion_core_hours: that its pods, or offline pods on its nodes, ran.
        core_hours: the difference of the same.
        wait_mean_s: difference of the mean time until the first start; None for nodes.
        violation_rate: difference of the rates of its horizon or nodes; None where forecasts do
            not belong to the group, or none could be judged.
    """

    by: str
    cohort: str
    pods: int
    champion_core_hours: float
    core_hours: Interval
    wait_mean_s: Interval | None
    violation_rate: Interval | None


def cohorts(champion: Cells, challenger: Cells, weights: Weights) -> tuple[Cohort, ...]:
    """Every breakdown that has something to break down."""
    groups = [*_pods(champion.results), *_nodes(champion.results[0])]
    return tuple(_cohort(group, champion, challenger, weights) for group in groups)


@dataclass(frozen=True, slots=True)
class _Group:
    """pods: which, [P] for each seed, or None for nodes; nodes: [N]; horizon: index or None."""

    by: str
    name: str
    pods: list[Bools] | None = None
    nodes: Bools | None = None
    horizon: int | None = None


def _pods(results: Sequence[ReplayResult]) -> Iterator[_Group]:
    """By tier, then offline pods by what they ask and for how long."""
    offline = [result.pods.offline for result in results]
    if not all(of.all() for of in offline):
        yield _Group("tier", "online", [~of for of in offline])
    yield _Group("tier", "offline", offline)
    edges = (*SIZES, np.inf)
    for low, high in pairwise(edges):
        asks = [(r.pods.millicpu > low) & (r.pods.millicpu <= high) for r in results]
        kept = [a & of for a, of in zip(asks, offline, strict=True)]
        if any(k.any() for k in kept):
            yield _Group("pod size", _between(low / 1000, high / 1000), kept)
    for index, hours in enumerate(HORIZONS):
        kept = [(r.pods.horizon == index) & r.pods.offline for r in results]
        yield _Group("horizon", f"{hours} h", kept, horizon=index)


def _nodes(result: ReplayResult) -> Iterator[_Group]:
    """By allocatable CPU, where nodes differ."""
    sizes = np.unique(result.fleet.millicpu)
    if len(sizes) == 1:
        return
    for group in np.array_split(sizes, min(len(sizes), NODE_SIZES)):
        low, high = group[0] / 1000, group[-1] / 1000
        name = f"{low:g} cores" if low == high else f"{low:g} to {high:g} cores"
        yield _Group("node size", name, nodes=np.isin(result.fleet.millicpu, group))


def _cohort(group: _Group, champion: Cells, challenger: Cells, weights: Weights) -> Cohort:
    sides = (challenger, champion)
    pods = group.pods
    if pods is None:
        theirs, ours = (side.reclaimed * _column(group) for side in sides)
    else:
        theirs, ours = (
            side.core_hours([k[r.runs.pod] for k, r in zip(pods, side.results, strict=True)])
            for side in sides
        )
    rates = [_forecasts(group, side) for side in sides]
    return Cohort(
        by=group.by,
        cohort=group.name,
        pods=0 if pods is None else round(float(np.mean([k.sum() for k in pods]))),
        champion_core_hours=float(ours.sum()) / len(ours),
        core_hours=weights.difference_of_sums(theirs, ours),
        wait_mean_s=None if pods is None else _waits(pods, champion, challenger, weights),
        violation_rate=None
        if rates[0] is None or rates[1] is None
        else weights.difference_of_rates(rates[0], rates[1]),
    )


def _forecasts(group: _Group, side: Cells) -> tuple[Floats, Floats] | None:
    """Violated and judged forecasts [K, N, B] of a horizon or of nodes; None for other groups."""
    if group.nodes is not None:
        shown = _column(group)
        return side.violated.sum(axis=3) * shown, side.judged.sum(axis=3) * shown
    if group.horizon is not None:
        return side.violated[..., group.horizon], side.judged[..., group.horizon]
    return None


def _waits(
    pods: list[Bools], champion: Cells, challenger: Cells, weights: Weights
) -> Interval | None:
    """The difference of the mean waits; each pod belongs to the block in which it arrived."""
    longer = np.zeros((len(pods), weights.blocks.shape[1]))
    count = np.zeros_like(longer)
    for seed, kept in enumerate(pods):
        ours, theirs = champion.results[seed], challenger.results[seed]
        block: Ints = block_of(ours, ours.pods.arrival[kept])
        np.add.at(longer[seed], block, (theirs.waited - ours.waited)[kept])
        np.add.at(count[seed], block, 1)
    if count.sum() == 0:
        return None
    total = np.maximum(weights.sums_over_time(count), 1e-9)
    return interval(weights.sums_over_time(longer) / total)


def _column(group: _Group) -> Floats:
    """Which nodes, [N, 1]."""
    return np.asarray(group.nodes, np.float64)[:, None]


def _between(low: float, high: float) -> str:
    if high == np.inf:
        return f"over {low:g} cores"
    return f"{low:g} to {high:g} cores" if low else f"up to {high:g} cores"
