"""Generated requests: no 5xx, no crash, no answer at which kube-scheduler would choke."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.extender_world import RESOURCE, Json, World, args, node_json, pod_json
from tests.http_world import serving

OPENAPI = yaml.safe_load(
    (Path(__file__).resolve().parents[1] / "docs" / "openapi.yaml").read_text()
)
SCHEMA = schemathesis.openapi.from_dict(OPENAPI)
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations() if isinstance(result, Ok)]
CHECKS = [
    not_a_server_error,
    checks.response_schema_conformance,
    checks.content_type_conformance,
    checks.status_code_conformance,
]
BOUNDED = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

NAMES = st.sampled_from(["n1", "n2", "gone", "", "x" * 300])
ASKS = st.sampled_from([None, 0, 1, "2k", "1500m", 6000, 6001, "9E", "-1", ""])
PODS = st.builds(
    lambda name, ask, init: pod_json(name, ask, initContainers=init),
    st.sampled_from(["a", "b", "c"]),
    ASKS,
    st.none() | st.lists(st.just({"resources": {"limits": {RESOURCE: "9"}}}), max_size=2),
)
UIDS = st.sampled_from(["uid-a", "uid-b", "uid-c", "", "nobody"])
PROPOSED = st.dictionaries(
    NAMES,
    st.none()
    | st.fixed_dictionaries(
        {"Pods": st.none() | st.lists(st.builds(lambda uid: {"UID": uid}, UIDS), max_size=3)},
        optional={"NumPDBViolations": st.integers(0, 2**63 - 1)},
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server in a thread of its own, as the client blocks."""
    loop, found, up = asyncio.new_event_loop(), [], threading.Event()
    done = asyncio.Event()

    async def serve() -> None:
        async with serving() as caller:
            found.append(caller.url)
            up.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert up.wait(30)
    yield found[0]
    loop.call_soon_threadsafe(done.set)
    thread.join(30)
    loop.close()


def test_the_document_names_every_route() -> None:
    documented = {
        (path, method.upper())
        for path, by_method in OPENAPI["paths"].items()
        for method in by_method
    }
    served = {
        (route.resource.canonical, route.method)
        for route in World().server.app().router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert documented == served


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(operation, mode, id=f"{operation.label}-{mode.value}")
        for operation in OPERATIONS
        for mode in GenerationMode
        # Nothing can be wrong with a request that has neither a body nor a parameter.
        if mode is GenerationMode.POSITIVE or operation.body or operation.query
    ],
)
def test_every_operation_answers_as_documented(
    url: str, operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode
) -> None:
    @BOUNDED
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Case[Any]) -> None:
        response = case.call(base_url=url)
        case.validate_response(response, checks=CHECKS)
        if (
            response.status_code == 200
            and mode is GenerationMode.POSITIVE
            and case.method == "POST"
        ):
            check_reply(operation.path, orjson.loads(response.content), case.body)

    run()


def check_reply(path: str, answer: object, body: Any) -> None:  # noqa: ANN401
    """What kube-scheduler demands beyond the types."""
    if path.endswith("filter"):
        check_filter(answer, body)
    elif path.endswith("prioritize"):
        assert isinstance(answer, list)
        assert len({host["Host"] for host in answer}) == len(answer)
    elif path.endswith("preempt"):
        check_preempt(answer, body)


def check_filter(answer: object, body: Json) -> None:
    """Passed nodes are a subset without duplicates, and in no failure map."""
    assert isinstance(answer, dict)
    offered = offered_names(body)
    passed = passed_names(answer)
    assert set(passed) <= set(offered)
    assert len(set(passed)) == len(passed)
    failed, unresolvable = set(answer["FailedNodes"]), set(answer["FailedAndUnresolvableNodes"])
    assert not failed & unresolvable
    assert not (failed | unresolvable) & set(passed)
    if not passed and not answer["Error"]:
        assert failed | unresolvable == set(offered)


def check_preempt(answer: object, body: Json) -> None:
    """Nodes and UIDs are those of the request; no node is without victims."""
    assert isinstance(answer, dict)
    meta, full = body.get("NodeNameToMetaVictims") or {}, body.get("NodeNameToVictims") or {}
    for node, victims in answer["NodeNameToMetaVictims"].items():
        named = [pod.get("UID") for pod in (meta.get(node) or {}).get("Pods") or ()]
        pods = (full.get(node) or {}).get("Pods") or ()
        named += [(pod.get("metadata") or {}).get("uid") for pod in pods]
        uids = [pod["UID"] for pod in victims["Pods"]]
        assert uids
        assert set(uids) <= set(named)


def offered_names(body: Json) -> list[str]:
    """The names in a request, in either form."""
    if body.get("NodeNames") is not None:
        return list(body["NodeNames"])
    items = (body.get("Nodes") or {}).get("items") or ()
    return [(node.get("metadata") or {}).get("name") or "" for node in items]


def passed_names(answer: Json) -> list[str]:
    """The names in a filter's answer, in either form."""
    if answer["NodeNames"] is not None:
        return list(answer["NodeNames"])
    return offered_names({"Nodes": answer["Nodes"]})


def call(url: str, verb: str, body: Json) -> object:
    """The answer to a call that must succeed."""
    response = requests.post(f"{url}/v1/{verb}", data=orjson.dumps(body), timeout=10)
    assert response.status_code == 200
    return orjson.loads(response.content)


@BOUNDED
@given(pod=PODS, names=st.lists(NAMES, max_size=6), whole=st.booleans())
def test_filter_and_prioritize_in_both_forms(
    url: str, pod: Json, names: list[str], whole: bool
) -> None:
    body = args(pod, nodes=[node_json(name) for name in names]) if whole else args(pod, names)
    check_filter(call(url, "filter", body), body)
    scores = call(url, "prioritize", body)
    assert isinstance(scores, list)
    assert {host["Host"] for host in scores} == set(names)
    assert all(type(host["Score"]) is int and 0 <= host["Score"] <= 10 for host in scores)


@BOUNDED
@given(pod=PODS, meta=st.none() | PROPOSED)
def test_preempt_names_nobody_who_was_not_proposed(url: str, pod: Json, meta: Json | None) -> None:
    body = {"Pod": pod, "NodeNameToMetaVictims": meta}
    check_preempt(call(url, "preempt", body), body)


@BOUNDED
@given(st.fixed_dictionaries(dict.fromkeys(["PodName", "PodNamespace", "PodUID", "Node"], NAMES)))
def test_bind_of_what_does_not_exist_is_an_error(url: str, body: Json) -> None:
    answer = call(url, "bind", body)
    assert isinstance(answer, dict)
    assert set(answer) == {"Error"}
    assert answer["Error"]
