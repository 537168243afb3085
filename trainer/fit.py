"""Fit and calibrate a model on a trace, strictly in the order of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np

from models.arrays import Bools, Floats, Floats32, Ints
from models.calibration import fit_calibration, score
from models.errors import TraceError
from models.features import FEATURE_NAMES, experts, input_names, inputs, unit
from models.forecaster import Forecaster, Prediction
from models.grid import UsageGrid
from models.model import UNREGISTERED, Model, Training
from models.policy import HORIZONS, Policy
from models.quantile import HIGH, LOW, TREE_WEIGHT, HorizonModel, QuantileForecaster
from models.tree_text import trees_only
from trainer.dataset import (
    LEAST_TIMES,
    Rows,
    build_rows,
    check_requests,
    only_pods,
    training_machines,
)
from trainer.linear import fit_weights
from trainer.machines import Machines, decision_times, machine_history, peak_truth
from trainer.metrics import excess_reserve, pinball, violations

Progress = Callable[[str, float], None]
"""Called with the step's name and the share of it that is done."""

MAX_ROWS = 20_000
"""Training rows that are sampled by default. Rows of one trace resemble each other: three times as
many change no figure by more than the spread between seeds (docs/decisions.md)."""

LINEAR_ROWS = 20_000
"""Rows for the linear models at most: a weight per expert needs no more."""

LEAST_ROWS = 500
"""Rows below which the 0.99 quantile of a horizon would rest on fewer than five cases."""

LEAST_USED = 0.01
"""Share of a machine's requests that its highest usage of a week reaches unless it is idle."""

CALIBRATE = (0.8, 1.0)
"""Shares of the time axis that calibrate a model; what lies before trains it."""

LEAST_PAST = 24 * 3600
"""Seconds of a trace's start that only serve as past: without a day there is no season to learn."""

LONGEST = max(HORIZONS) * 3600
"""Seconds of the longest horizon."""

