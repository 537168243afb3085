"""What a cycle of a real kube-scheduler costs with this extender: python -m bench.cycle.

Starts etcd, kube-apiserver and kube-scheduler (`make controlplane` builds them), posts nodes, and
schedules the same number of offline or online pods with: no extender, the shipped configuration
with `archimedes extender` behind it, an echo (all names pass, equal scores) in aiohttp and one in
Go's net/http, and two in aiohttp that pass the first 32 names, or one: the least that anything in
aiohttp that narrows could cost. In turns, in one run, with the extender stopped in the turns of
others; kube-scheduler's own metrics say what a cycle took. Prints medians in milliseconds and as a
multiple of no extender (budget: 1.0).

Nodes and pods are bare unless `--lifelike` is given: pods of which kube-scheduler prefers no node,
as a Job's. Then nodes lie in zones, hold images and run pods, and online pods are of ReplicaSets
and belong to Services, so that kube-scheduler spreads them; offline pods are Jobs'.

`--percentage` adds all of them once more with kube-scheduler's `percentageOfNodesToScore` set to
that, so that it looks for fewer nodes (100 at least) than the 10 % that are its default here.

    python -m bench.cycle --nodes 5000 --pods 400 --rounds 5 [--lifelike]      the full size
    flock /tmp/controlplane.lock python -m bench.cycle            where others use the cores too
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import yaml

from bench.rig import world
from bench.rig.objects import RESOURCE, node_name
from tests.controlplane import objects, workload
from tests.controlplane.api import Json
from tests.controlplane.cluster import SCHEDULER, ControlPlane
from tests.controlplane.golang import find_go
from tests.controlplane.installation import needed_go, private_go
from tests.controlplane.process import Process, free_port, wait_until
from tests.controlplane.web import answers

NAMESPACE = "bench"
RIG = Path(__file__).resolve().parent / "rig"
TIERS = ("offline", "online")
NODE_CPU = 32.0
_PLACED_SECONDS = 300.0
_CATCH_UP_SECONDS = 1.0
"""For what was reported meanwhile: some hundred pods that came and went."""

_SHIPPED_URL = "http://127.0.0.1:8080"
_SERVICES = 20
_IMAGES = 40
_RESIDENTS = "residents"


@dataclass(frozen=True, slots=True)
class Contender:
    """kube-scheduler's `extenders` for it; the name is the table's.

    follows: the process behind it, where it is busy with what happens even when it is not called.
    percentage: of the nodes that kube-scheduler looks for; 0 for its default.
    """

    name: str
    extenders: list[Json]
    follows: world.Service | None = None
    percentage: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """How many pods there are in a turn, and whether they are as in most clusters."""

    pods: int
    lifelike: bool


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=200, help="in each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", action="store_true", help="other configurations as well")
    parser.add_argument("--percentage", type=int, default=0, help="of nodes to look for, as well")
    parser.add_argument("--lifelike", action="store_true", help="zones, images, Services, pods")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archimedes-cycle-") as name:
        folder = Path(name)
        flags = ["--enable-priority-and-fairness=false"]
        with ControlPlane(folder / "plane", api_server_flags=flags) as plane:
            workload.create_namespace(plane.admin, NAMESPACE)
            create_nodes(plane, options.nodes, options.lifelike)
            if options.lifelike:
                create_services(plane)
                create_residents(plane, options.nodes)
            with contenders(plane, folder, options.nodes) as found:
                chosen = [*found, *variants(found)] if options.variants else found
                if options.percentage:
                    chosen = [*chosen, *fewer_nodes(found, options.percentage)]
                shape = Shape(options.pods, options.lifelike)
                turn(plane, found[0], "online", shape)  # fills caches; not counted
                report(measure(plane, chosen, shape, options.rounds))


def measure(
    plane: ControlPlane, found: list[Contender], shape: Shape, rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of a cycle by tier and contender, one figure a round."""
    took: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for tier in TIERS:
            # Every other round backwards, so that whoever comes later has no advantage.
            for contender in found if number % 2 == 0 else found[::-1]:
                with alone(contender, found):
                    seconds = turn(plane, contender, tier, shape)
                took.setdefault((tier, contender.name), []).append(seconds * 1000)
    return took


@contextlib.contextmanager
def alone(contender: Contender, found: list[Contender]) -> Iterator[None]:
    """Only this contender's process takes part, and has heard what happened while it did not."""
    with contextlib.ExitStack() as stack:
        for other in {each.follows for each in found if each.follows} - {contender.follows}:
            stack.enter_context(other.process.paused())
        if (own := contender.follows) is not None:
            wait_until(
                lambda: own.metric("archimedes_reclaimable_millicpu") > 0,
                _PLACED_SECONDS,
                f"{contender.name} is connected again",
            )
            time.sleep(_CATCH_UP_SECONDS)
        yield


