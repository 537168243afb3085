"""Small traces, and forecasters whose answers are known, for the tests of the shadow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from models.arrays import Floats
from models.forecaster import Prediction
from models.grid import DAY, WINDOW
from models.history import History
from models.model import Model
from models.shipped import shipped
from models.trace import Trace

START = 1_700_006_400
"""Midnight UTC, a multiple of a day."""

ROW = tuple[str, str, float, float | None, int, int, str | None]
"""pod, tier, cores, GiB, start and end in seconds after START, node."""


def times(seconds: Sequence[int]) -> pl.Series:
    return pl.Series([(START + s) * 1_000_000 for s in seconds], dtype=pl.Int64).cast(
        pl.Datetime("us", "UTC")
    )


def pods_table(rows: Sequence[ROW]) -> pl.DataFrame:
    columns = list(zip(*rows, strict=True))
    return pl.DataFrame(
        {
            "pod": list(columns[0]),
            "workload": [f"ns/Deployment/{name}" for name in columns[0]],
            "tier": list(columns[1]),
            "cpu_request": pl.Series(columns[2], dtype=pl.Float64),
            "memory_request": pl.Series(columns[3], dtype=pl.Float64),
            "start": times(columns[4]),
            "end": times(columns[5]),
            "node": pl.Series(columns[6], dtype=pl.String),
        }
    )


def nodes_table(nodes: Mapping[str, tuple[float, float]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "node": list(nodes),
            "cpu": pl.Series([cpu for cpu, _ in nodes.values()], dtype=pl.Float64),
            "memory": pl.Series([memory for _, memory in nodes.values()], dtype=pl.Float64),
        }
    )


def usage_table(usage: Mapping[str, Sequence[float] | Floats], first: int = 0) -> pl.DataFrame:
    """One series a pod, from window ``first`` after START on; NaN leaves a gap."""
    frames = [
        pl.DataFrame(
            {
                "pod": [pod] * len(series),
                "time": times([(first + w) * WINDOW for w in range(len(series))]),
                "cpu": pl.Series(series, dtype=pl.Float32),
            }
        )
        for pod, series in usage.items()
    ]
    table = pl.concat(frames).filter(pl.col("cpu").is_not_nan())
    return table.with_columns(cpu_max=pl.lit(None, pl.Float32))


def tidal_trace(seed: int = 0, days: int = 4, jobs: int = 60) -> Trace:
    """Four nodes of 8 cores filled by request; usage follows the day; offline jobs on day 3."""
    rng = np.random.default_rng(seed)
    span = days * 86_400
    rows: list[ROW] = []
    usage: dict[str, Floats] = {}
    phase = np.arange(days * DAY) / DAY * 2 * np.pi
    for index in range(12):
        name = f"web-{index}"
        rows.append((name, "online", 2.5, 4.0, 0, span, f"node-{index % 4}"))
        tide = 0.8 - 0.5 * np.cos(phase) + rng.normal(0, 0.05, len(phase))
        usage[name] = np.clip(tide, 0.05, 2.5)
    half = span // 2
    for index in range(jobs):
        arrival = half + int(rng.integers(0, 80_000))
        length = int(rng.integers(300, 5 * 3600))
        ask = float(rng.choice([0.5, 1.0, 2.0]))
        rows.append((f"job-{index}", "offline", ask, 1.0, arrival, arrival + length, None))
    nodes = {f"node-{index}": (8.0, 32.0) for index in range(4)}
    return Trace("tidal", nodes_table(nodes), pods_table(rows), usage_table(usage))


@dataclass(frozen=True)
class Constant:
    """Forecasts a share of each node's limit, whatever the history says."""

    share: float
    name: str = "constant"
    default_knob: float = 0.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        location = np.repeat(self.share * history.limit[:, None], len(horizons), axis=1)
        return Prediction(location, np.full_like(location, 1e-9), history.limit)


@dataclass(frozen=True)
class Recent:
    """Forecasts the highest of the last day, so it depends on the whole known past."""

    name: str = "recent"
    default_knob: float = 0.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        peak = np.nan_to_num(history.aggregate[:, -DAY:]).max(axis=1).astype(np.float64)
        location = np.repeat(peak[:, None], len(horizons), axis=1)
        return Prediction(location, np.full_like(location, 1e-9), np.full(history.nodes, np.inf))


def constant(share: float) -> Model:
    return shipped(Constant(share))


def recent() -> Model:
    return shipped(Recent())
