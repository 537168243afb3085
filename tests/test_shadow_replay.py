"""The replay: nothing is lost, nothing is made up, and the future is not known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.forecaster import Prediction
from models.grid import DAY, WINDOW
from models.history import History
from models.model import Model
from models.policy import Policy
from models.shipped import shipped
from models.trace import Trace, read_trace
from shadow.figures import figures
from shadow.options import ReplayOptions
from shadow.replay import replay
from shadow.result import Ending, ReplayResult, State
from shadow.series import node_series
from tests.shadow_traces import (
    ROW,
    START,
    constant,
    nodes_table,
    pods_table,
    recent,
    tidal_trace,
    times,
    usage_table,
)

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"
HOUR, A_DAY = 3600, 86_400
NOON = 2 * A_DAY  # where replays of four days begin
OPTIONS = ReplayOptions()


def one_node(
    jobs: Sequence[ROW],
    used: float | Sequence[float] = 1.0,
    cores: float = 10.0,
    memory: float = 64.0,
    request: float = 9.0,
) -> Trace:
    """One node with one online pod for four days, and jobs."""
    web: ROW = ("web", "online", request, 8.0, 0, 4 * A_DAY, "n0")
    series = [used] * 4 * DAY if isinstance(used, float) else used
    nodes = nodes_table({"n0": (cores, memory)})
    return Trace("one", nodes, pods_table([web, *jobs]), usage_table({"web": list(series)}))


def job(name: str, cores: float, after: int, hours: float, memory: float = 1.0) -> ROW:
    """An offline pod that arrives some seconds after the replay's start."""
    begin = NOON + after
    return (name, "offline", cores, memory, begin, begin + int(hours * HOUR), None)


def runs_of(result: ReplayResult, name: str) -> list[tuple[int, int, int]]:
    """Node, begin and end (seconds after the replay's start) of each run of a pod."""
    runs = result.runs
    return [
        (int(runs.node[r]), int(runs.begin[r]) - result.start, int(runs.end[r]) - result.start)
        for r in np.flatnonzero(runs.pod == result.pods.names.index(name))
    ]


def state_of(result: ReplayResult, name: str) -> State:
    return State(int(result.state[result.pods.names.index(name)]))


@pytest.mark.parametrize(("share", "found"), [(0, False), (80, False), (100, True)])
def test_nodes_that_kube_scheduler_does_not_look_for_are_not_offered(
    share: int, *, found: bool
) -> None:
    nodes = {f"n{number:03d}": (8.0, 64.0) for number in range(150)} | {"n149": (64.0, 64.0)}
    trace = Trace("many", nodes_table(nodes), pods_table([job("a", 1.0, 100, 1)]), None)
    options = ReplayOptions(start=START + NOON, nodes_to_score=share)
    ((node, _, _),) = runs_of(replay(trace, None, options=options), "a")
    assert (node == 149) is found  # the one with the most to give is the last of them


# What a single node promises, by hand


def test_an_offline_pod_runs_for_its_duration_on_what_is_reclaimable() -> None:
    trace = one_node([job("a", 4.0, 100, 1), job("b", 4.0, 200, 1), job("c", 1.0, 300, 0.5)])
    result = replay(trace, constant(0.1), options=OPTIONS)
    # 10 x 0.95 - 0.1 - 1.0 = 8.4 cores: two pods of 4 fit, the third waits for the first to end
    assert runs_of(result, "a") == [(0, 100, 3700)]
    assert runs_of(result, "b") == [(0, 200, 3800)]
    assert runs_of(result, "c") == [(0, 3700, 5500)]
    assert result.refused == {"not_enough": 1}
    assert result.waited[result.pods.names.index("c")] == 3400
    assert result.attempts[result.pods.names.index("c")] == 2


def test_without_a_model_only_unrequested_cpu_is_given_away() -> None:
    jobs = [job("a", 0.4, 100, 1), job("b", 0.1, 200, 1)]
    result = replay(one_node(jobs), None, options=OPTIONS)
    # 10 x 0.95 - 0.1 - 9 requested = 0.4 cores
    assert runs_of(result, "a") == [(0, 100, 3700)]
    assert runs_of(result, "b") == [(0, 3700, 7300)]
    assert result.model_version == "requests"


