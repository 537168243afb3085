"""`archimedes trainer tune`: the search in the replay, its judgement, its challenger."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import polars as pl
import pytest
from typer.testing import CliRunner

from archimedes.cli import assemble
from archimedes.tune.arena import Arena, build_arena
from archimedes.tune.report import headline
from archimedes.tune.run import DAY, Outcome, Task, Tuned, split_days, tune
from models.artifact import load_model
from models.errors import ArchimedesError, RegistryError, TraceError
from models.policy import Policy
from models.refs import resolve_model
from models.registry import Registry
from models.trace import Trace, known_at, read_trace, write_trace
from shadow.cli_options import read_policy
from shadow.compare import FULL, judge
from shadow.figures import figures, overload_windows
from shadow.options import ReplayOptions
from shadow.parallel import workers
from shadow.replay import replay, replay_scenario
from shadow.series import node_series
from tests.shadow_traces import START, recent, tidal_trace
from trainer.search_space import search_space


def busy_trace(seed: int = 0) -> Trace:
    """Six days; without jobs of its own, so that every replay gets a generated stream."""
    return tidal_trace(seed=seed, days=6, jobs=0)


def task(trace: Trace, trials: int = 6) -> Task:
    searched, judged = split_days(trace, 1.0, 1.0)
    return Task(
        trace=trace,
        model=recent(),
        base=Policy(),
        space=search_space(Policy()),
        violation_budget=None,
        overload_budget=None,
        trials=trials,
        seeds=1,
        jobs=1,
        dask=None,
        options=ReplayOptions(refresh=3600),
        searched=searched,
        judged=judged,
        study=None,
    )


def silent(_name: str, _done: float) -> None:
    return


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return tune(task(busy_trace()), silent)


def test_the_judged_days_come_after_the_searched_ones() -> None:
    # Six days: three are history, and half of the rest is for each.
    searched, judged = split_days(busy_trace(), None, None)
    assert (searched.start, searched.stop) == (START + 3 * DAY, START + int(4.5 * DAY))
    assert (judged.start, judged.stop) == (searched.stop, START + 6 * DAY)
    searched, judged = split_days(busy_trace(), 0.5, 1.0)
    assert (searched.hours, judged.hours) == (12.0, 24.0)
    assert judged.start == searched.stop


@pytest.mark.parametrize("days", [(2.5, 1.0), (0.1, 1.0)])
def test_days_that_the_trace_does_not_have_are_refused(days: tuple[float, float]) -> None:
    with pytest.raises(TraceError, match=r"tidal has 3\.0 days of usage"):
        split_days(busy_trace(), *days)


def test_the_search_never_sees_the_judged_days(outcome: Outcome) -> None:
    """Other usage and other pods after the split: the same attempts, another judgement."""
    trace, split = busy_trace(), outcome.tuned.judged.start
    assert trace.usage is not None
    later = pl.col("time").dt.epoch("s") >= split
    usage = trace.usage.with_columns(cpu=pl.when(later).then(2.4).otherwise("cpu").cast(pl.Float32))
    new = trace.pods.head(1).with_columns(
        pod=pl.lit("new"), start=pl.from_epoch(pl.lit(split + 300)).cast(pl.Datetime("us", "UTC"))
    )
    changed = replace(trace, usage=usage, pods=pl.concat([trace.pods, new]))
    other = tune(task(changed), silent)
    assert other.attempts == outcome.attempts
    assert other.tuned.best == outcome.tuned.best
    assert other.tuned.comparison != outcome.tuned.comparison


def test_the_winner_keeps_to_the_budget_and_is_judged_against_the_given_one(
    outcome: Outcome,
) -> None:
    tuned = outcome.tuned
    assert tuned.best is not None
    assert tuned.comparison is not None
    assert outcome.sides is not None
    assert (tuned.best.measured.violation_rate or 0.0) <= tuned.budget.violation_rate
    assert (tuned.best.measured.overload_rate or 0.0) <= tuned.budget.overload_rate
    assert tuned.best.measured.reclaimed_core_hours > tuned.base.measured.reclaimed_core_hours
    assert tuned.changed
    champion, challenger = outcome.sides.champion[0], outcome.sides.challenger[0]
    assert champion.start == challenger.start == tuned.judged.start
    assert champion.stop == tuned.judged.stop
    assert (champion.policy, challenger.policy) == (Policy(), tuned.best.policy)
    assert judge(outcome.sides, tuned.budget.violation_rate) == tuned.comparison
    assert tuned.wins == (tuned.comparison.verdict == "promote")


def test_by_default_the_budget_is_what_the_given_policy_may_or_does_violate() -> None:
    trace = busy_trace()
    found = tune(replace(task(trace, trials=1), base=Policy(target=0.1)), silent).tuned
    assert found.budget.violation_rate == max(0.1, found.base.measured.violation_rate or 0.0)
    strict = replace(task(trace, trials=1), violation_budget=0.0, overload_budget=0.5)
    assert tune(strict, silent).tuned.budget.overload_rate == 0.5


def test_no_target_above_what_is_accepted_is_tried() -> None:
    trace = busy_trace()
    free = replace(task(trace, trials=12), space=search_space(Policy(), ["target"]))
    targets = [attempt.policy.target for attempt in tune(free, silent).attempts]
    assert max(targets) == Policy().target
    assert len(set(targets)) > 5
    allowed = replace(free, violation_budget=0.05)
    targets = [attempt.policy.target for attempt in tune(allowed, silent).attempts]
    assert Policy().target < max(targets) <= 0.05
    strict = replace(free, violation_budget=0.005)  # the search begins with the given target
    targets = [attempt.policy.target for attempt in tune(strict, silent).attempts]
    assert max(targets) == Policy().target


def test_a_measurement_is_that_of_a_replay() -> None:
    options = ReplayOptions(refresh=3600, hours=12)
    arena = build_arena(busy_trace(), recent(), options, seeds=2)
    measured = arena.measure(Policy(ceiling=1.0))
    results = [
        replay_scenario(s, recent(), policy=Policy(ceiling=1.0), options=o)
        for s, o in zip(arena.scenarios, arena.options, strict=True)
    ]
    found = [figures(result) for result in results]
    expected = (found[0].reclaimed_core_hours + found[1].reclaimed_core_hours) / 2
    assert measured.reclaimed_core_hours == pytest.approx(expected)
    series = [node_series(result) for result in results]
    over = sum(
        int(overload_windows(r, s, FULL).sum()) for r, s in zip(results, series, strict=True)
    )
    assert measured.overload_rate == pytest.approx(over / sum((s.asked > 0).sum() for s in series))


def test_processes_measure_what_this_one_does() -> None:
    arena = build_arena(busy_trace(), None, ReplayOptions(refresh=3600, hours=6), seeds=1)
    wanted = [Policy(), Policy(ceiling=0.8)]
    with workers(arena, Arena.measure, 2) as crew:
        found = list(crew.executor.map(crew.call, wanted))
    assert crew.jobs == 2
    assert found == [arena.measure(policy) for policy in wanted]


def test_a_dask_cluster_measures_what_this_process_does() -> None:
    from distributed import LocalCluster

    wanted = [Policy(), Policy(ceiling=0.8)]
    arenas = [
        build_arena(busy_trace(), None, ReplayOptions(refresh=3600, hours=hours), seeds=1)
        for hours in (3, 6)
    ]
    local = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with local as cluster:
        address = cluster.scheduler_address
        # Two searches at once on one cluster, each with its own days.
        with (
            workers(arenas[0], Arena.measure, 1, address) as one,
            workers(arenas[1], Arena.measure, 1, address) as other,
        ):
            assert (one.jobs, other.jobs) == (2, 2)
            for crew, arena in ((one, arenas[0]), (other, arenas[1])):
                futures = [crew.executor.submit(crew.call, policy) for policy in wanted]
                found = [future.result(timeout=60) for future in futures]
                assert found == [arena.measure(policy) for policy in wanted]


def test_known_at_cuts_pods_and_usage() -> None:
    trace = tidal_trace(days=4, jobs=30)
    cut = known_at(trace, START + 2 * DAY + 40_000)
    assert cut.usage is not None
    assert cut.usage["time"].dt.epoch("s").max() == START + 2 * DAY + 39_900 - 300
    assert 12 < cut.pods.height < 42
    assert cut.pods["start"].dt.epoch("s").max() < START + 2 * DAY + 40_000  # type: ignore[operator]


def run(*arguments: str) -> str:
    """Stdout of a command that succeeds."""
    result = CliRunner().invoke(assemble(), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    write_trace(busy_trace(), folder / "tidal")
    return folder


QUICK = ("--search-days", "0.5", "--judge-days", "0.5", "--refresh-minutes", "60", "--trials", "5")


@pytest.fixture(scope="module")
def registered(folder: Path) -> Tuned:
    (folder / "strict.yaml").write_text("ceiling: 0.72\n")  # so that there is something to gain
    shown = run(
        *("trainer", "tune", "--trace", str(folder / "tidal"), "--model", "trailing-max-24h"),
        *("--policy", str(folder / "strict.yaml")),
        *(*QUICK, "--register", "--tracking-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--out", str(folder / "policy.yaml"), "--html", str(folder / "tune.html"), "--json"),
    )
    return msgspec.json.decode(shown, type=Tuned)


def test_the_registered_challenger_carries_the_policy(folder: Path, registered: Tuned) -> None:
    assert registered.best is not None
    assert registered.best.policy != Policy()
    uri = f"sqlite:///{folder}/mlflow.db"
    assert Registry(uri).alias("challenger") == registered.registered == "1"
    model = resolve_model("challenger", uri)
    assert model.policy == registered.best.policy
    assert model.forecaster.name == "trailing-max-24h"
    pulled = load_model(folder / "copy" / Registry(uri).pull("1", folder / "copy"))
    assert pulled.policy == registered.best.policy
    (version,) = Registry(uri).versions()
    assert version.tags["archimedes.tuned_verdict"] in {"wins", "does not win"}
    assert version.metrics["searched_reclaimed_core_hours"] == pytest.approx(
        registered.best.measured.reclaimed_core_hours
    )
    files = {path.name for path in folder.glob("mlflow-artifacts/**/*") if path.is_file()}
    assert {"tune.json", "study.json", "tune.html", "manifest.json"} <= files


def test_a_policy_that_stays_as_it_was_is_not_registered(folder: Path) -> None:
    uri = f"sqlite:///{folder}/unchanged.db"
    arguments = ("trainer", "tune", "--trace", str(folder / "tidal"), *QUICK[:-1], "1")
    found = json.loads(run(*arguments, "--register", "--tracking-uri", uri, "--json"))
    assert found["registered"] is None
    assert found["comparison"] is None
    assert Registry(uri).versions() == []


def test_the_found_policy_can_be_replayed(folder: Path, registered: Tuned) -> None:
    """What `--out` wrote, replayed on the search days, reclaims what the search measured."""
    assert registered.best is not None
    file = folder / "policy.yaml"
    assert msgspec.yaml.decode(file.read_bytes(), type=Policy) == registered.best.policy
    write_trace(known_at(busy_trace(), registered.searched.stop), folder / "past")
    options = ReplayOptions(refresh=3600, start=registered.searched.start)
    result = replay(
        read_trace(folder / "past"),
        resolve_model("trailing-max-24h", ""),
        policy=read_policy(file),
        options=options,
    )
    measured = registered.best.measured.reclaimed_core_hours
    assert figures(result).reclaimed_core_hours == pytest.approx(measured)


def test_the_page_tells_what_was_found(folder: Path, registered: Tuned) -> None:
    page = (folder / "tune.html").read_text()
    assert "Policy search on tidal" in page
    assert page.count("<svg") >= 4
    for name in registered.changed:
        assert name in page


def test_the_table_says_whether_it_wins(folder: Path) -> None:
    shown = run("trainer", "tune", "--trace", str(folder / "tidal"), *QUICK, "--field", "ceiling")
    assert "ceiling" in shown
    assert "win" in shown or "nothing to judge" in shown


def test_a_share_of_nothing_is_not_told(registered: Tuned) -> None:
    assert registered.comparison is not None
    nothing = msgspec.structs.replace(registered.comparison.champion, reclaimed_core_hours=0.0)
    compared = msgspec.structs.replace(registered.comparison, champion=nothing)
    nothing_given = "the given one reclaims nothing"
    (line,) = (
        line
        for line in headline(msgspec.structs.replace(registered, comparison=compared))
        if line.startswith("On the later days")
    )
    assert line.endswith((f" wins: {nothing_given}", f" not win: {nothing_given}"))


def test_a_registry_that_goes_meanwhile_loses_no_result(
    folder: Path, registered: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> str:
        raise RegistryError("MLflow has gone")

    monkeypatch.setattr("archimedes.tune.run.register", gone)
    tuned = ("trainer", "tune", "--trace", str(folder / "tidal"), "--model", "trailing-max-24h")
    more = ("--policy", str(folder / "strict.yaml"), "--register", "--json")
    uri = f"sqlite:///{folder}/gone.db"
    result = CliRunner().invoke(assemble(), [*tuned, *QUICK, *more, "--tracking-uri", uri])
    assert isinstance(result.exception, RegistryError), result.output
    assert json.loads(result.stdout)["best"] == msgspec.to_builtins(registered.best)


@pytest.mark.parametrize("option", ["--out", "--html"])
def test_a_file_that_cannot_be_written_loses_no_result(folder: Path, option: str) -> None:
    file = str(folder / "tidal" / "pods.parquet" / "file")
    tuned = ("trainer", "tune", "--trace", str(folder / "tidal"), *QUICK[:-1], "1", "--json")
    result = CliRunner().invoke(assemble(), [*tuned, option, file])
    assert isinstance(result.exception, ArchimedesError), result.output
    assert file in str(result.exception)
    assert json.loads(result.stdout)["trials"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--field", "celing"), "celing"),
        (("--search-days", "30"), "--search-days"),
        (("--search-days", "nan"), "--search-days nan: must be above 0 and at most 3,660"),
        (("--search-days", "-1"), "--search-days -1: must be above 0 and at most 3,660"),
        (("--judge-days", "0"), "--judge-days 0: must be above 0 and at most 3,660"),
        (("--judge-days", "inf"), "--judge-days inf: must be above 0 and at most 3,660"),
        (("--study", "/nowhere/at/all.db"), "/nowhere/at/all.db"),
        (("--model", "nowhere"), "none.db"),
    ],
)
def test_bad_input_is_named(folder: Path, arguments: tuple[str, str], says: str) -> None:
    database = f"sqlite:///{folder}/none.db"
    result = CliRunner().invoke(
        assemble(),
        [
            *("trainer", "tune", "--trace", str(folder / "tidal")),
            *("--tracking-uri", database, *arguments),
        ],
    )
    assert isinstance(result.exception, ArchimedesError), result.output
    assert says in str(result.exception)
