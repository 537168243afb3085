"""A cluster as the API server shows it, as a trace that replays; the forecasts it decided on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from models.arrays import Floats
from models.forecaster import Prediction
from models.grid import WINDOW
from models.history import History
from models.model import Model
from models.policy import HORIZONS
from models.shipped import shipped
from models.trace import Trace
from shadow.options import ReplayOptions
from shadow.replay import replay
from shadow.result import ReplayResult
from tests.controlplane.api import Json
from tests.e2e.world import RESOURCE, millicores

START = int(datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp())
KNOWN_FOR = 4 * 3600
"""Seconds of usage before the start: long enough for the pods to count as known."""
LASTS = 3600
"""Seconds that offline pods declare: the first horizon."""

SPEC = {
    "node_selector": "nodeSelector",
    "tolerations": "tolerations",
    "topology_spread": "topologySpreadConstraints",
}


@dataclass(frozen=True)
class Known:
    """Forecasts what the extender said of each node, [N, H] cores."""

    forecast: Floats
    name: str = "known"
    default_knob: float = 0.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        columns = [HORIZONS.index(hours) for hours in horizons]
        location = self.forecast[:, columns]
        return Prediction(location, np.full_like(location, 1e-9), np.full(history.nodes, np.inf))


def known(nodes: Sequence[Json], figures: Mapping[str, Json]) -> Model:
    """A model whose forecasts are those that /v1/nodes showed."""
    rows = [figures[node["metadata"]["name"]]["horizons"] for node in nodes]
    return shipped(Known(np.array([[h["forecast_cores"] for h in row] for row in rows], float)))


def trace_of(
    nodes: Sequence[Json],
    before: Sequence[Json],
    after: Sequence[Json],
    lives: Sequence[tuple[float, float]] | None = None,
) -> Trace:
    """A trace in which pods run on their nodes before START, and others arrive from then on.

    Args:
        nodes, before, after: objects of the API.
        lives: for each of `after`, how many seconds after START it arrives, and how many it then
            runs for. By default they arrive a second apart and run for LASTS.
    """
    lives = lives or [(number, LASTS) for number in range(len(after))]
    table = pl.DataFrame(
        {
            "node": [node["metadata"]["name"] for node in nodes],
            "cpu": [_cores(node["status"]["allocatable"]["cpu"]) for node in nodes],
            "memory": [_gib(node["status"]["allocatable"]["memory"]) for node in nodes],
            "labels": [json.dumps(node["metadata"].get("labels", {})) for node in nodes],
            "taints": [json.dumps(node["spec"].get("taints", [])) for node in nodes],
            "unschedulable": [bool(node["spec"].get("unschedulable")) for node in nodes],
        }
    )
    rows = [_row(pod, START - KNOWN_FOR, START + LASTS, bound=True) for pod in before]
    for pod, (arrival, lasts) in zip(after, lives, strict=True):
        rows.append(_row(pod, START + arrival, START + arrival + lasts, bound=False))
    usage = pl.DataFrame(
        [
            {"pod": row["pod"], "time": _time(START - KNOWN_FOR + number * WINDOW), "cpu": 0.1}
            for row in rows
            if row["node"] is not None and row["tier"] == "online"
            for number in range(2 * KNOWN_FOR // WINDOW)
            if START - KNOWN_FOR + number * WINDOW < START + LASTS
        ]
    ).with_columns(pl.col("cpu").cast(pl.Float32), cpu_max=pl.lit(None, pl.Float32))
    return Trace("recorded", table, pl.DataFrame(rows, infer_schema_length=None), usage)


def replayed(trace: Trace, model: Model, seed: int = 0) -> ReplayResult:
    """The replay from START on, long enough for all that arrives a second apart."""
    hours = 0.25  # until the next refresh of the forecasts
    return replay(trace, model, options=ReplayOptions(start=START, hours=hours, seed=seed))


def homes(result: ReplayResult) -> dict[str, str]:
    """On which node each pod began to run; names without their namespace."""
    runs, names, nodes = result.runs, result.pods.names, result.fleet.names
    return {
        names[pod].split("/")[-1]: nodes[node]
        for pod, node in zip(runs.pod.tolist(), runs.node.tolist(), strict=True)
    }


def _row(pod: Json, start: float, end: float, *, bound: bool) -> Json:
    meta, spec = pod["metadata"], pod["spec"]
    requests = spec["containers"][0]["resources"].get("requests", {})
    offline = RESOURCE in requests
    affinity = spec.get("affinity", {}).get("nodeAffinity")
    name = f"{meta['namespace']}/{meta['name']}"
    return {
        "pod": name,
        "workload": name,
        "tier": "offline" if offline else "online",
        "cpu_request": (
            millicores(requests[RESOURCE]) / 1000 if offline else _cores(requests.get("cpu", "0"))
        ),
        "memory_request": _gib(requests["memory"]) if "memory" in requests else None,
        "start": _time(start),
        "end": _time(end),
        "node": spec.get("nodeName") if bound else None,
        "labels": json.dumps(meta.get("labels", {})),
        "node_affinity": None if affinity is None else json.dumps(affinity),
        **{column: json.dumps(spec[key]) if key in spec else None for column, key in SPEC.items()},
    }


def _cores(quantity: str) -> float:
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def _gib(quantity: str) -> float:
    """Memory as these tests write it, and as the API server shortens it."""
    units = {"Ki": 2.0**-20, "Mi": 2.0**-10, "Gi": 1.0}
    return float(quantity[:-2]) * units[quantity[-2:]]


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
