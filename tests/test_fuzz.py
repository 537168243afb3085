"""Generated requests: no 5xx, no crash, no answer at which kube-scheduler would choke."""

from __future__ import annotations

import asyncio
import json
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
from msgspec.inspect import ListType, StructType, Type, UnionType, type_info
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from extender.ask import CANDIDATES_ANNOTATION, DURATION_ANNOTATION
from extender.homes import REBUILD_LABEL
from models.kube.types import OfferedPod
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

THOROUGH = settings(BOUNDED, max_examples=300)
"""For what needs no schema and costs a millisecond."""

NAMES = st.sampled_from(["n1", "n2", "gone", "", "x" * 300])
ASKS = st.sampled_from([None, 0, 1, "2k", "1500m", 6000, 6001, "9E", "-1", ""])
QUANTITIES = (
    st.sampled_from(["0", "2", "250m", "1.5", "1Ki", "3E", "1e3", "1e-999", "9e999", "-1", "", "x"])
    | st.integers(-1, 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
)
AMOUNTS = st.none() | st.dictionaries(
    st.sampled_from([RESOURCE, "cpu", "memory"]), QUANTITIES, max_size=3
)
RESOURCES = st.none() | st.fixed_dictionaries({}, optional={"requests": AMOUNTS, "limits": AMOUNTS})
CONTAINERS = st.none() | st.lists(
    st.fixed_dictionaries(
        {}, optional={"resources": RESOURCES, "restartPolicy": st.sampled_from([None, "Always"])}
    ),
    max_size=3,
)
OWNERS = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["ReplicaSet", "Job", "DaemonSet", "", "a/b"])},
        optional={
            "apiVersion": st.sampled_from(["apps/v1", "batch/v1", ""]),
            "name": st.sampled_from(["web-5d4f8c7b9", "nightly-28333440", "", "a/b/c"]),
            "uid": st.sampled_from(["owner", ""]),
            "controller": st.none() | st.booleans(),
        },
    ),
    max_size=2,
)
AFFINITIES = st.none() | st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ["nodeAffinity", "podAffinity", "podAntiAffinity"],
        st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "preferredDuringSchedulingIgnoredDuringExecution": st.none()
                | st.lists(st.just({"weight": 1}), max_size=1)
            },
        ),
    ),
)
VOLUMES: st.SearchStrategy[Any] = st.lists(
    st.sampled_from([{}, {"persistentVolumeClaim": {}}, {"ephemeral": {}}])
)
CONSTRAINTS = st.lists(
    st.builds(
        lambda when: {"whenUnsatisfiable": when},
        st.sampled_from([None, "DoNotSchedule", "ScheduleAnyway"]),
    ),
    max_size=2,
)
TIMES = st.sampled_from(
    [None, "", "soon", "2026-11-14T22:13:20Z", "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:00"]
)
ANNOTATIONS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        DURATION_ANNOTATION: st.sampled_from(["2h", "1d12h", "0s", "soon", "", f"{'9' * 63}h"]),
        CANDIDATES_ANNOTATION: st.sampled_from(
            ["0", "1", "5", "-1", "9" * 7, "\N{ROMAN NUMERAL ONE}"]
        ),
    },
)
METADATA = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b", "c"])},
    optional={
        "namespace": st.sampled_from([None, "", "default"]),
        "uid": st.sampled_from([None, "", "uid-a", "uid-b"]),
        "resourceVersion": st.sampled_from([None, "", "0", "7", "x", "-1", "9" * 5000]),
        "labels": st.none() | st.fixed_dictionaries({REBUILD_LABEL: st.sampled_from(["true", ""])}),
        "annotations": ANNOTATIONS,
        "ownerReferences": st.none() | OWNERS,
        "deletionTimestamp": TIMES,
    },
)
SPECS: st.SearchStrategy[Any] = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "containers": CONTAINERS,
        "initContainers": CONTAINERS,
        "overhead": AMOUNTS,
        "resources": RESOURCES,
        "nodeName": st.none() | NAMES,
        "activeDeadlineSeconds": st.none() | st.integers(-(2**63), 2**63 - 1),
        "affinity": AFFINITIES,
        "topologySpreadConstraints": st.none() | CONSTRAINTS,
        "volumes": st.none() | VOLUMES,
        "resourceClaims": st.none() | st.lists(st.just({}), max_size=1),
    },
)
STATUSES = st.none() | st.fixed_dictionaries(
    {}, optional={"phase": st.sampled_from([None, "Pending", "Failed"]), "startTime": TIMES}
)
ANY_PODS = st.fixed_dictionaries({"metadata": METADATA, "spec": SPECS, "status": STATUSES})
"""Everything that is read of a pod, within what JSON and the API's types can hold."""

