"""Resource locks: how they are read, when they count, and what they take from whom."""

from collections.abc import Mapping

import msgspec
import numpy as np
import orjson
import pytest

from extender.inspection import describe_node, health
from extender.locks import Lock, LockError, read_lock, read_locks
from extender.memory import MemoryCluster
from extender.ports import Feed
from extender.watchers import lock_feed
from models.kube.types import ConfigMap
from models.policy import HORIZONS
from tests.extender_world import START, Json, World, as_node, as_pod, node_json, pod_json
from tests.http_world import serving

HOUR = 3600.0
SALE = """
start: 2026-11-27T18:00:00+01:00
end: 2026-11-28T02:00:00+01:00
share: 0.25
nodes: "*"
reason: autumn sale
"""


def text(**changes: str) -> str:
    """The sale with other lines; an empty one is left out."""
    lines = dict(line.split(": ", 1) for line in SALE.strip().splitlines()) | changes
    return "\n".join(f"{key}: {value}" for key, value in lines.items() if value)


def lock(
    name: str = "sale",
    start: float = 0.0,
    end: float = HOUR,
    cores: float = 1.0,
    share: float = 0.0,
    nodes: frozenset[str] | None = None,
    workload: str = "",
) -> Lock:
    """A lock on all nodes, for an hour from now on; times are relative to the world's start."""
    return Lock(name, START + start, START + end, cores, share, nodes, workload, "a sale")


# Reading


def test_a_lock_is_read() -> None:
    assert read_lock("sale", SALE) == Lock(
        name="sale",
        start=1795798800.0,  # 2026-11-27T17:00:00Z
        end=1795827600.0,  # 8 hours later
        cores=0.0,
        share=0.25,
        nodes=None,
        workload="",
        reason="autumn sale",
    )


def test_nodes_by_name_and_times_as_texts() -> None:
    found = read_lock(
        "x", text(nodes="[n1, n2]", start='"2026-11-27T17:00:00Z"', share="", cores="2")
    )
    assert (found.nodes, found.start, found.cores) == (
        frozenset({"n1", "n2"}),
        1795798800.0,
        2.0,
    )


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("start: [", "is not YAML"),
        ("", "expected"),
        ("- a", "expected"),
        (text(end="2026-11-27T18:00:00+01:00"), "end: must be later than start"),
        (text(start="2026-11-27T18:00:00"), "start: expected datetime with a timezone"),
        (text(start="2026-11-27"), "start: expected datetime"),
        (text(start="2026-02-31T18:00:00Z"), "day"),
        (text(end=""), "missing required field end"),
        (text(reason=""), "missing required field reason"),
        (text(share=""), "either cores or share"),
        (text(cores="1"), "either cores or share"),
        (text(share="1.5"), "share: expected float <= 1"),
        (text(share="0"), "share: expected float > 0"),
        (text(share=".nan"), "share: expected float"),
        (text(share="", cores=".inf"), "cores: expected float"),
        (text(nodes=""), "either nodes"),
        (text(workload="shop/Deployment/web"), "either nodes"),
        (text(nodes="n1"), "nodes"),
        (text(nodes="[]"), "nodes"),
        (text(nodes="", workload="web"), "workload: must be namespace/kind/name"),
        (text(node="n1"), "unknown field node"),
        ("? [a]\n: b", "is not YAML"),
        ("&a [*a]", "refers to *a"),
        ("a: &a {b: c}\n<<: *a", "refers to *a: write what it means"),
        ("[" * 30_000, "is nested too deeply"),
        ("{a: " * 30_000, "is nested too deeply"),
        (text(share="!!int"), "is not YAML"),
        (text(share="!!bool foo"), "is not YAML"),
        (text(start="!!timestamp foo"), "is not YAML"),
        ("!!map [a]", "is not YAML"),
        (text() + "\nshare: 0.5", "share stands there twice"),
        (text(nodes="n1"), 'nodes: must be a list of names, or "*"'),
        (text(nodes='[n1, "*"]'), 'for all nodes write nodes: "*"'),
    ],
)
def test_what_is_wrong_is_named(written: str, says: str) -> None:
    with pytest.raises(LockError) as error:
        read_lock("x", written)
    assert says in str(error.value).lower().replace("yaml", "YAML")


