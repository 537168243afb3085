"""Golden rows: a small past and what a model made of it, kept with the model.

Whoever loads the model forecasts that past again. Other figures mean that the model, the features
or the arithmetic are not those that were trained, though every hash may be right.
"""

from __future__ import annotations

import msgspec
import numpy as np

from models.arrays import Floats
from models.calibration import Calibration
from models.errors import ArtifactError
from models.forecaster import Forecaster
from models.grid import DAY, WEEK
from models.history import History, build_history
from models.policy import HORIZONS, Policy

RELATIVE, ABSOLUTE = 1e-5, 1e-6
"""Differences that count as rounding: float32 sums come out differently on other processors."""

_TIME = 1_735_905_600  # Friday 3 January 2025, 12:00 UTC: half of the next 24 h is weekend


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The input, as in `models.history.History`, and the expected output.

    usage: [P][W] cores, None where not observed. location, scale: [N][H] of the prediction;
    forecast: [N][H] at the knob of the policy's target.
    """

    time: int
    usage: tuple[tuple[float | None, ...], ...]
    request: tuple[float, ...]
    pod: tuple[int, ...]
    node: tuple[int, ...]
    limit: tuple[float, ...]
    location: tuple[tuple[float, ...], ...]
    scale: tuple[tuple[float, ...], ...]
    forecast: tuple[tuple[float, ...], ...]


def make_golden(forecaster: Forecaster, calibration: Calibration, policy: Policy) -> Golden:
    """What a model makes of a past that has a tide, a burst, a gap, and young pods."""
    usage = _usage()
    golden = Golden(
        time=_TIME,
        usage=tuple(tuple(None if np.isnan(x) else x for x in row) for row in usage.tolist()),
        request=(4.0, 2.0, 1.0, 8.0, 0.5),
        pod=(0, 1, 2, 3, 4),
        node=(0, 0, 1, 1, 1),
        limit=(6.0, 12.0, 16.0),
        location=(),
        scale=(),
        forecast=(),
    )
    location, scale, forecast = _outputs(golden, forecaster, calibration, policy)
    return msgspec.structs.replace(
        golden, location=_rows(location), scale=_rows(scale), forecast=_rows(forecast)
    )


def check_golden(
    golden: Golden, forecaster: Forecaster, calibration: Calibration, policy: Policy
) -> None:
    """Forecast the golden past again.

    Raises:
        ArtifactError: the figures differ, or the golden rows do not make a past.
    """
    outputs = _outputs(golden, forecaster, calibration, policy)
    expected = (golden.location, golden.scale, golden.forecast)
    for name, found, kept in zip(("location", "scale", "forecast"), outputs, expected, strict=True):
        if _rows(found) != kept and not _close(found, kept):
            raise ArtifactError(
                f"the model does not reproduce its golden rows: the {name} differs. It was trained "
                "with other features or arithmetic, or was changed; train it again"
            )


def _outputs(
    golden: Golden, forecaster: Forecaster, calibration: Calibration, policy: Policy
) -> tuple[Floats, Floats, Floats]:
    prediction = forecaster.predict(_history(golden), HORIZONS)
    forecast = prediction.at(calibration.knobs(policy.target))
    return prediction.location, prediction.scale, forecast


def _history(golden: Golden) -> History:
    pods, nodes = len(golden.request), len(golden.limit)
    widths = {len(row) for row in golden.usage}
    indices = all(0 <= p < pods for p in golden.pod) and all(0 <= n < nodes for n in golden.node)
    edges = len(golden.pod) == len(golden.node)
    if len(golden.usage) != pods or len(widths) != 1 or not (indices and edges):
        raise ArtifactError("the golden rows of the model do not fit together; train it again")
    return build_history(
        golden.time,
        np.array(golden.usage, np.float32),
        np.array(golden.request),
        np.array(golden.pod, np.int64),
        np.array(golden.node, np.int64),
        np.array(golden.limit),
    )


def _usage() -> Floats:
    """Five pods' week: a tide, bursts, an idle one with a gap, one of 8 h and one of 1 h."""
    window = np.arange(WEEK)
    tide = 1.0 + 0.6 * np.sin(2 * np.pi * window / DAY) + 0.1 * np.cos(window)
    bursts = 0.2 + 1.5 * (window % 97 == 0) + 0.01 * (window % 7)
    idle = np.full(WEEK, 0.02)
    idle[500:560] = np.nan
    young = np.where(window < WEEK - 96, np.nan, 2.0 + np.sin(window / 5))
    new = np.where(window < WEEK - 12, np.nan, 0.3)
    return np.round(np.stack([tide, bursts, idle, young, new]), 4)


def _rows(values: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())


def _close(found: Floats, kept: tuple[tuple[float, ...], ...]) -> bool:
    if tuple(len(row) for row in kept) != (found.shape[1],) * len(found):
        return False
    return bool(np.allclose(found, np.array(kept), rtol=RELATIVE, atol=ABSOLUTE))
