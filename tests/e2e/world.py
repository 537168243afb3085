"""A cluster of 50 full nodes, a day of usage, and the extender as its own process beside it."""

from __future__ import annotations

import json
import math
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from models.artifact import save_model
from models.classical import classical
from models.constraints import ZONE
from models.generator import ClusterSpec, generate_trace
from models.trace import usage_grid
from tests.controlplane import kwok, objects, workload
from tests.controlplane.api import Json
from tests.controlplane.backfill import cumulated, write_openmetrics
from tests.controlplane.cluster import ControlPlane
from tests.controlplane.process import Process, children, free_port, wait_until
from tests.controlplane.prometheus import Prometheus
from trainer.fit import calibrate_model
from trainer.machines import placement_of

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RESOURCE = "archimedes.dev/reclaimed-millicpu"
DURATION = "archimedes.dev/expected-duration"
PRIORITY_CLASS = "archimedes-offline"

NODES = 50
ZONES = ("zone-0", "zone-1", "zone-2")
NODE_CPU = 8.0
PODS_PER_NODE = 3
REQUEST = 2.5  # cores: 3 x 2.5 = 7.5 of 8 are requested
USAGE = 0.6  # cores that each of them really uses

DAY = 86_400
_HOUR = 3600
STEP = 60  # seconds between samples of the past

_QUEUES = ("active", "backoff", "unschedulable")
_QUIET_LOOKS = 3


