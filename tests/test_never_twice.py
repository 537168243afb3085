"""Nothing is ever promised twice: random calls, events, delays, failures and restarts.

The API server of these tests keeps books of its own, which know nothing of the ledger: at each
binding that is sent to it, what it has bound, what may still be carried out and what is asked for
now must fit into what was reclaimable on the node at that moment.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import orjson
import pytest
from msgspec.structs import replace

from extender.app import Parts, Server
from extender.binder import CONFIRM_SECONDS
from extender.forecasting import ThreadForecasting
from extender.ledger import Stage
from extender.locks import Lock
from extender.memory import MemoryCluster
from extender.ports import ClusterError, Feed
from extender.runs import Run
from extender.settings import Settings
from extender.wire import BindingArgs
from models.kube.types import Node, Pod, PodSpec
from models.policy import HORIZONS
from tests.extender_world import Json, World, args, as_node, as_pod, node_json, pod_json

NODES = ("n0", "n1", "n2", "n3")
ASKS = (0, 300, 1500, 2500, 9000)
DURATIONS = ("30m", "2h", "5h", None)  # None: as long as its workload's runs have lasted
PEAKS = (0.0, 0.3, 0.6, 1.0, 1.5)  # cores by which the forecast is higher for longer horizons
HOLD = 15.0
DAY = 86_400.0
STEPS = 500


@dataclass(eq=False)
class Sent:
    """A binding that was sent and may still be carried out; ``answered``: it answered since."""

    name: str
    uid: str
    node: str
    answered: bool = False


class UnreliableCluster(MemoryCluster):
    """Delays, repeats and reorders its events; refuses, fails, stands still, and loses answers.

    What it has received is carried out, or not, before ``hold_seconds`` after it answered again.
    """

    def __init__(self, rng: np.random.Generator, world: World) -> None:
        super().__init__()
        self._rng = rng
        self._world = world
        self._late: list[Callable[[], object]] = []
        self._sent: list[Sent] = []
        self.paused = False
        self.locks: list[Lock] = []

    def attach(self, nodes: Feed[Node], pods: Feed[Pod]) -> None:
        self._late.clear()  # a list shows everything
        super().attach(nodes, pods)
        self._pod_feed = Feed(
            put=lambda pod: self._later(lambda: pods.put(pod)),
            remove=lambda pod: self._late.append(lambda: pods.remove(pod)),
            sift=pods.sift,
            heard=pods.heard,
        )

    def deliver(self, events: int) -> None:
        """Let the oldest events arrive, some of them swapped, and some once more later."""
        arriving, self._late = self._late[:events], self._late[events:]
        if len(arriving) > 1 and self._rng.random() < 0.3:
            arriving[0], arriving[1] = arriving[1], arriving[0]
        for event in arriving:
            event()
            if self._rng.random() < 0.2:
                self._late.append(event)

    def deliver_all(self) -> None:
        """Let all events arrive, each once."""
        arriving, self._late = self._late, []
        for event in arriving:
            event()

    async def carry_out(self) -> None:
        """What was received and then answered is carried out, or dropped, now at the latest."""
        due = [sent for sent in self._sent if sent.answered]
        self._sent = [sent for sent in self._sent if not sent.answered]
        for at in self._rng.permutation(len(due)).tolist():
            if self._rng.random() < 0.5:
                try:
                    await super().bind("default", due[at].name, due[at].uid, due[at].node)
                except ClusterError:
                    continue  # bound or gone meanwhile

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> None:
        self._check_promise(uid, node)
        sent = Sent(name, uid, node)
        self._sent.append(sent)
        await asyncio.sleep(0)
        luck = self._rng.random()
        if self.paused or luck < 0.15:
            raise TimeoutError  # the answer is awaited in vain; what was sent waits in a buffer
        self._sent.remove(sent)
        if luck < 0.25:
            raise ClusterError(500, "internal error")
        if luck < 0.35:
            raise ClusterError(403, "forbidden")
        await super().bind(namespace, name, uid, node)
        await asyncio.sleep(0)
        if luck < 0.45:
            raise ClusterError(0, "no answer")

    async def read_pod(self, namespace: str, name: str) -> Pod | None:
        await asyncio.sleep(0)
        if self.paused or self._rng.random() < 0.3:
            raise ClusterError(0, "no answer")
        self.answer()
        return await super().read_pod(namespace, name)

    def answer(self) -> None:
        """It answers, so it is at work on what it has received."""
        for sent in self._sent:
            sent.answered = True

    def _check_promise(self, uid: str, node: str) -> None:
        """The books: who is bound to the node, or may still be, and who asks for it now."""
        state = self._world.state
        entry = state.ledger.get(uid)
        snapshot = state.snapshot(self._world.now)
        row = snapshot.index[node]
        assert entry is not None
        asks = {uid: entry.millicpu}
        for pod in self.pods.values():
            facts = state.facts(pod)
            if facts.offline and facts.node == node and not facts.finished:
                asks[facts.uid] = facts.ask.millicpu
        for sent in self._sent:
            pod_sent = self.pods.get(("default", sent.name))
            if sent.node == node and pod_sent is not None:
                facts = state.facts(pod_sent)
                if facts.uid == sent.uid and not facts.node:
                    asks[facts.uid] = facts.ask.millicpu
        if entry.millicpu:
            free = 8000 - round(1000 * snapshot.forecast[row, entry.horizon])
            assert sum(asks.values()) <= free - self._locked(node, HORIZONS[entry.horizon]), asks
            assert snapshot.blocked[row] == 0

    def _locked(self, node: str, hours: int) -> int:
        """Millicores of the locks whose window [now, now + hours) meets."""
        now = self._world.now
        return sum(
            round(lock.cores * 1000)
            for lock in self.locks
            if lock.start < now + hours * 3600 and now < lock.end
            if lock.nodes is None or node in lock.nodes
        )

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
        self.watching = True
        self.start()

    def start(self) -> None:
        """A new process, which knows only what the API server holds."""
        world = self.world
        settings = Settings(policy=world.settings.policy, candidates=2, hold_seconds=HOLD)
        forecasting = ThreadForecasting(None, settings.prometheus)
        parts = Parts(settings, lambda: world.now, self.cluster, forecasting, world.models)
        world.server = Server(parts)
        world.state = world.server.state
        world.state.lock(self.cluster.locks, {})
        world.sync()
        self.watching = True
        self.forecast(2.0)

    def forecast(self, cores: float) -> None:
        """The longer the horizon, the higher the peak."""
        names = self.world.state.capture().nodes
        self.world.forecast({name: [cores + more for more in PEAKS] for name in names})

    async def step(self) -> None:
        acts = {
            self.submit: 4,
            self.schedule: 6,
            self.deliver: 4,
            self.end: 4,
            self.wait: 2,
            self.chase: 3,
            self.disconnect: 1,
            self.start_online: 1,
            self.preempt: 0.5,
            self.lock: 0.7,
            self.finish_run: 0.5,
            self.refresh: 2,
            self.pause: 5 if self.cluster.paused else 1,
            self.stand_still: 0.5,
            self.lose_watch: 0.3 if self.watching else 3,
            self.set_clock: 0.2,
            self.restart: 0.3,
            self.flip_node: 0.5,
        }
        shares = np.array(list(acts.values()))
        await list(acts)[int(self.rng.choice(len(acts), p=shares / shares.sum()))]()
        self.check()

    async def submit(self) -> None:
        for _ in range(int(self.rng.integers(1, 5))):
            self.pods += 1
            self.cluster.put_pod(as_pod(self.offline(f"p{self.pods}")))

    def offline(self, name: str, generation: int = 0) -> Json:
        """The same name always asks for the same; each ``generation`` of it has its own UID."""
        number = int(name[1:])
        duration = DURATIONS[number % len(DURATIONS)]
        annotations = {"archimedes.dev/expected-duration": duration} if duration else {}
        uid = f"uid-{name}-{generation}"
        pod = pod_json(name, ASKS[number % len(ASKS)], uid=uid, annotations=annotations)
        owner = {"kind": "Job", "name": "batch", "controller": True}
        pod["metadata"]["ownerReferences"] = [owner]
        return pod

    def pending(self) -> list[Json]:
        """Offline pods that wait."""
        found = []
        for (_, name), pod in self.cluster.pods.items():
            if name.startswith("p") and pod.spec is not None and not pod.spec.node_name:
                uid = (pod.metadata and pod.metadata.uid) or ""
                found.append(self.offline(name, int(uid.rsplit("-", 1)[1])))
        return found

    async def schedule(self) -> None:
        """Filter pending pods one after the other, then bind some of them all at once."""
        chosen: list[tuple[Json, str]] = []
        for pod in self.pending():
            if self.rng.random() < 0.5:
                names = self.world.filter(pod, NODES)["NodeNames"]
                assert len(names) <= 2
                if names and self.rng.random() < 0.8:
                    chosen.append((pod, str(self.rng.choice(names))))
                    if self.rng.random() < 0.1:  # the call is repeated, or another scheduler's
                        chosen.append((pod, str(self.rng.choice(NODES))))
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
        if self.watching:
            self.cluster.deliver(int(self.rng.integers(1, 8)))

    async def end(self) -> None:
        """A pod succeeds or is deleted; sometimes another of the same name takes its place."""
        for _ in range(min(2, len(self.cluster.pods))):
            names = list(self.cluster.pods)
            namespace, name = names[int(self.rng.integers(len(names)))]
            pod = self.cluster.pods[namespace, name]
            self.cluster.delete_pod(namespace, name)
            if name.startswith("p") and self.rng.random() < 0.3:
                generation = int(((pod.metadata and pod.metadata.uid) or "").rsplit("-", 1)[1])
                self.cluster.put_pod(as_pod(self.offline(name, generation + 1)))

    async def wait(self) -> None:
        seconds = float(self.rng.choice([0.5, 5.0, 20.0, 700.0, 4000.0]))
        if not self.cluster.paused:
            self.cluster.answer()
            if seconds > 1:
                await self.cluster.carry_out()
        if seconds > 1 and self.watching:  # no watch is later than that and still counts as alive
            self.cluster.deliver_all()
        self.world.now += seconds
        if self.watching and not self.cluster.paused:
            self.cluster.hear()
        self.world.server.loops.tick()
        await self.world.server.loops.renew()
        if self.cluster.paused:  # a server asks every two seconds, so it notices
            await self.chase()

    async def chase(self) -> None:
        await self.world.server.binder.chase()

    async def disconnect(self) -> None:
        """A caller leaves before its answer is written: nothing is held for it."""
        for pod in self.pending()[:1]:
            body = orjson.dumps(args(pod, NODES))
            answer = self.world.server.calls.filter(body)
            self.world.state.let_go(answer.held)
            entry = self.world.state.ledger.get(pod["metadata"]["uid"])
            assert entry is None or entry.stage is not Stage.HELD

    async def start_online(self) -> None:
        self.pods += 1
        node = str(self.rng.choice(NODES))
        self.cluster.put_pod(as_pod(pod_json(f"o{self.pods}", cpu="500m", node=node)))

    async def preempt(self) -> None:
        """Others remove an offline pod to make room, and bind their own, which asks nobody."""
        if not self.watching:
            return
        self.cluster.deliver_all()
        bound = [
            (key, pod)
            for key, pod in self.cluster.pods.items()
            if key[1].startswith("p") and pod.spec is not None and pod.spec.node_name
        ]
        if bound:
            key, victim = bound[int(self.rng.integers(len(bound)))]
            self.cluster.delete_pod(*key)
            self.pods += 1
            mine = as_pod(self.offline(f"p{self.pods}"))
            node = (victim.spec or PodSpec()).node_name
            self.cluster.put_pod(
                replace(mine, spec=replace(mine.spec or PodSpec(), node_name=node))
            )
            self.cluster.deliver_all()

    async def lock(self) -> None:
        """Locks come and go: past, in force, or to come; a few cores or all."""
        locks = []
        for number in range(int(self.rng.integers(0, 4))):
            start = self.world.now + float(self.rng.choice([-9000.0, -10.0, 1800.0, 40_000.0]))
            cores, nodes = float(self.rng.choice([0.5, 2.0, 50.0])), frozenset(NODES[:2])
            whole = bool(self.rng.random() < 0.5)
            lock = Lock(
                f"l{number}", start, start + 8000, cores, 0.0, None if whole else nodes, "", ""
            )
            locks.append(lock)
        self.cluster.locks = locks
        self.world.state.lock(locks, {})

    async def finish_run(self) -> None:
        """What is expected of pods that say nothing changes, between filter and bind too."""
        run = Run(self.world.now, float(self.rng.choice([60.0, 6000.0, 40_000.0])))
        for older in range(5):
            self.world.state.runs.add("default/Job/batch", Run(run.end - older, run.seconds))

    async def refresh(self) -> None:
        self.forecast(float(self.rng.choice([1.0, 2.0, 4.0])))

    async def pause(self) -> None:
        """The API server stands still, or goes on."""
        self.cluster.paused = not self.cluster.paused

    async def stand_still(self) -> None:
        """The API server stands still just after calls came, and goes on where it was."""
        await self.schedule()
        self.cluster.paused = True
        self.world.now += HOLD
        await self.chase()
        self.cluster.paused = False
        await self.chase()
        await self.cluster.carry_out()

    async def lose_watch(self) -> None:
        """No event arrives any more, until a new list shows everything."""
        self.watching = not self.watching
        if self.watching:
            self.world.sync()

    async def set_clock(self) -> None:
        """Until a tick notices it, calls come; what they leave waits no longer than it should."""
        seconds = float(self.rng.choice([-3600.0, -30.0, 40.0, 3600.0]))
        self.world.now += seconds
        for _ in range(int(self.rng.integers(0, 3))):
            await self.schedule()
            self.world.now += 0.5
        self.world.state.shift(seconds)
        latest = {Stage.HELD: HOLD, Stage.BINDING: CONFIRM_SECONDS, Stage.BOUND: DAY}
        for entry in self.world.state.ledger.entries():
            assert entry.expires <= self.world.now + latest[entry.stage]

    async def restart(self) -> None:
        """A process ends. What it has sent is carried out or dropped before another has listed."""
        self.cluster.paused = False
        self.cluster.answer()
        await self.cluster.carry_out()
        self.start()

    async def flip_node(self) -> None:
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
                charge = ledger.get((pod.metadata and pod.metadata.uid) or "")
                assert charge is not None
                assert row in charge.rows

    async def settle(self) -> None:
        """Everything works again for long enough that all that was open is known."""
        self.cluster.paused, self.watching = False, True
        self.cluster.answer()
        await self.cluster.carry_out()
        self.cluster.deliver_all()
        for _ in range(40):
            self.world.now += CONFIRM_SECONDS
            self.cluster.hear()
            self.world.server.loops.tick()
            await self.chase()

    def check_nothing_leaked(self) -> None:
        """The ledger holds what the API server has bound, and nothing else."""
        index = self.world.state.snapshot(self.world.now).index
        truth = {}
        for (_, name), pod in self.cluster.pods.items():
            row = index.get((pod.spec and pod.spec.node_name) or "")
            if name.startswith("p") and row is not None:
                uid = (pod.metadata and pod.metadata.uid) or ""
                truth[uid] = ((row,), ASKS[int(name[1:]) % len(ASKS)], Stage.BOUND)
        entries = self.world.state.ledger.entries()
        assert {e.uid: (e.rows, e.millicpu, e.stage) for e in entries} == truth
        assert self.world.state.counts["pods"] == len(self.cluster.pods)


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_is_ever_promised_twice(seed: int) -> None:
    storm = Storm(seed)
    for _ in range(STEPS):
        await storm.step()
    await storm.settle()
    storm.check_nothing_leaked()
    assert storm.bound > 20  # it was not all in vain


def test_peaks_of_the_storm_grow_with_the_horizon() -> None:
    assert len(PEAKS) == len(HORIZONS)
