"""Search on the search days, judge on the days after them, register what was found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from archimedes.tune.arena import Arena, build_arena
from models.artifact import save_model
from models.errors import SettingsError, TraceError
from models.grid import WINDOW
from models.model import Model
from models.policy import Policy
from models.registry import Registry
from models.terminal import Step
from models.trace import Trace, digest, known_at, usage_grid
from models.trace_validation import LONGEST_DAYS
from models.versions import FORECASTER_TAG, REVISION_TAG, TARGET_TAG, TRACE_TAG, DataSource
from shadow.compare import Comparison, Sides, judge, replay_sides
from shadow.options import ReplayOptions
from shadow.parallel import workers
from shadow.scenario import LEARN
from shadow.seeds import Candidate
from trainer.search_space import Dimension
from trainer.train import git_revision
from trainer.tune import Attempt, Budget, Search, search_policy, study_of

VERDICT_TAG = "archimedes.tuned_verdict"
"""Tag of a version whose policy was searched: whether it won on later days."""

MOST_DAYS = 7.0
"""Of search and of judging, by default: a week holds every weekday once; more takes longer."""

LEAST_HOURS = 6
"""Of either: shorter, hardly any forecast can be judged."""

DAY = 86_400


class Days(msgspec.Struct, frozen=True, kw_only=True):
    """[start, stop) in seconds since the epoch."""

    start: int
    stop: int

    @property
    def hours(self) -> float:
        """How long they are."""
        return (self.stop - self.start) / 3600


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """What `trainer tune --json` prints.

    Fields:
        searched, judged: the search days, and the later ones that the search never saw.
        model_saw_judged_days: the model itself was trained on usage of the judged days; None where
            that is not known (`models.model.Training.saw`).
        base, best: the given policy and the winner, as measured on the search days; best is None
            where no policy keeps to the budget.
        changed: field -> (given, found).
        comparison: base (champion) and best (challenger) on the judged days; None where they are
            equal, or there is no best.
        wins: whether the challenger is to be promoted by what the judged days say.
        registered: the version, None where it was not registered.
    """

    trace: str
    model_version: str
    searched: Days
    judged: Days
    model_saw_judged_days: bool | None
    budget: Budget
    trials: int
    seeds: int
    base: Attempt
    best: Attempt | None
    changed: dict[str, tuple[float, float]]
    comparison: Comparison | None
    wins: bool
    registered: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What to tune on what.

    space, trials: see `trainer.tune.Search`. violation_budget, overload_budget: None for what the
    policy's target accepts, or what the given policy causes on the search days where that is
    more. jobs, dask: see `shadow.parallel.workers`. seeds: streams of offline pods, in the
    search and in judging. options: of every replay but for start and hours.
    """

    trace: Trace
    model: Model
    base: Policy
    space: tuple[Dimension, ...]
    violation_budget: float | None
    overload_budget: float | None
    trials: int
    seeds: int
    jobs: int
    dask: str | None
    options: ReplayOptions
    searched: Days
    judged: Days
    study: Path | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result, every attempt in its order, and the judged days' replays."""

    tuned: Tuned
    attempts: tuple[Attempt, ...]
    sides: Sides | None