def report(took: dict[tuple[str, str], list[float]]) -> None:
    """Print the table."""
    print(f"{'pods':<8} {'extender':<24} {'ms a cycle':>10} {'x none':>7}  (budget 1.0)  rounds")
    for (tier, name), figures in took.items():
        none = took[tier, "none"]
        ratio = median(own / other for own, other in zip(figures, none, strict=True))
        each = " ".join(f"{figure:.2f}" for figure in figures)
        print(f"{tier:<8} {name:<24} {median(figures):>10.2f} {ratio:>7.2f}  {'':<12}  {each}")


def turn(plane: ControlPlane, contender: Contender, tier: str, shape: Shape) -> float:
    """Seconds of a cycle when so many pods wait for a scheduler that has just started."""
    pods = shape.pods
    create(plane, "pods", [pod(number, tier, shape.lifelike) for number in range(pods)])
    config: Json = {"extenders": contender.extenders}
    if contender.percentage:
        config["percentageOfNodesToScore"] = contender.percentage
    plane.start_scheduler(config)
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"

    def placed() -> bool:
        left = plane.admin.get(path, fieldSelector="spec.nodeName=", limit="1")
        return not left["items"]

    wait_until(placed, _PLACED_SECONDS, f"{contender.name} has placed {pods} {tier} pods")
    seconds, cycles = algorithm(plane.scheduler_metrics())
    plane.stop_process(SCHEDULER)
    plane.admin.delete(path, grace_seconds=0)
    wait_until(lambda: not plane.admin.get(path, limit="1")["items"], 60, "the pods are gone")
    return seconds / cycles


def pod(number: int, tier: str, lifelike: bool) -> Json:
    """A pod unlike the others, of a workload of its own.

    kube-scheduler may decide pods that are alike in batches (`OpportunisticBatching`), but not
    where any extender is configured: that would be measured instead of the extender.
    """
    name = f"{tier}-{number:04d}"
    asks: Json = {"extended": {RESOURCE: 500 + number}}
    if tier == "online":
        asks = {"cpu": 0.5 + number / 1000}
    labels = {"app": name}
    if lifelike and tier == "online":
        labels["service"] = f"service-{number % _SERVICES}"
    found = objects.pod(name, NAMESPACE, memory=0.1, labels=labels, **asks)
    if lifelike:
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name}
        if tier == "offline":
            owner |= {"apiVersion": "batch/v1", "kind": "Job"}
        found["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    return found


def algorithm(metrics: str) -> tuple[float, float]:
    """Seconds that all scheduling decisions took, and how many there were."""
    name = "scheduler_scheduling_algorithm_duration_seconds"
    found = dict(re.findall(rf"^{name}_(sum|count) (\S+)$", metrics, re.MULTILINE))
    return float(found["sum"]), float(found["count"])


def create_nodes(plane: ControlPlane, count: int, lifelike: bool) -> None:
    """Nodes that are ready and advertise the resource, as kubelets' would after a while."""
    ready = [{"type": "Ready", "status": "True", "reason": "bench"}]
    nodes = []
    for number in range(count):
        amount = {RESOURCE: int(NODE_CPU * 1000)}
        zone = {"topology.kubernetes.io/zone": f"zone-{number % 3}"} if lifelike else {}
        node = objects.node(
            node_name(number), cpu=NODE_CPU, memory=128, extended=amount, labels=zone
        )
        node["status"]["conditions"] = ready
        if lifelike:
            node["status"]["images"] = [image(number + at) for at in range(_IMAGES)]
        nodes.append(node)
    create(plane, "nodes", nodes)


def image(number: int) -> Json:
    """An image as a kubelet reports it."""
    name = f"images.example/team-{number % 400}/app"
    return {"names": [f"{name}@sha256:{number % 400:064d}", f"{name}:1"], "sizeBytes": 10**8}


def create_services(plane: ControlPlane) -> None:
    """Services that select the pods, which by default are spread over zones and nodes then."""
    for number in range(_SERVICES):
        name = f"service-{number}"
        spec = {"selector": {"service": name}, "ports": [{"port": 80}]}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
        plane.admin.post(f"/api/v1/namespaces/{NAMESPACE}/services", service)


def create_residents(plane: ControlPlane, nodes: int) -> None:
    """Two pods on each node that are there already."""
    workload.create_namespace(plane.admin, _RESIDENTS)
    pods = [
        objects.pod(f"resident-{at}", _RESIDENTS, cpu=0.5, node_name=node_name(at % nodes))
        for at in range(2 * nodes)
    ]
    create(plane, "pods", pods, _RESIDENTS)


def create(
    plane: ControlPlane, kind: str, manifests: list[Json], namespace: str = NAMESPACE
) -> None:
    """Post objects, several at a time."""
    path = "/api/v1/nodes" if kind == "nodes" else f"/api/v1/namespaces/{namespace}/pods"

    def post(share: list[Json]) -> None:
        client = plane.client("admin")
        for manifest in share:
            client.post(path, manifest)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(post, [manifests[at::4] for at in range(4)]))


