"""Prometheus and an API server as a test plays them, for imports from production."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import polars as pl
import yaml

from models.grid import WINDOW
from models.trace import Trace, read_trace
from models.usage_source import PrometheusSettings
from tests.controlplane import objects
from trainer.importers.common import Imported
from trainer.importers.production import Production, import_production

Json = dict[str, Any]

START = 1_772_323_200  # 2026-03-01 00:00 UTC
END = START + 3600
RESOURCE = "archimedes.dev/reclaimed-millicpu"
METRICS = ("kube_pod_info", "kube_pod_created", "kube_pod_container_resource_requests")


def born(hours: float) -> str:
    """A moment so many hours after the start, as Kubernetes writes it."""
    return datetime.fromtimestamp(START + hours * 3600, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def a_node(name: str = "n1", hours: float = -100, **spec: object) -> Json:
    node = objects.node(name, cpu=8, memory=32)
    node["metadata"]["creationTimestamp"] = born(hours)
    return {**node, "spec": spec}


def a_pod(name: str, hours: float = -100, **choices: Any) -> Json:  # noqa: ANN401
    spec = choices.pop("spec", {})
    status = choices.pop("status", {"phase": "Running"})
    pod = objects.pod(name, "shop", **{"cpu": 2.0, "memory": 1.0, "node_name": "n1", **choices})
    pod["metadata"]["creationTimestamp"] = born(hours)
    return {**pod, "spec": {**pod["spec"], **spec}, "status": status}


class World:
    """What both servers answer; a test changes it."""

    def __init__(self) -> None:
        self.nodes: list[Json] = [a_node()]
        self.pods: list[Json] = [a_pod("web")]
        self.usage: dict[str, list[float]] = {"web": [0.5] * 12}
        self.peaks: dict[str, list[float]] = {}
        self.metrics: dict[str, list[Json]] = {name: [] for name in METRICS}
        self.past_nodes: dict[str, tuple[float, float, float, float]] = {}
        self.page = 500
        self.prometheus: tuple[int, bytes] | None = None
        self.kubernetes: tuple[int, bytes] | None = None
        self.warnings: list[str] = []
        self.queries: list[Json] = []
        self.tokens: list[str | None] = []
        self.lists: list[str] = []
        self.url = ""
        self.kubeconfig = ""

    def answer(self, path: str, form: Json, token: str | None) -> tuple[int, bytes]:
        """Status and body of one request."""
        if path == "/api/v1/query_range":
            self.tokens.append(token)
            self.queries.append(form)
            return self.prometheus or (200, self._matrix(form))
        self.lists.append(path)
        return self.kubernetes or (200, self._page(path, form))

    def _page(self, path: str, form: Json) -> bytes:
        items = self.nodes if path.endswith("/nodes") else self.pods
        first = int(form.get("continue", "0"))
        stop = first + min(self.page, int(form["limit"]))
        more = {"continue": str(stop)} if stop < len(items) else {}
        return json.dumps({"metadata": more, "items": items[first:stop]}).encode()

    def _matrix(self, form: Json) -> bytes:
        found = next((name for name in METRICS if name in form["query"]), None)
        if found:
            result = self.metrics[found]
        elif "kube_node_status_allocatable" in form["query"] or "mine" in form["query"]:
            result = self._past_nodes(form["query"])
        else:
            cores = self.peaks if "max_over_time" in form["query"] else self.usage
            result = [
                {"metric": {"namespace": "shop", "pod": pod}, "values": self._values(row, form)}
                for pod, row in cores.items()
            ]
        data = {"resultType": "matrix", "result": result}
        said = {"warnings": self.warnings} if self.warnings else {}
        return json.dumps({"status": "success", "data": data, **said}).encode()

    def _past_nodes(self, query: str) -> list[Json]:
        """One figure of each node: its first or last second, bytes, or cores."""
        at = 2 if "min_over_time(timestamp" in query else 3 if "timestamp" in query else 0
        at = 1 if at == 0 and "memory" in query else at
        return [
            {"metric": {"node": node}, "values": [(END, f"{figures[at]}")]}
            for node, figures in self.past_nodes.items()
        ]

    def _values(self, row: list[float], form: Json) -> list[tuple[int, str]]:
        """Samples from the query's start to its end, at the ends of the windows."""
        times = range(int(form["start"]), int(form["end"]) + 1, int(form["step"]))
        return [
            (time, f"{row[(time - START) // WINDOW - 1]}")
            for time in times
            if not math.isnan(row[(time - START) // WINDOW - 1])
        ]


class _Handler(BaseHTTPRequestHandler):
    world: World

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self._reply(url.path, parse_qs(url.query))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._reply(self.path, parse_qs(body))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _reply(self, path: str, form: dict[str, list[str]]) -> None:
        fields = {name: values[0] for name, values in form.items()}
        status, body = self.world.answer(path, fields, self.headers.get("Authorization"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def playing(folder: Path) -> Iterator[World]:
    """Prometheus and the API server at one address, and a kubeconfig for it in a folder."""
    world = World()
    handler = type("Handler", (_Handler,), {"world": world})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        world.url = f"http://127.0.0.1:{server.server_port}"
        world.kubeconfig = str(write_kubeconfig(folder / "kubeconfig", world.url))
        yield world
        server.shutdown()


def write_kubeconfig(path: Path, url: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def wanted(world: World, **changes: Any) -> Production:  # noqa: ANN401
    given = {
        "prometheus": PrometheusSettings(url=world.url, timeout_seconds=5),
        "kubeconfig": world.kubeconfig,
        "resource": RESOURCE,
        "start": START,
        "end": END,
        "peaks": False,
    }
    return Production(**{**given, **changes})


def imported(world: World, out: Path, **changes: Any) -> tuple[Imported, Trace]:  # noqa: ANN401
    said = import_production(
        wanted(world, **changes), out, now=END + 60, track=lambda parts: parts, overwrite=False
    )
    return said, read_trace(out)


def row(trace: Trace, pod: str) -> Json:
    return trace.pods.row(by_predicate=pl.col("pod") == f"shop/{pod}", named=True)


def usage(trace: Trace, pod: str) -> list[tuple[int, float, float | None]]:
    """Of a pod: (number of the window, cores, most cores)."""
    assert trace.usage is not None
    found = trace.usage.filter(pl.col("pod") == f"shop/{pod}").sort("time")
    return [
        (int(time.timestamp() - START) // WINDOW, round(cpu, 4), peak and round(peak, 4))
        for _, time, cpu, peak in found.iter_rows()
    ]