TREES: dict[str, float | int | bool | str] = {
    "objective": "quantile",
    "learning_rate": 0.1,
    "num_iterations": 80,
    "num_leaves": 8,
    "min_data_in_leaf": 200,
    "max_bin": 63,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.5,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
"""Small trees, half of the rows and features each: the pods are few, though the rows are many, and
bigger trees learn them by heart (evaluation.md; measured again in docs/decisions.md)."""


def fit_model(
    grid: UsageGrid,
    *,
    seed: int,
    policy: Policy | None = None,
    pods: Ints | None = None,
    placement: Sequence[str | None] | None = None,
    train: tuple[float, float] = (0.0, CALIBRATE[0]),
    calibrate: tuple[float, float] = CALIBRATE,
    max_rows: int = MAX_ROWS,
    threads: int = 2,
    data_digest: str = "",
    git_revision: str = "",
    progress: Progress | None = None,
) -> Model:
    """Train the learned forecaster on one share of the time axis and calibrate it on the next.

    Args:
        grid: usage of all pods.
        seed: of machines, sampling and LightGBM; the same seed and threads give the same model.
        policy: carried by the model, default `Policy()`.
        pods: rows of the grid to use, default all (a backtest gives its training pods).
        placement: node of each pod of the grid where the trace knows it.
        train, calibrate: shares of the time axis, in this order, without overlap. A backtest gives
            (0, 0.6) and (0.6, 0.75).
        max_rows: how many training rows are sampled at most.
        threads: of LightGBM.
        data_digest, git_revision: recorded in the model.
        progress: called as work is done.

    Raises:
        TraceError: the trace is too short or has too few pods, with how much is needed.
    """
    work = _Work(grid, seed, pods, placement, max_rows, progress or _silent)
    rows = work.rows(train)
    models = []
    for done in range(len(HORIZONS)):
        models.append(_fit_horizon(rows, done, seed, threads))
        work.progress("fit", (done + 1) / len(HORIZONS))
    forecaster = QuantileForecaster(tuple(models))
    parameters: dict[str, float | str] = {
        "forecaster": forecaster.name,
        "tree_weight": TREE_WEIGHT,
        **{f"lightgbm_{name}": str(value) for name, value in TREES.items() if name != "objective"},
    }
    return _calibrated(
        forecaster,
        work,
        calibrate,
        policy or Policy(),
        _Record(train[0], len(rows), parameters, _importances(models), data_digest, git_revision),
    )


def calibrate_model(
    forecaster: Forecaster,
    grid: UsageGrid,
    *,
    seed: int,
    placement: Sequence[str | None] | None = None,
    max_rows: int = MAX_ROWS,
    data_digest: str = "",
) -> Model:
    """A model of a forecaster that needs no training (any classical one), calibrated on a trace.

    Args and errors as for `fit_model`.
    """
    work = _Work(grid, seed, None, placement, max_rows, _silent)
    record = _Record(0.0, 0, {"forecaster": forecaster.name}, {}, data_digest, "")
    return _calibrated(forecaster, work, CALIBRATE, Policy(), record)


@dataclass(frozen=True, slots=True)
class _Record:
    """What a fit leaves for `Training`; first: share of the time axis at which it began."""

    first: float
    rows: int
    parameters: dict[str, float | str]
    importances: dict[str, float]
    data_digest: str
    git_revision: str


class _Work:
    """A trace's machines and what is sampled of them."""

    def __init__(
        self,
        grid: UsageGrid,
        seed: int,
        pods: Ints | None,
        placement: Sequence[str | None] | None,
        max_rows: int,
        progress: Progress,
    ) -> None:
        chosen = np.arange(len(grid.pods)) if pods is None else pods
        seen = chosen[~np.isnan(grid.cpu[chosen]).all(axis=1)]
        if len(seen) == 0:
            raise TraceError("the trace holds no usage of any online pod, nothing can be learned")
        check_requests(grid.request[seen])
        at_most = max(max_rows // LEAST_TIMES, 1)
        self.grid: UsageGrid
        self.machines: Machines
        self.grid, self.machines = only_pods(
            grid, training_machines(grid, seen, seed, placement, at_most)
        )
        self.seed = seed
        self.max_rows = max_rows
        self.progress = progress

    def rows(self, share: tuple[float, float]) -> Rows:
        """Training rows within a share of the time axis, evenly spread over it."""
        end = self.second(share[1])
        times = decision_times(self.grid, *share)
        times = times[(times >= self.second(share[0]) + LEAST_PAST) & (times < end)]
        if len(times) == 0 or times[0] + LONGEST > end:
            self._too_short("train", share, LEAST_PAST + LONGEST)
        wanted = min(max(self.max_rows // len(self.machines), 1), len(times))
        kept = np.unique(np.linspace(0, len(times) - 1, wanted).round().astype(np.int64))
        rows = build_rows(
            self.grid, self.machines, times[kept], end, lambda s: self.progress("features", s)
        )
        for hours, column in zip(HORIZONS, rows.truth.T, strict=True):
            known = int((~np.isnan(column)).sum())
            if known < LEAST_ROWS:
                raise TraceError(
                    f"the trace gives {known} peaks of {hours} h to learn from, at least "
                    f"{LEAST_ROWS} are needed; use a longer trace or one with more pods"
                )
        return rows

    def scored(
        self, forecaster: Forecaster, share: tuple[float, float]
    ) -> tuple[Ints, Prediction, Floats, Floats]:
        """Forecast at every half hour of a share of the time axis.

        Returns:
            Times [R]; the predictions, what the truth leaves to them, and scores, [R, H].
        """
        times = decision_times(self.grid, *share)
        if len(times) == 0 or times[0] + LONGEST > self.grid.end:
            self._too_short("calibrate", share, LONGEST)
        found: list[tuple[Floats, ...]] = []
        for done, time in enumerate(times.tolist()):
            history = machine_history(self.grid, self.machines, time)
            prediction = forecaster.predict(history, HORIZONS)
            truth = peak_truth(self.grid, self.machines, time, HORIZONS)
            truth[:, np.array(HORIZONS) * 3600 + time > self.second(share[1])] = np.nan
            scores = score(prediction, truth, history.unknown)
            rest = truth - history.unknown[:, None]
            found.append((prediction.location, prediction.scale, prediction.cap, rest, scores))
            self.progress("calibrate", (done + 1) / len(times))
        location, scale, cap, rest, scores = map(np.concatenate, zip(*found, strict=True))
        predictions = Prediction(location, scale, cap)
        return np.repeat(times, len(self.machines)), predictions, rest, scores

    def second(self, share: float) -> int:
        return int(self.grid.start + share * (self.grid.end - self.grid.start))

    def _too_short(self, what: str, share: tuple[float, float], seconds: int) -> None:
        part = share[1] - share[0]
        days = (self.grid.end - self.grid.start) / 86_400
        need = (seconds + 3600) / part / 86_400
        raise TraceError(
            f"the trace has {days:.1f} days of usage; to {what} on {part:.0%} of it for "
            f"{max(HORIZONS)} h ahead, at least {need:.1f} days are needed"
        )


def _fit_horizon(rows: Rows, column: int, seed: int, threads: int) -> HorizonModel:
    hours = HORIZONS[column]
    known = np.flatnonzero(~np.isnan(rows.truth[:, column]) & _busy(rows.features))
    features, peak = rows.features[known], rows.truth[known, column].astype(np.float64)
    location, spread = _fit_linear(experts(features, hours), peak, unit(features))
    scale_free, ratio = inputs(features, hours), peak / unit(features)
    low, high = (_fit_trees(scale_free, ratio, q, hours, seed, threads) for q in (LOW, HIGH))
    return HorizonModel(hours, location, spread, low, high)


def _busy(features: Floats32) -> Bools:
    """Which rows say something about ratios to the past week's highest usage, [R].

    What follows a week of idleness is any multiple of it, a million times in a machine that wakes
    up, and a few such rows would make the weights that all others are forecast with. All rows are
    left where there is no other.
    """
    requests = features[:, FEATURE_NAMES.index("requests")]
    busy: Bools = unit(features) >= LEAST_USED * requests
    return busy if busy.any() else ~busy


def _fit_linear(guesses: Floats, peak: Floats, highest: Floats) -> tuple[Floats, Floats]:
    """Weights of the LOW quantile, and of the distance from there to the HIGH one.

    Rows are divided by the machine's size, so that large ones count no more than small ones.
    """
    step = -(-len(peak) // LINEAR_ROWS)
    size = highest[::step, None]
    columns, target = guesses[::step] / size, peak[::step] / size[:, 0]
    location = fit_weights(columns, target, LOW)
    return location, fit_weights(columns, target - columns @ location, HIGH)


def _fit_trees(
    scale_free: Floats, ratio: Floats, level: float, hours: int, seed: int, threads: int
) -> lgb.Booster:
    """A quantile of the ratio; read back from its text, so that what serves is what was fitted."""
    parameters = {**TREES, "alpha": level, "seed": seed, "num_threads": threads}
    data = lgb.Dataset(scale_free, ratio, feature_name=list(input_names(hours)))
    booster = lgb.train(parameters, data)
    return lgb.Booster(model_str=trees_only(booster.model_to_string()))


def _importances(models: Sequence[HorizonModel]) -> dict[str, float]:
    """Share of each input in the gain of all trees, largest first; horizons are added up."""
    of_node = set.intersection(*(set(input_names(hours)) for hours in HORIZONS))
    total: dict[str, float] = {}
    for model in models:
        for booster in (model.low, model.high):
            gains = booster.feature_importance("gain")
            for name, gain in zip(booster.feature_name(), gains / max(gains.sum(), 1), strict=True):
                own = name if name in of_node else name.removesuffix(f"_{model.hours}h")
                total[own] = total.get(own, 0.0) + float(gain) / (2 * len(models))
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _calibrated(
    forecaster: Forecaster,
    work: _Work,
    share: tuple[float, float],
    policy: Policy,
    record: _Record,
) -> Model:
    times, predictions, truth, scores = work.scored(forecaster, share)
    calibration = fit_calibration(scores, times)
    knobs = calibration.knobs(policy.target)
    forecasts = {
        "uncalibrated": predictions.at(np.full(len(HORIZONS), forecaster.default_knob)),
        "calibrated": predictions.at(knobs),
    }
    metrics: dict[str, float] = {}
    for j, hours in enumerate(HORIZONS):
        known = np.where(np.isnan(scores[:, j]), np.nan, truth[:, j])
        for name, every in forecasts.items():
            forecast = every[:, j]
            violated = violations(forecast, known)[~np.isnan(known)]
            metrics[f"{name}_violation_rate_{hours}h"] = float(violated.mean())
            metrics[f"{name}_excess_reserve_{hours}h"] = excess_reserve(forecast, known)
            metrics[f"{name}_pinball_{hours}h"] = pinball(forecast, known, policy.target)
        metrics[f"knob_{hours}h"] = float(knobs[j])
    training = Training(
        start=work.second(record.first),
        stop=work.second(share[1]),
        seed=work.seed,
        pods=len(work.grid.pods),
        machines=len(work.machines),
        rows=record.rows,
        data_digest=record.data_digest,
        git_revision=record.git_revision,
        parameters=record.parameters,
        # Ratios to a truth that is 0 throughout are not known, and the manifest holds numbers only.
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        importances=record.importances,
    )
    return Model(UNREGISTERED, forecaster, calibration, policy, training)


def _silent(step: str, share: float) -> None:
    """Nobody watches."""
