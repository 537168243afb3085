"""Promises as time passes: renewed or overdue, after restarts, and when the clock is set."""

import asyncio

import pytest

from extender import state
from extender.inspection import describe_node, observe
from extender.ledger import Stage
from extender.locks import Lock
from extender.snapshot import Reason
from tests.extender_world import START, Json, World, as_pod, pod_json

HOUR = 3600.0
ONE_HOUR = {"archimedes.dev/expected-duration": "1h"}


@pytest.fixture
def world() -> World:
    """Two nodes of 8 cores with forecast peaks of 2 cores: 6000 millicores each."""
    made = World()
    made.sync()
    made.forecast(2.0)
    return made


def run(world: World, name: str, ask: int, began: str | None = None, **fields: object) -> Json:
    """A pod that runs on n1 and promised to be done in an hour."""
    pod = pod_json(name, ask, node="n1", annotations=ONE_HOUR, phase="Running")
    if began is not None:
        pod["status"]["startTime"] = began
    world.cluster.put_pod(as_pod({**pod, **fields}))
    return pod


def pass_time(world: World, seconds: float, peak: float = 2.0) -> None:
    """Time passes; forecasts are made anew, and promises looked at."""
    world.now += seconds
    world.cluster.hear()
    world.forecast(peak)
    asyncio.run(world.server.loops.renew())


def metric(world: World, name: str) -> float | None:
    """A metric as it would be scraped now."""
    observe(world.state, world.server.telemetry, world.now)
    return world.server.telemetry.registry.get_sample_value(name)


def until(world: World, name: str) -> float:
    """When a promise's horizon ends, in hours from the start."""
    entry = world.state.ledger.get(f"uid-{name}")
    assert entry is not None
    return (entry.expires - START) / HOUR


# Horizons that pass


def test_a_promise_is_renewed_where_the_node_still_covers_all(world: World) -> None:
    run(world, "a", 4000)
    run(world, "b", 2000)
    pass_time(world, HOUR - 1)
    assert until(world, "a") == 1.0
    pass_time(world, 1)
    assert (until(world, "a"), until(world, "b")) == (2.0, 2.0)  # 6000 - 4000 - 2000 = 0
    assert metric(world, "archimedes_promises_renewed_total") == 2.0
    assert metric(world, "archimedes_promises_overdue") == 0.0


def test_promises_are_looked_at_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_PART", 2)
    for name in "abcde":
        run(world, name, 1000)
    world.now += HOUR
    world.cluster.hear()
    world.forecast(2.0)
    parts = world.state.renew(world.now)
    assert [entry.pod for entry in next(parts).renewed] == ["default/a", "default/b"]
    world.cluster.delete_pod("default", "c")  # the loop is given back between two parts
    assert [[entry.pod for entry in part.renewed] for part in parts] == [
        ["default/d"],
        ["default/e"],
    ]
    assert [until(world, name) for name in "abde"] == [2.0] * 4


def test_what_the_node_cannot_cover_is_overdue_told_once_and_stays_charged(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run(world, "a", 4000)
    for _ in range(3):
        pass_time(world, HOUR, peak=5.0)  # 8 - 5 = 3 < 4
    assert metric(world, "archimedes_promises_overdue") == 1.0
    assert capsys.readouterr().out.count("promise overdue") == 1
    found = describe_node(world.state, "n1", world.now)
    assert found is not None
    assert [(p.pod, p.overdue, p.until) for p in found.promises] == [
        ("default/a", True, START + HOUR)
    ]
    assert found.summary.promised_millicpu == 4000
    pass_time(world, 60)  # the tide is out again
    assert metric(world, "archimedes_promises_overdue") == 0.0
    assert until(world, "a") == pytest.approx(4 + 1 / 60)


def test_an_overdue_promise_holds_back_those_that_could_be_renewed_beside_it(world: World) -> None:
    run(world, "a", 2000)
    run(world, "b", 2000)
    pass_time(world, HOUR, peak=5.0)  # 3000 cover each of them, but not both
    assert metric(world, "archimedes_promises_overdue") == 2.0


def test_a_hold_does_not_stand_in_the_way(world: World) -> None:
    run(world, "a", 4000)
    pass_time(world, HOUR - 1)
    world.filter(pod_json("b", 2000), ["n1"])
    pass_time(world, 1, peak=3.0)  # 5000 cover 4000, not the 2000 that are held as well
    assert metric(world, "archimedes_promises_overdue") == 0.0


@pytest.mark.parametrize("why", ["usage is stale", "a lock", "the API server is silent"])
def test_where_nothing_new_is_promised_nothing_is_renewed(world: World, why: str) -> None:
    run(world, "a", 4000)
    run(world, "free", 0)
    world.now += HOUR
    if why != "the API server is silent":
        world.cluster.hear()
    if why != "usage is stale":
        world.forecast(2.0)
    if why == "a lock":
        world.state.lock([Lock("x", world.now, world.now + 60, 3.0, 0.0, None, "", "")], {})
    asyncio.run(world.server.loops.renew())
    assert metric(world, "archimedes_promises_overdue") == 1.0  # who asks for nothing takes nothing


def test_a_pod_that_ends_is_overdue_no_longer(world: World) -> None:
    run(world, "a", 4000)
    pass_time(world, HOUR, peak=5.0)
    world.cluster.delete_pod("default", "a")
    pass_time(world, 15)
    assert metric(world, "archimedes_promises_overdue") == 0.0


def test_after_a_restart_a_promise_dates_from_when_its_pod_began(world: World) -> None:
    run(world, "a", 4000, began="2023-11-14T21:45:00Z")  # half an hour before START
    run(world, "later", 1000, began="2030-01-01T00:00:00Z")  # a clock elsewhere is ahead
    assert (until(world, "a"), until(world, "later")) == (0.5, 1.0)


# A clock that is set, a process that stood still


def test_what_waits_goes_on_waiting_after_the_clock_was_set_forward(world: World) -> None:
    world.filter(pod_json("held", 1000))
    run(world, "bound", 500)
    world.now += 5000
    world.state.shift(5000.0)
    world.server.loops.tick()
    entry = world.state.ledger.get("uid-held")
    assert entry is not None
    assert entry.stage is Stage.HELD
    world.now += world.settings.hold_seconds
    world.server.loops.tick()
    assert world.state.ledger.get("uid-held") is None
    assert until(world, "bound") == 1.0


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_what_begins_before_a_step_is_noticed_is_by_the_new_time(
    world: World, seconds: float
) -> None:
    world.now += seconds
    world.cluster.hear()
    world.forecast(2.0)
    world.filter(pod_json("held", 1000))
    world.now += 1
    world.state.shift(seconds)
    entry = world.state.ledger.get("uid-held")
    assert entry is not None
    assert entry.expires == world.now - 1 + world.settings.hold_seconds
    assert world.state.silence(world.now) == 1


def test_after_the_clock_was_set_back_holds_end_and_silence_is_noticed(world: World) -> None:
    world.now += 10 * HOUR
    world.cluster.hear()
    world.forecast(2.0)
    world.filter(pod_json("held", 1000))
    world.now -= 9 * HOUR
    world.state.shift(-9 * HOUR)
    world.now += world.settings.hold_seconds
    world.server.loops.tick()
    assert world.state.ledger.get("uid-held") is None
    world.now += world.settings.watch_max_age
    snapshot = world.state.snapshot(world.now)
    assert set(snapshot.blocked.tolist()) == {Reason.DISCONNECTED}