@pytest.mark.parametrize("bad", ["start: [", "[" * 30_000, "!!int", "!!bool foo", "!!map [a]"])
def test_one_bad_lock_leaves_the_others_alone(bad: str) -> None:
    locks, problems = read_locks({"bad": bad, "good": SALE})
    assert [found.name for found in locks] == ["good"]
    assert list(problems) == ["bad"]
    assert "\n" not in problems["bad"]


# What they take


@pytest.fixture
def world() -> World:
    """Two nodes of 8 cores with forecast peaks of 2 cores: 6000 millicores each."""
    made = World()
    made.sync()
    made.forecast(2.0)
    return made


def free(world: World, node: str = "n1") -> list[int]:
    """Millicores reclaimable on a node, for 1, 3, 6, 12 and 24 h."""
    snapshot = world.state.snapshot(world.now)
    row: list[int] = snapshot.free[snapshot.index[node]].tolist()
    return row


def test_a_lock_counts_for_the_horizons_that_reach_into_its_window(world: World) -> None:
    world.state.lock([lock(start=4 * HOUR, end=5 * HOUR)], {})
    assert free(world) == [6000, 6000, 5000, 5000, 5000]
    seen = []
    for hours in (1.0, 3.0, 3.9, 5.0):
        world.now = START + hours * HOUR
        world.cluster.hear()
        seen.append(free(world))
    assert seen == [
        [6000, 5000, 5000, 5000, 5000],  # 3 hours ahead: a pod of 3 h would meet it
        [5000, 5000, 5000, 5000, 5000],
        [5000, 5000, 5000, 5000, 5000],
        [6000, 6000, 6000, 6000, 6000],  # over
    ]


def test_overlapping_locks_add_up_and_never_below_nothing(world: World) -> None:
    world.state.lock([lock("a", cores=2), lock("b", share=0.25, cores=0)], {})
    assert free(world) == [2000] * 5  # 6000 - 2000 - 0.25 x 8000
    world.state.lock([lock("a", cores=5), lock("b", cores=5)], {})
    assert free(world) == [0] * 5
    assert world.state.withheld(world.now)[0].tolist() == [6000] * 5


def test_a_share_follows_its_node(world: World) -> None:
    world.state.lock([lock(share=0.25, cores=0)], {})
    assert free(world) == [4000] * 5  # 6000 - 0.25 x 8000
    world.cluster.put_node(as_node(node_json("n1", "16")))
    assert free(world) == [10_000] * 5  # 16,000 - 2000 - 0.25 x 16,000


def test_named_nodes_only(world: World) -> None:
    world.state.lock([lock(nodes=frozenset({"n2", "n9"}))], {})
    assert (free(world, "n1")[0], free(world, "n2")[0]) == (6000, 5000)
    world.cluster.put_node(as_node(node_json("n9")))
    world.forecast(2.0)
    assert free(world, "n9")[0] == 5000


def test_the_nodes_on_which_a_workloads_pods_run(world: World) -> None:
    pod = pod_json("web-0", cpu="100m", node="n1")
    owner = {"kind": "StatefulSet", "name": "web", "controller": True}
    pod["metadata"]["ownerReferences"] = [owner]
    world.cluster.put_pod(as_pod(pod))
    world.state.lock([lock(workload="default/StatefulSet/web")], {})
    assert (free(world, "n1")[0], free(world, "n2")[0]) == (4900, 6000)  # 6000 - 100 - 1000
    second = {**pod, "metadata": {**pod["metadata"], "name": "web-1", "uid": "uid-web-1"}}
    second["spec"] = {**pod["spec"], "nodeName": "n2"}
    world.cluster.put_pod(as_pod(second))
    world.cluster.put_pod(as_pod(second))
    assert free(world, "n2")[0] == 4900
    world.cluster.delete_pod("default", "web-1")
    assert free(world, "n2")[0] == 5900  # its request counts until the next refresh


