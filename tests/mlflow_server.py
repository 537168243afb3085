"""A real MLflow for the tests: a server on loopback, and database files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from models.store import MODEL_NAME

START_TIMEOUT = 120


def pytest_configure(config: pytest.Config) -> None:
    # MLflow 3.17 still uses what SQLAlchemy 2.1 deprecates; nothing of ours can change that.
    config.addinivalue_line("filterwarnings", "ignore:The ``noload`` loader:DeprecationWarning")


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """The URI of an `mlflow server` that keeps its database and artifacts in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
        )
    try:
        _wait_for(f"{uri}/health", server, log)
        yield uri
    finally:
        stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End a server and its workers."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(10)


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="session", name="mlflow_server")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a server that lives as long as the tests."""
    with running_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture(scope="session", name="empty_database")
def make_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a model; making one takes MLflow seconds, copying it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(name="database_uri")
def copy_database(empty_database: Path, tmp_path: Path) -> str:
    """The URI of a fresh database file."""
    shutil.copy(empty_database, tmp_path / "registry.db")
    return f"sqlite:///{tmp_path}/registry.db"


@pytest.fixture(name="server_uri")
def clear_server(mlflow_server: str) -> str:
    """The URI of the server, without any registered model."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server, mlflow_server)
    for model in client.search_registered_models(f"name = '{MODEL_NAME}'"):
        client.delete_registered_model(model.name)
    return mlflow_server


@pytest.fixture(name="tracking_uri", params=["database", "server"])
def each_registry(request: pytest.FixtureRequest) -> str:
    """A fresh database file, and a server."""
    return str(request.getfixturevalue(f"{request.param}_uri"))


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(f"mlflow server did not start:\n{log.read_text()}")
