"""Conformance of filter over HTTP; each test names its case (the other verbs: next file).

Every node has 8 cores and a forecast peak of 2, so 6000 millicores are reclaimable.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp
import numpy as np
import orjson
import pytest

from extender.app import listening
from models.rolling import Forecast
from tests.extender_world import (
    PLAIN,
    RESOURCE,
    Json,
    World,
    args,
    as_pod,
    container,
    node_json,
    pod_json,
)
from tests.http_world import Caller, serving


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Two nodes behind a running server."""
    async with serving() as made:
        yield made


def with_containers(*containers: Json, **spec: object) -> Json:
    """A pod with these containers."""
    pod = pod_json("p")
    pod["spec"] = {"containers": list(containers), **spec}
    return pod


async def test_case_1_a_valid_filter(caller: Caller) -> None:
    reply = await caller.send("filter", orjson.dumps(args(pod_json("p", 1), ["n1"])))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert int(reply.headers["content-length"]) == len(reply.body)
    assert json.loads(reply.body) == {
        "Nodes": None,
        "NodeNames": ["n1"],
        "FailedNodes": {},
        "FailedAndUnresolvableNodes": {},
        "Error": "",
    }


@pytest.mark.parametrize("pod", [pod_json("p", 1), pod_json("p", cpu="1")], ids=["off", "on"])
async def test_case_2_names_are_a_subset_without_duplicates(caller: Caller, pod: Json) -> None:
    offered = ["n2", "n1", "n2", "other", "other"]
    found = (await caller.filter(pod, offered))["NodeNames"]
    assert set(found) <= set(offered)
    assert len(found) == len(set(found))


async def test_case_3_without_a_fit_each_node_is_in_exactly_one_map(caller: Caller) -> None:
    caller.world.forecast({"n1": 2.0})  # n2 has no forecast: waiting for evictions is in vain
    found = await caller.filter(pod_json("p", 7000))
    assert (set(found["FailedNodes"]), set(found["FailedAndUnresolvableNodes"])) == ({"n1"}, {"n2"})


async def test_case_3_ranked_out_nodes_are_in_no_map() -> None:
    async with serving(("n1", "n2", "n3"), candidates=1) as caller:
        found = await caller.filter(pod_json("p", 1), ["n1", "n2", "n3"])
        assert len(found["NodeNames"]) == 1
        assert found["FailedNodes"] == found["FailedAndUnresolvableNodes"] == {}


async def test_case_4_too_big_for_the_emptied_node_is_unresolvable(caller: Caller) -> None:
    found = await caller.filter(pod_json("p", 8001))
    assert set(found["FailedAndUnresolvableNodes"]) == {"n1", "n2"}
    assert found["FailedNodes"] == {}


async def test_case_5_would_fit_if_offline_pods_left(caller: Caller) -> None:
    caller.world.cluster.put_pod(as_pod(pod_json("a", 5000, node="n1")))
    found = await caller.filter(pod_json("p", 2000), ["n1"])
    assert set(found["FailedNodes"]) == {"n1"}
    assert found["FailedAndUnresolvableNodes"] == {}


async def test_case_6_none_fit_is_an_empty_array_and_no_error(caller: Caller) -> None:
    found = await caller.filter(pod_json("p", 7000))
    assert (found["NodeNames"], found["Nodes"], found["Error"]) == ([], None, "")


async def test_case_7_one_node(caller: Caller) -> None:
    assert (await caller.filter(pod_json("p", 6000), ["n2"]))["NodeNames"] == ["n2"]


@pytest.mark.parametrize(
    "nodes", [{}, {"Nodes": None, "NodeNames": None}, {"NodeNames": []}, {"Nodes": {"items": None}}]
)
async def test_case_8_empty_input_empty_result(caller: Caller, nodes: Json) -> None:
    for pod in (pod_json("p", 1), pod_json("p")):
        found = await caller.post("filter", {"Pod": pod, **nodes})
        assert not found["NodeNames"]
        assert not (found["Nodes"] or {}).get("items")
        assert (found["FailedNodes"], found["Error"]) == ({}, "")


