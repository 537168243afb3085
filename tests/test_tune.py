"""The policy search on objectives whose best policy is known; the replay is not asked."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from models.errors import SettingsError
from models.policy import Policy
from trainer.search_space import LEFT_ALONE, search_space, with_values
from trainer.tune import Budget, Found, Measured, Search, search_policy, study_of

BUDGET = Budget(violation_rate=0.02, overload_rate=0.01)


def hill(policy: Policy) -> Measured:
    """Highest at ceiling 1 and slack weight 2; what is exceeded is the target, twice over."""
    height = 100 * policy.ceiling - 5 * (policy.slack_weight - 2) ** 2 + 500 * policy.target
    return Measured(
        reclaimed_core_hours=height, violation_rate=2 * policy.target, overload_rate=0.0
    )


def search_for(trials: int = 25, seed: int = 0, of: Mapping[str, str] | None = None) -> Search:
    base = Policy()
    return Search(base, search_space(base), BUDGET, trials, seed, of or {})


def run(
    search: Search,
    evaluate: Callable[[Policy], Measured] = hill,
    file: Path | None = None,
    jobs: int = 1,
) -> Found:
    with study_of(search, file) as study, ThreadPoolExecutor(jobs) as executor:
        return search_policy(study, search, evaluate, executor, jobs=jobs)


def policies(found: Found) -> list[Policy]:
    return [attempt.policy for attempt in found.attempts]


def test_the_space_is_every_numeric_field_within_its_bounds() -> None:
    names = set(Policy.__struct_fields__)
    space = search_space(Policy())
    assert {d.name for d in space} == names - set(LEFT_ALONE)
    assert {d.name for d in search_space(Policy(), sorted(names))} == names
    for dimension in search_space(Policy(), sorted(names)):
        assert dimension.low < dimension.high
        for end in (dimension.low, dimension.high):
            found = with_values(Policy(), [dimension], {dimension.name: end})
            assert getattr(found, dimension.name) == end


def test_a_bound_that_says_no_more_than_what_is_a_number_is_not_searched_up_to() -> None:
    dimensions = {d.name: (d.low, d.high) for d in search_space(Policy(), Policy.__struct_fields__)}
    assert dimensions["slack_weight"] == (0.0, 4.0)  # 4 x its default
    assert dimensions["system_reserve"] == (0.0, 1.0)  # 4 x 0.1 is less than 1
    assert dimensions["target"] == (0.005, 0.1)


def test_a_policy_outside_the_usual_range_is_where_its_search_begins() -> None:
    base = Policy(ceiling=0.51234)
    (ceiling,) = search_space(base, ["ceiling"])
    assert ceiling.low == 0.51234
    assert with_values(base, [ceiling], {"ceiling": 0.51234}) == base
    assert with_values(base, [ceiling], {"ceiling": 0.812345}).ceiling == 0.812


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(SettingsError, match="--field celing: choose among target, ceiling"):
        search_space(Policy(), ["celing"])


def test_the_best_within_the_budget_is_found() -> None:
    found = run(search_for(40))
    assert found.best is not None
    assert found.base.policy == Policy()
    assert found.base == found.attempts[0]
    best = found.best.policy
    # At most 2 % exceeded is a target of at most 1 %, though more would reclaim more.
    assert best.target <= 0.01
    assert max(a.measured.reclaimed_core_hours for a in found.attempts) > (
        found.best.measured.reclaimed_core_hours
    )
    assert found.best.measured.reclaimed_core_hours > found.base.measured.reclaimed_core_hours + 5
    assert abs(best.slack_weight - 2) < 1


def test_what_makes_no_difference_goes_back() -> None:
    found = run(search_for())
    assert found.best is not None
    assert found.best.policy.balance_weight == Policy().balance_weight
    assert found.best.policy.certainty_weight == Policy().certainty_weight


def test_nothing_within_the_budget_is_no_winner() -> None:
    search = replace(search_for(5), budget=Budget(violation_rate=0.001, overload_rate=0.01))
    found = run(search)
    assert found.best is None
    assert len(found.attempts) == 5
    assert not any(a.within_budget for a in found.attempts)


def test_overload_counts_against_the_budget() -> None:
    def hot(policy: Policy) -> Measured:
        return msgspec.structs.replace(hill(policy), overload_rate=policy.ceiling - 0.9)

    found = run(search_for(), hot)
    assert found.best is not None
    assert found.best.policy.ceiling <= 0.91
    assert not found.base.within_budget


def test_the_same_seed_proposes_the_same() -> None:
    # The first proposals only move one field each: they are the same for every seed.
    first, again, other = run(search_for(40)), run(search_for(40)), run(search_for(40, seed=1))
    assert first == again
    assert policies(first)[1:] != policies(other)[1:]


def test_several_jobs_measure_each_proposal_once(tmp_path: Path) -> None:
    found = run(search_for(12), file=tmp_path / "study.db", jobs=3)
    proposed = policies(found)[:12]
    assert len(set(map(str, proposed))) == 12
    assert found.base in found.attempts


def killed_at(file: Path, count: int) -> None:
    """A search whose process dies, as by SIGKILL, while it measures a policy."""
    measured = 0

    def mortal(policy: Policy) -> Measured:
        nonlocal measured
        measured += 1
        if measured == count:
            os._exit(9)
        return hill(policy)

    run(search_for(14), mortal, file)


@pytest.mark.parametrize("count", [1, 7])
def test_a_killed_search_goes_on_and_counts_each_trial_once(tmp_path: Path, count: int) -> None:
    file = tmp_path / "study.db"
    process = multiprocessing.get_context("spawn").Process(target=killed_at, args=(file, count))
    process.start()
    process.join()
    assert process.exitcode == 9
    calls: list[Policy] = []

    def counted(policy: Policy) -> Measured:
        calls.append(policy)
        return hill(policy)

    resumed, whole = run(search_for(14), counted, file), run(search_for(14))
    assert policies(resumed) == policies(whole)  # as if it had never been killed
    assert len(calls) == len(whole.attempts) - (count - 1)
    assert resumed.best is not None
    assert whole.best is not None
    assert resumed.best.policy == whole.best.policy
    assert run(search_for(14), counted, file) == resumed  # all is known: nothing is measured again
    assert len(calls) == len(whole.attempts) - (count - 1)


def test_a_search_goes_on_that_was_killed_between_two_lines(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    with study_of(search_for(3), file) as study:
        study.ask()  # measured when it was killed
        for target in (0.02, 0.03):  # on the way to be asked for
            study.enqueue_trial({"target": target})
    assert policies(run(search_for(3), file=file)) == policies(run(search_for(3)))


def test_more_trials_go_on_from_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    few, more = run(search_for(4), file=file), run(search_for(9), file=file)
    assert policies(more)[: len(few.attempts)] == policies(few)
    assert len(more.attempts) > len(few.attempts)


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    run(search_for(2, of={"trace": "one"}), file=file)
    with pytest.raises(SettingsError, match=r"of another search \(trace differ\)"):
        run(search_for(2, of={"trace": "two"}), file=file)


def test_a_study_in_use_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    with study_of(search_for(), file), pytest.raises(SettingsError, match="in use"):
        run(search_for(), file=file)


@pytest.mark.parametrize("where", ["text.db", "nowhere/study.db"])
def test_a_file_that_is_no_study_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "text.db").write_text("not a database, and longer than a page's first bytes")
    with pytest.raises(SettingsError, match=where):
        run(search_for(), file=tmp_path / where)


def test_progress_only_rises_and_ends_at_one() -> None:
    seen: list[float] = []
    search = search_for(6)
    with study_of(search, None) as study, ThreadPoolExecutor(1) as executor:
        search_policy(study, search, hill, executor, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) == 7
