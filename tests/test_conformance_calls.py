"""Conformance over HTTP of prioritize, bind and the transport; each test names its case.

Filter is in test_conformance.py, preempt (34 and 35) in test_preemption.py.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import orjson
import pytest

from extender.memory import MemoryCluster
from extender.ports import ClusterError
from extender.wire import MAX_CONTAINERS, MAX_NODES
from tests.extender_world import Json, args, as_pod, pod_json
from tests.http_world import Caller, serving

KUBE_SCHEDULER_IDLE = 90.0


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Two nodes behind a running server."""
    async with serving() as made:
        yield made


def pending(caller: Caller, name: str = "p", ask: int = 1000) -> Json:
    """A pod that waits in the cluster."""
    pod = pod_json(name, ask)
    caller.world.cluster.put_pod(as_pod(pod))
    return pod


def on_bind(caller: Caller, error: Exception | None, *, lost: bool = False) -> None:
    """Let the API server answer binds with an error; ``lost``: never."""
    cluster = caller.world.cluster

    async def bind(namespace: str, name: str, uid: str, node: str) -> None:
        if lost:
            await asyncio.Event().wait()
        if error is not None:
            raise error
        await MemoryCluster.bind(cluster, namespace, name, uid, node)

    cluster.bind = bind  # type: ignore[method-assign]


# Prioritize


async def test_case_21_integers_from_0_to_10_one_a_host_in_a_bare_array() -> None:
    names = [f"n{number}" for number in range(12)]
    async with serving(names) as caller:
        caller.world.forecast({name: number / 2 for number, name in enumerate(names)})
        for pod in (pod_json("p", 100), pod_json("q", cpu="1")):
            found = await caller.prioritize(pod, [*names, "unknown", "n3"])
            assert isinstance(found, list)
            assert [host["Host"] for host in found] == [*names, "unknown"]
            scores = [host["Score"] for host in found]
            assert all(type(score) is int for score in scores)
            assert (min(scores), max(scores)) == (0, 10)


async def test_case_23_null_nodes_or_one_host(caller: Caller) -> None:
    pod = pod_json("p", 1)
    assert (await caller.send("prioritize", orjson.dumps(args(pod)))).body == b"[]"
    assert await caller.prioritize(pod, []) == []
    assert await caller.prioritize(pod, ["n1"]) == [{"Host": "n1", "Score": 10}]


# What is no request


@pytest.mark.parametrize("verb", ["filter", "prioritize", "bind", "preempt"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"Pod":{"metadata":',
        b'{"Pod":{}}}',
        b'{"Pod":{"metadata":{"name":"\xff"}}}',
        b'{"x":' + b"[" * 100_000,
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
async def test_case_24_malformed_json_is_a_400_and_the_server_lives(
    caller: Caller, verb: str, body: bytes
) -> None:
    reply = await caller.send(verb, body)
    assert (reply.status, reply.headers["content-type"][:10]) == (400, "text/plain")
    assert b"not an Extender" in reply.body
    assert len(reply.body) < 1100
    assert (await caller.filter(pod_json("p", 1)))["NodeNames"] == ["n1", "n2"]


async def test_case_25_a_body_over_1_mib(caller: Caller) -> None:
    pod = pod_json("p", 1, annotations={"note": "x" * 2**20})
    assert (await caller.filter(pod))["NodeNames"] == ["n1", "n2"]
    names = [f"a-rather-long-name-of-a-node-{number:06}" for number in range(30_000)]
    assert (await caller.filter(pod_json("q", 1), [*names, "n1"]))["NodeNames"] == ["n1"]


async def test_case_25_a_body_over_the_limit_is_a_413_that_names_the_setting() -> None:
    async with serving(max_body_bytes=2**21) as caller:
        reply = await caller.send("filter", b" " * (2**21 + 1))
        assert reply.status == 413
        assert reply.body == (b"the request's body is larger than max_body_bytes, 2097152 bytes\n")
        assert (await caller.filter(pod_json("p", 1)))["NodeNames"] == ["n1", "n2"]


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("filter", args(pod_json("p", 1), ["n1"] * (MAX_NODES + 1))),
        ("prioritize", args(pod_json("p", 1), nodes=[{}] * (MAX_NODES + 1))),
        (
            "preempt",
            {"Pod": {}, "NodeNameToVictims": dict.fromkeys(map(str, range(MAX_NODES + 1)))},
        ),
    ],
)
async def test_more_nodes_than_any_cluster_has_are_a_400(
    caller: Caller, verb: str, body: Json
) -> None:
    reply = await caller.send(verb, orjson.dumps(body))
    assert reply.status == 400
    assert reply.body == (
        b"100001 nodes in one request, more than 100000; Kubernetes is built for 5000\n"
    )


@pytest.mark.parametrize("verb", ["filter", "prioritize", "preempt"])
async def test_more_containers_than_any_pod_has_are_a_400(caller: Caller, verb: str) -> None:
    half = MAX_CONTAINERS // 2
    for count, status in ((half, 200), (half + 1, 400)):
        pod: Json = {"spec": {"containers": [{}] * half, "initContainers": [{}] * count}}
        reply = await caller.send(verb, orjson.dumps(args(pod, ["n1"])))
        assert reply.status == status
    assert reply.body == b"the pod has 10001 containers, more than 10000\n"


async def test_the_most_nodes_are_answered(caller: Caller) -> None:
    names = ["n1", *map(str, range(MAX_NODES - 1))]
    assert (await caller.filter(pod_json("p", 1), names))["NodeNames"] == ["n1"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "filter", 405),
        ("PUT", "prioritize", 405),
        ("DELETE", "bind", 405),
        ("GET", "preempt", 405),
        ("POST", "nodes", 405),
        ("POST", "filters", 404),
        ("POST", "", 404),
        ("GET", "nodes/unknown", 404),
    ],
)
async def test_case_26_wrong_method_and_unknown_path(
    caller: Caller, method: str, path: str, status: int
) -> None:
    reply = await caller.send(path, b"", method)
    assert (reply.status, reply.headers["content-type"][:10]) == (status, "text/plain")
    assert 0 < len(reply.body) < 100


