"""From past scores to the knob that is violated no more often than was accepted.

The score of a forecast whose truth is known is the knob that would just have covered it. The knob
for a target is read from the tail of past scores, with two corrections:

- Scores are few where it matters: 1 % of 24 h peaks in a week is less than one independent case.
  So the knob is not the empirical quantile, but the quantile *predicted* for the next case from the
  exceedances over a threshold. These are taken as exponential with an unknown mean, of which k
  cases were seen; the next one then follows a Lomax (Pareto II) distribution of shape k, which is
  wide for few cases and becomes the exponential for many (Aitchison & Dunsmore, Statistical
  Prediction Analysis, 1975).
- The past drifts: weights halve in a week, and the accepted share is adapted by how often the
  forecasts that have resolved were really violated (adaptive conformal inference, Gibbs & Candes
  2021), multiplicatively so that it stays positive.
"""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from models.arrays import Floats, Ints
from models.errors import TraceError
from models.forecaster import Prediction
from models.policy import HORIZONS
from models.truth import STEP

HALF_LIFE = 7 * 86_400.0
"""Seconds in which a score's weight halves: a week, so that every weekday keeps its say. A longer
one follows drift later, a shorter one leaves too few cases for the tail."""

REFRESH = 4 * 3600
"""Seconds between updates of the knobs."""

TAIL = 5.0
"""The threshold is exceeded by this multiple of the target. A higher one has more exceedances to
learn from, which look less like those that matter."""

FAR = 10.0
"""An exceedance counts as at most so many times that of the score that the accepted share exceeds.
Of an exponential's one in ten million is larger. That of a machine that was idle for a week and
wakes up is: its violation counts, but its size is no measure of what all others will need."""

INDEPENDENT = 3.0
"""Machines whose scores of one window count as independent. Machines of one cluster share pods,
tides and releases, so many of them say hardly more than a few; a higher number trusts them more."""

STEP_SIZE = 0.012
"""Log of the accepted share's change for a horizon in which the violations were twice the target.
All machines violated for one horizon makes it 70 % smaller at a target of 1 %; a higher one reacts
faster and swings more."""

STRICTEST, LOOSEST = 0.1, 2.0
"""Bounds of the adapted share, as multiples of the target."""

KEEP = 4 * HALF_LIFE
"""Seconds after which scores, then at a sixteenth of their weight, are dropped."""

LIMIT = 1e6
"""Largest magnitude of a score: what lies beyond says nothing more, and stays finite in JSON."""

LEAST_SCALE = 0.002
"""Least scale, as a share of what is forecast beside it, at which a forecast says something about
knobs. Below, pods' requests make nearly all of it, which no knob moves: one such machine that was
exceeded would ask for a knob of hundreds, and so take everybody's forecasts with it. Machines with
steady usage lie above: the learned forecaster's scale is a hundredth of it at least."""

