"""Check of a candidate model in a child process, because a hostile LightGBM text may crash it.

The child loads the model (hashes, bounds, golden rows: `models.artifact`), then forecasts made-up
pasts and compares the result with sense. What it says is one line of JSON; a child that dies or
hangs says nothing, which is an answer too.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from models.artifact import load_model
from models.errors import ArtifactError
from models.grid import DAY, WEEK
from models.history import History, build_history
from models.model import Model
from models.policy import HORIZONS

TIMEOUT = 60.0
"""Seconds for the whole check; a good model needs about two, most of them imports."""

MEMORY = 8 * 2**30
"""Bytes of address space: libraries map about three GiB, a text that asks for more is hostile."""

NODES = 200
"""Nodes of the made-up past that the latency is measured on."""

SLOWEST = 10.0
"""Seconds that forecasting `NODES` nodes may take. A good model needs a tenth of one; at this limit
5,000 nodes would miss the refresh interval of five minutes."""

MOST = 10.0
"""Times the limit of its node above which a forecast is absurd."""


class _Verdict(msgspec.Struct, frozen=True):
    problem: str


def check_model(folder: Path, timeout: float = TIMEOUT) -> None:
    """Load a model in a child process with limits and compare what it forecasts with sense.

    Raises:
        ArtifactError: with the reason: crash, timeout, hash, golden rows, absurd, slow.
    """
    command = [sys.executable, "-m", "models.check", str(folder.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as e:
        raise ArtifactError(
            f"the model in {folder} must not serve: its check took longer than {timeout:g} s"
        ) from e
    try:
        verdict = msgspec.json.decode(done.stdout, type=_Verdict)
    except msgspec.DecodeError as e:
        raise ArtifactError(
            f"the model in {folder} must not serve: its check ended with exit code "
            f"{done.returncode} and without a verdict, as when the model crashes its reader"
        ) from e
    if verdict.problem:
        raise ArtifactError(f"the model in {folder} must not serve: {verdict.problem}")


def sensible(model: Model) -> None:
    """Forecast a made-up past and compare the result with sense.

    Raises:
        ArtifactError: a forecast is not finite, negative, below what is used on the average, far
            above what the node can use, or takes too long.
    """
    history = _past(np.random.default_rng(0))
    began = time.monotonic()
    prediction = model.forecaster.predict(history, HORIZONS)
    seconds = time.monotonic() - began
    forecast = prediction.at(model.calibration.knobs(model.policy.target))
    mean = history.aggregate.mean(axis=1, dtype=np.float64)[:, None]
    if not np.isfinite(forecast).all():
        raise ArtifactError("it forecasts what is no number")
    # At low tide an hour's peak may well be below the mean; a day's never is.
    if (forecast[:, -1:] < mean / 2).any():
        raise ArtifactError("it forecasts a day's peak below half of what is used on the average")
    if (forecast > MOST * history.limit[:, None]).any():
        raise ArtifactError(f"it forecasts peaks above {MOST:g} times what a node can use")
    if seconds > SLOWEST:
        raise ArtifactError(f"it needs {seconds:.1f} s for {NODES} nodes, {SLOWEST:g} s at most")


def _past(rng: np.random.Generator) -> History:
    """A week of `NODES` nodes with five pods each: tides, noise, bursts; no gaps."""
    pods = 5 * NODES
    tide = 1 + 0.5 * np.sin(2 * np.pi * (np.arange(WEEK) / DAY + rng.random((pods, 1))))
    noise = np.exp(0.2 * rng.normal(size=(pods, WEEK)))
    bursts = 1 + 2 * (rng.random((pods, WEEK)) < 0.002)
    usage = (rng.uniform(0.05, 1.0, (pods, 1)) * tide * noise * bursts).astype(np.float32)
    request = np.full(pods, 4.0)
    node = np.arange(pods) % NODES
    limit = np.full(NODES, 20.0)
    return build_history(7 * 86_400, usage, request, np.arange(pods), node, limit)


def main(folder: Path) -> None:
    """Check a model in this process; print the verdict."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    problem = ""
    try:
        sensible(load_model(folder))
    except ArtifactError as e:
        problem = str(e)
    except MemoryError:
        problem = f"it needs more than {MEMORY >> 30} GiB of memory"
    sys.stdout.buffer.write(msgspec.json.encode(_Verdict(problem)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