def split_days(
    trace: Trace, search_days: float | None, judge_days: float | None
) -> tuple[Days, Days]:
    """The search days, after as much history as a replay takes, and the days after them.

    By default each gets half of what the usage covers, at most `MOST_DAYS`.

    Raises:
        TraceError: the usage does not cover them.
        SettingsError: they are no number of days.
    """
    for option, days in (("--search-days", search_days), ("--judge-days", judge_days)):
        if days is not None and not 0 < days <= LONGEST_DAYS:
            raise SettingsError(f"{option} {days:g}: must be above 0 and at most {LONGEST_DAYS:,}")
    grid = usage_grid(trace)
    first = grid.start + min(LEARN, (grid.end - grid.start) // 2)
    first -= first % WINDOW
    half = (grid.end - first) / 2 / DAY
    search, later = (min(half, MOST_DAYS) if d is None else d for d in (search_days, judge_days))
    middle, stop = (first + int(d * DAY) // WINDOW * WINDOW for d in (search, search + later))
    shortest = min(middle - first, stop - middle)
    if grid.windows == 0 or stop > grid.end or shortest < LEAST_HOURS * 3600:
        left = max((grid.end - first) / DAY, 0.0) if grid.windows else 0.0
        raise TraceError(
            f"{trace.name} has {left:.1f} days of usage after its history; a search and its "
            f"judgement need at least {LEAST_HOURS} hours each, here {search:.2f} and {later:.2f} "
            "days: give a longer trace, or fewer days with --search-days and --judge-days"
        )
    return Days(start=first, stop=middle), Days(start=middle, stop=stop)


def tune(task: Task, step: Step) -> Outcome:
    """Search, then judge the winner against the given policy on the later days.

    The search gets the trace as it was known when the search days ended, so neither pods nor
    usage of the judged days can reach it.

    Raises:
        TraceError: no pod is alive in the days.
        SettingsError: the study file is of another search.
    """
    known = known_at(task.trace, task.searched.stop)
    options = _on(task.options, task.searched)
    arena = build_arena(known, task.model, options, task.seeds)
    budget = _budget(task, arena)
    search = Search(
        base=task.base,
        space=_accepted(task),
        budget=budget,
        trials=task.trials,
        seed=task.options.seed,
        of={
            "trace": digest(known),
            "model": task.model.version,
            "seeds": task.seeds,
            "options": msgspec.json.encode(options).decode(),
        },
    )
    with (
        study_of(search, task.study) as study,
        workers(arena, Arena.measure, task.jobs, task.dask) as crew,
    ):
        found = search_policy(
            study,
            search,
            crew.call,
            crew.executor,
            jobs=crew.jobs,
            progress=lambda done: step("searching", done),
        )
    best = found.best
    sides = comparison = None
    if best is not None and best.policy != task.base:
        sides = replay_sides(
            task.trace,
            Candidate(task.model, task.base),
            Candidate(task.model, best.policy),
            options=_on(task.options, task.judged),
            seeds=task.seeds,
            jobs=task.jobs,
            dask=task.dask,
            progress=lambda done: step("judging on later days", done),
        )
        comparison = judge(sides, target=budget.violation_rate)
    tuned = Tuned(
        trace=task.trace.name,
        model_version=task.model.version,
        searched=task.searched,
        judged=task.judged,
        model_saw_judged_days=task.model.training.saw(
            digest(task.trace), task.judged.start, task.judged.stop
        ),
        budget=budget,
        trials=len(found.attempts),
        seeds=task.seeds,
        base=found.base,
        best=best,
        changed={} if best is None else _changed(task.base, best.policy),
        comparison=comparison,
        wins=comparison is not None and comparison.verdict == "promote",
    )
    return Outcome(tuned, found.attempts, sides)


def register(task: Task, outcome: Outcome, report: Path, registry: Registry) -> str:
    """Register the model with the found policy as challenger; its version.

    The run holds the study, the judgement and the page; a policy that did not win on the later days
    is on trial all the same, and its tag says so.

    Args:
        task, outcome: of `tune`, whose best policy there must be.
        report: the page.
        registry: where to.

    Raises:
        RegistryError: MLflow cannot be reached, or refuses.
    """
    tuned = outcome.tuned
    if tuned.best is None:
        raise ValueError("there is no policy to register")
    model = replace(task.model, policy=tuned.best.policy)
    with TemporaryDirectory(prefix="archimedes-") as scratch:
        folder, extras = Path(scratch) / "model", Path(scratch) / "extras"
        save_model(model, folder)
        extras.mkdir()
        (extras / "tune.json").write_bytes(msgspec.json.encode(tuned))
        (extras / "study.json").write_bytes(msgspec.json.encode(outcome.attempts))
        (extras / "tune.html").write_bytes(report.read_bytes())
        return registry.register(
            folder,
            params={
                **msgspec.to_builtins(model.policy),
                "base_model": task.model.version,
                "trials": tuned.trials,
                "seeds": tuned.seeds,
                **{f"budget_{k}": v for k, v in msgspec.to_builtins(tuned.budget).items()},
            },
            metrics=_metrics(tuned),
            tags={
                TRACE_TAG: digest(task.trace),
                TARGET_TAG: f"{model.policy.target:g}",
                FORECASTER_TAG: model.forecaster.name,
                REVISION_TAG: git_revision(),
                VERDICT_TAG: "wins" if tuned.wins else "does not win",
            },
            data=DataSource(name=task.trace.name, digest=digest(task.trace)),
            figures=extras,
            run_name="tune",
        )


def _accepted(task: Task) -> tuple[Dimension, ...]:
    """The space with targets up to the base's own, or to the given budget where that is more.

    Forecasts calibrate themselves towards the target as time goes on, so a higher one will be
    violated as often in the end, however seldom it was on a few search days.
    """
    most = max(task.base.target, task.violation_budget or 0.0)
    capped = [replace(d, high=min(d.high, most)) if d.name == "target" else d for d in task.space]
    return tuple(d for d in capped if d.low < d.high)


def _budget(task: Task, arena: Arena) -> Budget:
    """What the winner must keep to; see `Task`."""
    given = task.violation_budget, task.overload_budget
    if given[0] is not None and given[1] is not None:
        return Budget(violation_rate=given[0], overload_rate=given[1])
    base = arena.measure(task.base)
    caused = base.violation_rate, base.overload_rate
    least = [max(task.base.target, rate or 0.0) for rate in caused]
    chosen = [own if own is not None else rate for own, rate in zip(given, least, strict=True)]
    return Budget(violation_rate=chosen[0], overload_rate=chosen[1])


def _metrics(tuned: Tuned) -> dict[str, float]:
    """What MLflow shows: the winner on the search days, and on the judged ones."""
    found: dict[str, float] = {}
    if tuned.best is not None:
        for name, value in msgspec.to_builtins(tuned.best.measured).items():
            if value is not None:
                found[f"searched_{name}"] = value
    if tuned.comparison is not None:
        gain = tuned.comparison.reclaimed_core_hours
        found |= {f"judged_gain_core_hours_{k}": v for k, v in msgspec.to_builtins(gain).items()}
        for name in ("challenger_violation_rate", "challenger_overload_rate"):
            rate = getattr(tuned.comparison, name)
            if rate is not None:
                found[f"judged_{name.removeprefix('challenger_')}"] = rate.value
    return found


def _on(options: ReplayOptions, days: Days) -> ReplayOptions:
    return msgspec.structs.replace(options, start=days.start, hours=days.hours)


def _changed(base: Policy, best: Policy) -> dict[str, tuple[float, float]]:
    pairs = {name: (getattr(base, name), getattr(best, name)) for name in Policy.__struct_fields__}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
