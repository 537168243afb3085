"""Importing from production against servers that the test plays: rows, lives, and every refusal."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np
import polars as pl
import pytest
import yaml

from archimedes.cli import main
from models.errors import SourceError
from models.grid import WINDOW
from models.trace import Trace, read_trace
from models.usage_source import PrometheusSettings, UsageBlock
from tests.controlplane import objects
from trainer.importers.cluster_objects import LivePod, NodeFacts, PodFacts, pod_facts
from trainer.importers.common import Imported
from trainer.importers.lives import lives
from trainer.importers.production import Production, import_production
from trainer.importers.production_tables import (
    Period,
    Seen,
    nodes_table,
    pods_table,
    usage_rows,
    with_lives,
)

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


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Prometheus and the API server at one address, and a kubeconfig for it."""
    world = World()
    handler = type("Handler", (_Handler,), {"world": world})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        world.url = f"http://127.0.0.1:{server.server_port}"
        world.kubeconfig = str(write_kubeconfig(tmp_path / "kubeconfig", world.url))
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


# What is written


def test_pods_nodes_and_usage(world: World, tmp_path: Path) -> None:
    world.pods = [
        a_pod("web", labels={"app": "web"}),
        a_pod("job", hours=0.5, cpu=None, extended={RESOURCE: 1500}),
    ]
    world.nodes = [a_node(), a_node("n2", hours=0.25, unschedulable=True)]
    said, trace = imported(world, tmp_path / "out")
    assert (said.pods, said.usage_rows, said.left_out) == (2, 12, ())
    assert said.first.timestamp() == START
    assert said.last.timestamp() == END
    web, job = row(trace, "web"), row(trace, "job")
    assert (web["tier"], web["cpu_request"], web["memory_request"]) == ("online", 2.0, 1.0)
    assert (web["workload"], web["node"]) == ("shop/Pod/web", "n1")
    assert web["labels"] == '{"app":"web"}'
    assert web["start"].timestamp() == START - 100 * 3600
    assert web["end"].timestamp() == END  # it still runs
    assert (job["tier"], job["cpu_request"]) == ("offline", 1.5)
    assert usage(trace, "web") == [(at, 0.5, None) for at in range(12)]
    assert trace.nodes is not None
    assert trace.nodes.select("node", "cpu", "memory", "unschedulable").rows() == [
        ("n1", 8.0, 32.0, False),
        ("n2", 8.0, 32.0, True),
    ]
    assert trace.nodes["start"].to_list() == [None, datetime.fromtimestamp(START + 900, UTC)]


def test_gaps_stay_gaps_and_what_is_no_usage_becomes_one(world: World, tmp_path: Path) -> None:
    gap = math.nan
    world.usage = {"web": [0.5, gap, math.inf, -1.0, 5000.0, *[0.5] * 7]}
    _, trace = imported(world, tmp_path / "out")
    assert [at for at, _, _ in usage(trace, "web")] == [0, 5, 6, 7, 8, 9, 10, 11]


def test_peaks_are_read_by_a_query_of_their_own(world: World, tmp_path: Path) -> None:
    world.pods.append(a_pod("db"))
    world.usage = {"web": [0.5] * 12, "db": [1.0] * 12}
    world.peaks = {"db": [2.0] * 11 + [math.nan], "web": [0.25] * 12}
    _, trace = imported(world, tmp_path / "out", peaks=True)
    # Below the mean there is no peak: two queries may see different samples.
    assert usage(trace, "web") == [(at, 0.5, 0.5) for at in range(12)]
    assert usage(trace, "db") == [(at, 1.0, 2.0) for at in range(11)] + [(11, 1.0, None)]
    assert any("[3m1s:1m]" in query["query"] for query in world.queries)


def test_lists_come_in_pages(world: World, tmp_path: Path) -> None:
    world.pods = [a_pod(f"p{number}") for number in range(7)]
    world.usage = {"p6": [0.5] * 12}
    world.page = 3
    said, _ = imported(world, tmp_path / "out")
    assert said.pods == 7
    assert world.lists.count("/api/v1/pods") == 3


