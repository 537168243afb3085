"""Importing from production against servers that the test plays: rows, and every refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from archimedes.cli import main
from models.errors import SourceError
from models.grid import WINDOW
from models.trace import read_trace
from models.usage_source import PrometheusSettings
from tests.production_world import (
    END,
    RESOURCE,
    START,
    World,
    a_node,
    a_pod,
    imported,
    playing,
    row,
    usage,
    wanted,
    write_kubeconfig,
)
from trainer.importers.production import import_production


@pytest.fixture(name="world")
def play(tmp_path: Path) -> Iterator[World]:
    """Both servers."""
    with playing(tmp_path) as world:
        yield world


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
        (["--prometheus", "http://[bad"], "is no http:// or https:// address"),
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
