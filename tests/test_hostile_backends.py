"""An API server and a Prometheus that answer anything: said in one sentence, and survived."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import structlog.testing
from aiohttp import web
from aiohttp.test_utils import TestServer

from extender import reflector
from extender.kube import KubeApi
from extender.ports import ClusterError, Feed
from extender.reflector import Reflector
from extender.telemetry import Telemetry
from models import prometheus
from models.kube.types import Pod
from models.prometheus import PrometheusSource
from models.usage_source import PrometheusSettings, UsageBlock, UsageError
from tests.extender_world import World, as_pod, pod_json

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LIST = {"metadata": {"resourceVersion": "7"}, "items": [pod_json("listed")]}
EVENT = {"type": "ADDED", "object": pod_json("watched")}


class Identity:
    """A caller without credentials."""

    tls = True
    server_name = None

    def __init__(self, server: str) -> None:
        self.server = server

    async def headers(self, renew: bool = False) -> dict[str, str]:
        return {"X-Renewed": str(renew)}


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """A server whose every path is answered so; gives its URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@asynccontextmanager
async def api(handler: Handler) -> AsyncIterator[KubeApi]:
    async with answering(handler) as url:
        made = KubeApi(Identity(url))
        yield made
        await made.close()


def problem(status: int, **headers: str) -> web.Response:
    """What an API server that will not answer says."""
    return web.json_response({"message": f"hostile {status}"}, status=status, headers=headers)


