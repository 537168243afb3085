"""For how long the runs of each workload have lasted, and so how long the next one may take.

Only runs that ended by themselves say anything: a pod that was told to go (deleted, evicted,
preempted) might have run for much longer, and one that failed for much shorter or longer. The watch
on unfinished pods cannot tell them apart. When a pod finishes it reports it as deleted in the state
before that, still running. So runs are learned from a watch of their own, on succeeded pods.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from models.kube.owner import workload_of
from models.kube.request import asks_for
from models.kube.types import FinishedPod, FinishedStatus, Metadata, PodSpec, seconds_of

FEWEST = 5
"""Runs before they count: of four, the next one outlasts the longest in one of five cases."""

KEPT = 20
"""Runs that are remembered of a workload, the newest. The next one outlasts the longest of them in
one of 21 cases (5 %), if it is like them; older runs tell about older code and data."""

MARGIN = 1.5
"""The longest run is taken this many times: data grow, and machines differ."""

WORKLOADS = 5000
"""Workloads that are remembered, those that finished a run most recently: 10 MB at most."""

_YOUNGEST = 1.0
"""Seconds that a run counts with at least: the API server's times are whole seconds."""


class Run(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """A run: when it ended (seconds since the epoch), and for how many seconds it lasted."""

    end: float
    seconds: float


Record = Mapping[str, tuple[Run, ...]]


class Runs:
    """The last runs of each workload. The same run may be reported again, in any order."""

    def __init__(self, record: Record | None = None) -> None:
        """``record``: what an earlier process had learned."""
        self.added = 0  # runs that were new since the start
        self._runs: OrderedDict[str, tuple[Run, ...]] = OrderedDict(record or {})
        self._trim()

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, workload: str, run: Run) -> None:
        """A pod of the workload has finished."""
        known = self._runs.get(workload, ())
        if run not in known:
            self.added += 1
            self._runs[workload] = tuple(sorted((*known, run)))[-KEPT:]
            self._runs.move_to_end(workload)
            self._trim()

    def expected(self, workload: str) -> float | None:
        """Seconds that the workload's next run may take; None while too little is known."""
        runs = self._runs.get(workload, ())
        if len(runs) < FEWEST:
            return None
        return MARGIN * max(_YOUNGEST, *(run.seconds for run in runs))

    def record(self) -> Record:
        """Everything, as it is now; later runs do not change it."""
        return dict(self._runs)

    def _trim(self) -> None:
        while len(self._runs) > WORKLOADS:
            self._runs.popitem(last=False)


def finished_run(pod: FinishedPod, resource: str) -> tuple[str, Run] | None:
    """The workload and the run of an offline pod that ended by itself, or None.

    A pod that is told to go may succeed too: its containers obey the signal and end with code 0.
    """
    metadata, status = pod.metadata or Metadata(), pod.status or FinishedStatus()
    if status.phase != "Succeeded" or metadata.deletion_timestamp is not None:
        return None
    if not asks_for(pod.spec or PodSpec(), resource):
        return None
    ended = [
        seconds_of(container.state.terminated.finished_at)
        for container in status.container_statuses or ()
        if container.state is not None and container.state.terminated is not None
    ]
    end = max(ended, default=math.inf)
    seconds = end - seconds_of(status.start_time)
    if not 0 <= seconds < math.inf:  # NaN where neither time is known
        return None
    return workload_of(metadata), Run(end, seconds)