async def test_numbers_beyond_all_measure_are_no_error_of_the_server(caller: Caller) -> None:
    pod = pod_json("p", 1)
    pod["spec"]["activeDeadlineSeconds"] = 0
    body = orjson.dumps(args(pod, ["n1"]))
    for digits in (b"9" * 400, b"-" + b"9" * 400):
        odd = body.replace(b'"activeDeadlineSeconds":0', b'"activeDeadlineSeconds":' + digits)
        assert (await caller.send("filter", odd)).status == 400
    pod["metadata"]["resourceVersion"] = "9" * 5000  # of which none but the API server knows more
    assert (await caller.filter(pod))["NodeNames"] == ["n1", "n2"]


async def test_an_encoded_or_oddly_labelled_body(caller: Caller) -> None:
    body = orjson.dumps(args(pod_json("p", 1), ["n1"]))
    odd = await caller.send("filter", body, **{"Content-Type": "image/png; charset=x"})
    assert odd.status == 200
    for encoding, content in (("gzip", gzip.compress(body)), ("odd", body)):
        reply = await caller.send("filter", content, **{"Content-Encoding": encoding})
        assert (reply.status, reply.body) == (415, b"the body must not be encoded\n")
    long = await caller.send("filter", body, **{"X-Long": "a" * 10_000})
    assert (long.status, len(long.body) < 300) == (400, True)


@pytest.mark.parametrize("limit", ["", "0", "-1", "x", "10001", "9" * 5000, "٣"])
async def test_a_limit_that_is_none(caller: Caller, limit: str) -> None:
    async with caller.session.get(f"{caller.url}/v1/decisions", params={"limit": limit}) as reply:
        assert reply.status == 400


# Time and connections


async def test_case_27_an_api_server_that_hangs_is_answered_in_time() -> None:
    async with serving(bind_seconds=0.2) as caller:
        pod = pending(caller)
        await caller.filter(pod)
        on_bind(caller, None, lost=True)
        async with asyncio.timeout(5):  # of kube-scheduler's httpTimeout
            assert "did not answer" in await caller.bind(pod, "n1")


