"""What the live shadow writes and reads: python -m bench.shadow_state.

A challenger has forecast 5,000 nodes with 50,000 online pods each half hour for 30 hours, while one
pod in a hundred was replaced each half hour. Prints size, time to write and time to read of what it
has learned and awaits (written after each refresh), of one refresh's forecasts, and of the state
with as many bound pods as wait at most for their outcome.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.arrays import Packed
from models.classical import CLASSICAL
from models.history import build_history
from models.policy import HORIZONS, Policy
from models.rolling import RollingForecast
from models.shipped import shipped
from shadow.follow import MAX_BOUND
from shadow.live_state import Choice, Forecasts, LiveState, Pending, Versions
from shadow.state_file import StateFile
from shadow.trial import TrialProgress

NODES, PODS, HALF_HOURS, CANDIDATES = 5_000, 50_000, 60, 32
WINDOWS = 288  # of the past: a day, enough for the predictor
TRIAL = Versions("3", "4")

rng = np.random.default_rng(0)


class Fleet:
    """Pods of the cluster, which use CPU and are replaced."""

    def __init__(self) -> None:
        self.names = [self._name() for _ in range(PODS)]
        self.node = rng.integers(NODES, size=PODS)
        self.usage = rng.gamma(2, 0.3, (PODS, WINDOWS)).astype(np.float32)

    def half_an_hour(self) -> None:
        """New windows, and new pods in the place of some."""
        self.usage = np.roll(self.usage, -6, axis=1)
        self.usage[:, -6:] = rng.gamma(2, 0.3, (PODS, 6))
        gone = rng.random(PODS) < 0.01
        order = np.concatenate([np.flatnonzero(~gone), np.flatnonzero(gone)])
        self.names = [self._name() if gone[at] else self.names[at] for at in order]
        self.node, self.usage = self.node[order], self.usage[order]

    def _name(self) -> str:
        service, template, own = rng.integers(1000), rng.integers(2**32), rng.integers(2**20)
        return f"team-{service % 50}/service-{service}-{template:08x}-{own:05x}"


def learned(fleet: Fleet) -> RollingForecast:
    """A challenger that has learned for as long as it remembers."""
    rolling = RollingForecast(shipped(CLASSICAL["n-sigma-24h"]))
    nodes, index = [f"node-{at}" for at in range(NODES)], np.arange(PODS)
    request, limit = np.ones(PODS), np.full(NODES, 32.0)
    for number in range(HALF_HOURS):
        fleet.half_an_hour()
        time_of = 1_700_000_100 // 300 * 300 + number * 1800
        past = build_history(time_of, fleet.usage, request, index, fleet.node, limit)
        rolling.refresh(past, fleet.names, nodes)
    return rolling


def progress(rolling: RollingForecast) -> TrialProgress:
    """What is written after a refresh."""
    forecast = Packed.of(rng.gamma(20, 0.5, (NODES, len(HORIZONS))))
    workloads = tuple(f"team-{at % 50}/Deployment/service-{at}" for at in range(1000))
    need = Packed.of(rng.gamma(2, 0.3, len(workloads)))
    return TrialProgress(1.0, forecast, forecast, workloads, need, rolling.progress())


def one_refresh(fleet: Fleet) -> Forecasts:
    """Both sides' forecasts."""
    forecast = Packed.of(rng.gamma(20, 0.5, (NODES, len(HORIZONS))))
    nodes = tuple(f"node-{at}" for at in range(NODES))
    pods, row = tuple(fleet.names), Packed.smallest(fleet.node)
    allocatable = Packed.of(np.full(NODES, 32.0))
    return Forecasts(nodes, allocatable, forecast, forecast, Policy(), pods, row)


def full_state() -> LiveState:
    """With as many bound pods as it holds."""
    bound = []
    for _ in range(MAX_BOUND):
        names = tuple(f"node-{at}" for at in rng.integers(NODES, size=CANDIDATES))
        room = tuple(rng.uniform(0, 32, CANDIDATES).tolist())
        bound.append(Choice(1.7e9, TRIAL, 1.7e9, 24, names, room, names[0], names[1]))
    return LiveState(bound=bound, pending=[Pending(1.0, TRIAL, (24,))], learned=("4", 1.0))


def measure(name: str, path: Path, write: Callable[[], None], read: Callable[[], object]) -> None:
    """Print a file's size and times."""
    took = []
    for each in (write, read):
        began = time.perf_counter()
        each()
        took.append(time.perf_counter() - began)
    size = path.stat().st_size / 1e6
    print(f"{name:<12} {size:6.1f} MB, written in {took[0]:.2f} s, read in {took[1]:.2f} s")


def main() -> None:
    """Print the table."""
    fleet = Fleet()
    rolling = learned(fleet)
    forecasts, state = one_refresh(fleet), full_state()
    with tempfile.TemporaryDirectory() as folder:
        file = StateFile(Path(folder) / "state")

        def at(suffix: str) -> Path:
            return next(Path(folder).rglob(f"*{suffix}"))

        file.keep_progress(progress(rolling))
        file.keep(1.0, forecasts)
        file.save(LiveState(pending=state.pending, learned=state.learned))
        measure(
            "progress",
            at(".progress"),
            lambda: file.keep_progress(progress(rolling)),
            lambda: file.progress(1.0),
        )
        measure(
            "forecasts",
            at(".forecasts"),
            lambda: file.keep(1.0, forecasts),
            lambda: file.forecasts(1.0),
        )
        measure("state", Path(folder) / "state", lambda: file.save(state), file.load)


if __name__ == "__main__":
    main()
