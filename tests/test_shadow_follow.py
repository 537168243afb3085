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
from models.errors import ArchimedesError, ArtifactError, RegistryError, UnknownVersionError
from models.grid import DAY, WINDOW
from models.model import Model
from models.policy import Policy
from models.registry import Registry
from models.shipped import shipped
from models.usage_source import PrometheusSettings, UsageBlock, UsageError
from shadow import batch, follow, state_file
from shadow.cli_follow import Challenger
from shadow.follow import Follower, Publish
from shadow.live_state import LiveState, Point, Versions
from shadow.state_file import StateFile
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


CHAMPION = replace(shipped(CLASSICAL["koordinator"], Policy()), version="2")


@pytest.fixture(name="decisions")
async def produce(tmp_path: Path) -> Path:
    """The log and recording of one champion's decisions."""
    return await log_of(tmp_path / "decisions.jsonl", CHAMPION)


async def log_of(path: Path, *champions: Model) -> Path:
    """The log and recording of ten 1 h pods of each champion, bound to their first candidate."""
    world = World(NODES, decision_log=str(path), candidates=2, watch_max_age=600.0)
    for node in NODES:
        world.cluster.put_pod(as_pod(pod_json(f"on-{node}", cpu="4", node=node, phase="Running")))
    world.forecasting._store.write(
        await SteadyUsage().read(int(START) - DAY * WINDOW, DAY),
        {f"default/on-{node}" for node in NODES},
    )
    world.sync()
    annotations = {"archimedes.dev/expected-duration": "1h"}
    for number in range(10 * len(champions)):
        if number % 10 == 0:
            await world.server.refresher.install(champions[number // 10], "test")
        world.now += 10.0
        pod = pod_json(f"p{number}", 100, annotations=annotations)
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
    model: Callable[[], Model | None] = challenger,
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


async def uninterrupted(
    decisions: Path, state: Path, model: Callable[[], Model | None] = challenger
) -> LiveState:
    """The state after all moments."""
    shadow = follower(decisions, state, model=model)
    for now in MOMENTS:
        while await shadow.cycle(now):
            pass
    return shadow.state


def counts(state: LiveState) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Decisions, bound ones and those whose outcome is known, by champion and challenger."""
    return {
        (trial.champion, trial.challenger): (tally.decisions, tally.bound, tally.joined)
        for trial, tally in state.tallies.items()
    }


async def test_both_sides_are_judged_by_what_happened(decisions: Path, tmp_path: Path) -> None:
    state = await uninterrupted(decisions, tmp_path / "state.json")
    (tally,) = state.tallies.values()
    assert (tally.decisions, tally.unscored, tally.bound) == (10, 0, 10)
    assert (tally.joined, tally.unknown) == (10, 0)
    assert tally.champion.judged == tally.challenger.judged == 15  # 3 nodes x 5 horizons
    assert tally.champion.violated == tally.challenger.violated == 0  # usage never changes
    assert not state.choices
    assert not state.bound


@pytest.mark.parametrize("seed", range(4))
async def test_a_kill_at_any_moment_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    decisions = await log_of(tmp_path / "d.jsonl", CHAMPION, replace(CHAMPION, version="5"))
    monkeypatch.setattr(batch, "LINES", 3)
    expected = await uninterrupted(decisions, tmp_path / "whole.json")
    real, rng = state_file._replace, np.random.default_rng(seed)
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

    monkeypatch.setattr(state_file, "_replace", torn)
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
    state = StateFile(path).load()
    assert state == expected
    assert counts(state) == {("2", "3"): (10, 10, 10), ("5", "3"): (10, 10, 10)}


async def test_a_champion_that_changes_begins_figures_anew(tmp_path: Path) -> None:
    bolder = replace(shipped(CLASSICAL["trailing-max-7d"], Policy()), version="5")
    decisions = await log_of(tmp_path / "d.jsonl", CHAMPION, bolder, CHAMPION)
    state = await uninterrupted(decisions, tmp_path / "state")
    # Back in service, the champion's trial goes on where it was.
    assert counts(state) == {("2", "3"): (20, 20, 20), ("5", "3"): (10, 10, 10)}
    assert state.tallies[Versions("2", "3")].champion.judged == 15  # one half hour's refresh
    assert state.tallies[Versions("5", "3")].champion.judged == 0


async def test_a_challenger_that_serves_is_not_on_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setattr(follow.log, "info", lambda text, **_: said.append(text))
    decisions = await log_of(tmp_path / "d.jsonl", CHAMPION, challenger())
    state = await uninterrupted(decisions, tmp_path / "state")
    assert counts(state) == {("2", "3"): (10, 10, 10)}  # what waited was judged
    assert said == ["the challenger serves: its trial has ended"]

    state = await uninterrupted(decisions, tmp_path / "other", lambda: challenger("4"))
    assert counts(state) == {("2", "4"): (10, 10, 10), ("3", "4"): (10, 10, 10)}
    assert said[1:] == ["on trial"]


async def test_without_a_challenger_the_log_is_read_and_nothing_scored(
    decisions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setattr(follow.log, "info", lambda text, **_: said.append(text))
    monkeypatch.setattr(batch, "LINES", 12)  # four decisions, preempt calls and binds
    models: list[Model | None] = [challenger()]
    shadow = follower(decisions, tmp_path / "state", model=lambda: models[0])
    assert await shadow.cycle(MOMENTS[0])
    models[0] = None
    assert await shadow.cycle(MOMENTS[0])
    models[0] = challenger("4")
    while await shadow.cycle(MOMENTS[0]):
        pass
    models[0] = None
    for now in MOMENTS:
        assert not await shadow.cycle(now)
    assert counts(shadow.state) == {("2", "3"): (4, 4, 4), ("2", "4"): (2, 2, 2)}
    assert said == ["on trial", "there is no challenger: waiting for one"]


async def test_figures_wait_while_the_registry_is_away(decisions: Path, tmp_path: Path) -> None:
    away, given = [True], list[tuple[str, str, float, float]]()

    def publish(version: str, against: str, figures: dict[str, float], now: float) -> None:
        if away[0]:
            raise RegistryError("MLflow cannot be reached")
        given.append((version, against, figures["joined"], now))

    shadow = follower(decisions, tmp_path / "state.json", publish)
    for now in MOMENTS[:2]:  # 200 s apart: one point
        await shadow.cycle(now)
    await shadow.cycle(MOMENTS[2])
    assert not given
    away[0] = False
    shadow = follower(decisions, tmp_path / "state.json", publish)  # a restart loses none
    await shadow.cycle(MOMENTS[3])
    # All ten pods ask for an hour: known after two.
    times, joined = (MOMENTS[0], *MOMENTS[2:]), (0, 10, 10)
    assert given == [("3", "2", *point) for point in zip(joined, times, strict=True)]


async def test_figures_of_a_deleted_challenger_hold_up_no_others(
    decisions: Path, tmp_path: Path
) -> None:
    given = list[str]()

    def publish(version: str, _against: str, _figures: dict[str, float], _now: float) -> None:
        if version == "3":
            raise UnknownVersionError("version 3 is not in the registry")
        given.append(version)

    shadow = follower(decisions, tmp_path / "state")
    await shadow.cycle(MOMENTS[0])
    shadow.state.unlogged.append(Point(Versions("2", "4"), MOMENTS[0], {"joined": 1.0}))
    assert [point.trial.challenger for point in shadow.state.unlogged] == ["3", "4"]
    StateFile(tmp_path / "state").save(shadow.state)
    shadow = follower(decisions, tmp_path / "state", publish)
    await shadow.cycle(MOMENTS[0])
    assert given == ["4"]
    assert not shadow.state.unlogged


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
    assert counts(shadow.state) == {("2", "3"): (4, 4, 4), ("2", "4"): (6, 6, 6)}
    judged = shadow.state.tallies[Versions("2", "3")].champion.judged
    assert judged == 15  # the half hour's refresh was before the change


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


async def test_usage_is_read_as_far_as_the_extender_knew_it(
    decisions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ends = SteadyUsage.read, list[int]()

    async def read(self: SteadyUsage, start: int, windows: int) -> UsageBlock:
        ends.append(start + windows * WINDOW)
        return await real(self, start, windows)

    monkeypatch.setattr(SteadyUsage, "read", read)
    shadow = follower(decisions, tmp_path / "state")
    await shadow.cycle(START - 400)  # a clock that is behind
    assert max(ends) == START  # where the extender's usage ended
    (tally,) = shadow.state.tallies.values()
    assert (tally.decisions, tally.unscored) == (10, 0)


def registered(
    database_uri: str, folder: Path, clock: Callable[[], float] = lambda: 0.0
) -> tuple[Registry, Challenger]:
    """A registry whose version 1 is the challenger, and what follows that; it was loaded."""
    registry = Registry(database_uri)
    save_model(challenger(), folder / "model")
    registry.register(folder / "model", params={}, metrics={}, tags={})
    loaded = Challenger("challenger", database_uri, registry, folder / "models", clock)
    assert version_of(loaded) == "1"
    return registry, loaded


def test_a_challenger_outlives_its_registry(
    database_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, loaded = registered(database_uri, tmp_path)
    version, store = "1", tmp_path / "models"

    def away(*_: object) -> str:
        raise RegistryError("MLflow cannot be reached")

    monkeypatch.setattr(Registry, "alias", away)
    monkeypatch.setattr(Registry, "pull", away)
    assert version_of(loaded) == version
    assert version_of(Challenger("challenger", database_uri, registry, store)) == version
    assert version_of(Challenger(version, database_uri, registry, store)) == version
    with pytest.raises(RegistryError):
        Challenger("99", database_uri, registry, store)()
    with pytest.raises(RegistryError):
        Challenger("challenger", database_uri, registry, tmp_path / "other")()


def version_of(challenger: Challenger) -> str | None:
    """What is on trial."""
    model = challenger()
    return None if model is None else model.version


def test_a_challenger_comes_and_goes(database_uri: str, tmp_path: Path) -> None:
    registry = Registry(database_uri)
    registry.prepare()
    loaded = Challenger("challenger", database_uri, registry, tmp_path / "models")
    save_model(challenger(), tmp_path / "model")
    assert version_of(loaded) is None  # nothing was ever registered
    for number in ("1", "2"):
        assert registry.register(tmp_path / "model", params={}, metrics={}, tags={}) == number
        assert version_of(loaded) == number
    registry.promote("challenger", "a test")
    assert version_of(loaded) is None


def test_a_withdrawn_challenger_stays_away_while_the_registry_is(
    database_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, loaded = registered(database_uri, tmp_path)
    registry.promote("challenger", "a test")
    assert version_of(loaded) is None

    def away(*_: object) -> str:
        raise RegistryError("MLflow cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "alias", away)
        assert version_of(loaded) is None  # its copy is still there
    registry.register(tmp_path / "model", params={}, metrics={}, tags={})
    assert version_of(loaded) == "2"


def test_a_challenger_that_cannot_be_loaded_ends_nothing(
    database_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    registry, loaded = registered(database_uri, tmp_path, lambda: now)
    registry.register(tmp_path / "model", params={}, metrics={}, tags={})

    def damaged(*_: object) -> str:
        raise ArtifactError("version 2 is not what was registered")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "pull", damaged)
        assert version_of(loaded) == "1"
        with pytest.raises(ArtifactError):
            Challenger("challenger", database_uri, registry, tmp_path / "other")()
    now += 599.0
    assert version_of(loaded) == "1"  # each try is a download
    now += 1.0
    assert version_of(loaded) == "2"


def test_a_challenger_that_cannot_be_loaded_keeps_no_other_from_its_trial(
    database_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, loaded = registered(database_uri, tmp_path)
    really, tried = Registry.pull, 0

    def pull(self: Registry, ref: str, folder: Path) -> str:
        nonlocal tried
        tried += 1
        if self.alias("challenger") == "2":
            raise ArtifactError("version 2 is not what was registered")
        return really(self, ref, folder)

    monkeypatch.setattr(Registry, "pull", pull)
    for version, serves, tries in (("2", "1", 1), ("3", "3", 2)):
        assert registry.register(tmp_path / "model", params={}, metrics={}, tags={}) == version
        for _ in range(3):
            assert version_of(loaded) == serves
        assert tried == tries


@pytest.mark.parametrize("suffix", [".state", ".progress", ".forecasts"])
@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
async def test_a_damaged_file_is_named(
    decisions: Path, tmp_path: Path, suffix: str, how: str
) -> None:
    path = tmp_path / "shadow.state"
    await follower(decisions, path).cycle(MOMENTS[0])
    damaged = damage(tmp_path, suffix, how)
    with pytest.raises(ArchimedesError, match=r"cannot be used: it .* to begin anew") as told:
        await follower(decisions, path).cycle(MOMENTS[1])
    assert str(damaged) in str(told.value)


def damage(folder: Path, suffix: str, how: str) -> Path:
    """The one file of a kind, which is no longer what was written."""
    (path,) = folder.rglob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-9], "flipped": content, "empty": bytearray()}[how])
    return path
