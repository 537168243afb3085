"""Forecasts that keep calibrating themselves on what became of the earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from models.arrays import Bools, Floats, Ints, Packed
from models.calibration import Learned, Recalibrator, score
from models.forecaster import Prediction
from models.grid import WINDOW
from models.history import History
from models.model import Model
from models.truth import MIN_OBSERVED, STEP, highest_known, sum_known

LATE = 2
"""Windows for which usage is awaited before it counts as unobserved: collectors deliver late."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What to expect on N nodes within each of the model's H horizons, in cores.

    forecast: [N, H] the peak exceeded with at most the policy's target probability, non-decreasing
    over horizons, requests of unknown pods included; NaN where the node's usage is all gaps.
    expected: [N, H] the peak that is as likely exceeded as not, at most the forecast.
    """

    forecast: Floats
    expected: Floats


@dataclass(slots=True)
class _Members:
    """Which pods were on which node at some decisions; ``pod`` follows the latest rows.

    A pod that has left the histories has ended: its edge is dropped, it uses nothing.
    """

    pod: Ints
    node: Ints
    nodes: int


@dataclass(slots=True)
class _Pending:
    """A decision whose horizons have not all passed.

    peak: [N, H] cores, the highest known window so far; known: [N, H] windows observed so far.
    """

    made: int
    prediction: Prediction
    unknown: Floats
    members: _Members
    peak: Floats
    known: Ints

    def arrays(self) -> tuple[Floats | Ints, ...]:
        """The decision's own arrays, in the order of `Progress`."""
        prediction = self.prediction
        own = (self.unknown, self.peak, self.known)
        return (prediction.location, prediction.scale, prediction.cap, *own)


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """What a `RollingForecast` has learned and awaits, for one of the same model to go on from.

    pods, seen: of the last history. members: pod, node and number of nodes of each `_Members`.
    pending: for each decision when it was made, its members' index, and its arrays: location,
    scale, cap, unknown, peak and known.
    """

    learned: Learned
    pods: tuple[str, ...]
    seen: int
    members: list[tuple[Packed, Packed, int]]
    pending: list[tuple[int, int, list[Packed]]]


