"""What serves: the champion, and what steps in for it; against stubs and a real MLflow."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from extender.champion import FALLBACK, ChampionSource, ModelStatus, fallback_model
from extender.registry_client import RegistryClient, mlflow_headers
from models.artifact import save_model
from models.classical import CLASSICAL
from models.model import Model
from models.policy import Policy
from models.registry import Registry
from models.shipped import shipped
from models.store import DIGEST_TAG, manifest_digest
from tests.mlflow_server import closed_port

TAG = {"key": DIGEST_TAG, "value": "0" * 64}


@pytest.fixture(scope="module", name="artifacts")
def write_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small real models, by the forecaster's name."""
    made = {}
    for name in ("max-7d", "vpa"):
        made[name] = tmp_path_factory.mktemp("models") / name
        save_model(shipped(CLASSICAL[name]), made[name])
    return made


class FakeMlflow:
    """Answers looks at aliases; everything else about it can be broken."""

    def __init__(self) -> None:
        self.aliases: dict[str, tuple[str, str]] = {}
        self.broken: tuple[int, str] | None = None
        self.looks = 0
        self.headers: dict[str, str] = {}
        self.delay = 0.0

    async def look(self, request: web.Request) -> web.Response:
        self.looks += 1
        self.headers = dict(request.headers)
        await asyncio.sleep(self.delay)
        if self.broken is not None:
            return web.Response(status=self.broken[0], text=self.broken[1])
        assert request.query["name"] == "archimedes"
        found = self.aliases.get(request.query["alias"])
        if found is None:
            return web.json_response({"error_code": "INVALID_PARAMETER_VALUE"}, status=400)
        version, digest = found
        tags = [{"key": DIGEST_TAG, "value": digest}, {"key": "other"}] if digest else []
        return web.json_response({"model_version": {"version": version, "tags": tags}})


class Setting:
    """A stub registry, a store with copies of versions 1 (max-7d) and 2 (vpa), and a clock."""

    def __init__(self, mlflow: FakeMlflow, uri: str, store: Path, digests: list[str]) -> None:
        self.mlflow = mlflow
        self.uri = uri
        self.store = store
        self.digests = digests
        self.now = 1000.0

    def points_to(self, champion: int, previous: int | None = None) -> None:
        self.mlflow.aliases = {"champion": (str(champion), self.digests[champion - 1])}
        if previous is not None:
            self.mlflow.aliases["previous"] = (str(previous), self.digests[previous - 1])

    def source(self, uri: str | None = None, fallback: Model | None = None) -> ChampionSource:
        return ChampionSource(
            self.uri if uri is None else uri,
            self.store,
            clock=lambda: self.now,
            fallback=fallback,
            look_seconds=0.5,
            pull_seconds=60.0,
            retry_seconds=600.0,
        )


@pytest.fixture
async def setting(artifacts: dict[str, Path], tmp_path: Path) -> AsyncIterator[Setting]:
    mlflow = FakeMlflow()
    app = web.Application()
    app.router.add_get("/api/2.0/mlflow/registered-models/alias", mlflow.look)
    store = tmp_path / "store"
    for version, name in (("1", "max-7d"), ("2", "vpa")):
        shutil.copytree(artifacts[name], store / version)
    digests = [manifest_digest(store / version) for version in "12"]
    async with TestServer(app) as server:
        yield Setting(mlflow, str(server.make_url("/")), store, digests)


@pytest.fixture
def no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        pytest.fail("a child process was started")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)


@pytest.mark.usefixtures("no_children")
async def test_the_champion_on_disk_needs_no_child(setting: Setting) -> None:
    setting.points_to(2)
    model, status = await setting.source().initial()
    assert model is not None
    assert (model.version, model.forecaster.name) == ("2", "vpa")
    assert status == ModelStatus("champion", "2")


@pytest.mark.usefixtures("no_children")
async def test_a_promotion_and_a_rollback_are_seen(setting: Setting) -> None:
    setting.points_to(1)
    source = setting.source()
    await source.initial()
    assert await source.poll() is None
    setting.points_to(2, previous=1)
    model = await source.poll()
    assert model is not None
    assert model.version == "2"
    assert source.status == ModelStatus("champion", "2")
    assert await source.poll() is None
    setting.points_to(1, previous=2)
    back = await source.poll()
    assert back is not None
    assert back.version == "1"