@pytest.mark.parametrize("adopted", [True, False])
def test_a_lock_follows_a_pod_that_changes_its_owner(world: World, *, adopted: bool) -> None:
    """The locked workload adopts it, or lets go of it."""

    def put(uid: str, *, owned: bool) -> None:
        pod = pod_json("web-0", cpu="0", node="n1", uid=uid)
        if owned:
            owner = {"kind": "StatefulSet", "name": "web", "controller": True}
            pod["metadata"]["ownerReferences"] = [owner]
        world.cluster.put_pod(as_pod(pod))

    world.state.lock([lock(workload="default/StatefulSet/web")], {})
    put("u1", owned=not adopted)
    assert free(world, "n1")[0] == (6000 if adopted else 5000)
    put("u1", owned=adopted)
    assert free(world, "n1")[0] == (5000 if adopted else 6000)
    world.cluster.delete_pod("default", "web-0")
    assert free(world, "n1")[0] == 6000
    put("u2", owned=True)
    assert free(world, "n1")[0] == 5000


@pytest.mark.parametrize("seed", range(5))
def test_many_locks_take_what_each_says_of_each_node(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = World([f"n{number}" for number in range(8)])
    world.sync()
    world.forecast(2.0)
    homes: dict[str, set[str]] = {}
    for number in range(12):
        kind, node = f"default/StatefulSet/w{number % 3}", f"n{rng.integers(8)}"
        pod = pod_json(f"web-{number}", cpu="0", node=node)
        owner = {"kind": "StatefulSet", "name": f"w{number % 3}", "controller": True}
        pod["metadata"]["ownerReferences"] = [owner]
        world.cluster.put_pod(as_pod(pod))
        homes.setdefault(kind, set()).add(node)
    world.cluster.delete_node("n3")  # its row is nobody's now
    locks = []
    for number in range(20):
        start, cores = float(rng.integers(-5, 30)) * HOUR, float(rng.integers(1, 50)) / 100
        nodes = frozenset(f"n{row}" for row in rng.integers(12, size=3))  # some do not exist
        locks.append(
            lock(
                f"l{number}",
                start,
                start + 8 * HOUR,
                cores,
                nodes=nodes if number % 3 == 1 else None,
                workload=f"default/StatefulSet/w{number % 4}" if number % 3 == 2 else "",
            )
        )
    world.state.lock(locks, {})
    snapshot = world.state.snapshot(world.now)
    assert sorted(snapshot.index) == ["n0", "n1", "n2", "n4", "n5", "n6", "n7"]
    assert snapshot.locked is not None
    for node, row in snapshot.index.items():
        concern = [
            each
            for each in locks
            if (node in homes.get(each.workload, ()) if each.workload else True)
            and (each.nodes is None or node in each.nodes)
        ]
        assert snapshot.locked[row].tolist() == [
            sum(round(e.cores * 1000) for e in concern if e.overlaps(world.now, hours * HOUR))
            for hours in HORIZONS
        ]


def test_a_lock_is_not_asked_for_each_of_a_clusters_nodes(world: World) -> None:
    class Names(frozenset[str]):
        def __contains__(self, name: object) -> bool:
            raise AssertionError(f"{name} was looked for")

    world.state.lock([lock(nodes=Names({"n2"}))], {})
    assert (free(world, "n1")[0], free(world, "n2")[0]) == (6000, 5000)


def test_a_share_is_of_the_nodes_own_size(world: World) -> None:
    world.state.lock([lock(share=0.1, cores=0)], {})
    world.cluster.put_node(as_node(node_json("n1", "16")))
    assert free(world, "n1")[0] == 12_400  # 16 - 2 - 1.6


def test_filter_and_bind_follow(world: World) -> None:
    pod = pod_json("a", 3000, annotations={"archimedes.dev/expected-duration": "1h"})
    world.state.lock([lock(start=2 * HOUR, end=3 * HOUR, cores=4)], {})
    assert len(world.filter(pod)["NodeNames"]) == 2  # over before the sale begins
    long = pod_json("b", 3000, annotations={"archimedes.dev/expected-duration": "6h"})
    assert set(world.filter(long)["FailedNodes"].values()) == {
        "asks 3000m for 6 h, more than is reclaimable"
    }


def test_promises_that_were_made_before_stay(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", 3000, node="n1")))
    world.state.lock([lock(cores=8)], {})
    snapshot = world.state.snapshot(world.now)
    assert int(snapshot.promised[snapshot.index["n1"]]) == 3000


def test_the_snapshots_number_grows_with_the_locks_effect(world: World) -> None:
    numbers = [world.state.snapshot(world.now).id]
    world.state.lock([lock(start=4 * HOUR, end=5 * HOUR)], {})
    numbers.append(world.state.snapshot(world.now).id)
    numbers.append(world.state.snapshot(world.now).id)
    world.now += 60.0
    numbers.append(world.state.snapshot(world.now).id)
    world.now = START + 4 * HOUR
    numbers.append(world.state.snapshot(world.now).id)
    assert numbers[0] < numbers[1] == numbers[2] == numbers[3] < numbers[4]


def test_a_clock_that_goes_back_brings_a_lock_back(world: World) -> None:
    world.state.lock([lock(end=HOUR)], {})
    seen = []
    for hours in (0.0, 1.0, 0.5):
        world.now = START + hours * HOUR
        seen.append(free(world)[0])
    assert seen == [5000, 6000, 5000]


def test_what_was_handed_out_stays_as_it_was(world: World) -> None:
    before = world.state.snapshot(world.now)
    world.state.lock([lock()], {})
    after = world.state.snapshot(world.now)
    assert (before.free[0, 0], after.free[0, 0]) == (6000, 5000)
    with pytest.raises(ValueError, match="read-only"):
        after.free[0, 0] = 1


# What people see


def test_each_node_shows_what_is_withheld_and_why(world: World) -> None:
    world.state.lock(
        [lock(), lock("past", start=-2 * HOUR, end=-HOUR), lock("n2", nodes=frozenset({"n2"}))], {}
    )
    found = describe_node(world.state, "n1", world.now)
    assert found is not None
    shown = found.summary.horizons[0]
    assert (shown.reclaimable_millicpu, shown.withheld_millicpu) == (6000, 1000)
    assert shown.available_millicpu == 5000
    assert {term.name: term.millicpu for term in found.arithmetic[0].terms}["withheld"] == -1000
    assert found.arithmetic[0].available_millicpu == 5000
    assert [(term.name, term.millicpu, term.reason) for term in found.locks] == [
        ("sale", 1000, "a sale")
    ]


async def test_the_list_of_nodes_says_the_same_as_each_node() -> None:
    async with serving(("n2", "n1", "n3")) as caller:
        world = caller.world
        world.state.lock([lock(nodes=frozenset({"n2"}))], {})
        pod = pod_json("job", 500)
        world.cluster.put_pod(as_pod(pod))
        await caller.filter(pod, ["n3"])
        assert await caller.bind(pod, "n3") == ""
        reply = await caller.send("nodes", b"", method="GET")
        listed = orjson.loads(reply.body)
        assert [node["node"] for node in listed] == ["n1", "n2", "n3"]
        # 8 cores - 2 peak = 6000 reclaimable, less 1 core that is withheld, or the promised 500
        figures = [
            (terms["reclaimable_millicpu"], terms["withheld_millicpu"], node["promised_millicpu"])
            for node in listed
            for terms in node["horizons"][:1]
        ]
        assert figures == [(6000, 0, 0), (6000, 1000, 0), (6000, 0, 500)]
        for node in listed:
            one = await caller.send(f"nodes/{node['node']}", b"", method="GET")
            assert orjson.loads(one.body)["summary"] == node


def test_health_names_what_is_ignored(world: World) -> None:
    world.state.lock([lock(), lock("past", end=-HOUR)], {"bad": "end: must be later than start"})
    lines = health(world.state, world.models.status, world.now).text.splitlines()
    assert "[ ] resource locks that are not over: 1" in lines
    assert "[ ] resource lock bad ignored: end: must be later than start" in lines


def test_health_names_the_locks_that_concern_no_known_node(world: World) -> None:
    found = [
        lock("typo", nodes=frozenset({"n-1"})),
        lock("right", nodes=frozenset({"n1", "n-1"})),
        lock("all"),
        lock("over", nodes=frozenset({"n-1"}), end=-HOUR),
        lock("shop", workload="default/Pod/web"),
    ]
    line = "[ ] resource lock {} concerns no known node"

    def named() -> list[str]:
        lines = health(world.state, world.models.status, world.now).text.splitlines()
        return [said for said in lines if "no known node" in said]

    world.state.lock(found, {})
    assert named() == [line.format("typo"), line.format("shop")]
    world.cluster.put_pod(as_pod(pod_json("web", node="n1")))
    assert named() == [line.format("typo")]
    world.cluster.delete_pod("default", "web")
    assert named() == [line.format("typo"), line.format("shop")]
    world.state.lock([lock(f"t{n}", nodes=frozenset({"n-1"})) for n in range(25)], {})
    assert len(named()) == 21
    assert named()[-1] == "[ ] 5 more resource locks concern no known node"


# From the API server


def put(feed: Feed[ConfigMap], data: Mapping[str, str] | None) -> str:
    """Report the ConfigMap."""
    found: Json = {"metadata": {"name": "archimedes-locks"}, "data": data}
    return feed.put(msgspec.convert(found, ConfigMap))


def test_the_server_is_not_ready_before_the_locks_are_known() -> None:
    for listed in ({}, {"sale": SALE}):
        world = World()
        feed = lock_feed(world.state, world.server.telemetry)
        world.sync()
        seen = [world.state.ready]
        text = health(world.state, world.models.status, world.now).text
        assert "[-] not listed yet: locks\n" in text
        if listed:
            put(feed, listed)
        else:
            feed.retain(())
        seen.append(world.state.ready)
        assert seen == [False, True]
        assert len(world.state.locks) == len(listed)


def test_a_config_map_that_is_deleted_holds_no_locks(world: World) -> None:
    feed = lock_feed(world.state, world.server.telemetry)
    put(feed, {"sale": SALE, "bad": ""})
    feed.heard()
    assert [found.name for found in world.state.locks] == ["sale"]
    metric = world.server.telemetry.registry.get_sample_value
    assert metric("archimedes_invalid_locks", {"lock": "bad"}) == 1.0
    put(feed, {"sale": SALE})
    assert metric("archimedes_invalid_locks", {"lock": "bad"}) is None
    feed.remove(msgspec.convert({"metadata": {}}, ConfigMap))
    assert world.state.locks == ()
    put(feed, None)
    assert world.state.locks == ()


def test_locks_that_are_listed_again_stay(world: World) -> None:
    feed = lock_feed(world.state, world.server.telemetry)
    feed.retain({put(feed, {"sale": SALE})})
    assert len(world.state.locks) == 1


async def test_the_loops_follow_the_config_map() -> None:
    import asyncio

    world = World()
    assert isinstance(world.cluster, MemoryCluster)
    world.cluster.put_config_map({"sale": SALE})
    following = asyncio.create_task(world.server.loops.follow())
    await world.state.synced.wait()
    assert [found.name for found in world.state.locks] == ["sale"]
    world.cluster.put_config_map(None)
    assert world.state.locks == ()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
