"""A running server on loopback, driven over HTTP as kube-scheduler drives it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import NamedTuple, Unpack

import aiohttp
import orjson

from extender.app import listening
from tests.extender_world import Choices, Json, World, args, binding


class Reply(NamedTuple):
    """An answer: status, headers in lower case, and body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Caller:
    """A client of one world's server."""

    def __init__(self, world: World, url: str, session: aiohttp.ClientSession) -> None:
        self.world = world
        self.url = url
        self.session = session

    async def send(self, verb: str, body: bytes, method: str = "POST", **headers: str) -> Reply:
        """Any bytes to any path under /v1."""
        url = f"{self.url}/v1/{verb}"
        async with self.session.request(
            method, url, data=BytesIO(body), headers=headers
        ) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, found, await response.read())

    async def post(self, verb: str, body: object) -> Json:
        """What a call answers; it must be 200, as kube-scheduler takes nothing else."""
        reply = await self.send(verb, orjson.dumps(body))
        assert reply.status == 200, reply.body
        answer: Json = orjson.loads(reply.body)
        return answer

    async def filter(self, pod: Json, names: Sequence[str] = ("n1", "n2")) -> Json:
        """What filter answers."""
        return await self.post("filter", args(pod, names))

    async def prioritize(self, pod: Json, names: Sequence[str] = ("n1", "n2")) -> object:
        """What prioritize answers."""
        return await self.post("prioritize", args(pod, names))

    async def bind(self, pod: Json, node: str, uid: str | None = None) -> str:
        """The error of a bind call, empty where the pod is bound."""
        answer = await self.post("bind", binding(pod, node, uid))
        assert set(answer) == {"Error"}
        error: str = answer["Error"]
        return error

    async def preempt(self, pod: Json, **victims: object) -> Json:
        """What preempt answers, by node; ``full`` and ``meta`` are the two maps of a request."""
        body = {
            "Pod": pod,
            "NodeNameToVictims": victims.get("full"),
            "NodeNameToMetaVictims": victims.get("meta"),
        }
        answer = await self.post("preempt", body)
        assert set(answer) == {"NodeNameToMetaVictims"}
        kept: Json = answer["NodeNameToMetaVictims"]
        return kept

    async def shown(self, node: str) -> int:
        """Millicores that /v1/nodes shows as charged on a node."""
        async with self.session.get(f"{self.url}/v1/nodes/{node}") as response:
            promises = (await response.json())["promises"]
        return sum(promise["millicpu"] for promise in promises)

    def promised(self) -> int:
        """Millicores charged on all nodes."""
        return int(self.world.state.snapshot(self.world.now).promised.sum())


@asynccontextmanager
async def serving(
    nodes: Sequence[str] = ("n1", "n2"), cpu: str = "8", **settings: Unpack[Choices]
) -> AsyncIterator[Caller]:
    """A server for a synced cluster with forecast peaks of 2 cores on every node."""
    settings.setdefault("port", 0)
    world = World(nodes, cpu, **settings)
    world.sync()
    world.forecast(2.0)
    async with listening(world.server) as url, aiohttp.ClientSession() as session:
        yield Caller(world, url, session)
