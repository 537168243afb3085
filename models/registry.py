"""The registry of model versions: the only place that talks to MLflow.

Importing this module is cheap; MLflow itself, which takes seconds, is imported by the first call.

Aliases keep no history, so each promotion is also a tag of the version that was promoted
(``archimedes.history.NNNN``) and a file ``audit/NNNN-ACTION.json`` of its run. One file for each
event, because artifact stores cannot append.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from models.check import check_model
from models.errors import RegistryError
from models.promotion import Event, promote, rollback
from models.store import ALIASES, DIGEST_TAG, MODEL_NAME, install, manifest_digest
from models.versions import DataSource, Version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.entities import PagedList

T = TypeVar("T")

_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_HISTORY = "archimedes.history."
_INTENT = "archimedes.intent"

SHADOW_TAG = "archimedes.shadow"
"""Tag of a run with the challenger whose live figures it holds; the champion has a tag of its own.

On the version itself: prefix of its tags, followed by the champion and the figure's name.
"""

_ENVIRONMENT = {
    # Quiet: nothing of MLflow's own on stdout, no telemetry, no alembic chatter.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # An unreachable server is reported after seconds; MLflow's own defaults wait for minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Defaults for this process; what the user has set stays."""


class Registry:
    """Model versions and runs in one MLflow, addressed by its tracking URI.

    Every method raises RegistryError where MLflow cannot be reached or refuses.
    """

    def __init__(self, tracking_uri: str, clock: Callable[[], float] = time.time) -> None:
        self.tracking_uri = tracking_uri
        self._clock = clock
        self._shown = _without_password(tracking_uri)
        self._client: MlflowClient | None = None

    def prepare(self) -> None:
        """Make what is missing: a database file, the experiment, the registered model.

        Costs seconds for a new database file. Whoever trains for minutes calls this first, to hear
        early that the registry cannot be used.
        """
        with self._talk(create=True) as client:
            self._experiment(client)
            _ensure_model(client)

    def register(
        self,
        folder: Path,
        *,
        params: Mapping[str, object],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        data: DataSource | None = None,
        figures: Path | None = None,
        run_name: str = "train",
    ) -> str:
        """Log a run with a model folder and register it as the challenger; the new version.

        The folder becomes a logged model of the run, and the version points there, so that MLflow's
        pages of run, model and version link to each other.

        Args:
            folder: what `models.artifact.save_model` wrote.
            params, metrics: of the run; metrics belong to the model as well.
            tags: of the run and the version.
            data: the trace, shown as the run's dataset.
            figures: a folder whose files become artifacts under ``figures/``.
            run_name: what the run is called.
        """
        digest = manifest_digest(folder)
        with self._talk(create=True) as client:
            experiment = self._experiment(client)
            _ensure_model(client)
            with _run(client, experiment, run_name, tags) as run_id:
                model_id, location = _log_model(client, experiment, run_id, folder)
                _log(client, run_id, params, metrics, model_id)
                if data is not None:
                    _log_dataset(client, run_id, data)
                if figures is not None:
                    client.log_artifacts(run_id, str(figures), "figures")
                made = client.create_model_version(
                    MODEL_NAME,
                    location,
                    run_id,
                    tags={**tags, DIGEST_TAG: digest},
                    model_id=model_id,
                )
                version = str(made.version)
                link = _json([{"name": MODEL_NAME, "version": version}])
                client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
            client.set_registered_model_alias(MODEL_NAME, "challenger", version)
        return version

    def log_run(
        self,
        run_name: str,
        *,
        params: Mapping[str, object],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Path | None = None,
    ) -> str:
        """Log a run without a model (an evaluation, a comparison); its id.

        ``artifacts`` is a folder whose content becomes the run's artifacts.
        """
        with self._talk(create=True) as client:
            experiment = self._experiment(client)
            with _run(client, experiment, run_name, tags) as run_id:
                _log(client, run_id, params, metrics, None)
                if artifacts is not None:
                    client.log_artifacts(run_id, str(artifacts))
        return run_id

    def log_shadow(
        self, version: str, champion: str, figures: Mapping[str, float], now: float
    ) -> None:
        """Put a live trial's figures on its challenger: tags for now, and a point on each curve.

        The curves are metrics of one run for each challenger and champion, which its tags name. The
        step is the minute, so that a point which is logged again is the same point.

        Args:
            version: the challenger's number.
            champion: the version that served.
            figures: by name; what is not finite is left out.
            now: seconds since the epoch.
        """
        from mlflow.entities import Metric

        known = {name: value for name, value in figures.items() if math.isfinite(value)}
        with self._talk() as client:
            self._version(client, version)
            run_id = self._shadow_run(client, version, champion)
            at, step = int(now * 1000), int(now // 60)
            client.log_batch(run_id, [Metric(f"shadow.{k}", v, at, step) for k, v in known.items()])
            for name, value in known.items():
                key = f"{SHADOW_TAG}.{champion}.{name}"
                client.set_model_version_tag(MODEL_NAME, version, key, f"{value:.6g}")

    def _shadow_run(self, client: MlflowClient, version: str, champion: str) -> str:
        """The run with a trial's live figures; made when absent."""
        experiment = self._experiment(client)
        tags = {SHADOW_TAG: version, f"{SHADOW_TAG}.champion": champion}
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = client.search_runs([experiment], wanted)
        if found:
            return str(found[0].info.run_id)
        name = f"shadow of version {version} against {champion}"
        with _run(client, experiment, name, tags) as run_id:
            return run_id

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        with self._talk() as client:
            aliases = _aliases(self._model(client))
            metrics = self._metrics(client)
            return [
                Version(
                    version=str(found.version),
                    aliases=tuple(a for a in ALIASES if aliases.get(a) == str(found.version)),
                    created=found.creation_timestamp / 1000,
                    run_id=found.run_id or "",
                    tags=dict(found.tags),
                    metrics=metrics.get(found.run_id or "", {}),
                )
                for found in _search(client)
            ]

    def alias(self, name: str) -> str | None:
        """The version that an alias names, or None where it names none."""
        with self._talk() as client:
            model = self._registered(client)
            return None if model is None else _aliases(model).get(name)

    def history(self) -> list[Event]:
        """Every change of the champion, the oldest first."""
        with self._talk() as client:
            self._model(client)
            return _Shelf(client, self._shown).history()

    def promote(self, ref: str, reason: str, by: str = "") -> Event | None:
        """Make a version (a number or an alias) the champion, see `models.promotion.promote`."""
        with self._talk() as client:
            version = str(self._version(client, ref).version)
            return promote(_Shelf(client, self._shown), version, reason, by, self._clock())

    def rollback(self, reason: str, by: str = "") -> Event:
        """Swap champion and previous, see `models.promotion.rollback`."""
        with self._talk() as client:
            self._model(client)
            return rollback(_Shelf(client, self._shown), reason, by, self._clock())

    def pull(self, ref: str, folder: Path) -> str:
        """Put a checked copy of a version at ``folder/VERSION``; the version.

        Args:
            ref: a version's number, or an alias.
            folder: the store, see `models.store`.

        Raises:
            RegistryError: no such version, or it cannot be downloaded or written.
            ArtifactError: it is not what was registered, or fails the check.
        """
        with self._talk() as client:
            found = self._version(client, ref)
            version, digest = str(found.version), found.tags.get(DIGEST_TAG)
            if digest is None:
                raise RegistryError(
                    f"version {version} was not registered by archimedes (it has no tag "
                    f"{DIGEST_TAG}); register it with `archimedes trainer train --register`"
                )
            source = client.get_model_version_download_uri(MODEL_NAME, version)
        try:
            install(
                folder,
                version,
                digest,
                fetch=lambda scratch: self._download(source, scratch),
                check=check_model,
            )
        except OSError as e:
            raise RegistryError(f"version {version} cannot be written to {folder}: {e}") from e
        return version

    def _version(self, client: MlflowClient, ref: str) -> ModelVersion:
        """The version that a number or an alias names."""
        number = ref if ref.isdecimal() else _aliases(self._model(client)).get(ref)
        if number is None:
            known = "no version has that alias" if ref in ALIASES else "no such version or alias"
            raise RegistryError(
                f"{ref!r} names no model in {self._shown}: {known}; "
                "`archimedes models list` shows what there is"
            )
        found = [v for v in _search(client) if int(v.version) == int(number)]
        if not found:
            raise RegistryError(
                f"version {number} is not in {self._shown}; `archimedes models list` shows "
                "what there is"
            )
        return found[0]

    def _model(self, client: MlflowClient) -> RegisteredModel:
        model = self._registered(client)
        if model is None:
            raise RegistryError(
                f"no model is registered in {self._shown} yet; "
                "register one with `archimedes trainer train --trace DIR --register`"
            )
        return model

    def _registered(self, client: MlflowClient) -> RegisteredModel | None:
        from mlflow.exceptions import MlflowException

        try:
            return client.get_registered_model(MODEL_NAME)
        except MlflowException as e:
            if e.error_code != _ABSENT:
                raise
            return None

    def _experiment(self, client: MlflowClient) -> str:
        """The id of the experiment that holds the runs; made when absent.

        A server decides itself where artifacts go; for a database file it is a folder beside it.
        """
        found: Experiment | None = client.get_experiment_by_name(MODEL_NAME)
        if found is not None:
            return str(found.experiment_id)
        database = _database(self.tracking_uri)
        location = None
        if database is not None:
            location = database.resolve().with_name(f"{database.stem}-artifacts").as_uri()
        return str(client.create_experiment(MODEL_NAME, artifact_location=location))

    def _metrics(self, client: MlflowClient) -> dict[str, dict[str, float]]:
        """The metrics of every run, by run id."""
        experiment: Experiment | None = client.get_experiment_by_name(MODEL_NAME)
        if experiment is None:
            return {}
        runs = _pages(
            lambda token: client.search_runs([experiment.experiment_id], page_token=token)
        )
        return {run.info.run_id: dict(run.data.metrics) for run in runs}

    def _download(self, source: str, scratch: Path) -> Path:
        with self._talk():
            from mlflow.artifacts import download_artifacts

            return Path(
                download_artifacts(
                    artifact_uri=source, dst_path=str(scratch), tracking_uri=self.tracking_uri
                )
            )

    @contextmanager
    def _talk(self, *, create: bool = False) -> Iterator[MlflowClient]:
        """A client whose errors are RegistryErrors.

        Args:
            create: whether a database file that does not exist is made.
        """
        database = _database(self.tracking_uri)
        if database is not None:
            self._require(database, create=create)
        _prepare()
        with _translated(self._shown):
            if self._client is None:
                from mlflow import MlflowClient

                self._client = MlflowClient(self.tracking_uri, self.tracking_uri)
            yield self._client

    def _require(self, database: Path, *, create: bool) -> None:
        if database.is_file():
            with database.open("rb") as file:
                head = file.read(16)
            if head and head != b"SQLite format 3\0":
                raise RegistryError(f"{database} is not an SQLite database; name another file")
        elif not create:
            raise RegistryError(
                f"there is no registry at {self._shown}; name one with --tracking-uri or "
                "MLFLOW_TRACKING_URI, or make one with `archimedes trainer train --register`"
            )
        elif not database.parent.is_dir():
            raise RegistryError(
                f"{self._shown} lies in a folder that does not exist; make it first"
            )


class _Shelf:
    """Aliases, tags and audit files of the registered model, for `models.promotion`."""

    def __init__(self, client: MlflowClient, shown: str) -> None:
        self._client = client
        self._shown = shown

    def aliases(self) -> Mapping[str, str]:
        return _aliases(self._client.get_registered_model(MODEL_NAME))

    def set_alias(self, alias: str, version: str) -> None:
        self._client.set_registered_model_alias(MODEL_NAME, alias, version)

    def delete_alias(self, alias: str) -> None:
        self._client.delete_registered_model_alias(MODEL_NAME, alias)

    def history(self) -> list[Event]:
        events = [
            msgspec.json.decode(value, type=Event)
            for version in _search(self._client)
            for key, value in version.tags.items()
            if key.startswith(_HISTORY)
        ]
        return sorted(events, key=lambda event: event.number)

    def record(self, event: Event) -> None:
        key = f"{_HISTORY}{event.number:04d}"
        self._client.set_model_version_tag(MODEL_NAME, event.champion, key, _json(event))

    def intent(self) -> Event | None:
        text = self._client.get_registered_model(MODEL_NAME).tags.get(_INTENT)
        return None if text is None else msgspec.json.decode(text, type=Event)

    def begin(self, event: Event) -> None:
        self._client.set_registered_model_tag(MODEL_NAME, _INTENT, _json(event))

    def finish(self) -> None:
        self._client.delete_registered_model_tag(MODEL_NAME, _INTENT)

    def audit(self, event: Event) -> None:
        path = f"audit/{event.number:04d}-{event.action}.json"
        with _translated(self._shown):
            run_id = self._client.get_model_version(MODEL_NAME, event.champion).run_id or ""
            self._client.log_text(run_id, _json(event), path)


def _prepare() -> None:
    """Set up this process before it imports MLflow."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@contextmanager
def _translated(shown: str) -> Iterator[None]:
    """Turn what MLflow raises into RegistryError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, msgspec.DecodeError, OSError, ImportError) as e:
        raise RegistryError(
            f"the registry at {shown} cannot be used: {_first_line(e)}; check that MLflow runs "
            "there, and --tracking-uri or MLFLOW_TRACKING_URI"
        ) from e