def test_a_trace_without_usage_is_decided_by_requests_whatever_the_model() -> None:
    trace = replace(one_node([job("a", 0.4, 100, 1), job("b", 0.1, 200, 1)]), usage=None)
    result = replay(trace, constant(0.0), options=ReplayOptions(start=START + NOON))
    assert runs_of(result, "b") == [(0, 3700, 7300)]
    assert result.model_version == "requests"
    assert result.used is None
    assert result.forecasts is None


def test_a_pod_that_asks_for_more_than_an_empty_node_could_give_is_refused() -> None:
    # 10 x 0.95 - 0.1 = 9.4 cores with nothing on the node
    result = replay(one_node([job("a", 9.5, 100, 1)]), constant(0.0), options=OPTIONS)
    assert state_of(result, "a") is State.REFUSED
    assert result.refused == {"too_large": 1}
    assert result.attempts[result.pods.names.index("a")] == 1


def test_a_pod_waits_for_memory() -> None:
    jobs = [job("a", 1.0, 100, 1, memory=30.0), job("b", 1.0, 200, 1, memory=30.0)]
    result = replay(one_node(jobs), constant(0.0), options=OPTIONS)
    # 64 GiB - 8 of web - 30 of a leaves 26
    assert runs_of(result, "b") == [(0, 3700, 7300)]
    assert result.refused == {"resources": 1}


def test_a_pod_without_an_ask_runs_anywhere() -> None:
    result = replay(one_node([job("a", 0.0, 100, 1)]), constant(1.0), options=OPTIONS)
    assert runs_of(result, "a") == [(0, 100, 3700)]


@dataclass(frozen=True)
class Tonight:
    """Little for up to an hour, all of the node for longer."""

    name: str = "tonight"
    default_knob: float = 0.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        location = np.where(np.array(horizons) <= 1, 0.1, 0.9) * history.limit[:, None]
        return Prediction(location, np.full_like(location, 1e-9), history.limit)


def test_a_short_job_may_use_the_valley_and_a_long_one_may_not() -> None:
    jobs = [job("long", 2.0, 100, 3), job("short", 2.0, 200, 1)]
    result = replay(one_node(jobs), shipped(Tonight()), options=OPTIONS)
    # 3 h: 9.5 - 0.1 - 9 = 0.4 cores; 1 h: 9.5 - 0.1 - 1 = 8.4
    assert runs_of(result, "short") == [(0, 200, 3800)]
    assert state_of(result, "long") is State.WAITING


@pytest.mark.parametrize(("small", "begin"), [(90, (1396, 1096)), (50, (1096, 1396))])
def test_a_new_pod_overtakes_one_whose_backoff_is_longer(
    small: int, begin: tuple[int, int]
) -> None:
    jobs = [
        job("small", 1.0, 1000, small / HOUR),
        job("large", 6.0, 1000, 96 / HOUR),
        job("old", 5.0, 1010, 300 / HOUR),
        job("new", 5.0, 1092, 300 / HOUR),
    ]
    result = replay(one_node(jobs), shipped(Tonight()), options=OPTIONS)
    # 8.4 cores: what "small" leaves helps nobody, but kube-scheduler tries the old one, so that it
    # is in backoff until 1060 or 1100. At 1096 "large" ends.
    assert (runs_of(result, "old")[0][1], runs_of(result, "new")[0][1]) == begin


