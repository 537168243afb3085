"""The live shadow: it judges by what happened, and a kill at any moment counts nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.artifact import save_model
from models.classical import CLASSICAL
from models.errors import ArchimedesError, RegistryError
from models.grid import DAY, WINDOW
from models.model import Model
from models.policy import Policy
from models.registry import Registry
from models.shipped import shipped
from models.usage_source import PrometheusSettings, UsageBlock, UsageError
from shadow import batch, live_state
from shadow.cli_follow import Challenger
from shadow.follow import Follower, Publish
from shadow.live_state import LiveState, StateFile
from tests.extender_world import START, World, as_pod, binding, pod_json

NODES = ("n1", "n2", "n3")
CORES = {"n1": 1.0, "n2": 2.0, "n3": 6.0}
HOUR = 3600


class Killed(BaseException):
    """What stands in for SIGKILL: no handler of the code under test sees it."""


class SteadyUsage:
    """Each node's one pod uses the same all the time."""

    async def read(self, start: int, windows: int) -> UsageBlock:
        """The same in each window."""
        pods = tuple(f"default/on-{node}" for node in NODES)
        cpu = np.repeat(np.array([CORES[n] for n in NODES], np.float32)[:, None], windows, axis=1)
        return UsageBlock(start, pods, cpu)

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(name="decisions")
async def produce(tmp_path: Path) -> Path:
    """The log and recording of ten 1 h pods, each bound to its first candidate."""
    path = tmp_path / "decisions.jsonl"
    world = World(NODES, decision_log=str(path), candidates=2)
    for node in NODES:
        world.cluster.put_pod(as_pod(pod_json(f"on-{node}", cpu="4", node=node, phase="Running")))
    world.server.refresher._store.write(
        await SteadyUsage().read(int(START) - DAY * WINDOW, DAY),
        {f"default/on-{node}" for node in NODES},
    )
    world.sync()
    await world.server.refresher.install(shipped(CLASSICAL["koordinator"], Policy()), "test")
    for number in range(10):
        world.now += 10.0
        pod = pod_json(f"p{number}", 100, annotations={"archimedes.dev/expected-duration": "1h"})

        names = world.filter(pod)["NodeNames"]
        world.preempt(pod, {"n1": ["uid-p0"]})  # logged as well, and nothing to the shadow
        args = msgspec.convert(binding(pod, names[0]), type=dict[str, str])
        await bind(world, args)
    await world.server.close()
    return path


async def bind(world: World, args: dict[str, str]) -> None:
    """Bind as kube-scheduler asks for it."""
    from extender.wire import decode_binding

    world.cluster.put_pod(as_pod(pod_json(args["PodName"], 100)))
    await world.server.binder.bind(decode_binding(msgspec.json.encode(args)))


def challenger(version: str = "3") -> Model:
    """The predictor that counts with the highest usage so far, as a version of the registry."""
    return replace(shipped(CLASSICAL["trailing-max-24h"]), version=version)


def follower(
    decisions: Path,
    state: Path,
    publish: Publish | None = None,
    model: Callable[[], Model] = challenger,
) -> Follower:
    """A live shadow."""
    return Follower(
        decisions,
        Path(f"{decisions}.recording"),
        SteadyUsage(),
        PrometheusSettings(delay_seconds=0.0, history_days=2),
        StateFile(state),
        model,
        publish,
    )


MOMENTS = (START + 700, START + 900, START + 2 * HOUR, START + 26 * HOUR)


async def uninterrupted(decisions: Path, state: Path) -> LiveState:
    """The state after all moments."""
    shadow = follower(decisions, state)
    for now in MOMENTS:
        while await shadow.cycle(now):
            pass
    return shadow.state


async def test_both_sides_are_judged_by_what_happened(decisions: Path, tmp_path: Path) -> None:
    state = await uninterrupted(decisions, tmp_path / "state.json")
    (tally,) = state.tallies.values()
    assert (tally.decisions, tally.unscored, tally.bound) == (10, 0, 10)
    assert (tally.joined, tally.unknown) == (10, 0)
    assert tally.champion.judged == tally.challenger.judged == 15  # 3 nodes x 5 horizons
    assert tally.champion.violated == tally.challenger.violated == 0  # usage never changes
    assert not state.choices
    assert not state.bound


