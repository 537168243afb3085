"""How much CPU of a node can be promised: the one formula of the system."""

from __future__ import annotations

import numpy as np

from models.arrays import Floats, Ints
from models.policy import Policy


def reclaimable_millicpu(allocatable: Floats, forecast: Floats, policy: Policy) -> Ints:
    """CPU that can be promised before any promise is subtracted, in whole millicores.

    ``allocatable x ceiling - system reserve - forecast(horizon)``, rounded down, never below 0.

    Args:
        allocatable: [N] cores.
        forecast: [N, H] cores; a longer horizon never counts with less than a shorter one, because
            its peak includes the shorter one's. NaN or infinite means unknown: nothing is free.
        policy: ceiling and reserve.

    Returns:
        [N, H] millicores.
    """
    known = np.where(np.isfinite(forecast), forecast, np.inf)
    peak = np.maximum.accumulate(known, axis=1)
    free = allocatable[:, None] * policy.ceiling - policy.system_reserve - peak
    # 1e-6 millicores undo the rounding of sums such as 0.1 + 0.2 before rounding down.
    return np.floor(np.maximum(free, 0.0) * 1000 + 1e-6).astype(np.int64)
