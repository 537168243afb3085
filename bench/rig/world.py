"""Starts a simulated cluster, its Prometheus and an extender, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.rig import proc
from models.artifact import save_model
from models.generator import ClusterSpec, generate_trace
from models.trace import usage_grid
from tests.controlplane.process import Process, free_port, wait_until
from trainer.fit import fit_model
from trainer.machines import placement_of

ROOT = Path(__file__).resolve().parents[2]
_SYNC_SECONDS = 600.0

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Service:
    """A process that answers HTTP on a port of 127.0.0.1."""

    process: Process
    port: int

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> bytes:
        """The body of a page. Raises OSError where it does not answer with 200."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:  # noqa: S310
            body: bytes = answer.read()
        return body

    def answers(self, path: str) -> bool:
        """Whether a page answers with 200."""
        try:
            self.get(path)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    def metric(self, name: str) -> float:
        """A metric without labels, 0 where there is none."""
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics").decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def resident(self, field: str = "VmHWM") -> int:
        """Bytes of its and its children's memory: the highest so far of each, or ``VmRSS`` now."""
        return sum(proc.resident(pid, field) for pid in proc.family(self.process.pid))

    def cpu_seconds(self) -> float:
        """Seconds of a core that it and its children have used."""
        return sum(map(proc.cpu_seconds, proc.family(self.process.pid)))


@contextlib.contextmanager
def cluster(folder: Path, nodes: int, pods: int) -> Iterator[Service]:
    """The simulated API server."""
    with _simulated("cluster", "/api/v1/nodes?limit=1", folder, nodes, pods) as service:
        yield service


@contextlib.contextmanager
def prometheus(folder: Path, nodes: int, pods: int) -> Iterator[Service]:
    """The simulated Prometheus, with the usage of such a cluster."""
    with _simulated("usage", "/-/ready", folder, nodes, pods) as service:
        yield service


@contextlib.contextmanager
def _simulated(name: str, ready: str, folder: Path, nodes: int, pods: int) -> Iterator[Service]:
    port = free_port()
    sizes = [f"--port={port}", f"--nodes={nodes}", f"--pods={pods}"]
    process = Process(name, [sys.executable, "-m", f"bench.rig.{name}", *sizes], folder)
    try:
        service = Service(process, port)
        process.wait_ready(lambda: service.answers(ready), 60)
        yield service
    finally:
        process.stop()


def kubeconfig(folder: Path, server: str) -> Path:
    """A kubeconfig for the simulated API server."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bench", "cluster": {"server": server}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "current-context": "bench",
    }
    path = folder / "kubeconfig.json"
    path.write_text(json.dumps(config))
    return path


@contextlib.contextmanager
def extender(folder: Path, command: list[str], settings: Json) -> Iterator[Service]:
    """A process that serves the extender's API, running but not yet ready.

    Args:
        folder: for its settings, models and log.
        command: what to run, in which SETTINGS stands for the path of the settings file.
        settings: of the extender, but for its port.
    """
    port = free_port()
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({**settings, "port": port, "log_level": "warning"}))
    named = [sys.executable, "-m", *(str(path) if part == "SETTINGS" else part for part in command)]
    process = Process("extender", named, folder)
    try:
        yield Service(process, port)
    finally:
        process.stop()


def wait_for_forecasts(service: Service, nodes: int) -> float:
    """Return once every node may be promised something; seconds that took."""
    began = time.monotonic()
    service.process.wait_ready(lambda: service.answers("/readyz"), _SYNC_SECONDS)
    # A node that is blocked has no forecast, or no usage, yet; /metrics counts those.
    wait_until(
        lambda: service.metric("archimedes_reclaimable_millicpu") > nodes,
        _SYNC_SECONDS,
        "every node has a forecast",
        interval=0.5,
    )
    return time.monotonic() - began


def train(folder: Path, count: int) -> list[Path]:
    """Learned model versions 1, 2 ... of a small generated cluster, in folders."""
    trace = generate_trace(ClusterSpec(nodes=8, days=8, seed=3))
    grid = usage_grid(trace)
    placement = placement_of(trace, grid)
    folders = [folder / str(number + 1) for number in range(count)]
    for seed, path in enumerate(folders):
        model = fit_model(grid, seed=seed, placement=placement, max_rows=3000, threads=1)
        save_model(model, path)
    return folders
