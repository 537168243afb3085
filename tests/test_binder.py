"""Bind when answers are lost: what stays charged, for how long, and what is asked."""

import asyncio

import pytest

from extender.binder import CONFIRM_SECONDS
from extender.ledger import Stage
from extender.memory import MemoryCluster
from extender.ports import ClusterError
from extender.wire import BindingArgs
from models.kube.types import Pod
from tests.extender_world import Json, World, as_node, as_pod, node_json, pod_json


class Scripted(MemoryCluster):
    """An API server that answers as it is told; what it is sent can be carried out later."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[BaseException | None] = []
        self.reads: list[BaseException | None] = []
        self.asked = 0

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> None:
        if self.answers and (failure := self.answers.pop(0)) is not None:
            raise failure
        await super().bind(namespace, name, uid, node)

    async def carry_out(self, name: str, node: str) -> None:
        """A binding that was not answered is written after all."""
        await super().bind("default", name, f"uid-{name}", node)

    async def read_pod(self, namespace: str, name: str) -> Pod | None:
        self.asked += 1
        if self.reads and (failure := self.reads.pop(0)) is not None:
            raise failure
        return await super().read_pod(namespace, name)


class Bench(World):
    """Two nodes with 6000 millicores each; watch events arrive only where a test wants them."""

    def __init__(self) -> None:
        super().__init__()
        cluster = Scripted()
        cluster.nodes = self.cluster.nodes
        self.cluster = self.scripted = cluster
        self.server.binder._cluster = cluster
        self.sync()
        self.forecast(2.0)

    def waiting(self, name: str, ask: int = 4000) -> Json:
        """A pod that waits, and that filter has seen."""
        pod = pod_json(name, ask)
        self.cluster.put_pod(as_pod(pod))
        self.filter(pod)
        return pod

    def deafen(self) -> None:
        """From now on, no event arrives."""
        self.cluster._pod_feed = None

    async def bind(self, name: str, node: str) -> str:
        """Bind a pod of the default namespace."""
        return await self.server.binder.bind(BindingArgs(name, "default", f"uid-{name}", node))

    def charged(self) -> list[int]:
        """Millicores charged on both nodes."""
        snapshot = self.state.snapshot(self.now)
        return [int(snapshot.promised[snapshot.index[node]]) for node in ("n1", "n2")]

    async def later(self, seconds: float) -> None:
        """Time passes, and the server looks after what is open."""
        self.now += seconds
        self.cluster.hear()
        self.server.loops.tick()
        await self.server.binder.chase()


@pytest.fixture
def bench() -> Bench:
    return Bench()


NO_ANSWER = ClusterError(0, "no answer")
REFUSED = ClusterError(403, "forbidden")
CONFLICT = ClusterError(409, "being deleted")


async def test_case_33_a_refused_bind_gives_back_its_charge_at_once(bench: Bench) -> None:
    for refusal in (REFUSED, CONFLICT):
        bench.waiting("a")
        bench.scripted.answers = [refusal]
        assert await bench.bind("a", "n1")
        assert bench.charged() == [0, 0]


async def test_a_bind_that_times_out_and_later_succeeds_was_charged_all_the_time(
    bench: Bench,
) -> None:
    bench.waiting("a")
    bench.scripted.answers = [TimeoutError()]
    assert "did not answer" in await bench.bind("a", "n1")
    assert bench.charged() == [4000, 0]
    bench.waiting("b")
    assert "more than is reclaimable" in await bench.bind("b", "n1")  # 6000 - 4000 < 4000
    await bench.scripted.carry_out("a", "n1")
    assert bench.charged()[0] == 4000
    entry = bench.state.ledger.get("uid-a")
    assert entry is not None
    assert entry.stage is Stage.BOUND


async def test_a_bind_that_was_never_written_is_given_back_once_that_is_known(
    bench: Bench,
) -> None:
    bench.waiting("a")
    bench.scripted.answers = [NO_ANSWER]
    assert await bench.bind("a", "n1")
    await bench.later(bench.settings.hold_seconds - 1)
    assert bench.charged() == [4000, 0]
    await bench.later(1)
    assert bench.charged() == [0, 0]


async def test_while_the_api_server_stands_still_nothing_is_given_back(bench: Bench) -> None:
    bench.waiting("a")
    bench.scripted.answers, bench.scripted.reads = [TimeoutError()], [NO_ANSWER]
    assert await bench.bind("a", "n1")
    for _ in range(3):
        bench.scripted.reads = [NO_ANSWER]
        await bench.later(1000)
        assert bench.charged() == [4000, 0]
    await bench.later(1)  # it answers: not bound, but what it had received is carried out now
    assert bench.charged() == [4000, 0]
    await bench.later(bench.settings.hold_seconds)
    assert bench.charged() == [0, 0]


async def test_what_it_said_before_it_stood_still_does_not_count(bench: Bench) -> None:
    """What it had received by then is carried out only when it goes on."""
    bench.waiting("a")
    bench.scripted.answers = [TimeoutError()]
    assert await bench.bind("a", "n1")  # read at once: not bound
    for silence in (NO_ANSWER, TimeoutError(), ClusterError(503, "from a balancer")):
        bench.scripted.reads = [silence]
        await bench.later(1000)
        await bench.later(1)
        assert bench.charged() == [4000, 0]
    await bench.later(bench.settings.hold_seconds)
    assert bench.charged() == [0, 0]


async def test_a_pod_that_cannot_be_read_keeps_no_other_charged(bench: Bench) -> None:
    for name in "ab":
        bench.waiting(name, 1000)
        bench.scripted.answers = [NO_ANSWER]
        assert await bench.bind(name, "n1")
    assert bench.charged() == [2000, 0]
    for _ in range(3):
        bench.scripted.reads = [ClusterError(500, "unable to transform key")]  # of "a", the older
        await bench.later(bench.settings.hold_seconds)
    assert bench.charged() == [1000, 0]
    await bench.later(1)  # it can be read again: not bound, for the first time since
    assert bench.charged() == [1000, 0]
    await bench.later(bench.settings.hold_seconds)
    assert bench.charged() == [0, 0]


async def test_an_old_answer_says_nothing_of_a_newer_try(bench: Bench) -> None:
    bench.waiting("a")
    bench.scripted.answers = [NO_ANSWER, NO_ANSWER]
    await bench.bind("a", "n1")
    read, begun, goes_on = bench.scripted.read_pod, asyncio.Event(), asyncio.Event()

    async def slow(namespace: str, name: str) -> Pod | None:
        pod = await read(namespace, name)
        begun.set()
        await goes_on.wait()
        return pod

    bench.scripted.read_pod = slow  # type: ignore[method-assign]
    chase = asyncio.create_task(bench.later(bench.settings.hold_seconds))
    await begun.wait()
    bench.scripted.read_pod = read  # type: ignore[method-assign]
    assert await bench.bind("a", "n1")
    goes_on.set()
    await chase
    assert bench.charged() == [4000, 0]
    await bench.later(bench.settings.hold_seconds)
    assert bench.charged() == [0, 0]


async def test_the_next_try_elsewhere_leaves_the_open_one_charged(bench: Bench) -> None:
    bench.waiting("a")
    bench.scripted.answers = [TimeoutError(), REFUSED]
    await bench.bind("a", "n1")
    assert "forbidden" in await bench.bind("a", "n2")
    assert bench.charged() == [4000, 0]  # n2 was refused, of n1 nothing is known
    bench.deafen()
    assert await bench.bind("a", "n2") == ""
    assert bench.charged() == [0, 4000]  # a pod is bound once, so n1 can no longer be


async def test_an_open_try_that_wins_is_charged_where_it_is(bench: Bench) -> None:
    bench.waiting("a")
    bench.scripted.answers = [TimeoutError()]
    await bench.bind("a", "n1")
    bench.deafen()
    await bench.scripted.carry_out("a", "n1")
    assert await bench.bind("a", "n2") == "the pod is bound to n1 already"
    assert bench.charged() == [4000, 0]


async def test_an_open_try_that_wins_while_the_next_is_written_is_charged(bench: Bench) -> None:
    bench.waiting("a")
    bench.scripted.answers = [TimeoutError()]
    await bench.bind("a", "n1")
    bench.deafen()
    late = bench.scripted.bind

    async def overtaken(namespace: str, name: str, uid: str, node: str) -> None:
        await bench.scripted.carry_out("a", "n1")
        await late(namespace, name, uid, node)

    bench.scripted.bind = overtaken  # type: ignore[method-assign]
    assert await bench.bind("a", "n2") == "the pod is bound to n1 already"
    assert bench.charged() == [4000, 0]


async def test_a_pod_whose_event_comes_while_its_node_is_away_returns_with_it(
    bench: Bench,
) -> None:
    bench.waiting("a")
    feed = bench.cluster._pod_feed
    bench.deafen()
    assert await bench.bind("a", "n1") == ""
    bench.cluster.delete_node("n1")
    assert feed is not None
    feed.put(bench.cluster.pods["default", "a"])
    assert bench.state.ledger.get("uid-a") is None
    bench.cluster.put_node(as_node(node_json("n1")))
    assert bench.charged()[0] == 4000


async def test_a_written_binding_waits_for_its_event_however_late(bench: Bench) -> None:
    bench.waiting("a")
    bench.deafen()
    assert await bench.bind("a", "n1") == ""
    for _ in range(3):
        await bench.later(CONFIRM_SECONDS)
        assert bench.charged() == [4000, 0]
    assert bench.scripted.asked == 3


async def test_a_bound_pod_that_is_gone_before_its_event_is_given_back(bench: Bench) -> None:
    for phase in ("", "Succeeded"):
        bench.sync()
        bench.waiting("a")
        bench.deafen()
        assert await bench.bind("a", "n1") == ""
        bench.cluster.delete_pod("default", "a")
        if phase:
            bench.cluster.put_pod(as_pod(pod_json("a", 4000, node="n1", phase=phase)))
        await bench.later(CONFIRM_SECONDS)
        assert bench.charged() == [0, 0]


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_a_pod_that_is_read_as_bound_is_charged_where_it_is(bench: Bench, node: str) -> None:
    """Its predecessor had bound it, say, and the watch is late."""
    bench.deafen()
    bench.cluster.put_pod(as_pod(pod_json("a", 4000, node="n1")))
    assert bool(await bench.bind("a", node)) is (node != "n1")
    assert bench.charged() == [4000, 0]
    assert bench.filter(pod_json("b", 4000))["NodeNames"] == ["n2"]
    bench.state.let_go("uid-b")
    bench.cluster.delete_pod("default", "a")
    await bench.later(CONFIRM_SECONDS)
    assert bench.charged() == [0, 0]


async def test_a_pod_that_goes_while_it_is_bound_again_leaves_nothing_charged(bench: Bench) -> None:
    """Its event overtakes the answer to the read, which the next try begins with."""
    bench.waiting("a")
    bench.scripted.answers = [NO_ANSWER]
    await bench.bind("a", "n1")
    read = bench.scripted.read_pod

    async def overtaken(namespace: str, name: str) -> Pod | None:
        pod = await read(namespace, name)
        bench.cluster.delete_pod(namespace, name)
        bench.scripted.read_pod = read  # type: ignore[method-assign]
        return pod

    bench.scripted.read_pod = overtaken  # type: ignore[method-assign]
    assert await bench.bind("a", "n2") == "there is no pod of this name and UID"
    assert bench.charged() == [0, 0]


async def test_a_name_that_is_used_again_is_another_pod(bench: Bench) -> None:
    bench.waiting("a")
    bench.deafen()
    bench.scripted.answers = [TimeoutError()]
    bench.cluster.put_pod(as_pod(pod_json("a", 4000, uid="uid-other")))
    assert await bench.bind("a", "n1") == "there is no pod of this name and UID"
    assert bench.charged() == [0, 0]


async def test_a_node_that_returns_still_carries_what_is_being_bound(bench: Bench) -> None:
    bench.waiting("a")
    bench.deafen()
    assert await bench.bind("a", "n1") == ""
    bench.cluster.delete_node("n1")
    bench.cluster.put_node(as_node(node_json("n3")))  # takes no row that is still needed
    bench.cluster.put_node(as_node(node_json("n1")))
    bench.forecast(2.0)
    assert bench.charged() == [4000, 0]
    snapshot = bench.state.snapshot(bench.now)
    assert snapshot.promised[snapshot.index["n3"]] == 0


async def test_a_row_is_used_again_once_nothing_is_open_on_it(bench: Bench) -> None:
    bench.waiting("a")
    row = bench.state.snapshot(bench.now).index["n1"]
    bench.deafen()
    assert await bench.bind("a", "n1") == ""
    bench.cluster.delete_node("n1")
    bench.cluster.delete_pod("default", "a")
    await bench.later(CONFIRM_SECONDS)  # asked: the pod is gone
    await bench.later(1)
    bench.cluster.put_node(as_node(node_json("n3")))
    assert bench.state.snapshot(bench.now).index["n3"] == row


async def test_bind_decides_on_the_horizon_that_filter_saw(bench: Bench) -> None:
    peaks = [2.0, 3.0, 3.0, 3.0, 7.0]
    bench.forecast({"n1": peaks, "n2": peaks})
    pod = pod_json("a", 4000, annotations={"archimedes.dev/expected-duration": "1h"})
    bench.filter(pod)
    bench.cluster.put_pod(as_pod(pod_json("a", 4000)))  # now it says nothing: 24 h, 1000 millicores
    assert await bench.bind("a", "n1") == ""
    entry = bench.state.ledger.get("uid-a")
    assert entry is not None
    assert (entry.stage, entry.horizon) == (Stage.BOUND, 0)


async def test_a_next_try_is_bound_for_what_is_expected_of_the_pod_by_then(bench: Bench) -> None:
    """Filter has seen it again; the open try is not promised for a horizon that nobody checked."""
    bench.forecast({"n1": 2.0, "n2": [2.0, 2.0, 2.0, 2.0, 5.0]})
    annotation = "archimedes.dev/expected-duration"
    for before, after, refused, horizons in (
        ("1h", "24h", "asks 4000m for 24 h, more than is", [0, 0]),  # n2: 8000 - 5000 < 4000
        ("1h", "6h", "", [0, 2]),
        ("6h", "1h", "", [2, 2]),
    ):
        bench.sync()
        bench.cluster.put_pod(as_pod(pod := pod_json("a", 4000, annotations={annotation: before})))
        bench.filter(pod)
        bench.scripted.answers = [NO_ANSWER]
        await bench.bind("a", "n1")
        bench.cluster.put_pod(as_pod(pod := pod_json("a", 4000, annotations={annotation: after})))
        bench.filter(pod)
        tried = bench.state.ledger.get("uid-a")
        error = await bench.bind("a", "n2")
        bound = bench.state.ledger.get("uid-a")
        assert tried is not None
        assert bound is not None
        assert [tried.horizon, bound.horizon] == horizons
        assert error.startswith(refused) if refused else not error
        bench.cluster.delete_pod("default", "a")