PODS = st.one_of(
    st.builds(
        lambda name, ask, init: pod_json(name, ask, initContainers=init),
        st.sampled_from(["a", "b", "c"]),
        ASKS,
        st.none() | st.lists(st.just({"resources": {"limits": {RESOURCE: "9"}}}), max_size=2),
    ),
    ANY_PODS,
)
LEAVES = [
    *(("metadata", key) for key in ("name", "namespace", "uid", "resourceVersion", "labels")),
    *(("metadata", "annotations", key) for key in (DURATION_ANNOTATION, CANDIDATES_ANNOTATION)),
    *(("metadata", key) for key in ("ownerReferences", "deletionTimestamp")),
    *(("spec", key) for key in ("containers", "overhead", "nodeName", "activeDeadlineSeconds")),
    *(("spec", "resources", key) for key in ("requests", "limits")),
    *(("spec", "overhead", key) for key in ("cpu", RESOURCE)),
    *(("status", key) for key in ("phase", "startTime")),
]
"""Where a value of any kind is put."""

ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, 10**400, -(10**400), "9" * 5000, "1" * 70_000, [], {}, [None]]),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=5),  # with halves of surrogate pairs
)
VERBS = st.sampled_from(["filter", "prioritize", "preempt"])
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


def read_fields(of: Type) -> Iterator[tuple[str, ...]]:
    """The paths of what a struct reads, without lists and nulls on the way."""
    if isinstance(of, UnionType):
        for kind in of.types:
            yield from read_fields(kind)
    elif isinstance(of, ListType):
        yield from read_fields(of.item_type)
    elif isinstance(of, StructType):
        for field in of.fields:
            yield (field.encode_name,)
            yield from ((field.encode_name, *rest) for rest in read_fields(field.type))


def documented_fields(schema: Json) -> Iterator[tuple[str, ...]]:
    """The same of a schema."""
    if "$ref" in schema:
        schema = OPENAPI["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for name, field in schema.get("properties", {}).items():
        yield (name,)
        yield from ((name, *rest) for rest in documented_fields(field))
    if "items" in schema:
        yield from documented_fields(schema["items"])


def test_the_document_names_every_field_that_is_read_of_a_pod() -> None:
    documented = set(documented_fields({"$ref": "#/components/schemas/Pod"}))
    assert set(read_fields(type_info(OfferedPod))) - documented == set()


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


@THOROUGH
@given(pod=ANY_PODS, verb=VERBS)
def test_no_field_of_a_pod_is_an_error(url: str, verb: str, pod: Json) -> None:
    answer = call(url, verb, args(pod, ["n1", "gone"]))
    if verb == "filter":
        check_filter(answer, args(pod, ["n1", "gone"]))


@THOROUGH
@given(pod=ANY_PODS, path=st.sampled_from(LEAVES), value=ODD, verb=VERBS)
def test_an_odd_value_in_any_field_is_a_400_at_most(
    url: str, pod: Json, path: tuple[str, ...], value: object, verb: str
) -> None:
    place = pod
    for key in path[:-1]:
        place[key] = place = dict(place.get(key) or {})
    place[path[-1]] = value
    body = json.dumps(args(pod, ["n1", "gone"]))
    response = requests.post(f"{url}/v1/{verb}", data=body, timeout=10)
    assert response.status_code in (200, 400), response.text


@BOUNDED
@given(st.fixed_dictionaries(dict.fromkeys(["PodName", "PodNamespace", "PodUID", "Node"], NAMES)))
def test_bind_of_what_does_not_exist_is_an_error(url: str, body: Json) -> None:
    answer = call(url, "bind", body)
    assert isinstance(answer, dict)
    assert set(answer) == {"Error"}
    assert answer["Error"]
