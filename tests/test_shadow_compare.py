"""Champion against challenger: intervals, and verdicts with their reasons."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from models.policy import Policy
from shadow.bootstrap import Interval, Weights
from shadow.compare import Candidate, Comparison, Sides, compare, decide_verdict, judge
from shadow.options import ReplayOptions
from shadow.replay import replay
from tests.shadow_traces import constant, recent, tidal_trace

TARGET = 0.01
OK = Interval(0.008, 0.004, 0.012)
HIGH = Interval(0.030, 0.020, 0.040)
MORE = Interval(100.0, 40.0, 160.0)
SAME = Interval(2.0, -30.0, 35.0)
LESS = Interval(-80.0, -120.0, -40.0)
NONE = Interval(0.0, 0.0, 0.0)


def verdict(
    reclaimed: Interval,
    champion: Interval | None = OK,
    challenger: Interval | None = OK,
    difference: Interval | None = NONE,
) -> tuple[str, str]:
    found, reasons = decide_verdict(reclaimed, champion, challenger, difference, TARGET)
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
