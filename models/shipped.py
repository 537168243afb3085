"""A forecaster as it ships: a model without any training."""

from __future__ import annotations

from models.calibration import SHARES, Calibration
from models.forecaster import Forecaster
from models.model import Model, Training
from models.policy import HORIZONS, Policy


def shipped(forecaster: Forecaster, policy: Policy | None = None) -> Model:
    """A forecaster with the knob that ships, for every target; it calibrates itself at work.

    The knob counts as much as what one window of each horizon teaches.
    """
    knob = forecaster.default_knob
    count = len(HORIZONS)
    calibration = Calibration(
        horizons=HORIZONS, windows=(1.0,) * count, sketches=((knob,) * len(SHARES),) * count
    )
    training = Training(
        start=0,
        stop=0,
        seed=0,
        pods=0,
        machines=0,
        rows=0,
        data_digest="",
        git_revision="",
        parameters={},
        metrics={},
        importances={},
    )
    return Model(forecaster.name, forecaster, calibration, policy or Policy(), training)
