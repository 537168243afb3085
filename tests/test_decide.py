"""Filter and prioritize over arrays, against a slow version that looks at one node at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extender.decide import Ask, decide, explain, room, scores, to_wire_scores
from extender.node_index import NodeIndex
from extender.snapshot import Reason, Snapshot
from models.arrays import Ints
from models.policy import HORIZONS, Policy

POLICY = Policy(slack_weight=1.0, certainty_weight=0.5, balance_weight=2.0, peak_hour_weight=0.0)
H = len(HORIZONS)


def snapshot(
    free: list[int],
    *,
    cores: float = 8.0,
    promised: list[int] | None = None,
    blocked: dict[int, Reason] | None = None,
    forecast: list[float] | None = None,
    expected: list[float] | None = None,
) -> Snapshot:
    """Nodes n0, n1 ... of so many cores with so many free millicores at every horizon."""
    count = len(free)
    peaks = np.array(forecast if forecast is not None else [2.0] * count)
    means = np.array(expected if expected is not None else [1.0] * count)
    reasons = np.full(count, Reason.FITS, np.int64)
    for row, reason in (blocked or {}).items():
        reasons[row] = reason
    return Snapshot(
        id=1,
        time=0.0,
        index=NodeIndex((f"n{row}", row) for row in range(count)),
        allocatable=np.full(count, cores),
        forecast=np.repeat(peaks[:, None], H, axis=1),
        expected=np.repeat(means[:, None], H, axis=1),
        profile=np.repeat(peaks[None, :], 24, axis=0).astype(np.float32),
        usage=np.full(count, np.nan),
        free=np.repeat(np.array(free, np.int64)[:, None], H, axis=1),
        emptied=np.full(count, int(cores * 1000), np.int64),
        promised=np.array(promised if promised is not None else [0] * count, np.int64),
        blocked=reasons,
        usage_age=np.zeros(count),
        model_version="7",
    )


def offline(millicpu: int, horizon: int = 0) -> Ask:
    """An offline pod's ask."""
    return Ask(millicpu, horizon, offline=True)


def reasons(
    of: Snapshot, ask: Ask, rows: list[int] | None = None, candidates: int = 0
) -> list[Reason]:
    """The reason for each row, all of them by default."""
    asked = np.arange(len(of.promised)) if rows is None else np.array(rows, np.int64)
    verdicts = decide(of, asked, ask, POLICY, candidates)
    return [Reason(code) for code in verdicts.reason.tolist()]


def test_a_pod_fits_to_the_last_millicore_and_not_beyond() -> None:
    # 1500 free - 500 promised = 1000
    of = snapshot([1500], promised=[500])
    assert reasons(of, offline(1000)) == [Reason.FITS]
    assert reasons(of, offline(1001)) == [Reason.NOT_ENOUGH]


def test_the_pods_own_horizon_counts() -> None:
    of = snapshot([4000])
    of.free[0] = [4000, 3000, 2000, 1000, 0]
    found = [reasons(of, offline(2000, horizon))[0] for horizon in range(H)]
    assert found == [Reason.FITS] * 3 + [Reason.NOT_ENOUGH] * 2


def test_more_than_the_emptied_node_could_give_is_a_reason_of_its_own() -> None:
    assert reasons(snapshot([0]), offline(8000)) == [Reason.NOT_ENOUGH]
    assert reasons(snapshot([0]), offline(8001)) == [Reason.TOO_LARGE]
    # Waiting for fresh data would not help such a pod either.
    stale = snapshot([0], blocked={0: Reason.STALE_USAGE})
    assert reasons(stale, offline(8001)) == [Reason.TOO_LARGE]


@pytest.mark.parametrize("reason", [Reason.STALE_USAGE, Reason.NO_FORECAST, Reason.DISCONNECTED])
def test_a_blocked_node_gets_nothing_however_free(reason: Reason) -> None:
    of = snapshot([8000, 8000], blocked={1: reason})
    assert reasons(of, offline(1)) == [Reason.FITS, reason]


def test_a_pod_that_asks_for_nothing_fits_everywhere_but_on_unknown_nodes() -> None:
    of = snapshot([0, 0], blocked={1: Reason.STALE_USAGE}, promised=[9000, 0])
    assert reasons(of, offline(0), [0, 1, -1]) == [Reason.FITS, Reason.FITS, Reason.UNKNOWN_NODE]


