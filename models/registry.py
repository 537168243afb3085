"""The registry of model versions, in MLflow: what is registered, logged, promoted and pulled.

Importing this module is cheap; MLflow itself, which takes seconds, is imported by the first call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from models.check import check_model
from models.errors import RegistryError, UnknownVersionError
from models.mlflow_client import (
    aliases_of,
    all_versions,
    as_json,
    ensure_model,
    log_dataset,
    log_figures,
    log_model,
    new_run,
    pages,
    quieten,
    translated,
)
from models.mlflow_shelf import MlflowShelf
from models.promotion import Event, promote, rollback
from models.store import ALIASES, DIGEST_TAG, MODEL_NAME, install, manifest_digest
from models.tracking import database_file, tracking_problem, without_password
from models.versions import DataSource, Version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_ABSENT = "RESOURCE_DOES_NOT_EXIST"
SHADOW_TAG = "archimedes.shadow"
"""Tag of a run with the challenger whose live figures it holds; the champion has a tag of its own.

On the version itself: prefix of its tags, followed by the champion and the figure's name.
"""


class Registry:
    """Model versions and runs in one MLflow, addressed by its tracking URI.

    Every method raises RegistryError where MLflow cannot be reached or refuses.
    """

    def __init__(self, tracking_uri: str, clock: Callable[[], float] = time.time) -> None:
        self.tracking_uri = tracking_uri
        self._clock = clock
        self._shown = without_password(tracking_uri)
        self._client: MlflowClient | None = None

    def prepare(self) -> None:
        """Make what is missing: a database file, the experiment, the registered model.

        Costs seconds for a new database file. Whoever trains for minutes calls this first, to hear
        early that the registry cannot be used.
        """
        with self._talk(create=True) as client:
            self._experiment(client)
            ensure_model(client)

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
            ensure_model(client)
            with new_run(client, experiment, run_name, tags) as run_id:
                model_id, location = log_model(client, experiment, run_id, folder)
                log_figures(client, run_id, params, metrics, model_id)
                if data is not None:
                    log_dataset(client, run_id, data)
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
                link = as_json([{"name": MODEL_NAME, "version": version}])
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
            with new_run(client, experiment, run_name, tags) as run_id:
                log_figures(client, run_id, params, metrics, None)
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

        Raises:
            UnknownVersionError: there is no such challenger, or no longer.
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
        with new_run(client, experiment, name, tags) as run_id:
            return run_id

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        with self._talk() as client:
            aliases = aliases_of(self._model(client))
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
                for found in all_versions(client)
            ]

    def alias(self, name: str) -> str | None:
        """The version that an alias names, or None where it names none."""
        with self._talk() as client:
            model = self._registered(client)
            return None if model is None else aliases_of(model).get(name)

    def history(self) -> list[Event]:
        """Every change of the champion, the oldest first."""
        with self._talk() as client:
            self._model(client)
            return MlflowShelf(client, self._shown).history()

    def promote(self, ref: str, reason: str, by: str = "") -> Event | None:
        """Make a version (a number or an alias) the champion, see `models.promotion.promote`."""
        with self._talk() as client:
            version = str(self._version(client, ref).version)
            return promote(MlflowShelf(client, self._shown), version, reason, by, self._clock())

    def rollback(self, reason: str, by: str = "") -> Event:
        """Swap champion and previous, see `models.promotion.rollback`."""
        with self._talk() as client:
            self._model(client)
            return rollback(MlflowShelf(client, self._shown), reason, by, self._clock())

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
        number = ref if ref.isdecimal() else aliases_of(self._model(client)).get(ref)
        if number is None:
            known = "no version has that alias" if ref in ALIASES else "no such version or alias"
            raise RegistryError(
                f"{ref!r} names no model in {self._shown}: {known}; `archimedes models list` shows "
                "what there is, `archimedes models promote VERSION --reason WHY` makes a champion"
            )
        found = [v for v in all_versions(client) if int(v.version) == int(number)]
        if not found:
            raise UnknownVersionError(
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
        database = database_file(self.tracking_uri)
        location = None
        if database is not None:
            location = database.resolve().with_name(f"{database.stem}-artifacts").as_uri()
        return str(client.create_experiment(MODEL_NAME, artifact_location=location))

    def _metrics(self, client: MlflowClient) -> dict[str, dict[str, float]]:
        """The metrics of every run, by run id."""
        experiment: Experiment | None = client.get_experiment_by_name(MODEL_NAME)
        if experiment is None:
            return {}
        runs = pages(lambda token: client.search_runs([experiment.experiment_id], page_token=token))
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
        if problem := tracking_problem(self.tracking_uri):
            raise RegistryError(f"{problem}; name one with --tracking-uri or MLFLOW_TRACKING_URI")
        database = database_file(self.tracking_uri)
        if database is not None:
            self._require(database, create=create)
        quieten()
        with translated(self._shown):
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
