"""Champion against challenger: intervals, and verdicts with their reasons."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from models.grid import DAY, WINDOW
from models.policy import Policy
from shadow.bootstrap import Interval, Weights
from shadow.cells import block_of, blocks
from shadow.cohorts import Cohort
from shadow.compare import (
    Comparison,
    Rates,
    Sides,
    compare,
    decide_verdict,
    judge,
    replay_sides,
)
from shadow.figures import figures
from shadow.options import ReplayOptions
from shadow.replay import replay
from shadow.seeds import Candidate, mean_of
from shadow.utilisation import Utilisation
from tests.shadow_traces import constant, nodes_table, recent, tidal_trace

TARGET = 0.01
OK = Interval(0.008, 0.004, 0.012)
HIGH = Interval(0.030, 0.020, 0.040)
MORE = Interval(100.0, 40.0, 160.0)
SAME = Interval(2.0, -30.0, 35.0)
LESS = Interval(-80.0, -120.0, -40.0)
NONE = Interval(0.0, 0.0, 0.0)
NOT_KNOWN = Rates(None, None, None)


def verdict(
    reclaimed: Interval,
    champion: Interval | None = OK,
    challenger: Interval | None = OK,
    difference: Interval | None = NONE,
) -> tuple[str, str]:
    rates = Rates(champion, challenger, difference)
    found, reasons = decide_verdict(reclaimed, rates, NOT_KNOWN, TARGET)
    return found, " ".join(reasons)


def test_more_within_the_target_is_promoted() -> None:
    found, reasons = verdict(MORE)
    assert found == "promote"
    assert "significantly more" in reasons
    assert "+100.0" in reasons


def test_more_by_violating_more_than_tolerated_is_kept_out() -> None:
    found, reasons = verdict(MORE, challenger=HIGH, difference=Interval(0.022, 0.01, 0.03))
    assert found == "keep"
    assert "tolerated 1.50%" in reasons


def test_above_the_target_and_worse_than_the_champion_is_kept_out() -> None:
    above = Interval(0.014, 0.011, 0.017)  # its interval reaches below 1.5 %
    assert verdict(MORE, challenger=above, difference=Interval(0.006, 0.002, 0.01))[0] == "keep"
    assert verdict(MORE, challenger=above, difference=Interval(0.006, -0.002, 0.01))[0] == "promote"


def test_spending_the_accepted_violations_is_no_fault() -> None:
    # The champion never violates because it gives nothing away.
    found, _ = verdict(MORE, champion=NONE, difference=Interval(0.008, 0.004, 0.012))
    assert found == "promote"


def test_the_same_with_fewer_violations_is_promoted() -> None:
    fewer = Interval(-0.006, -0.009, -0.002)
    assert verdict(SAME, difference=fewer)[0] == "promote"
    assert verdict(LESS, difference=fewer)[0] == "keep"
    assert verdict(SAME, difference=Interval(-0.006, -0.012, 0.001))[0] == "keep"


def test_a_champion_that_violates_too_much_is_replaced() -> None:
    found, reasons = verdict(LESS, champion=HIGH, difference=Interval(-0.02, -0.03, -0.01))
    assert found == "promote"
    assert "The champion violates 3.00%" in reasons


def test_no_difference_keeps_the_champion() -> None:
    found, reasons = verdict(SAME)
    assert found == "keep"
    assert "chance" in reasons


def test_without_usage_nothing_is_promoted() -> None:
    found, reasons = verdict(MORE, champion=None, challenger=None, difference=None)
    assert found == "keep"
    assert "no usage" in reasons


@pytest.fixture(scope="module")
def honest() -> Comparison:
    """A forecast of half of each node against the highest of the last day."""
    return compare(
        tidal_trace(jobs=400),
        Candidate(constant(0.8)),
        Candidate(recent()),
        options=ReplayOptions(refresh=1800),
    )


def test_a_better_forecast_is_promoted(honest: Comparison) -> None:
    gain = honest.reclaimed_core_hours
    difference = honest.challenger.reclaimed_core_hours - honest.champion.reclaimed_core_hours
    assert gain.value == pytest.approx(difference)
    assert 0 < gain.low < gain.value < gain.high
    assert honest.champion_violation_rate == NONE


def test_a_comparison_is_json(honest: Comparison) -> None:
    decoded = msgspec.json.decode(msgspec.json.encode(honest), type=Comparison)
    assert decoded == honest
    assert honest.blocks == 8
    assert honest.block_hours == 3.0


def test_identical_sides_differ_by_nothing() -> None:
    result = replay(tidal_trace(), recent(), options=ReplayOptions(refresh=1800))
    found = judge(Sides((result,), (result,)))
    assert found.reclaimed_core_hours == NONE
    assert found.violation_rate == NONE
    assert found.verdict == "keep"


def test_reckless_forecasts_are_kept_out() -> None:
    found = compare(
        tidal_trace(jobs=400),
        Candidate(constant(0.8)),
        Candidate(constant(0.0)),
        options=ReplayOptions(refresh=1800),
    )
    assert found.reclaimed_core_hours.low > 0
    assert found.challenger_violation_rate == Interval(1.0, 1.0, 1.0)
    assert found.verdict == "keep"
    # Where online pods needed what was promised, groups share what was left.
    assert (found.challenger.throttled_core_hours or 0.0) > 0
    (offline,) = [c for c in found.cohorts if c.cohort == "offline"]
    gain = found.reclaimed_core_hours
    assert (offline.core_hours.value, offline.core_hours.low) == pytest.approx(
        (gain.value, gain.low)
    )


def test_policies_can_be_compared() -> None:
    trace = tidal_trace(jobs=400)
    strict = Candidate(constant(0.6), Policy(ceiling=0.7))
    found = compare(trace, strict, Candidate(constant(0.6)), options=ReplayOptions(refresh=1800))
    assert found.reclaimed_core_hours.low > 0
    assert found.verdict == "promote"


def test_progress_goes_from_side_to_side() -> None:
    seen: list[float] = []
    side = Candidate(constant(0.5))
    compare(tidal_trace(), side, side, options=ReplayOptions(hours=6), progress=seen.append)
    assert seen == sorted(seen)
    assert 0.5 in seen
    assert seen[-1] == 1.0


def test_days_are_the_blocks_of_long_replays() -> None:
    trace = tidal_trace(days=12, jobs=50)
    side = Candidate(constant(0.5))
    found = compare(trace, side, side, options=ReplayOptions(hours=5 * 24, refresh=3600))
    assert (found.block_hours, found.blocks) == (24.0, 5)


def test_shorter_replays_have_eight_blocks_whatever_their_length() -> None:
    result = replay(tidal_trace(), None, options=ReplayOptions(hours=1))
    for windows in range(8, 5 * DAY):  # such as 98, 8 h 10 min
        some = replace(result, stop=result.start + windows * WINDOW)
        steps = result.start + np.arange(windows) * WINDOW
        assert blocks(some) == len(np.unique(block_of(some, steps))) == 8


def test_a_target_of_nothing_is_a_target(sides: Sides) -> None:
    assert judge(sides).target == Policy().target
    assert judge(sides, target=0.0).target == 0.0


def test_the_interval_covers_what_chance_does() -> None:
    """Of samples from one distribution, about nine in ten intervals hold the true mean of 0."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        weights = Weights.draw(rng, 1, 20, 8)
        sides = rng.normal(size=(2, 1, 20, 8))
        found = weights.difference_of_sums(sides[0], sides[1])
        covered += found.low <= 0 <= found.high
    # Resampling both ways is conservative; 60 x 0.9 = 54, and 46 is 3.4 deviations below.
    assert covered >= 46


