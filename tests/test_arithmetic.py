"""The arithmetic of /v1/nodes/NAME adds up exactly to what filter compares an ask with."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extender import handlers
from extender.arithmetic import Arithmetic, arithmetic
from extender.inspection import NodeSummary, describe_node, describe_nodes
from models.policy import HORIZONS, Policy
from models.reclaim import reclaimable_millicpu
from tests.extender_world import World, as_pod, pod_json
from tests.http_world import serving


def terms(found: Arithmetic) -> dict[str, int]:
    return {term.name: term.millicpu for term in found.terms}


def explained(world: World, node: str = "n1") -> tuple[Arithmetic, ...]:
    details = describe_node(world.state, node, world.now)
    assert details is not None
    return details.arithmetic


async def test_the_page_of_all_nodes_shows_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as caller:
        world = caller.world

        def later(*taken: Any) -> list[NodeSummary]:  # noqa: ANN401 - passed on as it is
            """A pod comes after the request, before its thread has begun."""
            world.cluster.put_pod(as_pod(pod_json("a", cpu="3", node="n1")))
            world.cluster.put_pod(as_pod(pod_json("b", 1000, node="n1")))
            assert world.state.snapshot(world.now).forecast[0, 0] == 5.0
            return describe_nodes(*taken)

        monkeypatch.setattr(handlers, "describe_nodes", later)
        async with caller.session.get(f"{caller.url}/v1/nodes") as response:
            found = msgspec.json.decode(await response.read(), type=list[NodeSummary])
    n1 = found[0]
    assert (n1.node, n1.promised_millicpu) == ("n1", 0)
    assert (n1.horizons[0].forecast_cores, n1.horizons[0].reclaimable_millicpu) == (2.0, 6000)


def test_the_terms_of_the_design() -> None:
    policy = Policy(ceiling=0.9, system_reserve=0.1)
    peaks = [2.0, 2.5, 2.4, 3.0, 9.0]
    # 8 x 0.9 - 0.1 - 2.0 = 5.1 cores; the third horizon counts with the second's peak; the last
    # peak is more than there is: 7.2 - 0.1 - 9.0 = -1.9
    free = [5100, 4600, 4600, 4100, 0]
    found = arithmetic(8.0, peaks, free, {"promised": [1500] * 5}, "", policy)
    assert terms(found[0]) == {
        "allocatable": 8000,
        "above_ceiling": -800,
        "system_reserve": -100,
        "forecast": -2000,
        "promised": -1500,
    }
    assert [each.available_millicpu for each in found] == [3600, 3100, 3100, 2600, 0]
    assert terms(found[2])["forecast"] == -2500
    assert [t.millicpu for t in found[4].terms if t.name == "floor"] == [1900, 1500]
    assert [each.hours for each in found] == list(HORIZONS)


@settings(max_examples=300, deadline=None)
@given(
    allocatable=st.integers(0, 256_000).map(lambda m: m / 1000),
    peaks=st.lists(st.floats(0, 300), min_size=5, max_size=5),
    ceiling=st.floats(0.01, 1),
    reserve=st.floats(0, 4),
    advertised=st.integers(0, 256_000),
    promised=st.integers(0, 256_000),
    known=st.booleans(),
    blocked=st.sampled_from(["", "stale"]),
)
def test_the_sum_is_exact_whatever_the_figures(
    allocatable: float,
    peaks: list[float],
    ceiling: float,
    reserve: float,
    advertised: int,
    promised: int,
    known: bool,
    blocked: str,
) -> None:
    policy = Policy(ceiling=ceiling, system_reserve=reserve)
    computed = reclaimable_millicpu(np.array([allocatable]), np.array([peaks]), policy)[0]
    free = [min(int(each), advertised) if known else 0 for each in computed]
    found = arithmetic(allocatable, peaks, free, {"promised": [promised] * 5}, blocked, policy)
    for at, each in enumerate(found):
        assert sum(term.millicpu for term in each.terms) == each.available_millicpu
        assert each.available_millicpu == (0 if blocked else max(free[at] - promised, 0))
        assert each.terms[0].millicpu == round(allocatable * 1000)
        # Nothing but a lack of knowledge or the advertised ceiling stands between the formula and
        # what is reclaimable.
        formula = sum(
            term.millicpu
            for term in each.terms
            if term.name in ("allocatable", "above_ceiling", "system_reserve", "forecast")
        )
        if known and free[at] < advertised:
            assert max(formula, 0) == free[at]


@pytest.mark.parametrize("hours", HORIZONS)
def test_filter_gives_all_of_it_and_not_a_millicore_more(hours: int) -> None:
    world = World(["n1"])
    world.cluster.put_pod(as_pod(pod_json("old", 700, node="n1")))
    world.sync()
    world.forecast({"n1": [1.0004, 2.0, 3.0, 4.0, 5.0]})
    at = HORIZONS.index(hours)
    available = explained(world)[at].available_millicpu
    # 8000 - 1000.4 - 700 = 6299.6, rounded down; then 8000 - 2000 - 700 and so on
    assert available == [6299, 5300, 4300, 3300, 2300][at]
    lasting = {"archimedes.dev/expected-duration": f"{hours}h"}
    more = pod_json("more", available + 1, annotations=lasting)
    assert world.filter(more)["NodeNames"] == []
    exact = pod_json("exact", available, annotations=lasting)
    assert world.filter(exact)["NodeNames"] == ["n1"]
    assert explained(world)[at].available_millicpu == 0  # it is held now


def test_blocked_nodes_name_the_reason_as_a_term() -> None:
    world = World(["n1", "n2"])
    world.sync()
    (first, *_) = explained(world)
    assert terms(first) == {
        "allocatable": 8000,
        "above_ceiling": 0,
        "system_reserve": 0,
        "forecast": 0,  # nothing on the node requests anything
        "no_forecast": -8000,
        "promised": 0,
    }
    world.forecast({"n1": 2.0, "n2": 2.0})
    world.now += 1000
    world.cluster.hear()
    assert terms(explained(world)[0])["blocked"] == -6000
    assert explained(world)[0].available_millicpu == 0


def test_the_advertised_ceiling_is_a_term() -> None:
    world = World(["n1"], advertise_share=0.5)
    world.sync()
    world.forecast(2.0)
    # 8000 - 2000 = 6000, but half of 8000 is advertised
    assert terms(explained(world)[0])["not_advertised"] == -2000
    assert explained(world)[0].available_millicpu == 4000


def test_failure_texts_hold_no_figure_of_a_node() -> None:
    """kube-scheduler counts nodes by identical text: one text for each cause, however many."""
    world = World([f"n{n}" for n in range(6)], cpu="8")
    world.sync()
    world.forecast({"n0": 7.111, "n1": 7.222, "n2": 7.333, "n3": 7.444})  # n4, n5: unknown
    answer = world.filter(pod_json("p", 2500), [*world.cluster.nodes, "gone-1", "gone-2"])
    texts = [*answer["FailedNodes"].values(), *answer["FailedAndUnresolvableNodes"].values()]
    assert sorted(texts.count(text) for text in set(texts)) == [2, 2, 4]
    for text in texts:
        assert not [name for name in world.cluster.nodes if name in text]


def test_the_page_is_json_without_odd_numbers() -> None:
    world = World(["n1"])
    world.sync()
    details = describe_node(world.state, "n1", world.now)
    assert b"NaN" not in msgspec.json.encode(details)
