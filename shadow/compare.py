"""Champion against challenger on the same pods and the same usage, with a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from models.trace import Trace
from shadow.bootstrap import Interval, Weights
from shadow.cells import block_hours, cells_of
from shadow.cohorts import Cohort, cohorts
from shadow.figures import Figures, figures
from shadow.options import ReplayOptions
from shadow.replay import Progress
from shadow.result import ReplayResult
from shadow.seeds import Candidate, Replays, mean_of, replay_seeds

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
    verdict: Literal["promote", "keep"]
    reasons: tuple[str, ...]


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
    seeds: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Replay a trace under both and judge the challenger; see `replay_sides` and `judge`.

    Raises:
        TraceError: as `shadow.replay.replay`.
    """
    return judge(
        replay_sides(trace, champion, challenger, options=options, seeds=seeds, progress=progress)
    )


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
    violated = [(side.violated.sum(axis=3), side.judged.sum(axis=3)) for side in (ours, theirs)]
    rates = [weights.rate(*side) for side in violated]
    difference = weights.difference_of_rates(violated[1], violated[0])
    over = [(side.overloaded, side.promised) for side in (ours, theirs)]
    if champion.used is None:
        over = [(part * 0, whole * 0) for part, whole in over]
    overload = [weights.rate(*side) for side in over]
    more_overload = weights.difference_of_rates(over[1], over[0])
    verdict, reasons = decide_verdict(
        reclaimed, rates[0], rates[1], difference, target, overload[1], more_overload
    )
    figured = [
        [figures(result, series) for result, series in zip(side.results, side.series, strict=True)]
        for side in (ours, theirs)
    ]
    return Comparison(
        champion=mean_of(figured[0]),
        challenger=mean_of(figured[1]),
        seeds=tuple(map(_seed_outcome, sides.champion, *figured)),
        reclaimed_core_hours=reclaimed,
        violation_rate=difference,
        champion_violation_rate=rates[0],
        challenger_violation_rate=rates[1],
        overload_rate=more_overload,
        champion_overload_rate=overload[0],
        challenger_overload_rate=overload[1],
        cohorts=cohorts(ours, theirs, weights),
        target=target,
        block_hours=block_hours(champion),
        blocks=ours.reclaimed.shape[2],
        verdict=verdict,
        reasons=reasons,
    )


def decide_verdict(
    reclaimed: Interval,
    champion: Interval | None,
    challenger: Interval | None,
    difference: Interval | None,
    target: float,
    overload: Interval | None = None,
    more_overload: Interval | None = None,
) -> tuple[Literal["promote", "keep"], tuple[str, ...]]:
    """Whether the challenger should serve, and why.

    It must keep within the accepted violations: the interval of its rate reaches down to
    `TOLERATED` times the target, and where the rate itself is above the target it is not
    significantly higher than the champion's. The same limit holds for the node windows that it
    fills above `FULL`, where those are significantly more. Then it is promoted if it reclaims
    significantly more, or not significantly less with significantly fewer violations, or if the
    champion violates significantly more than is tolerated.

    Args:
        reclaimed: core-hours, challenger minus champion.
        champion, challenger: violation rates; None where nothing could be judged.
        difference: of the rates, challenger minus champion.
        target: accepted violation rate.
        overload, more_overload: the challenger's overload rate, and how much higher than the
            champion's it is.
    """
    if champion is None or challenger is None or difference is None:
        return "keep", ("No forecast could be judged: the trace has no usage after its decisions.",)
    limit = TOLERATED * target
    if challenger.low > limit:
        return "keep", (
            f"The challenger violates {_rate(challenger)}, more than the tolerated {limit:.2%}.",
        )
    if challenger.value > target and difference.low > 0:
        return "keep", (
            f"The challenger violates {_rate(challenger)}, above the target of {target:.2%}.",
            f"That is significantly more than the champion's {champion.value:.2%}.",
        )
    if overload and more_overload and overload.low > limit and more_overload.low > 0:
        return "keep", (
            f"The challenger fills {_rate(overload)} of the node windows beyond their CPU.",
            f"That is more than the tolerated {limit:.2%}, and significantly more.",
        )
    safe = f"The challenger's violations of {_rate(challenger)} keep to the target of {target:.2%}."
    if challenger.value > limit:
        safe = (
            f"The challenger violates {_rate(challenger)}, above the tolerated {limit:.2%}, "
            "but not significantly so."
        )
    gain = f"{reclaimed.value:+,.1f} core-hours ({reclaimed.low:+,.1f} to {reclaimed.high:+,.1f})"
    if champion.low > limit:
        return "promote", (
            safe,
            f"The champion violates {_rate(champion)}, more than the tolerated {limit:.2%}.",
            f"Reclaimed: {gain}.",
        )
    if reclaimed.low > 0:
        return "promote", (safe, f"It reclaims significantly more: {gain}.")
    if reclaimed.high >= 0 and difference.high < 0:
        return "promote", (
            safe,
            f"It reclaims as much: {gain}.",
            f"It violates significantly less than the champion's {champion.value:.2%}.",
        )
    less = "significantly less" if reclaimed.high < 0 else "no more than chance would explain"
    return "keep", (safe, f"It reclaims {less}: {gain}.")


def _seed_outcome(result: ReplayResult, ours: Figures, theirs: Figures) -> SeedOutcome:
    rates = theirs.violation_rate, ours.violation_rate
    return SeedOutcome(
        seed=result.options.seed,
        reclaimed_core_hours=theirs.reclaimed_core_hours - ours.reclaimed_core_hours,
        violation_rate=None if rates[0] is None or rates[1] is None else rates[0] - rates[1],
    )


def _rate(rate: Interval) -> str:
    return f"{rate.value:.2%} ({rate.low:.2%} to {rate.high:.2%})"
