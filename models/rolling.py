"""Forecasts that keep calibrating themselves on what became of the earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, groupby

import msgspec
import numpy as np

from models.arrays import Bools, Floats
from models.awaited import Awaited, Resolved, Saved
from models.calibration import Learned, Recalibrator
from models.forecaster import Prediction
from models.history import History
from models.model import Model


@dataclass(frozen=True, slots=True)
class Forecast:
    """What to expect on N nodes within each of the model's H horizons, in cores.

    forecast: [N, H] the peak exceeded with at most the policy's target probability, non-decreasing
    over horizons, requests of unknown pods included; NaN where the node's usage is all gaps.
    expected: [N, H] the peak that is as likely exceeded as not, at most the forecast.
    """

    forecast: Floats
    expected: Floats


@dataclass(frozen=True, slots=True)
class Part:
    """A group of nodes as known now.

    history: rows may differ from call to call; each pod is on one node. pods, nodes: stable names
    of its pods and nodes; a pod that is missing in a later call, or on another node, has ended and
    uses nothing from then on.
    """

    history: History
    pods: Sequence[str]
    nodes: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Step:
    """A group's prediction, what its unknown pods [N, 1] add, and what has resolved in it."""

    time: int
    prediction: Prediction
    unknown: Floats
    resolved: list[Resolved]


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """What a `RollingForecast` has learned and awaits, for one of the same model to go on from."""

    learned: Learned
    groups: list[Saved]


class RollingForecast:
    """A model at work: forecasts, remembers, and learns from the forecasts that have resolved.

    Each half hour's forecast is remembered. Its nodes' peaks are followed from history to history,
    and once a horizon has passed, the nodes' scores feed the recalibration. Nodes may be split into
    groups to bound memory by a group's history. All groups feed one recalibration, so that how
    nodes are split changes no forecast. Where time goes back, as the clock was ahead, it begins
    anew: what it awaits would hold up what comes for as long as that.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._recalibrator = _untaught(model)
        self._groups: list[Awaited] = []

    @property
    def groups(self) -> int:
        """Into how many groups the nodes are split, 0 before the first forecast."""
        return len(self._groups)

    def progress(self) -> Progress:
        """What another process needs to go on from here."""
        return Progress(self._recalibrator.learned(), [group.saved() for group in self._groups])

    def resume(self, progress: Progress) -> None:
        """Go on from where one of the same model was."""
        self._recalibrator.resume(progress.learned)
        self._groups = [Awaited(self.model.horizons) for _ in progress.groups]
        for group, saved in zip(self._groups, progress.groups, strict=True):
            group.resume(saved)

    def refresh(self, history: History, pods: Sequence[str], nodes: Sequence[str]) -> Forecast:
        """Forecast for now, all nodes in one group; arguments and errors as in `refresh_groups`."""
        (forecast,) = self.refresh_groups([Part(history, pods, nodes)])
        return forecast

    def refresh_groups(self, parts: Iterable[Part]) -> list[Forecast]:
        """Forecast for now.

        Args:
            parts: one for each group, at least one, always in the same order and all of one time.
                They are taken one after the other, and of each only predictions stay.

        Returns:
            For each group the forecast of its nodes.

        Raises:
            ValueError: the names do not match the history.
        """
        # Not a loop: its variable would hold a group's week while the next one is unpacked.
        steps = list(map(self._advance, parts, count()))
        self._learn([resolved for step in steps for resolved in step.resolved])
        time = max(step.time for step in steps)
        knobs, expected = self._recalibrator.knobs(time), self._recalibrator.expected()
        return [_forecast(step, knobs, expected) for step in steps]

    def _advance(self, part: Part, number: int) -> _Step:
        """Predict a group's nodes, and see which of its earlier predictions have resolved."""
        _check(part)
        history = part.history
        if number == 0 and self._groups and self._groups[0].is_ahead_of(history.time):
            self._recalibrator, self._groups = _untaught(self.model), []
        if number == len(self._groups):
            self._groups.append(Awaited(self.model.horizons))
        group = self._groups[number]
        resolved = group.learn(history, part.pods, part.nodes)
        predicted = self.model.forecaster.predict(history, self.model.horizons)
        prediction = _where_known(predicted, history)
        group.remember(history, prediction)
        return _Step(history.time, prediction, history.unknown[:, None], resolved)

    def _learn(self, resolved: list[Resolved]) -> None:
        """Feed the recalibration with each decision's nodes of all groups together."""
        by_decision = sorted(resolved, key=_decision)
        for (made, horizon), groups in groupby(by_decision, _decision):
            scores = np.concatenate([each.scores for each in groups])
            self._recalibrator.observe(made, horizon, scores)


def _untaught(model: Model) -> Recalibrator:
    """One that knows what the model's calibration says."""
    return Recalibrator(model.calibration, model.policy.target)


def _decision(resolved: Resolved) -> tuple[int, int]:
    return resolved.made, resolved.horizon


def _check(part: Part) -> None:
    pods, nodes = len(part.history.request), part.history.nodes
    if len(part.pods) != pods or len(part.nodes) != nodes:
        raise ValueError(
            f"{len(part.pods)} pods and {len(part.nodes)} nodes are named, the history has "
            f"{pods} and {nodes}"
        )


def _forecast(step: _Step, knobs: Floats, expected_knobs: Floats) -> Forecast:
    prediction, unknown = step.prediction, step.unknown
    forecast = np.maximum.accumulate(prediction.at(knobs) + unknown, axis=1)
    expected = np.maximum.accumulate(prediction.at(expected_knobs) + unknown, axis=1)
    return Forecast(forecast, np.minimum(expected, forecast))


def _where_known(prediction: Prediction, history: History) -> Prediction:
    """Nodes without a seasoned pod have nothing to predict: only their pods' requests count."""
    populated: Bools = history.sum_pods(np.ones(len(history.request))) > 0
    return Prediction(
        np.where(populated[:, None], prediction.location, 0.0),
        np.where(populated[:, None], prediction.scale, 1.0),
        np.where(populated, prediction.cap, 0.0),
    )
