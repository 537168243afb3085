"""What filter and prioritize cost beside parsing: python -m bench.decide.

Prints, for 500 and for 10,000 names, the server-side time of each call (from the request's bytes to
the answer's) as a multiple of `orjson.loads` of the same body. The budget is 5. Every filter call
is a pod's first: its hold is taken, its decision logged. What HTTP adds is in `bench.load`.
"""

import timeit
from collections.abc import Callable
from functools import partial

import numpy as np
import orjson

from extender.app import Parts, Server
from extender.memory import FixedModel, MemoryCluster
from extender.outlook import unknown
from extender.settings import Settings
from models.kube.types import Metadata, Node, NodeStatus
from models.policy import HORIZONS
from models.rolling import Forecast

NODES = 10_000
ROUNDS = 40
NOW = 1_700_000_100.0


def main() -> None:
    """Measure in one run, in turns, so that the ratio holds whatever else the machine does."""
    server = build_server()
    calls = server.calls
    print(f"{'names':>6} {'call':<18} {'orjson.loads':>12} {'call':>9} {'ratio':>6}  (budget 5)")
    for names in (500, NODES):
        offline = request(names, {"archimedes.dev/reclaimed-millicpu": "1500"})
        online = request(names, {"cpu": "1500m"})
        for label, body, call in (
            ("filter", offline, partial(first_filter, server)),
            ("prioritize", offline, calls.prioritize),
            ("filter, online", online, calls.filter),
            ("prioritize, online", online, calls.prioritize),
        ):
            parse, decide = compare(partial(orjson.loads, body), partial(call, body))
            print(
                f"{names:>6} {label:<18} {parse * 1e6:>9.0f} us {decide * 1e6:>6.0f} us"
                f" {decide / parse:>6.1f}"
            )


def first_filter(server: Server, body: bytes) -> object:
    """A filter call whose hold is let go again, so that the next is no repeat, which costs less."""
    answer = server.calls.filter(body)
    server.state.ledger.release(answer.held)
    return answer


def build_server() -> Server:
    """A server that knows NODES nodes with random forecasts."""
    rng = np.random.default_rng(1)
    cluster = MemoryCluster()
    for name in node_names(NODES):
        status = NodeStatus(allocatable={"cpu": "32"}, capacity={"cpu": "32"})
        cluster.put_node(Node(metadata=Metadata(name=name), status=status))
    server = Server(Parts(Settings(), lambda: NOW, cluster, None, FixedModel(None)))
    cluster.attach(server.state.node_feed(), server.state.pod_feed())
    capture = server.state.capture()
    outlook = unknown(NODES)
    outlook.forecast.forecast[:] = np.sort(rng.uniform(2, 28, (NODES, len(HORIZONS))), axis=1)
    forecast = Forecast(outlook.forecast.forecast, outlook.forecast.forecast * 0.8)
    server.state.serve(capture, forecast, np.full(NODES, NOW), "1", Settings().policy)
    return server


def node_names(count: int) -> list[str]:
    """Names as clouds give them."""
    return [f"gke-production-pool-{at // 1000}-{at:08x}-x7k2" for at in range(count)]


def request(names: int, requests: dict[str, str]) -> bytes:
    """A filter or prioritize body with a pod of ordinary size."""
    env = [{"name": f"VARIABLE_{at}", "value": f"some value {at}"} for at in range(20)]
    container = {
        "name": "main",
        "image": "registry.example/team/batch:1.2.3",
        "env": env,
        "resources": {"requests": requests, "limits": requests},
        "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets", "readOnly": True}],
    }
    metadata = {
        "name": "batch-1",
        "namespace": "team",
        "uid": "7c5f2a0e-6a51-4b7e-9f7a-2f3f0f1f2f3f",
        "resourceVersion": "123456",
        "labels": {f"label-{at}": "value" for at in range(10)},
        "annotations": {"archimedes.dev/expected-duration": "2h"},
    }
    pod = {
        "metadata": metadata,
        "spec": {"containers": [container], "schedulerName": "default-scheduler"},
        "status": {"phase": "Pending"},
    }
    return orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": node_names(NODES)[:names]})


def compare(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Seconds of two functions, the least of many turns: what other programs cost is left out."""
    number = max(int(0.01 / timeit.timeit(second, number=1)), 1)
    turns = [
        (timeit.timeit(first, number=number), timeit.timeit(second, number=number))
        for _ in range(ROUNDS)
    ]
    return min(one for one, _ in turns) / number, min(two for _, two in turns) / number


if __name__ == "__main__":
    main()