def test_a_long_time_is_asked_for_by_the_day(world: World, tmp_path: Path) -> None:
    windows = 3 * 288 + 5
    world.usage = {"web": [0.5] * windows}
    end = START + windows * WINDOW
    said = import_production(
        wanted(world, end=end + 10),
        tmp_path / "out",
        now=end + 60,
        track=lambda parts: parts,
        overwrite=False,
    )
    assert said.usage_rows == windows
    assert (said.first.timestamp(), said.last.timestamp()) == (START, end)
    asked = [q for q in world.queries if "container_cpu" in q["query"]]
    assert [(int(q["end"]) - int(q["start"])) // WINDOW + 1 for q in asked] == [288, 288, 288, 5]


def test_labels_query_and_token_reach_prometheus(world: World, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("mine\n")
    settings = PrometheusSettings(
        url=world.url, cluster_label={"cluster": 'b"1'}, token_file=str(token)
    )
    imported(world, tmp_path / "out", prometheus=settings)
    assert set(world.tokens) == {"Bearer mine"}
    assert all('cluster="b\\"1"' in query["query"] for query in world.queries)


def test_where_pods_may_run_is_kept(world: World, tmp_path: Path) -> None:
    toleration = {"key": "gpu", "operator": "Exists"}
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    spec = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [toleration],
        "affinity": {"nodeAffinity": required, "podAffinity": {}},
        "topologySpreadConstraints": [],
    }
    newer = {"tolerations": [{"key": "load", "operator": "Lt", "value": "5"}]}
    world.pods = [a_pod("web", spec=spec), a_pod("new", spec=newer)]
    world.nodes = [a_node(taints=[{"key": "gpu", "effect": "NoSchedule"}])]
    said, trace = imported(world, tmp_path / "out")
    web = row(trace, "web")
    assert json.loads(web["node_selector"]) == {"disk": "ssd"}
    assert json.loads(web["tolerations"]) == [toleration]
    assert json.loads(web["node_affinity"]) == required
    assert "topology_spread" not in web
    assert row(trace, "new")["tolerations"] is None
    assert said.left_out == (
        "1 times tolerations says more than a trace can: it is left empty there.",
    )
    assert trace.nodes is not None
    assert json.loads(trace.nodes["taints"][0]) == [{"key": "gpu", "effect": "NoSchedule"}]


def test_what_is_no_node_is_left_out(world: World, tmp_path: Path) -> None:
    virtual = a_node("virtual")
    virtual["status"] = {"allocatable": {"cpu": "0", "memory": "1Gi"}}
    world.nodes.append(virtual)
    world.pods.append(a_pod("away", node_name="virtual"))
    said, trace = imported(world, tmp_path / "out")
    assert row(trace, "away")["node"] is None
    assert said.left_out == ("1 nodes offer no CPU or no memory: they are left out.",)


# Pods that are gone


def info(pod: str, kind: str, owner: str, node: str = "n1", at: int = END, uid: str = "") -> Json:
    labels = {"created_by_kind": kind, "created_by_name": owner, "node": node, "uid": uid}
    return {"metric": {"namespace": "shop", "pod": pod, **labels}, "values": [(at, "1")]}


def created(pod: str, uid: str, hours: float) -> Json:
    labels = {"namespace": "shop", "pod": pod, "uid": uid}
    return {"metric": labels, "values": [(END, f"{START + hours * 3600}")]}


def requested(pod: str, resource: str, *amounts: str, uid: str = "") -> Json:
    values = [(END - 86_400 * back, amount) for back, amount in enumerate(reversed(amounts))]
    labels = {"namespace": "shop", "pod": pod, "resource": resource, "uid": uid}
    return {"metric": labels, "values": values[::-1]}


def test_pods_that_are_gone_are_known_from_kube_state_metrics(world: World, tmp_path: Path) -> None:
    early = [0.25] * 4 + [math.nan] * 8
    world.usage |= {"old-5d4f7c9b8-abcde": early, "etl": early, "lost": early}
    world.metrics["kube_pod_info"] = [
        info("old-5d4f7c9b8-abcde", "ReplicaSet", "old-5d4f7c9b8"),
        info("etl", "Job", "etl-29384400", node="left"),
        info("silent", "<none>", "<none>"),  # no usage of it, so nobody knows when it lived
    ]
    world.metrics["kube_pod_container_resource_requests"] = [
        requested("old-5d4f7c9b8-abcde", "cpu", "1", "1.5"),
        requested("old-5d4f7c9b8-abcde", "memory", "2147483648"),
        requested("etl", "archimedes_dev_reclaimed_millicpu", "500"),
    ]
    said, trace = imported(world, tmp_path / "out")
    assert said.pods == 3
    assert said.left_out == (
        (
            "1 pods that have used CPU are gone, and Prometheus has no kube_pod_info of them: "
            "they are left out."
        ),
        (
            "1 pods ran on 1 nodes that are gone, and Prometheus does not tell what these offered: "
            "the pods are placed anew in a replay."
        ),
    )
    old, etl = row(trace, "old-5d4f7c9b8-abcde"), row(trace, "etl")
    assert (old["workload"], old["node"]) == ("shop/Deployment/old", "n1")
    assert (old["tier"], old["cpu_request"], old["memory_request"]) == ("online", 1.5, 2.0)
    assert old["start"].timestamp() == START
    assert old["end"].timestamp() == START + 4 * WINDOW
    assert (etl["workload"], etl["tier"], etl["cpu_request"]) == (
        "shop/CronJob/etl",
        "offline",
        0.5,
    )
    assert etl["node"] is None  # its node is gone too


def test_of_a_pod_that_exists_the_api_server_knows_more(world: World, tmp_path: Path) -> None:
    world.metrics["kube_pod_info"] = [info("web", "StatefulSet", "web")]
    world.metrics["kube_pod_container_resource_requests"] = [requested("web", "cpu", "7")]
    _, trace = imported(world, tmp_path / "out")
    assert row(trace, "web")["cpu_request"] == 2.0


def test_of_two_nodes_the_newer_counts(world: World, tmp_path: Path) -> None:
    world.nodes.append(a_node("n2"))
    world.usage["db-0"] = [0.25] * 12
    world.metrics["kube_pod_info"] = [
        info("db-0", "StatefulSet", "db", node="n2", at=END),
        info("db-0", "StatefulSet", "db", node="n1", at=END - 86_400),
    ]
    _, trace = imported(world, tmp_path / "out")
    assert row(trace, "db-0")["node"] == "n2"


# Nodes that are gone


def test_a_node_that_is_gone_is_known_from_prometheus(world: World, tmp_path: Path) -> None:
    quarter = START + 900.0
    world.past_nodes = {
        "n1": (4.0, 2.0**34, START, END),  # there is one now: the API server knows more
        "left": (16.0, 2.0**36, quarter, START + 1800.0),
        "phantom": (16.0, 2.0**36, START, END),  # no pod of the trace was there
    }
    world.usage["etl"] = [math.nan] * 2 + [0.25] * 6 + [math.nan] * 4
    world.metrics["kube_pod_info"] = [info("etl", "Job", "etl-29384400", node="left")]
    said, trace = imported(world, tmp_path / "out")
    assert said.left_out == ()
    assert row(trace, "etl")["node"] == "left"
    assert trace.nodes is not None
    ended = datetime.fromtimestamp(START + 8 * WINDOW, UTC)  # with its last pod
    began = datetime.fromtimestamp(START + 2 * WINDOW, UTC)  # with its first pod
    assert trace.nodes.select("node", "cpu", "memory", "start", "end").rows() == [
        ("n1", 8.0, 32.0, None, None),
        ("left", 16.0, 64.0, began, ended),
    ]


def test_what_a_node_offered_can_be_asked_for_in_other_words(world: World, tmp_path: Path) -> None:
    imported(world, tmp_path / "out", node_cpu="mine_cpu", node_memory="mine_memory")
    asked = {query["query"] for query in world.queries if "mine" in query["query"]}
    assert asked == {
        "min_over_time((mine_cpu)[1d:5m])",
        "min_over_time((mine_memory)[1d:5m])",
        "min_over_time(timestamp(mine_cpu)[1d:5m])",
        "max_over_time(timestamp(mine_cpu)[1d:5m])",
    }


# Lives


def stateful(world: World, *uids: str, dated: bool = True) -> None:
    """Pods of the name db-0, one every quarter of an hour; each asks for a core more."""
    world.usage["db-0"] = [0.25] * 3 + [0.5] * 3 + [0.75] * 6
    for number, uid in enumerate(uids):
        place = info(
            "db-0", "StatefulSet", "db", node=f"n{number + 1}", uid=uid, at=END - 9 + number
        )
        world.metrics["kube_pod_info"].append(place)
        cores = requested("db-0", "cpu", f"{number + 1}", uid=uid)
        world.metrics["kube_pod_container_resource_requests"].append(cores)
        if dated:
            world.metrics["kube_pod_created"].append(created("db-0", uid, number / 4 + 0.01))


def test_a_name_that_came_back_is_split_into_its_lives(world: World, tmp_path: Path) -> None:
    stateful(world, "a", "b")
    now = a_pod("db-0", hours=0.51, node_name="n1", cpu=7.0)
    now["metadata"]["uid"] = "c"
    world.pods.append(now)
    world.nodes.append(a_node("n2"))
    said, trace = imported(world, tmp_path / "out")
    assert (said.pods, said.left_out) == (4, ())
    # The third began at half past and 36 s: in the seventh window.
    assert usage(trace, "db-0#1") == [(at, 0.25, None) for at in range(3)]
    assert usage(trace, "db-0#2") == [(at, 0.5, None) for at in range(3, 6)]
    assert usage(trace, "db-0") == [(at, 0.75, None) for at in range(6, 12)]
    lived = [row(trace, name) for name in ("db-0#1", "db-0#2", "db-0")]
    assert [(pod["cpu_request"], pod["node"]) for pod in lived] == [
        (1.0, "n1"),
        (2.0, "n2"),
        (7.0, "n1"),
    ]
    assert {pod["workload"] for pod in lived} == {"shop/StatefulSet/db", "shop/Pod/db-0"}
    ends = [int(pod["end"].timestamp() - START) // WINDOW for pod in lived]
    assert ends == [3, 6, 12]


@pytest.mark.parametrize("dated", [True, False])
def test_what_kube_state_metrics_tells_of_the_pod_that_there_is_now_is_no_life(
    world: World, tmp_path: Path, *, dated: bool
) -> None:
    stateful(world, "a", "b", dated=dated)
    now = a_pod("db-0", hours=0.26, cpu=7.0)
    now["metadata"]["uid"] = "b"
    world.pods.append(now)
    said, trace = imported(world, tmp_path / "out")
    assert said.left_out == ()
    assert [row(trace, name)["cpu_request"] for name in ("db-0#1", "db-0")] == [1.0, 7.0]
    assert [at for at, _, _ in usage(trace, "db-0#1")] == [0, 1, 2]
    assert [at for at, _, _ in usage(trace, "db-0")] == list(range(3, 12))


def test_without_dates_only_the_newest_counts(world: World, tmp_path: Path) -> None:
    stateful(world, "a", "b", dated=False)
    world.nodes.append(a_node("n2"))
    said, trace = imported(world, tmp_path / "out")
    assert (row(trace, "db-0")["cpu_request"], row(trace, "db-0")["node"]) == (2.0, "n2")
    assert len(usage(trace, "db-0")) == 12
    assert said.left_out == (
        (
            "1 names had several pods, and Prometheus has no kube_pod_created of them: "
            "only the newest counts."
        ),
    )


def test_usage_from_before_a_pod_was_created_was_another_ones(world: World, tmp_path: Path) -> None:
    world.pods = [a_pod("web", hours=0.5)]
    _, trace = imported(world, tmp_path / "out")
    older, newer = row(trace, "web#1"), row(trace, "web")
    assert (older["cpu_request"], older["node"]) == (2.0, None)  # where it ran nobody knows
    assert (newer["cpu_request"], newer["node"]) == (2.0, "n1")
    assert [at for at, _, _ in usage(trace, "web#1")] == list(range(6))
    assert [at for at, _, _ in usage(trace, "web")] == list(range(6, 12))


def fact(name: str = "shop/web", start: float = math.inf, end: float = math.inf) -> PodFacts:
    return PodFacts(name, "shop/Pod/web", "online", 1.0, 1.0, start, end, "n1")


PERIOD = Period(START, END)


@pytest.mark.parametrize(
    ("pod", "seen", "life"),
    [
        (fact(start=START - 50), None, (START - 50, math.inf)),
        (fact(start=START - 50, end=START + 70), None, (START - 50, START + 70)),
        (fact(start=START - 50, end=START - 1), None, None),  # before the period
        (fact(start=END), None, None),  # after it
        (fact(), None, None),  # gone, and nobody saw it use anything
        (fact(), Seen(START + 300, START + 900), (START + 300, START + 900)),
        # Its first window began before it did.
        (fact(start=START + 600), Seen(START + 300, END), (START + 300, math.inf)),
        (fact(start=END + 10), Seen(START, START + 600), (START, START + 600)),
        (
            fact(start=START - 90, end=START + 70),
            Seen(START, START + 600),
            (START - 90, START + 600),
        ),
    ],
)
def test_lives(pod: PodFacts, seen: Seen | None, life: tuple[float, float] | None) -> None:
    found = with_lives([pod], {pod.pod: seen} if seen else {}, PERIOD)
    assert [(p.start, p.end) for p in found] == ([life] if life else [])


def test_an_end_after_the_period_is_none() -> None:
    pods = [fact(start=START, end=END + 5), fact("shop/b", START, END - 5)]
    table = pods_table(pods, {"n1"}, PERIOD)
    assert table["end"].to_list() == [None, datetime.fromtimestamp(END - 5, UTC)]


def test_a_node_is_there_before_its_first_pod() -> None:
    node = NodeFacts("n1", 8.0, 32.0, START + 900, False, {}, ())
    table = nodes_table([node], [fact(start=START + 300)], PERIOD)
    assert table["start"].to_list() == [datetime.fromtimestamp(START + 300, UTC)]


def test_peaks_of_other_pods_in_another_order() -> None:
    cpu = UsageBlock(START, ("a", "b", "c"), np.array([[1], [2], [3]], np.float32))
    peaks = UsageBlock(START, ("c", "x", "a"), np.array([[7], [8], [9]], np.float32))
    rows = usage_rows(cpu, peaks, lives([fact("a"), fact("b")], {}))
    assert rows.select("pod", "cpu", "cpu_max").rows() == [("a", 1.0, 9.0), ("b", 2.0, None)]


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ({"phase": "Running"}, math.inf),
        ({"phase": "Failed"}, START),  # evicted: when it was created is all that is known
        (
            {
                "phase": "Succeeded",
                "startTime": born(0.1),
                "containerStatuses": [
                    {"state": {"terminated": {"finishedAt": born(0.5)}}},
                    {"state": {"terminated": {"finishedAt": born(0.25)}}},
                ],
            },
            START + 1800,
        ),
    ],
)
def test_when_a_pod_has_ended(status: Json, ended: float) -> None:
    pod = msgspec.convert(a_pod("p", hours=0, status=status), LivePod)
    assert pod_facts(pod, RESOURCE).end == ended


