"""One model version: a forecaster, its calibration and the policy that uses it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from models.calibration import Calibration
from models.forecaster import Forecaster
from models.policy import HORIZONS, Policy

UNREGISTERED = "unregistered"
"""The version of a model that no registry has numbered yet."""


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a model comes from and how it did while it was trained.

    Fields, with units:
        start, stop: seconds since the epoch; the usage that was looked at lies in [start, stop).
        seed: of machines, sampling and LightGBM.
        pods, machines, rows: how many were trained on.
        data_digest: SHA-256 of the trace's content.
        git_revision: of the code that trained.
        parameters: what else was chosen, for the record.
        metrics: per-horizon figures on the calibration share, named ``metric_HORIZONh``.
        importances: feature -> share of the gain, summing to 1; empty for classical forecasters.
    """

    start: int
    stop: int
    seed: int
    pods: int
    machines: int
    rows: int
    data_digest: str
    git_revision: str
    parameters: dict[str, float | str]
    metrics: dict[str, float]
    importances: dict[str, float]

    def saw(self, data_digest: str, first: float, last: float) -> bool | None:
        """Whether the model was trained on usage of a trace in [first, last).

        None where that is not known: it was trained on a trace of the same time with another
        digest, which may hold other usage or the same with a column more.

        Args:
            data_digest: of the trace.
            first, last: seconds since the epoch.
        """
        if self.stop <= first or last <= self.start:
            return False
        return True if self.data_digest == data_digest else None


@dataclass(frozen=True, slots=True)
class Model:
    """What is registered, promoted, served and rolled back as one thing.

    ``version`` is the registry's number where it has one. `horizons` are those the calibration has
    knobs for, always `models.policy.HORIZONS`.
    """

    version: str
    forecaster: Forecaster
    calibration: Calibration
    policy: Policy
    training: Training

    @property
    def horizons(self) -> tuple[int, ...]:
        """Hours for which the model forecasts."""
        return HORIZONS
