"""The registry against a real MLflow: a database file and a server."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import ArtifactError, RegistryError
from models.mlflow_client import quieten
from models.promotion import Event
from models.registry import Registry
from models.store import MODEL_NAME, copies
from models.versions import TRACE_TAG, DataSource
from tests.mlflow_server import closed_port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a registry takes: a manifest and files."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "model.txt").write_text("tree\n" * 1000)
    digest = hashlib.sha256((made / "model.txt").read_bytes()).hexdigest()
    (made / "manifest.json").write_text(json.dumps({"files": {"model.txt": digest}}))
    return made


@pytest.fixture(autouse=True)
def any_model_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about the registry; the check of models has its own."""
    monkeypatch.setattr("models.registry.check_model", lambda _: None)


def register(registry: Registry, folder: Path, figures: Path | None = None) -> str:
    return registry.register(
        folder,
        params={"seed": 7, "target": 0.01},
        metrics={"violation_rate_1h": 0.011, "pinball_1h": 0.2},
        tags={TRACE_TAG: "abc" * 20},
        data=DataSource(name="azure-v1", digest="abc" * 20),
        figures=figures,
    )


def aliases(registry: Registry) -> dict[str, str]:
    return {alias: v.version for v in registry.versions() for alias in v.aliases}


def test_a_registered_version_is_the_challenger_and_tells_its_story(
    tracking_uri: str, folder: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "importance.png").write_bytes(b"png")
    registry = Registry(tracking_uri)
    version = register(registry, folder, figures)
    assert version == "1"
    (found,) = registry.versions()
    assert found.aliases == ("challenger",)
    assert found.metrics == {"violation_rate_1h": 0.011, "pinball_1h": 0.2}
    assert found.tags[TRACE_TAG] == "abc" * 20
    assert registry.alias("champion") is None
    client = MlflowClient(tracking_uri, tracking_uri)
    run = client.get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "7", "target": "0.01"}
    assert run.inputs is not None
    assert run.outputs is not None
    assert run.inputs.dataset_inputs[0].dataset.name == "azure-v1"
    assert [f.path for f in client.list_artifacts(found.run_id, "figures")] == [
        "figures/importance.png"
    ]
    # MLflow's pages link run -> model -> version and back.
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.source_run_id == found.run_id
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": MODEL_NAME, "version": "1"}]
    assert {m.key for m in model.metrics or []} == {"violation_rate_1h", "pinball_1h"}


def test_the_newest_version_is_the_challenger(database_uri: str, folder: Path) -> None:
    registry = Registry(database_uri)
    assert [register(registry, folder) for _ in range(3)] == ["1", "2", "3"]
    assert [v.version for v in registry.versions()] == ["3", "2", "1"]
    assert aliases(registry) == {"challenger": "3"}


def test_promote_and_roll_back(tracking_uri: str, folder: Path) -> None:
    from mlflow import MlflowClient

    registry = Registry(tracking_uri, clock=lambda: 1000.0)
    register(registry, folder)
    registry.promote("1", "the first", "ann")
    register(registry, folder)
    event = registry.promote("challenger", "beat 1", "ann")
    assert event == Event(
        number=2,
        action="promote",
        champion="2",
        previous="1",
        reason="beat 1",
        by="ann",
        time=1000.0,
    )
    assert aliases(registry) == {"champion": "2", "previous": "1"}
    assert registry.promote("2", "again", "ann") is None
    registry.rollback("it evicts", "bob")
    assert aliases(registry) == {"champion": "1", "previous": "2"}
    assert [(e.action, e.champion, e.by) for e in registry.history()] == [
        ("promote", "1", "ann"),
        ("promote", "2", "ann"),
        ("rollback", "1", "bob"),
    ]
    client = MlflowClient(tracking_uri, tracking_uri)
    first = next(v for v in registry.versions() if v.version == "1")
    assert [f.path for f in client.list_artifacts(first.run_id, "audit")] == [
        "audit/0001-promote.json",
        "audit/0003-rollback.json",
    ]


@pytest.mark.parametrize("writes", range(1, 8))
def test_a_killed_promotion_is_completed_by_the_next(
    database_uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    from mlflow import MlflowClient

    registry = Registry(database_uri)
    register(registry, folder)
    registry.promote("1", "first")
    register(registry, folder)
    left = [writes]

    def dying(original: Callable[..., object]) -> Callable[..., object]:
        def write(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return write

    with monkeypatch.context() as patch:
        for name in (
            "set_registered_model_tag",
            "set_registered_model_alias",
            "delete_registered_model_alias",
            "set_model_version_tag",
            "delete_registered_model_tag",
            "log_text",
        ):
            patch.setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))
        with pytest.raises(KeyboardInterrupt):
            registry.promote("2", "better")
    assert aliases(registry)["champion"] in "12"
    again = Registry(database_uri)  # as another process would
    again.promote("2", "better")
    assert aliases(again) == {"champion": "2", "previous": "1"}
    assert [e.champion for e in again.history()] == ["1", "2"]