class Extender:
    """`archimedes extender` as its own process."""

    def __init__(self, folder: Path, settings: Json) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._config = folder / "extender.yaml"
        self.decisions = folder / "decisions.jsonl"
        self._settings = {**settings, "port": self.port, "decision_log": str(self.decisions)}
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, and return once it is ready and has made its first forecast."""
        self.launch()
        wait_until(self.forecasts, 180, "every node has a forecast")

    def launch(self, **changed: object) -> None:
        """Start it with some settings changed, and return once it is ready."""
        self._config.write_text(yaml.safe_dump(self._settings | changed))
        command = [sys.executable, "-m", "archimedes", "extender", "--config", str(self._config)]
        self._process = Process("extender", command, self._folder)
        self._process.wait_ready(self.ready, 180)

    def stop(self, *, grace: float = 10.0) -> None:
        """SIGTERM, and after ``grace`` seconds SIGKILL; 0 kills at once."""
        if self._process is not None:
            self._process.stop(grace)
            self._process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep it from running while the block lasts. Raises RuntimeError where it does not run."""
        if self._process is None:
            raise RuntimeError("the extender does not run")
        with self._process.paused():
            yield

    def ready(self) -> bool:
        """What /readyz says."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # refused, or late
            return False

    def nodes(self) -> dict[str, Json]:
        """/v1/nodes by node."""
        return {node["node"]: node for node in self.get("/v1/nodes")}

    def get(self, path: str) -> Any:  # noqa: ANN401 - a decoded reply
        """The JSON at a path; an object with one list is that list."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            found = json.load(answer)
        return next(iter(found.values())) if isinstance(found, dict) and len(found) == 1 else found

    def text(self, path: str) -> str:
        """The text at a path."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    def log(self) -> str:
        """The end of its log."""
        return "" if self._process is None else self._process.log_tail()

    def forecaster(self) -> int | None:
        """The id of the process that makes its forecasts, None while there is none."""
        assert self._process is not None
        own = children(self._process.pid).items()
        return next((pid for pid, command in own if "forecast_child" in command), None)

    def forecasts(self) -> bool:
        """Whether every node has a forecast, and nothing keeps it from being promised."""
        nodes = self.nodes()
        return len(nodes) >= NODES and all(
            node["horizons"][0]["forecast_cores"] is not None and not node["blocked"]
            for node in nodes.values()
        )


@dataclass(frozen=True)
class World:
    """What the tests work on."""

    plane: ControlPlane
    namespace: str
    extender: Extender
    account: str
    prometheus: Prometheus
    began: float  # seconds since the epoch: usage has been scraped without a gap since then

    def offline(self, prefix: str, count: int, ask: int, duration: str = "1h") -> list[str]:
        """Create offline pods that ask for so many millicores each; their names."""
        names = [f"{prefix}-{number:03d}" for number in range(count)]
        workload.create_pods(
            self.plane.admin,
            (
                objects.pod(
                    name,
                    self.namespace,
                    extended={RESOURCE: ask},
                    annotations={DURATION: duration},
                    usage=ask / 1000,
                    priority_class=PRIORITY_CLASS,
                )
                for name in names
            ),
        )
        return names

    def pods(self, prefix: str) -> list[Json]:
        """Pods whose names begin so."""
        found = workload.pods(self.plane.admin, self.namespace)
        return [pod for pod in found if pod["metadata"]["name"].startswith(prefix)]

    def delete(self, prefix: str) -> None:
        """Delete pods whose names begin so, and wait until they and their promises are gone."""
        for pod in self.pods(prefix):
            self.remove(pod["metadata"]["name"])
        wait_until(lambda: not self.pods(prefix), 120, f"pods {prefix} are gone")
        wait_until(self.agrees, 120, "the ledger has let go of them")

    def remove(self, name: str) -> None:
        """Delete one pod, and wait for nothing."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
        self.plane.admin.delete(path, grace_seconds=0)

    def asked(self) -> Counter[str]:
        """Millicores of offline pods by node, as the API server shows them."""
        sums: Counter[str] = Counter()
        for pod in workload.pods(self.plane.admin, self.namespace):
            node = pod["spec"].get("nodeName")
            requests = pod["spec"]["containers"][0]["resources"].get("requests", {})
            finished = pod["status"]["phase"] in ("Succeeded", "Failed")
            if node and RESOURCE in requests and not finished:
                sums[node] += millicores(requests[RESOURCE])
        return sums

    def agrees(self) -> bool:
        """Whether the extender's ledger holds what the API server shows, and nothing else."""
        promised = {
            name: node["promised_millicpu"]
            for name, node in self.extender.nodes().items()
            if node["promised_millicpu"]
        }
        return promised == dict(self.asked())

    def settled(self, prefix: str, timeout: float = 240) -> tuple[list[Json], list[Json]]:
        """Wait until kube-scheduler has tried all pods: of these those that run, those that wait.

        Each that has no node must lie in its queue of those that wait for an event. While one is
        tried or bound it is in none, and what kube-scheduler has not heard of yet is missing there.
        """
        quiet = 0

        def tried() -> bool:
            nonlocal quiet
            waiting = sum(not pod["spec"].get("nodeName") for pod in self.pods(""))
            is_quiet = self._queues() == (0, 0, waiting) and self.agrees()
            quiet = quiet + 1 if is_quiet else 0
            return quiet == _QUIET_LOOKS

        wait_until(tried, timeout, f"no more of {prefix} is placed", interval=0.5)
        pods = self.pods(prefix)
        return (
            [pod for pod in pods if pod["spec"].get("nodeName")],
            [pod for pod in pods if not pod["spec"].get("nodeName")],
        )

    def retry(self) -> None:
        """Have kube-scheduler try again what an extender has refused.

        It does so at an event, such as a change of a node's annotations, or after five minutes; of
        a newer forecast it hears nothing. At least one pod must wait.
        """
        before = self._tries()
        path = "/api/v1/nodes/node-00"
        self.plane.admin.patch(path, {"metadata": {"annotations": {"retried": str(time.time())}}})
        wait_until(lambda: self._tries() > before, 120, "kube-scheduler tries a pod again")

    def _tries(self) -> float:
        """How often kube-scheduler has tried a pod."""
        return sum(self._samples("scheduler_schedule_attempts_total").values())

    def _queues(self) -> tuple[float, ...]:
        """How many pods kube-scheduler has in each of its queues of pods."""
        found = self._samples("scheduler_pending_pods")
        return tuple(found.get(f'{{queue="{name}"}}', 0.0) for name in _QUEUES)

    def _samples(self, metric: str) -> dict[str, float]:
        """A metric of kube-scheduler, by the labels of its samples."""
        lines = self.plane.scheduler_metrics().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line.startswith(f"{metric}{{"))
        return {name.removeprefix(metric): float(value) for name, value in samples}


def zone_of(node: str) -> str:
    """The zone in which a node is."""
    return ZONES[int(node.removeprefix("node-")) % len(ZONES)]


def millicores(quantity: str) -> int:
    """An extended resource's amount; the API server writes 2000 as "2k"."""
    return int(quantity[:-1]) * 1000 if quantity.endswith("k") else int(quantity)


def reclaimable(node: Json) -> int:
    """What the design's formula gives for one hour: 8 x 0.95 - 0.1 - forecast, in millicores."""
    free = NODE_CPU * 0.95 - 0.1 - float(node["horizons"][0]["forecast_cores"])
    return max(math.floor(free * 1000 + 1e-6), 0)


