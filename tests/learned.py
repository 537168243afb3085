"""A small trained model that several test modules share."""

from __future__ import annotations

from functools import cache

import numpy as np

from models.generator import ClusterSpec, generate_trace
from models.grid import UsageGrid
from models.model import Model
from models.trace import usage_grid
from trainer.fit import fit_model
from trainer.machines import Machines, machines_of, placement_of


@cache
def small_cluster() -> tuple[UsageGrid, tuple[str | None, ...]]:
    """Usage and placement of a generated cluster of eight nodes and eight days."""
    trace = generate_trace(ClusterSpec(nodes=8, days=8, seed=3))
    grid = usage_grid(trace)
    placement = placement_of(trace, grid)
    assert placement is not None
    return grid, placement


@cache
def small_model() -> Model:
    """A learned model of that cluster."""
    grid, placement = small_cluster()
    return fit_model(grid, seed=0, placement=placement, max_rows=3000, threads=1)


def small_machines() -> Machines:
    """The cluster's nodes."""
    grid, placement = small_cluster()
    return machines_of(grid, np.arange(len(grid.pods)), 0, placement)
