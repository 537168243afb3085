"""What comes in and what goes out: pods' asks, quantities, durations, requests and replies."""

import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extender.ask import DEFAULT_DURATION, PodFacts, parse_duration, pod_facts
from extender.nodes import node_facts
from extender.wire import (
    MAX_MESSAGE,
    BadRequestError,
    Offer,
    decode_args,
    decode_binding,
    encode_binding,
    encode_filter,
    encode_filter_error,
    encode_prioritize,
    offered,
)
from models.kube.quantity import MAX, QuantityError, cores, parse_quantity, whole
from models.kube.types import Pod, version_of
from tests.extender_world import RESOURCE, Json, as_node, as_pod, container, node_json, pod_json


def facts(pod: Json) -> PodFacts:
    """What the extender reads in a pod."""
    return pod_facts(as_pod(pod), RESOURCE)


def with_containers(containers: list[Json] | None, **spec: object) -> Json:
    """A pod with these containers."""
    pod = pod_json("p")
    pod["spec"] = {"containers": containers, **spec}
    return pod


# Quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1500", 1500),
        ("2k", 2000),
        ("1Ki", 1024),
        ("1.5k", 1500),
        ("2000m", 2),
        ("1e3", 1000),
        ("1E3", 1000),
        ("3E", MAX),  # exa, more than any node has
        ("1e999", MAX),
        (f"0.{'0' * 50}1e999", MAX),
        ("0e-999", 0),
        ("+5", 5),
    ],
)
def test_whole_quantities(text: str, value: int) -> None:
    assert whole(text) == value


@pytest.mark.parametrize(
    "text",
    ["1500m", "0.5", "1e-3", "-1", "", " 5", "5 ", "abc", "1e9999", "٣", "5i", "0x10", "9" * 99],
)
def test_what_is_no_whole_quantity(text: str) -> None:
    with pytest.raises(QuantityError):
        whole(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4.0),
        ("3920m", 3.92),
        ("0.1", 0.1),
        ("1u", 0.001),
        ("100n", 0.001),
        ("-3", 0.0),
        ("1e-999", 0.001),  # an API server rounds it up to 1n
        ("1e999", MAX / 1000),
    ],
)
def test_cpu_is_rounded_up_to_millicores(text: str, value: float) -> None:
    assert cores(text) == value


def test_an_exponent_makes_no_quantity_slow() -> None:
    for text in ("7e999", "7e-999"):
        value = parse_quantity(text)
        assert max(value.numerator, value.denominator) < 10**100
        assert (value > MAX, value < 1e-9) == ("-" not in text, "-" in text)


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 5400),
        ("2h", 7200),
        ("1d12h", 129_600),
        ("1.5h", 5400),
        ("1h30m10s", 5410),
        (" 45s ", 45),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "-2h", "2w", "0s", "1..5h", "9" * 99 + "h"])
def test_what_is_no_duration(text: str) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    ("annotation", "deadline", "hours"),
    [
        (None, None, 24),
        (None, 3600, 1),
        (None, 3601, 3),
        ("90m", 90_000, 3),  # the annotation comes first
        ("3d", None, 24),  # longer than the longest horizon takes the longest
        ("soon", 3600, 24),  # malformed: the most careful horizon
    ],
)
def test_a_pod_takes_the_smallest_horizon_that_covers_it(
    annotation: str | None, deadline: int | None, hours: int
) -> None:
    annotations = None if annotation is None else {"archimedes.dev/expected-duration": annotation}
    found = facts(pod_json("p", 1, annotations=annotations, activeDeadlineSeconds=deadline))
    assert [1, 3, 6, 12, 24][found.ask.horizon] == hours
    assert bool(found.bad_annotations) == (annotation == "soon")
    assert DEFAULT_DURATION == 24 * 3600


@pytest.mark.parametrize(
    ("text", "wanted"), [("100", 100), ("0", 0), ("many", None), ("-1", None), ("1" * 30, None)]
)
def test_a_pod_may_ask_for_more_candidates(text: str, wanted: int | None) -> None:
    found = facts(pod_json("p", 1, annotations={"archimedes.dev/candidates": text}))
    assert found.candidates == wanted
    assert bool(found.bad_annotations) == (wanted is None)


# What a pod asks for (conformance 12 to 16)


def test_case_12_a_resource_only_in_limits_counts() -> None:
    limited = {"name": "c", "resources": {"limits": {RESOURCE: "700"}}}
    found = facts(with_containers([limited]))
    assert (found.offline, found.ask.millicpu) == (True, 700)


