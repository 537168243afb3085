"""What kube-scheduler asks again about the nodes that a filter call has just left."""

from collections.abc import Callable

import pytest

from extender.ledger import Stage
from tests.extender_world import PLAIN, World, as_node, as_pod, node_json, pod_json

NAMES = tuple(f"n{number}" for number in range(6))


def world() -> World:
    """Six nodes of 8 cores with forecasts of 1 to 6 cores, of which filter leaves three."""
    found = World(nodes=NAMES, candidates=3, choose_alone=False, hold_seconds=30.0)
    found.sync()
    found.forecast({name: float(number + 1) for number, name in enumerate(NAMES)})
    return found


@pytest.mark.parametrize("pod", [pod_json("p", 1000), pod_json("q", cpu="1")])
def test_the_second_entry_gets_all_that_the_first_left_and_one_decision_is_logged(
    pod: dict[str, object],
) -> None:
    of = world()
    left = of.filter(pod)["NodeNames"]
    assert sorted(left) == ["n0", "n1", "n2"]
    again = of.filter(pod, left)
    assert again["NodeNames"] == left
    assert again["FailedNodes"] == again["FailedAndUnresolvableNodes"] == {}
    assert len(of.server.decisions.recent()) == 1


@pytest.mark.parametrize("pod", [pod_json("p", 1000), pod_json("q", cpu="1")])
def test_both_entries_rank_as_if_nothing_had_been_asked_before(pod: dict[str, object]) -> None:
    of, fresh = world(), world()
    left = of.filter(pod)["NodeNames"]
    scores = of.prioritize(pod, left)
    assert scores == fresh.prioritize(pod, left)
    assert len({score["Score"] for score in scores}) == 3
    assert of.prioritize(pod, left) == scores
    assert of.prioritize(pod, left[:2]) == fresh.prioritize(pod, left[:2])


def test_the_hold_lasts_from_the_last_call() -> None:
    of, pod = world(), pod_json("p", 1000)
    left = of.filter(pod)["NodeNames"]
    of.now += 20
    assert of.filter(pod, left)["NodeNames"] == left
    entry = of.state.ledger.get("uid-p")
    assert entry is not None
    assert entry.stage is Stage.HELD
    assert entry.expires == of.now + 30


def less_forecast(of: World) -> None:
    """The nodes are forecast to be full."""
    of.forecast(8.0)


def stale(of: World) -> None:
    """Usage is too old to promise anything."""
    of.now += PLAIN.max_usage_age + 1


def smaller_node(of: World) -> None:
    """The nodes lose their CPU."""
    for name in NAMES:
        of.cluster.put_node(as_node(node_json(name, "1")))


@pytest.mark.parametrize("change", [less_forecast, stale, smaller_node])
def test_what_has_changed_meanwhile_counts(change: Callable[[World], None]) -> None:
    of, pod = world(), pod_json("p", 1000)
    left = of.filter(pod)["NodeNames"]
    change(of)
    assert of.filter(pod, left)["NodeNames"] == []


def another_pod_comes(of: World) -> None:
    """Kube-scheduler has bound the pod before this one."""
    of.cluster.put_pod(as_pod(pod_json("before", cpu="2", node="n2", phase="Running")))


@pytest.mark.parametrize("change", [less_forecast, another_pod_comes])
@pytest.mark.parametrize("pod", [pod_json("p", 1000), pod_json("q", cpu="1")])
def test_nodes_are_ranked_by_what_they_were_left_by_while_a_hold_may_last(
    pod: dict[str, object], change: Callable[[World], None]
) -> None:
    of, fresh = world(), world()
    left = of.filter(pod)["NodeNames"]
    scores = fresh.prioritize(pod, left)
    for each in (of, fresh):
        change(each)
    assert of.prioritize(pod, left) == scores
    assert fresh.prioritize(pod, left) != scores  # it has not been asked to filter
    for each in (of, fresh):
        each.now += 30  # the hold's time
    assert of.prioritize(pod, left) == fresh.prioritize(pod, left)


def test_a_pod_that_asks_for_more_under_the_same_uid_is_decided_anew() -> None:
    of = world()
    left = of.filter(pod_json("p", 1000))["NodeNames"]
    assert of.filter(pod_json("p", 6000), left)["NodeNames"] == ["n0", "n1"]


def test_without_its_hold_a_pod_is_decided_anew() -> None:
    of, pod = world(), pod_json("p", 5000)
    left = of.filter(pod, ["n0", "n1"])["NodeNames"]
    of.state.ledger.release_hold("uid-p")
    of.cluster.put_pod(as_pod(pod_json("other", 4000, node="n0", phase="Running")))
    assert left == ["n0", "n1"]
    assert of.filter(pod, left)["NodeNames"] == ["n1"]