@contextlib.contextmanager
def contenders(plane: ControlPlane, folder: Path, nodes: int) -> Iterator[list[Contender]]:
    """Everyone's processes, up and warm."""
    with contextlib.ExitStack() as stack:
        usage = stack.enter_context(world.prometheus(folder, nodes, nodes))
        settings: world.Json = {
            "kubeconfig": str(plane.kubeconfig("admin")),
            "prometheus": {"url": usage.url, "history_days": 1},
            "model": {"directory": str(folder / "no-models")},
        }
        command = ["archimedes", "extender", "--config", "SETTINGS"]
        extender = stack.enter_context(world.extender(folder, command, settings))
        world.wait_for_forecasts(extender, nodes)
        python, first, one, go = (free_port() for _ in range(4))
        echo = [sys.executable, "-m", "bench.rig.echo"]
        stack.enter_context(answering("echo-aiohttp", [*echo, str(python)], python, folder))
        stack.enter_context(answering("first-32", [*echo, str(first), "32"], first, folder))
        stack.enter_context(answering("first-1", [*echo, str(one), "1"], one, folder))
        stack.enter_context(answering("echo-go", [str(build_echo(folder)), str(go)], go, folder))
        yield [
            Contender("none", []),
            Contender("archimedes", shipped(extender.url), extender),
            Contender("echo in aiohttp", shipped(f"http://127.0.0.1:{python}")[1:]),
            Contender("echo in Go net/http", shipped(f"http://127.0.0.1:{go}")[1:]),
            Contender("first 32 in aiohttp", shipped(f"http://127.0.0.1:{first}")[1:]),
            Contender("first in aiohttp", shipped(f"http://127.0.0.1:{one}")[1:]),
        ]


def variants(found: list[Contender]) -> list[Contender]:
    """The shipped configuration with calls left out, to see what each of them costs."""
    shipped_one = next(each for each in found if each.name == "archimedes")
    (first, second), process = shipped_one.extenders, shipped_one.follows
    return [
        Contender("ranked once", [without_ranking(first), second], process),
        Contender("filter only", [without_ranking(first), without_ranking(second)], process),
        Contender("bound by kube-scheduler", [without(first, "bindVerb"), second], process),
        Contender("first entry only", [first], process),
        Contender("second entry only", [second], process),
    ]


def fewer_nodes(found: list[Contender], percentage: int) -> list[Contender]:
    """All of them, where kube-scheduler looks for so many nodes only."""
    return [
        replace(each, name=f"{each.name}, {percentage} %", percentage=percentage) for each in found
    ]


def without_ranking(extender: Json) -> Json:
    """An entry without its prioritize call."""
    return without(extender, "prioritizeVerb", "weight")


def without(extender: Json, *left_out: str) -> Json:
    """An entry without some of its settings."""
    return {key: extender[key] for key in extender if key not in left_out}


@contextlib.contextmanager
def answering(name: str, command: list[str], port: int, folder: Path) -> Iterator[None]:
    """A process that answers /livez on its port."""
    process = Process(name, command, folder)
    try:
        process.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/livez", None), 60)
        yield
    finally:
        process.stop()


def shipped(address: str) -> list[Json]:
    """The extenders of deploy/kube-scheduler-config.yaml, at an address."""
    text = (world.ROOT / "deploy" / "kube-scheduler-config.yaml").read_text()
    config = yaml.safe_load(text.replace(_SHIPPED_URL, address))
    extenders: list[Json] = config["extenders"]
    return extenders


def build_echo(folder: Path) -> Path:
    """The Go echo, built from bench/rig/echo.go."""
    program = folder / "echo-go-program"
    go = find_go(needed_go(), private_go())
    env = {**os.environ, "GO111MODULE": "off"}
    subprocess.run([go, "build", "-o", program, RIG / "echo.go"], check=True, env=env)
    return program


if __name__ == "__main__":
    main()
