"""MLflow's client as the registry calls it: its errors, its pages, and what a run is made of.

Importing this module is cheap; MLflow itself, which takes seconds, is imported by the first call.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from models.errors import RegistryError
from models.store import MODEL_NAME
from models.tracking import without_password
from models.versions import DataSource

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.entities import PagedList

T = TypeVar("T")

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


def quieten() -> None:
    """Set up this process before it imports MLflow."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        os.environ["MLFLOW_TRACKING_TOKEN"] = token.strip()  # a file's last line ends, a header not
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@contextmanager
def translated(shown: str) -> Iterator[None]:
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


def ensure_model(client: MlflowClient) -> None:
    """Make the registered model when it is absent."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL_NAME)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def new_run(
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


def log_model(client: MlflowClient, experiment: str, run_id: str, folder: Path) -> tuple[str, str]:
    """Upload a model folder as a logged model of the run; its id and where it lies."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    model = client.create_logged_model(experiment, MODEL_NAME, source_run_id=run_id)
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model.model_id, model.artifact_location


def log_figures(
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


def log_dataset(client: MlflowClient, run_id: str, data: DataSource) -> None:
    """Show a trace as the dataset of a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        data.name,
        data.digest[:36],  # MLflow's limit; the whole digest is a tag
        source_type="local",
        source=as_json({"uri": data.name}),
    )
    client.log_inputs(
        run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
    )


def aliases_of(model: RegisteredModel) -> dict[str, str]:
    """Alias -> version."""
    return {alias: str(version) for alias, version in model.aliases.items()}


def all_versions(client: MlflowClient) -> list[ModelVersion]:
    """All versions with their tags, the newest first."""
    found = pages(
        lambda token: client.search_model_versions(f"name = '{MODEL_NAME}'", page_token=token)
    )
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def pages(ask: Callable[[str | None], PagedList[T]]) -> list[T]:
    """All items of an answer that comes in pages."""
    page = ask(None)
    items = list(page)
    while page.token:
        page = ask(page.token)
        items += page
    return items


def as_json(value: object) -> str:
    """What a tag or an artifact holds of a value."""
    return msgspec.json.encode(value).decode()


def _first_line(error: Exception) -> str:
    return without_password((str(error).strip() or type(error).__name__).splitlines()[0])[:200]
