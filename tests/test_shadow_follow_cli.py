"""`shadow follow --once`: what an operator mistypes is told in one sentence."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.errors import ArchimedesError
from shadow.cli import app
from shadow.state_file import StateFile
from tests.mlflow_server import closed_port


@pytest.fixture(name="page")
def serve_page() -> Iterator[str]:
    """The address of a web server that is no Prometheus."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Say something else."""
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
            """Stay silent."""

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fails(folder: Path, prometheus: str, *more: str) -> str:
    """What the command says; it must be an error for people, which exits with 2."""
    log = folder / "decisions.jsonl"
    log.touch()
    given = ["follow", "--decisions", str(log), "--prometheus", prometheus, "--once"]
    given += ["--challenger", "koordinator", "--state", str(folder / "state.json"), *more]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, ArchimedesError), result.output
    text = str(result.exception)
    assert "\n" not in text
    return text


def test_prometheus_that_does_not_answer(tmp_path: Path) -> None:
    text = fails(tmp_path, f"http://127.0.0.1:{closed_port()}")
    assert text.startswith("--prometheus: 127.0.0.1 could not be asked")


def test_a_server_that_is_no_prometheus(tmp_path: Path, page: str) -> None:
    assert "answered 200 with something else than data" in fails(tmp_path, page)


def test_a_state_that_another_shadow_uses(tmp_path: Path, page: str) -> None:
    with StateFile(tmp_path / "state.json").alone():
        text = fails(tmp_path, page)
    assert text.endswith("state.json is in use by another `archimedes shadow follow`")
    assert "in use" not in fails(tmp_path, page)  # it has ended


def test_a_state_that_cannot_be_written(tmp_path: Path, page: str) -> None:
    (tmp_path / "file").touch()
    text = fails(tmp_path, page, "--state", str(tmp_path / "file" / "state"))
    assert text.endswith("cannot be written: File exists; name another --state")


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    assert "is no http:// or https:// address" in fails(tmp_path, "prometheus:9090")
    known = "http://127.0.0.1:9"
    assert "is no NAME=VALUE" in fails(tmp_path, known, "--cluster-label", "blue")
    assert "is not a label name" in fails(tmp_path, known, "--cluster-label", "a-b=c")
    both = ("--cluster-label", "a=b", "--prometheus-query", "up")
    assert "put the cluster's label into the query" in fails(tmp_path, known, *both)
    missing = str(tmp_path / "ca.pem")
    assert "cannot be read" in fails(tmp_path, known, "--prometheus-ca-file", missing)
