"""What filter and prioritize cost beside parsing: python -m bench.decide [--cold].

Prints, for 500 and for 10,000 names, the server-side time of each call (from the request's bytes to
the answer's) as a multiple of `orjson.loads` of the same body. The budget is 5. Every filter call
is a pod's first: its hold is taken, its decision logged. What HTTP adds is in `bench.load`.

In a loop of its own a call finds everything in the processor's caches. On a busy control plane it
finds what other programs have left: with `--cold`, caches are filled with other data and other code
before each call, of 500 names among 5,000 nodes, and before each pod's watch event. So measured, a
call takes about what it takes in `bench.cycle`.
"""

import argparse
import time
import timeit
from collections.abc import Callable
from functools import partial
from statistics import median

import msgspec
import numpy as np
import orjson

from extender.app import Parts, Server
from extender.forecasting import ThreadForecasting
from extender.memory import FixedModel, MemoryCluster
from extender.outlook import unknown
from extender.ports import Feed
from extender.settings import Settings
from models.kube.request import RECLAIMED
from models.kube.types import Metadata, Node, NodeStatus, Pod
from models.policy import HORIZONS
from models.rolling import Forecast

NODES = 10_000
COLD_NODES = 5000
NAMES = 500
ROUNDS = 40
COLD_ROUNDS = 150
NOW = 1_700_000_100.0
TIERS = {"offline": {RECLAIMED: "1500"}, "online": {"cpu": "1500m"}}

_OTHER_BYTES = 48 << 20
"""More than the caches of a core, and its share of those that cores have in common, hold."""

_OTHER_FUNCTIONS = 3000

_pod = msgspec.json.Decoder(Pod)


def main() -> None:
    """Measure in one run, in turns, so that the ratio holds whatever else the machine does."""
    parser = argparse.ArgumentParser(prog="python -m bench.decide")
    parser.add_argument("--cold", action="store_true", help="with caches that hold other things")
    if parser.parse_args().cold:
        cold()
    else:
        warm()


def warm() -> None:
    """Print both calls' time in a loop of their own."""
    server = build_server(NODES)
    calls = server.calls
    print(f"{'names':>6} {'call':<18} {'orjson.loads':>12} {'call':>9} {'ratio':>6}  (budget 5)")
    for names in (NAMES, NODES):
        offline, online = (request(node_names(names), asks) for asks in TIERS.values())
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


def cold() -> None:
    """Print the medians of filter calls and watch events of pods, each after other programs' work.

    Names are offered in windows that go round, as kube-scheduler offers them; each pod is bound to
    the best node before the next comes.
    """
    server = build_server(COLD_NODES)
    names = node_names(COLD_NODES)
    print(f"{'pods':<8} {'orjson.loads':>12} {'filter':>9} {'ratio':>6} {'watch event':>12}")
    other = Other()
    for tier, asks in TIERS.items():
        took: list[tuple[float, float, float]] = []
        for number in range(COLD_ROUNDS):
            offered = [names[at % COLD_NODES] for at in range(number * NAMES, (number + 1) * NAMES)]
            body = request(offered, asks, number)
            bound = orjson.loads(body)["Pod"]
            feed = server.state.pod_feed()
            feed.put(_pod.decode(orjson.dumps(bound)))  # it is seen to wait first
            parse = other.then(partial(orjson.loads, body))
            call = other.then(partial(server.calls.filter, body))
            best = orjson.loads(server.calls.filter(body).body)["NodeNames"][0]
            bound["spec"]["nodeName"] = best
            bound["metadata"]["resourceVersion"] = str(2 * COLD_ROUNDS + number)
            event = orjson.dumps(bound)
            took.append((parse, call, other.then(partial(_put, feed, event))))
        parse, call, watch = (median(each) * 1e6 for each in zip(*took, strict=True))
        print(f"{tier:<8} {parse:>9.0f} us {call:>6.0f} us {call / parse:>6.1f} {watch:>9.0f} us")


def _put(feed: Feed[Pod], event: bytes) -> None:
    feed.put(_pod.decode(event))


class Other:
    """Work that leaves nothing of anybody else's in the caches."""

    def __init__(self) -> None:
        self._data = np.zeros(_OTHER_BYTES, np.uint8)
        text = "\n".join(
            f"def f{at}(value):\n    several = [value + {at}] * 3\n    return {{'k{at}': several}}"
            for at in range(_OTHER_FUNCTIONS)
        )
        functions: dict[str, Callable[[int], object]] = {}
        exec(text, functions)  # noqa: S102
        self._functions = [functions[f"f{at}"] for at in range(_OTHER_FUNCTIONS)]

    def then(self, call: Callable[[], object]) -> float:
        """Seconds of a call that comes after it."""
        np.add(self._data, 1, out=self._data)
        for function in self._functions:
            function(1)
        began = time.perf_counter()
        call()
        return time.perf_counter() - began


def first_filter(server: Server, body: bytes) -> object:
    """A filter call whose hold is let go again, so that the next is no repeat, which costs less."""
    answer = server.calls.filter(body)
    server.state.ledger.release(answer.held)
    return answer


def build_server(nodes: int) -> Server:
    """A server that knows so many nodes, with random forecasts."""
    rng = np.random.default_rng(1)
    cluster = MemoryCluster()
    for name in node_names(nodes):
        status = NodeStatus(allocatable={"cpu": "32"}, capacity={"cpu": "32"})
        cluster.put_node(Node(metadata=Metadata(name=name), status=status))
    settings = Settings()
    nothing = ThreadForecasting(None, settings.prometheus)
    server = Server(Parts(settings, lambda: NOW, cluster, nothing, FixedModel(None)))
    cluster.attach(server.state.node_feed(), server.state.pod_feed())
    capture = server.state.capture()
    outlook = unknown(nodes)
    outlook.forecast.forecast[:] = np.sort(rng.uniform(2, 28, (nodes, len(HORIZONS))), axis=1)
    forecast = Forecast(outlook.forecast.forecast, outlook.forecast.forecast * 0.8)
    server.state.serve(capture, forecast, np.full(nodes, NOW), "1", Settings().policy)
    return server


def node_names(count: int) -> list[str]:
    """Names as clouds give them."""
    return [f"gke-production-pool-{at // 1000}-{at:08x}-x7k2" for at in range(count)]


def request(names: list[str], requests: dict[str, str], number: int = 1) -> bytes:
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
        "name": f"batch-{number}",
        "namespace": "team",
        "uid": f"7c5f2a0e-6a51-4b7e-9f7a-{number:012x}",
        "resourceVersion": str(1 + number),
        "labels": {f"label-{at}": "value" for at in range(10)},
        "annotations": {"archimedes.dev/expected-duration": "2h"},
    }
    pod = {
        "metadata": metadata,
        "spec": {"containers": [container], "schedulerName": "default-scheduler"},
        "status": {"phase": "Pending"},
    }
    return orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": names})


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
