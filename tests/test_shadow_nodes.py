"""Replays on nodes that come and go, and of pods that may not run everywhere."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from models.errors import TraceError
from models.trace import Trace
from shadow.figures import figures
from shadow.machines import machines
from shadow.options import ReplayOptions
from shadow.replay import replay
from shadow.result import CONSTRAINTS, Ending, ReplayResult, State
from shadow.series import node_series, time_series
from tests.shadow_traces import ROW, nodes_table, pods_table, times, usage_table

HOUR = 3600
ALONE = ReplayOptions(candidates=0)


def trace(
    rows: list[ROW],
    *,
    cores: tuple[float, ...] = (8.0, 8.0),
    joins: dict[int, int] | None = None,
    leaves: dict[int, int] | None = None,
) -> Trace:
    """Nodes n0, n1, ... that join and leave some seconds after START; no usage."""
    nodes = nodes_table({f"n{row}": (count, 32.0) for row, count in enumerate(cores)})
    for column, moments in (("start", joins), ("end", leaves)):
        if moments is not None:
            given = [times([moments[r]])[0] if r in moments else None for r in range(len(cores))]
            nodes = nodes.with_columns(pl.Series(column, given, dtype=pl.Datetime("us", "UTC")))
    return Trace("small", nodes, pods_table(rows), None)


def online(name: str, begin: int, end: int, cores: float = 4.0, node: str | None = None) -> ROW:
    return (name, "online", cores, 1.0, begin, end, node)


def offline(name: str, begin: int, length: int, cores: float = 4.0) -> ROW:
    return (name, "offline", cores, 1.0, begin, begin + length, None)


def story(result: ReplayResult, name: str) -> list[tuple[int, int, int, Ending]]:
    """Node, begin, end (seconds after the start) and ending of each run of a pod."""
    runs = result.runs
    return [
        (
            int(runs.node[run]),
            int(runs.begin[run]) - result.start,
            int(runs.end[run]) - result.start,
            Ending(int(runs.ending[run])),
        )
        for run in np.flatnonzero(runs.pod == result.pods.names.index(name))
    ]


def state_of(result: ReplayResult, name: str) -> State:
    return State(int(result.state[result.pods.names.index(name)]))


def test_an_offline_pod_of_a_node_that_leaves_starts_again_elsewhere() -> None:
    rows = [online("web", 0, 9000, 5.0, "n1"), offline("job", 0, 3000), online("end", 8000, 9000)]
    # n1 has 8 x 0.95 - 0.1 - 5 = 2.5 to give, so the job of 4 begins on n0, and waits until the
    # web ends, as n0 has left
    result = replay(trace(rows, leaves={0: 1000}), None, options=ALONE)
    assert story(result, "job") == [(0, 0, 1000, Ending.LEFT), (1, 9000, 9001, Ending.NATURAL)]
    assert state_of(result, "job") is State.RUNNING


def test_an_online_pod_ends_with_its_node() -> None:
    rows = [online("web", 0, 6000, 4.0), online("late", 2000, 6000, 8.0)]
    result = replay(trace(rows, cores=(8.0,), leaves={0: 1000}), None)
    assert story(result, "web") == [(0, 0, 1000, Ending.LEFT)]
    assert state_of(result, "web") is State.FINISHED
    assert state_of(result, "late") is State.MISSED  # there was no node any more


def test_a_node_that_joins_takes_who_waits() -> None:
    rows = [online("web", 0, 6000, 8.0), online("more", 100, 6000, 8.0)]
    result = replay(trace(rows, joins={1: 2000}), None)
    assert story(result, "web")[0][0] == 0
    assert story(result, "more") == [(1, 2000, 6000, Ending.NATURAL)]
    assert result.waited[result.pods.names.index("more")] == 1900


def test_what_ran_on_a_node_that_left_uses_nothing_any_more() -> None:
    day = 86_400
    # Only n0 holds the web's 7 cores, and it leaves a day after the start.
    rows = [online("web", 0, 4 * day, 7.0), online("far", 0, 4 * day, 4.0, "n1")]
    left = trace(rows, cores=(8.0, 6.0), leaves={0: 3 * day})
    usage = usage_table({"web": [1.0] * 4 * 288, "far": [2.0] * 4 * 288})
    result = replay(
        Trace("used", left.nodes, left.pods, usage), None, options=ReplayOptions(hours=48)
    )
    used = node_series(result).used
    assert used is not None
    windows = 288  # a day
    assert (used[0, :windows] == 1.0).all()
    assert (used[0, windows:] == 0.0).all()
    assert (used[1] == 2.0).all()


def test_a_node_counts_in_the_figures_while_it_is_there() -> None:
    day = 86_400
    rows = [online("web", 0, 4 * day, 7.0, "n0"), online("far", 0, 4 * day, 4.0, "n1")]
    rows += [offline("job", 2 * day + 3600, 3600, 12.0)]
    left = trace(rows, cores=(8.0, 4.0), leaves={0: 3 * day})  # half of the replay
    usage = usage_table({"web": [4.0] * 4 * 288, "far": [1.0] * 4 * 288})
    used = Trace("used", left.nodes, left.pods, usage)
    result = replay(used, None, options=ReplayOptions(hours=48))
    found = figures(result)
    assert found.nodes == 2
    assert found.allocatable_core_hours == 8 * 24 + 4 * 48
    assert found.used_core_hours == 4 * 24 + 1 * 48
    before = found.utilisation_before
    assert before is not None
    # A node day at 50 % and two at 25 %, and no day at 0 %.
    assert before.mean == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert before.deviation == pytest.approx((0.125 + 0.0) / 2)
    assert before.share_20_40 == pytest.approx(2 / 3)
    assert before.tenths[0] == 0.0
    assert found.balance_before is not None
    assert found.balance_before.mean[0] == pytest.approx(0.375)
    assert found.balance_before.mean[-1] == pytest.approx(0.25)
    lines = time_series(result, node_series(result))
    assert lines["allocatable"].tolist() == [12.0] * 288 + [4.0] * 288


def test_what_a_gone_node_would_have_to_give_is_no_fragment() -> None:
    # n0 can give 7.5 cores for as long as it is there; then only n1 is left, with 0.85.
    rows = [offline("job", 100, 50, 4.0), online("end", 0, 4000, 0.1, "n1")]
    always = figures(replay(trace(rows, cores=(8.0, 1.0)), None, options=ALONE)).fragmentation
    leaves = trace(rows, cores=(8.0, 1.0), leaves={0: 1000})
    gone = figures(replay(leaves, None, options=ALONE)).fragmentation
    assert always is not None
    assert gone is not None
    assert gone > 1.5 * always


def test_machines_are_as_many_as_were_there_together() -> None:
    day = 86_400
    rows = [online("web", 0, 4 * day, 2.0)]
    nodes = trace(rows, cores=(8.0, 8.0, 8.0), joins={2: 3 * day}, leaves={1: 3 * day})
    usage = usage_table({"web": [1.0] * 4 * 288})
    used = Trace("used", nodes.nodes, nodes.pods, usage)
    assert machines(used, None, options=ReplayOptions(hours=48)).present == 2


def test_machines_have_the_cores_of_the_nodes_over_time() -> None:
    rows = [online("web", 0, 2 * HOUR, 2.0, "n0"), offline("job", 0, HOUR, 1.0)]
    # 8 cores for two hours; 8 for the first and 4 for the second: two of 7 on the average.
    half = trace(rows, cores=(8.0, 8.0, 4.0), joins={2: HOUR}, leaves={1: HOUR})
    found = machines(half, None)
    assert (found.present, found.cpu) == (2, 7.0)


def test_a_period_without_any_node_is_refused() -> None:
    rows = [online("web", 0, 2 * HOUR)]
    with pytest.raises(TraceError, match="no node is there in the replayed period"):
        replay(trace(rows, cores=(8.0,), leaves={0: -HOUR}), None)


def test_generated_jobs_are_as_many_as_the_nodes_that_are_there_can_run() -> None:
    rows = [online("web", 0, 24 * HOUR, 2.0, "n0")]
    alone = replay(trace(rows, cores=(8.0,)), None)
    beside = replay(trace(rows, cores=(8.0, 64.0), leaves={1: -HOUR}), None)
    assert alone.pods.offline.sum() > 0
    assert beside.pods.millicpu.sum() == alone.pods.millicpu.sum()


def wanting(plain: Trace, column: str, value: object, pods: list[str]) -> Trace:
    chosen = pl.when(pl.col("pod").is_in(pods)).then(pl.lit(json.dumps(value))).alias(column)
    return Trace(plain.name, plain.nodes, plain.pods.with_columns(chosen), None)


def labelled(plain: Trace, *labels: dict[str, str]) -> Trace:
    assert plain.nodes is not None
    texts = pl.Series("labels", [json.dumps(own) for own in labels])
    return Trace(plain.name, plain.nodes.with_columns(texts), plain.pods, None)


def test_a_pod_waits_for_the_node_that_it_may_use() -> None:
    rows = [online("web", 0, 1000, 8.0, "n1"), online("own", 10, 3000), online("no", 20, 3000)]
    plain = labelled(trace(rows), {}, {"disk": "fast"})
    chosen = wanting(plain, "node_selector", {"disk": "fast"}, ["own"])
    result = replay(chosen, None)
    assert story(result, "own") == [(1, 1000, 3000, Ending.NATURAL)]
    assert story(result, "no")[0][0] == 0
    assert result.refused == {CONSTRAINTS: 1}


def test_a_pod_that_no_node_would_ever_take_is_refused() -> None:
    rows = [offline("job", 0, 3000, 1.0), online("end", 0, 3000, 1.0)]
    result = replay(wanting(trace(rows), "node_selector", {"disk": "fast"}, ["job"]), None)
    assert state_of(result, "job") is State.REFUSED


def test_preemption_respects_where_a_pod_may_run() -> None:
    # Offline asks are ordinary requests here, so that they take what the online pod needs.
    rows = [offline("a", 0, 9000, 8.0), offline("b", 1, 9000, 8.0), online("web", 100, 9000)]
    plain = labelled(trace(rows), {}, {"disk": "fast"})
    chosen = wanting(plain, "node_selector", {"disk": "fast"}, ["web"])
    result = replay(chosen, None, options=ReplayOptions(reclaim=False))
    assert story(result, "web") == [(1, 100, 9000, Ending.NATURAL)]


def test_pods_that_spread_alternate_and_wake_each_other() -> None:
    # Zone b is full until 1000, so of four pods two must wait: a skew of 1 allows one in zone a.
    rows = [online("full", 0, 1000, 8.0, "n1")]
    rows += [online(f"web-{n}", 10 + n, 5000, 1.0) for n in range(4)]
    names = [row[0] for row in rows[1:]]
    result = replay(spreading(rows, "nobody"), None)
    begun = [story(result, name)[0][:2] for name in names]
    assert begun[0] == (0, 10)
    assert [begin for _, begin in begun[1:]] == [1000, 1000, 1000]
    assert sorted(node for node, _ in begun) == [0, 0, 1, 1]


def test_a_pod_is_not_kept_waiting_by_one_that_may_run_elsewhere_only() -> None:
    rows = [online("a", 0, 1000, 8.0, "n0"), online("b", 0, 2000, 8.0, "n1")]
    rows += [online("own", 10, 3000), online("any", 20, 3000)]
    plain = labelled(trace(rows), {}, {"disk": "fast"})
    result = replay(wanting(plain, "node_selector", {"disk": "fast"}, ["own"]), None)
    assert story(result, "any") == [(0, 1000, 3000, Ending.NATURAL)]
    assert story(result, "own") == [(1, 2000, 3000, Ending.NATURAL)]


def spreading(rows: list[ROW], pinned: str) -> Trace:
    """Zones a and b of one node each; all `web-` pods spread with a skew of 1.

    The pinned pod is counted with them, does not spread itself, and runs in zone b only.
    """
    names = [row[0] for row in rows if row[0].startswith("web-")]
    plain = labelled(trace(rows), {"zone": "a"}, {"zone": "b"})
    spread = {
        "maxSkew": 1,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    chosen = wanting(plain, "labels", {"app": "web"}, [*names, pinned])
    chosen = wanting(chosen, "topology_spread", [spread], names)
    return wanting(chosen, "node_selector", {"zone": "b"}, [pinned])


def test_a_pod_that_arrives_may_let_another_one_start() -> None:
    # a has web-0; b has 1 core left, so web-1 waits until the small pod makes it 1 and 1.
    rows = [online("full", 0, 5000, 7.0, "n1"), online("web-0", 1, 5000), online("web-1", 2, 5000)]
    rows.append(online("small", 700, 5000, 1.0))
    result = replay(spreading(rows, "small"), None)
    assert story(result, "small") == [(1, 700, 5000, Ending.NATURAL)]
    assert story(result, "web-1") == [(0, 700, 5000, Ending.NATURAL)]


def test_a_refused_spread_does_not_speak_for_the_next() -> None:
    # At 1000 web-1 is refused, then the small pod starts in b, so web-2 fits in a.
    rows = [online("full", 0, 5000, 7.0, "n1"), online("one", 0, 1000, 1.0, "n1")]
    rows += [online("web-0", 1, 5000), online("web-1", 2, 5000), online("small", 3, 5000, 1.0)]
    rows.append(online("web-2", 4, 5000))
    result = replay(spreading(rows, "small"), None)
    assert story(result, "small") == [(1, 1000, 5000, Ending.NATURAL)]
    assert story(result, "web-2") == [(0, 1000, 5000, Ending.NATURAL)]
    assert state_of(result, "web-1") is State.MISSED


def test_other_nodes_than_the_traces_restrict_nobody() -> None:
    rows = [online("web", 0, 3000, 1.0), online("end", 0, 3000, 1.0)]
    chosen = wanting(trace(rows, leaves={0: 100}), "node_selector", {"disk": "fast"}, ["web"])
    result = replay(chosen, None, options=ReplayOptions(nodes=3))
    assert state_of(result, "web") is State.FINISHED


def test_a_job_waits_when_every_node_has_left() -> None:
    rows = [offline("job", 0, HOUR, 1.0), online("web", 0, 2 * HOUR, 1.0)]
    result = replay(trace(rows, leaves={0: 600, 1: 1200}), None)
    # one of the two nodes leaves under the job, and then the other one
    assert story(result, "job")[-1][2] <= 1200
    assert state_of(result, "job") is State.WAITING
