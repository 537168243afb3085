"""The true peak of a node's pods, as far as it was observed."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from models.arrays import Bools, Floats, Floats32, Ints

STEP = 1800
"""Seconds between the decisions that are judged and learned from."""

MIN_OBSERVED = 0.75
"""Share of a horizon's windows that must be known for its highest to count as the truth. A
lost scrape or two must not cost the hour; below three quarters a peak may well have been missed."""

LATE = 2
"""Windows for which usage is awaited before it counts as unobserved: collectors deliver late."""


def sum_known(usage: Floats | Floats32, pod: Ints, node: Ints, nodes: int) -> Floats:
    """Sum usage over the pods of each node.

    Args:
        usage: [P, W] cores, NaN where not observed.
        pod, node: [M] edges: pod ``pod[e]`` is on node ``node[e]``.
        nodes: N.

    Returns:
        [N, W] cores, NaN where one of the node's pods was not observed.
    """
    shape = (nodes, len(usage))
    members = sparse.csr_array((np.ones(len(pod)), (node, pod)), shape=shape, dtype=np.float64)
    unknown = np.isnan(usage)
    total = np.asarray(members @ np.where(unknown, 0.0, usage).astype(np.float64))
    if unknown.any():
        total[np.asarray(members @ unknown.astype(np.float64)) > 0] = np.nan
    return total


def begun(usage: Floats32, first: int, stop: int) -> Floats32:
    """Usage of the windows [first, stop), where a pod uses nothing before it was first observed.

    A pod whose containers never start is never observed, and must not hide what the others use. A
    window in which no pod at all was observed stays unknown: then usage was not read.

    Args:
        usage: [P, W] cores, NaN where not observed. What lies before ``first`` tells which pods
            were observed earlier: their gaps stay.
        first, stop: columns of it.
    """
    found = usage[:, first:stop].copy()
    read = ~np.isnan(found).all(axis=0)
    missing = np.flatnonzero(np.isnan(found).any(axis=1))
    earlier = ~np.isnan(usage[missing, :first]).all(axis=1, keepdims=True)
    has_begun = np.logical_or.accumulate(~np.isnan(found[missing]), axis=1) | earlier
    found[missing] = np.where(read & ~has_begun, np.float32(0), found[missing])
    return found


def silent(usage: Floats32) -> Bools:
    """The windows since each pod's last sample, [P, W], where that is older than what may be late.

    A pod that crashes again and again is not observed, though it exists: each try is a container
    of its own, and too short for a rate. A pod that was never observed is not silent.

    Args:
        usage: [P, W] cores, NaN where not observed; the newest window last.
    """
    found = np.zeros(usage.shape, np.bool_)
    quiet = np.flatnonzero(np.isnan(usage[:, -LATE - 1 :]).all(axis=1))
    observed = ~np.isnan(usage[quiet])
    goes_on = np.logical_or.accumulate(observed[:, ::-1], axis=1)[:, ::-1]
    found[quiet] = ~goes_on & observed.any(axis=1, keepdims=True)
    return found


def watched(usage: Floats32, pod: Ints, node: Ints, nodes: int) -> Bools:
    """Where a pod of the same node was observed, [P, W]: its monitoring worked.

    Args:
        usage: [P, W] cores, NaN where not observed.
        pod, node: [M] edges: pod ``pod[e]`` is on node ``node[e]``.
        nodes: N.
    """
    edges = (np.ones(len(pod), np.float32), (node, pod))
    members = sparse.csr_array(edges, shape=(nodes, len(usage)))
    seen = np.asarray(members @ (~np.isnan(usage)).astype(np.float32)) > 0
    return np.asarray(members.T @ seen.astype(np.float32)) > 0


def assume(found: Floats32, quiet: Bools, usage: Floats32) -> None:
    """Let pods count with their own mean where they are silent.

    Args:
        found: [P, V] cores, changed in place.
        quiet: [P, V] where pods are silent.
        usage: [P, W] cores, their past, NaN where not observed.
    """
    rows = np.flatnonzero(quiet.any(axis=1))
    found[rows] = np.where(quiet[rows], own_mean(usage[rows])[:, None], found[rows])


def own_mean(usage: Floats32) -> Floats32:
    """The mean of each pod's observed windows, [P] cores; 0 where none is."""
    observed = ~np.isnan(usage)
    total = np.where(observed, usage, np.float32(0)).sum(axis=1, dtype=np.float64)
    count = np.maximum(np.count_nonzero(observed, axis=1), 1)
    return np.asarray(total / count, np.float32)


def highest_known(total: Floats | Floats32) -> tuple[Floats, Ints]:
    """The highest known window of each row of [N, W] (-inf where none is), and how many are."""
    known = ~np.isnan(total)
    peak = np.where(known, total, -np.inf).max(axis=1, initial=-np.inf)
    return peak, known.sum(axis=1)