def test_an_unknown_node_does_not_borrow_the_figures_of_another() -> None:
    of = snapshot([0, 8000])  # row -1 of an array would be the last node
    assert reasons(of, offline(100), [-1]) == [Reason.UNKNOWN_NODE]
    verdicts = decide(of, np.array([-1]), offline(100), POLICY, 0)
    assert (verdicts.available.tolist(), verdicts.score.tolist()) == ([0], [0.0])


@pytest.mark.parametrize("ask", [offline(100), Ask(100, 0, offline=False)])
def test_no_nodes_at_all(ask: Ask) -> None:
    nothing = snapshot([])
    assert reasons(nothing, ask, []) == []
    assert scores(nothing, np.zeros(0, np.int64), ask, POLICY).tolist() == []
    expected = Reason.UNKNOWN_NODE if ask.offline else Reason.FITS
    assert room(nothing, np.array([-1]), offline(1))[0].tolist() == [Reason.UNKNOWN_NODE]
    assert reasons(nothing, ask, [-1, -1]) == [expected] * 2
    assert scores(nothing, np.array([-1]), ask, POLICY).tolist() == [0.0]


def test_online_pods_are_never_refused_only_ranked_out() -> None:
    of = snapshot([0, 0, 0], blocked={0: Reason.DISCONNECTED}, forecast=[1.0, 9.0, 3.0])
    online = Ask(10**9, 0, offline=False)
    assert reasons(of, online, [0, 1, 2, -1]) == [Reason.FITS] * 4
    small = Ask(1000, 0, offline=False)
    found = reasons(of, small, [0, 1, 2], candidates=2)
    assert found == [Reason.FITS, Reason.RANKED_OUT, Reason.FITS]


def test_narrowing_keeps_the_best_and_only_among_those_that_fit() -> None:
    of = snapshot([1000, 5000, 3000, 100])
    found = reasons(of, offline(500), candidates=2)
    assert found == [Reason.RANKED_OUT, Reason.FITS, Reason.FITS, Reason.NOT_ENOUGH]
    assert reasons(of, offline(500), candidates=3).count(Reason.FITS) == 3
    assert reasons(of, offline(500), candidates=0).count(Reason.FITS) == 3


def test_offline_score_prefers_slack_and_then_certainty() -> None:
    # 1.0 x (4000 - 1000)/8000 + 0.5 x (1 - (2 - 1)/8) = 0.375 + 0.4375
    of = snapshot([4000, 2000, 4000], expected=[1.0, 1.0, 1.8])
    found = scores(of, np.arange(3), offline(1000), POLICY)
    assert found.tolist() == pytest.approx([0.8125, 0.5625, 0.8625])


def test_online_score_is_what_the_daily_peak_leaves_free() -> None:
    # 2.0 x (1 - (3 + 1)/8) = 1.0
    of = snapshot([0], forecast=[3.0])
    found = scores(of, np.arange(1), Ask(1000, 0, offline=False), POLICY)
    assert found.tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ask", [offline(100), Ask(100, 0, offline=False)])
def test_a_broken_forecast_scores_zero_and_spoils_no_other(broken: float, ask: Ask) -> None:
    of = snapshot([4000, 4000], forecast=[broken, 2.0])
    found = scores(of, np.arange(2), ask, POLICY)
    assert found[0] == 0.0
    assert np.isfinite(found).all()
    assert found[1] > 0
    assert to_wire_scores(found, POLICY, offline=True) == [0, 10]


def test_a_node_without_cpu_scores_finitely() -> None:
    of = snapshot([0], cores=0.0)
    for ask in (offline(100), Ask(100, 0, offline=False)):
        assert np.isfinite(scores(of, np.arange(1), ask, POLICY)).all()


