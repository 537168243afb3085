"""Search the policy that reclaims most at a violation budget.

What a policy comes to is asked of a callable, so this module knows nothing of replays. Optuna
proposes (a tree-structured Parzen estimator that learns from constraints as well), an executor
measures, one process keeps the study. Each proposal draws from a seed of its own, so that a search
that was killed and goes on proposes what it would have proposed anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from models.errors import SettingsError
from models.lock import locked
from models.policy import Policy
from trainer.search_space import Dimension, with_values

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

STUDY = "archimedes-policy"
"""The study's name in its file."""

INDIFFERENT = 0.001
"""Share of the objective that a changed field must be worth, else it goes back to its old value:
a tenth of a percent is less than a seed changes."""

_MEASURED, _OF, _PROPOSAL = "measured", "of", "proposal"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy comes to on the search days.

    reclaimed_core_hours: to be as high as can be, a mean over the seeds. violation_rate,
    overload_rate: to be within the budget; None where there was nothing to judge.
    """

    reclaimed_core_hours: float
    violation_rate: float | None
    overload_rate: float | None


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Rates that the winner must keep to."""

    violation_rate: float
    overload_rate: float

    def excess(self, measured: Measured) -> dict[str, float]:
        """How far above the budget each rate is; 0 and below is within it."""
        return {
            name: (getattr(measured, name) or 0.0) - getattr(self, name)
            for name in self.__struct_fields__
        }


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One policy that was measured; ``number`` counts the study's trials from 0."""

    number: int
    policy: Policy
    measured: Measured
    within_budget: bool


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a search found.

    base: the policy it began with. best: the most that keeps to the budget, None where nothing
    does. attempts: all of them, in the order of their numbers.
    """

    base: Attempt
    best: Attempt | None
    attempts: tuple[Attempt, ...]


Evaluate = Callable[[Policy], Measured]
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched; everything but ``trials`` must stay the same when a study goes on.

    Fields:
        base: the policy to begin with; fields outside the space keep its values.
        space: what may change.
        budget: what must be kept.
        trials: how many policies to measure, the base included.
        seed: of the proposals.
        of: what else must be the same (data, model, days) for measurements to be comparable.
    """

    base: Policy
    space: tuple[Dimension, ...]
    budget: Budget
    trials: int
    seed: int
    of: Mapping[str, str | int | float]

    def identity(self) -> dict[str, object]:
        """What a study's measurements belong to, as JSON values."""
        of = {
            "base": self.base,
            "space": [[d.name, d.low, d.high] for d in self.space],
            "budget": self.budget,
            "seed": self.seed,
            **self.of,
        }
        found: dict[str, object] = msgspec.json.decode(msgspec.json.encode(of))
        return found


