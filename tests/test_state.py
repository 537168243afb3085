"""The state under events: new, repeated, out of order, lost."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from extender.ask import PodFacts
from extender.decision_log import End
from extender.outlook import unknown
from extender.runs import Run
from extender.snapshot import Reason, Snapshot
from models.policy import HORIZONS, Policy
from models.rolling import Forecast
from tests.extender_world import (
    PLAIN,
    START,
    World,
    as_node,
    as_pod,
    node_json,
    pod_json,
    records_of,
)


@pytest.fixture
def world() -> World:
    """Two nodes of 8 cores, listed, with forecast peaks of 2 cores."""
    made = World()
    made.sync()
    made.forecast(2.0)
    return made


def free(world: World, node: str = "n1", horizon: int = 0) -> int:
    """Millicores reclaimable on a node before promises."""
    snapshot = world.state.snapshot(world.now)
    return int(snapshot.free[snapshot.index[node], horizon])


def promised(world: World, node: str = "n1") -> int:
    """Millicores charged on a node."""
    snapshot = world.state.snapshot(world.now)
    return int(snapshot.promised[snapshot.index[node]])


def blocked(world: World, node: str = "n1") -> Reason:
    """What blocks a node."""
    snapshot = world.state.snapshot(world.now)
    return Reason(int(snapshot.blocked[snapshot.index[node]]))


# Readiness


def test_ready_needs_both_lists() -> None:
    world = World()
    seen = [world.state.ready]
    for feed in (world.state.node_feed(), world.state.pod_feed()):
        feed.retain(set())
        seen.append(world.state.ready)
    assert seen == [False, False, True]


def test_case_38_the_ledger_is_rebuilt_from_the_list_before_ready() -> None:
    world = World()
    world.cluster.put_pod(as_pod(pod_json("a", 1500, node="n1", phase="Running")))
    pods = world.state.pod_feed()
    for pod in world.cluster.pods.values():
        pods.put(pod)
    pods.retain({"uid-a"})
    before = world.state.ready  # the node is not listed yet, so nothing can be charged on it
    nodes = world.state.node_feed()
    nodes.retain({nodes.put(node) for node in world.cluster.nodes.values()})
    assert (before, world.state.ready) == (False, True)
    assert promised(world) == 1500


# Free millicores


def test_free_is_what_forecast_and_ceiling_leave(world: World) -> None:
    assert free(world) == 6000  # 8 cores - 2


def test_the_advertised_share_is_a_ceiling() -> None:
    world = World(advertise_share=0.5)
    world.sync()
    world.forecast(2.0)
    assert free(world) == 4000  # min(8 - 2, 8 x 0.5)
    assert world.state.snapshot(START).emptied.tolist() == [4000, 4000]


def test_the_models_policy_counts() -> None:
    world = World()
    world.sync()
    capture = world.state.capture()
    peaks = np.full((2, len(HORIZONS)), 2.0)
    newest = np.full(2, world.now)
    policy = Policy(ceiling=0.5, system_reserve=1.0)
    world.state.serve(capture, Forecast(peaks, peaks), newest, "8", policy)
    assert free(world) == 1000  # 8 x 0.5 - 1 - 2
    assert world.state.snapshot(world.now).model_version == "8"


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_forecast_blocks_the_node(world: World, broken: float) -> None:
    world.forecast({"n1": broken, "n2": 2.0})
    assert (free(world), blocked(world)) == (0, Reason.NO_FORECAST)
    assert (free(world, "n2"), blocked(world, "n2")) == (6000, Reason.FITS)


def test_a_new_node_waits_for_its_first_forecast(world: World) -> None:
    world.cluster.put_node(as_node(node_json("n3")))
    assert (free(world, "n3"), blocked(world, "n3")) == (0, Reason.NO_FORECAST)
    world.forecast(2.0)
    assert free(world, "n3") == 6000


def test_without_a_model_online_pods_are_ranked_by_requests() -> None:
    world = World()
    world.cluster.put_pod(as_pod(pod_json("a", cpu="3", node="n1")))
    world.sync()
    snapshot = world.state.snapshot(world.now)
    assert snapshot.forecast[snapshot.index["n1"]].tolist() == [3.0] * 5
    scores = {s["Host"]: s["Score"] for s in world.prioritize(pod_json("b", cpu="1"), ["n1", "n2"])}
    assert scores == {"n1": 0, "n2": 10}


def test_a_node_without_a_forecast_is_ranked_by_the_pods_that_are_there_now() -> None:
    world = World()
    world.sync()
    for cpu, node in (("3", "n1"), ("1", "n1"), ("2", "n2")):
        world.cluster.put_pod(as_pod(pod_json(f"of-{cpu}", cpu=cpu, node=node)))
    assert world.state.snapshot(world.now).forecast[:, -1].tolist() == [4.0, 2.0]
    world.cluster.delete_pod("default", "of-3")
    assert world.state.snapshot(world.now).forecast[:, -1].tolist() == [1.0, 2.0]


def test_a_pod_that_goes_costs_nothing_where_there_is_a_forecast(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("p", cpu="1", node="n1")))
    before = world.state.snapshot(world.now)
    world.cluster.delete_pod("default", "p")
    assert world.state.snapshot(world.now).id == before.id


def test_a_node_that_grows_has_more_to_give(world: World) -> None:
    world.cluster.put_node(as_node(node_json("n1", "16")))
    assert free(world) == 14_000


def test_a_node_that_shrinks_keeps_its_promises_and_gives_nothing_more(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", 5000, node="n1")))
    world.cluster.put_node(as_node(node_json("n1", "4")))
    assert (free(world), promised(world)) == (2000, 5000)
    assert world.filter(pod_json("b", 1), ["n1"])["NodeNames"] == []


# Staleness


def test_case_20_usage_that_is_too_old_blocks_in_time(world: World) -> None:
    world.now += PLAIN.max_usage_age
    world.cluster.hear()
    assert blocked(world) is Reason.FITS
    world.now += 0.001
    world.cluster.hear()
    assert blocked(world) is Reason.STALE_USAGE
    world.forecast(2.0)  # new usage arrives
    assert blocked(world) is Reason.FITS


def test_one_stale_node_does_not_block_the_others(world: World) -> None:
    capture = world.state.capture()
    peaks = np.full((2, len(HORIZONS)), 2.0)
    newest = np.array([world.now - 1000, world.now])
    world.state.serve(capture, Forecast(peaks, peaks), newest, "7", PLAIN)
    assert blocked(world, "n1") is Reason.STALE_USAGE
    assert blocked(world, "n2") is Reason.FITS


def test_a_silent_watch_stops_promises_until_it_is_heard_again(world: World) -> None:
    seen = []
    for seconds, hear in ((150.0, ()), (1.0, ()), (0.0, ("node",)), (0.0, ("pod",))):
        world.now += seconds
        if "node" in hear:
            world.state.node_feed().heard()
        if "pod" in hear:
            world.state.pod_feed().heard()
        seen.append(blocked(world))
    # Hearing of nodes alone is not enough: the watch on pods is still silent.
    assert seen == [Reason.FITS, Reason.DISCONNECTED, Reason.DISCONNECTED, Reason.FITS]


def test_a_clock_that_goes_back_blocks_nothing_for_good(world: World) -> None:
    world.now += 1000
    assert blocked(world) is Reason.DISCONNECTED
    world.now -= 1000
    assert blocked(world) is Reason.FITS


def test_the_age_of_usage_is_told(world: World) -> None:
    world.now += 100
    assert world.state.snapshot(world.now).usage_age.tolist() == [100.0, 100.0]


# Online pods


def test_a_new_online_pod_counts_at_once_with_its_request(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", cpu="1500m", node="n1")))
    assert free(world) == 4500  # 8 - 2 - 1.5
    world.cluster.put_pod(as_pod(pod_json("a", cpu="1500m", node="n1", phase="Running")))
    assert free(world) == 4500  # the same pod again


def test_an_online_pod_is_read_once_in_each_version(world: World) -> None:
    def sent(cpu: str, version: str, **of: object) -> PodFacts:
        pod = pod_json("a", cpu=cpu, uid="uid-a", **of)  # type: ignore[arg-type]
        pod["metadata"]["resourceVersion"] = version
        return world.state.facts(as_pod(pod))

    world.cluster.put_pod(as_pod(pod_json("a", cpu="1")))
    known = world.state.pod("uid-a")
    assert known is not None
    assert sent("1", str(known.version)) is known
    assert sent("2", str(known.version + 1)).request == 2.0  # it has changed since
    assert sent("2", "").request == 2.0  # who knows which version
    world.state.pod_feed().put(as_pod(pod_json("a", cpu="1", uid="uid-b")))
    again = world.state.facts(as_pod(pod_json("a", cpu="2", uid="uid-b")))
    assert again.request == 2.0  # neither has a version


def test_what_an_offline_pods_workload_teaches_meanwhile_counts(world: World) -> None:
    pod = pod_json("a", 1000, uid="uid-a")
    pod["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "etl", "controller": True}]
    world.cluster.put_pod(as_pod(pod))
    known = world.state.pod("uid-a")
    assert known is not None
    pod["metadata"]["resourceVersion"] = str(known.version)
    assert world.state.facts(as_pod(pod)).ask.horizon == len(HORIZONS) - 1
    for number in range(20):
        world.state.runs.add("default/Job/etl", Run(world.now - number, 600.0))
    assert world.state.facts(as_pod(pod)).ask.horizon == 0


def test_a_raised_request_counts_at_once_and_a_lowered_one_does_not(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", cpu="1", node="n1")))
    world.cluster.put_pod(as_pod(pod_json("a", cpu="3", node="n1")))
    assert free(world) == 3000  # 8 - 2 - 3
    world.cluster.put_pod(as_pod(pod_json("a", cpu="1", node="n1")))
    assert free(world) == 3000


def test_a_pending_online_pod_counts_nowhere(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", cpu="1")))
    assert free(world) == 6000


def test_a_deleted_online_pod_lowers_nothing_before_the_next_refresh(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", cpu="1", node="n1")))
    world.cluster.delete_pod("default", "a")
    assert free(world) == 5000
    world.forecast(2.0)
    assert free(world) == 6000


def test_a_pod_that_comes_while_forecasts_are_made_stays_added(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("early", cpu="1", node="n1")))
    capture = world.state.capture()
    world.cluster.put_pod(as_pod(pod_json("late", cpu="500m", node="n1")))
    world.cluster.put_pod(as_pod(pod_json("early", cpu="1200m", node="n1")))
    outlook = unknown(2)
    outlook.forecast.forecast[:] = outlook.forecast.expected[:] = 3.0  # 2 before + 1 for early
    world.state.serve(capture, outlook.forecast, np.full(2, world.now), "7", PLAIN)
    assert free(world) == 4300  # 8 - 3 - 0.5 of late - 0.2 that early asks more


def test_what_a_forecast_that_failed_was_captured_for_stays_added(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("early", cpu="1", node="n1")))
    world.state.capture()  # and nothing is served
    world.cluster.put_pod(as_pod(pod_json("late", cpu="500m", node="n1")))
    assert free(world) == 4500  # 8 - 2 - 1 - 0.5
    world.forecast(3.0)  # both are known now
    assert free(world) == 5000  # 8 - 3


def test_a_node_that_returns_while_forecasts_are_made_has_all_its_pods_added(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", cpu="1", node="n1")))
    node = world.cluster.nodes["n1"]
    capture = world.state.capture()
    world.cluster.delete_node("n1")
    world.cluster.put_node(node)
    outlook = unknown(2)
    outlook.forecast.forecast[:] = outlook.forecast.expected[:] = 3.0
    world.state.serve(capture, outlook.forecast, np.full(2, world.now), "7", PLAIN)
    assert free(world) == 4000  # 8 - 3 - 1: counted twice until the next refresh, never too little


def test_offline_pods_do_not_raise_the_forecast_but_their_ordinary_requests_do(
    world: World,
) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", 1000, node="n1")))
    assert (free(world), promised(world)) == (6000, 1000)
    world.cluster.put_pod(as_pod(pod_json("b", 1000, cpu="500m", node="n1")))
    assert (free(world), promised(world)) == (5500, 2000)


# Offline pods


def test_a_bound_pod_is_charged_until_it_ends(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", 1500)))
    assert promised(world) == 0
    world.cluster.put_pod(as_pod(pod_json("a", 1500, node="n1", phase="Running")))
    assert promised(world) == 1500
    world.cluster.put_pod(as_pod(pod_json("a", 1500, node="n1", phase="Succeeded")))
    assert promised(world) == 0


def test_a_deleted_pod_gives_back_its_promise_or_its_hold(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", 1500, node="n1")))
    pending = pod_json("b", 700)
    world.cluster.put_pod(as_pod(pending))
    world.filter(pending)
    assert promised(world) == 2200
    world.cluster.delete_pod("default", "a")
    world.cluster.delete_pod("default", "b")
    assert promised(world) == 0


def test_each_bound_offline_pod_that_leaves_is_logged_once(world: World) -> None:
    cluster = world.cluster
    for name, node in {"done": "n1", "deleted": "n2", "unbound": None, "lives": "n1"}.items():
        cluster.put_pod(as_pod(pod_json(name, 500, node=node)))
    cluster.put_pod(as_pod(pod_json("online", cpu="1", node="n1")))
    world.now += 60
    for _ in range(2):
        cluster.put_pod(as_pod(pod_json("done", 500, node="n1", phase="Succeeded")))
    for name in ("done", "deleted", "unbound", "online"):
        cluster.delete_pod("default", name)
    assert records_of(world.server.decisions) == [
        End(time=world.now, pod=f"default/{name}", uid=f"uid-{name}", node=node)
        for name, node in (("deleted", "n2"), ("done", "n1"))
    ]


def test_events_that_arrive_out_of_order_change_nothing(world: World) -> None:
    feed = world.state.pod_feed()
    pending, bound = pod_json("a", 1500), pod_json("a", 1500, node="n1")
    pending["metadata"]["resourceVersion"], bound["metadata"]["resourceVersion"] = "10", "11"
    feed.put(as_pod(bound))
    feed.put(as_pod(pending))
    assert promised(world) == 1500


def test_an_event_that_comes_after_a_pod_has_gone_does_not_bring_it_back(world: World) -> None:
    feed = world.state.pod_feed()
    bound = pod_json("a", 1500, node="n1")
    feed.put(as_pod(bound))
    feed.remove(as_pod(bound))
    feed.put(as_pod(bound))
    assert promised(world) == 0
    feed.put(as_pod(pod_json("a", 700, uid="uid-next", node="n1")))  # the name is used again
    assert promised(world) == 700


def test_a_pod_on_a_node_that_is_not_known_is_charged_when_the_node_comes(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", 1500, node="n9", cpu="1")))
    world.cluster.put_node(as_node(node_json("n9")))
    assert promised(world, "n9") == 1500


def test_a_node_that_goes_and_comes_back_keeps_its_pods_promises(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", 1500, node="n1")))
    node = world.cluster.nodes["n1"]
    world.cluster.delete_node("n1")
    assert "n1" not in world.state.snapshot(world.now).index
    world.cluster.put_node(node)
    assert (promised(world), blocked(world)) == (1500, Reason.NO_FORECAST)


def test_a_row_that_is_used_again_brings_nothing_along(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", 1500, node="n1", cpu="1")))
    before = world.state.snapshot(world.now, keep=True)
    row = before.index["n1"]
    world.cluster.delete_node("n1")
    world.cluster.put_node(as_node(node_json("n3", "4")))
    after = world.state.snapshot(world.now)
    assert after.index == {"n2": before.index["n2"], "n3": row}
    assert (after.promised[row], after.free[row].max(), after.allocatable[row]) == (0, 0, 4.0)
    world.forecast(1.0)
    assert free(world, "n3") == 3000
    assert before.index["n1"] == row  # what is kept stays as it was
    assert before.allocatable[row] == 8.0


def test_a_complete_list_drops_what_vanished(world: World) -> None:
    for name in "abc":
        world.cluster.put_pod(as_pod(pod_json(name, 1000, node="n1")))
    world.filter(pod_json("held", 500))
    world.state.pod_feed().retain({"uid-b"})
    assert promised(world) == 1500  # b, and a hold that no list could show
    world.state.node_feed().retain({"n2"})
    assert set(world.state.snapshot(world.now).index) == {"n2"}


def arrays(of: Snapshot) -> dict[str, npt.NDArray[Any]]:
    """A snapshot's arrays by name."""
    found = {name: getattr(of, name) for name in of.__struct_fields__}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def pod_comes(world: World) -> None:
    world.cluster.put_pod(as_pod(pod_json("a", 1500, node="n1", cpu="1")))


