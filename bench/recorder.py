"""What recording costs the event loop and the disk: python -m bench.recorder.

Two extenders on 5,000 nodes with 50,000 online pods, one of which records, decide the same pods in
turns; each pod is bound to its first candidate, and a refresh comes after every 250. Prints the
time of a filter call of either (it includes the hand-over, and what the recorder's thread takes of
the interpreter), the event loop's CPU time for the hand-overs alone, and the bytes on disk.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson

from bench.decide import node_names, request
from extender.app import Parts, Server
from extender.forecasting import ThreadForecasting
from extender.memory import FixedModel, MemoryCluster
from extender.recorder import Item
from extender.recording import OnlinePod, Recorded, Refresh
from extender.settings import Settings
from models.arrays import Floats
from models.kube.request import RECLAIMED
from models.kube.types import Metadata, Node, NodeStatus
from models.policy import HORIZONS
from models.rolling import Forecast

NODES, PODS = 5_000, 50_000
REFRESH_EVERY = 250
NOW = 1_700_000_100.0


class Extender:
    """One of the two, and how long its calls took, and the hand-overs of its decisions."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        settings = Settings(
            decision_log=str(folder / "decisions.jsonl"), recording_megabytes=megabytes
        )
        cluster = MemoryCluster()
        for name in node_names(NODES):
            status = NodeStatus(allocatable={"cpu": "32"}, capacity={"cpu": "32"})
            cluster.put_node(Node(metadata=Metadata(name=name), status=status))
        nothing = ThreadForecasting(None, settings.prometheus)
        self.server = Server(Parts(settings, lambda: NOW, cluster, nothing, FixedModel(None)))
        cluster.attach(self.server.state.node_feed(), self.server.state.pod_feed())
        self.calls: list[float] = []
        self.handed: list[float] = []
        if self.server.recorder is not None:
            self._put = self.server.recorder.put
            setattr(self.server.recorder, "put", self._timed)  # noqa: B010 - no type fits a method

    def _timed(self, item: Item) -> None:
        began = time.thread_time()
        self._put(item)
        if isinstance(item, Recorded):
            self.handed.append(time.thread_time() - began)

    def refresh(self, forecast: Floats, pods: dict[str, OnlinePod]) -> None:
        """Put a forecast into service."""
        state, expected = self.server.state, forecast * 0.8
        capture, policy = state.capture(), self.server.parts.settings.policy
        served = Forecast(forecast, expected)
        state.serve(capture, served, np.full(NODES, NOW), "1", policy)
        nodes, usage = (capture.nodes, capture.allocatable), expected[:, 0]
        made = Refresh(NOW, int(NOW), "1", *nodes, forecast, expected, pods, 1.0, usage)
        if self.server.recorder is not None:
            self.server.recorder.put(lambda: made)

    def decide(self, body: bytes, uid: str) -> None:
        """One filter call, and the promise that a bind would make."""
        began = time.perf_counter()
        self.server.calls.filter(body)
        self.calls.append(time.perf_counter() - began)
        ledger = self.server.state.ledger
        if (held := ledger.get(uid)) is not None:
            ledger.confirm(uid, held.pod, held.millicpu, held.horizon, held.rows[0], NOW)

    def close(self) -> None:
        """Write what waits."""
        if self.server.recorder is not None:
            self.server.recorder.close()
        self.server.decisions.close()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=2_000)
    parser.add_argument("--per-second", type=float, default=50.0)
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)  # as the extender does
    with tempfile.TemporaryDirectory() as scratch:
        with_it = Extender(Path(scratch, "with"), megabytes=10_000)
        without = Extender(Path(scratch, "without"), megabytes=0)
        measure(with_it, without, options.decisions, 1 / options.per_second)
        with_it.close()
        without.close()
        # A repeated call is answered from the hold and hands nothing over.
        assert len(with_it.handed) == len(with_it.calls) == options.decisions
        recording = Path(scratch, "with").rglob("*.segment")
        size = sum(segment.stat().st_size for segment in recording)
    show("filter, recording", with_it.calls)
    show("filter, not recording", without.calls)
    show("hand-over", with_it.handed)
    print(f"{size / options.decisions:,.0f} bytes on disk for each decision")


def measure(with_it: Extender, without: Extender, decisions: int, pause: float) -> None:
    """Let both decide the same pods at a steady pace."""
    rng = np.random.default_rng(1)
    nodes = node_names(NODES)
    keys = [f"namespace-{at % 50}/deployment-{at % 3000}-5d8f7c9b6d-{at:05x}" for at in range(PODS)]
    for number in range(decisions):
        if number % REFRESH_EVERY == 0:
            forecast = np.sort(rng.uniform(2, 28, (NODES, len(HORIZONS))), axis=1)
            pods = {
                key: OnlinePod(key, nodes[at % NODES], 1.0, NOW, key[:-6])
                for at, key in enumerate(keys)
                if rng.uniform() < 0.99
            }
            for extender in (with_it, without):
                extender.refresh(forecast, pods)
        body = request(nodes, {RECLAIMED: "50"}, number)
        uid = orjson.loads(body)["Pod"]["metadata"]["uid"]
        for extender in (with_it, without) if number % 2 else (without, with_it):
            extender.decide(body, uid)
        time.sleep(pause)


def show(what: str, seconds: list[float]) -> None:
    """Print median, 99th percentile and longest, in milliseconds."""
    middle, high, longest = (float(np.quantile(seconds, q)) * 1e3 for q in (0.5, 0.99, 1.0))
    print(f"{what:<22} median {middle:.3f} ms, p99 {high:.3f} ms, longest {longest:.3f} ms")


if __name__ == "__main__":
    main()
