"""Linear quantile regression with weights that are never negative."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from models.arrays import Floats

SMOOTHING = (0.3, 0.1, 0.03)
"""Widths, as shares of the mean target, over which the kink of the pinball loss is rounded; each
fit starts from the wider one's result. At 0.03 the weights have settled."""

RIDGE = 1e-4
"""Weight of the squared weights, each in units of its column's size: decides between columns that
say the same."""

MAX_STEPS = 200
"""Of each fit; most stop earlier."""


def fit_weights(columns: Floats, target: Floats, level: float) -> Floats:
    """Weights w >= 0, [K], such that ``columns @ w`` is the ``level`` quantile of the target.

    Minimises the pinball loss, smoothed with a logistic function (Zheng 2011, "Gradient descent
    algorithms for quantile regression with smooth approximation"), by L-BFGS-B. Weights that cannot
    be negative keep a sum of peaks a peak: an unusual row gives a large forecast, never a negative
    one.

    Args:
        columns: [R, K] finite, none negative.
        target: [R] finite.
        level: in (0, 1).
    """
    size = columns.mean(axis=0) + columns.std(axis=0)
    used = np.flatnonzero(size > 0)
    scaled = columns[:, used] / size[used]
    scale = float(np.abs(target).mean())
    weights = np.zeros(columns.shape[1])
    if len(used) == 0 or scale == 0:
        return weights
    found = np.full(len(used), 1.0 / len(used))
    # A product of this size gains nothing from threads, and on a busy machine waits for them.
    with threadpool_limits(1, user_api="blas"):
        for width in SMOOTHING:
            found = minimize(
                _loss,
                found,
                args=(scaled, target / scale, level, width),
                jac=True,
                method="L-BFGS-B",
                bounds=[(0.0, None)] * len(found),
                options={"maxiter": MAX_STEPS},
            ).x
    weights[used] = np.maximum(found, 0.0) / size[used] * scale
    return weights


def _loss(
    weights: Floats, columns: Floats, target: Floats, level: float, width: float
) -> tuple[float, Floats]:
    """Smoothed pinball loss with ridge, and its gradient."""
    short = target - columns @ weights
    half = np.tanh(short / (2 * width)) / 2  # the logistic function is 0.5 + half
    loss = np.logaddexp(0.0, short / width) * width - (1 - level) * short
    gradient = -((half + level - 0.5) @ columns) / len(target)
    return float(loss.mean() + RIDGE * weights @ weights), gradient + 2 * RIDGE * weights