class RollingForecast:
    """A model at work: forecasts, remembers, and learns from the forecasts that have resolved.

    Each half hour's forecast is remembered. Its nodes' peaks are followed from history to history,
    and once a horizon has passed, the nodes' scores feed the recalibration. State is bounded by the
    half hours of the longest horizon.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._recalibrator = Recalibrator(model.calibration, model.policy.target)
        self._pending: list[_Pending] = []
        self._pods: tuple[str, ...] = ()
        self._seen = 0  # end of the last window that was looked at

    def progress(self) -> Progress:
        """What another process needs to go on from here."""
        members = _distinct(self._pending)
        index = {id(each): at for at, each in enumerate(members)}
        return Progress(
            self._recalibrator.learned(),
            self._pods,
            self._seen,
            [(Packed.of(each.pod), Packed.of(each.node), each.nodes) for each in members],
            [
                (p.made, index[id(p.members)], list(map(Packed.of, p.arrays())))
                for p in self._pending
            ],
        )

    def resume(self, progress: Progress) -> None:
        """Go on from where one of the same model was."""
        self._recalibrator.resume(progress.learned)
        self._pods, self._seen = progress.pods, progress.seen
        members = [_Members(pod.array(), node.array(), n) for pod, node, n in progress.members]
        for made, at, packed in progress.pending:
            location, scale, cap, *rest = (each.array() for each in packed)
            unknown, peak, known = rest
            prediction = Prediction(location, scale, cap)
            self._pending.append(_Pending(made, prediction, unknown, members[at], peak, known))

    def refresh(self, history: History, pods: Sequence[str], nodes: Sequence[str]) -> Forecast:
        """Forecast for now.

        Args:
            history: what is known; rows may differ from call to call.
            pods: stable names of the history's pods; a pod that is missing in a later call has
                ended, and uses nothing from then on.
            nodes: stable names of the history's nodes.

        Raises:
            ValueError: the names do not match the history.
        """
        if len(pods) != len(history.request) or len(nodes) != history.nodes:
            raise ValueError(
                f"{len(pods)} pods and {len(nodes)} nodes are named, the history has "
                f"{len(history.request)} and {history.nodes}"
            )
        self._follow(tuple(pods))
        self._learn(history)
        prediction = _where_known(
            self.model.forecaster.predict(history, self.model.horizons), history
        )
        knobs = self._recalibrator.knobs(history.time)
        self._remember(history, prediction)
        unknown = history.unknown[:, None]
        forecast = np.maximum.accumulate(prediction.at(knobs) + unknown, axis=1)
        expected = prediction.at(self._recalibrator.expected()) + unknown
        return Forecast(forecast, np.minimum(np.maximum.accumulate(expected, axis=1), forecast))

    def _follow(self, pods: tuple[str, ...]) -> None:
        """Let all remembered members point to the rows of the newest pods."""
        if pods == self._pods:
            return
        row_of = {name: row for row, name in enumerate(pods)}
        moved = np.array([row_of.get(name, -1) for name in self._pods], np.int64)
        for members in _distinct(self._pending):
            rows = moved[members.pod]
            members.pod, members.node = rows[rows >= 0], members.node[rows >= 0]
        self._pods = pods

    def _learn(self, history: History) -> None:
        """Extend the pending decisions' peaks by the new windows, and learn from what resolved."""
        settled = history.time - history.time % WINDOW - LATE * WINDOW
        since, self._seen = self._seen, max(settled, self._seen)
        width = history.usage.shape[1]
        count = (settled - since) // WINDOW
        if not self._pending or count <= 0:
            return
        first = max(width - LATE - count, 0)  # what a short history lacks stays unknown
        usage = history.usage[:, first : width - LATE]
        starts = settled - WINDOW * np.arange(usage.shape[1], 0, -1)
        totals = {
            id(members): sum_known(usage, members.pod, members.node, members.nodes)
            for members in _distinct(self._pending)
        }
        for pending in self._pending:
            self._extend(pending, totals[id(pending.members)], starts, since, settled)
        longest = max(self.model.horizons) * 3600
        self._pending = [p for p in self._pending if p.made + longest > settled]

    def _extend(
        self, pending: _Pending, total: Floats, starts: Ints, since: int, settled: int
    ) -> None:
        for j, hours in enumerate(self.model.horizons):
            end = pending.made + hours * 3600
            if end <= since:
                continue
            within = (starts >= pending.made) & (starts < end)
            peak, known = highest_known(total[:, within])
            pending.peak[:, j] = np.maximum(pending.peak[:, j], peak)
            pending.known[:, j] += known
            if end <= settled:
                enough = pending.known[:, j] >= MIN_OBSERVED * hours * 3600 // WINDOW
                truth = np.where(enough[:, None], pending.peak, np.nan)
                scores = score(pending.prediction, truth, pending.unknown)
                self._recalibrator.observe(pending.made, j, scores[:, j])

    def _remember(self, history: History, prediction: Prediction) -> None:
        """Keep the first forecast of each half hour until its horizons have passed."""
        made = history.time - history.time % WINDOW
        if self._pending and made // STEP <= self._pending[-1].made // STEP:
            return
        shape = prediction.location.shape
        self._pending.append(
            _Pending(
                made,
                prediction,
                history.unknown,
                self._members(history),
                np.full(shape, -np.inf),
                np.zeros(shape, np.int64),
            )
        )

    def _members(self, history: History) -> _Members:
        """The history's edges, shared with the last decision where nothing has changed."""
        if self._pending:
            last = self._pending[-1].members
            same = last.nodes == history.nodes and np.array_equal(last.pod, history.pod)
            if same and np.array_equal(last.node, history.node):
                return last
        return _Members(history.pod, history.node, history.nodes)


def _distinct(pending: Sequence[_Pending]) -> list[_Members]:
    return list({id(p.members): p.members for p in pending}.values())


def _where_known(prediction: Prediction, history: History) -> Prediction:
    """Nodes without a seasoned pod have nothing to predict: only their pods' requests count."""
    populated: Bools = history.sum_pods(np.ones(len(history.request))) > 0
    return Prediction(
        np.where(populated[:, None], prediction.location, 0.0),
        np.where(populated[:, None], prediction.scale, 1.0),
        np.where(populated, prediction.cap, 0.0),
    )