def test_wire_scores_use_the_whole_range_as_integers() -> None:
    def wire(*score: float, offline: bool = False, policy: Policy = POLICY) -> list[int]:
        return to_wire_scores(np.array(score), policy, offline=offline)

    assert wire(0.1, 0.4, 0.7) == [0, 5, 10]
    assert wire(-3.0, -1.0) == [0, 10]
    assert wire(0.7) == [10]
    assert wire(0.7, 0.7) == [10, 10]
    assert wire() == []
    assert all(type(score) is int for score in wire(0.1, 0.2))
    # Of online weights of 2 in total a quarter is 0.5, of offline ones of 1.5 it is 0.375.
    assert wire(0.5, 0.6, 0.99, 1.0) == [0, 2, 10, 10]
    assert wire(1.0, 0.99) == [10, 10]  # a hundredth is noise
    assert wire(1.0, 0.925, offline=True) == [10, 8]
    light = Policy(balance_weight=0.0, peak_hour_weight=0.1)
    assert wire(1.0, 0.9, policy=light) == [10, 0]
    none = Policy(balance_weight=0.0, peak_hour_weight=0.0)
    assert wire(1.0, 1.0, policy=none) == [10, 10]


def test_texts_name_the_cause_and_the_ask_and_never_a_node() -> None:
    for reason in Reason:
        text = explain(reason, offline(1500, 2), POLICY)
        assert (text == "") == (reason in (Reason.FITS, Reason.RANKED_OUT))
    assert "1500m for 6 h" in explain(Reason.NOT_ENOUGH, offline(1500, 2), POLICY)
    assert "1500m" in explain(Reason.TOO_LARGE, offline(1500, 2), POLICY)
    assert "900 s" in explain(Reason.STALE_USAGE, offline(1), POLICY)


def slow_reason(of: Snapshot, row: int, ask: Ask) -> Reason:
    """The filter's rule for one node, spelled out."""
    if row < 0:
        return Reason.UNKNOWN_NODE
    if not ask.offline or ask.millicpu == 0:
        return Reason.FITS
    if ask.millicpu > of.emptied[row]:
        return Reason.TOO_LARGE
    if of.blocked[row] != Reason.FITS:
        return Reason(int(of.blocked[row]))
    left = max(int(of.free[row, ask.horizon]) - int(of.promised[row]), 0)
    return Reason.FITS if left >= ask.millicpu else Reason.NOT_ENOUGH


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_it_equals_the_slow_rule(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    figures = st.lists(st.integers(0, 9000), min_size=count, max_size=count)
    blocked = data.draw(
        st.dictionaries(
            st.integers(0, count - 1),
            st.sampled_from([Reason.STALE_USAGE, Reason.NO_FORECAST, Reason.DISCONNECTED]),
        )
    )
    of = snapshot(data.draw(figures), promised=data.draw(figures), blocked=blocked)
    rows = data.draw(st.lists(st.integers(-1, count - 1), max_size=15))
    ask = Ask(data.draw(st.integers(0, 10_000)), data.draw(st.integers(0, H - 1)), offline=True)
    assert reasons(of, ask, rows) == [slow_reason(of, row, ask) for row in rows]
    why, available = room(of, np.array(rows, np.int64), ask)
    assert why.tolist() == [slow_reason(of, row, ask) for row in rows]
    assert (
        available.tolist()
        == decide(of, np.array(rows, np.int64), ask, POLICY, 0).available.tolist()
    )
    check_narrowing(of, np.array(rows, np.int64), ask, data.draw(st.integers(1, 5)))


def check_narrowing(of: Snapshot, rows: Ints, ask: Ask, candidates: int) -> None:
    """Narrowing changes nothing but fits to ranked out, and drops no better node than it keeps."""
    wide = decide(of, rows, ask, POLICY, 0)
    narrow = decide(of, rows, ask, POLICY, candidates)
    assert len(narrow.passed) == min(candidates, len(wide.passed))
    dropped = narrow.reason == Reason.RANKED_OUT
    assert (wide.reason[dropped] == Reason.FITS).all()
    assert (narrow.reason[~dropped] == wide.reason[~dropped]).all()
    if dropped.any():
        assert narrow.score[narrow.passed].min() >= narrow.score[dropped].max()


def test_rows_of_names() -> None:
    of = snapshot([1, 2])
    assert of.rows(["n1", "nobody", "n0", "n1"]).tolist() == [1, -1, 0, 1]
    assert of.rows([]).tolist() == []
