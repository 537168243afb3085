"""Champion against challenger on the same pods and the same usage, with a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from models.arrays import Floats
from models.model import Model
from models.policy import Policy
from models.trace import Trace
from shadow.figures import Figures, NodeSeries, figures, judged, node_series
from shadow.options import ReplayOptions
from shadow.replay import Progress, replay_scenario
from shadow.result import ReplayResult
from shadow.scenario import build_scenario

CONFIDENCE = 0.90
"""Of every interval, as in the evaluation."""

RESAMPLES = 2000
"""Of the bootstrap; 2,000 settle the ends of a 90 % interval to about a twentieth of its width."""

TOLERATED = 1.5
"""Times the target that a violation rate may reach, as in the evaluation: 1.5 % for 1 %."""

_DAY = 24.0
_FEWEST_DAYS = 5


class Interval(msgspec.Struct, frozen=True):
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Both replays, what differs, and whether the challenger should serve.

    Fields:
        champion, challenger: figures of each replay.
        reclaimed_core_hours, violation_rate: challenger minus champion; the rate is None where the
            trace has no usage.
        champion_violation_rate, challenger_violation_rate: with their intervals.
        target: the violation probability that the challenger's policy accepts.
        block_hours, blocks: what the bootstrap resampled, beside nodes.
        verdict, reasons: in words.
    """

    champion: Figures
    challenger: Figures
    reclaimed_core_hours: Interval
    violation_rate: Interval | None
    champion_violation_rate: Interval | None
    challenger_violation_rate: Interval | None
    target: float
    block_hours: float
    blocks: int
    verdict: Literal["promote", "keep"]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What decides: a model (None: requests) and a policy (None: the model's own)."""

    model: Model | None
    policy: Policy | None = None


def compare(
    trace: Trace,
    champion: Candidate,
    challenger: Candidate,
    *,
    options: ReplayOptions | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Replay a trace under both and judge the challenger.

    Both meet the same nodes, pods, usage and seed. Intervals come from a paired bootstrap that
    resamples blocks of time and nodes together for both sides, because neighbouring windows and
    windows of one node are alike.

    Args:
        trace: what is replayed.
        champion, challenger: model and policy of each side.
        options: see `ReplayOptions`.
        progress: called with the share that is done of both replays.

    Raises:
        TraceError: as `shadow.replay.replay`.
    """
    options = options or ReplayOptions()
    scenario = build_scenario(trace, options)
    report = progress or (lambda _: None)
    results = [
        replay_scenario(
            scenario,
            side.model,
            policy=side.policy,
            options=options,
            progress=lambda done, number=number: report((number + done) / 2),  # type: ignore[misc]
        )
        for number, side in enumerate((champion, challenger))
    ]
    return judge(results[0], results[1])


def judge(champion: ReplayResult, challenger: ReplayResult) -> Comparison:
    """Compare two replays of one scenario; see `compare`."""
    ours, theirs = _cells(champion), _cells(challenger)
    rng = np.random.default_rng([challenger.options.seed, 3])
    weights = _Weights.draw(rng, *ours.reclaimed.shape)
    reclaimed = weights.difference_of_sums(theirs.reclaimed, ours.reclaimed)
    rates = [weights.rate(cells.violated, cells.judged) for cells in (ours, theirs)]
    difference = weights.difference_of_rates(theirs, ours)
    target = challenger.policy.target
    verdict, reasons = decide_verdict(reclaimed, rates[0], rates[1], difference, target)
    return Comparison(
        champion=figures(champion, ours.series),
        challenger=figures(challenger, theirs.series),
        reclaimed_core_hours=reclaimed,
        violation_rate=difference,
        champion_violation_rate=rates[0],
        challenger_violation_rate=rates[1],
        target=target,
        block_hours=_block_hours(champion),
        blocks=ours.reclaimed.shape[1],
        verdict=verdict,
        reasons=reasons,
    )


def decide_verdict(
    reclaimed: Interval,
    champion: Interval | None,
    challenger: Interval | None,
    difference: Interval | None,
    target: float,
) -> tuple[Literal["promote", "keep"], tuple[str, ...]]:
    """Whether the challenger should serve, and why.

    It must keep within the accepted violations: the interval of its rate reaches down to
    `TOLERATED` times the target, and where the rate itself is above the target it is not
    significantly higher than the champion's. Then it is promoted if it reclaims significantly more,
    or not significantly less with significantly fewer violations, or if the champion violates
    significantly more than is tolerated.

    Args:
        reclaimed: core-hours, challenger minus champion.
        champion, challenger: violation rates; None where nothing could be judged.
        difference: of the rates, challenger minus champion.
        target: accepted violation rate.
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
    safe = f"The challenger's violations of {_rate(challenger)} keep to the target of {target:.2%}."
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


@dataclass(frozen=True, slots=True)
class _Cells:
    """Figures by node and block of time, all [N, B]."""

    series: NodeSeries
    reclaimed: Floats
    violated: Floats
    judged: Floats


@dataclass(frozen=True, slots=True)
class _Weights:
    """How often each node [S, N] and each block [S, B] was drawn; row 0 is the sample itself."""

    nodes: Floats
    blocks: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, nodes: int, blocks: int) -> _Weights:
        """Resample nodes and blocks, each with replacement."""
        drawn = [
            np.concatenate(
                [np.ones((1, count)), rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)]
            ).astype(np.float64)
            for count in (nodes, blocks)
        ]
        return cls(*drawn)

    def sums(self, cells: Floats) -> Floats:
        """The sum of [N, B] cells in each resample, [S]."""
        total: Floats = ((self.nodes @ cells) * self.blocks).sum(axis=1)
        return total

    def difference_of_sums(self, theirs: Floats, ours: Floats) -> Interval:
        """Theirs less ours."""
        return _interval(self.sums(theirs) - self.sums(ours))

    def rate(self, part: Floats, whole: Floats) -> Interval | None:
        """A rate, None where there is nothing to count."""
        if whole.sum() == 0:
            return None
        return _interval(self.sums(part) / np.maximum(self.sums(whole), 1e-9))

    def difference_of_rates(self, theirs: _Cells, ours: _Cells) -> Interval | None:
        """Their violation rate less ours, None where either has nothing to count."""
        if theirs.judged.sum() == 0 or ours.judged.sum() == 0:
            return None
        rates = [
            self.sums(cells.violated) / np.maximum(self.sums(cells.judged), 1e-9)
            for cells in (theirs, ours)
        ]
        return _interval(rates[0] - rates[1])


