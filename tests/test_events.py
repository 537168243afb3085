"""Events on pods: what they say, how many there are, and that no call waits for them."""

from __future__ import annotations

import asyncio

import pytest

from extender.decision_log import Decision
from extender.events import TokenBucket
from extender.ports import ClusterError, PodEvent
from extender.settings import EventSettings
from extender.wire import BindingArgs
from tests.extender_world import Json, World, as_pod, pod_json, records_of


def world_of(*pods: Json, settings: EventSettings | None = None) -> World:
    """Two nodes of 8 cores whose peak is 6: 2000m reclaimable on each; the pods are known."""
    world = World(events=settings or EventSettings())
    for pod in pods:
        world.cluster.put_pod(as_pod(pod))
    world.sync()
    world.forecast(6.0)
    return world


async def written(world: World) -> list[PodEvent]:
    """What the loop writes now."""
    before = len(world.cluster.events)
    await world.server.events.write()
    return world.cluster.events[before:]


def outcomes(world: World, outcome: str) -> float:
    return float(world.server.telemetry.events.labels(outcome)._value.get())


LARGE = pod_json("large", 3000)


async def test_a_refused_pod_is_told_the_cause_and_how_many_nodes() -> None:
    world = world_of(LARGE)
    world.filter(LARGE, ["n1", "n2", "n9"])
    (event,) = await written(world)
    assert (event.namespace, event.name, event.uid) == ("default", "large", "uid-large")
    assert event.reason == "NothingReclaimable"
    assert event.note == (
        "none of 3 nodes can take it: asks 3000m for 24 h, more than is reclaimable (2); "
        "node is not known to the extender yet (1)"
    )
    assert event.time == world.now
    assert outcomes(world, "written") == 1


async def test_an_ask_that_no_node_can_meet_is_told_and_logged() -> None:
    odd = pod_json("odd", "1500m")
    world = world_of(odd)
    world.filter(odd)
    (event,) = await written(world)
    assert "asks for archimedes.dev/reclaimed-millicpu in a way that no node can meet" in event.note
    (decision,) = records_of(world.server.decisions, "default/odd")
    assert isinstance(decision, Decision)
    assert decision.candidates == ()
    assert list(decision.rejected.values()) == [2]


async def test_who_is_placeable_or_online_is_told_nothing() -> None:
    small, web = pod_json("small", 2000), pod_json("web", cpu="64")
    world = world_of(small, web)
    world.filter(small)
    world.filter(web)
    world.filter(LARGE, [])  # nothing was offered, so nothing was refused
    assert await written(world) == []


async def test_one_event_for_a_pod_until_its_time_has_passed() -> None:
    world = world_of(LARGE, settings=EventSettings(pod_seconds=300.0))
    for _ in range(3):
        world.filter(LARGE)
    (event,) = await written(world)
    assert event.note.endswith("; 3 times since the last event")
    for _ in range(5):
        world.filter(LARGE)
        world.now += 50
        world.cluster.hear()
        world.forecast(6.0)
        if world.now < event.time + 300:
            assert await written(world) == []
    world.now = event.time + 300
    (again,) = await written(world)
    assert again.note.endswith("; 5 times since the last event")


async def test_a_pod_that_was_placed_or_is_gone_is_told_nothing_late() -> None:
    placed, gone = pod_json("placed", 3000), pod_json("gone", 3000)
    world = world_of(placed, gone)
    world.filter(placed)
    world.filter(gone)
    world.cluster.put_pod(as_pod(pod_json("placed", 3000, node="n1")))
    world.cluster.delete_pod("default", "gone")
    assert await written(world) == []
    assert outcomes(world, "dropped") == 0


async def test_a_call_that_is_faster_than_the_watch_is_told_once_the_pod_is_shown() -> None:
    world = world_of()
    world.filter(LARGE)
    assert await written(world) == []
    world.now += 3
    world.cluster.put_pod(as_pod(LARGE))
    (event,) = await written(world)
    assert event.uid == "uid-large"