def test_a_new_online_pod_counts_at_once() -> None:
    late: ROW = ("late", "online", 0.9, 1.0, NOON + 400, 4 * A_DAY, None)
    jobs = [job("a", 8.2, 500, 1), job("b", 8.2, 1000, 1)]
    trace = one_node([late, *jobs])
    assert trace.usage is not None
    usage = pl.concat([trace.usage, usage_table({"late": [0.0] * 2 * DAY}, first=2 * DAY + 2)])
    result = replay(replace(trace, usage=usage), recent(), options=OPTIONS)
    # 9.5 - 0.1 - 1.0 = 8.4; from 400 s on late's request makes it 7.5. Its own usage is known two
    # hours later, at the first refresh after 24 windows: 8.4 again
    assert runs_of(result, "a")[0][1] == 8100
    assert state_of(result, "late") is State.RUNNING


def test_stale_usage_blocks_new_promises_and_keeps_old_ones() -> None:
    series = np.full(4 * DAY, 1.0)
    series[2 * DAY + 12 : 2 * DAY + 24] = np.nan  # from 1 h to 2 h
    jobs = [job("before", 1.0, 3600, 2), job("a", 1.0, 3600 + 1200, 1), job("b", 1.0, 7500, 1)]
    result = replay(one_node(jobs, series.tolist()), constant(0.1), options=OPTIONS)
    assert runs_of(result, "before") == [(0, 3600, 3600 + 7200)]
    # The window that begins at 2 h is complete at 7500 s: then the usage is fresh again.
    assert runs_of(result, "a") == [(0, 7500, 11_100)]
    assert runs_of(result, "b") == [(0, 7500, 11_100)]
    assert result.refused == {"stale_usage": 1}


@dataclass(frozen=True)
class Silent:
    """Has no forecast."""

    name: str = "silent"
    default_knob: float = 0.0

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        shape = (history.nodes, len(horizons))
        return Prediction(np.full(shape, np.nan), np.full(shape, 1e-9), history.limit)


def test_without_a_forecast_nothing_is_promised() -> None:
    result = replay(one_node([job("a", 0.1, 100, 1)]), shipped(Silent()), options=OPTIONS)
    assert state_of(result, "a") is State.WAITING
    assert result.refused == {"no_forecast": 1}
    assert figures(result).violation_rate is None


# Displaced pods


def surge() -> Trace:
    """Usage of one core, but of eight from 1 h to 2 h."""
    series = [1.0] * 4 * DAY
    series[2 * DAY + 12 : 2 * DAY + 24] = [8.0] * 12
    jobs = [job("old", 3.0, 100, 4), job("young", 1.0, 200, 4), job("youngest", 1.0, 300, 4)]
    return one_node(jobs, series)


def test_the_newest_offline_pods_of_a_hot_node_are_evicted_and_start_again() -> None:
    model = constant(0.1)
    result = replay(surge(), model, options=ReplayOptions(evict=True))
    # The window from 1 h is complete at 3900 s: 8 + 5 asked against 9.5, so 3.5 have to go. At the
    # same moment the forecast (1 core) promises them again, and the next tick evicts them again.
    evicted = result.runs.ending == Ending.EVICTED
    first = np.flatnonzero(evicted & (result.runs.end == result.start + 3900))
    assert {result.pods.names[result.runs.pod[r]] for r in first} == {"youngest", "young", "old"}
    assert figures(result).evictions == evicted.sum() == 3 * 12
    # After the surge each runs for its whole four hours, from its last start on.
    assert runs_of(result, "young")[-1] == (0, 7200, 7200 + 4 * HOUR)


def test_only_as_many_are_evicted_as_need_be() -> None:
    series = [1.0] * 4 * DAY
    series[2 * DAY + 12] = 5.0
    jobs = [job("old", 3.0, 100, 4), job("young", 1.0, 200, 4), job("youngest", 1.0, 300, 4)]
    result = replay(one_node(jobs, series), constant(0.1), options=ReplayOptions(evict=True))
    # 5 + 5 asked against 9.5: the youngest is enough
    assert len(runs_of(result, "youngest")) == 2
    assert len(runs_of(result, "young")) == len(runs_of(result, "old")) == 1


def test_without_the_evictor_pods_go_on_with_the_cpu_that_is_left() -> None:
    result = replay(surge(), constant(0.1), options=OPTIONS)
    found = figures(result)
    assert found.evictions == 0
    # 10 cores - 8 used leave 2 of the 5 promised, for one hour
    assert found.throttled_core_hours == pytest.approx(3.0)
    assert found.overloaded_promises == 1.0


