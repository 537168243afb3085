"""A Prometheus of the test's own: own port, own data, optionally with a past."""

import http.client
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from .errors import NotInstalledError, ProcessError
from .process import Process, free_port
from .web import WebClient, answers

_START_SECONDS = 180.0
_IMPORT_SECONDS = 300.0
# Blocks this long (the next of promtool's sizes below it: 18 h) instead of 2 h: promtool reads
# the whole file again for each block.
_BLOCK = "24h"


@dataclass(frozen=True)
class Sample:
    """One series of an instant query's answer."""

    labels: Mapping[str, str]
    value: float


def find_prometheus() -> tuple[Path, Path]:
    """Return the paths of `prometheus` and `promtool`. Raises NotInstalledError."""
    server, tool = shutil.which("prometheus"), shutil.which("promtool")
    if server is None or tool is None:
        raise NotInstalledError(
            "prometheus and promtool are not on PATH: `apt-get install prometheus` brings both"
        )
    return Path(server), Path(tool)


class Prometheus:
    """A server with the given scrape jobs, on `url` while the `with` block lasts."""

    def __init__(
        self,
        run_dir: Path,
        scrape_configs: Sequence[Mapping[str, Any]] = (),
        backfill: Path | None = None,
        port: int | None = None,
    ) -> None:
        """`run_dir` takes data and log; `backfill` is a file of `backfill.write_openmetrics`.

        `port` is one that another server has left; else it is a free one. Raises NotInstalledError.
        """
        self._server, self._tool = find_prometheus()
        self._run_dir = run_dir
        self._scrape_configs = scrape_configs
        self._backfill = backfill
        self.port = free_port() if port is None else port
        self._address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self._address}"
        self._web = WebClient(self.url)
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The server's process id. Raises ProcessError when it was not started."""
        return self._started().pid

    def paused(self) -> AbstractContextManager[None]:
        """Keep the server from running while the block lasts. Raises ProcessError."""
        return self._started().paused()

    def start(self) -> None:
        """Import the past, start, and return when queries are answered. Raises ProcessError."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        data = self._run_dir / "prometheus-data"
        if self._backfill is not None and not data.exists():
            self._import(self._backfill, data)
        config = self._run_dir / "prometheus.json"  # JSON is YAML
        config.write_text(json.dumps({"scrape_configs": list(self._scrape_configs)}, indent=1))
        command: list[str | Path] = [
            self._server,
            f"--config.file={config}",
            f"--storage.tsdb.path={data}",
            "--storage.tsdb.retention.time=10y",  # else a past of 16 days is deleted at once
            f"--web.listen-address={self._address}",
            "--log.level=warn",
        ]
        self._process = Process("prometheus", command, self._run_dir)
        try:
            self._process.wait_ready(lambda: answers(f"{self.url}/-/ready"), _START_SECONDS)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server; its data stays, and `start` goes on with it."""
        self._web.close()
        if self._process is not None:
            self._process.stop()

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """Return the answer of an instant query, now or at `at` (Unix seconds).

        Raises ValueError when Prometheus rejects the query.
        """
        parameters = {"query": expression} | ({} if at is None else {"time": f"{at:.3f}"})
        reply = self._web.request("GET", f"/api/v1/query?{urlencode(parameters)}")
        if reply.status != http.client.OK:
            raise ValueError(f"{expression}: {reply.body.decode(errors='replace')}")
        result = json.loads(reply.body)["data"]["result"]
        return [Sample(row["metric"], float(row["value"][1])) for row in result]

    def value(self, expression: str, at: float | None = None) -> float | None:
        """Return the first value of a query's answer, or None when it is empty."""
        answer = self.query(expression, at)
        return answer[0].value if answer else None

    def _started(self) -> Process:
        if self._process is None:
            raise ProcessError("Prometheus was not started")
        return self._process

    def _import(self, source: Path, data: Path) -> None:
        arguments = ["tsdb", "create-blocks-from", f"--max-block-duration={_BLOCK}", "openmetrics"]
        try:
            subprocess.run(
                [self._tool, *arguments, source, data],
                check=True,
                capture_output=True,
                text=True,
                timeout=_IMPORT_SECONDS,
            )
        except subprocess.CalledProcessError as e:
            raise ProcessError(f"promtool cannot read {source}: {e.stdout}{e.stderr}") from e
