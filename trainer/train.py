"""From a trace to a registered version: fit, draw, log, register."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np

from models.artifact import save_model
from models.model import Model
from models.policy import Policy
from models.registry import Registry
from models.trace import Trace, digest, usage_grid
from models.versions import FORECASTER_TAG, REVISION_TAG, TARGET_TAG, TRACE_TAG, DataSource
from trainer.dataset import observed
from trainer.figures import draw
from trainer.fit import Progress, fit_model
from trainer.held_out import look_at
from trainer.machines import machines_of, placement_of


@dataclass(frozen=True, slots=True)
class Trained:
    """A model and the folder (`models.artifact`) and figures that were written of it."""

    model: Model
    folder: Path
    figures: Path


def train(
    trace: Trace,
    out: Path,
    *,
    seed: int,
    policy: Policy,
    threads: int = 2,
    progress: Progress | None = None,
) -> Trained:
    """Fit and calibrate a model on a trace, in the order of time, and write it.

    Args:
        trace: with usage.
        out: an existing folder; gets ``model/`` and ``figures/``.
        seed: of machines, sampling and LightGBM.
        policy: carried by the model.
        threads: of LightGBM.
        progress: called as work is done.

    Raises:
        TraceError: the trace is too short or has too few pods.
    """
    grid = observed(usage_grid(trace))
    placement = placement_of(trace, grid)
    model = fit_model(
        grid,
        seed=seed,
        policy=policy,
        placement=placement,
        threads=threads,
        data_digest=digest(trace),
        git_revision=git_revision(),
        progress=progress,
    )
    machines = machines_of(grid, np.arange(len(grid.pods)), seed, placement)
    trained = Trained(model, out / "model", out / "figures")
    save_model(model, trained.folder)
    trained.figures.mkdir()
    draw(look_at(model, grid, machines), model.training.importances, trained.figures)
    return trained


def register(trained: Trained, trace: str, registry: Registry) -> str:
    """Log the run and register the model as challenger; its version.

    Args:
        trained: what `train` wrote.
        trace: its name, for MLflow's page of the run.
        registry: where to.

    Raises:
        RegistryError: MLflow cannot be reached, or refuses.
    """
    model = trained.model
    training = model.training
    return registry.register(
        trained.folder,
        params={
            **training.parameters,
            **msgspec.to_builtins(model.policy),
            "seed": training.seed,
            "pods": training.pods,
            "machines": training.machines,
            "rows": training.rows,
            "trained_from": _utc(training.start),
            "trained_until": _utc(training.stop),
        },
        metrics=training.metrics,
        tags={
            TRACE_TAG: training.data_digest,
            TARGET_TAG: f"{model.policy.target:g}",
            FORECASTER_TAG: model.forecaster.name,
            REVISION_TAG: training.git_revision,
        },
        data=DataSource(name=trace, digest=training.data_digest),
        figures=trained.figures,
    )


def git_revision() -> str:
    """The commit of this code, "-dirty" where it was changed; the release where it has no git."""
    file = Path(__file__).resolve()
    git = ["git", "-C", str(file.parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", file.name],
            check=True,
            capture_output=True,
            timeout=10,
        )
        found = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            timeout=10,
            text=True,
        )
    except (OSError, subprocess.SubprocessError):
        return _release()
    return found.stdout.strip()


def _release() -> str:
    try:
        return f"archimedes {version('archimedes')}"
    except PackageNotFoundError:  # a copy of the source that was never installed
        return "unknown"


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