def test_an_online_pod_displaces_offline_pods() -> None:
    late: ROW = ("late", "online", 1.0, 30.0, NOON + 1000, 4 * A_DAY, None)
    jobs = [job("a", 1.0, 100, 1, memory=30.0), job("b", 1.0, 200, 1, memory=20.0)]
    trace = one_node([late, *jobs])
    result = replay(trace, constant(0.1), options=OPTIONS)
    # 64 GiB - 8 - 30 - 20 leave 6; without b, the younger, there are 26; without both 56
    assert runs_of(result, "late") == [(0, 1000, A_DAY)]
    assert runs_of(result, "a")[0] == (0, 100, 1000)
    assert (result.runs.ending == Ending.PREEMPTED).sum() == 1
    # b stays: 56 - 30 of late leave room for its 20, and a's 30 wait
    assert runs_of(result, "b") == [(0, 200, 3800)]


def test_an_online_pod_that_fits_nowhere_waits_until_it_is_deleted() -> None:
    late: ROW = ("late", "online", 2.0, 1.0, NOON + 1000, NOON + 5000, None)
    result = replay(one_node([late]), constant(0.1), options=OPTIONS)
    assert state_of(result, "late") is State.MISSED
    assert result.waited[result.pods.names.index("late")] == 4000
    assert figures(result).online_pods_waiting == 1


# Ways of running it


def test_offline_pods_can_be_ordinary_requests() -> None:
    jobs = [job("a", 0.6, 100, 1), job("b", 0.6, 200, 1)]
    result = replay(one_node(jobs), None, options=ReplayOptions(reclaim=False))
    # 10 cores - 9 requested, and no ceiling: one of the two
    assert runs_of(result, "a") == [(0, 100, 3700)]
    assert runs_of(result, "b") == [(0, 3700, 7300)]
    assert result.refused == {"resources": 1}


def test_a_policy_replaces_the_models() -> None:
    trace = one_node([job("a", 4.0, 100, 1)])
    strict = replay(trace, constant(0.1), policy=Policy(ceiling=0.5), options=OPTIONS)
    # 10 x 0.5 - 0.1 - 1 = 3.9 cores
    assert state_of(strict, "a") is State.WAITING
    assert strict.policy == Policy(ceiling=0.5)
    model = replace(constant(0.1), policy=Policy(ceiling=0.5))
    assert state_of(replay(trace, model, options=OPTIONS), "a") is State.WAITING


