"""A fair trial: the challenger learns from its forecasts as the champion does from its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from extender.outlook import Champion, CountedPod
from extender.recorder import Recorder
from extender.recording import OnlinePod, Refresh
from models import node_groups
from models.arrays import Floats
from models.classical import CLASSICAL
from models.grid import DAY, WINDOW
from models.model import Model
from models.shipped import shipped
from models.usage_source import PrometheusSettings, UsageBlock
from models.usage_store import UsageReader, UsageStore
from shadow.follow import Follower
from shadow.state_file import StateFile
from tests.extender_world import START

NODES = ("n1", "n2")
PODS = {"default/a": "n1", "default/b": "n2", "default/c": "n2"}
EVERY = 1800
REFRESHES = 3 * 48  # three days of half hours
USAGE = PrometheusSettings(delay_seconds=0.0, history_days=2)


class RisingUsage:
    """What no past foretells: each day and a half, each pod uses half a core more."""

    async def read(self, start: int, windows: int) -> UsageBlock:
        """Every pod's usage in some windows."""
        number = (start - int(START)) // WINDOW + np.arange(windows)
        cores = 1.0 + 0.5 * np.maximum(number // (3 * DAY // 2) + 1, 0)
        cpu = np.stack([cores * (1 + at) for at in range(len(PODS))]).astype(np.float32)
        return UsageBlock(start, tuple(PODS), cpu)

    async def close(self) -> None:
        """Nothing is open."""


def online(key: str, node: str) -> CountedPod:
    """An online pod of its own."""
    return CountedPod(key, node, f"default/Pod/{key}", False, 2.0, np.inf)


ALLOCATABLE = np.array([16.0, 16.0])


def pods_at(number: int) -> list[CountedPod]:
    """At a refresh: the pods, and a new one of the first's workload that is never observed."""
    pods = tuple(map(online, PODS, PODS.values()))
    new = online(f"default/new-{number}", "n1")
    sibling = msgspec.structs.replace(new, workload=pods[0].workload)
    return [*pods, sibling]


@pytest.fixture(name="log")
async def produce(tmp_path: Path) -> Path:
    """The recording of a champion's refreshes, as the extender makes them; nothing is decided."""
    log = tmp_path / "decisions.jsonl"
    log.touch()
    recorder = Recorder(
        Path(f"{log}.recording"),
        max_bytes=2**30,
        max_age=1e6,
        advertise_share=1.0,
        dropped=lambda _: pytest.fail("a refresh was not recorded"),
    )
    champion, store = Champion(model()), UsageStore()
    reader = UsageReader(RisingUsage(), store, USAGE)
    for number in range(REFRESHES):
        now = START + number * EVERY
        await reader.catch_up(now, frozenset(PODS))
        pods = pods_at(number)
        forecast = champion.outlook(NODES, ALLOCATABLE, pods, store).forecast
        refresh = Refresh(
            time=now,
            usage_end=store.time,
            model_version="7",
            nodes=NODES,
            allocatable=ALLOCATABLE,
            forecast=forecast.forecast,
            expected=forecast.expected,
            pods={
                pod.key: OnlinePod(pod.key, pod.node, pod.request, 0.0, pod.workload)
                for pod in pods
            },
            advertise_share=1.0,
        )
        recorder.put(lambda refresh=refresh: refresh)  # type: ignore[misc]
    recorder.close()
    return log


def model() -> Model:
    """What is champion and challenger."""
    return shipped(CLASSICAL["trailing-max-24h"])


async def just_loaded(now: float) -> Floats:
    """What the model forecasts where it has learned nothing."""
    store = UsageStore()
    await UsageReader(RisingUsage(), store, USAGE).catch_up(now, frozenset(PODS))
    return Champion(model()).outlook(NODES, ALLOCATABLE, pods_at(0), store).forecast.forecast


def follower(log: Path, state: StateFile) -> Follower:
    """A live shadow whose challenger is the champion."""
    recording = Path(f"{log}.recording")
    return Follower(log, recording, RisingUsage(), USAGE, state, model, None)


def kept(state: StateFile) -> dict[float, tuple[Floats, Floats]]:
    """Both sides' forecasts by refresh, where they wait for their outcome."""
    found = {pending.time: state.forecasts(pending.time) for pending in state.load().pending}
    return {t: (each.champion.array(), each.challenger.array()) for t, each in found.items()}


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("pods_of_a_group", [16_384, 2])
async def test_a_challenger_that_is_the_champion_forecasts_the_same(
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pods_of_a_group: int,
    *,
    restarts: bool,
) -> None:
    monkeypatch.setattr(node_groups, "_PODS_PER_GROUP", pods_of_a_group)  # the champion had one
    state = StateFile(tmp_path / "state.json")
    shadow = follower(log, state)
    both: dict[float, tuple[Floats, Floats]] = {}
    more = True
    while more:  # six cycles: 144 refreshes, 24 in each
        more = await shadow.cycle(START + REFRESHES * EVERY)
        both |= kept(state)
        shadow = follower(log, state) if restarts else shadow
    assert len(both) == REFRESHES
    for champion, challenger in both.values():
        np.testing.assert_allclose(challenger, champion, rtol=1e-9)
    (learned, _), loaded = both[max(both)], await just_loaded(max(both))
    assert (learned > loaded + 0.1).any()  # it was surprised, and has learned
    (tally,) = state.load().tallies.values()
    assert tally.champion == tally.challenger
    assert tally.champion.violated > 0