# What is refused: one sentence, and nothing is left behind


def no_usage(world: World) -> None:
    world.usage = {}


def only_strangers(world: World) -> None:
    world.usage = {"stranger": [0.5] * 12}


def partly(world: World) -> None:
    world.warnings = ["a store did not answer"]


def answers(status: int, body: bytes) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.prometheus = (status, body)

    return change


def api_answers(status: int, body: bytes) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.kubernetes = (status, body)

    return change


def api_unreachable(world: World) -> None:
    write_kubeconfig(Path(world.kubeconfig), "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (no_usage, "there is no usage of a known pod between 2026-03-01T00:00:00Z and"),
        (only_strangers, "there is no usage of a known pod"),
        (partly, "answered in part: a store did not answer"),
        (answers(401, b"Unauthorized"), "refused the token, or wants one (status 401)"),
        (answers(403, b"<html>"), "refused the token, or wants one (status 403)"),
        (answers(200, b"<html>"), "answered 200 with something else than data"),
        (answers(200, b'{"version": 1}'), "answered 200: "),
        (
            answers(400, b'{"status":"error","error":"parse error"}'),
            "answered 400: parse error",
        ),
        (api_answers(200, b"<html>"), "is no Kubernetes API server: its list of nodes"),
        (
            api_answers(403, b'{"kind":"Status","message":"nodes is forbidden: User \\"u\\""}'),
            'refused to list nodes: nodes is forbidden: User "u"',
        ),
        (api_answers(401, b"who?"), "refused to list nodes: status 401"),
        (api_unreachable, "the API server at http://127.0.0.1:1 cannot be reached"),
    ],
)
def test_a_server_that_does_not_serve(
    world: World, tmp_path: Path, change: Callable[[World], None], says: str
) -> None:
    change(world)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SourceError) as refused:
        imported(world, tmp_path / "out")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before


