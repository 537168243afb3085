"""Many replays at once give what they give one after the other."""

from __future__ import annotations

import os

import pytest

from models.errors import TraceError
from shadow.figures import Figures, figures
from shadow.options import ReplayOptions
from shadow.parallel import each
from shadow.replay import replay
from tests.shadow_traces import recent, tidal_trace


def replayed(seed: int) -> Figures:
    result = replay(tidal_trace(jobs=20), recent(), options=ReplayOptions(seed=seed, hours=6))
    return figures(result)


def threads(_: int) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS")


def odd(number: int) -> int:
    if number % 2 == 0:
        raise TraceError(f"{number} is even.")
    return number


def test_the_answers_are_those_of_one_process_in_the_given_order() -> None:
    calls = [(seed,) for seed in range(3)]
    steps: list[float] = []
    several = each(replayed, calls, jobs=2, progress=steps.append)
    assert several == each(replayed, calls, jobs=1)
    assert steps == sorted(steps)
    assert steps[-1] == 1.0


def test_each_process_computes_with_one_thread_and_ours_is_left_alone() -> None:
    before = dict(os.environ)
    for pid, count in each(threads, [(0,), (1,)], jobs=2):
        assert pid != os.getpid()
        assert count == "1"
    assert dict(os.environ) == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_is_carried_over(jobs: int) -> None:
    with pytest.raises(TraceError, match=r"^2 is even\.$"):
        each(odd, [(1,), (2,), (3,)], jobs=jobs)
    assert each(odd, [], jobs=jobs) == []
