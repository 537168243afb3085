"""What is written down while a replay goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from models.arrays import Floats, Floats32, Ints
from shadow.result import Ending, Forecasts, Runs, State
from shadow.scenario import Scenario


class Recorder:
    """What is written down while the replay goes on; lists are cheap to append to."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.pod: list[int] = []
        self.node: list[int] = []
        self.begin: list[int] = []
        self._end: list[int] = []
        self._free: list[int] = []
        self._ending: list[int] = []
        self.state: Ints = np.full(len(scenario.pods), State.WAITING, np.int64)
        self.attempts: Ints = np.zeros(len(scenario.pods), np.int64)
        self._began: Ints = np.full(len(scenario.pods), scenario.stop, np.int64)
        self.latency: list[float] = []
        self.reasons: dict[str, set[int]] = {}
        self._times: list[int] = []
        self._forecast: list[Floats32] = []
        self._truth: list[Floats32] = []

    def decided(self, pod: int, seconds: float) -> None:
        """One decision was taken about a pod."""
        self.attempts[pod] += 1
        self.latency.append(seconds)

    def refused(self, pod: int, reason: str) -> None:
        """A pod has to wait."""
        self.reasons.setdefault(reason, set()).add(pod)

    def started(self, pod: int, row: int, time: int, free: int) -> int:
        """The number of the run."""
        self.pod.append(pod)
        self.node.append(row)
        self.begin.append(time)
        self._end.append(self._scenario.stop)
        self._free.append(free)
        self._ending.append(Ending.NATURAL)
        self._began[pod] = min(self._began[pod], time)
        return len(self.pod) - 1

    def ended(self, run: int, time: int, ending: Ending) -> None:
        """A run is over."""
        self._end[run] = time
        self._ending[run] = ending

    def forecast(self, time: int, forecast: Floats, truth: Floats32) -> None:
        """Forecasts were refreshed; all [N, H] cores."""
        self._times.append(time)
        self._forecast.append(forecast.astype(np.float32))
        self._truth.append(truth)

    def waits(self) -> Ints:
        """Seconds from arrival until a pod first ran, was deleted, or the replay stopped, [P]."""
        pods = self._scenario.pods
        until = np.where(pods.offline, self._began, np.minimum(self._began, pods.gone))
        return until - pods.arrival

    def states(self, running: Iterable[int], hopeless: Callable[[int], bool]) -> Ints:
        """What has become of each pod, [P] of `State`."""
        pods, state = self._scenario.pods, self.state.copy()
        state[list(running)] = State.RUNNING
        missed = (state == State.WAITING) & ~pods.offline & (pods.gone < self._scenario.stop)
        state[missed] = State.MISSED
        for pod in np.flatnonzero(state == State.WAITING).tolist():
            if hopeless(pod):
                state[pod] = State.REFUSED
        return state

    def runs(self) -> Runs:
        """All runs so far."""
        lists = (self.pod, self.node, self.begin, self._end, self._free, self._ending)
        return Runs(*(np.array(values, np.int64) for values in lists))

    def forecasts(self) -> Forecasts | None:
        """All forecasts, None where there were none."""
        if not self._times:
            return None
        return Forecasts(
            np.array(self._times, np.int64), np.stack(self._forecast), np.stack(self._truth)
        )