def test_sides_of_different_models_keep_their_names() -> None:
    champion = Candidate(replace(constant(0.5), version="3"))
    found = compare(tidal_trace(), champion, Candidate(None), options=ReplayOptions(hours=3))
    assert (found.champion.model_version, found.challenger.model_version) == ("3", "requests")


def test_a_challenger_that_runs_nodes_out_of_cpu_is_kept_out() -> None:
    over, more = Interval(0.03, 0.02, 0.04), Interval(0.03, 0.01, 0.04)
    violations = Rates(OK, OK, NONE)
    found, reasons = decide_verdict(MORE, violations, Rates(NONE, over, more), TARGET)
    assert found == "keep"
    assert "3.00% (2.00% to 4.00%) of the node windows" in " ".join(reasons)
    as_much = Interval(0.001, -0.01, 0.01)
    overload = Rates(OK, over, as_much)
    assert decide_verdict(MORE, violations, overload, TARGET)[0] == "promote"


# Several seeds, and groups of pods and nodes


@pytest.fixture(scope="module")
def sides() -> Sides:
    return replay_sides(
        tidal_trace(jobs=0),
        Candidate(constant(0.6), Policy(ceiling=0.7)),
        Candidate(constant(0.6)),
        options=ReplayOptions(refresh=3600, hours=12, seed=4),
        seeds=3,
    )


