"""What online pods really use, and how much of it is known at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.arrays import Bools, Floats, Floats32, Ints
from models.grid import DAY, WEEK, WINDOW, UsageGrid
from models.history import History, build_history
from models.policy import HORIZONS

_WINDOWS = np.array(HORIZONS) * (3600 // WINDOW)
_LONG_RUNNING = 3 * WINDOW
"""Seconds after which a running pod must have been observed, as in the server."""


class OnlineUsage:
    """Real usage of nodes as pods are placed on them; forecasters see only `history`.

    A window that was not observed counts with the pod's last observed one, before the first with
    that, and a pod that was never observed with its request.

    Fields:
        first: index in the grid of the first window that is replayed.
        node: [N, T] cores in each window from there on, of the pods placed so far.
    """

    def __init__(self, grid: UsageGrid, nodes: int, start: int, stop: int) -> None:
        self._grid = grid
        self.first = grid.column(start)
        count = min(grid.column(stop + WINDOW - 1) + int(_WINDOWS[-1]), grid.windows) - self.first
        self.node: Floats32 = np.zeros((nodes, count), np.float32)
        self._pods: Ints = np.zeros(nodes, np.int64)
        self._seen: Ints = np.full(len(grid.pods), -DAY, np.int64)
        self._looked = max(self.first - DAY, 0)

    def place(self, row: int, pod: int, time: int) -> None:
        """Let a pod (a row of the grid) use a node from a time until its end."""
        column = max(self._grid.column(time) - self.first, 0)
        self.node[row, column:] += self._real(pod)[column:]
        self._pods[row] += 1

    def remove(self, row: int) -> None:
        """Note that one pod of a node has ended; it uses nothing from then on."""
        self._pods[row] -= 1

    def leave(self, row: int, time: int) -> None:
        """A node goes away: what was on it uses nothing from then on."""
        self.node[row, max(self._grid.column(time) - self.first, 0) :] = 0

    def at(self, time: int) -> Floats:
        """The nodes' usage in the last complete window, [N] cores; NaN before the first."""
        column = self._grid.column(time) - 1 - self.first
        if column < 0:
            return np.full(len(self.node), np.nan)
        return self.node[:, column].astype(np.float64)

    def peaks(self, time: int) -> Floats32:
        """The highest window of the pods that are on a node now, [N, H] cores.

        NaN where a horizon reaches beyond the trace, and for a node without pods.
        """
        column = self._grid.column(time) - self.first
        ahead = self.node[:, column : column + int(_WINDOWS[-1])]
        peaks = np.full((len(self.node), len(_WINDOWS)), np.nan, np.float32)
        covered = ahead.shape[1] >= _WINDOWS
        begins = np.concatenate([[0], _WINDOWS[covered][:-1]])
        if covered.any():
            parts = np.maximum.reduceat(ahead[:, : _WINDOWS[covered][-1]], begins, axis=1)
            peaks[:, covered] = np.maximum.accumulate(parts, axis=1)
        peaks[self._pods == 0] = np.nan
        return peaks

    def history(self, time: int, pods: Ints, node: Ints, limit: Floats) -> History:
        """What a forecaster may know at a time of pods (rows of the grid) and their nodes."""
        stop = min(max(self._grid.column(time), 0), self._grid.windows)
        usage = np.full((len(pods), WEEK), np.nan, np.float32)
        have = min(stop, WEEK)
        usage[:, WEEK - have :] = self._grid.cpu[pods, stop - have : stop]
        return build_history(
            time, usage, self._grid.request[pods], np.arange(len(pods)), node, limit
        )

    def age(self, time: int, pods: Ints, node: Ints) -> Floats:
        """Seconds since the newest usage window of each node ended, [N], as the server has it.

        A node is as fresh as its most recently observed pod. Where no pod has run for long enough
        to be observed, it is as fresh as the whole trace. Calls come in the order of time.
        """
        stop = min(max(self._grid.column(time), 0), self._grid.windows)
        for column in range(self._looked, stop):
            self._seen[~np.isnan(self._grid.cpu[:, column])] = column + 1
        self._looked = max(stop, self._looked)
        newest = np.full(len(self.node), -DAY)
        np.maximum.at(newest, node, self._seen[pods])
        awaited = self._grid.born[pods] < time - _LONG_RUNNING
        waiting = np.bincount(node[awaited], minlength=len(newest)) > 0
        newest = np.where(waiting, newest, np.maximum(newest, self._seen.max(initial=-DAY)))
        return (stop - newest) * float(WINDOW)

    def names(self, pods: Ints) -> Sequence[str]:
        """Names of rows of the grid."""
        return [self._grid.pods[pod] for pod in pods.tolist()]

    def workloads(self, pods: Ints) -> Sequence[str]:
        """Workloads of rows of the grid."""
        return [self._grid.workloads[pod] for pod in pods.tolist()]

    def _real(self, pod: int) -> Floats32:
        """Cores that a pod uses in each window from `first` on."""
        grid = self._grid
        series = grid.cpu[pod, : self.first + self.node.shape[1]]
        seen = np.flatnonzero(~np.isnan(series))
        if len(seen) == 0:
            real = np.full(self.node.shape[1], grid.request[pod], np.float32)
        else:
            windows = np.arange(self.first, len(series))
            last = np.maximum(seen.searchsorted(windows, side="right") - 1, 0)
            real = series[seen[last]]
        begins = grid.start + (self.first + np.arange(len(real))) * WINDOW
        alive: Bools = (begins + WINDOW > grid.born[pod]) & (begins < grid.gone[pod])
        return np.where(alive, real, np.float32(0))
