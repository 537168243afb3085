"""A trace from a real Prometheus and a real API server: it validates, and it replays."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from archimedes.cli import assemble
from models.grid import WINDOW
from models.kube.request import RECLAIMED
from models.trace import read_trace
from tests.controlplane import objects, workload
from tests.controlplane.backfill import cumulated, write_openmetrics
from tests.controlplane.cluster import ControlPlane
from tests.controlplane.prometheus import Prometheus

pytestmark = [
    pytest.mark.controlplane,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("prometheus_installed"),
]

NODES = 4
HOURS = 30
STEP = 60  # seconds between samples of the past
REQUEST, USED = 2.5, 0.5  # cores of each online pod
BATCH, BATCH_HOURS = 0.75, 2  # cores that the offline pod asks for and uses, for how long
CLUSTER = {"cluster": "blue"}

STATE_METRICS = """\
# TYPE kube_pod_info gauge
kube_pod_info{{namespace="{ns}",pod="old-66d8f9b7c5-x2x4z",uid="1",node="node-0",\
created_by_kind="ReplicaSet",created_by_name="old-66d8f9b7c5",cluster="blue"}} 1 {at}
# TYPE kube_pod_container_resource_requests gauge
kube_pod_container_resource_requests{{namespace="{ns}",pod="old-66d8f9b7c5-x2x4z",uid="1",\
container="main",resource="cpu",unit="core",cluster="blue"}} 1.5 {at}
kube_pod_container_resource_requests{{namespace="{ns}",pod="old-66d8f9b7c5-x2x4z",uid="1",\
container="side",resource="cpu",unit="core",cluster="blue"}} 0.25 {at}
kube_pod_container_resource_requests{{namespace="{ns}",pod="old-66d8f9b7c5-x2x4z",uid="1",\
container="main",resource="memory",unit="byte",cluster="blue"}} 3221225472 {at}
# EOF
"""


def write_past(path: Path, namespace: str, end: int) -> Path:
    """Usage of online pods all the time, of two that are gone at first, of a batch at last."""
    start = end - HOURS * 3600 - 600
    times = list(range(start, end + 1, STEP))
    past = {f"web-{number}": f"node-{number % NODES}" for number in range(2 * NODES)}
    gone = ("old-66d8f9b7c5-x2x4z", "forgotten")
    early = [at for at in times if at <= end - 20 * 3600]
    late = [at for at in times if at >= end - BATCH_HOURS * 3600]
    history = {
        (namespace, "batch"): cumulated(late, [BATCH] * len(late)),
        **{(namespace, pod): cumulated(times, [USED] * len(times)) for pod in past},
        **{(namespace, pod): cumulated(early, [0.25] * len(early)) for pod in gone},
    }
    nodes = {key: past.get(key[1], "node-0") for key in history}
    write_openmetrics(path, history, nodes, CLUSTER)
    text = path.read_text().removesuffix("# EOF\n")
    path.write_text(text + STATE_METRICS.format(ns=namespace, at=end - 25 * 3600))
    return path


def create_cluster(cluster: ControlPlane, namespace: str) -> None:
    """Four nodes, one of them tainted, two online pods on each, and one offline pod."""
    manifests = [objects.node(f"node-{n}", cpu=8, memory=32) for n in range(NODES)]
    manifests[3]["spec"] = {
        "taints": [{"key": "gpu", "value": "yes", "effect": "PreferNoSchedule"}]
    }
    workload.create_nodes(cluster.admin, manifests)
    pods = [
        objects.pod(f"web-{n}", namespace, cpu=REQUEST, memory=2, node_name=f"node-{n % NODES}")
        for n in range(2 * NODES)
    ]
    offline = objects.pod("batch", namespace, extended={RECLAIMED: round(BATCH * 1000)}, memory=1)
    workload.create_pods(cluster.admin, [*pods, offline])


def command(*arguments: str) -> dict[str, object]:
    """What a command prints as JSON."""
    run = CliRunner().invoke(assemble(), [*arguments, "--json"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    found: dict[str, object] = json.loads(run.stdout)
    return found


def test_a_cluster_is_imported_and_replayed(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    create_cluster(cluster, namespace)
    end = int(time.time()) // WINDOW * WINDOW
    past = write_past(tmp_path / "past.txt", namespace, end)
    out = tmp_path / "trace"
    with Prometheus(tmp_path / "prometheus", backfill=past) as prometheus:
        said = command(
            *("trainer", "import", "prometheus", str(out), "--prometheus", prometheus.url),
            *("--kubeconfig", str(cluster.kubeconfig("admin")), "--cluster-label", "cluster=blue"),
            *("--start", stamp(end - HOURS * 3600), "--end", stamp(end), "--cpu-max"),
        )
    assert said["left_out"] == [
        (
            "1 pods that have used CPU are gone, and Prometheus has no kube_pod_info of them: "
            "they are left out."
        )
    ]
    trace = read_trace(out)
    assert trace.nodes is not None
    assert trace.usage is not None

    windows = HOURS * 12
    # The pod was last heard of 20 hours before the end: 10 h x 12 windows.
    usage = trace.usage.group_by("pod").agg(
        pl.len(), pl.col("cpu").min().alias("low"), pl.col("cpu").max().alias("high")
    )
    counts = {row[0]: row[1:] for row in usage.sort("pod").iter_rows()}
    assert counts.pop(f"{namespace}/old-66d8f9b7c5-x2x4z") == (120, 0.25, 0.25)
    # Its first sample is 2 hours before the end.
    assert counts.pop(f"{namespace}/batch") == (BATCH_HOURS * 12, BATCH, BATCH)
    assert counts == {f"{namespace}/web-{n}": (windows, USED, USED) for n in range(2 * NODES)}
    assert (trace.usage["cpu_max"] >= trace.usage["cpu"]).all()
    assert trace.usage["cpu_max"].max() == pytest.approx(BATCH)

    pods = {row["pod"].split("/")[1]: row for row in trace.pods.iter_rows(named=True)}
    assert len(pods) == 2 * NODES + 2
    web, old, batch = pods["web-5"], pods["old-66d8f9b7c5-x2x4z"], pods["batch"]
    assert (web["cpu_request"], web["memory_request"], web["node"]) == (REQUEST, 2.0, "node-1")
    assert web["start"].timestamp() == end - HOURS * 3600
    assert (old["workload"], old["node"]) == (f"{namespace}/Deployment/old", "node-0")
    assert (old["cpu_request"], old["memory_request"]) == (1.75, 3.0)  # 1.5 + 0.25; 3 x 2^30
    assert (batch["tier"], batch["cpu_request"], batch["node"]) == ("offline", BATCH, None)
    assert batch["start"].timestamp() == end - BATCH_HOURS * 3600

    figures = command("shadow", "replay", "--trace", str(out), "--hours", "15")
    expected = {
        "nodes": NODES,
        "requested_core_hours": 300.0,  # 8 pods x 2.5 cores x 15 h
        "used_core_hours": 60.0,  # 8 pods x 0.5 cores x 15 h
        "offline_pods_placed": 1,
        "reclaimed_core_hours": BATCH * BATCH_HOURS,
        "violation_rate": 0.0,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