@pytest.mark.parametrize("fate", ["gone", "never shown"])
async def test_a_pod_that_is_gone_or_never_shown_keeps_no_place(fate: str) -> None:
    other = pod_json("other", 3000)
    world = world_of(other, settings=EventSettings(max_waiting=1))
    world.filter(LARGE)
    if fate == "gone":
        world.cluster.put_pod(as_pod(LARGE))
        world.cluster.delete_pod("default", "large")
    else:
        world.now += 60
    assert await written(world) == []
    world.filter(other)
    assert [event.name for event in await written(world)] == ["other"]
    assert outcomes(world, "dropped") == 0


async def test_the_rate_is_bounded_and_the_oldest_come_first() -> None:
    pods = [pod_json(f"p{n:02d}", 3000) for n in range(15)]
    world = world_of(*pods, settings=EventSettings(per_minute=6))
    for pod in pods:
        world.filter(pod)
    assert [event.name for event in await written(world)] == [f"p{n:02d}" for n in range(6)]
    assert await written(world) == []
    world.now += 30  # half a minute: three more
    assert [event.name for event in await written(world)] == ["p06", "p07", "p08"]
    world.now += 3600  # an hour saves no more than one minute's worth
    assert [event.name for event in await written(world)] == [f"p{n:02d}" for n in range(9, 15)]


async def test_who_waits_is_bounded_and_the_rest_is_counted() -> None:
    pods = [pod_json(f"p{n}", 3000) for n in range(5)]
    world = world_of(*pods, settings=EventSettings(max_waiting=3))
    for pod in pods:
        world.filter(pod)
        world.filter(pod)
    assert outcomes(world, "dropped") == 4  # two pods, twice each
    assert len(await written(world)) == 3


async def test_it_can_be_switched_off() -> None:
    world = world_of(LARGE, settings=EventSettings(enabled=False))
    world.filter(LARGE)
    assert await written(world) == []


async def test_a_bind_that_failed_is_told() -> None:
    pod = pod_json("p", 2000)
    world = world_of(pod)
    world.filter(pod)
    world.forecast(7.0)  # less is reclaimable by now
    error = await world.server.binder.bind(BindingArgs("p", "default", "uid-p", "n1"))
    (event,) = await written(world)
    assert event.reason == "NotBound"
    assert event.note == f"not bound to n1: {error}"
    assert "more than is reclaimable" in error


async def test_an_api_server_that_refuses_or_hangs_stops_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = pod_json("other", 3000)
    world = world_of(LARGE, other)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hang(_: PodEvent) -> None:
        asked.set()
        await answer.wait()
        raise ClusterError(403, "forbidden")

    monkeypatch.setattr(world.cluster, "write_event", hang)
    world.filter(LARGE)
    writing = asyncio.create_task(world.server.events.write())
    await asked.wait()
    world.filter(other)  # answered although the event is under way
    answer.set()
    await writing
    assert outcomes(world, "failed") == 1
    monkeypatch.undo()
    assert [event.name for event in await written(world)] == ["other"]


async def test_a_long_text_is_cut_before_the_count() -> None:
    world = world_of(LARGE)
    for _ in range(2):
        world.server.events.refused("default/large", "uid-large", 1, {"x" * 5000: 1})
    (event,) = await written(world)
    assert len(event.note) == 1024  # what the API server takes
    assert event.note.endswith("; 2 times since the last event")


@pytest.mark.parametrize("padding", ["", "x", "xx"])
async def test_a_text_is_cut_by_its_bytes_and_between_characters(padding: str) -> None:
    world = world_of(LARGE)
    world.server.events.refused("default/large", "uid-large", 1, {padding + "配" * 500: 1})
    (event,) = await written(world)
    assert 1022 <= len(event.note.encode()) <= 1024  # each of these characters takes 3 bytes
    assert event.note.endswith("配")


async def test_a_clock_that_goes_back_keeps_no_pod_from_being_told() -> None:
    world = world_of(LARGE, settings=EventSettings(pod_seconds=300.0))
    world.filter(LARGE)
    assert len(await written(world)) == 1
    world.now -= 86_400
    world.cluster.hear()
    world.forecast(6.0)
    world.filter(LARGE)
    assert len(await written(world)) == 1


def test_a_clock_that_goes_back_allows_no_more() -> None:
    bucket = TokenBucket(2, 1000.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]
    assert not bucket.take(0.0)
    assert not bucket.take(29.0)  # 29 s after the clock was set: not yet one of 2 a minute
    assert bucket.take(31.0)
