"""Champion against challenger on the same pods and the same usage, with a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from models.arrays import Floats
from models.trace import Trace
from shadow.bootstrap import Interval, Weights
from shadow.cells import block_hours, cells_of
from shadow.cohorts import Cohort, cohorts
from shadow.figures import Figures, figures
from shadow.options import ReplayOptions
from shadow.replay import Progress
from shadow.result import ReplayResult
from shadow.seeds import Candidate, Replays, mean_of, replay_seeds

Verdict = Literal["promote", "keep"]

TOLERATED = 1.5
"""Times the target that a violation rate may reach, as in the evaluation: 1.5 % for 1 %."""

FULL = 1.0
"""Share of allocatable CPU above which a node counts as overloaded, whatever a policy's ceiling:
online pods needed what was promised."""


class SeedOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Challenger minus champion under one seed."""

    seed: int
    reclaimed_core_hours: float
    violation_rate: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The replays of both sides, what differs, and whether the challenger should serve.

    Fields:
        champion, challenger: figures of each side, means over the seeds.
        seeds: each seed's own differences.
        reclaimed_core_hours, violation_rate, overload_rate: challenger minus champion; the rates
            are None where the trace has no usage. Overload is measured for both at `FULL`, so that
            a policy cannot hide it by raising its ceiling.
        champion_*, challenger_*: the rates with their intervals.
        cohorts: the differences by groups of pods and nodes.
        target: the violation probability that is accepted.
        block_hours, blocks: what the bootstrap resampled, beside nodes and seeds.
        verdict, reasons: in words.
    """

    champion: Figures
    challenger: Figures
    seeds: tuple[SeedOutcome, ...]
    reclaimed_core_hours: Interval
    violation_rate: Interval | None
    champion_violation_rate: Interval | None
    challenger_violation_rate: Interval | None
    overload_rate: Interval | None
    champion_overload_rate: Interval | None
    challenger_overload_rate: Interval | None
    cohorts: tuple[Cohort, ...]
    target: float
    block_hours: float
    blocks: int
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rates:
    """A rate of each side, and challenger minus champion; None where there is nothing to count."""

    champion: Interval | None
    challenger: Interval | None
    difference: Interval | None

    @classmethod
    def of(
        cls, weights: Weights, ours: tuple[Floats, Floats], theirs: tuple[Floats, Floats]
    ) -> Rates:
        """From the (part, whole) of champion and challenger, [K, N, B] cells each."""
        return cls(
            weights.rate(*ours), weights.rate(*theirs), weights.difference_of_rates(theirs, ours)
        )


@dataclass(frozen=True, slots=True)
class Sides:
    """The replays of champion and challenger, one for each seed, in the same order."""

    champion: tuple[ReplayResult, ...]
    challenger: tuple[ReplayResult, ...]


def compare(
    trace: Trace,
    champion: Candidate,
    challenger: Candidate,
    *,
    options: ReplayOptions | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Replay a trace once under both and judge the challenger; see `replay_sides` and `judge`.

    Raises:
        TraceError: as `shadow.replay.replay`.
    """
    return judge(replay_sides(trace, champion, challenger, options=options, progress=progress))


