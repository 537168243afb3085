"""The evaluation's protocol: every predictor on one trace, judged on what was not known.

Pods are split 60/40 into train and test, machines never mix them. Time is split 60/15/25: a learned
forecaster is fitted on the first part of the train pods, knobs are calibrated on their second part,
and everything is judged on the test pods' last part, in which the knobs are recalibrated by the one
mechanism of `models.calibration` from test machines' forecasts that have resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from models.arrays import Ints
from models.classical import CLASSICAL
from models.errors import TraceError
from models.forecaster import Forecaster
from models.grid import UsageGrid
from trainer.dataset import check_requests
from trainer.judging import (
    Judged,
    calibrate,
    deployed_knobs,
    forecast,
    frontier_knobs,
    judge_rows,
)
from trainer.machines import decision_times, machines_of, split_pods
from trainer.past import Past, look_back

CALIBRATE_FROM = 0.60
"""Share of the time axis at which training ends and calibration begins."""

TEST_FROM = 0.75
"""Share of the time axis at which the test begins."""

BACKTEST_HORIZONS = (1, 6, 24)
"""Hours that are judged; 3 and 12 h are served too and lie in between."""

BACKTEST_TARGETS = (0.01, 0.05)
"""Violation probabilities of the bar."""

COLD_EVERY = 12
"""Cold starts are judged at every twelfth decision (6 h): forecasting again costs as much."""

LEAST_PODS = 5
"""Pods (or nodes) that a trace needs: 60/40 then leaves two to test on."""

Fit = Callable[[int, Ints], Forecaster]
"""Fits the learned forecaster for a seed on the given pods, up to CALIBRATE_FROM."""

Progress = Callable[[str, float], None]
"""Called with the step's name and the share of all work that is done."""


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What one seed's machines gave.

    machines: how many were tested on. learned: the learned forecaster's name, if there was one.
    rows: as deployed, on the frontier, the oracle. shipped: classical predictors with their default
    knobs. cold: as deployed, for pods with under 24 h of history. cpu_max: as deployed, against the
    highest minute instead of the highest mean; empty where the trace does not know it.
    """

    machines: int
    learned: str | None
    rows: list[Judged] = field(default_factory=list)
    shipped: list[Judged] = field(default_factory=list)
    cold: list[Judged] = field(default_factory=list)
    cpu_max: list[Judged] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is judged: horizons in hours, accepted violation probabilities."""

    horizons: tuple[int, ...] = BACKTEST_HORIZONS
    targets: tuple[float, ...] = BACKTEST_TARGETS


def backtest(
    grid: UsageGrid,
    placement: Sequence[str | None] | None,
    fit: Fit | None,
    seeds: int,
    protocol: Protocol,
    progress: Progress = lambda _step, _share: None,
) -> list[SeedResult]:
    """Judge every classical predictor, and the learned one, on a trace.

    Args:
        grid: usage of the online pods that were observed (`trainer.dataset.observed`).
        placement: node of each of the grid's pods, where the trace knows it.
        fit: fits the learned forecaster; None judges the classical ones alone.
        seeds: how many; they are 0, 1, ...
        protocol: what is judged.
        progress: called now and then.

    Raises:
        TraceError: the trace has too few pods, or is too short.
    """
    check_enough(grid, placement, protocol.horizons)

    def one(seed: int) -> SeedResult:
        def told(step: str, share: float) -> None:
            progress(f"seed {seed + 1} of {seeds}: {step}", (seed + share) / seeds)

        return _one_seed(grid, placement, fit, seed, protocol, told)

    return [one(seed) for seed in range(seeds)]


