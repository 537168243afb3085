"""A trace from a real Prometheus and a real API server: it validates, and it replays."""

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from archimedes.cli import assemble
from models.grid import WINDOW
from models.kube.request import RECLAIMED
from models.trace import Trace, read_trace
from tests.controlplane import objects, workload
from tests.controlplane.backfill import cumulated, write_openmetrics
from tests.controlplane.cluster import ControlPlane
from tests.controlplane.prometheus import Prometheus

pytestmark = [
    pytest.mark.controlplane,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("prometheus_installed"),
]

NODES = 4
HOURS = 30
STEP = 60  # seconds between samples of the past
REQUEST, USED = 2.5, 0.5  # cores of each online pod
BATCH, BATCH_HOURS = 0.75, 2  # cores that the offline pod asks for and uses, for how long
CLUSTER = {"cluster": "blue"}

GIB = 2**30
OLD = "old-66d8f9b7c5-x2x4z"


def samples(name: str, labels: dict[str, str], value: float, times: Iterable[int]) -> list[str]:
    """A gauge's lines."""
    pairs = ",".join(f'{k}="{v}"' for k, v in (labels | CLUSTER).items())
    return [f"{name}{{{pairs}}} {value} {at}" for at in times]


def state_metrics(namespace: str, end: int) -> list[str]:
    """What kube-state-metrics and a kubelet have told of pods and nodes, by metric."""
    at = end - 25 * 3600
    web = [(f"web-{n}", f"u{n}", f"node-{n % NODES}", at - 10 * 3600) for n in range(2 * NODES)]
    lives = [("db-0", "a", "left", at - 10 * 3600), ("db-0", "b", "older", end - 20 * 3600)]
    pods = [*web, *lives, (OLD, "1", "node-0", at - 10 * 3600)]
    lines = ["# TYPE kube_pod_info gauge"]
    for pod, uid, node, _ in pods:
        kind, owner = ("ReplicaSet", OLD[:-6]) if pod == OLD else ("<none>", "<none>")
        own = {"namespace": namespace, "pod": pod, "uid": uid, "node": node}
        by = {"created_by_kind": kind, "created_by_name": owner}
        lines += samples("kube_pod_info", own | by, 1, [at])
    lines.append("# TYPE kube_pod_created gauge")
    for pod, uid, _, born in pods:
        own = {"namespace": namespace, "pod": pod, "uid": uid}
        lines += samples("kube_pod_created", own, born, [at])
    lines.append("# TYPE kube_pod_container_resource_requests gauge")
    requests = {"web-": (REQUEST, 2), "db-0": (1.0, 1), OLD: (1.5, 3)}
    for pod, uid, _, _ in pods:
        cpu, memory = next(each for name, each in requests.items() if pod.startswith(name))
        own = {"namespace": namespace, "pod": pod, "uid": uid, "container": "main"}
        for resource, amount in (("cpu", cpu), ("memory", memory * GIB)):
            labels = own | {"resource": resource}
            lines += samples("kube_pod_container_resource_requests", labels, amount, [at])
    side = {"namespace": namespace, "pod": OLD, "uid": "1", "container": "side", "resource": "cpu"}
    lines += samples("kube_pod_container_resource_requests", side, 0.25, [at])
    times = range(end - HOURS * 3600, end - 16 * 3600 + 1, WINDOW)
    lines.append("# TYPE kube_node_status_allocatable gauge")
    for resource, amount in (("cpu", 15.5), ("memory", 60 * GIB)):
        labels = {"node": "left", "resource": resource}
        lines += samples("kube_node_status_allocatable", labels, amount, times)
    times = range(end - 24 * 3600, end - 9 * 3600 + 1, WINDOW)
    for name, amount in (("machine_cpu_cores", 16), ("machine_memory_bytes", 64 * GIB)):
        lines.append(f"# TYPE {name} gauge")
        lines += samples(name, {"instance": "left"}, amount, times)  # kube-state-metrics' is less
        lines += samples(name, {"instance": "older"}, amount, times)
    return lines


