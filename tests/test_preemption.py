"""Preempt: which of kube-scheduler's proposed nodes are kept (conformance 34 and 35)."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extender.calls import NOT_READY
from extender.decision_log import MAX_NODES, Preemption
from tests.extender_world import Json, World, as_pod, pod_json, records_of
from tests.http_world import Caller, serving


def fill(world: World) -> None:
    """n1 and n2 have 6000 to give each (8 cores - 2) and have promised 5000: 3000 + 2000."""
    for node in ("n1", "n2"):
        for ask in (3000, 2000):
            world.cluster.put_pod(as_pod(pod_json(f"{node}-{ask}", ask, node=node)))


def meta(*uids: str, violations: object = 0) -> Json:
    """Victims by UID."""
    return {"Pods": [{"UID": uid} for uid in uids], "NumPDBViolations": violations}


async def kept(caller: Caller, ask: object, victims: Json) -> list[str]:
    """The nodes that are left for an offline pod."""
    return list(await caller.preempt(pod_json("p", ask), meta=victims))


async def test_case_34_uids_come_back_from_meta_and_from_full_input() -> None:
    async with serving() as caller:
        fill(caller.world)
        pods = [pod_json("n1-3000", 3000, node="n1"), pod_json("n1-2000", 2000, node="n1")]
        wanted = {"n1": meta("uid-n1-3000", "uid-n1-2000", violations=2)}
        full = {"n1": {"Pods": pods, "NumPDBViolations": 2}}
        assert await caller.preempt(pod_json("p", 6000), meta=wanted) == wanted
        assert await caller.preempt(pod_json("p", 6000), full=full) == wanted
        assert await caller.preempt(pod_json("p", 6000), full=full, meta=wanted) == wanted


async def test_case_35_a_node_that_would_not_have_room_is_omitted() -> None:
    async with serving() as caller:
        fill(caller.world)
        victims = {"n1": meta("uid-n1-3000"), "n2": meta("uid-n2-2000")}
        # n1 has 6000 - 5000 + 3000 = 4000 to give, n2 6000 - 5000 + 2000 = 3000
        assert await kept(caller, 3000, victims) == ["n1", "n2"]
        assert await kept(caller, 4000, victims) == ["n1"]
        assert await kept(caller, 4001, victims) == []


async def test_only_promises_on_that_very_node_are_freed_and_each_once() -> None:
    async with serving() as caller:
        fill(caller.world)
        caller.world.cluster.put_pod(as_pod(pod_json("web", cpu="500m", node="n1")))
        caller.world.forecast(2.0)
        for victims in (
            meta("uid-n2-3000"),  # it is on the other node
            meta("uid-nobody"),
            meta("uid-web"),  # an online pod's usage stays in the forecast
        ):
            assert await kept(caller, 1001, {"n1": victims}) == []
        twice = meta("uid-n1-2000", "uid-n1-2000")
        assert await kept(caller, 3001, {"n1": twice}) == []
        found = await caller.preempt(pod_json("p", 3000), meta={"n1": twice})
        assert found == {"n1": meta("uid-n1-2000")}


async def test_the_pods_own_hold_is_not_held_against_it_and_not_freed_twice() -> None:
    async with serving(("n1",)) as caller:
        pod = pod_json("p", 4000)
        await caller.filter(pod, ["n1"])
        other = pod_json("q", 1000)
        await caller.filter(other, ["n1"])
        # 6000 - 1000 of q; p's own 4000 do not count, nor do they make room as a victim's
        victims = {"n1": meta("uid-p")}
        assert list(await caller.preempt(pod_json("p", 5000), meta=victims)) == ["n1"]
        assert await caller.preempt(pod_json("p", 5001), meta=victims) == {}
        assert caller.promised() == 5000  # preempt charges nothing


async def test_an_online_pod_keeps_every_node_as_proposed() -> None:
    async with serving() as caller:
        caller.world.now += 10_000  # the watch is silent and usage stale
        victims = {"n1": meta("a", "b", violations=1), "unknown": meta("c")}
        assert await caller.preempt(pod_json("p", cpu="64"), meta=victims) == victims


@pytest.mark.parametrize("seconds", [160.0, 901.0])
async def test_a_blocked_or_unknown_node_is_omitted(seconds: float) -> None:
    async with serving() as caller:
        fill(caller.world)
        victims = {"n1": meta("uid-n1-3000"), "gone": meta("uid-n1-3000")}
        assert await kept(caller, 1, victims) == ["n1"]
        caller.world.now += seconds
        if seconds > 900:
            caller.world.cluster.hear()  # the watch is alive, so it is the usage that is too old
        assert await kept(caller, 1, victims) == []


async def test_an_ask_that_cannot_be_met_or_a_server_that_knows_too_little_keeps_nothing() -> None:
    async with serving() as caller:
        fill(caller.world)
        victims = {"n1": meta("uid-n1-3000")}
        assert await kept(caller, "1500m", victims) == []
        caller.world.state.synced.clear()
        assert await kept(caller, 1, victims) == []


async def test_every_answer_is_logged_with_its_reasons() -> None:
    async with serving() as caller:
        fill(caller.world)
        decisions = caller.world.server.decisions
        victims = {
            "n1": meta("uid-n1-3000"),  # 6000 - 5000 + 3000 = 4000
            "n2": meta("uid-n2-2000"),  # 6000 - 5000 + 2000 = 3000
            "gone": meta("uid-nobody"),
        }
        await caller.preempt(pod_json("p", 4000), meta=victims)
        assert records_of(decisions, limit=1) == [
            Preemption(
                time=caller.world.now,
                pod="default/p",
                uid="uid-p",
                offline=True,
                millicpu=4000,
                horizon_hours=24,
                snapshot=caller.world.state.snapshot(caller.world.now).id,
                model_version=caller.world.state.model_version,
                proposed=3,
                kept=1,
                nodes=("n1",),
                rejected={
                    "asks 4000m for 24 h, more than is reclaimable": 1,
                    "node is not known to the extender yet": 1,
                },
            )
        ]
        caller.world.state.synced.clear()
        await caller.preempt(pod_json("p", 1), meta=victims)
        (entry,) = records_of(decisions, limit=1)
        assert isinstance(entry, Preemption)
        assert (entry.kept, entry.rejected) == (0, {NOT_READY: 3})


async def test_an_entry_of_the_log_names_a_bounded_number_of_nodes() -> None:
    async with serving() as caller:
        victims = {f"n{number}": meta("a") for number in range(MAX_NODES + 8)}
        assert len(await caller.preempt(pod_json("p", cpu="1"), meta=victims)) == MAX_NODES + 8
        (entry,) = records_of(caller.world.server.decisions, limit=1)
        assert isinstance(entry, Preemption)
        assert (entry.proposed, entry.kept) == (MAX_NODES + 8, MAX_NODES + 8)
        assert entry.nodes == tuple(victims)[:MAX_NODES]


@pytest.mark.parametrize(
    "victims", [None, {"Pods": None}, {"Pods": []}, {}, meta(""), meta("uid-n1-3000", "")]
)
async def test_a_node_whose_victims_cannot_be_named_is_omitted(victims: object) -> None:
    async with serving() as caller:
        for pod in (pod_json("p", 1), pod_json("p", cpu="1")):
            assert await caller.preempt(pod, meta={"n1": victims}) == {}
            assert await caller.preempt(pod, full={"n1": victims}) == {}


async def test_missing_maps_and_counts_are_nothing() -> None:
    async with serving() as caller:
        assert await caller.preempt(pod_json("p", 1)) == {}
        found = await caller.preempt(pod_json("p"), meta={"n1": meta("a", violations=None)})
        assert found == {"n1": meta("a", violations=0)}


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"Pod":null}',
        b'{"Pod":{},"NodeNameToMetaVictims":{"n":{"Pods":[null]}}}',
        b'{"Pod":{},"NodeNameToVictims":{"n":{"Pods":[null]}}}',
        b'{"Pod":{},"NodeNameToMetaVictims":{"n":{"NumPDBViolations":9223372036854775808}}}',
        b'{"Pod":{},"NodeNameToMetaVictims":[]}',
        b'{"Pod":{},"NodeNameToVictims":{"n":' + b'{"Pods":[' * 50_000,
    ],
)
async def test_a_malformed_preempt_request_is_named(body: bytes) -> None:
    async with serving() as caller:
        reply = await caller.send("preempt", body)
        assert reply.status == 400
        assert reply.body.startswith(b"not an ExtenderPreemptionArgs object: ")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    ask=st.integers(0, 9000),
    charges=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3000)), max_size=6),
    gone=st.sets(st.integers(0, 5)),
)
def test_a_node_is_kept_where_filter_would_pass_it_once_the_victims_are_gone(
    ask: int, charges: list[tuple[int, int]], gone: set[int]
) -> None:
    world = World()
    world.sync()
    world.forecast(2.0)
    victims: dict[str, list[str]] = {"n1": [], "n2": []}
    for number, (node, millicpu) in enumerate(charges):
        name = f"v{number}"
        world.cluster.put_pod(as_pod(pod_json(name, millicpu, node=f"n{node + 1}")))
        if number in gone:
            victims[f"n{node + 1}"].append(name)
    proposed = {node: meta(*(f"uid-{n}" for n in names)) for node, names in victims.items()}
    body = {"Pod": pod_json("p", ask), "NodeNameToMetaVictims": proposed}
    answer = orjson.loads(world.server.calls.preempt(orjson.dumps(body)))["NodeNameToMetaVictims"]
    for names in victims.values():
        for name in names:
            world.cluster.delete_pod("default", name)
    with_room = world.filter(pod_json("p", ask))["NodeNames"]
    assert list(answer) == [n for n in ("n1", "n2") if n in with_room and victims[n]]
