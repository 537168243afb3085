"""Forecasts whose horizons have not all passed, and their nodes' peaks so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.arrays import Floats, Floats32, Ints, Ints16, Packed
from models.calibration import score
from models.forecaster import Prediction
from models.grid import WINDOW
from models.history import History
from models.truth import (
    LATE,
    MIN_OBSERVED,
    STEP,
    assume,
    begun,
    highest_known,
    silent,
    sum_known,
    watched,
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """Scores [N] of a decision's nodes for the horizon of index ``horizon``."""

    made: int
    horizon: int
    scores: Floats


@dataclass(slots=True)
class _Members:
    """Which pods were on which node at some decisions; ``pod`` follows the latest rows.

    A pod that has left its node has ended there, also where one of its name is on another, as a
    StatefulSet's may be: its edge is dropped, it uses nothing.
    """

    pod: Ints
    node: Ints
    nodes: int


@dataclass(slots=True)
class _Decision:
    """One half hour's forecast, in single precision: a day of them is held for each node.

    location, scale: [N, H] and cap: [N] of its prediction. unknown: [N] of its history.
    peak: [N, H] cores, the highest known window so far; known: [N, H] windows observed so far.
    """

    made: int
    location: Floats32
    scale: Floats32
    cap: Floats32
    unknown: Floats32
    members: _Members
    peak: Floats32
    known: Ints16

    def scores(self, horizon: int, truth: Floats) -> Floats:
        """Of the nodes [N] for one horizon, given the true peaks [N]; see `score`."""
        location, scale, cap, unknown = (
            each.astype(np.float64)
            for each in (
                self.location[:, [horizon]],
                self.scale[:, [horizon]],
                self.cap,
                self.unknown,
            )
        )
        found: Floats = score(Prediction(location, scale, cap), truth[:, None], unknown)[:, 0]
        return found


class SavedDecision(msgspec.Struct, frozen=True, array_like=True):
    """A decision in a file: of [N, H] arrays the columns of those horizons that have not passed.

    members: index into `Saved.members`.
    """

    made: int
    members: int
    location: Packed
    scale: Packed
    cap: Packed
    unknown: Packed
    peak: Packed
    known: Packed


class Saved(msgspec.Struct, frozen=True, array_like=True):
    """What an `Awaited` knows, for another one to go on from.

    pods, seen: of the last history; nodes, home: names of its nodes, and of each pod's the index.
    members: pods as differences, nodes, and how many these are.
    """

    pods: tuple[str, ...]
    nodes: tuple[str, ...]
    home: Packed
    seen: int
    members: list[tuple[Packed, Packed, int]]
    decisions: list[SavedDecision]