async def test_what_serves_stays_while_mlflow_is_down(setting: Setting) -> None:
    setting.points_to(1)
    source = setting.source()
    await source.initial()
    setting.mlflow.broken = (503, "")
    assert await source.poll() is None
    assert source.status == ModelStatus("champion", "1", "MLflow answers with HTTP status 503")
    setting.mlflow.broken = None
    assert await source.poll() is None
    assert source.status == ModelStatus("champion", "1")


async def test_a_champion_that_is_gone_leaves_what_serves(setting: Setting) -> None:
    setting.points_to(1)
    source = setting.source()
    await source.initial()
    setting.mlflow.aliases = {}
    assert await source.poll() is None
    assert source.status.version == "1"
    assert "no version of archimedes has the alias champion" in source.status.reason


async def test_a_broken_copy_is_fetched_anew_and_the_previous_version_serves(
    setting: Setting,
) -> None:
    # The child process asks this stub for what only MLflow has, and fails.
    setting.points_to(2, previous=1)
    shutil.rmtree(setting.store / "2")
    model, status = await setting.source().initial()
    assert model is not None
    assert (model.version, status.source, status.version) == ("1", "previous", "1")
    assert status.reason.startswith("champion: model 2 cannot be fetched: ")


async def test_a_damaged_copy_of_the_champion_is_fetched_anew(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = setting.store / "2" / "stray.txt"
    stray.touch()

    async def pull(_: object, version: str) -> Path:
        stray.unlink()
        return setting.store / version

    monkeypatch.setattr(RegistryClient, "_pull", pull)
    setting.points_to(2, previous=1)
    _, status = await setting.source().initial()
    assert status == ModelStatus("champion", "2")


async def test_a_refused_champion_is_not_tried_at_every_poll(
    setting: Setting, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.points_to(1)
    source = setting.source()
    await source.initial()
    setting.points_to(2, previous=1)
    kept = setting.store / "2"
    (kept / "manifest.json").write_text("{}")
    setting.mlflow.aliases["champion"] = ("2", manifest_digest(kept))
    assert await source.poll() is None
    assert source.status.version == "1"
    assert source.status.reason
    loads = []
    monkeypatch.setattr("extender.champion.load_model", lambda *_: loads.append(1))
    setting.now += 599
    assert await source.poll() is None
    assert not loads
    monkeypatch.undo()
    # The same sight is tried again after ten minutes, a new one at once.
    shutil.rmtree(kept)
    shutil.copytree(artifacts["vpa"], kept)
    setting.points_to(2)
    model = await source.poll()
    assert model is not None
    assert source.status == ModelStatus("champion", "2")


async def test_a_refused_champion_is_tried_again_after_a_while(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models import artifact
    from models.errors import ArtifactError

    setting.points_to(1)
    source = setting.source()
    await source.initial()

    def refuse(*_: object) -> Model:
        raise ArtifactError("no memory")

    monkeypatch.setattr("extender.champion.load_model", refuse)
    setting.points_to(2)
    assert await source.poll() is None
    assert source.status == ModelStatus("champion", "1", "no memory")
    monkeypatch.setattr("extender.champion.load_model", artifact.load_model)
    assert await source.poll() is None
    assert source.status.reason == "no memory"
    setting.now += 600
    model = await source.poll()
    assert model is not None
    assert source.status == ModelStatus("champion", "2")


async def test_the_reason_of_a_refusal_outlives_an_outage(setting: Setting) -> None:
    setting.points_to(1)
    source = setting.source()
    await source.initial()
    (setting.store / "2" / "manifest.json").write_text("{}")
    setting.mlflow.aliases["champion"] = ("2", manifest_digest(setting.store / "2"))
    await source.poll()
    refused = source.status
    assert "manifest.json is damaged" in refused.reason
    setting.mlflow.broken = (503, "")
    await source.poll()
    assert source.status.reason == "MLflow answers with HTTP status 503"
    setting.mlflow.broken = None
    await source.poll()
    assert source.status == refused


@pytest.mark.usefixtures("no_children")
async def test_asked_again_for_the_model_to_start_with_it_is_the_champion(
    setting: Setting,
) -> None:
    setting.points_to(2, previous=1)
    source = setting.source(fallback=fallback_model(Policy()))
    for _ in range(2):  # as after a crash of the loop that installs models
        model, status = await source.initial()
        assert model is not None
        assert (model.version, status) == ("2", ModelStatus("champion", "2"))
        assert await source.poll() is None


async def test_without_mlflow_the_copy_that_was_asked_for_last_serves(setting: Setting) -> None:
    os.utime(setting.store / "2", (1000, 1000))
    os.utime(setting.store / "1", (2000, 2000))
    model, status = await setting.source(f"http://127.0.0.1:{closed_port()}").initial()
    assert model is not None
    assert (model.version, status.source, status.version) == ("1", "disk", "1")
    assert "MLflow does not answer" in status.reason


async def test_a_version_that_was_rolled_back_does_not_come_back_without_mlflow(
    setting: Setting,
) -> None:
    os.utime(setting.store / "1", (1000, 1000))
    os.utime(setting.store / "2", (2000, 2000))
    setting.points_to(2, previous=1)
    source = setting.source()
    await source.initial()
    setting.points_to(1, previous=2)
    await source.poll()
    setting.mlflow.broken = (503, "")
    _, status = await setting.source().initial()
    assert (status.source, status.version) == ("disk", "1")


@pytest.mark.usefixtures("no_children")
async def test_a_copy_that_may_only_be_read_serves(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", deny)
    setting.points_to(2)
    _, status = await setting.source().initial()
    assert status == ModelStatus("champion", "2")


async def test_a_damaged_copy_is_passed_over(setting: Setting) -> None:
    os.utime(setting.store / "2", (1000, 1000))
    (setting.store / "1" / "manifest.json").write_text("{}")
    model, status = await setting.source("").initial()
    assert model is not None
    assert (status.source, status.version) == ("disk", "2")
    assert status.reason.startswith("no tracking URI is set")


@pytest.mark.usefixtures("no_children")
async def test_mlflow_coming_back_makes_the_copy_the_champion(setting: Setting) -> None:
    setting.points_to(2)
    setting.mlflow.broken = (500, "")
    source = setting.source()
    _, status = await source.initial()
    assert status.source == "disk"
    setting.mlflow.broken = None
    setting.points_to(int(status.version))
    assert await source.poll() is None  # it serves already
    assert source.status == ModelStatus("champion", status.version)


async def test_with_nothing_else_the_classical_predictor_serves(setting: Setting) -> None:
    shutil.rmtree(setting.store)
    policy = Policy(target=0.05)
    model, status = await setting.source(fallback=fallback_model(policy)).initial()
    assert model is not None
    assert (status.source, status.version) == ("classical", FALLBACK)
    assert "champion: no version" in status.reason
    assert "previous: no version" in status.reason
    assert model.policy == policy
    forecaster = CLASSICAL[FALLBACK]
    assert model.calibration.knobs(0.01).tolist() == [forecaster.default_knob] * 5
    assert model.calibration.knobs(0.1).tolist() == [forecaster.default_knob] * 5


async def test_without_a_fallback_nothing_serves(setting: Setting) -> None:
    shutil.rmtree(setting.store)
    model, status = await setting.source("").initial()
    assert model is None
    assert status == ModelStatus("none", "", "no tracking URI is set")
    assert await setting.source("").poll() is None


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("<html>", "something else than a version"),
        ("{}", "something else than a version"),
        ('{"model_version": {"version": "../../etc", "tags": []}}', "not registered by"),
        ('{"model_version": {"version": "1", "tags": []}}', "not registered by"),
        pytest.param('{"a": ' + "[" * 100_000, "something else than a version", id="deep"),
        pytest.param(
            json.dumps({"model_version": {"version": "1" * 300, "tags": [TAG]}}),
            "1 cannot be fetched",
            id="a folder's name cannot be so long",
        ),
    ],
)
async def test_odd_replies_are_refused(setting: Setting, reply: str, problem: str) -> None:
    setting.mlflow.broken = (200, reply)
    _, status = await setting.source().initial()
    assert status.source == "disk"
    assert problem in status.reason


async def test_a_server_that_hangs_is_unreachable(setting: Setting) -> None:
    setting.mlflow.delay = 5.0
    _, status = await setting.source().initial()
    assert status.source == "disk"
    assert "MLflow does not answer: timeout" in status.reason
    assert setting.mlflow.looks == 1  # not asked for the previous version as well


async def test_a_download_that_takes_too_long_is_killed(setting: Setting) -> None:
    setting.points_to(2)
    shutil.rmtree(setting.store / "2")
    source = ChampionSource(
        setting.uri, setting.store, clock=lambda: 0.0, fallback=None, pull_seconds=0.1
    )
    _, status = await source.initial()
    assert "fetching model 2 took longer than 0.1 s" in status.reason
    assert status.source == "disk"


def test_credentials_are_those_of_mlflows_own_client() -> None:
    assert mlflow_headers({}) == {}
    assert mlflow_headers({"MLFLOW_TRACKING_TOKEN": "t"}) == {"Authorization": "Bearer t"}
    assert mlflow_headers({"MLFLOW_TRACKING_TOKEN": "t\n"}) == {"Authorization": "Bearer t"}
    # base64 of ann:secret
    assert mlflow_headers(
        {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "secret"}
    ) == {"Authorization": "Basic YW5uOnNlY3JldA=="}


async def test_credentials_that_no_header_can_hold_are_a_reason(setting: Setting) -> None:
    headers = mlflow_headers({"MLFLOW_TRACKING_TOKEN": "two\nlines"})
    source = ChampionSource(
        setting.uri, setting.store, clock=lambda: 0.0, fallback=None, headers=headers
    )
    _, status = await source.initial()
    assert status.source == "disk"
    assert status.reason.startswith("MLflow cannot be asked: ")
    assert "lines" not in status.reason


async def test_credentials_are_sent(setting: Setting) -> None:
    source = ChampionSource(
        setting.uri,
        setting.store,
        clock=lambda: 0.0,
        fallback=None,
        headers=mlflow_headers({"MLFLOW_TRACKING_TOKEN": "t"}),
    )
    await source.poll()
    assert setting.mlflow.headers["Authorization"] == "Bearer t"


def register(registry: Registry, folder: Path) -> str:
    return registry.register(folder, params={}, metrics={}, tags={})


@pytest.mark.slow
async def test_a_real_registry_end_to_end(
    tracking_uri: str,
    artifacts: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    registry = Registry(tracking_uri)
    register(registry, artifacts["max-7d"])
    registry.promote("1", "first")
    source = ChampionSource(tracking_uri, tmp_path / "store", clock=lambda: 0.0, fallback=None)
    model, status = await source.initial()
    assert status == ModelStatus("champion", "1")
    assert model is not None
    assert model.forecaster.name == "max-7d"
    register(registry, artifacts["vpa"])
    registry.promote("2", "better")
    model = await source.poll()
    assert model is not None
    assert (model.version, model.forecaster.name) == ("2", "vpa")
    request.getfixturevalue("no_children")  # while nothing changes, nothing is fetched
    assert await source.poll() is None
    # A restart without MLflow serves the champion's copy.
    later = ChampionSource("", tmp_path / "store", clock=lambda: 0.0, fallback=None)
    model, status = await later.initial()
    assert model is not None
    assert (model.version, status.source) == ("2", "disk")


async def test_a_missing_database_is_a_reason(tmp_path: Path) -> None:
    source = ChampionSource(
        f"sqlite:///{tmp_path}/none.db", tmp_path / "store", clock=lambda: 0.0, fallback=None
    )
    model, status = await source.initial()
    assert model is None
    assert "none.db cannot be read: No such file" in status.reason
    assert await source.poll() is None


def test_serving_never_imports_mlflow() -> None:
    code = (
        "import json, sys, extender.champion\n"
        "print(json.dumps(sorted({'mlflow', 'matplotlib', 'models.registry'}"
        " & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
