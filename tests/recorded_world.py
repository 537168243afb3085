"""Ten hours of a real extender with files on disk: everything that a recording can tell happens."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from extender.memory import GridUsage
from extender.wire import decode_binding
from models.classical import CLASSICAL
from models.grid import WINDOW, UsageGrid
from models.model import Model
from models.shipped import shipped
from tests.extender_world import (
    PLAIN,
    START,
    Json,
    World,
    as_node,
    as_pod,
    binding,
    node_json,
    pod_json,
)

BEGIN = int(START)
REFRESHES = 120  # ten hours
CHANGE = 12  # after an hour nodes and pods come and go
FIRST_JOB = 72  # after six hours, of which five are history to a replay
NODES = ("n1", "n2", "n3", "n4")
ONLINE = ("n1-a", "n1-b", "n2-a", "n2-b", "n3-a", "n3-b", "n4-a", "n5-a")
REQUEST = {"a": 3.0, "b": 1.0}  # cores
ASK = 2400  # millicores: two fit beside the online pods of each of the four nodes
UNSEEN = 40  # from this window on, one pod is not observed for 20 minutes
SURGE = 114
JOBS = 36
LASTS = 10  # windows from bind to end: with one arrival in each, some wait for others to end


def usage() -> UsageGrid:
    """What each online pod uses: a wave of an hour, that of its node."""
    windows = np.arange(-24, REFRESHES + 1)
    hour = 2 * np.pi * windows / 12
    cpu = np.stack([0.5 + 0.1 * int(name[1]) + 0.3 * np.sin(hour) for name in ONLINE])
    cpu[7, (windows >= UNSEEN) & (windows < UNSEEN + 4)] = np.nan  # n5's only pod
    cpu[2, windows == SURGE] += 4.0  # n2-a: with two jobs beside it, its node runs hot
    return UsageGrid(
        start=BEGIN + int(windows[0]) * WINDOW,
        cpu=cpu.astype(np.float32),
        cpu_max=None,
        pods=tuple(f"default/{name}" for name in ONLINE),
        workloads=ONLINE,
        request=np.array([REQUEST[name[-1]] for name in ONLINE]),
        born=np.zeros(len(ONLINE), np.int64),
        gone=np.full(len(ONLINE), BEGIN + 10**6),
    )


def champion() -> Model:
    """The model that serves, and with which the trace is replayed."""
    return shipped(CLASSICAL["trailing-max-24h"], PLAIN)


class Recorded:
    """The extender beside a cluster in memory; ``placed`` are the jobs that were bound."""

    def __init__(self, log: Path) -> None:
        self.world = World(
            NODES, usage=GridUsage(usage()), now=START, decision_log=str(log), candidates=4
        )
        self.log = log
        self.placed: list[str] = []
        self._waiting: list[Json] = []
        self._ends: dict[int, list[str]] = {}
        for name in ONLINE[:7]:
            self._start_online(name, START - 9 * 86_400)
        self.world.sync()

    async def run(self) -> None:
        """All ten hours; then the files are closed."""
        server = self.world.server
        await server.refresher.refresh()
        await server.refresher.install(champion(), "test")
        for number in range(REFRESHES):
            self.world.now = START + number * WINDOW + 20
            self.world.cluster.hear()
            if number == CHANGE:
                self._change()
            if number:
                await server.refresher.refresh()
            for name in self._ends.pop(number, ()):
                self.world.cluster.delete_pod("default", name)
            self._arrive(number)
            await self._place(number)
        await server.close()

    def _start_online(self, name: str, started: float, uid: str | None = None) -> None:
        cpu = f"{REQUEST[name[-1]]:g}"
        pod = pod_json(name, cpu=cpu, node=name[:2], phase="Running", uid=uid)
        pod["status"]["startTime"] = moment(started)
        self.world.cluster.put_pod(as_pod(pod))

    def _change(self) -> None:
        """A node leaves with its pod, another joins with one, and a pod is renewed."""
        cluster = self.world.cluster
        cluster.delete_pod("default", "n4-a")
        cluster.delete_node("n4")
        cluster.put_node(as_node(node_json("n5")))
        self._start_online("n5-a", self.world.now)
        cluster.delete_pod("default", "n1-b")
        self._start_online("n1-b", self.world.now, uid="another")

    def _arrive(self, number: int) -> None:
        """A job in each window, and with the first one that no node can ever take."""
        job = number - FIRST_JOB
        asks = [("huge", 7900)] if job == 0 else []
        asks += [(f"job-{job}", ASK)] if 0 <= job < JOBS else []
        for name, ask in asks:
            pod = pod_json(name, ask, annotations={"archimedes.dev/expected-duration": "1h"})
            self.world.cluster.put_pod(as_pod(pod))
            self._waiting.append(pod)

    async def _place(self, number: int) -> None:
        """Try all that wait, the oldest first."""
        waiting, self._waiting = self._waiting, []
        for pod in waiting:
            nodes = self.world.filter(pod)["NodeNames"]
            if not nodes:
                self._waiting.append(pod)
                continue
            body = msgspec.json.encode(binding(pod, nodes[0]))
            await self.world.server.binder.bind(decode_binding(body))
            name = pod["metadata"]["name"]
            self.placed.append(name)
            self._ends.setdefault(number + LASTS, []).append(name)


def moment(seconds: float) -> str:
    """A time as the API server writes it."""
    return f"{np.datetime64(int(seconds), 's')}Z"