async def test_case_9_an_unknown_node_is_a_failed_one(caller: Caller) -> None:
    found = await caller.filter(pod_json("p", 1), ["n1", "new"])
    assert (found["NodeNames"], set(found["FailedNodes"])) == (["n1"], {"new"})


async def test_case_10_whole_nodes_are_answered_as_names_are(caller: Caller) -> None:
    caller.world.cluster.put_pod(as_pod(pod_json("a", 5000, node="n1")))
    nodes = [node_json("n1"), {**node_json("n2"), "odd": [1.5, "x"]}]
    body = args(pod_json("p", 2000), nodes=nodes)
    found = await caller.post("filter", body)
    assert found["NodeNames"] is None
    assert found["Nodes"] == {"metadata": {}, "items": [nodes[1]]}
    assert set(found["FailedNodes"]) == {"n1"}
    by_name = await caller.prioritize(pod_json("p", 2000))
    assert await caller.post("prioritize", body) == by_name


@pytest.mark.parametrize("items", [[None], [5], [{"metadata": []}]])
async def test_case_10_malformed_nodes_are_named(caller: Caller, items: list[object]) -> None:
    body = orjson.dumps({"Pod": {}, "Nodes": {"items": items}})
    for verb in ("filter", "prioritize"):
        reply = await caller.send(verb, body)
        assert (reply.status, reply.body[:17]) == (400, b"not a Node object")


async def test_case_11_an_unmanaged_pod_passes_everywhere(caller: Caller) -> None:
    found = await caller.filter(pod_json("p", cpu="64"), ["n1", "n2", "unknown"])
    assert found["NodeNames"] == ["n1", "n2", "unknown"]
    assert caller.promised() == 0


SIDECAR = container({RESOURCE: "100"}, restartPolicy="Always")
INIT = container({RESOURCE: "900"})
LIMITED = {"name": "c", "resources": {"limits": {RESOURCE: "700"}}}


@pytest.mark.parametrize(
    ("pod", "millicpu"),
    [
        pytest.param(with_containers(LIMITED), 700, id="case_12_only_in_limits"),
        pytest.param(
            with_containers(
                container({RESOURCE: "200"}),
                container({RESOURCE: "300"}),
                initContainers=[SIDECAR, INIT],
                overhead={RESOURCE: "7"},
            ),
            1007,  # max(200 + 300 + 100, 900 + 100) + 7
            id="case_13_init_max_sidecars_sum_overhead",
        ),
        pytest.param(pod_json("p", 0), 0, id="case_14_zero"),
        pytest.param(pod_json("p", "2k"), 2000, id="case_15_2k"),
        pytest.param(pod_json("p", "1Ki"), 1024, id="case_15_1Ki"),
    ],
)
async def test_cases_12_to_15_what_a_pod_is_charged(
    caller: Caller, pod: Json, millicpu: int
) -> None:
    assert (await caller.filter(pod, ["n1"]))["NodeNames"] == ["n1"]
    assert caller.promised() == millicpu


async def test_case_14_zero_is_offline_and_fits_where_nothing_is_left(caller: Caller) -> None:
    caller.world.forecast(8.0)
    assert (await caller.filter(pod_json("p", 0)))["NodeNames"] == ["n1", "n2"]
    assert (await caller.filter(pod_json("q", 1)))["NodeNames"] == []


async def test_case_15_1500m_is_rejected_with_a_reason(caller: Caller) -> None:
    found = await caller.filter(pod_json("p", "1500m"), ["n1"])
    assert found["NodeNames"] == []
    assert "'1500m'" in found["FailedAndUnresolvableNodes"]["n1"]


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"metadata": {}, "spec": {}, "status": {}},
        {"metadata": {"name": "p"}, "spec": {"containers": [INIT]}, "status": {}},
    ],
)
async def test_case_16_hardly_any_fields(caller: Caller, pod: Json) -> None:
    assert (await caller.filter(pod, ["n1"]))["NodeNames"] == ["n1"]
    assert await caller.prioritize(pod, ["n1"]) == [{"Host": "n1", "Score": 10}]