def test_case_13_init_containers_max_sidecars_sum_overhead_added() -> None:
    sidecar = container({RESOURCE: "100"}, restartPolicy="Always")
    late_sidecar = container({RESOURCE: "30"}, restartPolicy="Always")
    init = container({RESOURCE: "900"})
    pod = with_containers(
        [container({RESOURCE: "200"}), container({RESOURCE: "300"})],
        initContainers=[sidecar, init, late_sidecar],
        overhead={RESOURCE: "7"},
    )
    # running: 200 + 300 + 100 + 30 = 630; during init: 900 + 100 = 1000; overhead 7
    assert facts(pod).ask.millicpu == 1007
    pod["spec"]["initContainers"] = [sidecar, late_sidecar]
    assert facts(pod).ask.millicpu == 637


def test_a_sidecar_that_starts_later_does_not_run_beside_an_earlier_init_container() -> None:
    init = container({RESOURCE: "900"})
    sidecar = container({RESOURCE: "500"}, restartPolicy="Always")
    pod = with_containers([container({RESOURCE: "100"})], initContainers=[init, sidecar])
    assert facts(pod).ask.millicpu == 900  # max(900, 500 + 100)


def test_only_an_init_container_makes_the_pod_offline_too() -> None:
    pod = with_containers([container()], initContainers=[container({RESOURCE: "5"})])
    assert (facts(pod).offline, facts(pod).ask.millicpu) == (True, 5)


def test_the_request_of_the_pod_as_a_whole_replaces_the_sum() -> None:
    pod = with_containers(
        [container({"cpu": "2"}), container({"cpu": "1500m"})],
        resources={"requests": {"cpu": "1"}},
        overhead={"cpu": "250m"},
    )
    assert facts(pod).request == 1.25
    del pod["spec"]["resources"]
    assert facts(pod).request == 3.75


def granted(name: str, allocated: str | None, in_force: str | None) -> Json:
    """The status of a container; None where its kubelet says nothing of it."""
    status: Json = {"name": name}
    if allocated is not None:
        status["allocatedResources"] = {"cpu": allocated}
    if in_force is not None:
        status["resources"] = {"requests": {"cpu": in_force}}
    return status


INFEASIBLE = {"type": "PodResizePending", "reason": "Infeasible"}
DEFERRED = {"type": "PodResizePending", "reason": "Deferred"}
READY = {"type": "Ready", "reason": "Infeasible"}


@pytest.mark.parametrize(
    ("asked", "allocated", "in_force", "condition", "request_"),
    [
        ("2", "2", "2", READY, 2.0),
        ("4", "2", "2", READY, 4.0),  # up, and not yet
        ("1", "6", "6", READY, 6.0),  # down, and not yet
        ("1", "1", "6", READY, 6.0),  # the kubelet has begun
        ("1", "6", "1", READY, 6.0),
        ("1", "6", None, READY, 6.0),
        ("1", None, "6", READY, 6.0),
        ("1", None, None, READY, 1.0),
        ("64", "1", "1", DEFERRED, 64.0),
        ("64", "1", "1", INFEASIBLE, 1.0),
        ("64", "1", "2", INFEASIBLE, 2.0),
        ("64", None, "2", INFEASIBLE, 2.0),
    ],
)
def test_while_a_pod_is_resized_the_most_that_it_asks_for_or_has_counts(
    asked: str, allocated: str | None, in_force: str | None, condition: Json, request_: float
) -> None:
    """Beside it another container of 1 core, and a sidecar of 500m, which are as they should be."""
    second, sidecar = container({"cpu": "1"}), container({"cpu": "500m"}, restartPolicy="Always")
    pod = with_containers(
        [container({"cpu": asked}), {**second, "name": "second"}],
        initContainers=[{**sidecar, "name": "sidecar"}],
        overhead={"cpu": "250m"},
    )
    pod["status"] = {
        "phase": "Running",
        "conditions": [READY, condition],
        "containerStatuses": [granted("second", "1", "1"), granted("c", allocated, in_force)],
        "initContainerStatuses": [granted("sidecar", "500m", "500m")],
    }
    assert facts(pod).request == request_ + 1.75


def test_what_containers_are_resized_to_counts_in_the_same_moment() -> None:
    sidecar = container({"cpu": "1"}, restartPolicy="Always")
    pod = with_containers([container({"cpu": "3"})], initContainers=[{**sidecar, "name": "s"}])
    pod["status"] = {
        "containerStatuses": [granted("c", "3", "2")],  # it grows
        "initContainerStatuses": [granted("s", "1", "2500m")],  # it shrinks
    }
    assert facts(pod).request == 4.5  # max(3 + 1 asked for and set aside, 2 + 2.5 in force)
    pod["status"]["initContainerStatuses"] = [granted("s", "1", "1")]
    assert facts(pod).request == 4.0