def reset(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


LISTS = {
    "429": lambda _: problem(429, **{"Retry-After": "0"}),
    "500": lambda _: problem(500),
    "410": lambda _: problem(410),
    "401": lambda _: problem(401),
    "html": lambda _: web.Response(text="<html>log in</html>", content_type="text/html"),
    "truncated": lambda _: web.Response(body=b'{"items":[{"metadata":{"name":"a"'),
    "null": lambda _: web.Response(body=b"null"),
    "an item that is null": lambda _: web.json_response({**LIST, "items": [None]}),
    "deep": lambda _: web.Response(body=b'{"items":' + b"[" * 100_000),
    "reset": reset,
}
WATCHES = {
    "expired": b'{"type":"ERROR","object":{"code":410,"message":"too old"}}\n',
    "error": b'{"type":"ERROR","object":{"code":500,"message":"etcd"}}\n',
    "no JSON": b"hello\n",
    "null": b'{"type":"ADDED","object":null}\n',
    "cut off": b'{"type":"ADDED","object":{"meta',
    "an unknown kind of event": b'{"type":"WHAT","object":{}}\n',
}


@pytest.mark.parametrize("how", [*LISTS, *(f"watch: {name}" for name in WATCHES)])
async def test_what_an_api_server_answers_wrong_is_asked_again(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(reflector, "_SUSPICIOUS_SECONDS", 0.0)
    wrong = {"list": 3, "watch": 3}  # so often, and then right
    seen: set[str] = set()
    there = asyncio.Event()

    def put(pod: Pod) -> str:
        name = (pod.metadata and pod.metadata.name) or ""
        seen.add(name)
        if name == "watched":
            there.set()
        return name

    async def handler(request: web.Request) -> web.StreamResponse:
        kind = "watch" if "watch" in request.query else "list"
        wrong[kind] -= 1
        if kind == "list":
            hostile = LISTS.get(how)
            return hostile(request) if hostile and wrong[kind] >= 0 else web.json_response(LIST)
        hostile_event = WATCHES.get(how.removeprefix("watch: "))
        if hostile_event and wrong[kind] >= 0:
            return web.Response(body=hostile_event)
        return web.Response(body=json.dumps(EVENT).encode() + b"\n")

    retained: list[set[str]] = []

    def sift(keys: Collection[str]) -> Iterator[None]:
        retained.append({*keys})
        yield

    feed: Feed[Pod] = Feed(put, lambda _: None, sift, lambda: None)
    rng = np.random.default_rng(0)
    async with api(handler) as made, asyncio.timeout(20):
        running = asyncio.create_task(
            Reflector(made, Pod, "/pods", "", feed, Telemetry(), rng).run()
        )
        await there.wait()
        running.cancel()
    assert seen == {"listed", "watched"}
    assert retained
    assert all(keys == {"listed"} for keys in retained)  # a wrong list takes nothing away


@pytest.mark.parametrize(
    ("asked", "granted"),
    [("7", 7.0), ("999999999", 60.0), ("9" * 400, 60.0), ("soon", 0.0), ("-1", 0.0), ("٣", 0.0)],
)
async def test_an_api_server_is_left_alone_for_a_minute_at_most(asked: str, granted: float) -> None:
    async def busy(_: web.Request) -> web.StreamResponse:
        return problem(429, **{"Retry-After": asked})

    async with api(busy) as made:
        with pytest.raises(ClusterError, match="hostile 429") as raised:
            await made.call("GET", "/pods")
    assert raised.value.retry_after == granted


PROMETHEUS = {
    "html": (200, b"<html>log in</html>", "answered 200 with something else than data"),
    "an error": (503, b'{"status":"error","error":"query timed out"}', "503: query timed out"),
    "truncated": (200, b'{"status":"success","data":{"result', "something else than data"),
    "a word for a number": (
        200,
        (
            b'{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},'
            b'"values":[[300,"abc"]]}]}}'
        ),
        "something else than data",
    ),
    "no token": (401, b"no", "refused the token, or wants one"),
    "too much": (200, b" " * 2000, "answers with more than 0 MiB; narrow the query"),
}


@pytest.mark.parametrize("how", PROMETHEUS)
async def test_what_prometheus_answers_wrong_is_one_sentence(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "MAX_ANSWER", 1000)
    status, body, says = PROMETHEUS[how]

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    async with answering(handler) as url:
        source = PrometheusSource(PrometheusSettings(url=url))
        with pytest.raises(UsageError) as raised:
            await source.read(0, 1)
        await source.close()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_an_api_server_that_is_not_there_is_named_with_the_reason() -> None:
    made = KubeApi(Identity("http://127.0.0.1:1"))
    with pytest.raises(ClusterError, match=r"cannot be reached: .*onnect") as raised:
        await made.call("GET", "/pods")
    await made.close()
    assert " object at " not in str(raised.value)


async def test_a_prometheus_that_is_not_there_is_named_with_the_reason() -> None:
    source = PrometheusSource(PrometheusSettings(url="http://user:secret@127.0.0.1:1"))
    with pytest.raises(UsageError, match=r"127\.0\.0\.1 could not be asked: .*onnect") as raised:
        await source.read(0, 1)
    await source.close()
    assert "secret" not in str(raised.value)


async def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    token = tmp_path / "token"
    settings = PrometheusSettings(url="http://127.0.0.1:1", token_file=str(token))
    source = PrometheusSource(settings)
    for why in ("No such file or directory", "it is no text"):
        with pytest.raises(UsageError) as raised:
            await source.read(0, 1)
        assert str(raised.value) == f"the token file {token} cannot be read: {why}"
        token.write_bytes(b"\xff")
    await source.close()


class NoUsage:
    """A Prometheus whose query matches nothing."""

    async def read(self, start: int, windows: int) -> UsageBlock:
        return UsageBlock(start, (), np.zeros((0, windows), np.float32))

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("pods", [0, 1])
async def test_a_query_that_finds_nothing_is_said(pods: int) -> None:
    world = World(usage=NoUsage())
    world.sync()
    for number in range(pods):
        world.cluster.put_pod(as_pod(pod_json(f"web-{number}", cpu="1", node="n1")))
    with structlog.testing.capture_logs() as logs:
        await world.server.refresher.refresh()
    assert ["returns no pod" in entry["event"] for entry in logs] == [True] * pods