def test_a_killed_promotion_of_a_deleted_version_stands_in_no_rollbacks_way(
    database_uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    registry = Registry(database_uri)
    for _ in range(3):
        register(registry, folder)
    registry.promote("1", "first")
    registry.promote("2", "better")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", dies)
        with pytest.raises(KeyboardInterrupt):
            registry.promote("3", "better still")
    MlflowClient(database_uri, database_uri).delete_model_version(MODEL_NAME, "3")
    event = registry.rollback("it evicts")
    assert (event.action, event.champion) == ("rollback", "1")
    assert aliases(registry) == {"champion": "1", "previous": "2"}


def test_pull_brings_the_files_as_they_were(
    tracking_uri: str, folder: Path, tmp_path: Path
) -> None:
    registry = Registry(tracking_uri)
    register(registry, folder)
    registry.promote("1", "first")
    for ref in ("champion", "1"):
        assert registry.pull(ref, tmp_path / "store") == "1"
    pulled = tmp_path / "store" / "1"
    assert sorted(p.name for p in pulled.iterdir()) == ["manifest.json", "model.txt"]
    for path in folder.iterdir():
        assert (pulled / path.name).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "store").glob(".pull-*"))


def test_the_copy_that_was_asked_for_last_comes_first(
    database_uri: str, folder: Path, tmp_path: Path
) -> None:
    registry = Registry(database_uri)
    for _ in range(2):
        register(registry, folder)
    for version in ("1", "2", "1"):
        registry.pull(version, tmp_path / "store")
    assert [p.name for p in copies(tmp_path / "store")] == ["1", "2"]


def test_pull_replaces_another_registrys_version_of_the_same_number(
    database_uri: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "store" / "1").mkdir(parents=True)
    (tmp_path / "store" / "1" / "manifest.json").write_text("of another registry")
    registry = Registry(database_uri)
    register(registry, folder)
    registry.pull("1", tmp_path / "store")
    pulled = tmp_path / "store" / "1" / "manifest.json"
    assert pulled.read_text() == (folder / "manifest.json").read_text()


def test_pull_keeps_a_copy_that_is_whole_and_fetches_a_damaged_one_anew(
    database_uri: str, folder: Path, tmp_path: Path
) -> None:
    registry, store = Registry(database_uri), tmp_path / "store"
    register(registry, folder)
    registry.pull("1", store)
    pulled, whole = store / "1" / "model.txt", (folder / "model.txt").read_text()
    before = pulled.stat().st_ino
    registry.pull("1", store)
    assert pulled.stat().st_ino == before
    damages: list[Callable[[], object]] = [
        lambda: pulled.write_text(whole[:1000]),  # as after a power failure
        pulled.unlink,
        (store / "1" / "more.txt").touch,
    ]
    for damage in damages:
        damage()
        registry.pull("1", store)
        assert pulled.read_text() == whole
        assert len(list(pulled.parent.iterdir())) == 2


def test_pull_refuses_a_manifest_that_was_changed(
    database_uri: str, folder: Path, tmp_path: Path
) -> None:
    registry = Registry(database_uri)
    register(registry, folder)
    (stored,) = (tmp_path / "registry-artifacts").rglob("manifest.json")
    stored.write_text('{"kind": "evil"}')
    with pytest.raises(ArtifactError, match="not what was registered"):
        registry.pull("1", tmp_path / "store")
    assert not copies(tmp_path / "store")


