"""Callers that are slow, many, or neither: from outside, over raw sockets."""

from __future__ import annotations

import asyncio
import gzip
import resource
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import orjson
import pytest
import uvloop
from aiohttp import web

from extender import connections
from extender.app import serve
from extender.handlers import Pages
from extender.settings import ProbeSettings, Settings
from models.errors import SettingsError
from tests.extender_world import Json, args, as_pod, binding, pod_json
from tests.http_world import Caller, serving

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[Caller], Awaitable[Streams]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens connections on which nothing was said yet."""
    opened: list[asyncio.StreamWriter] = []

    async def open_one(caller: Caller) -> Streams:
        address = urlsplit(caller.url)
        streams = await asyncio.open_connection(address.hostname, address.port)
        opened.append(streams[1])
        return streams

    yield open_one
    for writer in opened:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in opened), return_exceptions=True)


def request(verb: str = "filter", content: Json | None = None) -> bytes:
    """A whole request; a filter call of an online pod, unless said otherwise."""
    body = orjson.dumps(content or args(pod_json("p", cpu="1"), ["n1"]))
    head = f"POST /v1/{verb} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answered(streams: Streams) -> bytes:
    """The status line and the body of the next answer."""
    head = await streams[0].readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head.split(b"\r\n")[0] + b" " + await streams[0].readexactly(length)


async def is_closed(streams: Streams) -> bool:
    """Whether the server ends the connection, with nothing more to say."""
    try:
        return await streams[0].read() == b""
    except ConnectionResetError:
        return True


async def test_a_head_that_never_ends_is_a_408_however_it_drips(connect: Connect) -> None:
    async with serving(request_seconds=0.3) as caller:
        streams = await connect(caller)

        async def drip() -> None:
            while True:
                streams[1].write(b"X-A: b\r\n")
                await asyncio.sleep(0.02)

        streams[1].write(b"POST /v1/filter HTTP/1.1\r\n")
        dripping = asyncio.create_task(drip())
        said = await answered(streams)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert said.endswith(b"the request's head did not arrive in time\n")
        dripping.cancel()
        assert caller.world.server.telemetry.bad_requests._value.get() == 1
        assert (await caller.filter(pod_json("p", 1)))["NodeNames"] == ["n1", "n2"]


def test_a_caller_that_says_one_thing_at_once_and_then_nothing_is_bounded() -> None:
    async def answers() -> None:
        async with serving(request_seconds=0.3) as caller:
            address = urlsplit(caller.url)
            for said in (b"G", request()[:40], b"\r\n"):
                with socket.create_connection((address.hostname, address.port)) as raw:
                    raw.sendall(said)  # before the server, in this same event loop, accepts
                    assert b" 408 " in await asyncio.to_thread(raw.recv, 4096)

    uvloop.run(answers())  # production's event loop reads at once what has come with a connection


async def test_a_slow_second_request_on_a_connection_is_bounded_too(connect: Connect) -> None:
    async with serving(request_seconds=0.3) as caller:
        streams = await connect(caller)
        streams[1].write(request())
        assert b" 200 " in await answered(streams)
        streams[1].write(request()[:10])
        assert b" 408 " in await answered(streams)
        assert await is_closed(streams)


async def test_a_head_in_time_and_idle_connections_are_left_alone(connect: Connect) -> None:
    async with serving(request_seconds=0.1) as caller:
        silent, halves = await connect(caller), await connect(caller)
        whole = request()
        for part in (whole[:10], whole[10:]):
            halves[1].write(part)
            await asyncio.sleep(0.01)
        assert b" 200 " in await answered(halves)
        await asyncio.sleep(0.3)  # longer than a head may take
        for streams in (silent, halves):
            streams[1].write(whole)
            assert b" 200 " in await answered(streams)


@pytest.mark.parametrize(
    "content", [b"this is no gzip", gzip.compress(b"[]"), b""], ids=["no gzip", "gzip", "empty"]
)
async def test_an_encoded_body_is_refused_as_it_came(
    connect: Connect, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    async with serving() as caller:
        streams = await connect(caller)
        head = f"Host: x\r\nContent-Encoding: gzip\r\nContent-Length: {len(content)}\r\n\r\n"
        streams[1].write(f"POST /v1/filter HTTP/1.1\r\n{head}".encode() + content)
        assert b" 415 " in await answered(streams)
        assert await is_closed(streams)
        assert caplog.records == []


async def test_what_would_inflate_a_thousandfold_does_not(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb, reached = gzip.compress(bytes(4 << 20)), list[bytes]()

    async def live(_: Pages, request: web.Request) -> web.StreamResponse:
        reached.append(await request.read())
        return web.Response()

    monkeypatch.setattr(Pages, "live", live)
    async with serving() as caller:
        streams = await connect(caller)
        head = f"Host: x\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
        streams[1].write(f"GET /livez HTTP/1.1\r\n{head}".encode() + bomb)
        await streams[0].readuntil(b"\r\n\r\n")
        assert reached == [bomb]


@pytest.mark.parametrize(
    "said",
    [
        b"GET /livez HTTP/1.1\r\n\r\n",  # without a Host
        b"POST /v1/filter HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00",  # the beginning of a TLS handshake
    ],
    ids=["no host", "no chunk", "TLS"],
)
async def test_what_is_not_http_is_counted_and_leaves_no_traceback(
    connect: Connect, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    async with serving() as caller:
        streams = await connect(caller)
        streams[1].write(said)
        assert b" 400 " in await answered(streams)
        assert await is_closed(streams)
        assert caller.world.server.telemetry.bad_requests._value.get() == 1
        assert caplog.records == []


async def test_an_error_of_our_own_is_a_500_with_a_traceback(
    connect: Connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def live(*_: object) -> web.StreamResponse:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Pages, "live", live)
    async with serving() as caller:
        streams = await connect(caller)
        streams[1].write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 500 " in await answered(streams)
        assert "a bug" in caplog.text
        assert caller.world.server.telemetry.bad_requests._value.get() == 0


async def test_beyond_the_limit_the_one_that_was_idle_for_longest_goes(connect: Connect) -> None:
    async with serving(max_connections=8) as caller:
        first, second = await connect(caller), await connect(caller)
        first[1].write(request())
        assert b" 200 " in await answered(first)  # so the second has been idle for longer
        others = [await connect(caller) for _ in range(6)]
        last = await connect(caller)
        assert await is_closed(second)
        for streams in (first, last, *others):
            streams[1].write(request())
            assert b" 200 " in await answered(streams)
        assert caller.world.server.telemetry.crowded_out._value.get() == 1


async def test_a_thousand_connections_leave_room_for_calls(connect: Connect) -> None:
    async with serving(max_connections=16) as caller:
        for number in range(1000):
            streams = await connect(caller)
            streams[1].write(request()[: number % 40])
        assert (await caller.filter(pod_json("p", 1)))["NodeNames"] == ["n1", "n2"]


async def test_callers_that_come_all_at_once_are_no_more_than_the_limit(connect: Connect) -> None:
    async with serving(max_connections=8) as caller:
        crowd = await asyncio.gather(*(connect(caller) for _ in range(40)))
        await caller.filter(pod_json("p", cpu="1"))  # all are accepted by now
        closed = 0
        for streams in crowd:
            streams[1].write(request())
        for streams in crowd:
            try:
                assert b" 200 " in await answered(streams)
            except (ConnectionResetError, asyncio.IncompleteReadError):
                closed += 1
        assert closed == 40 - 7  # the eighth is that of the filter call
        assert caller.world.server.telemetry.crowded_out._value.get() == closed


async def test_calls_at_work_are_not_cut_off_by_new_callers(connect: Connect) -> None:
    async with serving(max_connections=8) as caller:
        cluster, all_there, go_on = caller.world.cluster, asyncio.Barrier(9), asyncio.Event()

        async def bind(*_: str) -> None:
            await all_there.wait()
            await go_on.wait()

        cluster.bind = bind  # type: ignore[method-assign,assignment]
        busy = [await connect(caller) for _ in range(8)]
        for number, streams in enumerate(busy):
            pod = pod_json(f"p{number}", cpu="1")
            cluster.put_pod(as_pod(pod))
            streams[1].write(request("bind", binding(pod, "n1")))
        await all_there.wait()
        late = await connect(caller)
        assert await is_closed(late)
        go_on.set()
        for streams in busy:
            assert await answered(streams) == b'HTTP/1.1 200 OK {"Error":""}'


async def test_bodies_that_do_not_come_give_way_to_calls(connect: Connect) -> None:
    async with serving(max_connections=8, request_seconds=30.0, drain_seconds=0.1) as caller:
        for _ in range(8):
            streams = await connect(caller)
            streams[1].write(request()[:-1])
        assert (await caller.filter(pod_json("p", 1)))["NodeNames"] == ["n1", "n2"]


async def test_an_answer_that_nobody_reads_ends_the_connection(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [f"node-{number:04d}" for number in range(2000)]
    monkeypatch.setattr(connections, "_ANSWER_SECONDS", 0.2)
    async with serving(nodes) as caller:
        streams = await connect(caller)
        streams[1].write(b"GET /v1/nodes HTTP/1.1\r\nHost: x\r\n\r\n" * 8)  # some 20 MB
        gone = asyncio.Event()
        monkeypatch.setattr(caller.world.server.telemetry.disconnects, "inc", gone.set)
        async with asyncio.timeout(10):
            await gone.wait()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await streams[0].readexactly(2**30)


@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_callers_that_leave_before_their_answer_are_counted_once(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as caller:
        address = urlsplit(caller.url)
        for _ in range(10):
            with socket.create_connection((address.hostname, address.port)) as leaving:
                if how == "reset":
                    now = struct.pack("ii", 1, 0)
                    leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
                leaving.sendall(request(content=args(pod_json("p", 1000), ["n1", "n2"])))
            await asyncio.sleep(0.02)
        assert (await caller.filter(pod_json("q", 0)))["NodeNames"] == ["n1", "n2"]
        left = caller.world.server.telemetry.registry.get_sample_value(
            "archimedes_disconnects_total"
        )
        assert left == 10
        assert caller.promised() == 0
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_more_connections_than_files_that_may_be_open_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of the two limits the higher one counts, as the lower one is raised to it.
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 500))
    with pytest.raises(SettingsError, match=r"^max_connections: 437 .* than the 500 files"):
        serve(Settings(max_connections=437))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 900))
    with pytest.raises(SettingsError, match=r"^max_connections: 437 .* of 2 listeners .* the 900"):
        serve(Settings(max_connections=437, probes=ProbeSettings(host="127.0.0.1")))


def test_all_files_that_may_be_open_are_there_for_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 900))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    for name in ("configure_logs", "production_parts", "Server", "run"):
        monkeypatch.setattr(f"extender.app.{name}", lambda _: None)
    serve(Settings(max_connections=800))
    assert raised == [(900, 900)]