def test_progress_and_latency() -> None:
    seen: list[float] = []
    ticks = iter(range(10**6))
    result = replay(
        tidal_trace(),
        recent(),
        options=OPTIONS,
        progress=seen.append,
        clock=lambda: float(next(ticks)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 2
    assert len(result.latency) == result.decisions
    assert set(result.latency) == {1.0}  # two readings of the clock each
    assert len(replay(tidal_trace(), recent(), options=OPTIONS).latency) == 0


def test_refreshes_happen_as_often_as_wanted() -> None:
    result = replay(tidal_trace(), recent(), options=ReplayOptions(refresh=1800, hours=6))
    assert result.forecasts is not None
    assert (np.diff(result.forecasts.time) == 1800).all()
    assert result.forecasts.time[0] == result.start
    assert len(result.forecasts.time) == 12
    assert result.forecasts.forecast.shape == result.forecasts.truth.shape == (12, 4, 5)


def same(ours: ReplayResult, theirs: ReplayResult) -> bool:
    """Whether two replays recorded the same, to the last bit."""
    pairs = [(getattr(ours.runs, f), getattr(theirs.runs, f)) for f in ("pod", "node", "begin")]
    pairs += [(ours.state, theirs.state), (ours.attempts, theirs.attempts)]
    pairs += [(ours.runs.end, theirs.runs.end), (ours.runs.free, theirs.runs.free)]
    return all(np.array_equal(one, other) for one, other in pairs)


def test_the_same_input_gives_the_same_result() -> None:
    trace = replace(tidal_trace(jobs=0), nodes=None)
    ours = replay(trace, recent(), options=ReplayOptions(seed=3))
    assert same(ours, replay(trace, recent(), options=ReplayOptions(seed=3)))
    assert not same(ours, replay(trace, recent(), options=ReplayOptions(seed=4)))


def test_the_window_that_begins_at_the_start_is_not_known_yet() -> None:
    """A node that is hot only in the replay's first window gets the jobs that it would get."""
    window = NOON // WINDOW
    rows: list[ROW] = [(f"web-{i}", "online", 2.0, 4.0, 0, 4 * A_DAY, f"n{i}") for i in range(2)]
    rows += [job(f"job-{i}", 0.1, 10 + i, 1) for i in range(5)]
    nodes = nodes_table({f"n{i}": (4.0, 16.0) for i in range(2)})
    taken = []
    for hot in (0.3, 3.9):
        usage = {"web-0": [0.3] * 4 * DAY, "web-1": [0.31] * 4 * DAY}
        usage["web-0"][window] = hot
        trace = Trace("hot", nodes, pods_table(rows), usage_table(usage))
        result = replay(trace, recent(), options=ReplayOptions(hours=1))
        assert result.start == START + NOON
        taken.append([runs_of(result, f"job-{i}")[0][0] for i in range(5)])
    assert taken[0] == taken[1]


def test_usage_now_is_the_last_window_before_the_start() -> None:
    """The node that was hot in it gets fewer of the jobs that arrive then."""
    window = NOON // WINDOW - 1
    rows: list[ROW] = [(f"web-{i}", "online", 2.0, 4.0, 0, 4 * A_DAY, f"n{i}") for i in range(2)]
    rows += [job(f"job-{i}", 0.1, 10 + i, 1) for i in range(5)]
    nodes = nodes_table({f"n{i}": (4.0, 16.0) for i in range(2)})
    usage = {"web-0": [0.3] * 4 * DAY, "web-1": [0.3] * 4 * DAY}
    usage["web-0"][window] = 3.9
    trace = Trace("hot", nodes, pods_table(rows), usage_table(usage))
    result = replay(trace, constant(0.5), options=ReplayOptions(hours=1))
    assert [runs_of(result, f"job-{i}")[0][0] for i in range(5)] == [1] * 5


@pytest.mark.parametrize("evict", [False, True])
def test_the_future_is_not_known(evict: bool) -> None:
    trace = tidal_trace()
    change = START + NOON + 9 * HOUR
    later = pl.col("time").dt.epoch("s") >= change
    usage = trace.usage
    assert usage is not None
    changed = usage.with_columns(
        cpu=pl.when(later).then(2.4).otherwise(pl.col("cpu")).cast(pl.Float32)
    )
    options = ReplayOptions(evict=evict)
    ours = replay(trace, recent(), options=options)
    theirs = replay(replace(trace, usage=changed), recent(), options=options)
    early = [r.runs.begin < change for r in (ours, theirs)]
    assert early[0].sum() > 12 + 5
    for field in ("pod", "node", "begin", "free"):
        ours_field, theirs_field = getattr(ours.runs, field), getattr(theirs.runs, field)
        assert np.array_equal(ours_field[early[0]], theirs_field[early[1]])
    assert not same(ours, theirs)  # the change did matter later


def test_a_forecast_of_nothing_reclaims_more_and_violates_more() -> None:
    trace = tidal_trace(jobs=300)
    nothing, careful, all_of_it = (
        figures(replay(trace, model, options=OPTIONS))
        for model in (constant(0.0), recent(), constant(1.0))
    )
    assert nothing.reclaimed_core_hours > careful.reclaimed_core_hours > 0
    assert all_of_it.reclaimed_core_hours == 0
    assert nothing.violation_rate == 1.0
    assert careful.violation_rate is not None
    assert careful.violation_rate < 0.5
    assert all_of_it.violation_rate == 0.0
    assert (nothing.overload_rate or 0) > (careful.overload_rate or 0)


# Nothing is lost and nothing is made up


@st.composite
def random_traces(draw: st.DrawFn) -> Trace:
    """Up to four nodes, six online and fifteen offline pods, usage with gaps."""
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    nodes = {
        f"n{i}": (float(rng.integers(2, 9)), float(rng.integers(4, 17)))
        for i in range(draw(st.integers(1, 4)))
    }
    span = 8 * HOUR
    rows: list[ROW] = []
    usage = {}
    for index in range(draw(st.integers(1, 6))):
        born = int(rng.integers(0, 6 * HOUR)) if rng.random() < 0.4 else 0
        gone = int(rng.integers(born + 600, span)) if rng.random() < 0.4 else span
        if index == 0:  # so that some pod is always alive
            born, gone = 0, span
        where = str(rng.choice(list(nodes))) if rng.random() < 0.5 else None
        cores = float(rng.choice([0.0, 0.5, 1.0, 2.5]))
        rows.append((f"web-{index}", "online", cores, float(rng.integers(0, 4)), born, gone, where))
        series = rng.uniform(0, 3, span // WINDOW)
        series[rng.random(len(series)) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
        usage[f"web-{index}"] = series
    usage["web-0"][0] = 1.0
    for index in range(draw(st.integers(0, 15))):
        begin = int(rng.integers(4 * HOUR, span))
        end = begin + int(rng.integers(1, 3 * HOUR))
        ask = float(rng.choice([0.0, 0.1, 1.0, 2.0, 30.0]))
        rows.append((f"job-{index}", "offline", ask, float(rng.integers(0, 6)), begin, end, None))
    table, pods = nodes_table(nodes), pods_table(rows)
    if draw(st.booleans()):
        table, pods = restless(rng, table, pods)
    return Trace("random", table, pods, usage_table(usage))


def restless(
    rng: np.random.Generator, nodes: pl.DataFrame, pods: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Nodes that join and leave, but for those that the trace names; pods that are choosy."""
    named = set(pods["node"].drop_nulls())
    lives = [
        (None, None)
        if node in named
        else (int(rng.integers(0, 7 * HOUR)), int(rng.integers(7 * HOUR, 8 * HOUR)))
        for node in nodes["node"]
    ]
    moments = [
        [None if t is None else times([t])[0] for t in life] for life in zip(*lives, strict=True)
    ]
    moment = pl.Datetime("us", "UTC")
    gpu = [{"key": "gpu", "effect": str(rng.choice(["NoSchedule", "PreferNoSchedule"]))}]
    spread = {"maxSkew": 1, "topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}
    hard = json.dumps([spread | {"whenUnsatisfiable": "DoNotSchedule"}])
    return nodes.with_columns(
        pl.Series("start", moments[0], dtype=moment),
        pl.Series("end", moments[1], dtype=moment),
        pl.Series(
            "labels", [json.dumps({"zone": str(z)}) for z in rng.integers(2, size=len(lives))]
        ),
        pl.Series("taints", [json.dumps(gpu if rng.random() < 0.3 else []) for _ in lives]),
    ), pods.with_columns(
        labels=pl.lit('{"app": "x"}'),
        topology_spread=pl.Series([hard if rng.random() < 0.3 else None for _ in pods["pod"]]),
    )


models = st.sampled_from(["none", "nothing", "recent"])


def model_named(name: str) -> Model | None:
    return {"none": None, "nothing": constant(0.0), "recent": recent()}[name]


@settings(max_examples=120, deadline=None)
@given(trace=random_traces(), name=models, evict=st.booleans(), reclaim=st.booleans())
def test_every_pod_is_accounted_for_and_nothing_is_made_up(
    trace: Trace, name: str, evict: bool, reclaim: bool
) -> None:
    # Half of the eight hours are history. Without own offline pods, generated ones come.
    options = ReplayOptions(evict=evict, reclaim=reclaim, offline_load=0.3)
    result = replay(trace, model_named(name), options=options)
    check_states(result)
    check_resources(result)
    series = node_series(result)
    assert series.used is not None
    allocatable = (result.fleet.millicpu / 1000)[:, None]
    assert (series.run >= 0).all()
    assert (series.run <= series.asked + 1e-9).all()
    assert (series.run <= np.maximum(allocatable - series.used, 0) + 1e-6).all()
    found = figures(result)
    placed_or_not = found.offline_pods_placed + found.offline_pods_refused
    assert placed_or_not <= found.offline_pods
    assert found.offline_pods == int(result.pods.offline.sum())


def check_states(result: ReplayResult) -> None:
    """Each pod's runs are disjoint, and agree with its state."""
    runs, pods = result.runs, result.pods
    for pod in range(len(pods)):
        mine = np.flatnonzero(runs.pod == pod)
        begin, end = runs.begin[mine], runs.end[mine]
        assert (begin >= pods.arrival[pod]).all()
        assert (begin <= end).all()
        assert (end[:-1] <= begin[1:]).all()
        assert (runs.ending[mine][:-1] != Ending.NATURAL).all()
        state = State(int(result.state[pod]))
        if not pods.offline[pod] and len(mine) and runs.ending[mine][-1] == Ending.LEFT:
            assert state is State.FINISHED  # an online pod ends with its node
            continue
        over = len(mine) == 0 or runs.ending[mine][-1] != Ending.NATURAL
        assert over == (state in {State.WAITING, State.REFUSED, State.MISSED})
        if state is State.FINISHED:
            due = begin[-1] + pods.duration[pod] if pods.offline[pod] else pods.gone[pod]
            assert end[-1] == due
            assert end[-1] < result.stop
        if state is State.RUNNING:
            assert end[-1] == result.stop


def check_resources(result: ReplayResult) -> None:
    """Whatever was decided fits, counted again from the runs alone."""
    runs, pods, fleet = result.runs, result.pods, result.fleet
    managed = pods.offline & result.options.reclaim
    for at in range(len(runs.pod)):
        pod, node, begin = runs.pod[at], runs.node[at], runs.begin[at]
        if pods.node[pod] >= 0:
            continue  # the trace itself put it there
        if fleet.joined is not None and fleet.left is not None:
            assert fleet.joined[node] <= begin < fleet.left[node]
            assert runs.end[at] <= max(fleet.left[node], result.start)
        # Runs are in the order of their begin, so those before this one were there already.
        there = np.flatnonzero((runs.node[:at] == node) & (runs.end[:at] > begin))
        others = runs.pod[there]
        if pods.memory[pod]:
            assert pods.memory[others].sum() + pods.memory[pod] <= fleet.memory[node]
        if managed[pod]:
            promised = pods.millicpu[others[managed[others]]].sum()
            ask = pods.millicpu[pod]
            if ask:
                assert promised + ask <= runs.free[at]
                assert promised + ask <= fleet.millicpu[node]
            if result.model_version == "requests":
                requested = pods.millicpu[others[~managed[others]]].sum()
                # 1 millicore for rounding down
                free = max(fleet.millicpu[node] * 0.95 - 100 - requested, 0)
                assert abs(runs.free[at] - free) <= 1
        elif pods.millicpu[pod]:
            ordinary = pods.millicpu[others[~managed[others]]].sum()
            assert ordinary + pods.millicpu[pod] <= fleet.millicpu[node]


def test_openb_finds_a_node_for_every_pod() -> None:
    if not (TRACES / "openb").exists():
        pytest.skip("the openb trace is not on this machine")
    result = replay(read_trace(TRACES / "openb"), None)
    assert result.decisions == 8152
    assert (result.state == State.FINISHED).all()
    # 16,450 core-hours, added up from the trace itself
    offline = result.pods.offline
    asked = (result.pods.millicpu * result.pods.duration)[offline].sum() / 1000 / HOUR
    assert figures(result).reclaimed_core_hours == pytest.approx(asked)
