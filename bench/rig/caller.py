"""Calls an extender as kube-scheduler does, and remembers how long each call took.

One pod's filter and prioritize come after the other's, binds beside them, on kept connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Self

import orjson

from bench.rig.objects import NAMESPACE, PodRow, arriving, node_name

NAMES = 500
"""Nodes that kube-scheduler offers in a cluster of 5,000 and more."""


class Call(NamedTuple):
    """One call: the verb, and when it began and ended (monotonic seconds)."""

    verb: str
    start: float
    stop: float


@dataclass(frozen=True, slots=True)
class Connection:
    """A kept HTTP/1.1 connection, for one call at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to 127.0.0.1."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, body: bytes) -> bytes:
        """The answer's body. Raises OSError where it is no 200 or 201."""
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = answer.split(b"\r\n")
        length = next(int(at[15:]) for at in lines if at.lower().startswith(b"content-length:"))
        found = await self.reader.readexactly(length)
        if b" 20" not in status:
            raise OSError(f"{path}: {status.decode()}: {found[:200]!r}")
        return found


class Caller:
    """A steady stream of pods, half of them offline, at a rate, whatever the answers take."""

    def __init__(self, extender: int, cluster: int, nodes: int, rate: float) -> None:
        """``extender``, ``cluster``: ports; ``rate``: pods a second."""
        self._ports = extender, cluster
        self._nodes = nodes
        self._rate = rate
        self._names = [orjson.dumps(node_name(at)) for at in range(nodes)]
        self._next = 0
        self._created = 0
        self._binders: dict[int, list[Connection]] = {port: [] for port in self._ports}  # idle ones
        self._binds: set[asyncio.Task[None]] = set()
        self.calls: list[Call] = []
        self.placed = self.waiting = 0

    async def run(self, seconds: float) -> float:
        """Send pods for so long; the rate that was reached, in pods a second."""
        calls, creates = await asyncio.gather(*map(Connection.open, self._ports))
        began, first = time.monotonic(), self._next
        while (now := time.monotonic()) < began + seconds:
            ahead = self._next + int(self._rate)
            if self._created < ahead:
                await self._create(creates, ahead - self._created)
            due = began + (self._next - first) / self._rate
            if due > now:
                await asyncio.sleep(due - now)
            await self._schedule(calls)
        reached = (self._next - first) / (time.monotonic() - began)
        await asyncio.gather(*self._binds)
        for connection in (calls, creates, *chain(*self._binders.values())):
            connection.writer.close()
        self._binders = {port: [] for port in self._ports}
        return reached

    async def _create(self, connection: Connection, count: int) -> None:
        """Pods are seen by the watch some time before they are scheduled."""
        await connection.post(f"/bench/create?first={self._created}&count={count}", b"")
        self._created += count

    async def _schedule(self, connection: Connection) -> None:
        pod = arriving(self._next)
        self._next += 1
        head = b'{"Pod":%s,"Nodes":null,"NodeNames":[' % pod.render()
        start = (self._next * NAMES) % self._nodes
        offered = (self._names[start:] + self._names[:start])[:NAMES]
        answer = await self._timed(connection, "filter", head + b",".join(offered) + b"]}")
        names: list[str] = orjson.loads(answer)["NodeNames"]
        if not names:
            self.waiting += 1
            return
        node = names[0]
        if len(names) > 1:
            body = head + b",".join(map(orjson.dumps, names)) + b"]}"
            scores = orjson.loads(await self._timed(connection, "prioritize", body))
            node = max(scores, key=lambda score: score["Score"])["Host"]
        task = asyncio.create_task(self._bind(pod, node) if pod.offline else self._own(pod, node))
        self._binds.add(task)
        task.add_done_callback(self._binds.discard)

    async def _bind(self, pod: PodRow, node: str) -> None:
        """An offline pod is bound by the extender."""
        binding = {"PodName": pod.name, "PodNamespace": NAMESPACE, "PodUID": pod.uid, "Node": node}
        async with self._binder(self._ports[0]) as connection:
            answer = await self._timed(connection, "bind", orjson.dumps(binding))
        error = orjson.loads(answer)["Error"]
        self.placed += not error
        self.waiting += bool(error)

    async def _own(self, pod: PodRow, node: str) -> None:
        """An online pod is bound by kube-scheduler itself."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod.name}/binding"
        async with self._binder(self._ports[1]) as connection:
            await connection.post(path, orjson.dumps({"target": {"name": node}}))
        self.placed += 1

    @asynccontextmanager
    async def _binder(self, port: int) -> AsyncIterator[Connection]:
        """A connection for one call beside the others."""
        idle = self._binders[port]
        connection = idle.pop() if idle else await Connection.open(port)
        yield connection
        idle.append(connection)

    async def _timed(self, connection: Connection, verb: str, body: bytes) -> bytes:
        began = time.monotonic()
        answer = await connection.post(f"/v1/{verb}", body)
        self.calls.append(Call(verb, began, time.monotonic()))
        return answer


def within(moments: Sequence[Call], spans: Sequence[tuple[float, float]]) -> list[Call]:
    """The calls that touch any of the spans."""
    return [
        call
        for call in moments
        if any(call.start < stop and start < call.stop for start, stop in spans)
    ]