@pytest.mark.parametrize(
    ("asked", "condition", "request_"),
    [("1", READY, 3.0), ("4", READY, 4.0), ("4", INFEASIBLE, 3.0)],
)
def test_a_pod_can_be_resized_as_a_whole(asked: str, condition: Json, request_: float) -> None:
    pod = with_containers([container({"cpu": "500m"})], resources={"requests": {"cpu": asked}})
    pod["status"] = {
        "conditions": [condition],
        "containerStatuses": [granted("c", "500m", "500m")],
        "allocatedResources": {"cpu": "2"},
        "resources": {"requests": {"cpu": "3"}},
    }
    assert facts(pod).request == request_


def test_case_14_a_zero_quantity_is_offline_and_asks_nothing() -> None:
    found = facts(pod_json("p", 0))
    assert (found.offline, found.ask.millicpu, found.problem) == (True, 0, "")


@pytest.mark.parametrize(("text", "millicpu"), [("2k", 2000), ("1Ki", 1024)])
def test_case_15_suffixes(text: str, millicpu: int) -> None:
    assert facts(pod_json("p", text)).ask.millicpu == millicpu


@pytest.mark.parametrize("text", ["1500m", "x", "-1", "1.5"])
def test_case_15_an_ask_that_is_no_number_of_millicores_has_a_reason(text: str) -> None:
    found = facts(pod_json("p", text))
    assert found.offline
    assert RESOURCE in found.problem
    assert repr(text) in found.problem


def test_an_absurd_ask_fits_into_an_integer() -> None:
    pod = with_containers([container({RESOURCE: "8E"}), container({RESOURCE: "8E"})])
    assert facts(pod).ask.millicpu == MAX


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"metadata": None, "spec": None, "status": None},
        {"metadata": {}, "spec": {}, "status": {}},
        {"spec": {"containers": None, "initContainers": None, "overhead": None}, "status": {}},
        {"spec": {"containers": [{}]}, "metadata": {"creationTimestamp": None}},
        {"spec": {"containers": [{"resources": {}}, {"resources": {"requests": None}}]}},
    ],
)
def test_case_16_hardly_any_fields(pod: Json) -> None:
    found = facts(pod)
    assert (found.offline, found.ask.millicpu, found.request) == (False, 0, 0.0)
    assert not found.finished
    assert found.uid  # something to key the ledger by


def test_numbers_in_place_of_quantities_are_read() -> None:
    found = facts(with_containers([container({RESOURCE: 1500, "cpu": 0.5})]))
    assert (found.ask.millicpu, found.request) == (1500, 0.5)


@pytest.mark.parametrize(
    ("phase", "finished"),
    [("Pending", False), ("Running", False), ("Succeeded", True), ("Failed", True)],
)
def test_finished_pods(phase: str, finished: bool) -> None:
    assert facts(pod_json("p", 1, phase=phase)).finished == finished


def test_when_a_pod_started() -> None:
    pod = pod_json("p")
    assert facts(pod).started == math.inf
    pod["status"]["startTime"] = "2023-11-14T22:15:00Z"
    assert facts(pod).started == 1_700_000_100
    pod["status"]["startTime"] = "yesterday"
    assert facts(pod).started == math.inf


# Nodes


def test_a_node_is_read() -> None:
    found = node_facts(as_node(node_json("n1", "3920m", "3920")), RESOURCE)
    assert (found.name, found.allocatable, found.advertised) == ("n1", 3.92, 3920)


def test_a_node_advertises_only_where_capacity_and_allocatable_agree() -> None:
    node = node_json("n1", "4", "4k")
    assert node_facts(as_node(node), RESOURCE).advertised == 4000
    node["status"]["allocatable"] = {"cpu": "4"}
    assert node_facts(as_node(node), RESOURCE).advertised is None


@pytest.mark.parametrize(
    "node", [{}, {"metadata": None, "status": {}}, {"status": {"allocatable": {"cpu": "x"}}}]
)
def test_a_malformed_node_has_nothing(node: Json) -> None:
    found = node_facts(as_node(node), RESOURCE)
    assert (found.allocatable, found.advertised) == (0.0, None)


@pytest.mark.parametrize(("text", "version"), [("12", 12), ("", 0), (None, 0), ("v1", 0)])
def test_resource_versions_are_numbers(text: str | None, version: int) -> None:
    pod = as_pod({"metadata": {"resourceVersion": text}})
    assert version_of(pod.metadata) == version
    assert version_of(None) == 0


# Requests