async def test_case_17_a_repeat_gets_the_same_answer_and_the_ledger_does_not_grow(
    caller: Caller,
) -> None:
    pod = pod_json("p", 4000)
    answers = [await caller.filter(pod) for _ in range(20)]
    assert answers == [answers[0]] * 20
    assert (len(caller.world.state.ledger), caller.promised()) == (1, 8000)  # on both nodes


async def test_case_18_two_pods_before_any_watch_event_never_share_a_millicore(
    caller: Caller,
) -> None:
    assert (await caller.filter(pod_json("a", 4000), ["n1"]))["NodeNames"] == ["n1"]
    assert (await caller.filter(pod_json("b", 2001), ["n1"]))["NodeNames"] == []
    assert (await caller.filter(pod_json("b", 2000), ["n1"]))["NodeNames"] == ["n1"]


async def test_case_19_a_pods_own_reservation_is_not_held_against_it(caller: Caller) -> None:
    pod = pod_json("p", 6000)
    caller.world.cluster.put_pod(as_pod(pod))
    assert (await caller.filter(pod, ["n1"]))["NodeNames"] == ["n1"]
    assert (await caller.filter(pod, ["n1"]))["NodeNames"] == ["n1"]
    assert await caller.bind(pod, "n1") == ""


async def test_case_20_a_stale_forecast_promises_nothing_more(caller: Caller) -> None:
    caller.world.now += PLAIN.max_usage_age + 1
    caller.world.cluster.hear()
    found = await caller.filter(pod_json("p", 1))
    assert found["NodeNames"] == []
    assert "older than 900 s" in found["FailedAndUnresolvableNodes"]["n1"]
    assert (await caller.filter(pod_json("q", cpu="1")))["NodeNames"] == ["n1", "n2"]


async def test_case_22_broken_forecasts_score_valid_integers(caller: Caller) -> None:
    capture = caller.world.state.capture()
    peaks = np.array([[np.nan] * 5, [np.inf] * 5])
    newest = np.full(2, caller.world.now)
    caller.world.state.serve(capture, Forecast(peaks, peaks), newest, "8", PLAIN)
    for pod in (pod_json("p", 1), pod_json("q", cpu="1")):
        reply = await caller.send("prioritize", orjson.dumps(args(pod, ["n1", "n2"])))
        assert b"NaN" not in reply.body
        assert all(type(host["Score"]) is int for host in json.loads(reply.body))
    assert (await caller.filter(pod_json("p", 1)))["NodeNames"] == []


async def test_case_36_unknown_fields_are_ignored(caller: Caller) -> None:
    pod = {**pod_json("p", 1), "kind": "Pod", "futureField": {"a": [None]}}
    body = {**args(pod, ["n1"]), "Extra": [{}]}
    assert (await caller.post("filter", body))["NodeNames"] == ["n1"]


@pytest.mark.parametrize("text", ["a\x00b\n\t\x1b[0m", 'quote " and \\', "x" * 10_240])
async def test_case_37_any_text_gives_valid_json(caller: Caller, text: str) -> None:
    pod = pod_json("p", text)
    found = await caller.filter(pod, [text])
    assert set(found["FailedAndUnresolvableNodes"]) == {text}
    assert len(found["FailedAndUnresolvableNodes"][text]) <= 1000
    await caller.bind(pod_json(text, 1), text)


async def test_case_38_after_a_restart_the_ledger_is_rebuilt_before_ready() -> None:
    world = World(("n1",), port=0)
    world.cluster.put_pod(as_pod(pod_json("a", 5000, node="n1", phase="Running")))
    async with listening(world.server) as url, aiohttp.ClientSession(url) as session:
        caller = Caller(world, url, session)
        async with session.get("/readyz") as before:
            assert before.status == 503
        assert "has not listed" in (await caller.filter(pod_json("p", 1)))["Error"]
        world.sync()
        world.forecast(2.0)
        async with session.get("/readyz") as after:
            assert after.status == 200
        # 6000 - 5000 of a, which ran before the restart
        assert (await caller.filter(pod_json("p", 1001), ["n1"]))["NodeNames"] == []
        assert (await caller.filter(pod_json("p", 1000), ["n1"]))["NodeNames"] == ["n1"]