def test_figures_are_means_over_the_seeds(sides: Sides) -> None:
    found = judge(sides)
    each = [figures(result) for result in sides.challenger]
    reclaimed = [f.reclaimed_core_hours for f in each]
    assert len(set(reclaimed)) == 3  # three streams of jobs
    assert found.challenger.reclaimed_core_hours == pytest.approx(np.mean(reclaimed))
    assert found.challenger.offline_pods == round(np.mean([f.offline_pods for f in each]))
    assert found.challenger.violation_rate_by_horizon.keys() == {"1", "3", "6", "12", "24"}
    assert [s.seed for s in found.seeds] == [4, 5, 6]
    differences = [s.reclaimed_core_hours for s in found.seeds]
    assert found.reclaimed_core_hours.value == pytest.approx(np.mean(differences))
    assert found.challenger.trace == "tidal"


def test_both_sides_meet_the_same_pods_under_each_seed(sides: Sides) -> None:
    for ours, theirs in zip(sides.champion, sides.challenger, strict=True):
        assert ours.pods is theirs.pods
        assert ours.options == theirs.options
    assert sides.champion[0].pods.names != sides.champion[1].pods.names or (
        sides.champion[0].pods.millicpu.tolist() != sides.champion[1].pods.millicpu.tolist()
    )


def test_cohorts_add_up_to_the_whole(sides: Sides) -> None:
    found = judge(sides)
    by: dict[str, list[Cohort]] = {}
    for cohort in found.cohorts:
        by.setdefault(cohort.by, []).append(cohort)
    assert set(by) == {"tier", "pod size", "horizon"}  # all nodes are of one size
    (offline,) = [c for c in by["tier"] if c.cohort == "offline"]
    assert offline.core_hours == found.reclaimed_core_hours
    assert offline.pods == found.champion.offline_pods
    for name in ("pod size", "horizon"):
        total = sum(c.core_hours.value for c in by[name])
        assert total == pytest.approx(found.reclaimed_core_hours.value)
        champion = sum(c.champion_core_hours for c in by[name])
        assert champion == pytest.approx(found.champion.reclaimed_core_hours)
    waits = offline.wait_mean_s
    assert waits is not None
    # Weighed by pods: each seed has its own number of them.
    ours = np.concatenate([r.waited[r.pods.offline] for r in sides.champion])
    theirs = np.concatenate([r.waited[r.pods.offline] for r in sides.challenger])
    assert waits.value == pytest.approx((theirs - ours).mean())
    (online,) = [c for c in by["tier"] if c.cohort == "online"]
    assert online.core_hours == NONE
    assert online.pods == 12


def test_horizons_have_their_own_violation_rates() -> None:
    found = compare(
        tidal_trace(jobs=200),
        Candidate(constant(0.8)),
        Candidate(recent()),
        options=ReplayOptions(refresh=3600),
    )
    for cohort in found.cohorts:
        if cohort.by != "horizon":
            assert cohort.violation_rate is None
            continue
        hours = cohort.cohort.removesuffix(" h")
        rates = [
            side.violation_rate_by_horizon[hours] for side in (found.challenger, found.champion)
        ]
        assert cohort.violation_rate is not None
        assert None not in rates
        assert cohort.violation_rate.value == pytest.approx((rates[0] or 0) - (rates[1] or 0))


def test_nodes_of_different_sizes_are_told_apart() -> None:
    trace = tidal_trace(jobs=300)
    sizes = {"node-0": (8.0, 32.0), "node-1": (8.0, 32.0), "node-2": (16.0, 32.0)}
    mixed = replace(trace, nodes=nodes_table({**sizes, "node-3": (32.0, 64.0)}))
    found = compare(
        mixed, Candidate(None), Candidate(recent()), options=ReplayOptions(refresh=3600, hours=12)
    )
    nodes = [c for c in found.cohorts if c.by == "node size"]
    assert [c.cohort for c in nodes] == ["8 cores", "16 cores", "32 cores"]
    total = sum(c.core_hours.value for c in nodes)
    assert total == pytest.approx(found.reclaimed_core_hours.value)
    assert all(c.wait_mean_s is None and c.pods == 0 for c in nodes)


def test_means_over_seeds_by_hand() -> None:
    first = Utilisation(mean=0.2, deviation=0.1, p95=0.4, share_20_40=0.5, tenths=(1.0,) * 10)
    second = Utilisation(mean=0.4, deviation=0.1, p95=0.6, share_20_40=0.0, tenths=(0.0,) * 10)
    found = mean_of([first, second])
    assert found.mean == pytest.approx(0.3)
    assert found.tenths == (0.5,) * 10
    assert mean_of([first]) is first
