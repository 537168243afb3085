"""Decisions that lie in the past: what every forecaster said, and what came true."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.arrays import Floats, Ints
from models.forecaster import Forecaster, Prediction
from models.grid import DAY, UsageGrid
from models.history import History, build_history
from trainer.machines import Machines, machine_history, peak_truth


@dataclass(frozen=True, slots=True)
class Past:
    """T decisions of N machines for H horizons, as R = T x N rows, machine by machine in each T.

    Fields, with shapes and units:
        time: [T] seconds since the epoch. machines: N.
        truth: [R, H] cores, NaN where not known. truth_max: the same of each window's highest
            minute, None where the trace has none.
        limit, unknown: [R] cores, as in `models.history.History`.
        predictions: by predictor; R rows each.
    """

    time: Ints
    machines: int
    truth: Floats
    truth_max: Floats | None
    limit: Floats
    unknown: Floats
    predictions: Mapping[str, Prediction]

    def by_machine(self, values: Floats) -> Floats:
        """Figures of the rows ([R]) as [T, N]."""
        return values.reshape(len(self.time), self.machines)


def look_back(
    grid: UsageGrid,
    machines: Machines,
    times: Ints,
    forecasters: Mapping[str, Forecaster],
    horizons: Sequence[int],
    *,
    cold: np.random.Generator | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Past:
    """Ask every forecaster at every time, each knowing only what was known by then.

    Args:
        grid, machines: whose usage.
        times: [T] of the decisions, T > 0.
        forecasters: by name.
        horizons: hours.
        cold: pretend that every pod is younger than 24 h, see `cold_history`.
        tick: called after each decision.
    """
    said: dict[str, list[Prediction]] = {name: [] for name in forecasters}
    limit, unknown = [], []
    truth, highest = [], []
    for time in times.tolist():
        history = machine_history(grid, machines, time)
        if cold is not None:
            history = cold_history(history, cold)
        for name, forecaster in forecasters.items():
            said[name].append(forecaster.predict(history, horizons))
        truth.append(peak_truth(grid, machines, time, horizons))
        if grid.cpu_max is not None:
            highest.append(peak_truth(grid, machines, time, horizons, "cpu_max"))
        limit.append(history.limit)
        unknown.append(history.unknown)
        tick()
    return Past(
        times,
        len(machines),
        np.concatenate(truth),
        np.concatenate(highest) if highest else None,
        np.concatenate(limit),
        np.concatenate(unknown),
        {name: _joined(predictions) for name, predictions in said.items()},
    )


def cold_history(history: History, rng: np.random.Generator) -> History:
    """What would be known had every pod started less than 24 h ago, at a random moment each."""
    age = rng.integers(0, DAY, len(history.request))
    newest = np.arange(history.usage.shape[1])[::-1]
    usage = np.where(newest < age[:, None], history.usage, np.float32(np.nan))
    return build_history(
        history.time, usage, history.request, history.pod, history.node, history.limit
    )


def _joined(predictions: Sequence[Prediction]) -> Prediction:
    return Prediction(
        np.concatenate([p.location for p in predictions]),
        np.concatenate([p.scale for p in predictions]),
        np.concatenate([p.cap for p in predictions]),
    )