def test_pull_refuses_what_fails_the_check(
    database_uri: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise ArtifactError(f"{folder.name} forecasts nonsense")

    monkeypatch.setattr("models.registry.check_model", refuse)
    registry = Registry(database_uri)
    register(registry, folder)
    with pytest.raises(ArtifactError, match="nonsense"):
        registry.pull("1", tmp_path / "store")
    assert not copies(tmp_path / "store")
    assert not list((tmp_path / "store").glob(".pull-*"))


def test_a_failed_upload_leaves_a_failed_run_and_no_version(
    database_uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    registry = Registry(database_uri)
    register(registry, folder)

    def full(*_: object) -> None:
        raise MlflowException("no space left on device")

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", full)
    with pytest.raises(RegistryError, match="no space left"):
        register(registry, folder)
    assert [v.version for v in registry.versions()] == ["1"]
    client = MlflowClient(database_uri, database_uri)
    experiment = client.get_experiment_by_name(MODEL_NAME)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


def test_log_run_keeps_figures_of_an_evaluation(tracking_uri: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "table.txt").write_text("1 h .011")
    run_id = Registry(tracking_uri).log_run(
        "evaluate", params={"seed": 1}, metrics={"a": 1.0}, tags={}, artifacts=tmp_path / "out"
    )
    client = MlflowClient(tracking_uri, tracking_uri)
    assert [f.path for f in client.list_artifacts(run_id)] == ["table.txt"]
    assert client.get_run(run_id).data.metrics == {"a": 1.0}


@pytest.mark.parametrize("ref", ["9", "nonsense", "champion", "-1", "", "1.0", "٣"])
def test_unknown_references_are_named(database_uri: str, folder: Path, ref: str) -> None:
    registry = Registry(database_uri)
    register(registry, folder)
    for call in (lambda: registry.pull(ref, folder), lambda: registry.promote(ref, "why")):
        with pytest.raises(RegistryError, match="`archimedes models list` shows"):
            call()


def test_a_registry_without_models_says_how_to_fill_it(tracking_uri: str) -> None:
    for call in (Registry(tracking_uri).versions, Registry(tracking_uri).history):
        with pytest.raises(RegistryError, match=r"no model is registered.*trainer train"):
            call()


def test_reading_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="there is no registry"):
        Registry(f"sqlite:///{tmp_path}/none.db").versions()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database at all")
    with pytest.raises(RegistryError, match="not an SQLite database"):
        Registry(f"sqlite:///{tmp_path}/text.db").versions()


def test_a_truncated_database_is_one_sentence(database_uri: str) -> None:
    path = Path(database_uri.removeprefix("sqlite:///"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RegistryError, match="cannot be used") as caught:
        Registry(database_uri).versions()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        *("nonsense://x", "file:///tmp/mlruns", "mlflow:5000"),
        *("sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:x.db"),
    ],
)
def test_addresses_of_no_registry_are_refused(uri: str) -> None:
    with pytest.raises(RegistryError, match=r"MLflow server nor sqlite:///FILE; name one with"):
        Registry(uri).log_run("x", params={}, metrics={}, tags={})


def test_an_unreachable_server_is_one_sentence_without_the_password() -> None:
    uri = f"http://ann:secret@127.0.0.1:{closed_port()}"
    with pytest.raises(RegistryError, match="cannot be used") as caught:
        Registry(uri).versions()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_from_a_file_with_a_last_line_that_ends_is_sent_without_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret\n")
    quieten()
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "secret"


def test_copies_survive_a_registry_that_is_gone(
    database_uri: str, folder: Path, tmp_path: Path
) -> None:
    registry = Registry(database_uri)
    register(registry, folder)
    registry.pull("1", tmp_path / "store")
    with pytest.raises(RegistryError, match="cannot be used"):
        Registry(f"http://127.0.0.1:{closed_port()}").pull("1", tmp_path / "store")
    assert [p.name for p in copies(tmp_path / "store")] == ["1"]


def test_damaged_history_is_one_sentence(database_uri: str, folder: Path) -> None:
    registry = Registry(database_uri)
    register(registry, folder)
    registry.promote("1", "first")
    path = database_uri.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE model_version_tags SET value = '{' WHERE key LIKE 'archimedes.history%'"
        )
    connection.close()
    with pytest.raises(RegistryError, match="cannot be used"):
        registry.history()


def test_the_alias_is_served_over_rest_without_mlflow(server_uri: str, folder: Path) -> None:
    registry = Registry(server_uri)
    register(registry, folder)
    registry.promote("1", "first")
    path = f"api/2.0/mlflow/registered-models/alias?name={MODEL_NAME}&alias=champion"
    with urllib.request.urlopen(f"{server_uri}/{path}", timeout=10) as reply:
        assert json.load(reply)["model_version"]["version"] == "1"


def test_a_fresh_database_is_made_in_silence(tmp_path: Path, folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from models.registry import Registry\n"
        "assert 'mlflow' not in sys.modules\n"
        f"r = Registry('sqlite:///{tmp_path}/new.db')\n"
        f"r.register(Path({str(folder)!r}), params={{}}, metrics={{}}, tags={{}})\n"
        "r.promote('1', 'first')"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "new-artifacts").is_dir()