_TAIL_EDGES = (0.0, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02)
_BODY_EDGES = (0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
EDGES: Floats = np.array([*_TAIL_EDGES, *_BODY_EDGES, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
"""A sketch holds the mean score of each slice between these shares, counted from the highest."""

SHARES: Floats = np.diff(EDGES)
"""The share of the scores in each slice of a sketch."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model version carries to be calibrated from its first hour.

    horizons: hours. windows: how many non-overlapping windows of each horizon were scored.
    sketches: for each horizon the mean score of each slice of EDGES, highest first.
    """

    horizons: tuple[int, ...]
    windows: tuple[float, ...]
    sketches: tuple[tuple[float, ...], ...]

    def knobs(self, target: float) -> Floats:
        """The knob [H] for a violation probability, any in (0, 0.1]."""
        return np.array(
            [
                tail_knob(np.array(sketch), SHARES, windows, target, target)
                for sketch, windows in zip(self.sketches, self.windows, strict=True)
            ]
        )


def needed_knob(prediction: Prediction, truth: Floats, unknown: Floats) -> Floats:
    """The knobs [N, H] that would just have covered the truth.

    Args:
        prediction: of the seasoned pods.
        truth: [N, H] cores, unknown pods' usage included, NaN where not known.
        unknown: [N] cores of unknown pods' requests, which every forecast includes.

    Returns:
        [N, H]; NaN where the truth or the prediction is not known or where there is nothing to
        predict. The cap is ignored: no knob covers what lies beyond it.
    """
    raw = (truth - unknown[:, None] - prediction.location) / prediction.scale
    return np.where(prediction.cap[:, None] > 0, np.clip(raw, -LIMIT, LIMIT), np.nan)


def score(prediction: Prediction, truth: Floats, unknown: Floats) -> Floats:
    """The needed knobs [N, H] that calibration learns from, as `needed_knob`.

    NaN also where a knob moves next to nothing of the forecast (`LEAST_SCALE`).
    """
    movable = prediction.scale >= LEAST_SCALE * (prediction.location + unknown[:, None])
    return np.where(movable, needed_knob(prediction, truth, unknown), np.nan)


def fit_calibration(
    scores: Floats,
    times: Ints,
    horizons: tuple[int, ...] = HORIZONS,
) -> Calibration:
    """Summarise the scores of past decisions.

    Args:
        scores: [R, H] from `score`; NaN where the truth is not known.
        times: [R] seconds since the epoch at which each row's decision was made.
        horizons: hours of the columns.

    Raises:
        TraceError: a horizon has no score at all.
    """
    sketches, windows = [], []
    for column, hours in zip(scores.T, horizons, strict=True):
        known = ~np.isnan(column)
        if not known.any():
            raise TraceError(
                f"the calibration share of the trace holds no complete window of {hours} h, or "
                "none of machines whose pods have a past; calibrate on a longer trace"
            )
        sketches.append(tuple(sketch(column[known]).tolist()))
        windows.append(len(np.unique(times[known])) * STEP / (hours * 3600))
    return Calibration(horizons=horizons, windows=tuple(windows), sketches=tuple(sketches))


def sketch(scores: Floats) -> Floats:
    """The mean score of each slice of EDGES, highest first; ``scores`` [R] has no NaN and R > 0."""
    ordered = np.sort(scores)[::-1]
    summed = np.concatenate([[0.0], np.cumsum(ordered)]) / len(ordered)
    at_edges = np.interp(EDGES, np.arange(len(ordered) + 1) / len(ordered), summed)
    return np.asarray(np.diff(at_edges) / SHARES)


def tail_knob(
    scores: Floats, weights: Floats, windows: float, target: float, accepted: float
) -> float:
    """The knob that the next score exceeds with probability ``accepted``.

    Args:
        scores: [K] past scores.
        weights: [K] of any sum.
        windows: how many independent windows of the horizon the weights stand for.
        target: sets the threshold, which is exceeded by ``TAIL x target`` of the scores.
        accepted: probability, near the target.
    """
    order = np.argsort(-scores)
    ordered, mass = scores[order], weights[order] / weights.sum()
    above = np.cumsum(mass)
    share = min(TAIL * target, 0.5)
    if accepted >= share:
        return float(ordered[_position(above, accepted)])
    first = _position(above, share)
    threshold = float(ordered[first])
    far = FAR * (float(ordered[_position(above, accepted)]) - threshold)
    excess = float((mass[:first] * np.minimum(ordered[:first] - threshold, far)).sum() / share)
    cases = 1.0 + INDEPENDENT * windows * share
    return threshold + excess * cases * float((share / accepted) ** (1 / cases) - 1)


def _position(above: Floats, share: float) -> int:
    """Index of the largest score that is exceeded by at most ``share`` of the weight."""
    return min(int(np.searchsorted(above, share * (1 + 1e-9), side="right")), len(above) - 1)


class Learned(msgspec.Struct, frozen=True, array_like=True):
    """What a `Recalibrator` has learned, for one of the same calibration to go on from.

    Fields, by horizon where they are lists: started: seconds since the epoch of the first knobs;
    log_share: of the accepted share to the target; made, sketches: of the decisions that resolved;
    used: knobs with the time from which on they were; expected: knobs.
    """

    started: int
    log_share: list[float]
    made: list[list[int]]
    sketches: list[list[list[float]]]
    used: list[tuple[int, list[float]]]
    expected: list[float]


class Recalibrator:
    """Knobs for one target that follow the scores of forecasts as these resolve.

    Bounded: KEEP of half hours, one sketch for each horizon. Time only comes in as an argument, and
    does not go back.
    """

    def __init__(self, calibration: Calibration, target: float) -> None:
        self._prior = calibration
        self._target = target
        count = len(calibration.horizons)
        self._log_share: Floats = np.zeros(count)
        kept = int(KEEP // STEP)
        self._made: list[deque[int]] = [deque(maxlen=kept) for _ in range(count)]
        self._sketches: list[deque[Floats]] = [deque(maxlen=kept) for _ in range(count)]
        self._used: deque[tuple[int, Floats]] = deque(maxlen=_refreshes(calibration.horizons))
        self._started = 0
        self._expected: Floats = np.zeros(count)

    def learned(self) -> Learned:
        """All that it knows beyond its calibration."""
        return Learned(
            self._started,
            self._log_share.tolist(),
            [list(made) for made in self._made],
            [[one.tolist() for one in sketches] for sketches in self._sketches],
            [(since, knobs.tolist()) for since, knobs in self._used],
            self._expected.tolist(),
        )

    def resume(self, learned: Learned) -> None:
        """Go on from what one of the same calibration and target has learned."""
        self._started = learned.started
        self._log_share = np.array(learned.log_share)
        for own, made in zip(self._made, learned.made, strict=True):
            own.extend(made)
        for kept, sketches in zip(self._sketches, learned.sketches, strict=True):
            kept.extend(np.array(one) for one in sketches)
        self._used.extend((since, np.array(knobs)) for since, knobs in learned.used)
        self._expected = np.array(learned.expected)

    def knobs(self, time: int) -> Floats:
        """The knobs [H] to use at ``time``, seconds since the epoch."""
        if not self._used:
            self._started = time
        if not self._used or time >= self._used[-1][0] + REFRESH:
            self._refresh(time)
        return self._used[-1][1]

    def expected(self) -> Floats:
        """The knobs [H] that half of the recent truths exceed, as of the last `knobs`."""
        return self._expected

    def observe(self, made: int, horizon: int, scores: Floats) -> None:
        """Learn from the forecasts of one decision that have resolved.

        Args:
            made: when the decision was made; decisions of one horizon come in order.
            horizon: index into the calibration's horizons.
            scores: [N] of the nodes from `score`; NaN where the truth is not known.
        """
        known = scores[~np.isnan(scores)]
        if len(known) == 0:
            return
        self._made[horizon].append(made)
        self._sketches[horizon].append(sketch(known))
        used = next((knobs for since, knobs in reversed(self._used) if since <= made), None)
        if used is None:
            return
        violated = float((known > used[horizon]).mean())
        step = STEP_SIZE * self._weight(horizon)
        moved = self._log_share[horizon] - step * (violated / self._target - 1)
        self._log_share[horizon] = np.clip(moved, np.log(STRICTEST), np.log(LOOSEST))

    def _weight(self, horizon: int) -> float:
        """Independent windows in one decision: those of longer horizons overlap more."""
        return STEP / (self._prior.horizons[horizon] * 3600)

    def _refresh(self, time: int) -> None:
        accepted = self._target * np.exp(self._log_share)
        knobs, expected = np.zeros_like(accepted), np.zeros_like(accepted)
        for j in range(len(accepted)):
            scores, weights = self._past(time, j)
            windows = float(weights.sum())
            knobs[j] = tail_knob(scores, weights, windows, self._target, float(accepted[j]))
            expected[j] = tail_knob(scores, weights, windows, 0.5, 0.5)
        self._used.append((time, knobs))
        self._expected = expected

    def _past(self, time: int, horizon: int) -> tuple[Floats, Floats]:
        """Scores and their weights, the calibration's and those observed since; sum = windows."""
        prior = 0.5 ** ((time - self._started) / HALF_LIFE) * self._prior.windows[horizon]
        age = time - np.array(self._made[horizon], np.float64)
        since = self._weight(horizon) * 0.5 ** (age / HALF_LIFE)
        rows = [np.array(self._prior.sketches[horizon]), *self._sketches[horizon]]
        weights = np.outer(np.concatenate([[prior], since]), SHARES)
        return np.concatenate(rows), weights.ravel()


def _refreshes(horizons: tuple[int, ...]) -> int:
    """How many past knobs must be known to tell which one a resolving forecast used."""
    return max(horizons) * 3600 // REFRESH + 2