class Awaited:
    """Remembers each half hour's forecast and follows its nodes' peaks from history to history.

    State is bounded by the half hours of the longest horizon.

    Args:
        horizons: hours, of the model whose forecasts these are.
    """

    def __init__(self, horizons: Sequence[int]) -> None:
        self._ends = np.array(horizons, np.int64) * 3600  # seconds after which each has passed
        self._decisions: list[_Decision] = []
        self._pods = _names(())
        self._home = _names(())  # each pod's node
        self._seen = 0  # end of the last window that was looked at

    def is_ahead_of(self, time: int) -> bool:
        """Whether windows were looked at that cannot be known at a time: the clock was ahead."""
        return _settled(time) < self._seen

    def learn(self, history: History, pods: Sequence[str], nodes: Sequence[str]) -> list[Resolved]:
        """Extend the peaks by a history's new windows; what has resolved by them.

        Args:
            history: each of its pods is on one node.
            pods, nodes: their names.
        """
        home = np.empty(len(pods), np.object_)
        home[history.pod] = _names(nodes)[history.node]
        self._follow(_names(pods), home)
        settled = _settled(history.time)
        since, self._seen = self._seen, max(settled, self._seen)
        width = history.usage.shape[1]
        count = (settled - since) // WINDOW
        if not self._decisions or count <= 0:
            return []
        first = max(width - LATE - count, 0)  # what a short history lacks stays unknown
        usage = _counted(history, first, width - LATE)
        starts = settled - WINDOW * np.arange(usage.shape[1], 0, -1)
        totals = {
            id(members): sum_known(usage, members.pod, members.node, members.nodes)
            for members in self._members()
        }
        resolved = [
            found
            for decision in self._decisions
            for found in self._extend(
                decision, totals[id(decision.members)], starts, since, settled
            )
        ]
        self._decisions = [d for d in self._decisions if d.made + self._ends.max() > settled]
        return resolved

    def remember(self, history: History, prediction: Prediction) -> None:
        """Keep the first prediction of each half hour until its horizons have passed."""
        made = history.time - history.time % WINDOW
        if self._decisions and made // STEP <= self._decisions[-1].made // STEP:
            return
        shape = prediction.location.shape
        self._decisions.append(
            _Decision(
                made,
                prediction.location.astype(np.float32),
                prediction.scale.astype(np.float32),
                prediction.cap.astype(np.float32),
                history.unknown.astype(np.float32),
                self._members_of(history),
                np.full(shape, -np.inf, np.float32),
                np.zeros(shape, np.int16),
            )
        )

    def saved(self) -> Saved:
        """What another one needs to go on from here."""
        members = self._members()
        index = {id(each): at for at, each in enumerate(members)}
        nodes = {name: at for at, name in enumerate(dict.fromkeys(self._home.tolist()))}
        return Saved(
            tuple(self._pods.tolist()),
            tuple(nodes),
            Packed.smallest(np.array([nodes[name] for name in self._home], np.int64)),
            self._seen,
            [
                (Packed.smallest(np.diff(m.pod, prepend=0)), Packed.smallest(m.node), m.nodes)
                for m in members
            ],
            [
                SavedDecision(
                    d.made,
                    index[id(d.members)],
                    *(Packed.of(each[:, self._open(d.made)]) for each in (d.location, d.scale)),
                    *(Packed.of(each) for each in (d.cap, d.unknown)),
                    *(Packed.of(each[:, self._open(d.made)]) for each in (d.peak, d.known)),
                )
                for d in self._decisions
            ],
        )

    def resume(self, saved: Saved) -> None:
        """Go on from where another one was."""
        self._pods, self._seen = _names(saved.pods), saved.seen
        self._home = _names(saved.nodes)[saved.home.array()]
        members = [
            _Members(np.cumsum(pod.array(), dtype=np.int64), node.array().astype(np.int64), nodes)
            for pod, node, nodes in saved.members
        ]
        self._decisions = [
            _Decision(
                d.made,
                self._whole(d.made, d.location),
                self._whole(d.made, d.scale),
                d.cap.array(),
                d.unknown.array(),
                members[d.members],
                self._whole(d.made, d.peak),
                self._whole(d.made, d.known),
            )
            for d in saved.decisions
        ]

    def _open(self, made: int) -> Ints:
        """Indices of the horizons of a decision that have not passed."""
        return np.flatnonzero(made + self._ends > self._seen)

    def _whole(self, made: int, packed: Packed) -> NDArray[Any]:
        """[N, H] from a file's columns; what has passed is never looked at again."""
        columns = packed.array()
        whole: NDArray[Any] = np.zeros((len(columns), len(self._ends)), columns.dtype)
        whole[:, self._open(made)] = columns
        return whole

    def _follow(self, pods: NDArray[np.object_], home: NDArray[np.object_]) -> None:
        """Let all remembered members point to the rows of the newest pods."""
        if np.array_equal(pods, self._pods) and np.array_equal(home, self._home):
            return
        row_of = {place: row for row, place in enumerate(zip(pods, home, strict=True))}
        before = zip(self._pods, self._home, strict=True)
        moved = np.array([row_of.get(place, -1) for place in before], np.int64)
        for members in self._members():
            rows = moved[members.pod]
            members.pod, members.node = rows[rows >= 0], members.node[rows >= 0]
        self._pods, self._home = pods, home

    def _extend(
        self, decision: _Decision, total: Floats, starts: Ints, since: int, settled: int
    ) -> list[Resolved]:
        resolved = []
        for j in np.flatnonzero(decision.made + self._ends > since):
            end = decision.made + self._ends[j]
            within = (starts >= decision.made) & (starts < end)
            peak, known = highest_known(total[:, within])
            decision.peak[:, j] = np.maximum(decision.peak[:, j], peak)
            decision.known[:, j] += known.astype(np.int16)
            if end <= settled:
                enough = decision.known[:, j] >= MIN_OBSERVED * self._ends[j] / WINDOW
                truth = np.where(enough, decision.peak[:, j], np.nan)
                resolved.append(Resolved(decision.made, int(j), decision.scores(int(j), truth)))
        return resolved

    def _members(self) -> list[_Members]:
        return list({id(d.members): d.members for d in self._decisions}.values())

    def _members_of(self, history: History) -> _Members:
        """The history's edges, shared with the last decision where nothing has changed."""
        if self._decisions:
            last = self._decisions[-1].members
            same = last.nodes == history.nodes and np.array_equal(last.pod, history.pod)
            if same and np.array_equal(last.node, history.node):
                return last
        return _Members(history.pod, history.node, history.nodes)


def _counted(history: History, first: int, stop: int) -> Floats32:
    """What pods count with in the windows [first, stop) of a history, NaN where not known."""
    found = begun(history.usage, first, stop)
    observed = watched(history.usage[:, first:stop], history.pod, history.node, history.nodes)
    assume(found, silent(history.usage)[:, first:stop] & observed, history.usage)
    return found


def _settled(time: int) -> int:
    """The end of the last window that is known at a time, whatever arrives late."""
    return time - time % WINDOW - LATE * WINDOW


def _names(names: Sequence[str]) -> NDArray[np.object_]:
    """Names in an array: in a new tuple, the garbage collector would look at each of them once."""
    return np.array(names, dtype=np.object_)
