"""The live shadow: it judges by what happened, and a kill at any moment counts nothing twice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.classical import CLASSICAL
from models.grid import DAY, WINDOW
from models.policy import Policy
from models.shipped import shipped
from models.usage_source import PrometheusSettings, UsageBlock
from shadow import batch, live_state
from shadow.follow import Follower
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
        args = msgspec.convert(binding(pod, names[0]), type=dict[str, str])
        await bind(world, args)
    await world.server.close()
    return path


async def bind(world: World, args: dict[str, str]) -> None:
    """Bind as kube-scheduler asks for it."""
    from extender.wire import decode_binding

    world.cluster.put_pod(as_pod(pod_json(args["PodName"], 100)))
    await world.server.binder.bind(decode_binding(msgspec.json.encode(args)))


def follower(decisions: Path, state: Path) -> Follower:
    """A live shadow of the predictor that counts with the highest usage so far."""
    return Follower(
        decisions,
        Path(f"{decisions}.recording"),
        SteadyUsage(),
        PrometheusSettings(delay_seconds=0.0, history_days=2),
        StateFile(state),
        lambda: shipped(CLASSICAL["max"] if "max" in CLASSICAL else CLASSICAL["koordinator"]),
        None,
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