def write_past(path: Path, namespace: str, end: int) -> Path:
    """Usage of online pods all the time, of some that are gone at first, of a batch at last."""
    start = end - HOURS * 3600 - 600
    times = list(range(start, end + 1, STEP))
    past = {f"web-{number}": f"node-{number % NODES}" for number in range(2 * NODES)}
    gone = (OLD, "forgotten")
    early = [at for at in times if at <= end - 20 * 3600]
    late = [at for at in times if at >= end - BATCH_HOURS * 3600]
    first = cumulated(early[:-1], [0.25] * (len(early) - 1))
    middle = [at for at in times if end - 20 * 3600 <= at <= end - 10 * 3600]
    second = cumulated(middle, [0.5] * len(middle))  # its counter begins anew
    history = {
        (namespace, "batch"): cumulated(late, [BATCH] * len(late)),
        (namespace, "db-0"): ([*first[0], *second[0]], [*first[1], *second[1]]),
        **{(namespace, pod): cumulated(times, [USED] * len(times)) for pod in past},
        **{(namespace, pod): cumulated(early, [0.25] * len(early)) for pod in gone},
    }
    nodes = {key: past.get(key[1], "node-0") for key in history}
    write_openmetrics(path, history, nodes, CLUSTER)
    text = path.read_text().removesuffix("# EOF\n")
    path.write_text(text + "\n".join([*state_metrics(namespace, end), "# EOF\n"]))
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
    end = int(time.time()) // WINDOW * WINDOW  # so all that there is now was created later
    create_cluster(cluster, namespace)
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
    check_usage(trace)
    check_pods(trace, namespace, end)
    check_nodes(trace, end)

    figures = command("shadow", "replay", "--trace", str(out), "--hours", "15")
    expected = {
        "nodes": NODES + 2,
        "requested_core_hours": 305.0,  # 8 pods x 2.5 cores x 15 h, and 1 core x 5 h
        "used_core_hours": 62.5,  # 8 pods x 0.5 cores x 15 h, and 0.5 cores x 5 h
        "offline_pods_placed": 1,
        "reclaimed_core_hours": BATCH * BATCH_HOURS,
        "violation_rate": 0.0,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def check_usage(trace: Trace) -> None:
    """Each pod has its windows, and each life its own."""
    assert trace.usage is not None
    usage = trace.usage.group_by("pod").agg(
        pl.len(), pl.col("cpu").min().alias("low"), pl.col("cpu").max().alias("high")
    )
    counts = {row[0].split("/")[1]: row[1:] for row in usage.sort("pod").iter_rows()}
    # The pod was last heard of 20 hours before the end: 10 h x 12 windows.
    assert counts.pop(OLD) == (120, 0.25, 0.25)
    windows, _, highest = counts.pop("db-0#1")
    assert (windows, highest) == (120, 0.25)
    assert counts.pop("db-0") == (120, 0.5, 0.5)
    # Its first sample is 2 hours before the end.
    assert counts.pop("batch#1") == (BATCH_HOURS * 12, BATCH, BATCH)
    assert counts == {f"web-{n}#1": (HOURS * 12, USED, USED) for n in range(2 * NODES)}
    assert (trace.usage["cpu_max"] >= trace.usage["cpu"]).all()
    assert trace.usage["cpu_max"].max() == pytest.approx(BATCH)


def check_pods(trace: Trace, namespace: str, end: int) -> None:
    """What was before the pods that there are now, and what there is no more."""
    pods = {row["pod"].split("/")[1]: row for row in trace.pods.iter_rows(named=True)}
    assert len(pods) == 2 * NODES + 4
    web, old, batch = pods["web-5#1"], pods[OLD], pods["batch#1"]
    assert (web["cpu_request"], web["memory_request"], web["node"]) == (REQUEST, 2.0, "node-1")
    assert web["start"].timestamp() == end - HOURS * 3600
    assert (old["workload"], old["node"]) == (f"{namespace}/Deployment/old", "node-0")
    assert (old["cpu_request"], old["memory_request"]) == (1.75, 3.0)  # 1.5 + 0.25; 3 x 2^30
    assert (batch["tier"], batch["cpu_request"], batch["node"]) == ("offline", BATCH, None)
    assert batch["start"].timestamp() == end - BATCH_HOURS * 3600
    homes = [(pods[name]["node"], pods[name]["end"].timestamp()) for name in ("db-0#1", "db-0")]
    assert homes == [("left", end - 20 * 3600), ("older", end - 10 * 3600)]


def check_nodes(trace: Trace, end: int) -> None:
    """The nodes that there are, and two that have left."""
    assert trace.nodes is not None
    nodes = {row["node"]: row for row in trace.nodes.iter_rows(named=True)}
    assert sorted(nodes) == ["left", *(f"node-{n}" for n in range(NODES)), "older"]
    left, older = nodes["left"], nodes["older"]
    assert (left["cpu"], left["memory"], left["start"]) == (15.5, 60.0, None)
    assert (older["cpu"], older["memory"]) == (16.0, 64.0)
    assert older["start"].timestamp() == end - 24 * 3600
    for node, hours in ((left, 9), (older, 9)):
        # Prometheus takes a series to go on for a scrape or two after its last sample.
        assert 0 <= node["end"].timestamp() - (end - hours * 3600) <= WINDOW
    assert nodes["node-2"]["end"] is None


def stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
