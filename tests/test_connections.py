"""Callers that are slow, many, or neither: from outside, over raw sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import orjson
import pytest

from extender import connections
from tests.extender_world import args, pod_json
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


def request(name: str = "p") -> bytes:
    """A whole filter request of an online pod."""
    body = orjson.dumps(args(pod_json(name, cpu="1"), ["n1"]))
    head = f"POST /v1/filter HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
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


async def test_calls_at_work_are_not_cut_off_by_new_callers(connect: Connect) -> None:
    async with serving(max_connections=8, request_seconds=30.0) as caller:
        busy = [await connect(caller) for _ in range(8)]
        whole = request()
        for streams in busy:
            streams[1].write(whole[:-1])  # the last byte of the body is on its way
        await asyncio.sleep(0.1)
        late = await connect(caller)
        assert await is_closed(late)
        for streams in busy:
            streams[1].write(whole[-1:])
            assert b" 200 " in await answered(streams)


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
