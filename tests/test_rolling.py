"""Forecasts that keep calibrating themselves: by name, from what has resolved only."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from models.arrays import Floats
from models.awaited import Awaited
from models.calibration import (
    Calibration,
    Recalibrator,
    fit_calibration,
    needed_knob,
    score,
    sketch,
    tail_knob,
)
from models.classical import CLASSICAL
from models.errors import TraceError
from models.forecaster import Prediction
from models.grid import WEEK, WINDOW
from models.history import History, build_history
from models.policy import HORIZONS
from models.rolling import Part, Progress, RollingForecast
from models.shipped import shipped
from models.truth import STEP, begun

NOW = 10 * 86_400


def history(time: int, cores: list[float], known: int = WEEK) -> History:
    """One pod on each node that has used so many cores for ever."""
    count = len(cores)
    usage = np.repeat(np.array(cores, np.float32)[:, None], WEEK, axis=1)
    usage[:, : WEEK - known] = np.nan
    index = np.arange(count)
    return build_history(time, usage, np.full(count, 4.0), index, index, np.full(count, 8.0))


def names(count: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def rolling() -> RollingForecast:
    return RollingForecast(shipped(CLASSICAL["trailing-max-24h"]))


def test_forecasts_do_not_fall_with_the_horizon_and_cover_the_expected() -> None:
    found = rolling().refresh(history(NOW, [1.0, 2.0]), names(2), names(2, "n"))
    assert found.forecast.shape == (2, len(HORIZONS))
    assert (np.diff(found.forecast, axis=1) >= 0).all()
    assert (found.expected <= found.forecast).all()


def test_a_node_without_pods_needs_nothing_and_young_pods_count_with_their_requests() -> None:
    young = history(NOW, [1.0], known=10)
    assert rolling().refresh(young, names(1), names(1)).forecast.tolist() == [[4.0] * 5]


def test_names_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="named"):
        rolling().refresh(history(NOW, [1.0]), [], names(1))


def test_usage_above_the_forecasts_raises_the_next_ones() -> None:
    calm, surprised = rolling(), rolling()
    for number in range(60):
        time = NOW + number * STEP
        calm.refresh(history(time, [1.0]), names(1), names(1))
        # each half hour the pod uses 5 % more than ever before: the trailing maximum is too low
        surprised.refresh(history(time, [1.0 * 1.05**number]), names(1), names(1))
    later = NOW + 60 * STEP
    same = [r.refresh(history(later, [1.0]), names(1), names(1)) for r in (calm, surprised)]
    assert same[1].forecast[0, 0] > same[0].forecast[0, 0]


def test_pods_are_followed_by_name_when_their_rows_change() -> None:
    straight, shuffled = rolling(), rolling()
    for number in range(30):
        time = NOW + number * STEP
        cores = [1.0, 1.03**number]
        one = straight.refresh(history(time, cores), names(2), names(2, "n"))
        turned = history(time, cores[::-1])
        # the same pods on the same nodes, listed the other way round
        other = shuffled.refresh(turned, names(2)[::-1], names(2, "n")[::-1])
        np.testing.assert_allclose(one.forecast, other.forecast[::-1], rtol=1e-9)


def test_a_pod_that_moves_to_another_node_is_seen_alike_in_groups_and_without() -> None:
    """As a StatefulSet's does: its name stays."""
    whole, grouped = rolling(), rolling()
    pods, nodes = [*names(2), "db-0"], names(2, "n")
    for number in range(60):
        past = history(NOW + number * STEP, [1.0, 1.0, 0.5 * 1.02**number])
        where = np.array([0, 1, number // 3 % 2])  # it moves every hour and a half
        limit = np.full(2, 64.0)
        both = build_history(past.time, past.usage, past.request, past.pod, where, limit)
        expected = whole.refresh(both, pods, nodes)
        parts = []
        for node in range(2):
            here = np.flatnonzero(where == node)
            own = np.arange(len(here))
            usage, request = past.usage[here], past.request[here]
            alone = build_history(past.time, usage, request, own, own * 0, limit[:1])
            parts.append(Part(alone, [pods[at] for at in here], nodes[node : node + 1]))
        found = np.concatenate([each.forecast for each in grouped.refresh_groups(parts)])
        np.testing.assert_allclose(found, expected.forecast, rtol=1e-9)
    assert (rolling().refresh(both, pods, nodes).forecast != expected.forecast).any()


@pytest.mark.parametrize("restarted", [False, True])
def test_learning_goes_on_after_the_clock_was_ahead(*, restarted: bool) -> None:
    spared, ahead = rolling(), rolling()
    ahead.refresh(history(NOW + 30 * 86_400, [1.0]), names(1), names(1, "n"))
    if restarted:
        progress, ahead = ahead.progress(), rolling()
        ahead.resume(progress)
    for number in range(60):
        past = history(NOW + number * STEP, [1.05**number])  # more than ever before each time
        expected = spared.refresh(past, names(1), names(1, "n"))
        found = ahead.refresh(past, names(1), names(1, "n"))
        np.testing.assert_array_equal(found.forecast, expected.forecast)
    assert (rolling().refresh(past, names(1), names(1)).forecast != expected.forecast).any()


def test_another_process_goes_on_from_what_was_learned_and_awaited() -> None:
    """Two nodes, whose pods change over a day and a half, each with a bad night."""
    rng = np.random.default_rng(1)
    uninterrupted, resumed = rolling(), rolling()
    for number in range(80):
        time = NOW + number * STEP
        cores = [1.0, 2.0] + [0.5] * (number // 30)
        cores[0] += 3.0 * (25 < number < 40)
        pods = names(len(cores))
        if number % 20 == 13:  # another one takes the first one's place
            pods[0] = f"q{number}"
        past = replace(history(time, cores), node=rng.integers(2, size=len(cores)))
        expected = uninterrupted.refresh(past, pods, names(len(cores), "n"))
        if number % 7 == 0:
            saved = msgspec.msgpack.encode(resumed.progress())
            resumed = rolling()
            resumed.resume(msgspec.msgpack.decode(saved, type=Progress))
        found = resumed.refresh(past, pods, names(len(cores), "n"))
        np.testing.assert_array_equal(found.forecast, expected.forecast)
        np.testing.assert_array_equal(found.expected, expected.expected)
    anew = rolling().refresh(past, pods, names(len(cores), "n"))
    assert (anew.forecast != expected.forecast).any()
    assert msgspec.msgpack.encode(resumed.progress()) == msgspec.msgpack.encode(
        uninterrupted.progress()
    )


def test_what_was_not_observed_is_a_gap_only_after_a_first_sample() -> None:
    gap = np.nan
    usage = np.array(
        [
            [1, 1, 2, gap, 3, gap],
            [1, gap, gap, gap, gap, gap],
            [gap, gap, gap, 4, gap, gap],
            [gap, gap, gap, gap, gap, gap],
        ],
        np.float32,
    )
    # The last window was not read for anybody.
    expected = [[2, gap, 3, gap], [gap] * 4, [0, 4, gap, gap], [0, 0, 0, gap]]
    np.testing.assert_array_equal(begun(usage, 2, 6), expected)


@pytest.mark.parametrize(
    ("lost", "observed", "resolved"),
    [
        ([1], "never", 9),
        ([1], "no longer", 9),
        ([0, 1], "no longer", 0),  # an outage of the node's monitoring, but not of everybody's
        ([1], "in between", 0),
    ],
)
def test_a_pod_that_is_not_observed_hides_nobody_but_an_outage_does(
    lost: list[int], observed: str, resolved: int
) -> None:
    """Of twelve half hours, the last three have not resolved 1 h at the last one."""
    awaited = Awaited((1,))
    found = []
    for number in range(12):
        both = history(NOW + number * STEP, [1.0, 1.0, 1.0])
        usage = both.usage.copy()
        usage[lost, -6 * number - 1 if observed != "never" else 0 :] = np.nan
        usage[lost, -1] = 1.0 if observed == "in between" else np.nan
        node = np.array([0, 0, 1])
        past = build_history(both.time, usage, both.request, both.pod, node, both.limit)
        scores = [each.scores[0] for each in awaited.learn(past, names(3), names(3))]
        found += [score for score in scores if np.isfinite(score)]
        said = np.ones((3, 1))
        awaited.remember(past, Prediction(said, said, np.ones(3)))
    # Each uses a core, observed or not, of which one was forecast. What never ran uses none, and
    # counted with the 4 that it requests.
    assert found == [-4.0 if observed == "never" else 1.0] * resolved


def test_what_has_not_resolved_changes_nothing() -> None:
    one, other = rolling(), rolling()
    for time in (NOW, NOW + WINDOW):
        a = one.refresh(history(time, [1.0]), names(1), names(1))
        b = other.refresh(history(time, [1.0]), names(1), names(1))
    np.testing.assert_array_equal(a.forecast, b.forecast)


def exponential(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).exponential(1.0, count)


@pytest.mark.parametrize("target", [0.005, 0.01, 0.05, 0.1])
def test_with_many_cases_the_knob_is_the_quantile(target: float) -> None:
    scores = exponential(50_000)
    knob = tail_knob(scores, np.ones(len(scores)), 50_000.0, target, target)
    # the quantile of an exponential distribution with mean 1 is -ln(p)
    assert knob == pytest.approx(-np.log(target), rel=0.06)


def test_few_cases_are_taken_with_more_caution() -> None:
    scores = exponential(200)
    weights = np.ones(200)
    assert tail_knob(scores, weights, 1.0, 0.01, 0.01) > tail_knob(
        scores, weights, 500.0, 0.01, 0.01
    )


def test_a_sketch_keeps_the_mean() -> None:
    scores = exponential(1000)
    edges_mean = float((sketch(scores) * np.diff(np.r_[0.0, np.cumsum(shares())])).sum())
    assert edges_mean == pytest.approx(scores.mean(), rel=1e-6)


def shares() -> Floats:
    from models.calibration import SHARES

    return SHARES


def calibration(seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    times = np.repeat(np.arange(200) * STEP, 10)
    return fit_calibration(rng.normal(size=(2000, len(HORIZONS))), times)


def test_stricter_targets_need_higher_knobs() -> None:
    found = calibration()
    assert (found.knobs(0.005) > found.knobs(0.01)).all()
    assert (found.knobs(0.01) > found.knobs(0.05)).all()


def test_a_horizon_without_scores_is_refused() -> None:
    scores = np.zeros((10, len(HORIZONS)))
    scores[:, 2] = np.nan
    with pytest.raises(TraceError, match="6 h"):
        fit_calibration(scores, np.arange(10) * STEP)


def test_violations_tighten_and_calm_loosens() -> None:
    tight, loose = Recalibrator(calibration(), 0.01), Recalibrator(calibration(), 0.01)
    for number in range(300):
        made = number * STEP
        tight.knobs(made)
        loose.knobs(made)
        for horizon in range(len(HORIZONS)):
            tight.observe(made, horizon, np.full(20, 50.0))
            loose.observe(made, horizon, np.full(20, -1.0))
    later = 301 * STEP + 86_400
    assert (tight.knobs(later) > calibration().knobs(0.01)).all()
    assert (loose.knobs(later) < calibration().knobs(0.01)).all()


def test_unknown_truths_teach_nothing() -> None:
    one, other = Recalibrator(calibration(), 0.01), Recalibrator(calibration(), 0.01)
    for r in (one, other):
        r.knobs(0)
    other.observe(0, 0, np.full(5, np.nan))
    np.testing.assert_array_equal(one.knobs(86_400), other.knobs(86_400))


def test_a_forecast_that_no_knob_moves_says_nothing_of_knobs() -> None:
    location = np.array([[4.0], [2.0], [0.0], [3.0], [0.0]])
    scale = np.array([[0.001], [0.5], [0.01], [0.03], [1.0]])
    unknown = np.array([0.0, 0.0, 10.0, 0.0, 10.0])
    prediction = Prediction(location, scale, np.full(5, np.inf))
    truth = np.array([[5.0], [2.5], [10.5], [3.3], [12.0]])
    # The first machine's pods and the third's count with their requests, but for a trace.
    np.testing.assert_allclose(
        score(prediction, truth, unknown)[:, 0], [np.nan, 1.0, np.nan, 10.0, 2.0]
    )
    np.testing.assert_allclose(
        needed_knob(prediction, truth, unknown)[:, 0], [1000.0, 1.0, 50.0, 10.0, 2.0]
    )


def test_one_machine_that_exceeds_its_requests_raises_nobodys_forecast() -> None:
    """Koordinator counts pods of less than a day with their requests, which bursts may exceed."""
    found = []
    windows = STEP // WINDOW
    for burst in (1.0, 5.0):
        model = RollingForecast(shipped(CLASSICAL["koordinator"]))
        for number in range(40):
            usage = np.ones((2, WEEK), np.float32)
            usage[1] = np.where((np.arange(WEEK) + number * windows) % 24 == 0, burst, 1.0)
            usage[1, : WEEK - 30 - number * windows] = np.nan
            time, nodes = NOW + number * STEP, np.arange(2)
            past = build_history(time, usage, np.full(2, 4.0), nodes, nodes, np.full(2, 8.0))
            forecast = model.refresh(past, names(2), names(2, "n"))
        found.append(forecast.forecast[0])
    np.testing.assert_allclose(found[1], found[0])


def test_one_machine_that_wakes_up_raises_nobodys_forecast() -> None:
    rng = np.random.default_rng(0)
    calm, awake = Recalibrator(calibration(), 0.01), Recalibrator(calibration(), 0.01)
    column = HORIZONS.index(6)
    for made in range(0, 3 * 86_400, STEP):
        calm.knobs(made)
        awake.knobs(made)
        scores = np.append(rng.exponential(1.0, 99), 0.0)
        calm.observe(made, column, scores)
        scores[-1] = 500.0 if 43_200 <= made < 43_200 + 6 * 3600 else 0.0
        awake.observe(made, column, scores)
    later = 4 * 86_400
    assert calm.knobs(later)[column] > 2
    assert awake.knobs(later)[column] == pytest.approx(calm.knobs(later)[column], rel=0.1)


def test_a_frozen_prediction_keeps_its_cap() -> None:
    model = shipped(CLASSICAL["n-sigma-7d"])
    capped = RollingForecast(replace(model, version="x"))
    found = capped.refresh(history(NOW, [100.0]), names(1), names(1))
    assert np.isfinite(found.forecast).all()