def test_prometheus_that_cannot_be_reached(world: World, tmp_path: Path) -> None:
    nobody = PrometheusSettings(url="http://127.0.0.1:1")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1 could not be asked"):
        imported(world, tmp_path / "out", prometheus=nobody)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        (START, START - 300, "is not after --start"),
        (START, START, "is not after --start"),
        (START, END + 61, "is in the future"),
        (START + 1, START + 599, "no whole 5-minute window"),
    ],
)
def test_a_time_that_makes_no_sense(
    world: World, tmp_path: Path, start: int, end: int, says: str
) -> None:
    with pytest.raises(SourceError, match=says):
        imported(world, tmp_path / "out", start=start, end=end)
    assert not world.queries


def test_a_trace_that_stands_is_kept_when_the_import_fails(world: World, tmp_path: Path) -> None:
    imported(world, tmp_path / "out")
    world.prometheus = (503, b"")
    with pytest.raises(SourceError):
        import_production(
            wanted(world), tmp_path / "out", now=END, track=lambda parts: parts, overwrite=True
        )
    assert row(read_trace(tmp_path / "out"), "web")["cpu_request"] == 2.0


# The command


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:  # noqa: ANN401
    """Exit code, what was printed, and what was said of an error."""
    monkeypatch.setattr("sys.argv", ["archimedes", "trainer", "import", "prometheus", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_the_command(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.usage["lost"] = [0.5] * 12
    words = [str(tmp_path / "out"), "--prometheus", world.url, "--kubeconfig", world.kubeconfig]
    words += ["--start", "2026-03-01", "--end", "2026-03-01T01:00"]
    code, out, _ = run(capsys, monkeypatch, *words)
    assert code == 0
    assert out.splitlines()[0].endswith(
        "out: 1 pods, 12 usage rows, 2026-03-01 00:00 to 2026-03-01 01:00 UTC"
    )
    assert out.splitlines()[1].startswith("1 pods that have used CPU are gone")
    code, out, _ = run(capsys, monkeypatch, *words, "--json", "--force")
    assert len(json.loads(out)["left_out"]) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cluster-label", "blue"], "--cluster-label 'blue' is not of the form NAME=VALUE."),
        (["--cpu-max", "--query", "up"], "--cpu-max knows only its own query"),
        (["--kubeconfig", "nowhere"], "kubeconfig nowhere cannot be used: there is no such file"),
        (["--ca-file", "nowhere"], "prometheus.ca_file: nowhere cannot be read"),
        (["--prometheus", "prometheus:9090"], "is no http:// or https:// address"),
        (["--end", "2999-01-01"], "is in the future"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    given = [str(tmp_path / "out"), "--prometheus", world.url, "--kubeconfig", world.kubeconfig]
    given += ["--start", "2026-03-01", "--end", "2026-03-01T01:00", *words]
    code, out, err = run(capsys, monkeypatch, *given)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
