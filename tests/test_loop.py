"""What keeps the event loop free, and what measures that it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import cast

import msgspec
import numpy as np
import pytest

from extender import reflector
from extender.kube import KubeApi
from extender.lag import PROBE_SECONDS, probe_lag
from extender.ports import Feed
from extender.reflector import Reflector
from extender.telemetry import Telemetry
from models.kube.types import Pod
from tests.extender_world import pod_json

OBJECTS = 1000


class Eager:
    """An API server whose list and events are all there at once."""

    def __init__(self) -> None:
        self.pods = [pod_json(f"pod-{number}") for number in range(OBJECTS)]

    async def call(self, _: str, __: str, ___: Mapping[str, str]) -> bytes:
        metadata = {"resourceVersion": "7"}
        return msgspec.json.encode({"metadata": metadata, "items": self.pods})

    async def watch(self, _: str, __: Mapping[str, str]) -> AsyncIterator[bytes]:
        for pod in self.pods:
            yield msgspec.json.encode({"type": "MODIFIED", "object": pod})


class Turns:
    """A pod feed that notes in which turn of the event loop each pod came."""

    def __init__(self) -> None:
        self.turn = 0
        self.came: list[int] = []

    def put(self, _: Pod) -> str:
        self.came.append(self.turn)
        return str(len(self.came))

    async def count(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turn += 1

    def longest(self) -> int:
        """Most pods within one turn."""
        return int(np.bincount(self.came).max())


@pytest.mark.parametrize("of", ["list", "watch"])
async def test_lists_and_watches_give_way_to_calls(of: str) -> None:
    turns = Turns()
    feed = Feed(turns.put, lambda _: None, lambda _: None, lambda: None)
    reader = Reflector(
        cast("KubeApi", Eager()), Pod, "/", "", feed, Telemetry(), np.random.default_rng(0)
    )
    counter = asyncio.create_task(turns.count())
    await asyncio.sleep(0)
    await (reader._list() if of == "list" else reader._watch())
    counter.cancel()
    assert len(turns.came) == OBJECTS
    assert turns.longest() <= reflector._TURN


async def test_the_probe_reports_how_late_it_woke() -> None:
    # Asleep from 0 to 0.012 and from 1 to 1.005, where 0.005 were due: late by 0.007, and not late.
    moments = iter([0.0, 0.012, 1.0, 1.0 + PROBE_SECONDS])
    seen: list[float] = []
    with pytest.raises(RuntimeError, match="StopIteration"):
        await probe_lag(lambda: next(moments), seen.append)
    assert seen == pytest.approx([0.007, 0.0])
