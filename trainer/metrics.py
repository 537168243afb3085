"""How good forecasts were: the figures of an evaluation, each a pure function of arrays.

Rows are decisions [T] of machines [N]; a NaN truth means that nobody knows, and the row does not
count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import mean_pinball_loss

from models.arrays import Bools, Floats, Ints

TOLERANCE = 1e-9
"""Cores by which a truth may exceed a forecast before it counts as a violation: rounding."""

REPLICATES = 1000
"""Bootstrap samples; the ends of a 90 % interval are then known to within a few percent of it."""

CONFIDENCE = 0.90
"""Probability with which a bootstrap interval covers the rate."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one predictor at one horizon and target.

    violation_rate: share of decisions whose truth was above the forecast.
    interval_low, interval_high: 90 % block-bootstrap interval of that rate.
    worst_machines: 95th percentile over machines of the machine's own rate.
    severity_mean, severity_p99: of (truth - forecast) / truth over violations; 0 without any.
    excess_reserve: mean of max(forecast - truth, 0) / mean truth.
    savings: mean of 1 - forecast / limit. oracle_share: that, over what the truth would save.
    pinball: mean pinball loss at 1 - target / mean truth.
    decisions: rows that counted.
    """

    violation_rate: float
    interval_low: float
    interval_high: float
    worst_machines: float
    severity_mean: float
    severity_p99: float
    excess_reserve: float
    savings: float
    oracle_share: float
    pinball: float
    decisions: int


def judge(forecast: Floats, truth: Floats, limit: Floats, day: Ints, target: float) -> Figures:
    """All figures of a predictor.

    Args:
        forecast, truth, limit: [T, N] cores.
        day: [T] the day of each decision, for the bootstrap.
        target: accepted probability of a violation.
    """
    known = ~np.isnan(truth)
    violated = known & violations(forecast, truth)
    low, high = block_interval(violated, known, day, seed=0)
    severity = (truth[violated] - forecast[violated]) / truth[violated]
    saved, possible = savings(forecast, truth, limit)
    return Figures(
        violation_rate=_ratio(violated.sum(), known.sum()),
        interval_low=low,
        interval_high=high,
        worst_machines=worst_machines(violated, known),
        severity_mean=float(severity.mean()) if len(severity) else 0.0,
        severity_p99=float(np.quantile(severity, 0.99)) if len(severity) else 0.0,
        excess_reserve=excess_reserve(forecast, truth),
        savings=saved,
        oracle_share=_ratio(saved, possible),
        pinball=pinball(forecast, truth, target),
        decisions=int(known.sum()),
    )


def violations(forecast: Floats, truth: Floats) -> Bools:
    """Where the truth was above the forecast, in the arrays' shape; a NaN truth never is."""
    return np.asarray(truth > forecast + TOLERANCE)


def worst_machines(violated: Bools, known: Bools) -> float:
    """95th percentile over machines of the share of its decisions that was violated; [T, N]."""
    count = known.sum(axis=0)
    rates = violated.sum(axis=0)[count > 0] / count[count > 0]
    return float(np.quantile(rates, 0.95)) if len(rates) else np.nan


def excess_reserve(forecast: Floats, truth: Floats) -> float:
    """Mean of max(forecast - truth, 0), divided by the mean truth."""
    known = ~np.isnan(truth)
    excess = np.maximum(forecast[known] - truth[known], 0.0)
    return _ratio(excess.sum(), truth[known].sum())


def savings(forecast: Floats, truth: Floats, limit: Floats) -> tuple[float, float]:
    """Mean of 1 - forecast / limit, and what it would be with forecast = truth.

    Machines without a limit (no pod asks for CPU) have nothing to save and do not count.
    """
    known = ~np.isnan(truth) & (limit > 0)
    if not known.any():
        return np.nan, np.nan
    saved = 1 - forecast[known] / limit[known]
    possible = 1 - truth[known] / limit[known]
    return float(saved.mean()), float(possible.mean())


def pinball(forecast: Floats, truth: Floats, target: float) -> float:
    """Mean pinball loss at the quantile 1 - target, divided by the mean truth.

    ``(1 - target) (truth - forecast)`` below the truth, ``target (forecast - truth)`` above it.

    Raises:
        ValueError: a forecast whose truth is known is not finite.
    """
    known = ~np.isnan(truth)
    if not truth[known].sum() > 0:
        return np.nan
    loss = mean_pinball_loss(truth[known], forecast[known], alpha=1 - target)
    return float(loss / truth[known].mean())


def block_interval(violated: Bools, known: Bools, day: Ints, seed: int) -> tuple[float, float]:
    """Bootstrap interval of the violation rate, resampling whole days and whole machines.

    Peaks of one day, and of one machine, are violated together; resampling single decisions would
    take them for independent and give an interval far too narrow.

    Args:
        violated, known: [T, N].
        day: [T].
        seed: of the resampling.
    """
    if not known.any():
        return np.nan, np.nan
    days, block = np.unique(day, return_inverse=True)
    hit = np.zeros((len(days), known.shape[1]))
    all_ = np.zeros_like(hit)
    np.add.at(hit, block, violated)
    np.add.at(all_, block, known)
    rng = np.random.default_rng(seed)
    by_day = _resampled(len(days), rng)
    by_machine = _resampled(known.shape[1], rng)
    hits = ((by_day @ hit) * by_machine).sum(axis=1)
    total = ((by_day @ all_) * by_machine).sum(axis=1)
    rates = hits[total > 0] / total[total > 0]
    low, high = np.quantile(rates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def covering_knob(scores: Floats, target: float) -> float:
    """The smallest knob that leaves at most a share ``target`` of the scores above it.

    Args:
        scores: any shape; NaN does not count, inf is what no knob covers.
        target: share.

    Returns:
        NaN without any score.
    """
    known = np.sort(scores[~np.isnan(scores)])[::-1]
    if len(known) == 0:
        return np.nan
    return float(known[int(target * len(known) + TOLERANCE)])


def _resampled(count: int, rng: np.random.Generator) -> Floats:
    """How often each of ``count`` items is drawn in each replicate, [REPLICATES, count]."""
    shares = np.full(count, 1 / count)
    return rng.multinomial(count, shares, size=REPLICATES).astype(np.float64)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else np.nan