def _ensure_model(client: MlflowClient) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL_NAME)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _run(
    client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]
) -> Iterator[str]:
    """The id of a new run, which ends as failed where what is done with it fails."""
    run_id = str(client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)
    try:
        yield run_id
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


def _log_model(client: MlflowClient, experiment: str, run_id: str, folder: Path) -> tuple[str, str]:
    """Upload a model folder as a logged model of the run; its id and where it lies."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    model = client.create_logged_model(experiment, MODEL_NAME, source_run_id=run_id)
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model.model_id, model.artifact_location


def _log(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    model_id: str | None,
) -> None:
    """Log parameters and metrics; the metrics belong to the model too, where there is one."""
    from mlflow.entities import Metric, Param

    start = client.get_run(run_id).info.start_time
    client.log_batch(
        run_id,
        metrics=[Metric(k, v, start, 0, model_id=model_id) for k, v in metrics.items()],
        params=[Param(k, str(v)) for k, v in params.items()],
    )


def _log_dataset(client: MlflowClient, run_id: str, data: DataSource) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        data.name,
        data.digest[:36],  # MLflow's limit; the whole digest is a tag
        source_type="local",
        source=_json({"uri": data.name}),
    )
    client.log_inputs(
        run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
    )


def _aliases(model: RegisteredModel) -> dict[str, str]:
    return {alias: str(version) for alias, version in model.aliases.items()}


def _search(client: MlflowClient) -> list[ModelVersion]:
    """All versions with their tags, the newest first."""
    found = _pages(
        lambda token: client.search_model_versions(f"name = '{MODEL_NAME}'", page_token=token)
    )
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def _pages(ask: Callable[[str | None], PagedList[T]]) -> list[T]:
    """All items of an answer that comes in pages."""
    page = ask(None)
    items = list(page)
    while page.token:
        page = ask(page.token)
        items += page
    return items


def _database(uri: str) -> Path | None:
    """The file of an SQLite URI; None for every other URI."""
    if not uri.startswith("sqlite:"):
        return None
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    if name in ("", ":memory:") or name.startswith("sqlite:"):
        raise RegistryError(f"{uri} names no file; write sqlite:///FILE")
    return Path(name)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _without_password(text: str) -> str:
    """Cut user and password out of the addresses in a text."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _first_line(error: Exception) -> str:
    return _without_password((str(error).strip() or type(error).__name__).splitlines()[0])[:200]