def check_enough(
    grid: UsageGrid, placement: Sequence[str | None] | None, horizons: Sequence[int]
) -> None:
    """Refuse a trace on which the protocol has nothing to say.

    Raises:
        TraceError: names what is too little, and how much is needed.
    """
    if not grid.windows:
        raise TraceError("the trace has no usage; an evaluation compares forecasts with usage")
    if placement is None:
        found, what = len(grid.pods), "observed online pods"
    else:
        found = len({node for node in placement if node is not None})
        what = "nodes with observed online pods"
    if found < LEAST_PODS:
        raise TraceError(
            f"the trace has {found} {what}; an evaluation needs at least {LEAST_PODS}, "
            "to split them into train and test"
        )
    check_requests(grid.request)
    days = (grid.end - grid.start) / 86_400
    # Calibration, the shortest share, must hold a few complete windows of the longest horizon.
    needed = (max(horizons) / 24 + 0.25) / (TEST_FROM - CALIBRATE_FROM)
    if days < needed:
        raise TraceError(
            f"the trace covers {days:.1f} days; an evaluation at {max(horizons)} h needs "
            f"{needed:.1f}, of which {TEST_FROM - CALIBRATE_FROM:.0%} calibrate; "
            "choose shorter horizons or a longer trace"
        )


def _one_seed(
    grid: UsageGrid,
    placement: Sequence[str | None] | None,
    fit: Fit | None,
    seed: int,
    protocol: Protocol,
    progress: Progress,
) -> SeedResult:
    train, test = split_pods(grid, seed, placement)
    forecasters = dict(CLASSICAL)
    learned = None
    if fit is not None:
        progress("fitting", 0.0)
        learned = fit(seed, train)
        forecasters = {learned.name: learned, **forecasters}
    before = decision_times(grid, CALIBRATE_FROM, TEST_FROM)
    times = decision_times(grid, TEST_FROM, 1.0)
    tick = _ticker(progress, len(before) + len(times) + len(times[::COLD_EVERY]))
    trained_on = machines_of(grid, train, seed, placement)
    machines = machines_of(grid, test, seed, placement)
    hours = protocol.horizons
    earlier = look_back(grid, trained_on, before, forecasters, hours, tick=tick)
    later = look_back(grid, machines, times, forecasters, hours, tick=tick)
    cold = look_back(
        grid,
        machines,
        times[::COLD_EVERY],
        forecasters,
        hours,
        cold=np.random.default_rng(seed),
        tick=tick,
    )
    result = SeedResult(len(machines), None if learned is None else learned.name)
    for target in protocol.targets:
        result.rows.extend(
            judge_rows(later, later.truth, later.truth, "oracle", "oracle", hours, target)
        )
        for name, forecaster in forecasters.items():
            _judge_predictor(result, name, forecaster, earlier, later, cold, protocol, target)
    return result


def _judge_predictor(
    result: SeedResult,
    name: str,
    forecaster: Forecaster,
    earlier: Past,
    later: Past,
    cold: Past,
    protocol: Protocol,
    target: float,
) -> None:
    """Add a predictor's figures at one target to the result."""
    hours = protocol.horizons
    calibration = calibrate(earlier, name, hours, int(later.time[0]))
    knobs = deployed_knobs(later, name, hours, calibration, target)
    deployed = forecast(later, later.predictions[name], knobs)
    result.rows.extend(judge_rows(later, deployed, later.truth, name, "deployed", hours, target))
    young = forecast(cold, cold.predictions[name], knobs[::COLD_EVERY])
    result.cold.extend(judge_rows(cold, young, cold.truth, name, "deployed", hours, target))
    if later.truth_max is not None:
        result.cpu_max.extend(
            judge_rows(later, deployed, later.truth_max, name, "deployed", hours, target)
        )
    if name == result.learned:
        return
    best = np.broadcast_to(frontier_knobs(later, name, target), knobs.shape)
    default = np.full(knobs.shape, forecaster.default_knob)
    hindsight = forecast(later, later.predictions[name], best)
    result.rows.extend(judge_rows(later, hindsight, later.truth, name, "frontier", hours, target))
    shipped = forecast(later, later.predictions[name], default)
    result.shipped.extend(judge_rows(later, shipped, later.truth, name, "shipped", hours, target))


def _ticker(progress: Progress, total: int) -> Callable[[], None]:
    done = count(1)
    return lambda: progress("forecasting", next(done) / total)
