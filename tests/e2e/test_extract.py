"""Pods that a real kube-scheduler placed with the real extender, extracted and replayed."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from models.grid import WINDOW
from models.trace import Trace, read_trace, usage_grid
from shadow.extract import Extracted
from shadow.options import ReplayOptions
from shadow.replay import replay
from tests.controlplane.api import Json
from tests.controlplane.process import wait_until
from tests.e2e.recorded import KNOWN_FOR, known
from tests.e2e.world import NODES, PODS_PER_NODE, REQUEST, USAGE, World

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(1800)]

TOLERANCE = 0.05  # a pod changes its node's forecast as it arrives; the replay has one for all
SETTLES = 200.0
"""Seconds that placing takes at most: without a new window, which would bring other forecasts."""


def extracted(world: World, folder: Path) -> Extracted:
    """What the command says."""
    command = [sys.executable, "-m", "archimedes", "shadow", "extract", str(folder), "--json"]
    command += ["--force", "--decisions", str(world.extender.decisions)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Extracted)


def usage_end(world: World) -> float:
    """Until when usage is known, in seconds since the epoch."""
    lines = world.extender.text("/metrics").splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith("archimedes_usage_end"))
    return float(value)


def calm(world: World) -> dict[str, Json]:
    """The nodes, where forecasts follow all windows that have ended, and none ends for a while.

    The window that has begun is one that is observed whole.
    """
    nodes, now = world.extender.nodes(), time.time()
    newest = min(now - node["usage_age_seconds"] for node in nodes.values())
    into = now % WINDOW
    is_calm = newest >= now - into - 1 and into < WINDOW - SETTLES and now - into >= world.began
    return nodes if is_calm else {}


def with_a_past(trace: Trace) -> Trace:
    """The trace as if its online pods had long used what each used in its first window."""
    assert trace.usage is not None
    first = trace.usage.filter(pl.col("time") == pl.col("time").min().over("pod"))
    times = [
        pl.col("time") - pl.duration(seconds=at * WINDOW)
        for at in range(1, KNOWN_FOR // WINDOW + 1)
    ]
    past = [first.with_columns(time=time) for time in times]
    began = pl.when(pl.col("tier") == "online").then(pl.col("start") - pl.duration(days=1))
    pods = trace.pods.with_columns(start=began.otherwise(pl.col("start")))
    return replace(trace, pods=pods, usage=pl.concat([*past, trace.usage]))


def test_what_was_placed_is_placed_again_from_the_extracted_trace(
    world: World, tmp_path: Path
) -> None:
    figures = wait_until(lambda: calm(world), 700, "one forecast for all placements", interval=2)
    model = known(world.plane.admin.get("/api/v1/nodes")["items"], figures)
    begin = time.time()
    world.offline("seen", 300, 1000)
    placed, waiting = world.settled("seen")
    assert min(len(placed), len(waiting)) > 10
    until = time.time()
    wait_until(lambda: usage_end(world) >= until, 400, "that window's usage is known", interval=2)
    world.retry()
    _, waiting = world.settled("seen")  # without those for which a newer forecast left room
    for pod in waiting:  # before those that run, which would make room for them
        world.remove(pod["metadata"]["name"])
    world.delete("seen")
    world.offline("after", 1, 100)
    world.settled("after")
    world.delete("after")

    found = extracted(world, tmp_path / "trace")
    trace = read_trace(tmp_path / "trace")
    jobs = trace.pods.filter(pl.col("pod").str.contains("/seen-"))
    assert jobs.height == 300
    assert found.ended >= len(placed)
    assert found.waiting >= len(waiting)
    assert (found.assumed, found.cut) == (0, 0)
    online = trace.pods.filter(pl.col("pod").str.contains("/online-"))
    assert online.height == NODES * PODS_PER_NODE
    assert set(online["cpu_request"]) == {REQUEST}
    grid = usage_grid(trace)
    rows = [row for row, pod in enumerate(grid.pods) if "/online-" in pod]
    first = int(-(-(world.began - grid.start) // WINDOW))  # of those that are observed whole
    whole = grid.cpu[rows, first:]
    assert np.mean(whole) == pytest.approx(USAGE, rel=0.1)  # every pod, in each whole window

    options = ReplayOptions(start=int(begin), hours=24)
    result = replay(with_a_past(trace), model, options=options)
    names = np.array(["/seen-" in name for name in result.pods.names])
    again = len(set(result.runs.pod[names[result.runs.pod]].tolist()))
    assert again == pytest.approx(len(placed), rel=TOLERANCE)