def replay_sides(
    trace: Trace,
    champion: Candidate,
    challenger: Candidate,
    *,
    options: ReplayOptions | None = None,
    seeds: int = 1,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> Sides:
    """Replay a trace under both, who meet the same nodes, pods, usage and seeds.

    Args:
        trace: what is replayed.
        champion, challenger: model and policy of each side.
        options: see `ReplayOptions`.
        seeds, jobs, dask, progress: see `shadow.seeds.replay_seeds`.

    Raises:
        TraceError: as `shadow.replay.replay`.
        SettingsError: as `shadow.seeds.replay_seeds`.
    """
    results = replay_seeds(
        Replays(trace, (champion, challenger)),
        options=options or ReplayOptions(),
        seeds=seeds,
        jobs=jobs,
        dask=dask,
        progress=progress,
    )
    return Sides(*(tuple(side) for side in zip(*results, strict=True)))


def judge(sides: Sides, target: float | None = None) -> Comparison:
    """Compare the replays of both sides.

    Intervals come from a paired bootstrap that resamples seeds, blocks of time and nodes together
    for both sides, because neighbouring windows and windows of one node are alike.

    Args:
        sides: what to compare.
        target: accepted rate of violations, by default that of the challenger's policy.
    """
    champion, challenger = sides.champion[0], sides.challenger[0]
    target = challenger.policy.target if target is None else target
    ours, theirs = (cells_of(results, FULL) for results in (sides.champion, sides.challenger))
    rng = np.random.default_rng([challenger.options.seed, 3])
    weights = Weights.draw(rng, *ours.reclaimed.shape)
    reclaimed = weights.difference_of_sums(theirs.reclaimed, ours.reclaimed)
    violations = Rates.of(
        weights, *((side.violated.sum(axis=3), side.judged.sum(axis=3)) for side in (ours, theirs))
    )
    overload = Rates(None, None, None)
    if champion.used is not None:
        overload = Rates.of(weights, *((side.overloaded, side.promised) for side in (ours, theirs)))
    verdict, reasons = decide_verdict(reclaimed, violations, overload, target)
    figured = [
        [figures(result, series) for result, series in zip(side.results, side.series, strict=True)]
        for side in (ours, theirs)
    ]
    return Comparison(
        champion=mean_of(figured[0]),
        challenger=mean_of(figured[1]),
        seeds=tuple(map(_seed_outcome, sides.champion, *figured)),
        reclaimed_core_hours=reclaimed,
        violation_rate=violations.difference,
        champion_violation_rate=violations.champion,
        challenger_violation_rate=violations.challenger,
        overload_rate=overload.difference,
        champion_overload_rate=overload.champion,
        challenger_overload_rate=overload.challenger,
        cohorts=cohorts(ours, theirs, weights),
        target=target,
        block_hours=block_hours(champion),
        blocks=ours.reclaimed.shape[2],
        verdict=verdict,
        reasons=reasons,
    )


def decide_verdict(
    reclaimed: Interval, violations: Rates, overload: Rates, target: float
) -> tuple[Verdict, tuple[str, ...]]:
    """Whether the challenger should serve, and why.

    It must keep within the accepted violations: the interval of its rate reaches down to
    `TOLERATED` times the target, and where the rate itself is above the target it is not
    significantly higher than the champion's. The same limit holds for the node windows that it
    fills above `FULL`, where those are significantly more. Then it is promoted if it reclaims
    significantly more, or not significantly less with significantly fewer violations, or if the
    champion violates significantly more than is tolerated.

    Args:
        reclaimed: core-hours, challenger minus champion.
        violations: rates of forecasts that were exceeded.
        overload: rates of node windows above `FULL`.
        target: accepted violation rate.
    """
    champion, challenger, more = violations.champion, violations.challenger, violations.difference
    if champion is None or challenger is None or more is None:
        return "keep", ("No forecast could be judged: the trace has no usage after its decisions.",)
    limit = TOLERATED * target
    if challenger.low > limit:
        return "keep", (
            f"The challenger violates {_rate(challenger)}, more than the tolerated {limit:.2%}.",
        )
    if challenger.value > target and more.low > 0:
        return "keep", (
            f"The challenger violates {_rate(challenger)}, above the target of {target:.2%}.",
            f"That is significantly more than the champion's {champion.value:.2%}.",
        )
    if faults := _overloads(overload, limit):
        return "keep", faults
    safe = f"The challenger's violations of {_rate(challenger)} keep to the target of {target:.2%}."
    if challenger.value > limit:
        safe = (
            f"The challenger violates {_rate(challenger)}, above the tolerated {limit:.2%}, "
            "but not significantly so."
        )
    verdict, gain = _weigh(reclaimed, champion, more, limit)
    return verdict, (safe, *gain)


def _overloads(overload: Rates, limit: float) -> tuple[str, ...]:
    """Why a challenger fills too many node windows; empty where it does not."""
    rate, more = overload.challenger, overload.difference
    if rate is None or more is None or rate.low <= limit or more.low <= 0:
        return ()
    return (
        f"The challenger fills {_rate(rate)} of the node windows beyond their CPU.",
        f"That is more than the tolerated {limit:.2%}, and significantly more.",
    )


def _weigh(
    reclaimed: Interval, champion: Interval, more: Interval, limit: float
) -> tuple[Verdict, tuple[str, ...]]:
    """Whether a challenger that may serve is better.

    champion, more: its violation rate, and by how much the challenger's is higher.
    """
    gain = f"{reclaimed.value:+,.1f} core-hours ({reclaimed.low:+,.1f} to {reclaimed.high:+,.1f})"
    if champion.low > limit:
        return "promote", (
            f"The champion violates {_rate(champion)}, more than the tolerated {limit:.2%}.",
            f"Reclaimed: {gain}.",
        )
    if reclaimed.low > 0:
        return "promote", (f"It reclaims significantly more: {gain}.",)
    if reclaimed.high >= 0 and more.high < 0:
        return "promote", (
            f"It reclaims as much: {gain}.",
            f"It violates significantly less than the champion's {champion.value:.2%}.",
        )
    less = "significantly less" if reclaimed.high < 0 else "no more than chance would explain"
    return "keep", (f"It reclaims {less}: {gain}.",)


def _seed_outcome(result: ReplayResult, ours: Figures, theirs: Figures) -> SeedOutcome:
    rates = theirs.violation_rate, ours.violation_rate
    return SeedOutcome(
        seed=result.options.seed,
        reclaimed_core_hours=theirs.reclaimed_core_hours - ours.reclaimed_core_hours,
        violation_rate=None if rates[0] is None or rates[1] is None else rates[0] - rates[1],
    )


def _rate(rate: Interval) -> str:
    return f"{rate.value:.2%} ({rate.low:.2%} to {rate.high:.2%})"
