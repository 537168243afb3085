"""`archimedes trainer train`: fit a model on a trace and register it."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from models.errors import SettingsError
from models.policy import TARGETS, Policy
from models.store import DEFAULT_TRACKING_URI
from models.terminal import Json, TraceDir, TrackingUri, progress_bar, user
from models.versions import metric_lines

if TYPE_CHECKING:
    from models.model import Model

DEFAULT_TARGET = Policy().target

Register = Annotated[
    bool, typer.Option("--register/--no-register", help="Register the model as the challenger.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="New folder for the model and its figures.")
]
PromoteFirst = Annotated[
    bool, typer.Option("--promote-first", help="Make it the champion where there is none yet.")
]
Target = Annotated[
    float,
    typer.Option(
        "--target",
        min=TARGETS[0],
        max=TARGETS[-1],
        help="Accepted probability that a node's peak exceeds its forecast.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same model.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of LightGBM.")]


def train(
    trace: TraceDir,
    register: Register = False,
    out: Out = None,
    promote_first: PromoteFirst = False,
    target: Target = DEFAULT_TARGET,
    seed: Seed = 0,
    threads: Threads = 2,
    tracking_uri: TrackingUri = DEFAULT_TRACKING_URI,
    as_json: Json = False,
) -> None:
    """Fit a forecaster on a trace, calibrate it on the trace's end, log it to MLflow.

    Give --register, --out, or both.
    """
    if promote_first and not register:
        raise SettingsError("--promote-first promotes what was registered; add --register")
    if not register and out is None:
        raise SettingsError("say where the model goes: --register, --out DIR, or both")
    if out is not None and out.exists():
        raise SettingsError(f"--out: {out} exists already; name a new folder")
    from models.registry import Registry
    from models.trace import read_trace
    from trainer import train as training

    source = read_trace(trace)
    registry = Registry(tracking_uri)
    if register:
        registry.prepare()
    with _scratch(out) as scratch, progress_bar("training") as progress:
        trained = training.train(
            source,
            Path(scratch),
            seed=seed,
            policy=Policy(target=target),
            threads=threads,
            progress=progress,
        )
        if out is not None:
            shutil.copytree(scratch, out)
        version = training.register(trained, source.name, registry) if register else None
    promoted = promote_first and version is not None and registry.alias("champion") is None
    if promoted and version is not None:
        registry.promote(version, "the first version", user())
    _report(trained.model, source.name, version, out, promoted=promoted, as_json=as_json)


def _scratch(out: Path | None) -> TemporaryDirectory[str]:
    """A temporary folder, beside ``out``: whether that can be written is known before training."""
    if out is None:
        return TemporaryDirectory(prefix="archimedes-")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=".archimedes-", dir=out.parent)
    except OSError as e:
        raise SettingsError(f"--out: {out} cannot be written: {e.strerror}") from e


def _report(
    model: Model,
    trace: str,
    version: str | None,
    out: Path | None,
    *,
    promoted: bool,
    as_json: bool,
) -> None:
    training = model.training
    if as_json:
        shown = {
            "trace": trace,
            "trace_sha256": training.data_digest,
            "forecaster": model.forecaster.name,
            "target": model.policy.target,
            "version": version,
            "alias": None if version is None else "champion" if promoted else "challenger",
            "folder": None if out is None else str(out / "model"),
            "metrics": training.metrics,
        }
        typer.echo(msgspec.json.encode(shown))
        return
    typer.echo(
        f"Trained {model.forecaster.name} on {training.rows} rows of {training.pods} pods and "
        f"{training.machines} machines of {trace}, target {model.policy.target:g}"
    )
    for line in metric_lines(training.metrics):
        typer.echo(f"  {line}")
    if version is not None:
        typer.echo(f"Registered as version {version}, {'champion' if promoted else 'challenger'}")
    if out is not None:
        typer.echo(f"Model and figures are in {out}")
