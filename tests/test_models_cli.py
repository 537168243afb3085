"""`archimedes models`, as people and programs call it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.artifact import load_model, save_model
from models.classical import CLASSICAL
from models.cli import app
from models.errors import ArchimedesError, RegistryError, SettingsError
from models.registry import Registry
from models.shipped import shipped
from models.store import MODEL_NAME
from models.terminal import progress_bar
from models.versions import FORECASTER_TAG, TARGET_TAG, TRACE_TAG, metric_lines
from tests.mlflow_server import closed_port


def run(*arguments: str) -> str:
    """Stdout of a command that succeeds."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(name="uri")
def registry_with_two_versions(
    database_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    folder = tmp_path / "model"
    save_model(shipped(CLASSICAL["max-7d"]), folder)
    tags = {TRACE_TAG: "feed" * 16, TARGET_TAG: "0.01", FORECASTER_TAG: "max-7d"}
    for rate in (0.01, 0.02):
        Registry(database_uri).register(
            folder, params={}, metrics={"violation_rate_1h": rate}, tags=tags
        )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri)
    return database_uri


def test_list_tells_of_a_champion_that_was_made_by_hand(uri: str) -> None:
    from mlflow import MlflowClient

    run("promote", "1", "--reason", "the first")
    assert "by hand" not in run("list")
    MlflowClient(uri).set_registered_model_alias(MODEL_NAME, "champion", "2")
    assert "Version 2 was made the champion by hand" in run("list")
    run("promote", "2", "--reason", "reviewed in the pages")
    said = run("list")
    assert "by hand" not in said
    assert "reviewed in the pages" in said
    run("rollback", "--reason", "it evicts")
    assert Registry(uri).alias("champion") == "1"


@pytest.mark.parametrize("command", [("promote", "1"), ("rollback",)])
def test_a_reason_that_says_nothing_is_refused(uri: str, command: tuple[str, ...]) -> None:
    assert uri
    result = CliRunner().invoke(app, [*command, "--reason", " "])
    assert isinstance(result.exception, SettingsError)
    assert "--reason is empty" in str(result.exception)


def test_list_shows_versions_and_what_happened(uri: str) -> None:
    assert uri
    run("promote", "1", "--reason", "the first")
    run("promote", "challenger", "--reason", "beat it")
    said = json.loads(run("list", "--json"))
    assert [(v["version"], v["aliases"]) for v in said["versions"]] == [
        ("2", ["champion"]),
        ("1", ["previous"]),
    ]
    assert said["versions"][0]["metrics"] == {"violation_rate_1h": 0.02}
    assert said["versions"][0]["tags"][TRACE_TAG] == "feed" * 16
    assert [(e["champion"], e["reason"]) for e in said["history"]] == [
        ("1", "the first"),
        ("2", "beat it"),
    ]
    text = run("list")
    for shown in ("champion", "previous", "feedfeedfeed", "0.02", "beat it"):
        assert shown in text


def test_promote_and_rollback_say_what_changed(uri: str) -> None:
    assert uri
    assert "version 1 is the champion" in run("promote", "1", "--reason", "r")
    assert "already" in run("promote", "1", "--reason", "r")
    said = json.loads(run("promote", "2", "--reason", "r", "--json"))
    assert said["changed"]
    assert said["event"]["previous"] == "1"
    assert not json.loads(run("promote", "2", "--reason", "r", "--json"))["changed"]
    assert "version 1 is the champion instead of 2" in run("rollback", "--reason", "r")
    assert json.loads(run("rollback", "--reason", "r", "--json"))["event"]["champion"] == "2"


def test_pull_brings_a_model_that_loads(uri: str, tmp_path: Path) -> None:
    assert uri
    said = json.loads(run("pull", "challenger", "--to", str(tmp_path / "store"), "--json"))
    assert said == {"version": "2", "folder": str(tmp_path / "store" / "2")}
    assert load_model(Path(said["folder"]), "2").forecaster.name == "max-7d"
    assert "Version 1 is in" in run("pull", "1", "--to", str(tmp_path / "store"))


def test_pull_refuses_a_tampered_artifact(uri: str, tmp_path: Path) -> None:
    assert uri
    for stored in (tmp_path / "registry-artifacts").rglob("manifest.json"):
        stored.write_text(stored.read_text().replace("max-7d", "max-24h"))
    with pytest.raises(ArchimedesError, match="not what was registered"):
        run("pull", "1", "--to", str(tmp_path / "store"))


def test_a_store_that_cannot_be_written_is_one_sentence(uri: str, tmp_path: Path) -> None:
    assert uri
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RegistryError, match="cannot be written"):
        run("pull", "1", "--to", str(tmp_path / "file"))


def test_figures_of_all_horizons_share_a_line_in_order() -> None:
    metrics = {"rate_24h": 0.03, "rate_1h": 0.0123456, "rate_6h": 1.0, "loss_12h": 2.0}
    assert metric_lines(metrics) == [
        "loss             12h 2",
        "rate              1h 0.01235   6h 1        24h 0.03",
    ]


@pytest.mark.parametrize("arguments", [["promote", "1"], ["rollback"]])
def test_a_change_needs_a_reason(uri: str, arguments: list[str]) -> None:
    assert uri
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--reason" in result.output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_progress_bar_is_on_terminals_only(
    stream: type[io.StringIO], shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = stream()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("reading") as step:
        step("fitting", 0.5)
    said = stderr.getvalue()
    assert ("fitting" in said, "50%" in said) == (shown, shown)


def module(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m models.cli`, as the extender calls it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return subprocess.run(
        [sys.executable, "-m", "models.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=clean,
    )


def test_an_unreachable_server_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{closed_port()}"
    done = module("pull", "champion", "--to", str(tmp_path), "--tracking-uri", uri)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"the registry at {uri} cannot be used")
    assert done.stderr.count("\n") == 1


def test_no_registry_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = module("list", "--tracking-uri", f"sqlite:///{tmp_path}/none.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no registry at" in done.stderr
    assert done.stderr.count("\n") == 1