def _interval(samples: Floats) -> Interval:
    """The figure itself (row 0) and its percentile interval."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(samples[1:], [tail, 100 - tail])
    return Interval(float(samples[0]), float(low), float(high))


def _block_hours(result: ReplayResult) -> float:
    """Days where there are enough of them, else eighths of the replay."""
    hours = (result.stop - result.start) / 3600
    return _DAY if hours >= _FEWEST_DAYS * _DAY else hours / 8


def _cells(result: ReplayResult) -> _Cells:
    series = node_series(result)
    seconds = _block_hours(result) * 3600
    blocks = int(np.ceil((result.stop - result.start) / seconds))
    steps = np.minimum(np.arange(series.run.shape[1]) * series.step // seconds, blocks - 1)
    reclaimed = _add_up(series.run * series.hours, steps, blocks)
    known, violated = (figure.sum(axis=2).T for figure in judged(result))
    times = np.zeros(0) if result.forecasts is None else result.forecasts.time - result.start
    refreshes = np.minimum(times // seconds, blocks - 1)
    return _Cells(
        series,
        reclaimed,
        _add_up(violated, refreshes, blocks),
        _add_up(known, refreshes, blocks),
    )


def _add_up(figure: Floats, block: Floats, blocks: int) -> Floats:
    """Sum [N, T] by the block of each column, [N, B]."""
    found = np.zeros((len(figure), blocks))
    np.add.at(found.T, block.astype(np.int64), figure.T)
    return found


def _rate(rate: Interval) -> str:
    return f"{rate.value:.2%} ({rate.low:.2%} to {rate.high:.2%})"