async def test_a_kill_at_any_moment_counts_nothing_twice(
    decisions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LINES", 3)
    expected = await uninterrupted(decisions, tmp_path / "whole.json")
    real, rng = live_state._replace, np.random.default_rng(3)
    kills = 0

    def torn(path: Path, content: bytes) -> None:
        nonlocal kills
        moment = rng.integers(6)
        if moment == 0:  # in the middle of a write
            path.with_name(path.name + ".new").write_bytes(content[: len(content) // 2])
        if moment == 1:  # just after it
            real(path, content)
        if moment < 3:
            kills += 1
            raise Killed
        real(path, content)

    monkeypatch.setattr(live_state, "_replace", torn)
    path = tmp_path / "torn.json"
    for now in MOMENTS:
        more = True
        shadow = None
        while more:
            try:
                shadow = shadow or follower(decisions, path)
                more = await shadow.cycle(now)
            except Killed:
                shadow = None
    assert kills > 3
    assert StateFile(path).load() == expected


async def test_figures_wait_while_the_registry_is_away(decisions: Path, tmp_path: Path) -> None:
    away, given = [True], list[tuple[str, float, float]]()

    def publish(version: str, figures: dict[str, float], now: float) -> None:
        if away[0]:
            raise RegistryError("MLflow cannot be reached")
        given.append((version, figures["joined"], now))

    shadow = follower(decisions, tmp_path / "state.json", publish)
    for now in MOMENTS[:2]:  # 200 s apart: one point
        await shadow.cycle(now)
    await shadow.cycle(MOMENTS[2])
    assert not given
    away[0] = False
    shadow = follower(decisions, tmp_path / "state.json", publish)  # a restart loses none
    await shadow.cycle(MOMENTS[3])
    # All ten pods ask for an hour: known after two.
    assert given == [("3", 0, MOMENTS[0]), ("3", 10, MOMENTS[2]), ("3", 10, MOMENTS[3])]


async def test_another_challenger_has_figures_of_its_own(
    decisions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LINES", 12)  # four decisions, preempt calls and binds
    versions = ["3"]
    shadow = follower(decisions, tmp_path / "state.json", None, lambda: challenger(versions[0]))
    assert await shadow.cycle(MOMENTS[0])
    versions[0] = "4"
    for now in MOMENTS:
        while await shadow.cycle(now):
            pass
    tallies = shadow.state.tallies
    assert {v: (t.decisions, t.joined) for v, t in tallies.items()} == {"3": (4, 4), "4": (6, 6)}
    assert tallies["3"].champion.judged == 15  # the half hour's refresh was before the change


async def test_usage_that_cannot_be_read_costs_nothing(
    decisions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await uninterrupted(decisions, tmp_path / "whole.json")
    real, failures = SteadyUsage.read, iter([True, True, False, False, True])

    async def read(self: SteadyUsage, start: int, windows: int) -> UsageBlock:
        if next(failures, False):
            raise UsageError("Prometheus is away")
        return await real(self, start, windows)

    monkeypatch.setattr(SteadyUsage, "read", read)
    shadow, failed = follower(decisions, tmp_path / "state.json"), 0
    for now in MOMENTS:
        more = True
        while more:
            try:
                more = await shadow.cycle(now)
            except UsageError:
                failed += 1
    assert failed == 3
    assert shadow.state == expected


def test_a_challenger_outlives_its_registry(
    database_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, store = Registry(database_uri), tmp_path / "models"
    save_model(challenger(), tmp_path / "model")
    version = registry.register(tmp_path / "model", params={}, metrics={}, tags={})
    loaded = Challenger("challenger", database_uri, registry, store)
    assert loaded().version == version

    def away(*_: object) -> str:
        raise RegistryError("MLflow cannot be reached")

    monkeypatch.setattr(Registry, "alias", away)
    monkeypatch.setattr(Registry, "pull", away)
    assert loaded().version == version
    assert Challenger("challenger", database_uri, registry, store)().version == version
    assert Challenger(version, database_uri, registry, store)().version == version
    with pytest.raises(RegistryError):
        Challenger("99", database_uri, registry, store)()
    with pytest.raises(RegistryError):
        Challenger("challenger", database_uri, registry, tmp_path / "other")()


async def test_a_damaged_state_is_named(decisions: Path, tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.json")
    await follower(decisions, tmp_path / "state.json").cycle(MOMENTS[0])
    damage(state)
    with pytest.raises(ArchimedesError, match=r"belongs to state file .* remove both"):
        await follower(decisions, tmp_path / "state.json").cycle(MOMENTS[1])


def damage(state: StateFile) -> None:
    """Overwrite what the challenger has learned."""
    state._at(state.load().learned[1], ".progress").write_bytes(b"nothing")
