"""The one interface of all predictors, learned and classical."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.arrays import Floats
from models.history import History


@dataclass(frozen=True, slots=True)
class Prediction:
    """Peaks of N nodes for H horizons, with one knob left open.

    The forecast is ``location + knob * scale``, at most ``cap``, plus the requests of unknown pods.
    Whoever calibrates chooses the knob: the score ``(truth - location) / scale`` says which knob
    would just have covered a known truth, so a quantile of past scores is the knob to use.

    location, scale: [N, H] cores, scale > 0; cap: [N] cores, inf where there is none.
    """

    location: Floats
    scale: Floats
    cap: Floats

    def at(self, knob: Floats) -> Floats:
        """The forecast [N, H] in cores for a knob of shape [H] (or any that broadcasts)."""
        return np.clip(self.location + knob * self.scale, 0.0, self.cap[:, None])


class Forecaster(Protocol):
    """Predicts the peak of each node's seasoned pods."""

    @property
    def name(self) -> str:
        """The name in tables and manifests."""

    @property
    def default_knob(self) -> float:
        """The knob that ships where nobody has calibrated."""

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        """Predict for horizons in hours; the unknown pods of `history` are not included."""
