"""Nothing is ever promised twice: random calls, events, delays, failures and restarts."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from extender.app import Parts, Server
from extender.binder import CONFIRM_SECONDS
from extender.kube_types import Node, Pod
from extender.memory import MemoryCluster
from extender.ports import ClusterError, Feed
from extender.settings import Settings
from extender.wire import BindingArgs
from tests.extender_world import Json, World, as_node, as_pod, node_json, pod_json

NODES = ("n0", "n1", "n2", "n3")
ASKS = (0, 300, 1500, 2500, 9000)
STEPS = 400


class UnreliableCluster(MemoryCluster):
    """Delays its events, refuses, fails, and loses answers before or after the write.

    At each binding it checks what the ledger promised: all charges on the node fit into what was
    free there at that moment.
    """

    def __init__(self, rng: np.random.Generator, world: World) -> None:
        super().__init__()
        self._rng = rng
        self._world = world
        self._late: list[Callable[[], object]] = []

    def attach(self, nodes: Feed[Node], pods: Feed[Pod]) -> None:
        self._late.clear()  # a list shows everything
        super().attach(nodes, pods)
        self._pod_feed = Feed(
            put=lambda pod: self._later(lambda: pods.put(pod)),
            remove=lambda pod: self._late.append(lambda: pods.remove(pod)),
            retain=pods.retain,
            heard=pods.heard,
        )

    def deliver(self, events: int) -> None:
        """Let the oldest events arrive."""
        arriving, self._late = self._late[:events], self._late[events:]
        for event in arriving:
            event()

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> None:
        self._check_promise(uid, node)
        await asyncio.sleep(0)
        luck = self._rng.random()
        if luck < 0.1:
            raise ClusterError(500, "internal error")
        if luck < 0.2:
            raise ClusterError(403, "forbidden")
        await super().bind(namespace, name, uid, node)
        await asyncio.sleep(0)
        if luck < 0.35:
            raise ClusterError(0, "no answer")

    async def read_pod(self, namespace: str, name: str) -> Pod | None:
        await asyncio.sleep(0)
        if self._rng.random() < 0.3:
            raise ClusterError(0, "no answer")
        return await super().read_pod(namespace, name)

    def _check_promise(self, uid: str, node: str) -> None:
        state = self._world.state
        entry = state.ledger.get(uid)
        snapshot = state.snapshot(self._world.now)
        row = snapshot.index[node]
        assert entry is not None
        assert entry.rows == (row,)
        if entry.millicpu:
            assert snapshot.promised[row] <= snapshot.free[row, entry.horizon]

    def _later(self, event: Callable[[], object]) -> str:
        self._late.append(event)
        return ""


class Storm:
    """A world in which anything may happen next."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.world = World(NODES, candidates=2)
        cluster = UnreliableCluster(self.rng, self.world)
        cluster.nodes = self.world.cluster.nodes
        self.cluster = self.world.cluster = cluster
        self.pods = 0
        self.bound = 0
        self.start()

    def start(self) -> None:
        """A new process, which knows only what the API server holds."""
        world = self.world
        settings = Settings(policy=world.settings.policy, candidates=2)
        parts = Parts(settings, lambda: world.now, self.cluster, None, world.models)
        world.server = Server(parts)
        world.state = world.server.state
        world.sync()
        world.forecast(2.0)

    async def step(self) -> None:
        acts = {
            self.submit: 4,
            self.schedule: 6,
            self.deliver: 4,
            self.end: 2,
            self.wait: 2,
            self.start_online: 1,
            self.refresh: 1,
            self.restart: 0.5,
            self.flip_node: 0.5,
        }
        shares = np.array(list(acts.values()))
        await list(acts)[int(self.rng.choice(len(acts), p=shares / shares.sum()))]()
        self.check()

    async def submit(self) -> None:
        self.pods += 1
        self.cluster.put_pod(as_pod(self.offline(f"p{self.pods}")))

    def offline(self, name: str) -> Json:
        """The same name always asks for the same."""
        return pod_json(name, ASKS[int(name[1:]) % len(ASKS)])

    async def schedule(self) -> None:
        """Filter pending pods one after the other, then bind some of them all at once."""
        chosen: list[tuple[Json, str]] = []
        for (_, name), pod in list(self.cluster.pods.items()):
            pending = pod.spec is not None and not pod.spec.node_name
            if pending and name.startswith("p") and self.rng.random() < 0.5:
                names = self.world.filter(self.offline(name), NODES)["NodeNames"]
                assert len(names) <= 2
                if names and self.rng.random() < 0.8:
                    chosen.append((self.offline(name), str(self.rng.choice(names))))
        errors = await asyncio.gather(*(self.bind(pod, node) for pod, node in chosen))
        self.bound += errors.count("")

    async def bind(self, pod: Json, node: str) -> str:
        metadata = pod["metadata"]
        key = (metadata["namespace"], metadata["name"])
        error = await self.world.server.binder.bind(
            BindingArgs(key[1], key[0], metadata["uid"], node)
        )
        if not error:
            stored = self.cluster.pods[key].spec
            assert stored is not None
            assert stored.node_name == node
        return error

    async def deliver(self) -> None:
        self.cluster.deliver(int(self.rng.integers(1, 8)))

    async def end(self) -> None:
        if self.cluster.pods:
            names = list(self.cluster.pods)
            self.cluster.delete_pod(*names[int(self.rng.integers(len(names)))])

    async def wait(self) -> None:
        seconds = float(self.rng.choice([0.5, 5.0, 20.0, 700.0]))
        if seconds > 1:  # no watch is later than that and still counts as alive
            self.cluster.deliver(10**6)
        self.world.now += seconds
        self.cluster.hear()
        self.world.server.loops.tick()

    async def start_online(self) -> None:
        self.pods += 1
        node = str(self.rng.choice(NODES))
        self.cluster.put_pod(as_pod(pod_json(f"o{self.pods}", cpu="500m", node=node)))

    async def refresh(self) -> None:
        self.world.forecast(float(self.rng.choice([1.0, 2.0, 4.0])))

    async def restart(self) -> None:
        self.start()

    async def flip_node(self) -> None:
        self.cluster.deliver(10**6)
        name = str(self.rng.choice(NODES))
        if name in self.cluster.nodes:
            self.cluster.delete_node(name)
        else:
            self.cluster.put_node(as_node(node_json(name)))

    def check(self) -> None:
        """The sums are exact, and each pod that the API server has bound is charged."""
        ledger = self.world.state.ledger
        snapshot = self.world.state.snapshot(self.world.now)
        recount = np.zeros(len(snapshot.promised), np.int64)
        for entry in ledger.entries():
            assert len(set(entry.rows)) == len(entry.rows)
            recount[list(entry.rows)] += entry.millicpu
        assert snapshot.promised.tolist() == recount.tolist()
        for (_, name), pod in self.cluster.pods.items():
            row = snapshot.index.get((pod.spec and pod.spec.node_name) or "")
            if name.startswith("p") and row is not None:
                charge = ledger.get(f"uid-{name}")
                assert charge is not None
                assert charge.rows == (row,)


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_is_ever_promised_twice(seed: int) -> None:
    storm = Storm(seed)
    for _ in range(STEPS):
        await storm.step()
    assert storm.bound > 20  # it was not all in vain


def test_a_written_binding_outlasts_every_silence_in_which_promises_are_made() -> None:
    assert Settings().watch_max_age < CONFIRM_SECONDS