async def test_case_27_a_body_that_does_not_arrive_is_a_408() -> None:
    async with serving(request_seconds=0.1) as caller:
        address = urlsplit(caller.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"POST /v1/filter HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert await reader.readline() == b"the request's body did not arrive in time\n"
        writer.close()
        assert (await caller.filter(pod_json("p", 1)))["NodeNames"] == ["n1", "n2"]


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("asks", [{"ask": 1000}, {"cpu": "1"}])
async def test_case_28_a_client_that_leaves_leaves_no_reservation(how: str, asks: Json) -> None:
    async with serving(("n1", "n2"), candidates=1) as caller:
        address = urlsplit(caller.url)
        body = orjson.dumps(args(pod_json("p", **asks), ["n1", "n2"]))
        raw = socket.create_connection((address.hostname, address.port))
        if how == "resets":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        head = f"POST /v1/filter HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        raw.close()  # before the server, in this same event loop, has read a byte
        await caller.filter(pod_json("q", cpu="1"))  # by its answer, the first was handled
        assert caller.promised() == 0
        assert caller.world.state.under_way.others("uid-q") == []


@pytest.mark.parametrize(
    "idle", [0.2, pytest.param(KUBE_SCHEDULER_IDLE + 1, marks=pytest.mark.slow)]
)
async def test_case_29_1000_calls_on_one_connection_that_outlives_the_clients_idle(
    idle: float,
) -> None:
    async with serving() as caller:
        address = urlsplit(caller.url)
        body = orjson.dumps(args(pod_json("p", 1), ["n1"]))
        head = f"POST /v1/filter HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for number in range(1001):
            if number == 1000:
                await asyncio.sleep(idle)
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["NodeNames"] == ["n1"]
        writer.close()


# Bind


async def test_case_30_50_concurrent_binds_bind_each_pod_once(caller: Caller) -> None:
    pods = [pending(caller, f"p{number}", 100) for number in range(50)]
    nodes = [(await caller.filter(pod))["NodeNames"][0] for pod in pods]
    written: list[str] = []
    cluster = caller.world.cluster

    async def bind(namespace: str, name: str, uid: str, node: str) -> None:
        written.append(name)
        await asyncio.sleep(0)
        await MemoryCluster.bind(cluster, namespace, name, uid, node)

    cluster.bind = bind  # type: ignore[method-assign]
    twice = [caller.bind(pod, node) for pod, node in zip(pods, nodes, strict=True) for _ in "ab"]
    assert set(await asyncio.gather(*twice)) == {""}
    assert sorted(written) == sorted(f"p{number}" for number in range(50))
    assert caller.promised() == 5000


async def test_case_31_a_duplicate_bind(caller: Caller) -> None:
    pod = pending(caller)
    await caller.filter(pod)
    assert await caller.bind(pod, "n1") == ""
    assert await caller.bind(pod, "n1") == ""
    assert "n1" in await caller.bind(pod, "n2")
    assert caller.promised() == 1000


async def test_case_32_a_wrong_uid_a_deleted_pod_a_gated_pod(caller: Caller) -> None:
    pod, gated = pending(caller), pending(caller, "gated")
    await caller.filter(pod)
    assert "UID" in await caller.bind(pod, "n1", "uid-of-another")
    caller.world.cluster.delete_pod("default", "p")
    assert await caller.bind(pod, "n1")
    assert caller.promised() == 0
    await caller.filter(gated)
    on_bind(caller, ClusterError(409, "pod gated has non-empty .spec.schedulingGates"))
    assert "schedulingGates" in await caller.bind(gated, "n1")
    assert caller.promised() == 0


async def test_case_33_a_conflict_is_an_error_and_gives_the_reservation_back(
    caller: Caller,
) -> None:
    pod = pending(caller)
    await caller.filter(pod)
    on_bind(caller, ClusterError(409, "the object has been modified"))
    assert "modified" in await caller.bind(pod, "n1")
    assert caller.promised() == 0
    on_bind(caller, None)
    assert await caller.bind(pod, "n1") == ""


async def test_case_33_after_a_timeout_the_reservation_goes_once_the_fate_is_known() -> None:
    async with serving(bind_seconds=0.2) as caller:
        pod = pending(caller)
        await caller.filter(pod)
        on_bind(caller, None, lost=True)
        assert "did not answer" in await caller.bind(pod, "n1")
        assert await caller.shown("n1") == 1000  # the binding may still land
        caller.world.now += caller.world.settings.hold_seconds
        await caller.world.server.binder.chase()  # as the server does every other second
        assert await caller.shown("n1") == 0
