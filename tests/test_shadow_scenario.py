"""What a replay meets: period, nodes and pods from a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.errors import TraceError
from models.grid import DAY, WINDOW
from models.trace import Trace, read_trace
from shadow.options import ReplayOptions
from shadow.scenario import GIB, build_scenario
from tests.shadow_traces import START, nodes_table, pods_table, tidal_trace, usage_table

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"
HOUR, A_DAY = 3600, 86_400


def online(
    requests: list[float], nodes: list[str | None] | None = None, memory: float | None = None
) -> pl.DataFrame:
    where = nodes or [None] * len(requests)
    return pods_table(
        [(f"p{i}", "online", cpu, memory, 0, 4 * A_DAY, where[i]) for i, cpu in enumerate(requests)]
    )


def with_usage(pods: pl.DataFrame, days: int = 4) -> Trace:
    usage = {name: np.full(days * DAY, 0.5) for name in pods["pod"]}
    return Trace("t", None, pods, usage_table(usage))


def test_half_of_a_short_trace_is_history() -> None:
    scenario = build_scenario(with_usage(online([1.0])), ReplayOptions())
    assert scenario.start == START + 2 * A_DAY
    assert scenario.stop == scenario.start + A_DAY


def test_seven_days_of_a_long_trace_are_history() -> None:
    scenario = build_scenario(with_usage(online([1.0]), days=20), ReplayOptions(hours=5))
    assert scenario.start == START + 7 * A_DAY
    assert scenario.stop == scenario.start + 5 * HOUR


def test_the_period_ends_with_the_usage() -> None:
    options = ReplayOptions(start=START + 4 * A_DAY - 1000, hours=9)
    scenario = build_scenario(with_usage(online([1.0])), options)
    assert scenario.start == START + 4 * A_DAY - 1200  # the window that it lies in
    assert scenario.stop == START + 4 * A_DAY


def test_a_part_of_a_usage_window_is_not_decided() -> None:
    trace = with_usage(online([1.0]))
    with pytest.raises(TraceError, match=r"windows of 5 minutes.* not for 61 minutes"):
        build_scenario(trace, ReplayOptions(hours=61 / 60))
    scenario = build_scenario(trace, ReplayOptions(hours=65 / 60))
    assert scenario.stop == scenario.start + 13 * WINDOW


def test_a_pod_that_never_ends_does_not_make_thousands_of_years() -> None:
    pods = pods_table([("a", "online", 1.0, None, 0, 7200, None)])
    never = pods.with_columns(end=pl.datetime(9999, 12, 31, time_zone="UTC"))
    with pytest.raises(TraceError, match=r"until 9999-12-31.* choose how many hours"):
        build_scenario(Trace("t", None, never, None), ReplayOptions())
    scenario = build_scenario(Trace("t", None, never, None), ReplayOptions(hours=2))
    assert scenario.stop == scenario.start + 2 * HOUR


@pytest.mark.parametrize("start", [START - 7 * A_DAY, START + 5 * A_DAY])
def test_a_start_outside_of_the_trace_is_an_error(start: int) -> None:
    with pytest.raises(TraceError, match="choose"):
        build_scenario(with_usage(online([1.0])), ReplayOptions(start=start))


def test_without_usage_all_of_the_trace_is_decided() -> None:
    rows = [("a", "online", 1.0, None, 100, 700, None), ("b", "offline", 1.0, None, 50, 900, None)]
    scenario = build_scenario(Trace("t", None, pods_table(rows), None), ReplayOptions())
    assert scenario.start == START  # the window of the first start
    assert scenario.stop == START + 901  # the last end is seen
    assert scenario.grid is None
    assert scenario.pods.names == ("b", "a")
    assert scenario.pods.duration.tolist() == [850, 600]


def test_equal_nodes_are_filled_by_request() -> None:
    # 40 cores, 20 pods: 2 nodes; 40 / (2 x 0.95) = 21.05, so 22 whole cores
    scenario = build_scenario(with_usage(online([2.0] * 20)), ReplayOptions())
    assert scenario.fleet.millicpu.tolist() == [22_000, 22_000]
    assert scenario.fleet.memory.tolist() == [88 * GIB, 88 * GIB]  # 4 GiB a core


def test_equal_nodes_hold_the_largest_pod() -> None:
    scenario = build_scenario(with_usage(online([1.0, 30.0])), ReplayOptions(nodes=4))
    assert scenario.fleet.millicpu.tolist() == [30_000] * 4


def test_nodes_and_their_size_can_be_chosen() -> None:
    trace = with_usage(online([2.0] * 20))
    chosen = build_scenario(trace, ReplayOptions(node_cpu=8.0))
    assert chosen.fleet.millicpu.tolist() == [8000] * 6  # 40 / (8 x 0.95) = 5.3
    chosen = build_scenario(trace, ReplayOptions(nodes=3, node_cpu=8.0, node_memory=1.5))
    assert chosen.fleet.millicpu.tolist() == [8000] * 3
    assert chosen.fleet.memory.tolist() == [3 * GIB // 2] * 3


def test_memory_of_equal_nodes_leaves_room() -> None:
    # 4 GiB a core would be 88; online pods ask for 20 x 20 on 2 nodes, twice of which is 400
    scenario = build_scenario(with_usage(online([2.0] * 20, memory=20.0)), ReplayOptions())
    assert scenario.fleet.memory.tolist() == [400 * GIB] * 2


def test_the_highest_sum_counts_only_pods_that_live_together() -> None:
    rows = [
        ("a", "online", 4.0, None, 0, 3 * A_DAY, None),
        ("b", "online", 4.0, None, 3 * A_DAY, 4 * A_DAY, None),  # begins as a ends
        ("c", "online", 9.0, None, 0, A_DAY, None),  # gone before the start
    ]
    table = pods_table(rows)
    trace = Trace("t", None, table, usage_table({"a": [0.5] * 3 * DAY, "b": [0.5], "c": [0.5]}))
    start = START + 2 * A_DAY
    options = ReplayOptions(start=start, hours=48, nodes=1)
    # 4 / 0.95 = 4.2
    assert build_scenario(trace, options).fleet.millicpu.tolist() == [5000]


def test_pods_stay_on_the_nodes_of_the_trace() -> None:
    nodes = nodes_table({"x": (8.0, 16.0), "y": (4.0, 16.0)})
    pods = online([1.0, 2.0, 3.0], ["y", None, "x"])
    options = ReplayOptions(offline_load=0)
    scenario = build_scenario(Trace("t", nodes, pods, with_usage(pods).usage), options)
    assert scenario.fleet.names == ("x", "y")
    # Known places first, then the largest.
    assert dict(zip(scenario.pods.names, scenario.pods.node.tolist(), strict=True)) == {
        "p2": 0,
        "p0": 1,
        "p1": -1,
    }
    assert scenario.pods.names[-1] == "p1"
    options = ReplayOptions(nodes=2, offline_load=0)
    equal = build_scenario(Trace("t", nodes, pods, with_usage(pods).usage), options)
    assert equal.pods.node.tolist() == [-1, -1, -1]


def test_what_runs_at_the_start_is_placed_largest_first() -> None:
    scenario = build_scenario(with_usage(online([1.0, 4.0, 2.0])), ReplayOptions(offline_load=0))
    assert scenario.pods.names == ("p1", "p2", "p0")


def test_offline_pods_are_the_traces_own_or_generated() -> None:
    own = build_scenario(tidal_trace(jobs=7), ReplayOptions())
    assert sum(own.pods.offline) == 7
    made = build_scenario(with_usage(online([2.0] * 20)), ReplayOptions(offline_load=0.5, seed=1))
    again = build_scenario(with_usage(online([2.0] * 20)), ReplayOptions(offline_load=0.5, seed=1))
    other = build_scenario(with_usage(online([2.0] * 20)), ReplayOptions(offline_load=0.5, seed=2))
    assert made.pods.names == again.pods.names
    assert made.pods.names != other.pods.names
    jobs = made.pods.offline
    offered = (made.pods.millicpu * made.pods.duration)[jobs].sum() / 1000 / A_DAY
    # Half of what 20 pods with half a core each leave of 44 cores: 17, heavy-tailed
    assert 8.5 < offered < 34
    assert (made.pods.grid[jobs] == -1).all()
    assert (np.diff(made.pods.arrival) >= 0).all()


def test_offline_pods_of_a_trace_count_from_the_start_on() -> None:
    rows = [
        ("web", "online", 1.0, None, 0, 4 * A_DAY, None),
        ("early", "offline", 1.0, None, 0, 3 * A_DAY, None),
        ("inside", "offline", 1.0, None, 2 * A_DAY, 9 * A_DAY, None),
        ("late", "offline", 1.0, None, 3 * A_DAY, 4 * A_DAY, None),
    ]
    trace = Trace("t", None, pods_table(rows), usage_table({"web": [0.1] * 4 * DAY}))
    assert build_scenario(trace, ReplayOptions()).pods.names == ("web", "inside")


def test_horizons_come_from_durations_and_can_be_blurred() -> None:
    rows = [
        (f"j{i}", "offline", 1.0, None, 0, hours * HOUR, None)
        for i, hours in enumerate([1, 2, 5, 11, 24, 90])
    ]
    trace = Trace("t", None, pods_table(rows), None)
    exact = build_scenario(trace, ReplayOptions(nodes=1))
    assert exact.pods.horizon.tolist() == [0, 1, 2, 3, 4, 4]
    blurred = build_scenario(trace, ReplayOptions(nodes=1, duration_blur=3.0))
    assert blurred.pods.horizon.tolist() != exact.pods.horizon.tolist()
    assert blurred.pods.duration.tolist() == exact.pods.duration.tolist()


def test_a_trace_of_nothing_is_an_error() -> None:
    nodes = nodes_table({"x": (8.0, 16.0)}).clear()
    with pytest.raises(TraceError, match="lists no node"):
        build_scenario(Trace("t", nodes, online([1.0]), None), ReplayOptions())
    gone = pods_table([("a", "online", 1.0, None, 0, 10, None)])
    usage = usage_table({"a": [0.1] * 4 * DAY})
    with pytest.raises(TraceError, match="no pod is alive"):
        build_scenario(Trace("t", None, gone, usage), ReplayOptions(offline_load=0))


def test_openb_is_read_as_it_is() -> None:
    if not (TRACES / "openb").exists():
        pytest.skip("the openb trace is not on this machine")
    scenario = build_scenario(read_trace(TRACES / "openb"), ReplayOptions())
    assert len(scenario.fleet) == 1523
    assert len(scenario.pods) == 8152
    assert int(scenario.pods.offline.sum()) == 3398
    assert WINDOW > scenario.pods.arrival[0] - scenario.start >= 0