@contextmanager
def study_of(search: Search, file: Path | None) -> Iterator[Study]:
    """The study in a file, or one in memory; what a killed search left is proposed again.

    Raises:
        SettingsError: the file is of another search, in use, or no study.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Two searches would take up each other's trials.
    with nullcontext() if file is None else locked(file, kind="study file", user="search"):
        try:
            study = optuna.create_study(
                storage=None if file is None else f"sqlite:///{file.resolve()}",
                study_name=STUDY,
                direction="maximize",
                load_if_exists=True,
            )
        except (SQLAlchemyError, OSError) as e:
            said = str(e).splitlines()[0]
            raise SettingsError(f"study file {file} cannot be used: {said}") from e
        _check_same(study, search, file)
        _forget_unfinished(study)
        yield study


def search_policy(
    study: Study,
    search: Search,
    evaluate: Evaluate,
    executor: Executor,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Found:
    """Measure policies until the study has as many as wanted, then simplify the winner.

    Simplifying puts each field that makes no difference back to its base value, so that the winner
    differs only in what matters: what fits the search days by chance does not last.

    Args:
        study: of `study_of`.
        search: what is searched.
        evaluate: measures a policy; called in the executor.
        executor: where policies are measured.
        jobs: how many at a time.
        progress: called with the share that is done.
    """
    report = progress or (lambda _: None)
    pending: dict[Future[Measured], Trial] = {}
    open_numbers = [n for n in range(search.trials) if n not in _proposals(study)]
    left = len(open_numbers)
    while open_numbers or pending:
        while open_numbers and len(pending) < jobs:
            trial = _ask(study, search, open_numbers.pop(0))
            pending[executor.submit(evaluate, _propose(trial, search))] = trial
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            _tell(study, search, pending.pop(future), future.result())
            left -= 1
            report(1 - (left + len(search.space)) / (search.trials + len(search.space)))
    _simplify(study, search, lambda policy: executor.submit(evaluate, policy).result())
    report(1.0)
    return _found(study, search)


def _ask(study: Study, search: Search, number: int) -> Trial:
    """The proposal with a number: the base, the probes around it, then what the estimator draws."""
    from optuna.samplers import TPESampler

    known = [_values(search.base, search), *_probes(search)]
    if number < len(known):
        study.enqueue_trial(known[number])
    study.sampler = TPESampler(
        seed=search.seed * 100_003 + number, n_startup_trials=min(len(known), search.trials)
    )
    trial = study.ask()
    trial.set_user_attr(_PROPOSAL, number)
    return trial


def _probes(search: Search) -> list[dict[str, float]]:
    """The base with one field changed, halfway to either end of its range: what each field does.

    They teach the estimator more than as many random policies, of which hardly one keeps to the
    budget.
    """
    base = _values(search.base, search)
    return [
        {**base, d.name: d.rounded((base[d.name] + end) / 2)}
        for d in search.space
        for end in (d.high, d.low)
    ]


def _propose(trial: Trial, search: Search) -> Policy:
    values = {
        d.name: trial.suggest_int(d.name, int(d.low), int(d.high))
        if d.whole
        else trial.suggest_float(d.name, d.low, d.high)
        for d in search.space
    }
    return with_values(search.base, search.space, values)


def _tell(study: Study, search: Search, trial: Trial, measured: Measured) -> None:
    """Record a measurement: its parts, then, as one step, that the trial is complete."""
    trial.set_user_attr(_MEASURED, msgspec.to_builtins(measured))
    for name, excess in search.budget.excess(measured).items():
        trial.set_constraint(name, excess)
    study.tell(trial, measured.reclaimed_core_hours)


def _simplify(study: Study, search: Search, measure: Evaluate) -> None:
    """Put each of the winner's fields back to its base value, where that costs nothing."""
    found = _found(study, search)
    if found.best is None:
        return
    winner, enough = found.best, found.best.measured.reclaimed_core_hours * (1 - INDIFFERENT)
    for dimension in search.space:
        if getattr(winner.policy, dimension.name) == getattr(search.base, dimension.name):
            continue
        values = _values(winner.policy, search)
        values[dimension.name] = getattr(search.base, dimension.name)
        plainer = _known(study, search, values)
        if plainer is None:
            study.enqueue_trial(values)
            trial = study.ask()
            _tell(study, search, trial, measure(_propose(trial, search)))
            plainer = _known(study, search, values)
        if (
            plainer is not None
            and plainer.within_budget
            and plainer.measured.reclaimed_core_hours >= enough
        ):
            winner = plainer


def _found(study: Study, search: Search) -> Found:
    """The winner is the plainest of those that reclaim as much as the best, up to INDIFFERENT."""
    attempts = [_attempt(trial, search) for trial in _complete(study)]
    base = next(a for a in attempts if a.policy == search.base)
    kept = [a for a in attempts if a.within_budget]
    if not kept:
        return Found(base=base, best=None, attempts=tuple(attempts))
    most = max(a.measured.reclaimed_core_hours for a in kept)
    near = [a for a in kept if a.measured.reclaimed_core_hours >= most * (1 - INDIFFERENT)]
    best = min(near, key=lambda a: (_changed(a, search), -a.measured.reclaimed_core_hours))
    return Found(base=base, best=best, attempts=tuple(attempts))


def _changed(attempt: Attempt, search: Search) -> int:
    """How many fields differ from the base."""
    return sum(
        getattr(attempt.policy, d.name) != getattr(search.base, d.name) for d in search.space
    )


def _attempt(trial: FrozenTrial, search: Search) -> Attempt:
    measured = msgspec.convert(trial.user_attrs[_MEASURED], Measured)
    return Attempt(
        number=trial.number,
        policy=with_values(search.base, search.space, trial.params),
        measured=measured,
        within_budget=max(search.budget.excess(measured).values()) <= 0,
    )


def _known(study: Study, search: Search, values: Mapping[str, float]) -> Attempt | None:
    policy = with_values(search.base, search.space, values)
    attempts = (_attempt(trial, search) for trial in _complete(study))
    return next((a for a in attempts if a.policy == policy), None)


def _values(policy: Policy, search: Search) -> dict[str, float]:
    return {d.name: getattr(policy, d.name) for d in search.space}


def _complete(study: Study) -> Sequence[FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _proposals(study: Study) -> set[int]:
    """Numbers of the proposals that were measured; what only simplified has none."""
    attributes = (trial.user_attrs for trial in _complete(study))
    return {found[_PROPOSAL] for found in attributes if _PROPOSAL in found}


def _check_same(study: Study, search: Search, file: Path | None) -> None:
    identity = search.identity()
    before = study.user_attrs.get(_OF)
    if before is None:
        study.set_user_attr(_OF, identity)
        return
    differs = [name for name, value in identity.items() if before.get(name) != value]
    if differs:
        raise SettingsError(
            f"study file {file} is of another search ({', '.join(differs)} differ); name another "
            "file, or repeat the options it was begun with"
        )


def _forget_unfinished(study: Study) -> None:
    """Give up what was being measured when a search was killed: its number is proposed again."""
    from optuna.trial import TrialState

    # What was enqueued and not yet asked for can only be told of once it is asked for.
    for _ in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