def node_grows(world: World) -> None:
    world.cluster.put_node(as_node(node_json("n1", "16")))


def node_comes(world: World) -> None:
    world.cluster.put_node(as_node(node_json("n3")))


def forecast_comes(world: World) -> None:
    world.now += 300
    world.forecast(5.0)


def node_goes(world: World) -> None:
    world.cluster.delete_node("n2")


CHANGES = (pod_comes, node_grows, node_comes, node_goes, forecast_comes)


@pytest.mark.parametrize("changes", list(permutations(CHANGES, 2)))
def test_a_kept_snapshot_does_not_change(
    world: World, changes: tuple[Callable[[World], None], ...]
) -> None:
    before = world.state.snapshot(world.now, keep=True)
    copies = {name: array.copy() for name, array in arrays(before).items()}
    for change in changes:
        world.state.snapshot(world.now)  # somebody else's, which is not kept
        change(world)
        assert world.state.snapshot(world.now).id > before.id
    for name, copy in copies.items():
        np.testing.assert_array_equal(getattr(before, name), copy, name)
    assert set(before.index) == {"n1", "n2"}


def test_no_array_of_a_snapshot_can_be_written_to(world: World) -> None:
    for change in CHANGES:
        change(world)
        for array in arrays(world.state.snapshot(world.now)).values():
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_what_changes_row_by_row_is_what_a_new_table_would_hold(share: float) -> None:
    rng = np.random.default_rng(5)
    changed, pods = World(nodes=[f"n{at}" for at in range(8)], advertise_share=share), 0
    changed.sync()
    changed.forecast({f"n{at}": float(at) for at in range(6)})  # two are not known
    for number in range(60):
        node = f"n{rng.integers(8)}"
        if rng.random() < 0.7:
            pods += 1
            cpu = str(rng.integers(1, 4))
            changed.cluster.put_pod(as_pod(pod_json(f"p{pods}", cpu=cpu, node=node)))
        else:
            changed.cluster.put_node(as_node(node_json(node, str(rng.integers(4, 16)))))
        step_by_step = arrays(changed.state.snapshot(changed.now, keep=number % 7 == 0))
        changed.state.policy = replace(PLAIN)  # equal, and yet another: all is computed anew
        at_once = arrays(changed.state.snapshot(changed.now))
        for name, array in at_once.items():
            np.testing.assert_array_equal(step_by_step[name], array, name)


def test_the_snapshots_number_grows_only_when_something_changed(world: World) -> None:
    first = world.state.snapshot(world.now).id
    world.now += 5
    world.cluster.put_node(as_node(node_json("n1")))  # a heartbeat
    assert world.state.snapshot(world.now).id == first
    world.now += 1000
    assert world.state.snapshot(world.now).id == first + 1  # the API server is lost


# Advertising


def test_nodes_are_advertised_until_their_status_says_so(world: World) -> None:
    assert world.state.unadvertised() == {"n1": 8000, "n2": 8000}
    world.cluster.put_node(as_node(node_json("n1", "8", "8k")))
    assert world.state.unadvertised() == {"n2": 8000}
    world.cluster.put_node(as_node(node_json("n1", "8")))  # a kubelet dropped it
    world.cluster.delete_node("n2")
    assert world.state.unadvertised() == {"n1": 8000}


def test_advertising_can_be_left_to_others() -> None:
    world = World(advertise=False)
    world.sync()
    assert world.state.unadvertised() == {}
