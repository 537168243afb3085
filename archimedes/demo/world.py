"""What the demo happens in: a trace, cut so that nobody learns from what is still to come."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from models.constraints import POD_JSON
from models.errors import TraceError
from models.generator import ClusterSpec, generate_trace
from models.grid import WINDOW
from models.trace import Trace, known_at, usage_grid
from shadow.options import ReplayOptions
from shadow.scenario import GIB, Scenario, build_scenario, generated_jobs

TRIAL_HOURS = 24
"""What the shadow compares on: the day before the promotion, with all its hours."""

LEAST_PAST = 3 * 86_400
"""Seconds of usage before the trial that training needs: three days, to see a day repeat."""


@dataclass(frozen=True, slots=True)
class World:
    """The demo's trace and its moments, in seconds since the epoch.

    The models learn from what lies before ``trial``; the champion serves from ``start``, the shadow
    compares on [trial, middle), and from ``middle`` to ``stop`` the winner serves.
    """

    trace: Trace
    options: ReplayOptions
    trial: int
    start: int
    middle: int
    stop: int

    def past(self, time: int) -> Trace:
        """The trace as it was known at a time: no later usage, and no pod that came later."""
        return known_at(self.trace, time)

    def scenario(self) -> Scenario:
        """What happens while the extender serves."""
        return build_scenario(self.trace, self.options)


LEAST_PODS = 5
"""Online pods that a demo needs: fewer make no cluster, and nothing to learn from."""


def build_world(trace: Trace, hours: float, nodes: int | None, seed: int) -> World:
    """Lay a demo of so many hours over the end of a trace.

    Where the trace has no nodes it gets equal ones, and where it has no offline pods, generated
    ones, so that the server and every replay meet the same. For the same reason pods may run
    anywhere: the demo's scheduler knows neither selectors, taints nor spread.

    Raises:
        TraceError: the trace has too few online pods, or too little usage before the demo's hours.
    """
    grid = usage_grid(trace)
    if len(grid.pods) < LEAST_PODS:
        raise TraceError(
            f"{trace.name} has {len(grid.pods)} online pods; a demo needs at least {LEAST_PODS}"
        )
    stop = grid.end
    span = int(hours * 3600) // WINDOW * WINDOW
    start = stop - span
    middle = start + span // 2 // WINDOW * WINDOW
    trial = middle - TRIAL_HOURS * 3600
    if grid.windows == 0 or trial - grid.start < LEAST_PAST:
        raise TraceError(
            f"{trace.name} has {grid.windows * WINDOW / 86_400:.1f} days of usage; a demo of "
            f"{hours:g} h needs {(stop - trial + LEAST_PAST) / 86_400:.1f}: "
            "give a longer trace or fewer --hours"
        )
    options = ReplayOptions(seed=seed, start=start, hours=span / 3600, nodes=nodes)
    fleet = build_scenario(trace, options).fleet
    frame = pl.DataFrame(
        {
            "node": list(fleet.names),
            "cpu": fleet.millicpu / 1000,
            "memory": fleet.memory / GIB,
        }
    )
    same = trace.nodes is not None and set(trace.nodes["node"]) == set(fleet.names)
    pods = trace.pods.drop(POD_JSON, strict=False)
    if not same:
        pods = pods.with_columns(node=pl.lit(None, pl.String))
    if (pods["tier"] == "online").all():
        cores = float(fleet.millicpu.sum()) / 1000
        jobs = generated_jobs(grid, cores, trial, stop, options)
        pods = pl.concat([pods, jobs], how="diagonal")
    laid = replace(trace, nodes=frame, pods=pods)
    options = ReplayOptions(seed=seed, start=start, hours=span / 3600)
    return World(laid, options, trial, start, middle, stop)


def generated(nodes: int | None, hours: float, seed: int) -> Trace:
    """A cluster for those who have no trace: enough days to learn from, then the demo's hours."""
    spec = ClusterSpec(seed=seed)
    days = max(spec.days, int(-(-hours // 24)) + 8)
    return generate_trace(replace(spec, days=days, nodes=nodes or spec.nodes))
