"""Training: what is held out, drawn, logged and registered."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from models.artifact import load_model
from models.classical import CLASSICAL
from models.errors import RegistryError, SettingsError
from models.generator import ClusterSpec, generate_trace
from models.grid import UsageGrid
from models.policy import HORIZONS, Policy
from models.registry import Registry
from models.shipped import shipped
from models.trace import Trace, digest, usage_grid, write_trace
from models.versions import FORECASTER_TAG, REVISION_TAG, TARGET_TAG, TRACE_TAG
from tests.mlflow_server import closed_port
from trainer import train as training
from trainer.cli import app
from trainer.figures import draw
from trainer.held_out import LEAST_SCORES, HeldOut, look_at, violation_rates
from trainer.machines import Machines, machines_of
from trainer.train import git_revision

PNG = b"\x89PNG\r\n"
H = len(HORIZONS)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate_trace(ClusterSpec(seed=3, nodes=4, days=6))


@pytest.fixture(scope="module")
def trace_folder(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace") / "small"
    write_trace(trace, folder)
    return folder


@pytest.fixture(scope="module")
def grid(trace: Trace) -> UsageGrid:
    return usage_grid(trace)


@pytest.fixture(scope="module")
def machines(grid: UsageGrid) -> Machines:
    return machines_of(grid, np.arange(len(grid.pods)), 0, per_size=2)


def held(scores: list[float], step: int = 1800) -> HeldOut:
    """One machine with a score at each time, the same for all horizons."""
    score = np.repeat(np.array(scores)[:, None, None], H, axis=2)
    return HeldOut(
        np.arange(len(scores)) * step, np.zeros_like(score), score, score, np.array([8.0])
    )


def test_rates_are_those_of_a_knob_from_the_first_half() -> None:
    # 1 h horizon: of 200 half hours, those up to number 98 are known when the second half begins
    # at number 100. Their scores are 0..98, so the knob for 50 % is 49 and for 1 % is 98.
    scores = [float(i) for i in range(100)] + [49.0] * 50 + [50.0] * 25 + [99.0] * 25
    rates = violation_rates(held(scores), (0.5, 0.01))
    assert rates[:, 0].tolist() == [0.5, 0.25]  # 50 and 99 of 100 exceed 49; only 99 exceeds 98


def test_rates_need_scores_that_had_resolved() -> None:
    # The second half begins after 100 half hours. At 24 h the first 52 had resolved by then.
    scores = [0.0] * 53 + [1000.0] * 47 + [1.0] * 100
    rates = violation_rates(held(scores), (0.01,))
    assert rates[0].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_rates_of_too_few_scores_are_unknown() -> None:
    few = held([0.0] * (2 * LEAST_SCORES - 2))
    assert np.isnan(violation_rates(few, (0.5,))).all()
    assert np.isnan(violation_rates(held([]), (0.5,))).all()
    assert np.isnan(violation_rates(held([np.nan] * 500), (0.5,))).all()


def test_a_truth_above_the_cap_is_a_violation_whatever_the_knob() -> None:
    scores = [0.0] * 150 + [0.0] * 100 + [np.inf] * 50
    assert violation_rates(held(scores), (0.01,))[0, 0] == pytest.approx(1 / 3)


def test_held_out_truth_and_scores_agree_with_forecasts(
    grid: UsageGrid, machines: Machines
) -> None:
    model = shipped(CLASSICAL["rc-like-p95-24h"])
    seen = look_at(model, grid, machines)
    assert seen.forecast.shape == (len(seen.time), len(machines), H)
    assert seen.time[0] >= grid.start + 0.8 * (grid.end - grid.start)
    known = ~np.isnan(seen.truth)
    assert known[:, :, 0].mean() > 0.8
    assert np.isnan(seen.score[~known]).all()
    # A score above the knob means that the truth was above the forecast, and the reverse.
    knob = model.calibration.knobs(model.policy.target)
    clear = known & (np.abs(seen.score - knob) > 1e-6)
    assert ((seen.score > knob) == (seen.truth > seen.forecast))[clear].all()


def test_forecasts_do_not_see_the_future(grid: UsageGrid, machines: Machines) -> None:
    model = shipped(CLASSICAL["max-7d"])
    seen = look_at(model, grid, machines)
    middle = len(seen.time) // 2
    column = (int(seen.time[middle]) - grid.start) // 300
    cpu = grid.cpu.copy()
    cpu[:, column:] = 1000.0
    other = look_at(model, dataclasses.replace(grid, cpu=cpu), machines)
    np.testing.assert_array_equal(seen.forecast[: middle + 1], other.forecast[: middle + 1])
    assert not np.array_equal(seen.forecast[middle + 1], other.forecast[middle + 1])


def test_figures_are_pictures(grid: UsageGrid, machines: Machines, tmp_path: Path) -> None:
    seen = look_at(shipped(CLASSICAL["max-7d"]), grid, machines)
    draw(seen, {"mean_24h": 0.75, "max_7d": 0.25}, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["calibration.png", "forecast.png", "importance.png"]
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.iterdir())


def test_a_classical_model_has_no_importances_to_draw(tmp_path: Path) -> None:
    draw(held([0.5] * 10), {}, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calibration.png", "forecast.png"]


def test_the_revision_is_a_commit_or_a_release() -> None:
    form = r"[0-9a-f]{40}(-dirty)?|archimedes \d+\.\d+.*|unknown"
    assert re.fullmatch(form, git_revision())


def train(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["train", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_train_registers_what_it_wrote(
    trace: Trace, trace_folder: Path, database_uri: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    out = tmp_path / "out"
    arguments = ["--trace", str(trace_folder), "--out", str(out), "--target", "0.02", "--seed", "5"]
    said = json.loads(
        train(*arguments, "--register", "--promote-first", "--tracking-uri", database_uri, "--json")
    )
    assert said["version"] == "1"
    assert said["alias"] == "champion"
    assert said["trace_sha256"] == digest(trace)
    model = load_model(out / "model")
    assert model.policy == Policy(target=0.02)
    assert (out / "figures" / "forecast.png").read_bytes().startswith(PNG)
    registry = Registry(database_uri)
    (version,) = registry.versions()
    assert version.aliases == ("champion",)
    assert version.metrics == said["metrics"] == model.training.metrics
    assert version.tags[TRACE_TAG] == digest(trace)
    assert version.tags[TARGET_TAG] == "0.02"
    assert version.tags[FORECASTER_TAG] == model.forecaster.name
    # Somebody may edit the tree while this runs.
    revision, dirty = version.tags[REVISION_TAG], "-dirty"
    assert revision.removesuffix(dirty) == git_revision().removesuffix(dirty)
    client = MlflowClient(database_uri, database_uri)
    run = client.get_run(version.run_id)
    assert run.data.params["seed"] == "5"
    assert run.data.params["target"] == "0.02"
    figures = [f.path for f in client.list_artifacts(version.run_id, "figures")]
    assert {"figures/forecast.png", "figures/calibration.png"} <= set(figures)
    assert registry.pull("champion", tmp_path / "store") == "1"
    pulled = load_model(tmp_path / "store" / "1", "1")
    assert pulled.version == "1"
    assert pulled.calibration == model.calibration


def test_a_second_version_is_the_challenger_only(trace_folder: Path, database_uri: str) -> None:
    arguments = ["--trace", str(trace_folder), "--register", "--tracking-uri", database_uri]
    train(*arguments, "--promote-first")
    said = train(*arguments, "--promote-first")
    assert "Registered as version 2, challenger" in said
    assert Registry(database_uri).alias("champion") == "1"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "say where the model goes"),
        (["--promote-first", "--out", "x"], "add --register"),
        (["--out", "."], "exists already"),
    ],
)
def test_contradictory_options_are_one_sentence(
    trace_folder: Path, arguments: list[str], problem: str
) -> None:
    with pytest.raises(SettingsError, match=problem):
        train("--trace", str(trace_folder), *arguments)


def test_an_unreachable_registry_is_reported_before_training(
    trace_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.train.fit_model", lambda *_: pytest.fail("trained first"))
    uri = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(RegistryError, match="cannot be used"):
        train("--trace", str(trace_folder), "--register", "--tracking-uri", uri)


def test_a_registry_that_goes_meanwhile_loses_no_model(
    trace_folder: Path, database_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> str:
        raise RegistryError("MLflow has gone")

    monkeypatch.setattr("trainer.train.register", gone)
    more = ("--out", str(tmp_path / "out"), "--register", "--tracking-uri", database_uri)
    with pytest.raises(RegistryError, match="gone"):
        train("--trace", str(trace_folder), *more)
    assert load_model(tmp_path / "out" / "model").policy == Policy()


def test_a_registry_that_goes_meanwhile_loses_no_evaluation(
    tmp_path: Path, database_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> str:
        raise RegistryError("MLflow has gone")

    monkeypatch.setattr(Registry, "log_run", gone)
    monkeypatch.setattr("models.refs.resolve_model", lambda *_: shipped(CLASSICAL["max-7d"]))
    write_trace(generate_trace(ClusterSpec(seed=3, nodes=5, days=2)), tmp_path / "trace")
    given = ["evaluate", "--trace", str(tmp_path / "trace"), "--model", "m", "--horizon", "1"]
    more = ["--seeds", "1", "--log", "--tracking-uri", database_uri, "--json"]
    result = CliRunner().invoke(app, [*given, *more])
    assert isinstance(result.exception, RegistryError), result.output
    assert json.loads(result.stdout)["trace"]


def test_a_folder_that_cannot_be_written_is_reported_before_training(
    trace_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.train.fit_model", lambda *_: pytest.fail("trained first"))
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"--out: .*file/model cannot be written"):
        train("--trace", str(trace_folder), "--out", str(tmp_path / "file" / "model"))


def test_whether_a_model_saw_a_time_is_not_known_of_another_trace_of_it() -> None:
    empty = shipped(CLASSICAL["max-7d"]).training
    given = msgspec.structs.replace(empty, start=100, stop=200, data_digest="one")
    assert given.saw("one", 199, 300) is True
    assert given.saw("one", 0, 101) is True
    assert given.saw("two", 199, 300) is None
    for digest_ in ("one", "two"):
        assert given.saw(digest_, 200, 300) is False
        assert given.saw(digest_, 0, 100) is False


def with_silent_pods(trace: Trace) -> Trace:
    """The trace with a pod more on each node, which never ran."""
    assert trace.nodes is not None
    silent = [
        trace.pods.head(1).with_columns(
            pod=pl.lit(f"default/silent-{node}"),
            node=pl.lit(node),
            start=trace.pods["start"].min(),
            end=trace.pods["end"].max(),
        )
        for node in trace.nodes["node"]
    ]
    return dataclasses.replace(trace, pods=pl.concat([trace.pods, *silent]))


def test_figures_of_training_leave_out_what_was_never_observed(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[HeldOut]()
    monkeypatch.setattr("trainer.train.draw", lambda held, *_: drawn.append(held))
    for name, given in (("plain", trace), ("more", with_silent_pods(trace))):
        (tmp_path / name).mkdir()
        training.train(given, tmp_path / name, seed=0, policy=Policy())
    assert np.isfinite(drawn[0].truth).any()
    np.testing.assert_array_equal(drawn[0].truth, drawn[1].truth)


def test_an_evaluation_leaves_out_what_was_never_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod on each node that never ran; a model of the trace without them may have seen it."""
    plain = generate_trace(ClusterSpec(seed=3, nodes=5, days=2))
    more = with_silent_pods(plain)
    model = shipped(CLASSICAL["max-7d"])
    seen = msgspec.structs.replace(
        model.training, stop=usage_grid(plain).end, data_digest=digest(plain)
    )
    trained = dataclasses.replace(model, training=seen)
    monkeypatch.setattr("models.refs.resolve_model", lambda *_: trained)
    found = []
    for name, trace in (("plain", plain), ("more", more)):
        write_trace(trace, tmp_path / name)
        given = ["evaluate", "--trace", str(tmp_path / name), "--model", "m", "--horizon", "1"]
        result = CliRunner().invoke(app, [*given, "--seeds", "1", "--json"], catch_exceptions=False)
        found.append(json.loads(result.stdout))
    assert found[0].pop("held_out") is False
    assert found[1].pop("held_out") is None
    assert "not known" in result.stderr
    assert found[0] | {"trace": ""} == found[1] | {"trace": ""}


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'mlflow', 'matplotlib', 'lightgbm', 'sklearn', 'polars'}"
    code = (
        "import sys\n"
        "import models.cli, trainer.cli\n"
        f"sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
