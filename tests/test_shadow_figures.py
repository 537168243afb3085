"""Figures of replays by hand, and against slow ways of counting."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.arrays import Floats, Ints
from models.grid import DAY, WINDOW
from models.model import Model
from models.policy import Policy
from models.trace import Trace
from shadow.cluster import Fleet
from shadow.figures import figures, judged, violations
from shadow.machines import Machines, Work, _anywhere, _Attempts, _smallest, machines
from shadow.options import ReplayOptions
from shadow.replay import replay
from shadow.report import machine_rows
from shadow.result import Ending, Forecasts, ReplayResult, Runs, State
from shadow.scenario import GIB, Pods, build_scenario
from shadow.series import node_series, time_series
from tests.shadow_traces import (
    ROW,
    START,
    constant,
    nodes_table,
    pods_table,
    recent,
    tidal_trace,
    usage_table,
)

NAN = float("nan")


def ints(*values: int) -> Ints:
    return np.array(values, np.int64)


def pods(millicpu: list[int], offline: list[bool]) -> Pods:
    count = len(millicpu)
    none = np.zeros(count, np.int64)
    return Pods(
        names=tuple(f"p{i}" for i in range(count)),
        offline=np.array(offline, bool),
        millicpu=ints(*millicpu),
        memory=none,
        arrival=none + START,
        duration=none + 600,
        gone=none + START + 600,
        horizon=none,
        node=none - 1,
        grid=none - 1,
    )


def recording(
    runs: list[tuple[int, int, int, int]],
    of: Pods,
    used: list[list[float]] | None,
    windows: int = 4,
    cores: float = 10.0,
    forecasts: Forecasts | None = None,
) -> ReplayResult:
    """Two nodes; runs are (pod, node, begin, end) in seconds after the start."""
    columns = np.array(runs, np.int64).reshape(-1, 4).T
    return ReplayResult(
        trace="t",
        model_version="v",
        policy=Policy(),
        options=ReplayOptions(),
        start=START,
        stop=START + windows * WINDOW,
        fleet=Fleet(("a", "b"), np.full(2, round(cores * 1000)), np.full(2, 64 * GIB)),
        pods=of,
        state=np.full(len(of), State.RUNNING, np.int64),
        attempts=np.ones(len(of), np.int64),
        waited=np.zeros(len(of), np.int64),
        refused={},
        runs=Runs(
            pod=columns[0],
            node=columns[1],
            begin=START + columns[2],
            end=START + columns[3],
            free=np.full(len(runs), -1),
            ending=np.full(len(runs), Ending.NATURAL, np.int64),
        ),
        used=None if used is None else np.array(used, np.float32),
        forecasts=forecasts,
        decisions=len(of),
        latency=np.array([0.001, 0.003]),
    )


def test_series_weigh_runs_by_the_part_of_the_window_they_cover() -> None:
    of = pods([4000, 2000], [False, True])
    runs = [(0, 0, 0, 1200), (1, 0, 150, 450), (1, 1, 600, 1200)]
    series = node_series(recording(runs, of, [[1, 1, 1, 1], [0, 0, 0, 9]]))
    assert series.requested.tolist() == [[4, 4, 4, 4], [0, 0, 0, 0]]
    # half of the first window, half of the second; then two whole ones on the other node
    assert series.asked.tolist() == [[1, 1, 0, 0], [0, 0, 2, 2]]
    # the kernel leaves what online pods do not use: 10 - 9 in the last window
    assert series.run.tolist() == [[1, 1, 0, 0], [0, 0, 2, 1]]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1199), st.integers(1, 1200)),
        max_size=12,
    )
)
def test_series_equal_counting_every_second(spans: list[tuple[int, int, int, int]]) -> None:
    of = pods([1500, 2500], [True, True])
    runs = [(p, n, min(b, e), max(b, e)) for p, n, b, e in spans]
    series = node_series(recording(runs, of, None))
    assert series.step == 2  # 1,200 s in at most 1,000 steps
    slow: Floats = np.zeros((2, 1200))
    for pod, node, begin, end in runs:
        slow[node, begin:end] += of.millicpu[pod] / 1000
    np.testing.assert_allclose(series.asked, slow.reshape(2, -1, 2).mean(axis=2), atol=1e-9)


def test_core_hours_by_hand() -> None:
    of = pods([4000, 7000], [False, True])
    runs = [(0, 0, 0, 1200), (1, 0, 0, 1200)]
    found = figures(recording(runs, of, [[2, 2, 5, 5], [1, 1, 1, 1]]))
    assert found.allocatable_core_hours == pytest.approx(20 / 3)  # 2 x 10 cores x 20 minutes
    assert found.requested_core_hours == pytest.approx(4 / 3)
    assert found.used_core_hours == pytest.approx((2 + 2 + 5 + 5 + 4) / 12)
    # 7, 7, 5, 5 cores of the node's 10 in windows of 5 minutes
    assert found.reclaimed_core_hours == pytest.approx(24 / 12)
    assert found.throttled_core_hours == pytest.approx(4 / 12)
    # 6 cores were requested by nobody: 1, 1, 0, 0
    assert found.beyond_requests_core_hours == pytest.approx(2 / 12)
    # idle: 80 - 18 core windows
    assert found.reclaimed_share == pytest.approx(24 / 62)
    # 2 + 7 < 9.5 < 5 + 7: two of the four windows with promises
    assert found.overload_rate == 0.5
    assert found.overloaded_promises == 1.0
    assert found.decision_ms_p50 == pytest.approx(2.0)


def test_promises_that_met_no_overload_are_not_counted() -> None:
    of = pods([4000, 2000, 9000], [False, True, True])
    # The second run ends as the third begins, on the same node.
    runs = [(1, 0, 0, 600), (2, 0, 600, 900), (1, 1, 0, 1200)]
    found = figures(recording(runs, of, [[1, 1, 1, 1], [1, 1, 1, 1]]))
    assert found.overloaded_promises == pytest.approx(1 / 3)
    assert found.overload_rate == pytest.approx(1 / 7)


def test_utilisation_by_hand() -> None:
    of = pods([1000, 4000], [False, True])
    found = figures(recording([(1, 1, 0, 1200)], of, [[3, 3, 3, 3], [1, 1, 1, 1]]))
    before, after = found.utilisation_before, found.utilisation_after
    assert before is not None
    assert after is not None
    assert before.mean == pytest.approx(0.2)  # 30 and 10 %
    assert before.deviation == pytest.approx(0.1)
    assert before.share_20_40 == 0.5
    assert after.mean == pytest.approx(0.4)  # 30 and 50 %
    assert after.p95 == pytest.approx(0.5)


def test_the_distribution_and_the_balance_by_hand() -> None:
    of = pods([1000, 4000], [False, True])
    # 30 % and 10 % of ten cores by online pods; the second node's offline pod adds 40 %.
    result = recording(
        [(1, 1, 0, 3600)], of, [[3] * 24, [1] * 24], windows=24
    )  # two hours, the offline pod in the first
    found = figures(result)
    before, after = found.utilisation_before, found.utilisation_after
    assert before is not None
    assert after is not None
    assert list(before.tenths) == [0, 0.5, 0, 0.5, 0, 0, 0, 0, 0, 0]
    assert list(after.tenths) == [0, 0.25, 0, 0.5, 0, 0.25, 0, 0, 0, 0]
    hours = found.balance_after
    assert hours is not None
    assert list(hours.time) == [START, START + 3600]
    assert hours.mean == pytest.approx((0.4, 0.2))
    assert hours.deviation == pytest.approx((0.1, 0.1))
    assert hours.p95 == pytest.approx((0.49, 0.29))
    assert hours.share_20_40 == (0.5, 0.5)
    # Requests of a core on no node, and a promise of four cores for an hour.
    assert found.allocated_core_hours == pytest.approx(4.0)


def test_a_last_hour_that_is_not_full_is_no_emptier() -> None:
    found = figures(recording([], pods([1000], [False]), [[3] * 13, [1] * 13], windows=13))
    assert found.balance_before is not None
    assert found.balance_before.mean == pytest.approx((0.2, 0.2))


def test_utilisation_above_everything_is_in_the_last_bin() -> None:
    found = figures(recording([], pods([1000], [False]), [[12] * 4, [10] * 4]))
    assert found.utilisation_before is not None
    assert found.utilisation_before.tenths[9] == 1.0


def test_fragmentation_by_hand() -> None:
    # Left: 10 x 0.95 - 0.1 - forecast = 2.4 and 0.4 cores. A pod of 2 cores finds 0.4 of 2.8 in
    # pieces too small, a pod of 3 cores all of it, one of 0.3 none.
    made = forecasts([[7, 7, 7, 7, 7], [9, 9, 9, 9, 9]], [[NAN] * 5] * 2)
    used: list[list[float]] = [[0] * 4] * 2
    for asks, expected in (
        ([2000], 0.4 / 2.8),
        ([2400], 0.4 / 2.8),  # just fits
        ([3000], 1.0),
        ([300], 0.0),
        ([2000, 300], 0.4 / 5.6),
    ):
        of = pods([1000, *asks], [False, *(True for _ in asks)])
        found = figures(recording([], of, used, forecasts=made))
        assert found.fragmentation == pytest.approx(expected)


def test_promises_are_no_fragments_of_what_is_left() -> None:
    # Two cores of the 2.4 are promised: 0.4 and 0.4 are left, too small for a pod of 2 cores.
    made = forecasts([[7] * 5, [9] * 5], [[NAN] * 5] * 2)
    of = pods([1000, 2000], [False, True])
    used: list[list[float]] = [[0] * 4] * 2
    assert figures(recording([(1, 0, 0, 1200)], of, used, forecasts=made)).fragmentation == 1.0


def test_longer_horizons_leave_less() -> None:
    # The only pod asks for an hour; that a day's forecast leaves nothing does not matter to it.
    made = forecasts([[7, 7, 7, 7, 20]] * 2, [[NAN] * 5] * 2)
    of = pods([1000, 2000], [False, True])
    used: list[list[float]] = [[0] * 4] * 2
    assert figures(recording([], of, used, forecasts=made)).fragmentation == 0.0
    day = replace(of, horizon=np.full(2, 4, np.int64))
    assert figures(recording([], day, used, forecasts=made)).fragmentation is None


def test_fragmentation_without_usage_is_of_what_nobody_requested() -> None:
    # 9.4 - 8 = 1.4 cores are left on one node and 9.4 on the other.
    of = pods([8000, 2000], [False, True])
    found = figures(recording([(0, 0, 0, 1200)], of, None))
    assert found.fragmentation == pytest.approx(1.4 / 10.8)
    assert figures(recording([], pods([1000], [False]), None)).fragmentation is None


def forecasts(forecast: list[list[float]], truth: list[list[float]]) -> Forecasts:
    """One refresh, two nodes, five horizons."""
    return Forecasts(ints(START), np.array([forecast], np.float32), np.array([truth], np.float32))


def test_violations_by_hand() -> None:
    of = pods([1000], [False])
    made = forecasts([[1, 1, 2, 2, 2], [4, 4, 4, 4, NAN]], [[1, 2, 2, 4, NAN], [3, 5, 4, NAN, 9]])
    result = recording([], of, [[0] * 4, [0] * 4], forecasts=made)
    rate, by_horizon, severity = violations(result)
    # judged: 4 of the first node, 3 of the second; violated: 2 > 1, 4 > 2, 5 > 4
    assert rate == pytest.approx(3 / 7)
    assert by_horizon == {"1": 0.0, "3": 1.0, "6": 0.0, "12": 1.0, "24": None}
    assert sorted(severity.tolist()) == pytest.approx([0.2, 0.5, 0.5])
    assert int(judged(result)[0].sum()) == 7
    found = figures(result)
    assert found.severity_mean == pytest.approx(0.4)


def test_a_peak_that_equals_the_forecast_is_no_violation() -> None:
    made = forecasts([[0.1 + 0.2] * 5] * 2, [[0.3] * 5] * 2)
    result = recording([], pods([1000], [False]), [[0] * 4] * 2, forecasts=made)
    assert violations(result)[0] == 0.0


def test_without_usage_there_is_nothing_to_judge() -> None:
    found = figures(recording([(0, 0, 0, 600)], pods([1000], [True]), None))
    assert found.violation_rate is None
    assert found.used_core_hours is None
    assert found.overload_rate is None
    assert found.utilisation_before is None
    assert found.reclaimed_core_hours == pytest.approx(1 / 6)
    assert msgspec.json.decode(msgspec.json.encode(found))["reclaimed_share"] is None


def test_nothing_at_all() -> None:
    found = figures(recording([], pods([1000], [False]), [[0] * 4] * 2))
    assert found.offline_pods == found.offline_pods_placed == 0
    assert found.wait_mean_s is None
    assert found.overloaded_promises is None
    assert found.overload_rate is None


def test_figures_of_a_replay_agree_with_its_runs() -> None:
    result = replay(tidal_trace(jobs=200), recent(), options=ReplayOptions())
    found = figures(result)
    runs, offline = result.runs, result.pods.offline
    kept = offline[runs.pod]
    asked = ((runs.end - runs.begin) * result.pods.millicpu[runs.pod])[kept].sum() / 3.6e6
    assert found.reclaimed_core_hours + (found.throttled_core_hours or 0) == pytest.approx(asked)
    assert found.requested_core_hours == pytest.approx(12 * 2.5 * 24)
    states = [found.offline_pods_finished, found.offline_pods_waiting, found.offline_pods_refused]
    running = int((result.state[offline] == State.RUNNING).sum())
    assert sum(states) + running == found.offline_pods == 200
    # Every JSON figure is a number that JSON knows.
    numbers = [v for v in msgspec.to_builtins(found).values() if isinstance(v, float)]
    assert all(map(math.isfinite, numbers))


def test_time_series_add_up() -> None:
    result = replay(tidal_trace(jobs=200), recent(), options=ReplayOptions(refresh=1800))
    series = node_series(result)
    lines = time_series(result, series)
    assert {len(line) for line in lines.values()} == {DAY}
    assert lines["requested"] == pytest.approx(np.full(DAY, 30.0))
    assert lines["allocatable"] == pytest.approx(np.full(DAY, 32.0))
    found = figures(result, series)
    assert lines["reclaimed"].sum() / 12 == pytest.approx(found.reclaimed_core_hours)
    assert lines["used"].sum() / 12 == pytest.approx(found.used_core_hours)
    assert result.forecasts is not None
    # Between refreshes the last forecast holds: 1800 s are six windows.
    first = result.forecasts.forecast[0].sum(axis=0)
    assert lines["forecast"][:6] == pytest.approx(np.full(6, first[0]))
    without = time_series(recording([], pods([1000], [True]), None), series)
    assert "used" not in without


# How many machines the same work needs


@pytest.mark.parametrize("answer", [1, 2, 5, 6, 7, 20])
@pytest.mark.parametrize("guess", [1, 6, 30])
def test_the_smallest_count_is_found_from_any_guess(answer: int, guess: int) -> None:
    tried: list[int] = []

    def enough(count: int) -> bool:
        tried.append(count)
        return count >= answer

    assert _smallest(enough, 0, guess) == answer
    assert len(tried) == len(set(tried))  # each is a whole replay
    assert len(tried) <= 2 + 2 * math.ceil(math.log2(abs(answer - guess) + 1))


def test_a_lower_bound_is_not_tried() -> None:
    assert _smallest(lambda count: count > 0, 4, 9) == 5


def attempts(trace: Trace, model: Model | None) -> _Attempts:
    """Replays of a trace on different numbers of machines, as `machines` makes them."""
    options = ReplayOptions()
    scenario, _ = _anywhere(build_scenario(trace, options))
    return _Attempts(scenario, model, None, options, lambda _: None)


def test_impossible_work_has_no_count() -> None:
    assert _smallest(lambda count: count < 0, 0, 1) is None
    work = Work(offline_core_hours=1e6, wait_mean_s=0.0)
    assert attempts(full_cluster(jobs=1), None).fewest(work, reclaim=False) is None


def test_a_count_that_cannot_be_told_is_said() -> None:
    work = Work(offline_core_hours=1.0, wait_mean_s=0.0)
    for needed, without in ((None, 7), (4, None)):
        found = Machines(8.0, 64.0, 1.0, present=4, needed=needed, without=without, work=work)
        assert found.saved is None
        shown = dict(machine_rows(found))
        assert shown["machines saved"] == "cannot be told"
        assert ("cannot be told" in shown["machines needed without"]) == (without is None)


def test_machines_hold_the_largest_online_pod() -> None:
    rows: list[ROW] = [(f"web-{i}", "online", 4.0, 4.0, 0, 86_400, f"n{i}") for i in range(4)]
    rows += [("large", "online", 16.0, 8.0, 0, 86_400, "n4")]
    rows += [("job", "offline", 2.0, 1.0, 60, 7_260, None)]
    sizes = dict.fromkeys((f"n{i}" for i in range(4)), (8.0, 32.0)) | {"n4": (32.0, 128.0)}
    found = machines(Trace("mixed", nodes_table(sizes), pods_table(rows), None), None)
    # 64 cores are five nodes of 12.8; the pod needs 1.25 x 12.8 = 16, so 5 / 1.25 = 4 machines.
    assert (found.cpu, found.memory, found.present) == (16.0, 64.0, 4)
    assert found.size == pytest.approx(1.25)
    # The large pod fills one; the four others fill another, so the job has a third.
    assert (found.needed, found.without) == (3, 3)
    said = dict(machine_rows(found))["machines needed with reclaiming"]
    assert said == "3 of 16 cores, 64 GiB (1.25 x the mean node, for the largest online pod)"


def test_machines_hold_the_online_pod_with_the_most_memory() -> None:
    rows: list[ROW] = [("large", "online", 1.0, 48.0, 0, 86_400, "n1")]
    rows += [("job", "offline", 2.0, 1.0, 60, 7_260, None)]
    nodes = nodes_table({"n0": (8.0, 16.0), "n1": (8.0, 64.0)})
    found = machines(Trace("memory", nodes, pods_table(rows), None), None)
    # The mean node has 40 GiB, of which 48 are 1.2 x.
    assert found.size == pytest.approx(1.2)
    assert found.memory == pytest.approx(48.0)
    # The large pod fills one; the job has another.
    assert (found.present, found.needed, found.without) == (2, 2, 2)


def full_cluster(jobs: int = 24) -> Trace:
    """Four nodes of 8 cores, all requested and a tenth used; jobs of two cores for a day."""
    rows: list[ROW] = [(f"web-{i}", "online", 7.6, 4.0, 0, 4 * 86_400, f"n{i}") for i in range(4)]
    rows += [
        (f"job-{i}", "offline", 2.0, 1.0, 2 * 86_400 + i, 2 * 86_400 + i + 20 * 3600, None)
        for i in range(jobs)
    ]
    nodes = nodes_table({f"n{i}": (8.0, 64.0) for i in range(4)})
    usage = {f"web-{i}": [0.8] * 4 * DAY for i in range(4)}
    return Trace("full", nodes, pods_table(rows), usage_table(usage))


def test_machines_by_hand() -> None:
    found = machines(full_cluster(jobs=12), constant(0.1), options=ReplayOptions())
    # With: 8 x 0.95 - 0.1 - 0.8 = 6.7 cores, three jobs of 2 a node; four nodes take all 12, and
    # fewer could not take the online pods. Without: 0.4 cores are left beside each online pod, so
    # the 12 jobs need three machines of their own, four jobs each.
    assert found.work.offline_core_hours == pytest.approx(480.0)
    work = Work(found.work.offline_core_hours, wait_mean_s=0.0)
    assert found == Machines(8.0, 64.0, size=1.0, present=4, needed=4, without=7, work=work)
    assert found.saved == 3


def test_work_that_is_less_needs_fewer_machines() -> None:
    trace, model = full_cluster(jobs=12), constant(0.1)
    for jobs, expected in ((4, 5), (8, 6), (12, 7)):
        some = replace(trace, pods=trace.pods.head(4 + jobs))
        work = Work(offline_core_hours=jobs * 40.0, wait_mean_s=0.0)
        tried = attempts(some, model)
        assert tried.fewest(work, reclaim=False) == expected
        assert tried.fewest(work, reclaim=True) == 4


def test_waiting_counts_as_well_as_work() -> None:
    rows: list[ROW] = [("web", "online", 1.0, 1.0, 0, 4 * 86_400, "n")]
    begin = 2 * 86_400
    rows += [(f"j{i}", "offline", 6.0, 1.0, begin, begin + 6 * 3600, None) for i in range(2)]
    nodes = nodes_table({"n": (8.0, 64.0)})
    trace = Trace("t", nodes, pods_table(rows), usage_table({"web": [0.1] * 4 * DAY}))
    # One machine runs both jobs within the day, one after the other: a mean wait of three hours.
    patient = Work(offline_core_hours=72.0, wait_mean_s=3 * 3600.0)
    tried = attempts(trace, None)
    assert tried.fewest(patient, reclaim=False) == 1
    at_once = Work(offline_core_hours=72.0, wait_mean_s=0.0)
    assert tried.fewest(at_once, reclaim=False) == 2
