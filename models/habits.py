"""At what hours CPU is used: profiles of nodes and of workloads by hour of day.

A profile is 24 figures, one for each hour of the day (UTC). Its statistic is the median over the
last seven days of the hour's highest 5-minute window. The highest window, since peaks are what must
fit together; the median over days, since a burst comes once at some hour and says nothing about
that hour tomorrow (the maximum over a week would remember it for a week), and since five of seven
days are working days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Floats, Floats32, Ints
from models.grid import WINDOW
from models.history import History

HOURS_A_DAY = 24
_PER_HOUR = 3600 // WINDOW
_DAYS = 7


@dataclass(frozen=True, slots=True)
class Habits:
    """What is known of W workloads.

    Fields:
        index: name -> row.
        need: [W] cores: the highest window of any sibling in the last week, what a new pod counts
            with. Not the mean, which half of the siblings exceed: CPU that a new pod takes must not
            have been promised. NaN where some hour of the day was seen of no sibling.
        profile: [W, 24] cores by hour: the mean of the siblings' profiles, stretched so that its
            highest hour is ``need``.
    """

    index: Mapping[str, int]
    need: Floats
    profile: Floats32

    def of(self, workload: str) -> Floats32 | None:
        """The profile of a new pod, [24] cores; None where its workload is not known."""
        row = self.index.get(workload)
        return None if row is None or np.isnan(self.need[row]) else self.profile[row]

    def needs(self, workloads: Sequence[str]) -> Floats:
        """``need`` of pods by their workloads, [P] cores, NaN where it is not known."""
        rows = np.fromiter((self.index.get(name, -1) for name in workloads), np.int64)
        return np.append(self.need, np.nan)[rows]


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When N nodes and W workloads use CPU, as of a refresh.

    usage: [N] cores that the nodes' online pods used in the newest window, NaN where not known.
    shape: [N, 24] usage by hour of day as a share of the highest hour's, 1 where not known.
    """

    usage: Floats
    shape: Floats
    habits: Habits


NO_HABITS = Habits({}, np.zeros(0), np.zeros((0, HOURS_A_DAY), np.float32))


def no_rhythm(nodes: int) -> Rhythm:
    """What is known where there is no usage: nodes are flat, workloads unknown."""
    return Rhythm(np.full(nodes, np.nan), np.ones((nodes, HOURS_A_DAY)), NO_HABITS)


class HabitsBuilder:
    """Collects the siblings of each workload, some pods at a time."""

    def __init__(self, workloads: Sequence[str]) -> None:
        """Plan for the workloads of all pods; names may repeat."""
        self._index = {name: row for row, name in enumerate(dict.fromkeys(workloads))}
        shape = (len(self._index), HOURS_A_DAY)
        self._sum, self._count = np.zeros(shape), np.zeros(shape)
        self._highest = np.full(len(self._index), -np.inf)

    def add(self, workloads: Sequence[str], usage: Floats32, time: int) -> None:
        """Take in pods with their usage [P, W]; see `hourly_peaks`."""
        if len(workloads) == 0:
            return
        rows = np.array([self._index[name] for name in workloads], np.int64)
        peaks = hourly_peaks(usage, time)
        known = np.isfinite(peaks)
        np.add.at(self._sum, rows, np.where(known, peaks, 0))
        np.add.at(self._count, rows, known)
        highest = np.fmax.reduce(usage, axis=1, initial=-np.inf)
        np.maximum.at(self._highest, rows, highest)

    def build(self) -> Habits:
        """What the pods so far tell."""
        complete = (self._count > 0).all(axis=1)
        need = np.where(complete, self._highest, np.nan)
        mean = self._sum / np.maximum(self._count, 1)
        profile = need[:, None] * shapes(mean)
        return Habits(self._index, need, profile.astype(np.float32))


def node_shapes(history: History) -> Floats:
    """When nodes use CPU, [N, 24], as shares of their highest hour; unseasoned pods are flat."""
    peaks = hourly_peaks(history.aggregate, history.time)
    return shapes(peaks + history.unknown[:, None])


def hourly_peaks(usage: Floats32, time: int) -> Floats32:
    """The profile of each row of usage, [P, 24], hour 0 (UTC) first; NaN where never observed.

    Args:
        usage: [P, W] cores, oldest window first, NaN where not observed.
        time: seconds since the epoch; the last column is the window that ended then.
    """
    peaks = np.full((len(usage), _DAYS * HOURS_A_DAY), np.nan, np.float32)
    last = time // WINDOW  # number of the window after the last column
    begun = last - usage.shape[1]
    starts = np.arange(-(-begun // _PER_HOUR) * _PER_HOUR, last, _PER_HOUR) - begun
    if usage.shape[1] and (len(starts) == 0 or starts[0] > 0):
        starts = np.concatenate([[0], starts])
    if len(usage) and len(starts):
        hours = np.fmax.reduceat(usage, starts, axis=1)[:, -_DAYS * HOURS_A_DAY :]
        peaks[:, _DAYS * HOURS_A_DAY - hours.shape[1] :] = hours
    newest = (last - 1) // _PER_HOUR  # number of the hour in the last place
    by_day = np.roll(peaks, newest + 1, axis=1).reshape(len(usage), _DAYS, HOURS_A_DAY)
    return _median(by_day)


def shapes(peaks: Floats | Floats32) -> Floats:
    """Profiles [P, 24] as shares of their highest hour, in [0, 1].

    An hour that was never observed counts as the highest. A row without any observation, or
    without any usage, is flat: 1 throughout.
    """
    known = np.isfinite(peaks)
    highest = np.where(known, peaks, 0).max(axis=1, keepdims=True, initial=0)
    shape = np.where(known, np.maximum(peaks, 0), highest) / np.where(highest > 0, highest, 1)
    return np.asarray(np.where(highest > 0, shape, 1.0), dtype=np.float64)


def _median(by_day: Floats32) -> Floats32:
    """The median over days (axis 1), NaN left out; of an even count the higher of both middles."""
    ordered = np.sort(by_day, axis=1)  # NaN last
    count: Ints = np.isfinite(by_day).sum(axis=1, dtype=np.int64)
    middle = np.minimum(count // 2, _DAYS - 1)[:, None, :]
    found: Floats32 = np.take_along_axis(ordered, middle, axis=1)[:, 0, :]
    found[count == 0] = np.nan
    return found