@contextmanager
def build_world(
    plane: ControlPlane, namespace: str, folder: Path, *, still: bool
) -> Iterator[World]:
    """Fill 50 nodes, remember a day, start Prometheus, the extender and kube-scheduler.

    ``still``: end Prometheus after the first forecast, and promise on what it knew for hours.
    """
    names = [f"node-{number:02d}" for number in range(NODES)]
    workload.create_nodes(
        plane.admin,
        (objects.node(name, cpu=NODE_CPU, labels={ZONE: zone_of(name)}) for name in names),
    )
    online = {f"online-{n:02d}-{p}": names[n] for n in range(NODES) for p in range(PODS_PER_NODE)}
    workload.create_pods(
        plane.admin,
        (
            objects.pod(pod, namespace, cpu=REQUEST, usage=USAGE, node_name=node)
            for pod, node in online.items()
        ),
    )
    workload.wait_for_phase(plane.admin, namespace, online)
    account = shipped_account(plane)
    _save_model(folder / "models" / "1", max_usage_age=2 * _HOUR if still else _HOUR / 4)
    past = write_day(folder / "day.txt", namespace, online)  # last: until it is scraped, none is
    scrape = [kwok.scrape_config(plane.kwok_port)]
    with Prometheus(folder / "prometheus", scrape, past) as prometheus:
        extender = Extender(
            folder,
            {
                "kubeconfig": str(plane.kubeconfig(account)),
                "prometheus": {"url": prometheus.url, "history_days": 1, "delay_seconds": 10},
                "model": {"directory": str(folder / "models")},
                "refresh_seconds": _HOUR if still else 5,
                "hold_seconds": 5,
            },
        )
        try:
            extender.start()
            began = time.time()
            plane.start_scheduler(shipped_configuration(extender.url))
            if still:  # each full hour is a refresh's time, whenever the extender began
                prometheus.stop()
            yield World(plane, namespace, extender, account, prometheus, began)
        finally:
            extender.stop()


def shipped_account(plane: ControlPlane) -> str:
    """The extender's account, with the shipped rights and limits; its user name."""
    for manifest in ("rbac.yaml", "admission-policy.yaml", "priority-class.yaml"):
        plane.kubectl("apply", "-f", str(DEPLOY / manifest))
    return plane.service_account("kube-system", "archimedes-extender")


def shipped_configuration(url: str) -> Json:
    """deploy/kube-scheduler-config.yaml with the test's address, and nothing else changed."""
    text = (DEPLOY / "kube-scheduler-config.yaml").read_text()
    assert text.count("http://127.0.0.1:8080") == 2
    config: Json = yaml.safe_load(text.replace("http://127.0.0.1:8080", url))
    return config


def write_day(path: Path, namespace: str, online: dict[str, str], ago: float = 0.0) -> Path:
    """A day of usage up to so many seconds ago: a tide of a quarter around the mean, some noise.

    It ends at what kwok lets the pods use, whatever the hour, so that forecasts go on as they are.
    """
    rng = np.random.default_rng(0)
    now = time.time() - ago
    times = np.arange(now - DAY, now, STEP)
    tide = 1 + 0.25 * np.sin(2 * np.pi * (times - now) / DAY)
    history = {
        (namespace, pod): cumulated(
            times.tolist(), (USAGE * tide * rng.uniform(0.9, 1.1, len(times))).tolist()
        )
        for pod in online
    }
    return write_openmetrics(
        path, history, {(namespace, pod): node for pod, node in online.items()}
    )


def _save_model(folder: Path, max_usage_age: float) -> None:
    """A calibrated version that follows usage at once, up and down: what a tide needs.

    It is calibrated on a cluster as calm as the test's, so that its margin is small.
    ``max_usage_age``: seconds after which its policy promises nothing any more.
    """
    trace = generate_trace(ClusterSpec(nodes=10, days=6, spikes_per_day=0.1, noise=0.05))
    grid = usage_grid(trace)
    model = calibrate_model(
        classical("koordinator-batch"), grid, seed=0, placement=placement_of(trace, grid)
    )
    policy = msgspec.structs.replace(model.policy, max_usage_age=max_usage_age)
    save_model(replace(model, policy=policy), folder)


def failed_scheduling(world: World, name: str) -> Iterable[str]:
    """Messages of a pod's FailedScheduling events."""
    events = workload.events(world.plane.admin, world.namespace, name)
    return [str(e.get("message") or e.get("note")) for e in events]
