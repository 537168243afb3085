"""The nodes of a replay: what is kept up to date step by step is what is counted afresh."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.policy import Policy
from models.reclaim import reclaimable_millicpu
from shadow.cluster import Cluster, Fleet
from shadow.kube_scheduler import Request

GIB = 2**30
STEPS = st.lists(
    st.tuples(st.sampled_from(["online", "offline"]), st.integers(0, 2), st.integers(1, 2000)),
    max_size=30,
)


@given(STEPS)
def test_the_view_shows_what_the_ledger_and_the_forecast_say_after_every_step(
    steps: list[tuple[str, int, int]],
) -> None:
    fleet = Fleet(("a", "b", "c"), np.full(3, 8000), np.full(3, 32 * GIB))
    cluster = Cluster(fleet, Policy(), 110, forecasting=False)
    running: dict[tuple[str, int], Request] = {}
    for kind, row, millicpu in steps:
        view = cluster.snapshot(0, "requests", offline=True)
        room = int(view.free[row, 0] - view.promised[row])
        if (kind, row) in running:
            request = running.pop((kind, row))
            if kind == "online":
                cluster.remove(row, request)
            else:
                cluster.release(row, f"pod-{row}", request)
        elif kind == "online":
            running[kind, row] = Request(millicpu, GIB, 0)
            cluster.add(row, running[kind, row])
        elif millicpu <= room:
            running[kind, row] = Request(0, GIB, millicpu)
            cluster.promise(row, f"pod-{row}", running[kind, row], 0, 0)
        view = cluster.snapshot(0, "requests", offline=True)
        assert view.promised.tolist() == cluster.ledger.charged(3).tolist()
        free = reclaimable_millicpu(cluster.allocatable, cluster.forecast, Policy())
        assert view.free.tolist() == free.tolist()
        assert view.forecast[:, 0].tolist() == (cluster.nodes.requested[0] / 1000).tolist()