def test_case_36_unknown_fields_are_ignored() -> None:
    body = {"Pod": {**pod_json("p", 5), "kind": "Pod"}, "NodeNames": ["n"], "Extra": {"a": [1]}}
    args = decode_args(json.dumps(body).encode())
    assert offered(args).names == ["n"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"{}",
        b'{"Pod":null}',
        b'{"Pod":5}',
        b'{"Pod":{},"NodeNames":5}',
        b'{"Pod":{},"NodeNames":[null]}',
        b'{"Pod":{},"NodeNames":["\xff"]}',
        b'{"Pod":{},"x":NaN}',
        b'{"Pod":{"x":' + b"[" * 100_000,
        b'{"Pod":{},"Nodes":{"items":[5]}}',
        b'{"Pod":{},"NodeNames":["a"',
        b"\xef\xbb\xbf{}",
    ],
)
def test_case_24_a_malformed_request_is_named(body: bytes) -> None:
    with pytest.raises(BadRequestError) as error:
        offered(decode_args(body))
    assert len(str(error.value)) <= MAX_MESSAGE


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"PodName":"p"}'])
def test_a_malformed_binding_is_named(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        decode_binding(body)


@pytest.mark.parametrize(
    "nodes",
    [b"", b',"Nodes":null,"NodeNames":null', b',"NodeNames":[]', b',"Nodes":{"items":null}'],
)
def test_case_8_no_nodes_in_any_form(nodes: bytes) -> None:
    assert offered(decode_args(b'{"Pod":{}' + nodes + b"}")).names == []


def test_case_10_whole_nodes_come_back_as_they_came() -> None:
    node = {"metadata": {"name": "n1"}, "spec": {"odd": [1.50, "x"]}}
    body = json.dumps({"Pod": {}, "Nodes": {"items": [node, {"metadata": {"name": "n2"}}]}})
    offer = offered(decode_args(body.encode()))
    assert offer.names == ["n1", "n2"]
    reply = json.loads(encode_filter(offer, [0], {}, {}))
    assert reply["Nodes"] == {"metadata": {}, "items": [node]}
    assert reply["NodeNames"] is None


# Replies


def test_case_1_replies_have_the_capitalised_keys() -> None:
    offer = Offer(["n1", "n2"], None)
    assert json.loads(encode_filter(offer, [1], {"n1": "full"}, {})) == {
        "Nodes": None,
        "NodeNames": ["n2"],
        "FailedNodes": {"n1": "full"},
        "FailedAndUnresolvableNodes": {},
        "Error": "",
    }
    assert json.loads(encode_filter(offer, [], {}, {}))["NodeNames"] == []
    assert json.loads(encode_filter_error("later"))["Error"] == "later"
    assert json.loads(encode_filter_error("later"))["NodeNames"] == []
    assert encode_binding("") == b'{"Error":""}'


def test_case_21_scores_are_a_bare_array_of_json_integers() -> None:
    assert encode_prioritize(["n1", "n2"], [0, 10]) == (
        b'[{"Host":"n1","Score":0},{"Host":"n2","Score":10}]'
    )
    assert encode_prioritize([], []) == b"[]"


@given(st.lists(st.tuples(st.text(), st.integers(0, 10))))
@settings(deadline=None)
def test_prioritize_encodes_any_name_as_json_does(pairs: list[tuple[str, int]]) -> None:
    answer = encode_prioritize([name for name, _ in pairs], [score for _, score in pairs])
    assert json.loads(answer) == [{"Host": name, "Score": score} for name, score in pairs]


@pytest.mark.parametrize(
    "text", ["a\x00b\n\t\x1b[0m", 'quote " and \\', "ü" * 20_000, "x" * 10_240]
)
def test_case_37_any_text_is_valid_json_and_bounded(text: str) -> None:
    assert json.loads(encode_binding(text))["Error"] == text[:MAX_MESSAGE]
    assert json.loads(encode_filter_error(text))["Error"] == text[:MAX_MESSAGE]
    failed = json.loads(encode_filter(Offer([text], None), [], {text: text}, {}))
    assert failed["FailedNodes"] == {text: text}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["metadata", "spec", "status", "containers", "resources", "requests", "limits", RESOURCE]
)


@settings(max_examples=300, deadline=None)
@given(
    pod=st.recursive(JSON, lambda inner: st.dictionaries(FIELDS, inner, max_size=4), max_leaves=12)
)
def test_any_json_is_a_pod_or_a_bad_request(pod: object) -> None:
    try:
        args = decode_args(json.dumps({"Pod": pod}).encode())
    except BadRequestError:
        return
    found = pod_facts(args.pod, RESOURCE)
    assert 0 <= found.ask.millicpu <= MAX
    assert 0 <= found.request < math.inf
    assert isinstance(msgspec.convert(msgspec.to_builtins(args.pod), Pod), Pod)
